"""Figures of a document that no record holds."""

import pytest

from support.quoted_figures import unrecorded

RECORD = "| stage | 1.587 (1.45 to 1.78) | 4,096 |\n\np99 was 24.4 ms, 0.996 of before."


LINKED = "By a program ([record](bench/records/a.md))."


@pytest.fixture
def document(tmp_path):
    (tmp_path / "bench/records").mkdir(parents=True)
    (tmp_path / "bench/records/a.md").write_text(RECORD)

    def write(section):
        file = tmp_path / "page.md"
        file.write_text(f"# Title\n\n{section}\n\n9.99 ms and no record\n")
        return file

    return write


@pytest.mark.parametrize(
    "section",
    [
        f"{LINKED}\n\n| stage | 1.59 (1.5 to 1.78) |",
        f"| 4,096 | 1.6 |\n\n{LINKED}",
        "It took 24 ms and kept 99.6 % ([record](bench/records/a.md)), on 2 cores.",
        "As `make demo` prints:\n\n| a | 7.77 |",
        "No figure here.",
    ],
)
def test_unrecorded_figure_of_a_record_is_not_found(document, section):
    assert unrecorded(document(section)) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (f"{LINKED}\n\n| stage | 1.58 |", "1.58 stands in none of bench/records/a.md"),
        (f"| stage | 3.1 |\n\n{LINKED}", "3.1 stands in none"),
        ("It took 25 ms ([record](bench/records/a.md)).", "25 stands in none"),
        (f"{LINKED}\n\n- It took 25 ms.", "25 stands in none"),
        ("Fast:\n\n| stage | 1.59 |", "no record is named beside the table '| stage | 1.59 |'"),
    ],
)
def test_unrecorded_figure_of_no_record_is_found(document, section, message):
    (found,) = unrecorded(document(section))
    assert message in found
