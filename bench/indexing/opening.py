"""How long a snapshot takes to save and to open, and what serving from the file costs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.nearline import ItemIndex
from workload import Built

WAYS: dict[str, dict[str, bool]] = {
    "mapped, every row checked (the default)": {},
    "mapped, rows not read": {"verify": False},
    "mapped at once, rows not checked": {"verify": False, "prefault": True},
    "copied into memory, every row checked": {"mapped": False},
}


def measure(built: Built, folder: Path, rounds: int) -> dict[str, Any]:
    """Save the workload's index, open it in each way, and gather W's candidates from each.

    Returns:
        Seconds of the save, bytes of the file, and by way: seconds to open (median over rounds) and how often
        the time of the index in memory a gather takes (median over rounds).
    """
    path = folder / "items.aifrows"
    began_s = time.perf_counter()
    built.tables.items.save(path)
    saved_s = time.perf_counter() - began_s
    found: dict[str, Any] = {"save_s": saved_s, "bytes": path.stat().st_size, "ways": {}}
    expected = built.tables.items.gather(built.candidates)[0]
    opened = {name: ItemIndex.open(built.bundle, path, **options) for name, options in WAYS.items()}
    for name, index in opened.items():
        rows, there = index.gather(built.candidates)
        assert there.all()
        assert all(np.array_equal(rows[column], expected[column]) for column in expected), name
    open_s = {
        name: [
            _timed(lambda o=options: ItemIndex.open(built.bundle, path, **o)) for _ in range(min(rounds, 7))
        ]
        for name, options in WAYS.items()
    }
    rng = np.random.default_rng(0)
    size = len(built.candidates)
    gathers: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(rounds * 20):
        keys = rng.choice(built.source.ids, size, replace=False)
        base_s = _timed(lambda k=keys: built.tables.items.gather(k))
        for name, index in opened.items():
            gathers[name].append(_timed(lambda k=keys, i=index: i.gather(k)) / base_s)
    for name in WAYS:
        found["ways"][name] = {
            "open_s": float(np.median(open_s[name])), "gather_ratio": float(np.median(gathers[name])),
        }  # fmt: skip
    return found


def _timed(call: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s
