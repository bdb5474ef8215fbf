"""Statistics of items: what they count, that training reads them from other users, and that they stay."""

import dataclasses

import jax
import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset, by_column
from aif_jax.features.encoders import FIRST, UNKNOWN
from aif_jax.models import build_model
from aif_jax.models.item import STATISTICS, statistics_labels
from aif_jax.models.store import set_weights, weights_of
from aif_jax.training import TrainConfig, train
from aif_jax.training.evaluate import device_catalogue
from aif_jax.training.feed import TrainingBatches
from aif_jax.training.item_statistics import SMOOTHING, item_statistics
from aif_jax.training.warm_start import Earlier

TINY = ModelConfig(
    blocks=("profile_item", "simtier"), width=6, embedding_width=4, hidden=8, head_layers=(4,),
    item_layers=(8,), heads=("click",), content_width=4, short_length=4, long_length=8, item_statistics=True,
)  # fmt: skip
BRIEF = TrainConfig(batch_size=8, group=4, weight_decay=0.5, embedding_decay=0.5, patience=0)


@pytest.fixture(scope="module")
def log() -> Dataset:
    """300 impressions of 20 users and 12 items, one in three clicked; the clicks are the history."""
    random = np.random.default_rng(0)
    n = 300
    shown = {
        "user": np.repeat(np.arange(20), 15),
        "item": random.integers(0, 12, n),
        "time": np.tile(np.arange(15), 20) * 1_000 + random.integers(0, 900, n),
        "click": (random.random(n) < 0.35).astype(int),
        "kind": random.choice(["view", "buy"], n),
        "part": np.tile(np.repeat([0, 1, 2], [11, 2, 2]), 20),
    }
    return Dataset.from_impressions(
        shown, user="user", item="item", time="time", label="click", type="kind", time_unit="step",
        split=by_column("part"), content_width=4, min_item_count=1,
    )  # fmt: skip


def logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


@pytest.mark.parametrize("label", [1.0, 0.25])
def test_item_statistics_are_smoothed_odds_of_the_training_part(log: Dataset, label: float) -> None:
    labels = {head: label * values for head, values in log.impressions.labels.items()}
    log = dataclasses.replace(log, impressions=dataclasses.replace(log.impressions, labels=labels))
    schema = log.fit_schema()
    found = item_statistics(log, schema, ("click",))
    assert schema.item_id is not None
    rows, ids = log.impressions, log.encode(schema, "item")[schema.item_id]
    train = rows.split == 0
    rate = float(rows.labels["click"][train].mean())
    share = float(np.mean(log.events.type[log.events.training] == 1))
    for item in range(log.n_items):
        labels = rows.labels["click"][train & (rows.item == item)]
        types = log.events.type[log.events.training & (log.events.item == item)]
        expected = [
            logit((labels.sum() + SMOOTHING * rate) / (len(labels) + SMOOTHING)) - logit(rate),
            logit(((types == 1).sum() + SMOOTHING * share) / (len(types) + SMOOTHING)) - logit(share),
        ]
        np.testing.assert_allclose(found[ids[item]][[0, 2]], expected, atol=1e-5)
        assert found[ids[item], 1] == pytest.approx(-expected[1], abs=1e-5)
    assert not found[:FIRST].any()
    assert found.shape[1] == len(statistics_labels(TINY, schema)) == 4


@pytest.mark.parametrize("user", [0, 5])
def test_item_statistics_that_a_row_reads_in_training_ignore_the_rows_of_its_user(
    log: Dataset, user: int
) -> None:
    rows, events = log.impressions, log.events
    own, done = rows.user == user, events.user == user
    labels = {"click": np.where(own, 1 - rows.labels["click"], rows.labels["click"])}
    other = dataclasses.replace(
        log,
        impressions=dataclasses.replace(rows, labels=labels),
        events=dataclasses.replace(events, type=np.where(done, 1 - events.type, events.type)),
    )
    schema = log.fit_schema()
    model = build_model(TINY, schema)
    read = []
    for data in (log, other):
        column = np.asarray(device_catalogue(data, model, folds=True)[STATISTICS])
        batches = TrainingBatches(data, schema, TINY, BRIEF)
        found = {}
        for number in range(len(batches)):
            batch = batches[number]
            for place in zip(*np.nonzero(batch["impression"] >= 0), strict=True):
                found[int(batch["impression"][place])] = column[batch["item"][place]]
        read.append(found)
    mine = [row for row in read[0] if own[row]]
    assert mine
    for row in mine:
        np.testing.assert_array_equal(read[0][row], read[1][row])
    assert not np.array_equal(
        item_statistics(log, schema, ("click",)), item_statistics(other, schema, ("click",))
    )
    assert any(not np.array_equal(read[0][row], read[1][row]) for row in read[0]), "others do read them"


def test_item_statistics_stay_as_they_were_counted_in_training(log: Dataset) -> None:
    first = train(TINY, log, BRIEF.replace(max_steps=6, learning_rate=0.1), progress=False)
    again = train(TINY, log, BRIEF.replace(max_steps=1), init=first, progress=False)
    for result in (first, again):
        expected = item_statistics(log, result.schema, ("click",))
        np.testing.assert_array_equal(weights_of(result.model)["item.statistics"], expected)


def test_item_statistics_are_hidden_with_the_id(log: Dataset) -> None:
    schema = log.fit_schema()
    config = TINY.replace(item_id_dropout=0.5)
    model = build_model(config, schema)
    batch = TrainingBatches(log, schema, config, BRIEF)[0]
    found = model.read(batch, device_catalogue(log, model, folds=True), True, jax.random.key(0)).item
    hidden = np.asarray(found[schema.item_id]) == UNKNOWN
    assert 0.2 < hidden.mean() < 0.8
    assert not np.asarray(found[STATISTICS])[hidden].any()
    assert np.asarray(found[STATISTICS])[~hidden].any(axis=-1).all()


def test_earlier_model_without_statistics_scores_alike_until_training_weighs_them(log: Dataset) -> None:
    schema = log.fit_schema()
    earlier, later = (
        build_model(TINY.replace(item_statistics=False), schema, seed=1),
        build_model(TINY, schema),
    )
    Earlier(earlier).start(later)
    counted = item_statistics(log, schema, ("click",))
    set_weights(later, {**weights_of(later), "item.statistics": counted}, "test")
    batch = TrainingBatches(log, schema, TINY.replace(item_statistics=False), BRIEF)[0]
    catalogue = device_catalogue(log, later)
    scores = [np.asarray(model(batch, catalogue, train=False)) for model in (earlier, later)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
