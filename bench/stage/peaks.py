"""The machine's limits, from the Rust program `peaks`."""

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target" / "release" / "peaks"
BUILD = ("cargo", "build", "--release", "--quiet", "-p", "aif-bench", "--bin", "peaks")


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Rates per second with a number of threads; ``None`` where the processor lacks the instructions.

    Attributes:
        threads: how many.
        fma_f32_flops: floating-point operations of float32 multiplications and additions in registers.
        dot_bf16_flops: the same of dot products of bfloat16.
        signature_pairs: pairs of 256-bit signatures compared.
        score_compares: scores compared with an edge and counted.
        random_rows_bytes: bytes of item rows read in random order.
        streaming_bytes: bytes read from end to end.
    """

    threads: int
    fma_f32_flops: float | None
    dot_bf16_flops: float | None
    signature_pairs: float | None
    score_compares: float | None
    random_rows_bytes: float
    streaming_bytes: float

    def to_json(self) -> dict[str, Any]:
        """Return the rates by name."""
        return dataclasses.asdict(self)


ARITHMETIC = ("fma_f32_flops", "dot_bf16_flops", "signature_pairs", "score_compares")


def best(every: Sequence[Peaks]) -> Peaks:
    """Return the best of each rate: on a busy machine, fewer threads may have done more than all."""
    rates = {
        field.name: max((value for peaks in every if (value := getattr(peaks, field.name))), default=None)
        for field in dataclasses.fields(Peaks)
    }
    return Peaks(**rates)


def busy(every: Sequence[Peaks]) -> bool:
    """Return whether more threads did not get the arithmetic of as many cores: something else was running.

    Rates are then too low, the floor is too high, and its bar too easy.
    """
    one, most = every[0], every[-1]
    pairs = [(getattr(one, name), getattr(most, name)) for name in ARITHMETIC]
    due = 0.8 * most.threads / one.threads
    return any(few and many and many < due * few for few, many in pairs)


def measure(rows: int, row_bytes: int, *, build: bool) -> list[Peaks]:
    """Measure the rates with one thread and with two.

    Args:
        rows: rows of the table that memory is read from.
        row_bytes: bytes of a row, rounded up to whole cache lines.
        build: build the program first.

    Raises:
        FileNotFoundError: it is not built, and ``build`` is false.
    """
    if build:
        subprocess.run(BUILD, cwd=ROOT, check=True)
    elif not PROGRAM.exists():
        raise FileNotFoundError(f"{PROGRAM} is not built; run: {' '.join(BUILD)}")
    lines = -(-row_bytes // 64)
    done = subprocess.run([PROGRAM, str(rows), str(64 * lines)], check=True, capture_output=True, text=True)
    return [Peaks(**rates) for rates in json.loads(done.stdout)["rates"]]
