"""Notebooks of the documents: executed as they stand, and their cells run."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from support.processes import shared_compilations

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
SMALLER = {
    "first-model": {"1_500, 1_200, 24, 90_000": "200, 300, 8, 8_000", 'budget="6m"': "budget=20"},
    "hidden-time": {
        "n_items=8_000": "n_items=1_500", "history=1_100": "history=200",
        "long_length=1_024": "long_length=64",
        "4_096, replace": "1_000, replace", "range(150)": "range(12)", "requests[:40]": "requests[:4]",
    },
}  # fmt: skip
"""Sizes that the tests change, so that a notebook takes seconds."""


@pytest.mark.parametrize("name", SMALLER)
def test_notebook_as_it_stands_was_run_from_top_to_bottom(name: str) -> None:
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= 5
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALLER)
def test_notebook_cells_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in shared_compilations().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for old, new in SMALLER[name].items():
        assert [cell for cell in book.cells if old in cell.source], old
        for cell in book.cells:
            cell.source = cell.source.replace(old, new)
    client = NotebookClient(book, timeout=600, resources={"metadata": {"path": os.fspath(tmp_path)}})
    client.execute()
