"""The comparison of the stage with its rivals, at a small size: every contender answers as it should."""

import json

import pytest

from compare_stage import main
from stage.answers import TOLERANCE
from stage.contenders import WHAT


@pytest.mark.program
@pytest.mark.benchmark(group="the comparison of the stage, --quick, once")
def test_contenders_agree_with_their_definitions(benchmark, tmp_path, capsys):
    record = tmp_path / "record.md"
    arguments = ["--quick", "--out", str(tmp_path / "out"), "--record", str(record)]
    out = benchmark.pedantic(main, (arguments,), rounds=1)
    results = json.loads((out / "results.json").read_text())
    (case,) = results["cases"]
    assert WHAT.keys() <= case["answers"].keys() == case["times"].keys()
    for answer in case["answers"].values():
        assert answer.get("largest_difference", 0) <= 2 * TOLERANCE
        assert answer.get("overlap", 1) >= 0.9
    # Another definition would be no check: exact and linear attention must differ.
    by_definition = {answer["against"] for answer in case["answers"].values()}
    assert {"definition, linear", "definition, exact, as defined", "definition, cold"} <= by_definition
    assert "its times mean nothing" in record.read_text()
    assert record.read_text() in capsys.readouterr().out
    assert all((out / f"contenders.{kind}").stat().st_size > 10_000 for kind in ("png", "svg"))
