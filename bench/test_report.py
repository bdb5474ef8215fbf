"""The report is one page without anything outside it, and says what was not measured and what failed."""

import json
import re

import pytest

import run_all
from report.markup import from_markdown, inline_svg
from report.suites import sentence, time


def suites(folder):
    stats = {"median": 0.002, "q1": 0.001, "q3": 0.003}
    one = {"name": "test_rows_are_read[fast]", "fullname": "bench/a.py::t", "group": "rows", "stats": stats}
    (folder / "suites.json").write_text(
        json.dumps({"benchmarks": [{**one, "extra_info": {"recall": 0.987}}]})
    )


def bars(folder, **changes):
    bar = {
        "value": 9.0, "what": "times <faster>", "unit": "ratio", "needed": 8, "reach": 12, "better": "higher",
        "holds": True, "spread": [8.5, 9.5], "how": "so", "where": "here",
        "date": "2026-01-01", "meaningful": True,
    }  # fmt: skip
    gone = {**bar, "value": None, "holds": None, "spread": None, "failed": "no room"}
    (folder / "bars.json").write_text(json.dumps({"speed": bar | changes, "gone": gone}))


def test_a_report_of_little_says_what_is_not_in_it(tmp_path, capsys):
    suites(tmp_path)
    bars(tmp_path, holds=False)
    arguments = ["--out", str(tmp_path), "--bars", str(tmp_path / "bars.json"), "--only"]
    assert run_all.main(arguments) == 0
    page = (tmp_path / "report.html").read_text()
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    for said in (
        "rows are read: fast",
        "2 ms",
        "recall 0.987",
        "times &lt;faster&gt;",
        "9 (8.5 to 9.5)",
    ):
        assert said in page
    assert '<span class="no">no</span>' in page
    assert "no room" in page
    assert "Not in this run" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "A quick run" not in page


def test_a_part_that_fails_is_named_and_the_report_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_all, "parts", lambda out, quick: {"stage": (["false"], "no time")})
    assert run_all.main(["--out", str(tmp_path), "--bars", str(tmp_path / "none.json")]) == 1
    assert "stage: ended with 1: false" in (tmp_path / "report.html").read_text()
    assert "failed: stage" in capsys.readouterr().err


def test_unknown_parts_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_all.main(["--out", str(tmp_path), "--only", "everything"])
    assert "expected some of suites, stage" in capsys.readouterr().err


def test_every_part_runs_a_program_that_is_there(tmp_path):
    for command, _ in run_all.parts(tmp_path, quick=True).values():
        assert command[1] == "-m" or (run_all.BENCH / command[1]).is_file()


def test_pictures_do_not_share_names(tmp_path):
    svg = '<?xml version="1.0"?><svg width="9pt" height="5pt" viewBox="0 0 9 5"><g id="a"/>'
    svg += '<use href="#a"/></svg>'
    for name in ("one", "two"):
        (tmp_path / f"{name}.svg").write_text(svg)
    one, two = (inline_svg(tmp_path / f"{name}.svg") for name in ("one", "two"))
    assert one == '<svg viewBox="0 0 9 5"><g id="one-a"/><use href="#one-a"/></svg>'
    assert 'id="two-a"' in two


def test_pages_of_programs_become_html():
    found = from_markdown(
        "# Title\n\nBold **word** and `code` < 1.\n\n| a | b |\n| --- | --- |\n| x | 1.5 |\n"
    )
    assert found.startswith("<h4>Title</h4>\n<p>Bold <b>word</b> and <code>code</code> &lt; 1.</p>")
    assert '<tr><td>x</td><td class="n">1.5</td></tr>' in found


def test_names_and_times_read_well():
    assert sentence("test_rows_are_read[256 bytes]") == "rows are read: 256 bytes"
    assert [time(s) for s in (2.5, 0.0025, 2.5e-6, 2.5e-8)] == ["2.5 s", "2.5 ms", "2.5 µs", "25 ns"]
