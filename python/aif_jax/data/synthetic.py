"""Made-up traffic with known click probabilities, and so with a known bound on the AUC of any model.

A user has a taste over a dozen categories, an affinity to each, and a direction in the latent space of the
items; past behaviour alone reveals them. Affinities differ freely between categories, and recent behaviour
concentrates on a few (moods), so the last 50 behaviours say little about most of what is shown, and a long
history pays.
"""

import numpy as np

from aif_jax.data.content import Content, derived_rows
from aif_jax.data.dataset import Dataset
from aif_jax.data.rows import Events, Impressions
from aif_jax.data.splits import SPLITS, TEST, TRAIN, VALIDATION
from aif_jax.errors import DataError
from aif_jax.features import Categorical, Hashing, MultiValued, Numeric, Ragged, Schema

BEHAVIOURS = ("click", "like", "skip")
CHANNELS = ("taste", "popular", "explore")
DEVICES = ("phone", "tablet", "desktop")

_LATENT = 16
_TASTES = 12
_SESSION = 24
_BETWEEN = 10
_BRANDS_PER_CATEGORY = 8
_TAGS = 40
_INTERCEPT = -0.5


def synthetic(
    *,
    n_items: int = 20_000,
    n_users: int = 2_000,
    n_categories: int = 64,
    n_requests: int = 6,
    shown: int = 16,
    history: int = 200,
    content_width: int = 64,
    seed: int = 0,
) -> Dataset:
    """Make up a data set.

    Each user browses, then alternates between being shown a request and browsing on; the last request tests,
    the one before validates, the others train. The outcome of a request is part of the history of the next.

    Args:
        n_items: items; popularity follows Zipf's law, so many are rare; 3 % appear only after training.
        n_users: users.
        n_categories: categories of items, at least 2.
        n_requests: requests a user, at least 3.
        shown: impressions in a request.
        history: median length of a history before the first request (log-normal, 20 to 1,500).
        content_width: width of the content embedding: a noisy rotation of the items' latent vectors, missing
            for 1 % of the items.
        seed: the same seed gives the same data.

    Returns:
        A data set with heads ``ctr`` (clicked) and ``like`` (known for clicked rows only). Notes:
        ``truth`` float64 ``[I]``, the probability by which each click was drawn; ``truth_neutral``, the same
        without the effect of position; ``best_auc`` and ``best_auc_neutral``, by split, the AUC of either
        against the labels: no model can be expected to beat the first, nor the second without the position.
        Raw features and types are documented by the schema.

    Raises:
        DataError: a size is too small.
    """
    if (
        min(n_items, n_users, shown, content_width) < 1
        or n_categories < 2
        or n_requests < 3
        or n_items < n_categories
    ):
        raise DataError(
            f"got {n_items} items, {n_users} users, {n_categories} categories, {n_requests} requests; "
            "expected at least one item a category, one user, 2 categories and 3 requests."
        )
    random = np.random.default_rng(seed)
    world = _World(random, n_items, n_users, n_categories)
    lengths = np.clip(random.lognormal(np.log(history), 0.8, n_users), 20, 1500).astype(np.int64)
    return _Traffic(random, world, lengths, n_requests, shown).dataset(content_width)


def synthetic_small(*, content_width: int = 64, seed: int = 0) -> Dataset:
    """Make up a data set small enough for a test: 500 items, 100 users, 2,400 impressions."""
    return synthetic(
        n_items=500,
        n_users=100,
        n_categories=12,
        n_requests=4,
        shown=6,
        history=60,
        content_width=content_width,
        seed=seed,
    )


