"""`model_within`: the richest model whose stage fits a time, and what `fit` makes of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation import Evaluation
from aif_jax.fitting import Run, StageTime, fit, model_within, stage_budget
from aif_jax.training import TrainResult
from support.fitted import BRIEF, SMALL

RECORDS = Path(__file__).resolve().parents[2] / "bench" / "records"
RICH = SMALL.replace(blocks=("bridge", "long_attention", "simtier", "sim_hard"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times by the names of variants, in place of compiling them: 6 ms for the first, each 1 ms less."""
    asked: list[str] = []

    def of(step: Any, schema: Any, candidates: int) -> StageTime:
        asked.append(step.name)
        ms = 7.0 - len(asked)
        return StageTime(
            name=step.name, model=step.model, recorded=step.recorded, median_ms=ms, least_ms=ms - 0.5
        )

    monkeypatch.setattr(stage_budget, "_timed", of)
    return asked


@pytest.mark.parametrize(
    ("ms", "changes"),
    [
        (6.0, {}),
        (5.9, {"tier_edges": (0.3125,)}),
        (4.0, {"blocks": ("bridge", "long_attention", "sim_hard")}),
        (3.0, {"blocks": ("bridge", "long_attention", "sim_hard"), "long_attention": "mean"}),
        (2.0, {"architecture": "cold"}),
        (1.0, {"architecture": "two_tower"}),
    ],
)
def test_model_within_takes_the_first_that_fits_and_times_no_poorer_one(
    data: Dataset, timed: list[str], ms: float, changes: dict[str, Any]
) -> None:
    found = model_within(RICH, data.fit_schema(), ms, progress=False)
    assert {name: getattr(found.model, name) for name in changes} == changes
    assert found.model == found.tried[-1].model
    assert [each.name for each in found.tried] == timed
    assert [each.median_ms > ms for each in found.tried] == [True] * (len(timed) - 1) + [False]
    for each in found.tried:
        assert f"{each.name} " in str(found)
        assert each.name in " ".join(found.reasons)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (SMALL, ["as it is", "and the long sequence as its mean", "cold", "two_tower"]),
        (RICH.replace(architecture="cold"), ["as it is", "two_tower"]),
        (RICH.replace(architecture="two_tower"), ["as it is"]),
    ],
)
def test_model_within_leaves_out_only_what_the_model_has(
    data: Dataset, timed: list[str], model: ModelConfig, names: list[str]
) -> None:
    with pytest.raises(ConfigError, match=f"{names[-1]} takes .* the least of all"):
        model_within(model, data.fit_schema(), 0.1, progress=False)
    assert timed == names


def test_model_within_times_the_folded_stage_of_this_machine(data: Dataset) -> None:
    model = SMALL.replace(architecture="two_tower")
    found = model_within(model, data.fit_schema(), 1e4, candidates=64, progress=False)
    assert 0 < found.tried[0].least_ms <= found.tried[0].median_ms < 1e4
    assert "Nothing was left out" in found.reasons[0]


def test_model_within_for_a_model_that_is_not_served_raises(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="'exact' does not fold"):
        model_within(SMALL.replace(architecture="exact"), data.fit_schema(), 1.0)


@pytest.mark.parametrize("row", [row for row in stage_budget.RECORDED if row != "aif"])
def test_recorded_losses_stand_in_the_records(row: str) -> None:
    found = stage_budget.RECORDED[row]
    for name, gauc in (("movielens-1m", found.movielens), ("kuairand", found.kuairand)):
        text = (RECORDS / f"2026-11-29-{name}.md").read_text(encoding="utf-8")
        lines = re.findall(rf"^\| `{row}`: .*$", text, re.MULTILINE)
        if gauc == "not measured":
            assert not lines
        else:
            assert f" | {gauc} | " in lines[0], "differences to `aif` in GAUC"
    lists = re.findall(rf"^\| `{row}` \| 0.*$", text, re.MULTILINE)
    assert [line.split(" | ")[5] for line in lists[:1]] in ([found.found], [])
    assert bool(lists) == (found.found != "not measured")


def test_fit_trains_what_keeps_the_time_and_no_baseline_of_its_kind(
    data: Dataset, run: Run, timed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"model": SMALL, "training": BRIEF, "out": tmp_path / "run", "progress": False}
    asked: list[ModelConfig] = []

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def trained(model: ModelConfig, *_: Any, **__: Any) -> TrainResult:
        asked.append(model)
        return run.results[model.architecture]

    def measured(*_: Any, **__: Any) -> Evaluation:
        return run.evaluations["test"]

    monkeypatch.setattr("aif_jax.fitting.fit_models.train", broken)
    for stage_ms in (6.0, 3.5):
        with pytest.raises(KeyboardInterrupt):
            fit(data, stage_ms=stage_ms, **options)
    assert timed == ["as it is", "as it is", "and the long sequence as its mean", "cold"]
    monkeypatch.setattr("aif_jax.fitting.fit_models.train", trained)
    monkeypatch.setattr("aif_jax.fitting.fit_models.evaluate_model", measured)
    found = fit(data, stage_ms=3.5, **options)
    assert len(timed) == 4, "a fit that goes on times nothing again"
    assert asked == [SMALL.replace(architecture="cold", long_attention="mean")]
    assert list(found.results) == ["cold"]
    assert "cold: its stage of 4,096 candidates takes 3.00 ms on this machine" in found.report()
