"""The programs at small sizes: every answer checked."""

import pytest

import compare_stage
import device_stage
import open_loop
import overlap
import publish
from results import read
from stage.contenders import COMPARISONS, WHAT

pytestmark = pytest.mark.program


@pytest.fixture
def run(tmp_path):
    """Run a program; return its sections as rows by name."""

    def run(program):
        out = program.main(["--quick", "--out", str(tmp_path / "out")])
        found = read(out / "result.json")["sections"]
        return {section["title"]: {row["name"]: row for row in section["rows"]} for section in found}

    return run


def test_compare_stage_checks_every_contender(run):
    sections = run(compare_stage)
    rows = sections["N = 256, L = 128"]
    assert WHAT.keys() <= rows.keys()
    # Another definition would be no check: exact and linear attention must differ.
    answers = " ".join(row["also"]["answers"] for row in rows.values())
    assert "definition, linear" in answers
    assert "definition, exact, as defined" in answers
    assert COMPARISONS.keys() <= sections["Bars"].keys()


def test_overlap_asks_in_every_way(run):
    sections = run(overlap)
    beyond, medians = sections["Milliseconds beyond the parts"], sections["Where the time goes"]
    assert len(beyond) == len(medians) == 3 * len(overlap.WAYS)
    for name, row in beyond.items():
        # The parts as they ran in the request cannot take longer than the whole.
        assert row["also"]["p50, its own stage"] > 0
        assert medians[name]["value"] >= medians[name]["also"]["retrieval"] >= 2.0


def test_open_loop_accounts_for_every_request(run):
    sections = run(open_loop)
    for way in ("sequential", "overlapped in plain Python", "engine"):
        for row in sections[f"Load on {way}"].values():
            also = row["also"]
            assert not row["note"]
            assert also["in time"] <= also["answered"] <= also["offered a second"] * 1.001
    assert sections["Saturation"]["engine"]["ratio"] == 1


def test_publish_answers_by_two_versions(run):
    rows = run(publish)["Milliseconds from when a request was due"]
    assert {"before", "during", "publish_p99"} <= rows.keys()
    assert sum(row["also"].get("number", 0) for row in rows.values()) == 600


def test_device_stage_runs_where_there_is_a_cpu_only(run):
    rows = run(device_stage)["Times"]
    assert rows["request on the device"]["value"] > 0
    assert rows["update of 256 rows"]["value"] > 0
