"""Results: the page of one, the report of several, and a comparison of two."""

import json
import re

import pytest

import compare_runs
import run_all
from results import Result, Row, Section, read, row_of, write


def saved(path, **values):
    rows = [
        Row(name, value, "ratio", better="lower" if "p99" in name else "higher")
        for name, value in values.items()
    ]
    bars = Result("bars", "Bars", "Does it hold?", {}, "Checked.", sections=[Section("Bars", rows=rows)])
    path.write_text(json.dumps(bars.to_json()))
    return str(path)


def test_write_makes_a_table(tmp_path):
    rows = [row_of("a|b", [1.0, 2.0, 3.0], ratio=1.5, also={"seen": "x"}), Row("gone", None, note="why")]
    section = Section("Times", "How to read.", rows, ratio="times")
    out = write(Result("a", "A", "Why?", {}, "Checked.", sections=[section]), tmp_path / "out")
    page = (out / "page.md").read_text()
    assert "|  | median (quartiles), ms | times | seen | note |" in page
    assert "| a\\|b | 2 (1.5 to 2.5) | 1.5 | x |  |" in page
    assert "| gone |  |  |  | why |" in page


def test_report_names_absent_parts_and_failures(tmp_path, monkeypatch):
    bars = saved(tmp_path / "bars.json", fast=8.0)
    monkeypatch.setattr(run_all, "parts", lambda out, quick: {"overlap": ["false"]})
    assert run_all.main(["--out", str(tmp_path), "--bars", bars]) == 1
    page = (tmp_path / "report.md").read_text()
    for part in (
        "| fast | 8 |",
        "# Bars",
        "Failed: overlap ended with 1: false",
        "Not in this run: open_loop.",
    ):
        assert part in page


def test_compare_runs_bars_knows_the_better_direction(tmp_path, capsys):
    before = saved(tmp_path / "before.json", times=8.0, p99=1.0, other=8.0, gone=2.0, quality=None)
    now = saved(tmp_path / "now.json", times=7.0, p99=1.2, other=9.0, quality=0.2)
    assert compare_runs.main(before, before) == 0
    assert compare_runs.main(before, now) == 1
    assert re.findall(r"WORSE (\w+)", capsys.readouterr().out) == ["times", "p99", "gone"]


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmarks": [{}]}'])
def test_read_refuses_other_files(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is neither"):
        read(tmp_path / "other.json")
