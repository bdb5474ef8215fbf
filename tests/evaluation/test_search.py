"""A search of settings compares on the validation part, and what the test part holds changes nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from aif_jax.cli import evaluating
from aif_jax.cli.evaluating import run_evaluation
from aif_jax.data import TEST, VALIDATION, Dataset, load
from aif_jax.errors import ConfigError
from aif_jax.evaluation import study, teaching
from aif_jax.evaluation.judges import JUDGES, RANKER
from aif_jax.evaluation.search import PRESET, settings_variants, usual_settings
from aif_jax.training import TrainConfig, preset
from support.studies import SMALL, untrained


def spoilt(dataset: Dataset) -> Dataset:
    """Return the set with other labels, items and behaviours in the test part."""
    rows, events = dataset.impressions, dataset.events
    test = rows.split == TEST
    first = events.offsets[1:].copy()
    np.minimum.at(first, rows.user[test], rows.history_end[test])
    late = np.arange(len(events)) >= first[events.user]
    assert late.any()
    return dataclasses.replace(
        dataset,
        impressions=dataclasses.replace(
            rows,
            labels={head: np.where(test, 1 - y, y) for head, y in rows.labels.items()},
            item=np.where(test, (rows.item + 1) % dataset.n_items, rows.item).astype(np.int32),
        ),
        events=dataclasses.replace(
            events, item=np.where(late, (events.item + 1) % dataset.n_items, events.item).astype(np.int32)
        ),
    )


def test_the_search_never_reads_the_test_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load("synthetic:small", content_width=32)
    given: list[tuple[TrainConfig, Dataset]] = []

    def train(config: Any, data: Any, training: Any, **lessons: Any) -> Any:
        given.append((training, data))
        return untrained(config, data, training)

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(teaching, "train", train)
    # One model, so that little is compiled.
    monkeypatch.setattr(teaching, "TEACHER", dataclasses.replace(teaching.TEACHER, changes={}))
    monkeypatch.setitem(JUDGES, "impressions", dataclasses.replace(RANKER, changes={}))
    (tmp_path / "fields.json").write_text(json.dumps(SMALL))
    settings = {"half": {"learning_rate": 1e-3}, "taught": {"negatives": 2, "distillation_weight": 0.5}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    tables = []
    for number, data in enumerate((dataset, spoilt(dataset))):
        monkeypatch.setattr(evaluating, "load_for", lambda name, fields, data=data: data)
        out = tmp_path / f"out{number}"
        run_evaluation(
            "any", out, variants="", seeds=1, epochs=1, config=tmp_path / "fields.json", lists=6,
            search=str(tmp_path / "settings.json"), console=Console(quiet=True),
        )  # fmt: skip
        tables.append(json.loads((out / "search-table.json").read_text()))
        assert (out / "search-gauc.svg").exists()
        assert len(list((out / "search" / "rows").iterdir())) == 4
    assert tables[0] == tables[1]
    assert all((data.impressions.split != TEST).all() for _, data in given)
    assert tables[0]["split"] == "validation"
    assert tables[0]["impressions"] == np.count_nonzero(dataset.impressions.split == VALIDATION)
    assert list(tables[0]["variants"]) == ["aif", "aif_half", "aif_taught"]
    text = (tmp_path / "out0" / "search-table.md").read_text()
    assert "users in the validation part" in text
    assert "test" not in text
    assert "`aif_taught`: aif trained with negatives 2, distillation_weight 0.5" in text
    rates = [(training.learning_rate, training.negatives) for training, _ in given[:5]]
    usual = preset("synthetic")[1].learning_rate
    assert rates == [
        (usual, 0),
        (usual, 0),
        (1e-3, 0),
        (usual, 0),
        (usual, 2),
    ]  # judge, aif, half, teacher, taught


def test_settings_are_the_usual_ones_or_those_of_a_file(tmp_path: Path) -> None:
    dataset = load("synthetic:small", content_width=32)
    model, training = preset("synthetic")
    usual = usual_settings(model, training, dataset)
    assert not any(name.startswith("negatives") for name in usual)  # the set has pair features
    unpaired = model.replace(blocks=tuple(block for block in model.blocks if block != "pair"))
    usual = usual_settings(unpaired, training, dataset)
    assert {changes.get("negatives", 0) for changes in usual.values()} == {0, 4, 8}
    found = settings_variants(PRESET, unpaired, training, dataset)
    assert [each.name for each in found] == ["aif", *(f"aif_{name}" for name in usual), "aif_shown"]
    configs = [each.trained(training) for each in found]
    assert configs[0] == training
    assert len(set(configs)) == len(configs)

    path = tmp_path / "settings.json"
    for text, message in (
        ("[1]", "expected settings by name"),
        ('{"a/b": {"epochs": 5}}', "names of letters"),
        ("nonsense", "expected 'preset' or a JSON file"),
        ('{"a": {"moon": 1}}', "unknown training config fields"),
        ('{"a": {"epochs": 0}}', "epochs: got 0"),
        (json.dumps({"a": {"epochs": training.epochs}}), "change nothing"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            settings_variants(str(path), model, training, dataset)
