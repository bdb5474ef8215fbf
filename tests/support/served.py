"""One small model with random weights, exported and indexed once for all tests that serve it."""

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.config import ModelConfig, Precision
from aif_jax.features import Categorical, Hashing, MultiValued, Numeric, Schema, Vocabulary
from aif_jax.features.gaps import gap_steps
from aif_jax.models import Score, add_signatures, build_model
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.serving import Engine, EngineConfig, InMemoryUsers, Shapes, Threads, UserStateCache
from aif_jax.types import Candidates, UserRecord
from support.held import GatedUsers

N_ITEMS = 150
K_MAX = 20
GENRES = ("drama", "comedy", "horror", "western", "musical", "noir")

SCHEMA = Schema(
    user=(
        Categorical(name="country", encoder=Vocabulary(values=("de", "fr", "it"))),
        Numeric(name="activity", mean=1.0, std=2.0),
    ),
    item=(
        Categorical(name="item", encoder=Hashing(buckets=64)),
        MultiValued(name="genres", max_values=3, encoder=Vocabulary(values=GENRES)),
        Numeric(name="price", mean=5.0, std=3.0),
    ),
    behaviour_types=("click", "like", "skip"),
    context=(Categorical(name="hour", encoder=Vocabulary(values=tuple(range(24)))),),
    pair=(
        Numeric(name="bid", mean=1.0, std=1.0),
        Categorical(name="channel", encoder=Vocabulary(values=("ann", "new"))),
    ),
    category="genres",
    item_id="item",
)

CONFIG = ModelConfig(
    width=8, embedding_width=4, hidden=16, head_layers=(8,), item_layers=(8,), heads=("ctr", "cvr"),
    score="ctr * (cvr + 0.1) * bid", short_length=5, long_length=24, content_width=8, value_width=8,
    signature_bits=64, bridges=4, sim_slots=3, sim_width=8, encoder_layers=1, encoder_width=8,
    encoder_gaps=True,
)  # fmt: skip

TINY = dataclasses.replace(CONFIG, blocks=("self_attention", "profile_item", "context"))
"""The same with few blocks, whose programs compile quickly; without a category in its rows."""


