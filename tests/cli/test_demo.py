"""The demo on small data: every figure that it promises, and two ways that agree."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aif_jax.cli.demo import run_demo
from aif_jax.cli.demo_result import percentiles


@pytest.mark.thorough
def test_run_demo_small_data_measures_what_it_promises(tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    result = run_demo(
        "synthetic:small", tmp_path / "run", requests=20, network_ms=2.0, epochs=1, console=console
    )

    models = {row["model"] for row in result.quality if not row["floor"]}
    assert models == {"two_tower", "cold", "aif"}
    assert sum(row["floor"] for row in result.quality) >= 1
    assert all(0.0 < row["auc"] < 1.0 and 0.0 < row["gauc"] < 1.0 for row in result.quality)
    assert {way: len(values) for way, values in result.latency.items()} == {"sequential": 20, "aif": 20}
    assert all(min(values) >= 2.0 for values in result.latency.values())  # both ways wait for retrieval
    assert {bar.lane for bar in result.timelines["aif"]} == {"retrieval", "user", "request"}
    user, request = (
        [bar for bar in result.timelines["aif"] if bar.lane == lane] for lane in ("user", "request")
    )
    called_ms = min(bar.start_ms for bar in request)  # retrieval has returned
    began_ms, finished_ms = min(bar.start_ms for bar in user), max(bar.end_ms for bar in user)
    hidden_ms = max(0.0, min(finished_ms, called_ms) - began_ms)
    assert result.hidden_ms == pytest.approx(hidden_ms, abs=1e-3)
    assert all(
        0.0 < rest < total
        for way, values in result.latency.items()
        for total, rest in zip(values, result.after_retrieval[way], strict=True)
    )

    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    assert trace["traceEvents"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "two_tower" in page
    shown = console.export_text()
    assert "hidden behind retrieval" in shown
    kept = json.loads((tmp_path / "run" / "demo.json").read_text())
    assert kept["candidates"] == result.candidates


def test_percentiles_random_values_are_those_of_numpy() -> None:
    values = list(np.random.default_rng(0).exponential(size=101))
    found = percentiles(values)
    assert found["p50"] == sorted(values)[50]
    assert found["max"] == max(values)
