"""A saved run beside a new one: what got worse is named and fails, what did not is not."""

import json

import pytest

import compare_runs

CPU = {"brand_raw": "A processor", "count": 2}


def suites(path, cpu=CPU, **medians):
    held = {
        "machine_info": {"cpu": cpu, "machine": "x86_64"},
        "benchmarks": [
            {"fullname": f"bench/{n}", "group": "of 9", "stats": {"median": m}} for n, m in medians.items()
        ],
    }
    path.write_text(json.dumps(held))
    return str(path)


def bars(path, **values):
    held = {
        name: {
            "value": v,
            "unit": "ratio",
            "where": "here; jax 1",
            "better": "lower" if "p99" in name else "higher",
        }
        for name, v in values.items()
    }
    path.write_text(json.dumps(held))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return tmp_path / "before.json", tmp_path / "now.json"


def test_times_that_grew_by_more_than_a_tenth_are_named(files, capsys):
    before = suites(files[0], slow=1.0, noisy=1.0, fast=1.0)
    now = suites(files[1], slow=1.11, noisy=1.09, fast=0.5)
    assert compare_runs.main([before, now]) == 1
    kept, _, worse = capsys.readouterr().out.partition("Worse by more than 10%:")
    assert worse.split() == ["slow", "(of", "9):", "1", "->", "1.11", "s,", "11%", "worse"]
    assert "noisy (of 9): 1 -> 1.09 s, 9% worse" in kept
    assert "fast (of 9): 1 -> 0.5 s, 50% better" in kept


def test_a_run_is_no_worse_than_itself(files, capsys):
    before, now = suites(files[0], a=1.0), suites(files[1], a=1.0, b=3.0)
    assert compare_runs.main([before, now]) == 0
    assert "b (of 9): new" in capsys.readouterr().out


def test_bars_know_which_way_is_better(files, capsys):
    before = bars(files[0], times=8.0, p99=1.0, other=8.0, quality=None)
    now = bars(files[1], times=7.0, p99=1.2, other=9.0, quality=0.2)
    assert compare_runs.main([before, now]) == 1
    worse = capsys.readouterr().out.partition("Worse")[2]
    assert [name for name in ("times", "p99", "other", "quality") if name in worse] == ["times", "p99"]


def test_a_figure_that_is_gone_is_worse(files, capsys):
    assert compare_runs.main([bars(files[0], times=8.0), bars(files[1], times=None)]) == 1
    assert compare_runs.main([suites(files[0], a=1.0, b=1.0), suites(files[1], a=1.0)]) == 1
    assert capsys.readouterr().out.count("no figure now") == 2


def test_two_machines_are_said(files, capsys):
    other = {"brand_raw": "Another", "count": 64}
    assert compare_runs.main([suites(files[0], a=1.0), suites(files[1], cpu=other, a=1.0)]) == 0
    assert "Two machines: A processor, 2 cores; now Another, 64 cores" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"benchmarks": [{}]}'])
def test_other_files_are_refused(files, capsys, text):
    files[0].write_text(text)
    assert compare_runs.main([str(files[0]), suites(files[1], a=1.0)]) == 2
    assert f"{files[0]} is neither" in capsys.readouterr().err


def test_two_kinds_and_missing_files_are_refused(files, capsys):
    now = suites(files[1], a=1.0)
    assert compare_runs.main([str(files[0]), now]) == 2
    assert compare_runs.main([bars(files[0], times=8.0), now]) == 2
    assert "compare two of a kind" in capsys.readouterr().err