@dataclasses.dataclass(frozen=True)
class World:
    """Items, users and the unfolded model, whose scores the engine must reproduce."""

    model: Any
    ids: np.ndarray
    columns: Mapping[str, Any]
    content: np.ndarray
    catalogue: Mapping[str, Any]

    def record(self, seed: int, length: int = 18, revision: int = 0) -> UserRecord:
        """Return a user with a random history; the seed is the user."""
        rng = np.random.default_rng(seed)
        return UserRecord(
            features={"country": ("de", "fr", "it", "xx")[seed % 4], "activity": float(rng.normal())},
            items=self.ids[rng.integers(0, N_ITEMS, length)],
            types=rng.integers(0, 3, length),
            revision=revision,
            times=_times(rng, length),
        )

    def candidates(self, n: int, seed: int = 0) -> tuple[np.ndarray, dict[str, Any]]:
        """Return n different item ids and their pair features."""
        rng = np.random.default_rng(seed)
        ids = self.ids[rng.permutation(N_ITEMS)[:n]]
        return ids, {
            "bid": rng.uniform(0.1, 2.0, n),
            "channel": np.array(["ann", "new", "other"])[rng.integers(0, 3, n)],
        }

    def scores(
        self,
        record: UserRecord,
        ids: Any,
        pair: Mapping[str, Any],
        context: Mapping[str, Any],
        *,
        long: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the score ``[N]`` and the probabilities ``[N, heads]`` of the unfolded model.

        Args:
            record: what is known of the user.
            ids: the candidates, ``[N]``.
            pair: their raw pair features.
            context: raw context features.
            long: whether the model sees the long sequence.
        """
        position = {key: row for row, key in enumerate(self.ids.tolist())}
        given, n = len(ids), N_ITEMS
        # One size for all, so that the reference is compiled once.
        padding = np.arange(n) % given
        ids, pair = np.asarray(ids)[padding], {name: np.asarray(v)[padding] for name, v in pair.items()}
        batch: dict[str, Any] = {
            "user": SCHEMA.encode("user", {k: [v] for k, v in record.features.items()}, 1),
            "item": np.array([[position[int(i)] for i in ids]], np.int32),
            "pair": {name: a[None] for name, a in SCHEMA.encode("pair", pair, n).items()},
            "context": {
                name: np.broadcast_to(a, (1, n, *a.shape))
                for name, a in SCHEMA.encode_one("context", context).items()
            },
        }
        for name, length in (("short", CONFIG.short_length), ("long", CONFIG.long_length)):
            read = length if long or name == "short" else 0
            items = [position.get(int(i), -1) for i in record.items[:read]]
            types = [t if i >= 0 else -1 for t, i in zip(record.types[:read], items, strict=True)]
            absent = [-1] * (length - len(items))
            batch[f"{name}_item"] = np.array([items + absent], np.int32)
            batch[f"{name}_type"] = np.array([types + absent], np.int32)
        gaps = np.zeros(CONFIG.long_length, np.int32)
        known = gap_steps(np.asarray(record.times, np.float64))[: CONFIG.long_length]
        gaps[: len(known)] = known
        batch["long_gap"] = gaps[None]
        logits = _forward(self.model, batch, self.catalogue)[0, :given]
        raw = {"bid": jnp.asarray(np.asarray(pair.get("bid", np.zeros(n)), np.float32)[:given])}
        score = Score(CONFIG.score, CONFIG.heads, ("bid",))(logits, raw)
        return np.asarray(score), np.asarray(jax.nn.sigmoid(logits))


def _times(rng: np.random.Generator, length: int) -> np.ndarray:
    """Times of behaviours, most recent first, seconds to weeks apart; some are missing."""
    ages = np.cumsum(np.exp(rng.uniform(0.0, 15.0, length)))
    return np.where(rng.random(length) < 0.9, 1.7e9 - ages, np.nan)


@nnx.jit
def _forward(model: Any, batch: Any, catalogue: Any) -> jax.Array:
    return model(batch, catalogue, train=False)


def make_model(seed: int, config: ModelConfig = CONFIG) -> Any:
    """Build a model none of whose weights is zero, so that nothing passes by being left out."""
    model = build_model(config, SCHEMA, seed=seed)
    graph, parameters = nnx.split(model)
    rng = np.random.default_rng(seed)

    def noisy(leaf: jax.Array) -> jax.Array:  # added by NumPy, which compiles nothing
        return jax.device_put(np.asarray(leaf) + np.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype))

    return nnx.merge(graph, jax.tree.map(noisy, parameters))


def make_items(seed: int = 0) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    """Return ids above 2^32, raw columns and content of a catalogue; some items have no content."""
    rng = np.random.default_rng(seed)
    ids = np.uint64(2**40) + np.arange(N_ITEMS, dtype=np.uint64) * np.uint64(2**32 + 17)
    columns = {
        "item": ids.astype(np.int64),
        "genres": [list(rng.choice(GENRES, rng.integers(0, 4), replace=False)) for _ in range(N_ITEMS)],
        "price": rng.uniform(0, 10, N_ITEMS),
    }
    content = rng.normal(size=(N_ITEMS, CONFIG.content_width))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    content[rng.random(N_ITEMS) < 0.1] = 0.0
    return ids, columns, content.astype(np.float32)


Served = tuple[Bundle, Tables]
Bundles = Callable[[Precision], Bundle]
Make = Callable[..., Engine]

CONTEXT = {"hour": 17}
PATIENT_MS = 60_000.0
"""A deadline that no request of a test misses."""

ways = pytest.mark.parametrize("way", ["rank", "rank_async"])


def ran(method: Callable[..., Any], *arguments: Any, **given: Any) -> Any:
    """Call a method, plain or coroutine, and return its result."""
    result = method(*arguments, **given)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def assert_same(ranking: Any, expected: Any) -> None:
    """Check that a ranking has the items and the scores of another one, bit for bit."""
    assert ranking.ids.tolist() == expected.ids.tolist()
    assert ranking.scores.tobytes() == expected.scores.tobytes()


def assert_ranks_as(
    ranking: Any, ids: np.ndarray, score: np.ndarray, heads: np.ndarray, within: float = 1e-4
) -> None:
    """Check a ranking against the plain model, candidate by candidate, and its order.

    Args:
        ranking: of the candidates.
        ids: the candidates, ``[N]``.
        score: their scores by the plain model, ``[N]``.
        heads: their probabilities by the plain model, ``[N, heads]``.
        within: the largest relative difference.
    """
    place = {int(key): row for row, key in enumerate(ids)}
    chosen = [place[int(key)] for key in ranking.ids]
    assert len(set(chosen)) == len(chosen)
    np.testing.assert_allclose(ranking.scores, score[chosen], rtol=within, atol=1e-6)
    given = np.stack([*ranking.heads.values()], axis=1)
    np.testing.assert_allclose(given, heads[chosen], rtol=within, atol=1e-6)
    assert ranking.scores.tolist() == sorted(ranking.scores.tolist(), reverse=True)
    best = np.sort(score)[::-1][: len(ranking)]
    np.testing.assert_allclose(ranking.scores, best, rtol=within, atol=1e-6)


def exported_once(
    factory: pytest.TempPathFactory, name: str, model: Any, precision: Precision = "float32"
) -> Bundle:
    """Return a bundle of a model, which one worker of the test run exports for all."""
    mine = factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "exported"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path: Path = folder / name
        if path.exists():
            return Bundle.load(path)
        about = {"metrics": {"auc": 0.5}, "notes": {"data": "made up"}}
        return export_bundle(model, path, k_max=K_MAX, precision=precision, **about)


def part_of(world: World, rows: Any) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    """Return ids, raw columns and content of some of the items, by their rows."""
    rows = np.asarray(rows)
    columns = {
        name: [values[row] for row in rows.tolist()] if isinstance(values, list) else values[rows]
        for name, values in world.columns.items()
    }
    return world.ids[rows], columns, world.content[rows]


def tables_of(bundle: Bundle, world: World, items: Any = None, behaviours: Any = None) -> Served:
    """Return a bundle with tables of its own of some rows of the catalogue; ``None`` for all."""
    everything = np.arange(N_ITEMS)
    return bundle, Tables(
        ItemIndex.build(bundle, *part_of(world, everything if items is None else items)),
        BehaviourTable.build(bundle, *part_of(world, everything if behaviours is None else behaviours)),
    )


def make_world() -> World:
    """Build the model, its items, and what the unfolded model reads of them."""
    ids, columns, content = make_items()
    model = make_model(1)
    encoded = SCHEMA.encode("item", columns, N_ITEMS)
    has_content = np.any(content != 0, axis=1, keepdims=True).astype(np.float32)
    catalogue = add_signatures(CONFIG, {**encoded, "content": content, "has_content": has_content})
    return World(model, ids, columns, content, catalogue)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported_once(tmp_path_factory, "bundle", world.model)


@pytest.fixture(scope="session")
def bundles(world: World, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A function from a precision to the bundle in it; in ``float32`` it is `bundle`."""

    @functools.cache
    def export(precision: Precision) -> Bundle:
        if precision == "float32":
            return bundle
        return exported_once(tmp_path_factory, precision, world.model, precision)

    return export


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Few blocks, with weights of seed 1: for tests of what bundles do whatever their blocks."""
    return exported_once(tmp_path_factory, "tiny", make_model(1, TINY))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same architecture with other weights."""
    return exported_once(tmp_path_factory, "other", make_model(2))


@pytest.fixture(scope="session")
def index(bundle: Bundle, world: World) -> ItemIndex:
    """Every item; not to be written to."""
    return ItemIndex.build(bundle, world.ids, world.columns, world.content)


@pytest.fixture(scope="session")
def behaviours(bundle: Bundle, world: World) -> BehaviourTable:
    """Every item; not to be written to."""
    return BehaviourTable.build(bundle, world.ids, world.columns, world.content)


@pytest.fixture(scope="session")
def tables(index: ItemIndex, behaviours: BehaviourTable) -> Tables:
    """Both, of every item; not to be written to."""
    return Tables(index, behaviours)


@pytest.fixture(scope="session")
def users(world: World) -> InMemoryUsers:
    """Users 0 to 9 with histories of different lengths; 0 has none."""
    return InMemoryUsers({seed: world.record(seed, length=3 * seed) for seed in range(10)})


ENGINE_CONFIG = EngineConfig(
    k=10, shapes=Shapes(candidates=(32, 64), histories=(8, 24)), threads=Threads(max_queued=64)
)

ONE_SIZE = Shapes(candidates=(32,), histories=(24,))
"""Shapes of which one program is compiled for each stage."""

UNCACHED = UserStateCache(max_bytes=0)


@pytest.fixture(scope="session")
def engine(bundle: Bundle, tables: Tables, users: InMemoryUsers) -> Iterator[Engine]:
    """An engine without a ``retrieve``, for tests that change nothing of it."""
    with Engine(bundle, tables, users=users, config=ENGINE_CONFIG) as made:
        yield made


@pytest.fixture(scope="session")
def one(bundle: Bundle, tables: Tables) -> Served:
    """A bundle with its tables; not to be written to, but with the rows that are there."""
    return bundle, tables


@pytest.fixture(scope="session")
def two(other_bundle: Bundle, world: World) -> Served:
    """The same of other weights."""
    return tables_of(other_bundle, world)


@pytest.fixture
def make(one: Served, users: InMemoryUsers, world: World) -> Iterator[Make]:
    """A function that makes engines, which are closed when the test is over.

    It takes a bundle with its tables, by default `one`. Fields of `EngineConfig` replace those of ``config``,
    by default `ENGINE_CONFIG`; other arguments are those of `Engine`. Retrieval returns 30 candidates.
    """
    fields = {field.name for field in dataclasses.fields(EngineConfig)}

    def retrieve(request: Any) -> Candidates:
        return Candidates(*world.candidates(30))

    with contextlib.ExitStack() as stack:

        def make_engine(
            served: Served = one, *, config: EngineConfig = ENGINE_CONFIG, **given: Any
        ) -> Engine:
            settings = {name: given.pop(name) for name in fields & given.keys()}
            config = dataclasses.replace(config, **settings)
            engine = Engine(*served, **{"users": users, "retrieve": retrieve, "config": config, **given})
            stack.callback(engine.close)
            if isinstance(given.get("users"), GatedUsers):
                stack.callback(given["users"].gate.set)  # the engine waits for it when it closes
            return engine

        yield make_engine
