"""A study on synthetic data: rows are trained once, an interrupted study goes on, others are refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from aif_jax.cli import evaluating
from aif_jax.cli.evaluating import run_evaluation
from aif_jax.data import Dataset, load
from aif_jax.data.splits import SPLITS
from aif_jax.errors import ConfigError
from aif_jax.evaluation import VARIANTS, Study, markdown, study
from aif_jax.evaluation.cold_items import of_cold_items
from aif_jax.evaluation.cost import Cost
from aif_jax.evaluation.plot import gauc_plot
from aif_jax.evaluation.table import summarise
from aif_jax.evaluation.variants import Variant, chosen
from aif_jax.training import evaluate, metrics

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
    known, users, labels = mine.known()
    cold = of_cold_items(dataset, "test")[known]
    assert summary["cold_items"]["impressions"] == cold.sum() > 0
    logits = [mine.logits(VARIANTS["cold"], seed, frozen=True)[known][cold] for seed in range(2)]
    told = summary["variants"]["cold"]["cold_items"]
    assert told["auc"]["mean"] == np.mean([metrics.auc(labels[cold], run) for run in logits])
    assert told["gauc"]["mean"] == np.mean([metrics.gauc(users[cold], labels[cold], run) for run in logits])
    text = markdown(json.loads(json.dumps(summary)))
    assert f"Cold items, frozen histories: {cold.sum():,} impressions" in text
    assert f"| `cold` | {told['auc']['mean']:.4f} ±" in text
    assert "Cost of a request" not in text
    costs = {"aif": cost_of("engine", 2.5)}
    text = markdown(json.loads(json.dumps(summarise(mine, rows, costs))))
    assert "| `aif` | 1.50 (1.00 to 2.00) | 2.50 (2.00 to 3.00) | 100 | 2,000 | 77 |" in text
    assert "| `cold` | not measured | not measured |" in text
    assert f"| {means['aif']:.4f} ±" in text
    assert "floor: item mean" in text
    assert "10 of 100" in text
    assert "cold" in gauc_plot(summary)


def cost_of(way: str, request: float) -> Cost:
    served = way == "engine"
    return Cost(
        way=way, parameters=77, item_bytes=100 if served else None, user_bytes=2000 if served else None,
        candidates=4096, history=64, rounds=3, stage_ms=(1.0, 1.5, 2.0) if served else None,
        request_ms=(request - 0.5, request, request + 0.5),
    )  # fmt: skip


def test_rows_of_another_study_are_not_mixed_in(dataset: Dataset, tmp_path: Path) -> None:
    make(dataset, tmp_path)
    make(dataset, tmp_path, names="aif", seeds=3)  # more rows of the same study are no other one
    with pytest.raises(ConfigError, match="differs in model"):
        make(dataset, tmp_path, width=16)
    with pytest.raises(ConfigError, match="each name once"):
        Study(dataset, tmp_path, [VARIANTS["aif"], VARIANTS["aif"]])


def test_a_variant_is_trained_on_its_own_data(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stop(config: Any, data: Dataset, training: Any, **options: Any) -> Any:
        given.append(data)
        raise KeyboardInterrupt

    mine = make(dataset, tmp_path, names="aif_shuffled")
    monkeypatch.setattr(study, "train", stop)
    monkeypatch.setattr(Study, "_ranker", lambda self: np.zeros((1, 1)))
    with pytest.raises(KeyboardInterrupt):
        mine.row(VARIANTS["aif_shuffled"], 5)
    expected = VARIANTS["aif_shuffled"].dataset(dataset, 5).content
    assert expected is not None
    np.testing.assert_array_equal(given[0].content.vectors, expected.vectors)
    assert (given[0].content.vectors != dataset.content.vectors).any()  # type: ignore[union-attr]


def test_the_command_writes_table_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not (out / "pareto.svg").exists()

    def measured(data: Dataset, model: Any, variants: Any, **_: Any) -> dict[str, Cost]:
        assert model.long_length == SMALL["long_length"]
        return {v.name: cost_of("sequential" if v.name == "exact" else "engine", 2.0) for v in variants}

    monkeypatch.setattr(evaluating, "measure_costs", measured)
    run_evaluation("synthetic:small", out, **arguments, cost=True, console=Console(quiet=True))
    assert "| `exact` | not served by the engine | 2.00 (1.50 to 2.50) |" in (out / "table.md").read_text()
    assert "<svg" in (out / "pareto.svg").read_text()
    monkeypatch.undo()
    (out / "pareto.svg").unlink()
    run_evaluation("synthetic:small", out, **arguments, console=Console(quiet=True))  # it was kept
    assert json.loads((out / "table.json").read_text())["variants"]["aif"]["cost"]["way"] == "engine"
    assert (out / "pareto.svg").exists()

    def bridges(name: str, model: Any, data: Dataset) -> list[Variant]:
        assert (name, model.width) == ("bridges", SMALL["width"])
        return chosen("aif,cold")

    monkeypatch.setattr(evaluating, "curve_of", bridges)
    run_evaluation("synthetic:small", out, **arguments, curve="bridges", console=Console(quiet=True))
    table = json.loads((out / "curve-bridges-table.json").read_text())
    assert list(table["variants"]) == ["aif", "cold"]
    assert (out / "curve-bridges-gauc.svg").exists()
    fields.write_text('{"moon": 1}')
    with pytest.raises(ConfigError, match="moon"):
        run_evaluation("synthetic:small", tmp_path / "x", **arguments, console=Console(quiet=True))
