"""A study on synthetic data: rows are trained once, an interrupted study goes on, others are refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from aif_jax.cli.evaluating import run_evaluation
from aif_jax.data import Dataset, load
from aif_jax.data.splits import SPLITS
from aif_jax.errors import ConfigError
from aif_jax.evaluation import VARIANTS, Study, markdown, study
from aif_jax.evaluation.plot import gauc_plot
from aif_jax.evaluation.table import summarise
from aif_jax.evaluation.variants import chosen
from aif_jax.training import evaluate

SMALL: dict[str, Any] = {
    "width": 8,
    "embedding_width": 4,
    "hidden": 16,
    "long_length": 64,
    "content_width": 16,
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """With several requests of a user in the test part: all of those of every eighth."""
    made = load("synthetic:small")
    rows = made.impressions
    split = np.where(rows.user % 8 == 1, SPLITS["test"], rows.split).astype(np.int8)
    return dataclasses.replace(made, impressions=dataclasses.replace(rows, split=split))


def make(dataset: Dataset, folder: Path, names: str = "cold,aif", seeds: int = 2, **changes: Any) -> Study:
    return Study(
        dataset, folder, chosen(names), seeds=seeds, epochs=1, lists=40, candidates=210,
        changes={**SMALL, **changes}, progress=False,
    )  # fmt: skip


def test_a_study_is_resumed_row_by_row(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []
    real = study.train

    def train(config: Any, data: Any, training: Any, **options: Any) -> Any:
        if len(trained) == 3 and not any(name == "stop" for name, _ in trained):
            trained.append(("stop", 0))
            raise KeyboardInterrupt
        trained.append((config.architecture, training.seed))
        return real(config, data, training, **options)

    monkeypatch.setattr(study, "train", train)
    with pytest.raises(KeyboardInterrupt):
        make(dataset, tmp_path).run()
    told: list[tuple[str, int, int]] = []
    mine = make(dataset, tmp_path)
    rows = mine.run(lambda row, number, total: told.append((row.variant, number, total)))
    ranker = ("exact", study.RANKER_SEED)
    assert trained == [ranker, ("cold", 0), ("aif", 0), ("stop", 0), ("cold", 1), ("aif", 1)]
    assert told == [("cold", 1, 4), ("aif", 2, 4), ("cold", 3, 4), ("aif", 4, 4)]
    assert [(row.variant, row.seed) for row in rows] == [("cold", 0), ("cold", 1), ("aif", 0), ("aif", 1)]
    assert make(dataset, tmp_path).run() == rows  # nothing is trained again
    assert len(trained) == 6
    assert not list(tmp_path.rglob("checkpoints"))

    # A row is what training and evaluating by hand give.
    config, training = VARIANTS["aif"].config(mine._model), mine._training.replace(seed=1)
    model = real(config, dataset, training, progress=False).model
    by_hand = evaluate(model, dataset, "test")
    assert rows[3].metrics.heads == by_hand.heads
    still = evaluate(model, dataset.with_frozen_histories("test"), "test")
    assert rows[3].frozen.heads == still.heads != by_hand.heads
    known, users, labels = mine.known()
    assert len(mine.logits(VARIANTS["aif"], 0)) == len(known) >= len(users) == len(labels)

    summary = summarise(mine, rows)
    gaucs = [row.metrics.gauc for row in rows if row.variant == "aif"]
    assert summary["variants"]["aif"]["gauc"]["mean"] == pytest.approx(np.mean(gaucs))
    difference = summary["variants"]["cold"]["gauc_against"]["value"]
    means = {name: found["gauc"]["mean"] for name, found in summary["variants"].items()}
    assert difference == pytest.approx(means["cold"] - means["aif"])
    assert summary["lost"] is None
    text = markdown(json.loads(json.dumps(summary)))
    assert f"| {means['aif']:.4f} ±" in text
    assert "floor: item mean" in text
    assert "10 of 100" in text
    assert "cold" in gauc_plot(summary)


def test_rows_of_another_study_are_not_mixed_in(dataset: Dataset, tmp_path: Path) -> None:
    make(dataset, tmp_path)
    make(dataset, tmp_path, names="aif", seeds=3)  # more rows of the same study are no other one
    with pytest.raises(ConfigError, match="differs in model"):
        make(dataset, tmp_path, width=16)


def test_the_command_writes_table_and_plot(tmp_path: Path) -> None:
    fields = tmp_path / "fields.json"
    fields.write_text(json.dumps(SMALL))
    arguments: dict[str, Any] = {
        "variants": "aif,cold,exact", "seeds": 1, "epochs": 1, "config": fields, "lists": 20,
    }  # fmt: skip
    out = tmp_path / "study"
    run_evaluation("synthetic:small", out, **arguments, console=Console(quiet=True))
    table = json.loads((out / "table.json").read_text())
    assert list(table["variants"]) == ["aif", "cold", "exact"]
    assert {"date", "cores", "jax", "cpu", "aif_jax"} == table["where"].keys()
    assert "`exact` gains" in (out / "table.md").read_text()
    assert "<svg" in (out / "gauc.svg").read_text()
    fields.write_text('{"moon": 1}')
    with pytest.raises(ConfigError, match="moon"):
        run_evaluation("synthetic:small", tmp_path / "x", **arguments, console=Console(quiet=True))
