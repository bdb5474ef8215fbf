"""How many items a second become rows on disk, beside the item module alone."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.nearline import ItemIndex, Upsert, build_snapshot
from aif_jax.nearline.row_program import BATCH, RowProgram
from workload import Built

_AT_ONCE = 16_384


def catalogue(built: Built, n: int) -> Iterator[Upsert]:
    """Yield the first n items in batches."""
    source = built.source
    for start in range(0, n, _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, n))
        columns = {name: column[rows] for name, column in source.columns.items()}
        yield Upsert(source.ids[rows], columns, source.content[rows])


def measure(built: Built, folder: Path, items: int, rounds: int) -> dict[str, Any]:
    """Time, in turns, the program alone over ready inputs, and whole builds into a file."""
    program = RowProgram(built.bundle, "item")
    source = built.source
    encoded = program.encode({name: column[:items] for name, column in source.columns.items()}, items)
    content = program.content(source.content[:items], items)
    alone, whole = [], []
    for number in range(rounds):
        began_s = time.perf_counter()
        rows = None
        for start in range(0, items, BATCH):
            part = slice(start, min(start + BATCH, items))
            ahead = program.start({name: array[part] for name, array in encoded.items()}, content[part])
            if rows is not None:
                rows()
            rows = ahead
        assert rows is not None
        rows()
        alone.append(items / (time.perf_counter() - began_s))
        path = folder / f"build-{number}"
        report = build_snapshot(ItemIndex, built.bundle, catalogue(built, items), path)
        whole.append(items / report.seconds)
        index = ItemIndex.open(built.bundle, path)
        expected = built.tables.items.gather(source.ids[:items:97])[0]
        rows = index.gather(source.ids[:items:97])[0]
        assert all(np.array_equal(rows[name], expected[name]) for name in expected)
        path.unlink()
    return {
        "items": items, "program_per_s": float(np.median(alone)), "build_per_s": float(np.median(whole)),
        "share": float(np.median(np.array(whole) / np.array(alone))), "rounds": rounds,
    }  # fmt: skip
