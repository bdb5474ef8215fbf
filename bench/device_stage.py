"""The real-time stage over rows in device memory: checked against the CPU's stage, then timed.

    python bench/device_stage.py                            # the standard workload, first device
    JAX_PLATFORMS=cpu python bench/device_stage.py --quick  # does it run at all

A process of its own, which sees the CPU alone, builds the workload and ranks as an engine on a CPU does; its
inputs and answers are then ranked on JAX's first device. On a GPU install ``jax[cuda12]``, on a TPU
``jax[tpu]``.
"""

import argparse
import os
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
from aif_jax.nearline import ItemIndex
from aif_jax.nearline.device_rows import DeviceRows
from aif_jax.serving.device_stage import DeviceStage
from results import Result, Row, Section, arguments, row_of, sizes, workload, write
from stage.request import Case
from stage.staged import stage_contender
from workload import Workload, build

TOLERANCE = 1e-4
"""Relative: what the project allows between two ways of computing one score in float32."""


def timed(name: str, call: Callable[[], Any], rounds: int) -> Row:
    """Return the milliseconds that calls took, the first three left out."""
    spent = []
    for _ in range(rounds + 3):
        began = time.perf_counter()
        call()
        spent.append((time.perf_counter() - began) * 1e3)
    return row_of(name, spent[3:], tails=True)


def rank_on_cpu(workload: Workload, folder: Path, rounds: int) -> None:
    """Build the workload, rank, time, and save the inputs and the answer."""
    built = build(workload, folder)
    case = Case(built, workload.candidates, workload.long_length)
    stage = stage_contender(case, built)
    (order, scores), candidates = stage.run(0), stage.requests[0]
    times = timed("", lambda: stage.run(0), rounds)
    arrays = {
        **stage.state,
        **{f"context/{name}": value for name, value in case.context.items()},
        **{f"pair/{name}": column for name, column in candidates.pair.items()},
        "keys": candidates.keys, "order": order, "scores": scores,
        "cpu_ms": (times.value, *(times.quartiles or ())),
    }  # fmt: skip
    np.savez(folder / "ranked.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    built.tables.items.save(folder / "index")


def measure(workload: Workload, folder: Path, rounds: int) -> Result:
    """Rank on the device the request that was ranked on the CPU, compare, and time.

    Raises:
        AssertionError: the device's scores or order are not the CPU's.
    """
    with np.load(folder / "ranked.npz") as file:
        given = dict(file)
    keys, expected_order, expected_scores = (given.pop(name) for name in ("keys", "order", "scores"))
    cpu_ms, *cpu_quartiles = given.pop("cpu_ms").tolist()
    pair, context = (
        {name.removeprefix(prefix): a for name, a in given.items() if name.startswith(prefix)}
        for prefix in ("pair/", "context/")
    )
    length, size = workload.long_length, workload.candidates
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

    times = [
        timed("request on the device", on_device, rounds),
        row_of("of which gather", [part.gather_s * 1e3 for part in parts]),
        row_of("of which stage", [part.stage_s * 1e3 for part in parts]),
        timed(f"update of {len(some)} rows", update, rounds),
        Row("request on the CPU", cpu_ms, quartiles=(cpu_quartiles[0], cpu_quartiles[1])),
        Row("rows copied to the device", copied_s, "s"), Row("stage compiled", compiled_s, "s"),
        Row("rows in device memory", float(rows.stats()["device_bytes"]), "bytes"),
    ]  # fmt: skip
    rows.close()
    worst = np.max(np.abs(scores - expected_scores) / np.maximum(np.abs(expected_scores), 1e-30))
    result = Result(
        program="device_stage", title="Real-time stage on a device",
        question="How long does a request take over rows in device memory, and an update of rows there?",
        plan={**sizes(workload), "rounds": rounds}, sections=[Section("Times", rows=times)],
        answers=f"Scores are the CPU's within {worst:.1e} (relative); {len(moved)} places differ.",
    )  # fmt: skip
    result.environment["device"] = f"{device.device_kind} ({device.platform})"
    return result


def main(given_arguments: list[str] | None = None) -> Path | None:
    parser = arguments(__doc__, "device_stage")
    parser.add_argument("--rounds", type=int, default=200, help="requests to time")
    parser.add_argument("--cpu-part", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(given_arguments)
    whole = workload(given)
    if given.cpu_part:
        rank_on_cpu(whole, given.cpu_part, given.rounds)
        return None
    with tempfile.TemporaryDirectory() as name:
        passed = sys.argv[1:] if given_arguments is None else given_arguments
        command = [sys.executable, __file__, *passed, "--cpu-part", name]
        subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
        result = measure(whole, Path(name), given.rounds)
    result.meaningful = not given.quick
    return write(result, given.out, given.record)


if __name__ == "__main__":
    main()
