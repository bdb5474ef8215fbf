"""The real-time stage over rows in device memory: checked against the CPU's stage, then timed.

    PYTHONPATH=bench python bench/device_stage.py                      # the standard workload, first device
    JAX_PLATFORMS=cpu PYTHONPATH=bench python bench/device_stage.py --small   # does it run at all

A process of its own, which sees the CPU alone, builds the workload and ranks as an engine on a CPU does;
what it wrote down is then ranked on JAX's first device. On a GPU install ``jax[cuda12]``, on a TPU
``jax[tpu]``.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.config import ModelConfig
from aif_jax.features import EncodeReport
from aif_jax.nearline import ItemIndex
from aif_jax.nearline.device_rows import DeviceRows
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.config import EngineConfig, Shapes
from aif_jax.serving.device_stage import DeviceStage
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_program import compute_state
from workload import W, Workload, build

SMALL = Workload(
    items=2000, candidates=256, short_length=20, long_length=64, k=64,
    config=ModelConfig(
        width=16, hidden=32, head_layers=(16,), item_layers=(16,), content_width=16, value_width=16,
        bridges=4, short_length=20, long_length=64,
    ),
)  # fmt: skip
TOLERANCE = 1e-4
"""Relative: what the project allows between two ways of computing one score in float32."""


def timed(call: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Return percentiles of the milliseconds that calls took, the first three left out."""
    spent = []
    for _ in range(rounds + 3):
        began = time.perf_counter()
        call()
        spent.append((time.perf_counter() - began) * 1e3)
    quantiles = np.percentile(spent[3:], (50, 99))
    return {
        "p50_ms": round(quantiles[0], 3),
        "p99_ms": round(quantiles[1], 3),
        "max_ms": round(max(spent[3:]), 3),
    }


def rank_on_cpu(workload: Workload, folder: Path, rounds: int) -> None:
    """Build the workload, rank, and write down what was ranked and what came of it."""
    built = build(workload, folder)
    shapes = Shapes(candidates=(workload.candidates,), histories=(workload.long_length,))
    bundle = built.bundle
    generation = Generation(bundle, built.tables, EngineConfig(k=workload.k, shapes=shapes))
    generation.warm()
    state = compute_state(1, built.user, workload.long_length, generation).leaves
    context = bundle.schema.encode_one("context", {"page": 1})
    candidates = check_candidates(
        built.candidates, built.pair, bundle.schema, generation.raw_pair, EncodeReport()
    )
    shared = generation.prepare(state, workload.long_length, context)

    def rank() -> Any:
        return generation.score(shared, candidates, workload.k)

    expected = rank()
    arrays = {
        **state,
        **{f"context/{name}": value for name, value in context.items()},
        **{f"pair/{name}": column for name, column in candidates.pair.items()},
        "keys": candidates.keys, "order": expected.order, "scores": expected.scores,
    }  # fmt: skip
    np.savez(folder / "ranked.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    built.tables.items.save(folder / "index")
    times = {"programs": bundle.kind, **timed(rank, rounds)}
    (folder / "times.json").write_text(json.dumps(times))


def measure(workload: Workload, folder: Path, rounds: int) -> dict[str, Any]:
    """Rank on the device what was ranked on the CPU, compare, time; return the record.

    Raises:
        AssertionError: the device's scores or order are not the CPU's.
    """
    with np.load(folder / "ranked.npz") as file:
        given = dict(file)
    keys, expected_order, expected_scores = (given.pop(name) for name in ("keys", "order", "scores"))
    pair = {name.removeprefix("pair/"): a for name, a in given.items() if name.startswith("pair/")}
    length, size, n = workload.long_length, workload.candidates, len(keys)
    device = jax.devices()[0]
    bundle = Bundle.load(folder / "bundle", prefer="portable")
    index = ItemIndex.open(bundle, folder / "index")
    began = time.perf_counter()
    rows = DeviceRows(index, device)
    copied_s = time.perf_counter() - began
    began = time.perf_counter()
    stage = DeviceStage(rows, bundle, (size,), (length,))
    compiled_s = time.perf_counter() - began
    # As an engine on this device would have it: the user state is there already.
    context = {name.removeprefix("context/"): a for name, a in given.items() if name.startswith("context/")}
    leaves = {name: array for name, array in given.items() if name.startswith("state/")}
    shared = stage.prepare(leaves, length, context)

    def on_device() -> Any:
        return stage.score(shared, keys, pair, size)

    part = on_device()
    order, scores = part.order[: workload.k], part.scores[: workload.k]
    np.testing.assert_allclose(scores, expected_scores, rtol=TOLERANCE)
    # Where the order differs, the scores that changed places must be equal within the tolerance.
    by_position = dict(zip(part.order.tolist(), part.scores.tolist(), strict=True))
    moved = np.flatnonzero(order != expected_order)
    for place in moved:
        other = by_position.get(int(expected_order[place]), float(part.scores[-1]))
        np.testing.assert_allclose(other, scores[place], rtol=2 * TOLERANCE)
    parts = [on_device() for _ in range(rounds)]
    some = np.ascontiguousarray(keys[:1024])
    fresh, _ = index.gather(some)
    fresh = {name: np.ascontiguousarray(fresh[name]) for name in rows.columns}

    read, found = rows.read(some)
    assert found.all()
    for name, column in read.items():
        np.testing.assert_array_equal(column, fresh[name])

    def update() -> None:
        rows.apply(some, fresh)
        rows.read(some[:1])  # which waits for the update

    record = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": f"{device.device_kind} ({device.platform})",
        "host": f"{platform.machine()}, {platform.system()}", "jax": jax.__version__,
        "items": workload.items, "N": n, "L": length, "S": workload.short_length, "k": workload.k,
        "largest_relative_difference": float(
            np.max(np.abs(scores - expected_scores) / np.maximum(np.abs(expected_scores), 1e-30))
        ),
        "places_that_differ": len(moved),
        "device_rows_bytes": rows.stats()["device_bytes"],
        "rows_copied_in_s": round(copied_s, 2), "stage_compiled_in_s": round(compiled_s, 2),
        "request": timed(on_device, rounds),
        "of_which_gather_p50_ms": round(float(np.median([p.gather_s for p in parts])) * 1e3, 3),
        "of_which_stage_p50_ms": round(float(np.median([p.stage_s for p in parts])) * 1e3, 3),
        f"update_of_{len(some)}_rows": timed(update, rounds),
        "same_on_the_cpu": json.loads((folder / "times.json").read_text()),
    }  # fmt: skip
    rows.close()
    return record


def main() -> None:
    """Parse the command line, measure, print the record and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a workload that runs anywhere, in seconds")
    parser.add_argument("--items", type=int, help="items of the catalogue")
    parser.add_argument("--rounds", type=int, default=200, help="requests to time")
    parser.add_argument("--cpu-part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help="append the record to this file, one JSON object a line")
    arguments = parser.parse_args()
    workload = SMALL if arguments.small else W
    if arguments.items:
        workload = dataclasses.replace(workload, items=arguments.items)
    if arguments.cpu_part:
        return rank_on_cpu(workload, arguments.cpu_part, arguments.rounds)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, *sys.argv[1:], "--cpu-part", name]
        subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
        record = measure(workload, Path(name), arguments.rounds)
    print(json.dumps(record, indent=1))
    if arguments.record:
        with arguments.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
