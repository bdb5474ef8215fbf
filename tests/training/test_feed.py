import dataclasses

import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import TRAIN
from aif_jax.errors import ConfigError
from aif_jax.models import build_model
from aif_jax.training.config import TrainConfig
from aif_jax.training.evaluate import device_catalogue
from aif_jax.training.feed import Negatives, NextPool, TrainingBatches, iterate, long_buckets


def flat(batch):
    for name, value in batch.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", array) for key, array in value.items())
        else:
            yield name, value


def assert_same(a, b):
    a, b = dict(flat(a)), dict(flat(b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def make(dataset, tiny):
    schema = dataset.fit_schema()

    def batches(**changes):
        model = tiny.replace(blocks=("profile_item", "context"))
        if "next_weight" in changes:
            model = tiny.replace(blocks=("encoder",), architecture="aif", encoder_layers=1, encoder_width=8)
        return TrainingBatches(
            dataset, schema, model, TrainConfig(batch_size=16, group=8, epochs=2, **changes)
        )

    return batches


def test_training_batches_epoch_holds_every_row_once_in_new_order(dataset, make):
    batches = make()
    epochs = []
    for epoch in range(2):
        rows = [batches[epoch * batches.per_epoch + i]["impression"] for i in range(batches.per_epoch)]
        rows = np.concatenate([r[r >= 0] for r in rows])
        assert sorted(rows) == np.flatnonzero(dataset.impressions.split == TRAIN).tolist()
        epochs.append(rows.tolist())
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("changes", [{}, {"negatives": 3}, {"negatives": 3, "next_weight": 1.0}])
def test_iterate_restored_position_yields_same_rest(make, changes):
    whole = list(iterate(make(**changes)))
    assert len(whole) == len(make(**changes))
    stop = len(whole) // 2 + 1
    first = iterate(make(**changes))
    for _ in range(stop):
        next(first)
    second = iterate(make(**changes))
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == len(whole) - stop
    for a, b in zip(whole[stop:], rest, strict=True):
        assert_same(a, b)


def test_iterate_with_worker_process_yields_same_batches(make):
    alone, helped = list(iterate(make())), list(iterate(make(), workers=1))
    assert len(alone) == len(helped)
    for a, b in zip(alone, helped, strict=True):
        assert_same(a, b)


def test_negatives_are_unmet_items_with_features_of_their_request(dataset, make):
    plain, batches = make(), make(negatives=5, negative_weight=0.25)
    known = dataset.trained_items()
    rows, events = dataset.impressions, dataset.events
    met = set(zip(rows.user[rows.split == TRAIN], rows.item[rows.split == TRAIN], strict=True))
    met |= set(zip(events.user[events.training], events.item[events.training], strict=True))
    for i in range(3):
        before, after = plain[i], batches[i]
        assert after["item"].shape == (16, 13)
        for name, value in flat(before):
            got = dict(flat(after))[name]
            np.testing.assert_array_equal(got[:, : value.shape[1]] if value.ndim > 1 else got, value)
        added = after["item"][:, 8:]
        real = before["user_index"] >= 0
        assert (added[~real] == -1).all()
        assert (after["label_mask"][:, 8:][added == -1] == 0).all()
        assert (added[real] >= 0).mean() > 0.95
        assert known[added[added >= 0]].all()
        users = np.broadcast_to(before["user_index"][:, None], added.shape)
        assert not any(pair in met for pair in zip(users[added >= 0], added[added >= 0], strict=True))
        assert not (added[:, :, None] == before["item"][:, None, :])[real].any()
        assert (after["labels"][:, 8:] == 0).all()
        assert (after["label_mask"][:, 8:][added >= 0] == 0.25).all()
        for group in ("context", "train_only"):
            for name, value in after[group].items():
                assert (value[real][:, 8:] > 0).all(), name  # known, as it is of every row in this set
                for b in np.flatnonzero(real):
                    rows = before["impression"][b] >= 0
                    assert np.isin(value[b, 8:], value[b, :8][rows]).all(), name
        position = after["train_only"]["position"][real]
        assert set(position[:, 8:].flat) == set(position[:, :8][before["item"][real] >= 0])  # of every row


def test_negatives_follow_popularity_by_share(dataset, tiny):
    shown = np.bincount(
        dataset.impressions.item[dataset.impressions.split == TRAIN], minlength=dataset.n_items
    )
    top = np.argsort(-shown)[:20]

    def share_of_top(popularity):
        config = TrainConfig(negatives=1, negative_popularity=popularity)
        model = tiny.replace(blocks=("context",))
        negatives = Negatives(dataset, dataset.fit_schema(), model, config)
        drawn = negatives.draw((4000,), np.random.default_rng(0))
        return np.isin(drawn, top).mean()

    expected = shown[top].sum() / shown.sum()
    assert abs(share_of_top(1.0) - expected) < 0.03
    assert abs(share_of_top(0.0) - 20 / dataset.trained_items().sum()) < 0.03


def test_negatives_of_other_heads_are_masked(dataset, tiny):
    model = tiny.replace(blocks=("context",), heads=("ctr", "like"))
    config = TrainConfig(batch_size=8, group=8, negatives=2, negative_heads=("like",))
    batch = TrainingBatches(dataset, dataset.fit_schema(), model, config)[0]
    assert (batch["label_mask"][:, 8:, 0] == 0).all()
    assert (batch["label_mask"][:, 8:, 1] == 1).any()
    with pytest.raises(ConfigError, match=r"negative_heads: \['buy'\]"):
        TrainingBatches(dataset, dataset.fit_schema(), model, config.replace(negative_heads=("buy",)))


def test_long_buckets_end_with_model_length():
    config = ModelConfig(long_length=64)
    assert long_buckets(config) == (64,)
    assert long_buckets(config, (16, 32)) == (16, 32, 64)
    assert long_buckets(config, (16, 64)) == (16, 64)
    assert long_buckets(config, (16, 128, 256)) == (16, 64)
    assert long_buckets(config, (128,)) == (64,)
    assert long_buckets(dataclasses.replace(config, architecture="cold")) == (1,)


def test_training_batches_with_teacher_hold_logits_of_impressions(dataset, tiny):
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(len(dataset.impressions), 1)).astype(np.float32)
    teacher[::3] = np.nan
    config = TrainConfig(batch_size=8, group=8, negatives=2, distillation_weight=1.0)
    model = tiny.replace(blocks=("profile_item", "context"))
    batch = TrainingBatches(dataset, dataset.fit_schema(), model, config, teacher)[0]
    rows = batch["impression"]
    said = (rows >= 0) & (rows % 3 != 0)
    np.testing.assert_array_equal(batch["teacher_mask"][..., 0], said)
    np.testing.assert_array_equal(batch["teacher"][said][:, 0], teacher[rows[said], 0])
    assert not batch["teacher"][~said].any()
    assert batch["item"].shape == rows.shape == (8, 10)
    assert "teacher" not in TrainingBatches(dataset, dataset.fit_schema(), model, config)[0]


def test_next_pool_is_half_known_items_and_half_behaviours_of_the_windows():
    known = np.array([True] * 50 + [False] * 50)
    windows = np.array([[60, 61, 60, 60, -1], [60, -1, -1, -1, -1]], np.int32)
    pool = NextPool(known, 4000).draw(windows, np.random.default_rng(0))
    assert pool.shape == (2, 4000)
    assert pool.dtype == np.int32
    np.testing.assert_array_equal(pool[0], pool[1])
    assert set(pool[0, :2000]) == set(range(50))
    np.testing.assert_allclose((pool[0, 2000:] == 60).mean(), 0.8, atol=0.05)
    assert set(pool[0, 2000:]) == {60, 61}
    nobody = NextPool(known, 10).draw(np.full((1, 3), -1, np.int32), np.random.default_rng(0))
    assert (nobody < 50).all()


def test_training_batches_read_the_catalogue_of_each_users_fold(dataset, tiny):
    folds = tuple(
        dataclasses.replace(dataset.content, vectors=np.roll(dataset.content.vectors, fold + 1, axis=1))
        for fold in range(3)
    )
    folded = dataclasses.replace(dataset, content=dataclasses.replace(dataset.content, folds=folds))
    schema = dataset.fit_schema()
    config = TrainConfig(batch_size=16, group=8, negatives=2, next_weight=1.0, next_pool=6)
    tiny = tiny.replace(
        blocks=("profile_item", "encoder"), architecture="aif", encoder_layers=1, encoder_width=8
    )
    catalogue = device_catalogue(folded, build_model(tiny, schema), folds=True)
    plain, mine = (TrainingBatches(each, schema, tiny, config)[0] for each in (dataset, folded))
    n, fold = dataset.n_items, mine["user_index"] % 3
    of_window = np.zeros(len(mine["sequence_item"]), int)
    of_window[mine["sequence_row"]] = fold
    folds_of = dict.fromkeys(("item", "short_item", "long_item"), fold)
    folds_of |= dict.fromkeys(("sequence_item", "sequence_pool"), of_window)
    for name, fold in folds_of.items():
        there = plain[name] >= 0
        np.testing.assert_array_equal(mine[name] >= 0, there)
        np.testing.assert_array_equal((mine[name] % n)[there], plain[name][there])
        np.testing.assert_array_equal((mine[name] // n)[there], np.where(there, fold[:, None], 0)[there])
    for number, each in enumerate(folds):
        np.testing.assert_array_equal(catalogue["content"][number * n : (number + 1) * n], each.vectors)
    assert len(catalogue["content"]) == len(catalogue["has_content"]) == 3 * n
