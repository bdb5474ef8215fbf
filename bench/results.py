"""Results of benchmark programs in one JSON shape, where they were measured, and what all programs share.

A ``result.json`` is a `Result`; its fields are the documentation of the shape. `render.py` makes a page of
it, `compare_runs.py` compares two.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aif_jax.files import make_directory, write_atomic
from aif_jax.machine import cores, cpu_model
from workload import SMALL, W, Workload

PACKAGES = ("aif_jax", "jax", "jaxlib", "numpy", "onnx", "onnxruntime")


def environment() -> dict[str, Any]:
    """Return processor, memory, versions, commit and date, and how busy the machine is right now."""
    kind = re.search(r"cpu family\s*: (\d+)\s+model\s*: (\d+)", Path("/proc/cpuinfo").read_text())
    installed = {found.name: found.version for found in distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model() + (f" (cpu family {kind[1]}, model {kind[2]})" if kind else ""),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: installed.get(name, "not installed") for name in PACKAGES},
        "rustc": _output("rustc", "--version"),
        "commit": _output("git", "rev-parse", "--short=12", "HEAD"),
        "changed_since_commit": bool(_output("git", "status", "--porcelain")),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def _output(*command: str) -> str:
    folder = Path(__file__).parent
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclasses.dataclass(frozen=True)
class Row:
    name: str  # unique within its section
    value: float | None  # a median, unless the section says otherwise; `None` if there is none, see `note`
    unit: str = "ms"  # of value and quartiles: `ms`, `s`, `ratio`, `/s`, `bytes`
    quartiles: tuple[float, float] | None = None  # 25 % and 75 % over the rounds
    ratio: float | None = None  # to what `Section.ratio` names
    better: Literal["lower", "higher"] = "lower"
    also: Mapping[str, float | str | None] = dataclasses.field(default_factory=dict)  # by column
    note: str = ""  # how it was measured, or why not


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    text: str = ""  # how to read it
    rows: Sequence[Row] = ()
    value: str = "median (quartiles)"  # heading of the column of values
    ratio: str = ""  # heading of the column of ratios


@dataclasses.dataclass
class Result:
    """Everything that one run of a program found."""

    program: str  # its file without `.py`
    title: str
    question: str  # that the figures answer
    plan: Mapping[str, Any]  # sizes of the run
    answers: str  # what every answer was checked against, before it was timed
    meaningful: bool = True  # a quick run is not: it checks answers only
    sections: list[Section] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    environment: dict[str, Any] = dataclasses.field(default_factory=environment)
    command: str = ""  # to run it again

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


TAILS = {"p99": 0.99, "p99.9": 0.999, "max": 1.0}


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share))


def quartiles(values: Sequence[float] | np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the median of values, and their 25 % and 75 % quantiles."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return middle, (low, high)


def row_of(
    name: str, values: Sequence[float], unit: str = "ms", *, tails: bool = False, **fields: Any
) -> Row:
    """Return the median of values with their quartiles, and with `TAILS` and their number if wanted."""
    if tails:
        also = {tail: quantile(values, share) for tail, share in TAILS.items()}
        fields["also"] = {**also, "number": len(values), **fields.get("also", {})}
    middle, spread = quartiles(values)
    return Row(name, middle, unit, spread, **fields)


# -- programs -------------------------------------------------------------------------------------


def parser_of(doc: str | None, out: Path) -> argparse.ArgumentParser:
    """Return a parser with what every program takes: whether it is quick, and where results are written."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few requests; times mean nothing")
    parser.add_argument("--out", type=Path, default=out, help="where results are written")
    return parser


def arguments(doc: str | None, out: str, items: int = W.items) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all programs share which build a workload."""
    parser = parser_of(doc, Path("runs") / out)
    parser.add_argument("--items", type=int, default=items, help="items of the catalogue")
    parser.add_argument("--record", type=Path, help="where the page is written besides")
    return parser


def workload(given: argparse.Namespace) -> Workload:
    return SMALL if given.quick else dataclasses.replace(W, items=given.items)


def sizes(of: Workload) -> dict[str, Any]:
    names = ("items", "candidates", "short_length", "long_length", "k")
    return {**{name: getattr(of, name) for name in names}, "config": of.config.to_json()}


_BEGAN = time.monotonic()


def step(what: str) -> None:
    """Print what is done now, and how long the program has run."""
    print(f"{time.monotonic() - _BEGAN:6.0f} s  {what}", flush=True)


def write(result: Result, out: Path, record: Path | None = None) -> Path:
    """Write ``result.json`` and ``page.md`` into a folder, print the page; return the folder."""
    from render import markdown

    result.environment["load_1_min_at_end"] = environment()["load_1_min"]
    given = sys.argv[1:] if Path(sys.argv[0]).stem == Path(result.program).stem else []
    result.command = result.command or " ".join([f"python bench/{result.program}.py", *given])
    held = json.loads(json.dumps(result.to_json()))
    make_directory(out)
    write_atomic(out / "result.json", json.dumps(held, indent=1) + "\n", begins=b"{")
    text = markdown(held)
    for path in (out / "page.md", *([record] if record else [])):
        make_directory(path.parent)
        write_atomic(path, text, begins=b"#")
    print(text)
    print(f"Written: {out}", *([record] if record else []))
    return out


def read(file: Path) -> dict[str, Any]:
    """Return the result that a ``result.json`` or ``bars.json`` holds.

    Raises:
        ValueError: it is neither.
    """
    try:
        held: Any = json.loads(file.read_text(encoding="utf-8"))
        for row in [row for section in held["sections"] for row in section["rows"]]:
            _ = row["name"], row["value"], row["unit"], row["better"]
        _ = held["environment"]["cpu"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} is neither a result.json nor a bars.json of bench/: {type(error).__name__}: {error}"
        ) from error
    return held
