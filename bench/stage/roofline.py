"""The stage's floor: the time of each part of its work at the machine's best rate.

Parts follow one another and have different limits, so the floor is their sum. Work that is not counted costs
the floor nothing: a lower floor is a harder bar.
"""

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from results import Row
from stage.request import Case
from workload import Built

_SIGNATURE_BITS = 256
"""Bits of the signatures that the rate is about."""
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target" / "release" / "peaks"
BUILD = ("cargo", "build", "--release", "--quiet", "-p", "aif-bench", "--bin", "peaks")


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The machine's rates per second with a number of threads, from the Rust program ``peaks``.

    ``None`` where the processor lacks the instructions.
    """

    threads: int
    fma_f32_flops: float | None  # of float32 multiplications and additions in registers
    dot_bf16_flops: float | None  # of dot products of bfloat16
    signature_pairs: float | None  # pairs of 256-bit signatures compared
    score_compares: float | None  # scores compared with an edge and counted
    random_rows_bytes: float  # of item rows read in random order
    streaming_bytes: float  # read from end to end


BUSY = (
    "The machine was busy while its limits were measured (its threads together did less arithmetic than as "
    "many cores should): the floor is too high and its bar too easy. Run again when nothing else runs."
)
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


def measured_peaks(rows: int, row_bytes: int, *, build: bool) -> list[Peaks]:
    """Measure the rates with one thread and with two, over a table of ``rows`` in whole cache lines.

    Raises:
        FileNotFoundError: the program is not built, and ``build`` is false.
    """
    if build:
        subprocess.run(BUILD, cwd=ROOT, check=True)
    elif not PROGRAM.exists():
        raise FileNotFoundError(f"{PROGRAM} is not built; run: {' '.join(BUILD)}")
    lines = -(-row_bytes // 64)
    done = subprocess.run([PROGRAM, str(rows), str(64 * lines)], check=True, capture_output=True, text=True)
    return [Peaks(**rates) for rates in json.loads(done.stdout)["rates"]]


def row_bytes(built: Built) -> int:
    return sum(
        int(np.prod(shape)) * np.dtype(dtype).itemsize
        for dtype, shape in built.tables.items.store.columns.values()
    )


def parts_of(case: Case, built: Built, peaks: Peaks, precision: str = "float32") -> tuple[list[Row], float]:
    """Return the floors of the parts of the stage of one case, and their sum, in milliseconds.

    Raises:
        ValueError: the processor lacks instructions whose rate is needed.
    """
    config, n, length = built.bundle.config, case.n, case.length
    # Both floors multiply in registers; 16-bit rows may use instructions of twice the rate.
    flops = peaks.fma_f32_flops
    if precision != "float32" and peaks.dot_bf16_flops is not None:
        flops = peaks.dot_bf16_flops
    if flops is None or peaks.signature_pairs is None or peaks.score_compares is None:
        raise ValueError("peaks: this processor has no rates of arithmetic; the floor needs AVX2 or AVX-512.")
    assert peaks.fma_f32_flops is not None
    pairs, edges = n * length, len(config.tier_edges)
    simtier_s = pairs * config.signature_bits / _SIGNATURE_BITS / peaks.signature_pairs
    simtier_s += pairs * edges / peaks.score_compares
    width = config.width + config.bridges + config.content_width
    product = 2 * n * width * config.hidden
    thin = 2 * n * config.hidden * (config.tiers + 2)  # tiers, and the two slots of an item's categories
    sizes = (config.hidden, *config.head_layers, len(config.heads))
    mlp = sum(2 * n * a * b for a, b in pairwise(sizes))
    row, pair_rate = row_bytes(built), peaks.signature_pairs
    limit = f"{pair_rate / 1e9:.1f} G pairs/s, {peaks.score_compares / 1e9:.0f} G comparisons/s"
    work = f"{pairs / 1e6:.2f} M pairs of {config.signature_bits} bits, {edges} edges"
    rows = [Row("SimTier", simtier_s * 1e3, also={"work": work, "limit": limit})]
    for name, amount, unit, rate in (
        ("product with [e, w, m]", product, "FLOP", flops),
        ("MLP", mlp, "FLOP", peaks.fma_f32_flops),
        ("tiers and slots times weights", thin, "FLOP", peaks.fma_f32_flops),
        (f"rows of {row} bytes, at random", n * row, "B", peaks.random_rows_bytes),
        (f"top {case.k}", n * 4, "B", peaks.streaming_bytes),
    ):
        also = {"work": f"{amount / 1e6:.2f} M{unit}", "limit": f"{rate / 1e9:.1f} G{unit}/s"}
        rows.append(Row(name, amount / rate * 1e3, also=also))
    return rows, sum(row.value or 0.0 for row in rows)