class _World:
    """Items, users, and the affinity between them."""

    def __init__(self, random: np.random.Generator, n_items: int, n_users: int, n_categories: int):
        self.n_items, self.n_users, self.n_categories = n_items, n_users, n_categories
        share = (np.arange(n_categories) + 3.0) ** -0.7
        share /= share.sum()
        # Every category has an item, whatever is drawn; items are in order of category.
        drawn = random.choice(n_categories, n_items - n_categories, p=share)
        self.category = np.sort(np.r_[np.arange(n_categories), drawn])
        centre = _unit(random.normal(size=(n_categories, _LATENT)))
        self.latent = _unit(0.8 * centre[self.category] + 0.6 * _unit(random.normal(size=(n_items, _LATENT))))
        brand_quality = random.normal(size=(n_categories, _BRANDS_PER_CATEGORY))
        self.brand = random.integers(0, _BRANDS_PER_CATEGORY, n_items)
        self.quality = 0.5 * brand_quality[self.category, self.brand] + 0.8 * random.normal(size=n_items)
        self.price = np.exp(random.normal(3.0, 0.7, n_items) + 0.3 * brand_quality[self.category, self.brand])
        popularity = (random.permutation(n_items) + 10.0) ** -0.9
        self.popularity = np.concatenate([[0.0], np.cumsum(popularity / popularity.sum())])
        self.first_item = np.searchsorted(self.category, np.arange(n_categories + 1))
        # Items that appear only when validation begins; until then the one before stands in for each.
        self.fresh = random.random(n_items) < 0.03
        self.fresh[self.first_item[:-1]] = False
        self.stand_in = np.maximum.accumulate(np.where(self.fresh, 0, np.arange(n_items)))

        tastes = min(_TASTES, n_categories)
        # The top of Gumbel-perturbed logs is a draw without replacement.
        perturbed = np.log(share) + random.gumbel(size=(n_users, n_categories))
        self.taste = np.argsort(-perturbed, axis=1)[:, :tastes]
        weight = 1.0 / (np.arange(tastes) + 2.0)
        self.taste_share = np.cumsum(weight / weight.sum())
        affinity = np.full((n_users, n_categories), -0.5)
        np.put_along_axis(affinity, self.taste, random.normal(size=(n_users, tastes)), axis=1)
        self.affinity = affinity
        self.direction = _unit(random.normal(size=(n_users, _LATENT)))
        self.region = random.integers(0, 5, n_users)
        self.bias = 0.4 * random.normal(size=n_users) + 0.2 * (self.region - 2)
        self.daypart = random.normal(size=(n_categories, 4))

    def draw_from(self, random: np.random.Generator, category: np.ndarray) -> np.ndarray:
        """Draw an item of each category by popularity."""
        low = self.popularity[self.first_item[category]]
        high = self.popularity[self.first_item[category + 1]]
        point = low + random.random(len(category)) * (high - low)
        item = np.searchsorted(self.popularity, point, side="right") - 1
        return np.clip(item, self.first_item[category], self.first_item[category + 1] - 1)

    def draw_popular(self, random: np.random.Generator, n: int) -> np.ndarray:
        """Draw items by popularity, whatever their category."""
        item = np.searchsorted(self.popularity, random.random(n), side="right") - 1
        return np.minimum(item, self.n_items - 1)

    def draw_taste(self, random: np.random.Generator, user: np.ndarray) -> np.ndarray:
        """Draw a category of each user's taste."""
        slot = np.searchsorted(self.taste_share, random.random(len(user)), side="right")
        return self.taste[user, np.minimum(slot, self.taste.shape[1] - 1)]

    def appeal(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return the part of the logit that lies in the person and the item."""
        match = np.einsum("nd,nd->n", self.direction[user], self.latent[item])
        return (
            _INTERCEPT
            + self.bias[user]
            + 1.1 * self.affinity[user, self.category[item]]
            + 3.5 * match
            + 0.5 * self.quality[item]
        )


class _Traffic:
    """Behaviours and impressions of all users, one slot after the other."""

    def __init__(
        self, random: np.random.Generator, world: _World, lengths: np.ndarray, n_requests: int, shown: int
    ):
        self.random, self.world, self.n_requests = random, world, n_requests
        block = shown + _BETWEEN
        counts = lengths + n_requests * block
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.user = user = np.repeat(np.arange(world.n_users), counts)
        position = np.arange(len(user)) - self.offsets[user]
        after = position - lengths[user]
        self.request = np.where(after >= 0, after // block, -1)
        self.place = np.where(after >= 0, after % block, 0)
        self.is_shown = (after >= 0) & (self.place < shown)
        self.start = np.arange(len(user)) - np.where(self.is_shown, self.place, 0)

        # A session has a mood: one category of the taste. A request falls into the mood of what came before.
        sessions = (lengths - 1) // _SESSION + 1
        session = np.where(after < 0, position // _SESSION, sessions[user] + self.request - self.is_shown)
        moods = world.draw_taste(
            random, np.repeat(np.arange(world.n_users), int(sessions.max()) + n_requests)
        )
        self.mood = moods.reshape(world.n_users, -1)[user, session]

        browsing = np.flatnonzero(~self.is_shown)
        self.item = np.zeros(len(user), np.int64)
        in_mood = random.random(len(browsing)) < 0.65
        category = np.where(in_mood, self.mood[browsing], world.draw_taste(random, user[browsing]))
        self.item[browsing] = world.draw_from(random, category)
        self.rows = rows = np.flatnonzero(self.is_shown)
        self.channel = np.searchsorted((0.5, 0.75), random.random(len(rows)), side="right")
        self.item[rows] = np.select(
            [self.channel == 0, self.channel == 1],
            [
                world.draw_from(random, world.draw_taste(random, user[rows])),
                world.draw_popular(random, len(rows)),
            ],
            random.integers(0, world.n_items, len(rows)),
        )
        early = self.request < n_requests - 2
        self.item[early] = world.stand_in[self.item[early]]

        hour = random.integers(0, 24, (world.n_users, n_requests))
        device = random.choice(3, (world.n_users, n_requests), p=(0.6, 0.15, 0.25))
        self.hour = hour[user[rows], self.request[rows]]
        self.device = device[user[rows], self.request[rows]]
        appeal = world.appeal(user, self.item)
        self.score = 0.4 * appeal[rows] + random.normal(size=len(rows))
        category = world.category[self.item]
        neutral = (
            appeal[rows]
            + 0.5 * (category[rows] == self.mood[rows])
            + 0.4 * world.daypart[category[rows], self.hour // 6]
            + np.array([0.1, 0.0, -0.2])[self.device]
            + 0.5 * self.score
            + np.array([0.2, -0.1, -0.2])[self.channel]
        )
        logit = appeal.copy()
        logit[rows] = neutral - 0.35 * np.log1p(self.place[rows])
        self.truth, self.truth_neutral = _sigmoid(logit[rows]), _sigmoid(neutral)
        self.clicked = random.random(len(user)) < _sigmoid(logit)
        liked = random.random(len(user)) < _sigmoid(-1.0 + world.quality[self.item])
        self.liked = self.clicked & liked

    def dataset(self, content_width: int) -> Dataset:
        """Put the traffic into the common form."""
        rows, user = self.rows, self.user
        request = self.request[rows]
        split = np.where(
            request == self.n_requests - 1, TEST, np.where(request == self.n_requests - 2, VALIDATION, TRAIN)
        )
        clicked = self.clicked[rows]
        truth = {"best_auc": self.truth, "best_auc_neutral": self.truth_neutral}
        return Dataset(
            name="synthetic",
            schema=_schema(),
            users=self._users(),
            items=self._items(),
            events=Events(
                offsets=self.offsets,
                item=self.item.astype(np.int32),
                type=np.where(self.liked, 1, np.where(self.clicked, 0, 2)).astype(np.int32),
                # A minute a slot; what is shown together has one time, that of the request.
                time=(60 * (self.start - self.offsets[user])).astype(np.int64),
                training=(self.request < self.n_requests - 2),
                unit="s",
            ),
            impressions=Impressions(
                user=user[rows].astype(np.int32),
                item=self.item[rows].astype(np.int32),
                history_end=self.start[rows],
                labels={"ctr": clicked.astype(np.float32), "like": self.liked[rows].astype(np.float32)},
                label_mask={"ctr": np.ones(len(rows), np.float32), "like": clicked.astype(np.float32)},
                split=split.astype(np.int8),
                request=user[rows] * self.n_requests + request,
                context={"hour": self.hour, "device": np.array(DEVICES, object)[self.device]},
                pair={
                    "retrieval_score": self.score.astype(np.float32),
                    "channel": np.array(CHANNELS, object)[self.channel],
                },
                train_only={"position": self.place[rows]},
            ),
            content=self._content(content_width),
            notes={
                "truth": self.truth,
                "truth_neutral": self.truth_neutral,
                **{
                    name: {
                        part: _auc(clicked[split == number], p[split == number])
                        for part, number in SPLITS.items()
                    }
                    for name, p in truth.items()
                },
            },
        )

    def _users(self) -> dict[str, object]:
        world, random = self.world, self.random
        hint = world.direction[:, 0] + 0.2 * random.normal(size=world.n_users)
        activity = np.diff(self.offsets) * np.exp(0.3 * random.normal(size=world.n_users))
        return {
            "ids": np.array([f"u{number:07d}" for number in range(world.n_users)], dtype=object),
            "segment": np.searchsorted(np.quantile(hint, np.arange(1, 8) / 8), hint),
            "region": world.region,
            "activity": activity,
        }

    def _items(self) -> dict[str, object]:
        world, random = self.world, self.random
        # Ids above 2^32, so that a cut to 32 bits shows.
        stride = 1000
        ids = 2**40 + stride * np.arange(world.n_items) + random.integers(0, stride, world.n_items)
        pull = world.latent @ random.normal(size=(_LATENT, _TAGS)) + 0.3 * random.normal(
            size=(world.n_items, _TAGS)
        )
        most = np.argsort(-pull, axis=1)[:, :5]
        lengths = random.integers(0, 6, world.n_items)
        tags = most[np.arange(5) < lengths[:, None]]
        return {
            "ids": ids,
            "item_id": ids,
            "category": np.array([f"c{number:03d}" for number in range(world.n_categories)], object)[
                world.category
            ],
            "brand": world.category * _BRANDS_PER_CATEGORY + world.brand,
            "tags": Ragged(tags, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
            "price": world.price,
        }

    def _content(self, width: int) -> Content:
        world, random = self.world, self.random
        rotation = random.normal(size=(_LATENT, width)) / np.sqrt(width)
        noise = 0.15 * random.normal(size=(world.n_items, width)) / np.sqrt(width)
        has = random.random(world.n_items) >= 0.01
        return derived_rows(world.latent @ rotation + noise, has)


def _schema() -> Schema:
    return Schema(
        user=(
            Categorical(name="segment"),
            Categorical(name="region"),
            Numeric(name="activity", transform="log1p"),
        ),
        item=(
            Categorical(name="item_id"),
            Categorical(name="category"),
            Categorical(name="brand", encoder=Hashing(buckets=2048)),
            MultiValued(name="tags", max_values=4),
            Numeric(name="price", transform="log1p"),
        ),
        behaviour_types=BEHAVIOURS,
        context=(Categorical(name="hour"), Categorical(name="device")),
        pair=(Numeric(name="retrieval_score"), Categorical(name="channel")),
        train_only=(Categorical(name="position"),),
        category="category",
        item_id="item_id",
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logit))


def _auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve by ranks; scores are continuous, so ties do not occur."""
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = int(np.count_nonzero(label))
    negative = len(label) - positive
    if not positive or not negative:
        return float("nan")
    return float((rank[label].sum() - positive * (positive + 1) / 2) / (positive * negative))
