"""Whatever happens to a measurement, its bar is in the table and the exit code shows it."""

import json
from pathlib import Path

import numpy as np
import pytest

import measure_bars
from bars import of_quality
from bars.lines import BARS, Bar, InconclusiveError, NotMeasuredError, Value, exit_code, measured
from bars.of_load import resampled
from results import read

FAST = Bar("fast", "times as fast", 2.0, 4.0)
SMALL = Bar("small", "share of the size", 1.0, 0.5, "lower")
TWO = {"fast": FAST, "small": SMALL}
NONE = float("nan")


def giving(**values):
    return tuple(values), lambda: {name: Value(v, (v, v), "how") for name, v in values.items()}


def raising(error, *names):
    def measure():
        raise error

    return names, measure


def test_design_lists_every_bar():
    text = (Path(__file__).parents[1] / "DESIGN.md").read_text(encoding="utf-8")
    for bar in BARS.values():
        unit, sign = " ms" if bar.unit == "ms" else "", "least" if bar.better == "higher" else "most"
        assert f"| {bar.what} | at {sign} {bar.needed:g}{unit} | {bar.reach:g}{unit} |" in text


@pytest.mark.parametrize(
    ("bar", "value", "outcome"),
    [
        (FAST, 1.99, "NO"), (FAST, 2.0, "yes"), (FAST, 4.0, "reached"), (FAST, NONE, "NO"),
        (SMALL, 1.01, "NO"), (SMALL, 1.0, "yes"), (SMALL, 0.5, "reached"), (SMALL, NONE, "NO"),
    ],
)  # fmt: skip
def test_bar_outcome_at_its_limits(bar, value, outcome):
    assert bar.outcome(value) == outcome


@pytest.mark.parametrize(
    ("measurement", "holds", "note", "codes"),
    [
        (giving(fast=1.5), "NO", "how", (0, 1)),
        (giving(fast=NONE), "failed", "the measurement gave nan, which is not a figure", (1, 1)),
        (raising(ValueError("no room\nat all"), "fast"), "failed", "ValueError: no room", (1, 1)),
        (raising(NotMeasuredError("give it"), "fast"), "not measured", "give it", (0, 0)),
        (raising(InconclusiveError("too little"), "fast"), "inconclusive", "too little", (0, 0)),
    ],
)
def test_measured_bar_that_fails_is_listed_beside_others(measurement, holds, note, codes):
    found = measured(TWO, [measurement, giving(small=0.7)])
    assert (found["fast"].also["holds"], found["fast"].note) == (holds, note)
    assert (found["small"].value, found["small"].also["holds"]) == (0.7, "yes")
    assert (exit_code(found, strict=False), exit_code(found, strict=True)) == codes
    assert measured(TWO, [measurement])["small"].note == "nothing in this run measures it"


def table_of(tmp_path, upper, share):
    gain = {"value": 0.01, "standard_error": 0.001, "low": 0.008, "high": 0.012}
    lost = {"gain": gain, "share": share, "upper": upper}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"data": "made up", "seeds": 2, "lost": {"growing": lost, "frozen": lost}}))
    return path


def test_quality_comes_from_the_table_of_a_study(tmp_path):
    found = measured(BARS, of_quality.measurements(table_of(tmp_path, 0.2, 0.05)))
    assert (found["quality"].value, found["quality"].also["holds"]) == (0.2, "yes")
    assert "share 0.05" in found["quality_frozen"].note
    found = measured(BARS, of_quality.measurements(table_of(tmp_path, None, None)))
    assert "less than 4 standard errors" in found["quality"].note
    (tmp_path / "table.json").write_text(json.dumps({"lost": None}))
    found = measured(BARS, of_quality.measurements(tmp_path / "table.json"))
    assert "aif, exact and cold" in found["quality"].note
    assert exit_code(measured(BARS, of_quality.measurements(tmp_path / "nowhere")), strict=False) == 1


def test_measure_bars_writes_every_bar(tmp_path):
    """Measured is the cheapest: the quality, from a table."""
    out = tmp_path / "bars.json"
    table = table_of(tmp_path, 0.5, 0.3)
    arguments = ["--quick", "--only", "quality", "--table", str(table), "--out", str(out)]
    assert measure_bars.main(arguments) == 0
    assert measure_bars.main([*arguments, "--strict"]) == 1
    rows = {row["name"]: row for row in read(out)["sections"][0]["rows"]}
    assert list(rows) == list(BARS)
    assert rows["quality"]["value"] == 0.5


@pytest.mark.program
def test_measure_bars_measures_all_at_small_sizes(tmp_path):
    out = tmp_path / "bars.json"
    measure_bars.main(["--quick", "--out", str(out)])
    states = {row["name"]: row["also"]["holds"] for row in read(out)["sections"][0]["rows"]}
    assert {name for name, state in states.items() if state == "not measured"} == set(of_quality.KINDS)
    # Rates of arithmetic are measured by a Rust program, which not every machine has built.
    assert {name for name, state in states.items() if state == "failed"} <= {"stage_roofline"}


def test_resampled_quartiles_surround_the_ratio():
    rng = np.random.default_rng(0)
    before, during = rng.exponential(1, 3000), rng.exponential(2, 1000)
    low, high = resampled(during, before)
    assert low < np.quantile(during, 0.99) / np.quantile(before, 0.99) < high
    assert high - low < 0.5
