"""No label reaches the inputs of its own row or of an earlier one; nothing fitted reads later parts.

What is changed is the log itself, so that everything that is fitted on it is fitted again: vocabularies,
scales, content embeddings, counts. What the model is given is compared bit by bit.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import TEST, TRAIN, Dataset, RequestSource, load
from aif_jax.models import add_signatures
from aif_jax.training import TrainConfig, candidate_lists
from aif_jax.training.feed import TrainingBatches
from aif_jax.training.floors import floor_scores
from support.log_cases import Log, invented_films, invented_videos, real_films, real_videos

LOGS = {"invented films": invented_films, "invented videos": invented_videos}
if "AIF_JAX_DATA" in os.environ:
    LOGS |= {"real films": real_films, "real videos": real_videos}


@pytest.fixture(scope="module", params=list(LOGS))
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Log:
    return LOGS[request.param](tmp_path_factory.mktemp("log"))


def fitted(dataset: Dataset) -> dict[str, Any]:
    """Return what is fitted on the training part and every model reads, and what samples items."""
    schema = dataset.fit_schema()
    config = ModelConfig(content_width=6, signature_bits=64, heads=dataset.heads, score=dataset.heads[0])
    training = TrainConfig(batch_size=8, negatives=4)
    batches = TrainingBatches(dataset, schema, config.replace(blocks=()), training)
    return {
        "schema": schema.to_json(),
        "catalogue": add_signatures(config, dataset.catalogue(schema)),
        "negatives": [batches[i]["item"] for i in range(min(len(batches), 3))],
    }


def windows(dataset: Dataset) -> list[dict[str, Any]]:
    """Return what the encoder reads in training, and what it is taught to expect."""
    config = ModelConfig(
        blocks=("encoder",), encoder_layers=1, encoder_gaps=True, long_length=20, heads=dataset.heads
    )
    training = TrainConfig(batch_size=8, next_weight=1.0)
    batches = TrainingBatches(dataset, dataset.fit_schema(), config, training)
    first = [batches[i] for i in range(min(len(batches), 5))]
    return [{name: batch[name] for name in batch if name.startswith("sequence")} for batch in first]


def inputs(dataset: Dataset, split: str, *, group: int = 4) -> dict[str, np.ndarray]:
    """Return what a model reads of every impression of a part beside the catalogue, by impression."""
    source = RequestSource(
        dataset, dataset.fit_schema(), split, group=group, short_length=5, long_length=40, gaps=True
    )
    batch = source.batch(np.arange(len(source)), 40)
    real = batch["impression"] >= 0
    flat: dict[str, np.ndarray] = {}
    for name, value in batch.items():
        for key, array in (value if isinstance(value, dict) else {"": value}).items():
            per_row = name in ("context", "pair", "train_only", "item", "impression")
            if name not in ("labels", "label_mask"):
                flat[f"{name}/{key}"] = array[real] if per_row else array[np.nonzero(real)[0]]
    order = np.argsort(flat["impression/"])
    return {name: array[order] for name, array in flat.items()}


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if not isinstance(first, np.ndarray):
        return first == second
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def check_own_label_is_ignored(log: Log) -> None:
    """Flip the labels of single rows, and compare what the model is given of them."""
    before = log.load(log.rows)
    own = {split: inputs(before, split, group=16) for split in ("train", "test")}
    made = fitted(before)
    random = np.random.default_rng(1)
    for split, number in (("train", TRAIN), ("train", TRAIN), ("test", TEST)):
        row = int(random.choice(np.flatnonzero(before.impressions.split == number)))
        rows = list(log.rows)
        rows[row] = log.flipped(rows[row])
        after = log.load(rows)
        assert same(made, fitted(after))
        place = own[split]["impression/"] == row
        mine = inputs(after, split, group=16)
        assert same({k: v[place] for k, v in own[split].items()}, {k: v[place] for k, v in mine.items()})


def test_training_inputs_ignore_changes_of_later_parts(log: Log) -> None:
    before = log.load(log.rows)
    split = before.impressions.split
    rows = [
        row if part == TRAIN else log.elsewhere(log.flipped(row))
        for row, part in zip(log.rows, split, strict=True)
    ]
    after = log.load(rows)
    np.testing.assert_array_equal(after.impressions.split, split)
    changed = before.impressions.item != after.impressions.item
    assert changed[split != TRAIN].all()
    assert before.content is not None
    assert after.content is not None
    assert same(before.content.vectors, after.content.vectors)
    assert same(fitted(before), fitted(after))
    assert same(inputs(before, "train"), inputs(after, "train"))
    assert same(windows(before), windows(after))
    for name, scores in floor_scores(before, before.heads[0]).items():
        assert same(scores[split == TRAIN], floor_scores(after, before.heads[0])[name][split == TRAIN])


def test_inputs_ignore_labels_of_later_rows(log: Log) -> None:
    """A label of any part, in all rows of a user from some row on."""
    before = log.load(log.rows)
    offsets, random = before.events.offsets, np.random.default_rng(0)
    cut = offsets[:-1] + (np.diff(offsets) * random.random(before.n_users)).astype(np.int64)
    user = before.impressions.user
    late = np.arange(len(user)) >= cut[user]
    after = log.load(
        [log.flipped(row) if is_late else row for row, is_late in zip(log.rows, late, strict=True)]
    )
    head = before.heads[0]
    assert (before.impressions.labels[head] != after.impressions.labels[head])[late].all()
    assert same(fitted(before), fitted(after))
    for split in ("train", "validation", "test"):
        first, second = inputs(before, split), inputs(after, split)
        # The first late row has no late row in its history either.
        early = first["impression/"] <= cut[user[first["impression/"]]]
        assert same({k: v[early] for k, v in first.items()}, {k: v[early] for k, v in second.items()})
        assert early.any()
    assert not same(inputs(before, "test"), inputs(after, "test"))  # the comparison does see histories


def test_inputs_ignore_own_label(log: Log) -> None:
    check_own_label_is_ignored(log)


def test_candidate_lists_ignore_training_labels(log: Log) -> None:
    before = log.load(log.rows)
    train = before.impressions.split == TRAIN
    after = log.load([log.flipped(r) if t else r for r, t in zip(log.rows, train, strict=True)])
    head = before.heads[0]
    first, second = (candidate_lists(d, "test", head, lists=20, unseen=3) for d in (before, after))
    assert same(dataclasses.asdict(first), dataclasses.asdict(second))


def test_synthetic_training_inputs_ignore_changes_of_later_parts() -> None:
    before = load("synthetic:small", content_width=6)
    rows, events = before.impressions, before.events
    types = len(before.schema.behaviour_types)
    after = dataclasses.replace(
        before,
        impressions=dataclasses.replace(
            rows,
            item=np.where(rows.split == TRAIN, rows.item, (rows.item + 1) % before.n_items),
            labels={head: np.where(rows.split == TRAIN, y, 1 - y) for head, y in rows.labels.items()},
        ),
        events=dataclasses.replace(
            events,
            item=np.where(events.training, events.item, (events.item + 1) % before.n_items),
            type=np.where(events.training, events.type, (events.type + 1) % types),
        ),
    )
    assert same(fitted(before), fitted(after))
    assert same(inputs(before, "train"), inputs(after, "train"))
    assert not same(inputs(before, "test"), inputs(after, "test"))


def test_later_training_rows_change_fitted_columns_only(tmp_path: Path) -> None:
    """Content and vocabularies are of the whole training part: who took up what, not how it went."""
    log = invented_films(tmp_path)
    before = log.load(log.rows)
    offsets = before.events.offsets
    user = before.impressions.user
    cut = offsets[user] + 8
    late = np.arange(len(user)) >= cut
    after = log.load(
        [log.elsewhere(row) if is_late else row for row, is_late in zip(log.rows, late, strict=True)]
    )
    first, second = inputs(before, "train"), inputs(after, "train")
    early = first["impression/"] < cut[first["impression/"]]
    assert same({k: v[early] for k, v in first.items()}, {k: v[early] for k, v in second.items()})
    assert before.content is not None
    assert after.content is not None
    assert not same(before.content.vectors, after.content.vectors)


def test_leaking_history_is_detected(tmp_path: Path) -> None:
    """Histories that end one behaviour later hold the row's own label; the comparison above finds that."""
    log = invented_films(tmp_path)

    def leaking(rows: list[Any]) -> Dataset:
        made = log.load(rows)
        ends = made.impressions.history_end + 1
        return dataclasses.replace(made, impressions=dataclasses.replace(made.impressions, history_end=ends))

    with pytest.raises(AssertionError):
        check_own_label_is_ignored(dataclasses.replace(log, load=leaking))
