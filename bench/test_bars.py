"""Whatever becomes of a measurement, its bar is in the table and the exit code says so."""

import json
from pathlib import Path

import numpy as np
import pytest

import measure_bars
from bars import of_quality
from bars.found import InconclusiveError, NotMeasuredError, Value, exit_code, measured, page
from bars.lines import BARS, Bar, named
from bars.of_load import resampled

FAST = Bar("fast", "times as fast", 2.0, 4.0)
SMALL = Bar("small", "share of the size", 1.0, 0.5, "lower")
TWO = named((FAST, SMALL))


def giving(**values):
    return tuple(values), lambda: {name: Value(v, (v, v), "how") for name, v in values.items()}


def raising(error, *names):
    def measure():
        raise error

    return names, measure


NONE = float("nan")


def test_the_design_tells_every_bar():
    told = (Path(__file__).parents[1] / "DESIGN.md").read_text(encoding="utf-8")
    for bar in BARS.values():
        unit, sign = " ms" if bar.unit == "ms" else "", "least" if bar.better == "higher" else "most"
        assert f"| {bar.what} | at {sign} {bar.needed:g}{unit} | {bar.reach:g}{unit} |" in told


@pytest.mark.parametrize(
    ("bar", "value", "outcome"),
    [
        (FAST, 1.99, "missed"), (FAST, 2.0, "met"), (FAST, 4.0, "reached"), (FAST, NONE, "missed"),
        (SMALL, 1.01, "missed"), (SMALL, 1.0, "met"), (SMALL, 0.5, "reached"), (SMALL, NONE, "missed"),
    ],
)  # fmt: skip
def test_a_bar_holds_from_its_value_on(bar, value, outcome):
    assert bar.outcome(value) == outcome
    assert bar.holds(value) is (outcome != "missed")


def test_a_measurement_that_fails_takes_no_other_with_it():
    told = []
    found = measured(TWO, [raising(ValueError("no room\nat all"), "fast"), giving(small=0.7)], told.append)
    assert list(found) == ["fast", "small"]
    assert found["fast"]["failed"] == "ValueError: no room"
    assert found["fast"]["value"] is found["fast"]["holds"] is None
    assert (found["small"]["value"], found["small"]["holds"], found["small"]["reached"]) == (0.7, True, False)
    assert told == ["fast: ValueError: no room"]
    assert exit_code(found, strict=False) == 1
    assert "fast: failed: ValueError: no room" in page(found)
    json.dumps(found, allow_nan=False)


def test_a_missed_bar_is_said_and_counts_only_if_strict():
    found = measured(TWO, [giving(fast=1.5, small=0.4)])
    assert [found[name]["holds"] for name in TWO] == [False, True]
    assert (exit_code(found, strict=False), exit_code(found, strict=True)) == (0, 1)
    fast, small = page(found).splitlines()[2:4]
    assert fast.endswith("| >= 2 | >= 4 | NO |")
    assert small.endswith("| <= 1 | <= 0.5 | reached |")


@pytest.mark.parametrize("error", [NotMeasuredError("give it"), InconclusiveError("too little")])
def test_what_was_not_measured_is_in_the_table_with_its_reason(error):
    found = measured(TWO, [raising(error, "fast")])
    assert exit_code(found, strict=True) == 0
    assert str(error) in page(found)
    assert found["small"]["not_measured"] == "nothing in this run measures it"


def test_a_measurement_without_a_figure_has_failed():
    found = measured(TWO, [giving(fast=NONE)])
    assert "nan" in found["fast"]["failed"]
    assert exit_code(found, strict=False) == 1


def table_of(tmp_path, upper, share):
    gain = {"value": 0.01, "standard_error": 0.001, "low": 0.008, "high": 0.012}
    lost = {"gain": gain, "share": share, "upper": upper}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"data": "made up", "seeds": 2, "lost": {"growing": lost, "frozen": lost}}))
    return path


def test_quality_comes_from_the_table_of_a_study(tmp_path):
    found = measured(BARS, of_quality.measurements(table_of(tmp_path, 0.2, 0.05)))
    assert (found["quality"]["value"], found["quality"]["holds"]) == (0.2, True)
    assert found["quality_frozen"]["share"] == 0.05
    found = measured(BARS, of_quality.measurements(table_of(tmp_path, None, None)))
    assert "less than 4 standard errors" in found["quality"]["inconclusive"]
    (tmp_path / "table.json").write_text(json.dumps({"lost": None}))
    found = measured(BARS, of_quality.measurements(tmp_path / "table.json"))
    assert "aif, exact and cold" in found["quality"]["not_measured"]
    found = measured(BARS, of_quality.measurements(tmp_path / "nowhere.json"))
    assert "FileNotFoundError" in found["quality"]["failed"]
    assert exit_code(found, strict=False) == 1


def test_a_run_writes_every_bar_with_where_and_when(tmp_path, capsys):
    """Measured is what takes least: the quality, from a table."""
    out = tmp_path / "bars.json"
    table = table_of(tmp_path, 0.5, 0.3)
    arguments = ["--quick", "--only", "quality", "--table", str(table), "--out", str(out)]
    assert measure_bars.main(arguments) == 0
    assert measure_bars.main([*arguments, "--strict"]) == 1
    found = json.loads(out.read_text())
    assert list(found) == list(BARS)
    assert found["quality"]["value"] == 0.5
    for name, bar in found.items():
        assert bar["where"]
        assert bar["date"]
        assert (bar["needed"], bar["reach"]) == (BARS[name].needed, BARS[name].reach)
    assert page(found) in capsys.readouterr().out


@pytest.mark.program
def test_bars_at_small_sizes_are_all_measured(tmp_path):
    out = tmp_path / "bars.json"
    measure_bars.main(["--quick", "--out", str(out)])
    found = json.loads(out.read_text())
    assert {name for name, bar in found.items() if "not_measured" in bar} == set(of_quality.KINDS)
    # Rates of arithmetic are measured by a Rust program, which not every machine has built.
    assert {name for name, bar in found.items() if "failed" in bar} <= {"stage_roofline"}


def test_resampled_quartiles_surround_the_ratio():
    rng = np.random.default_rng(0)
    before, during = rng.exponential(1, 3000), rng.exponential(2, 1000)
    low, high = resampled(during, before)
    assert low < np.quantile(during, 0.99) / np.quantile(before, 0.99) < high
    assert high - low < 0.5
