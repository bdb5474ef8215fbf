"""Measure whether user sides of several requests should be computed in one batch; every answer is checked.

python bench/user_batching.py [--record FILE]

The rival is what the engine does: one call a user, side by side in as many threads as it has compute threads.
"""

import argparse
import concurrent.futures
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aif_jax.serving.threads import default_compute_threads
from stage.environment import environment
from workload import W, build

BATCHES = (2, 4, 8, 16)


def operands(bundle: Any, batch: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """Return random operands of the user program for several users with full histories."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for operand in bundle.signature("user").inputs:
        spec = operand.at({"b": batch, "l": length})
        kind = np.dtype(spec.dtype)
        if operand.path.endswith("_type"):
            made[operand.path] = np.zeros(spec.shape, kind)
        elif kind == np.uint8:
            made[operand.path] = rng.integers(0, 256, spec.shape, np.uint8)
        elif np.issubdtype(kind, np.integer):
            made[operand.path] = rng.integers(0, 2, spec.shape).astype(kind)
        else:
            made[operand.path] = rng.normal(size=spec.shape).astype(kind)
    return made


def run(call: Callable[..., Any], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in jax.block_until_ready(call(inputs)).items()}


def compare(bundle: Any, length: int, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    one = bundle.call("user", b=1, l=length)
    many = bundle.call("user", b=batch, l=length)
    together = operands(bundle, batch, length, seed=batch)
    alone = [{name: value[n : n + 1] for name, value in together.items()} for n in range(batch)]
    expected, given = [run(one, inputs) for inputs in alone], run(many, together)
    largest, same = 0.0, True
    for name, value in given.items():
        singles = np.concatenate([state[name] for state in expected])
        same = same and singles.tobytes() == value.tobytes()
        if np.issubdtype(value.dtype, np.floating):
            scale = float(np.max(np.abs(singles.astype(np.float64)))) or 1.0
            largest = max(largest, float(np.max(np.abs(value.astype(np.float64) - singles))) / scale)
    assert largest < 1e-4, f"a batch gives another state: off by {largest:.1e} of the largest value"
    batched, single = [], []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(many(together))
            middle = time.perf_counter()
            list(pool.map(lambda inputs: jax.block_until_ready(one(inputs)), alone))
            end = time.perf_counter()
            batched.append((middle - start) * 1e3 / batch)
            single.append((end - middle) * 1e3 / batch)
    ratios = [s / b for s, b in zip(single, batched, strict=True)]
    return {
        "batched": statistics.median(batched), "single": statistics.median(single),
        "ratio": statistics.median(ratios), "quartiles": statistics.quantiles(ratios, n=4),
        "bits": same, "largest": largest,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--record", type=Path, help="file to write to, instead of standard output")
    options = parser.parse_args()
    where = environment()
    built = build(W)
    threads = default_compute_threads()
    lines = [
        "# User sides in batches",
        "",
        f"User program of the standard workload (width {W.config.width}, short sequence {W.short_length}), "
        f"for b users in one call, beside b calls for one user each in {threads} threads, which is what the "
        "engine does. Milliseconds a user, medians of "
        f"{options.rounds} rounds that take turns; the ratio is of single calls to the batch, so above 1 the "
        "batch wins.",
        "",
        "| history | b | batch | single calls | ratio (quartiles) | same bits | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for length in (W.long_length // 4, W.long_length):
        for batch in BATCHES:
            found = compare(built.bundle, length, batch, threads, options.rounds)
            low, _, high = found["quartiles"]
            lines.append(
                f"| {length} | {batch} | {found['batched']:.2f} | {found['single']:.2f} | "
                f"{found['ratio']:.2f} ({low:.2f} to {high:.2f}) | {'yes' if found['bits'] else 'no'} | "
                f"{found['largest']:.0e} |"
            )
    lines += [
        "",
        f"{where['cpu']}, {where['cores']} cores, jax {where['jax']}, Python {where['python']}, "
        f"commit {where['commit']}, {where['date'][:10]}. `python bench/user_batching.py`",
    ]
    text = "\n".join(lines) + "\n"
    if options.record is None:
        sys.stdout.write(text)
    else:
        options.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
