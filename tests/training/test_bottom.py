"""What a ranker puts last: which items these are, and that sampled negatives come from them as asked."""

import numpy as np
import pytest

from aif_jax.data import TRAIN
from aif_jax.errors import ConfigError
from aif_jax.models import build_model
from aif_jax.training import CandidateLists, Evaluator, TrainConfig, bottom, bottom_items, loop, train
from aif_jax.training.feed import TrainingBatches
from aif_jax.training.identity import differing
from aif_jax.training.progress import Reporter


class ByNumber:
    """Stands in for an evaluator: the higher an item's number, the lower its score."""

    seen: list[CandidateLists]

    def __init__(self, dataset, ranker, split, *, buckets):
        assert (split, buckets) == ("train", ())
        self.ranker = ranker

    def score_lists(self, ranker, lists, *, main_head):
        assert main_head, "of an expression of several heads the product may be low for another reason"
        assert ranker is self.ranker
        ByNumber.seen = [lists]
        return -lists.items.astype(np.float32)


def test_of_each_pool_the_lowest_are_kept(dataset, monkeypatch):
    monkeypatch.setattr(bottom, "Evaluator", ByNumber)
    found = bottom_items("ranker", dataset, pool=40, keep=7, seed=3)
    lists, rows = ByNumber.seen[0], dataset.impressions
    assert found.dtype == np.int32
    assert found.shape == (dataset.n_users, 7)
    assert lists.items.shape == (len(lists), 40)
    for row, pool in zip(lists.rows, lists.items, strict=True):
        mine = (rows.split == TRAIN) & (rows.user == rows.user[row])
        assert rows.split[row] == TRAIN
        assert rows.history_end[row] == rows.history_end[mine].max()
        assert found[rows.user[row]].tolist() == sorted(pool.tolist(), reverse=True)[:7]
        assert len(set(pool.tolist())) == 40
    assert dataset.trained_items()[lists.items].all()
    assert len({tuple(pool) for pool in lists.items.tolist()}) == len(
        lists
    )  # each user has a pool of its own
    none = ~np.isin(np.arange(dataset.n_users), rows.user[rows.split == TRAIN])
    assert (found[none] == -1).all()
    assert (found[~none] >= 0).all()
    np.testing.assert_array_equal(bottom_items("ranker", dataset, pool=40, keep=7, seed=3), found)
    assert (bottom_items("ranker", dataset, pool=40, keep=7, seed=4) != found).any()


def test_a_ranker_over_the_whole_catalogue_and_pools_that_are_too_small(dataset, tiny):
    model = build_model(tiny, dataset.fit_schema(), seed=5)
    known = np.flatnonzero(dataset.trained_items())
    size = len(known) + 3
    found = bottom_items(model, dataset, pool=size, keep=size)
    has = (found >= 0).any(axis=1)
    assert (found[has][:, len(known) :] == -1).all()
    rows = dataset.impressions
    users = np.flatnonzero(has)[:5]
    last = [np.flatnonzero((rows.split == TRAIN) & (rows.user == user)) for user in users]
    ends = np.array([mine[np.lexsort((mine, rows.history_end[mine]))[-1]] for mine in last])
    lists = CandidateLists(ends, np.tile(known.astype(np.int32), (5, 1)))
    scores = Evaluator(dataset, model, "train").score_lists(model, lists)
    for user, mine in zip(users, scores, strict=True):
        ordered = mine[np.searchsorted(known, found[user, : len(known)])]
        assert (np.diff(ordered) >= -1e-6).all()
    for keep in (0, 5):
        with pytest.raises(ConfigError, match=f"got {keep} and 4"):
            bottom_items(model, dataset, pool=4, keep=keep)


@pytest.fixture(scope="module")
def batches(dataset, tiny):
    schema, model = dataset.fit_schema(), tiny.replace(blocks=("profile_item", "context"))

    def made(items=None, **changes):
        config = TrainConfig(batch_size=16, group=8, negatives=6, **changes)
        return TrainingBatches(dataset, schema, model, config, bottom=items)

    return made


def last_of_all(dataset):
    """Three items for each user but every third, who has none, and 1 in 3 places empty for user 1."""
    items = (np.arange(dataset.n_users)[:, None] + np.array([1, 50, 99])) % dataset.n_items
    items[::3] = -1
    items[1, 0] = -1
    return items.astype(np.int32)


def test_negatives_come_from_there_as_often_as_asked(dataset, batches):
    last = last_of_all(dataset)
    users = np.repeat(np.arange(dataset.n_users), 40)
    for share in (1.0, 0.3):
        sampler = batches(last, negative_bottom=share)._negatives
        drawn = sampler.draw_for(users, np.random.default_rng(0))
        among = (drawn[:, :, None] == last[users][:, None, :]).any(axis=2).reshape(dataset.n_users, -1)
        # Others come from there by chance: 3 of all items.
        expected = share + (1 - share) * 3 / dataset.trained_items().sum()
        whole = np.arange(dataset.n_users) % 3 != 0
        whole[1] = False
        assert abs(among[whole].mean() - expected) < 0.02
        assert abs(among[1].mean() - share * 2 / 3) < 0.12
        assert (drawn >= 0).all()
        assert dataset.trained_items()[drawn[~among.reshape(drawn.shape)]].all()
        for place in range(3):  # each of a user's as often as the others
            hit = (drawn == last[users][:, place, None]).reshape(dataset.n_users, -1)[whole]
            assert abs(hit.mean() - expected / 3) < 0.02


def test_without_it_batches_are_what_they_were_and_with_it_no_request_holds_one(dataset, batches):
    plain, mixed = batches(), batches(last_of_all(dataset), negative_bottom=1.0)
    sampler, users = plain._negatives, np.arange(16)
    first, second = (np.random.default_rng(1) for _ in range(2))
    np.testing.assert_array_equal(sampler.draw_for(users, first), sampler.draw((16, 6), second))
    for number in range(3):
        batch = mixed[number]
        shown, added = batch["item"][:, :8], batch["item"][:, 8:]
        assert not ((added[:, :, None] == shown[:, None, :]) & (added[:, :, None] >= 0)).any()
        assert (batch["label_mask"][:, 8:][added < 0] == 0).all()
        assert (batch["item"][:, :8] == plain[number]["item"][:, :8]).all()


def test_share_and_items_go_together(dataset, tiny, brief):
    model = tiny.replace(blocks=("context",))
    last, asked = last_of_all(dataset), brief.replace(negatives=1, negative_bottom=0.5)
    for config, given in ((asked, None), (brief, last)):
        with pytest.raises(ConfigError, match="or neither"):
            train(model, dataset, config, bottom=given, progress=False)
    for wrong in (last[1:], last[:, 0], last.astype(np.float32)):
        with pytest.raises(ConfigError, match=rf"expected integers \[{dataset.n_users}, P\]"):
            train(model, dataset, asked, bottom=wrong, progress=False)
    for wrong in (last - 1, last + dataset.n_items, np.full_like(last, -1)):
        with pytest.raises(ConfigError, match="got items from"):
            train(model, dataset, asked, bottom=wrong, progress=False)
    runs = [
        loop._Run(model, dataset, asked, Reporter(False, ""), None, None, given)._identity()
        for given in (last, last[:, :2].copy())
    ]
    assert differing(*runs) == ["training.bottom"]  # a checkpoint of the one is not gone on with by the other
