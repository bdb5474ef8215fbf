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


def suites(path, **medians):
    benchmarks = [
        {
            "name": f"test_{name}", "fullname": f"bench/{name}", "group": "of 9",
            "extra_info": {"recall": 0.987}, "stats": {"median": median, "q1": median, "q3": median},
        }
        for name, median in medians.items()
    ]  # fmt: skip
    path.write_text(json.dumps({"machine_info": {"cpu": {}, "machine": "x86"}, "benchmarks": benchmarks}))
    return str(path)


def test_write_draws_table_and_pictures(tmp_path):
    kinds = {"a|b": "ours"}
    plot = {"name": "picture", "kind": "bars", "title": "Times", "x": "ms", "log": "x", "kinds": kinds}
    rows = [row_of("a|b", [1.0, 2.0, 3.0], ratio=1.5, also={"seen": "x"}), Row("gone", None, note="why")]
    section = Section("Times", "How to read.", rows, ratio="times", plots=(plot,))
    out = write(Result("a", "A", "Why?", {}, "Checked.", sections=[section]), tmp_path / "out")
    page = (out / "page.md").read_text()
    assert "|  | median (quartiles), ms | times | seen | note |" in page
    assert "| a\\|b | 2 (1.5 to 2.5) | 1.5 | x |  |" in page
    assert "| gone |  |  |  | why |" in page
    assert all((out / f"picture.{kind}").stat().st_size > 5_000 for kind in ("png", "svg"))


def test_report_names_absent_parts_and_failures(tmp_path, monkeypatch, capsys):
    suites(tmp_path / "suites.json", slow=0.002)
    bars = saved(tmp_path / "bars.json", fast=8.0)
    monkeypatch.setattr(run_all, "parts", lambda out, quick: {"overlap": (["false"], "no time")})
    assert run_all.main(["--out", str(tmp_path), "--bars", bars]) == 1
    page = (tmp_path / "report.html").read_text()
    for part in ("<td>slow</td>", "<td>0.987</td>", "<h1>Bars", "overlap: ended with 1: false"):
        assert part in page
    assert "Not in this run: compare_stage, overlap, open_loop, publish." in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "failed: overlap" in capsys.readouterr().err


def test_compare_runs_suites_marks_times_that_grew_by_a_tenth(tmp_path, capsys):
    before = suites(tmp_path / "before.json", slow=1.0, noisy=1.0, fast=1.0, gone=1.0)
    now = suites(tmp_path / "now.json", slow=1.11, noisy=1.09, fast=0.5, more=1.0)
    assert compare_runs.main([before, now]) == 1
    assert re.findall(r"WORSE (\w+)", capsys.readouterr().out) == ["slow", "gone"]


def test_compare_runs_bars_knows_the_better_direction(tmp_path, capsys):
    before = saved(tmp_path / "before.json", times=8.0, p99=1.0, other=8.0, quality=None)
    now = saved(tmp_path / "now.json", times=7.0, p99=1.2, other=9.0, quality=0.2)
    assert compare_runs.main([before, before]) == 0
    assert compare_runs.main([before, now]) == 1
    assert re.findall(r"WORSE (\w+)", capsys.readouterr().out) == ["times", "p99"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"benchmarks": [{}]}'])
def test_read_refuses_other_files(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is neither"):
        read(tmp_path / "other.json")
