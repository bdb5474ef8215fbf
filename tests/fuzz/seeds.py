"""Kept inputs of the fuzz targets: for each a file of bytes literals, one a line."""

import ast
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "seeds"


def read_seeds(name: str) -> list[bytes]:
    """Return the kept inputs of a target."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="ascii").splitlines()
    return [ast.literal_eval(line) for line in lines if line and not line.startswith("#")]


def add_seeds(name: str, inputs: Iterable[bytes], *, max_bytes: int) -> None:
    """Add inputs to those of a target, as long as its file has at most so many bytes."""
    path, known = FOLDER / f"{name}.txt", set(read_seeds(name))
    text = path.read_text(encoding="ascii")
    for data in inputs:
        if data not in known and len(text) + len(line := f"{data!r}\n") <= max_bytes:
            text += line
    path.write_text(text, encoding="ascii")
