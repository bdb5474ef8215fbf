"""Results: one page of them, and a comparison of two."""

import json
import re

import pytest

import compare_runs
import run_all
from render import markdown, number
from results import Result, Row, Section, read, row_of, write

CPU = {"brand_raw": "A processor", "count": 2}


def result(**values):
    rows = [
        Row(name, value, "ratio", better="lower" if "p99" in name else "higher")
        for name, value in values.items()
    ]
    return Result(
        "measure_bars", "Bars", "Does it hold?", {}, "Checked.", sections=[Section("Bars", rows=rows)]
    )


def saved(path, **values):
    path.write_text(json.dumps(result(**values).to_json()))
    return str(path)


def suites(path, cpu=CPU, **medians):
    benchmarks = [
        {
            "name": f"test_{name}", "fullname": f"bench/{name}", "group": "of 9",
            "extra_info": {"recall": 0.987}, "stats": {"median": median, "q1": median, "q3": median},
        }
        for name, median in medians.items()
    ]  # fmt: skip
    path.write_text(json.dumps({"machine_info": {"cpu": cpu, "machine": "x86"}, "benchmarks": benchmarks}))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return tmp_path / "before.json", tmp_path / "now.json"


def test_page_holds_figures_pictures_and_notes(tmp_path, capsys):
    made = result(fast=8.0)
    plot = {
        "name": "picture",
        "kind": "bars",
        "title": "Times",
        "x": "ms",
        "log": "x",
        "kinds": {"a|b": "ours"},
    }
    rows = [row_of("a|b", [1.0, 2.0, 3.0], ratio=1.5, also={"seen": "x"}), Row("gone", None, note="why")]
    made.sections.append(Section("Times", "How to read.", rows, ratio="times", plots=(plot,)))
    made.notes.append("A note.")
    made.meaningful = False
    out = write(made, tmp_path / "out", tmp_path / "record.md")
    page = (tmp_path / "record.md").read_text()
    assert page in capsys.readouterr().out
    assert "|  | median (quartiles), ms | times | seen | note |" in page
    assert "| a\\|b | 2 (1.5 to 2.5) | 1.5 | x |  |" in page
    assert "| gone |  |  |  | why |" in page
    for part in ("A quick run", "Checked.", "How to read.", "A note."):
        assert part in page
    assert all((out / f"picture.{kind}").stat().st_size > 5_000 for kind in ("png", "svg"))
    assert markdown(read(out / "result.json")) == page


def test_report_names_absent_parts_and_failures(tmp_path, monkeypatch, capsys):
    suites(tmp_path / "suites.json", slow=0.002)
    bars = saved(tmp_path / "bars.json", fast=8.0)
    monkeypatch.setattr(run_all, "parts", lambda out, quick: {"overlap": (["false"], "no time")})
    assert run_all.main(["--out", str(tmp_path), "--bars", bars]) == 1
    page = (tmp_path / "report.html").read_text()
    for part in ("<td>slow</td>", "<td>0.987</td>", "<h1>Bars", "overlap: ended with 1: false"):
        assert part in page
    assert "Not in this run: compare_stage, overlap, open_loop, publish, item_index." in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "failed: overlap" in capsys.readouterr().err


def test_report_refuses_unknown_parts(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_all.main(["--out", str(tmp_path), "--only", "everything"])
    assert "expected some of suites, compare_stage" in capsys.readouterr().err


def test_every_part_of_the_report_has_a_program(tmp_path):
    for command, _ in run_all.parts(tmp_path, quick=True).values():
        assert command[1] == "-m" or (run_all.BENCH / command[1]).is_file()


def test_numbers_have_three_digits():
    numbers = (1234567.8, 1000, 12.345, 0.001234, 1.8e-7, float("nan"), None, "x")
    assert [number(n) for n in numbers] == [
        "1,234,568", "1,000", "12.3", "0.00123", "1.8e-07", "nan", "", "x",
    ]  # fmt: skip


def test_comparison_names_times_that_grew_by_a_tenth(files, capsys):
    before = suites(files[0], slow=1.0, noisy=1.0, fast=1.0, gone=1.0)
    now = suites(files[1], slow=1.11, noisy=1.09, fast=0.5, more=1.0)
    assert compare_runs.main([before, now]) == 1
    kept, _, worse = capsys.readouterr().out.partition("Worse by more than 10%:")
    assert "slow (of 9): 1000 -> 1110 ms, 11% worse" in worse
    assert "gone (of 9): 1000 ms before, no figure now" in worse
    assert "noisy (of 9): 1000 -> 1090 ms, 9% worse" in kept
    assert "fast (of 9): 1000 -> 500 ms, 50% better" in kept
    assert "more (of 9): new" in kept


def test_comparison_knows_the_better_direction_of_bars(files, capsys):
    before = saved(files[0], times=8.0, p99=1.0, other=8.0, quality=None)
    assert compare_runs.main([before, before]) == 0
    assert compare_runs.main([before, saved(files[1], times=7.0, p99=1.2, other=9.0, quality=0.2)]) == 1
    worse = capsys.readouterr().out.rpartition("Worse")[2]
    assert [name for name in ("times", "p99", "other", "quality") if name in worse] == ["times", "p99"]


def test_comparison_shows_two_machines(files, capsys):
    other = {"brand_raw": "Another", "count": 64}
    assert compare_runs.main([suites(files[0], a=1.0), suites(files[1], cpu=other, a=1.0)]) == 0
    assert "Two machines: A processor, 2 cores; now Another, 64 cores" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"benchmarks": [{}]}'])
def test_comparison_refuses_other_files(files, capsys, text):
    files[0].write_text(text)
    assert compare_runs.main([str(files[0]), suites(files[1], a=1.0)]) == 2
    assert f"{files[0]} is neither" in capsys.readouterr().err


def test_comparison_refuses_two_programs_and_missing_files(files, capsys):
    now = suites(files[1], a=1.0)
    assert compare_runs.main([str(files[0]), now]) == 2
    assert compare_runs.main([saved(files[0], times=8.0), now]) == 2
    assert "give two of one program" in capsys.readouterr().err
