"""Measure whether user sides of several requests should be computed in one batch; every answer is checked.

python bench/user_batching.py [--record FILE]

First the user program alone. The rival is what the engine does without batches: one call a user, side by side
in as many threads as it has compute threads. Then whole requests through engines that differ in batches only.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from aif_jax.serving import Engine, EngineConfig, Ranking
from aif_jax.serving.threads import default_compute_threads
from aif_jax.types import Candidates
from stage.environment import environment
from workload import Built, W, build

BATCHES = (2, 4, 8, 16)

USERS = 32
"""Requests of one round, each of another user whose state is not cached."""

ENGINES: dict[str, tuple[int, ...]] = {"none": (), "4": (4,), "8": (8,), "16": (16,)}
"""``user_batches`` of the engines that are compared; the first is the rival."""


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


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to rank for `USERS` users."""

    name: str
    batching: Literal["rank_many", "all"]
    rank: Callable[[Engine], list[Ranking]]


async def _at_once(engine: Engine) -> list[Ranking]:
    return list(await asyncio.gather(*(engine.rank_async(user) for user in range(USERS))))


WAYS = (
    Way("`rank_many`", "rank_many", lambda engine: engine.rank_many(range(USERS))),
    Way("`rank_many_async`", "rank_many", lambda engine: asyncio.run(engine.rank_many_async(range(USERS)))),
    Way("`rank_async`, all at once", "all", lambda engine: asyncio.run(_at_once(engine))),
)


def whole_requests(built: Built, way: Way, candidates: int, rounds: int) -> list[str]:
    """Time rounds of requests through engines in turns; return lines of the table."""
    case = Candidates(built.candidates[:candidates], {n: c[:candidates] for n, c in built.pair.items()})
    found: dict[str, list[float]] = {name: [] for name in ENGINES}
    shared: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                Engine(
                    built.bundle, built.index, built.behaviours,
                    users=lambda _: built.user, retrieve=lambda _: case,
                    config=EngineConfig(
                        k=100, buckets=(max(candidates, 512),), long_buckets=(W.long_length,),
                        user_state_bytes=0, user_batches=sizes, user_batching=way.batching,
                    ),
                )
            )
            for name, sizes in ENGINES.items()
        }  # fmt: skip
        expected = engines["none"].rank(0)
        for number in range(rounds + 2):
            for name, engine in engines.items():
                began = time.perf_counter()
                rankings = way.rank(engine)
                took = (time.perf_counter() - began) * 1e3 / USERS
                for ranking in rankings:
                    np.testing.assert_allclose(ranking.scores, expected.scores, rtol=1e-4, atol=1e-5)
                shared[name] = statistics.mean(ranking.report.user_batch for ranking in rankings)
                if number >= 2:
                    found[name].append(took)
    lines = []
    for name, times in found.items():
        ratios = [rival / own for rival, own in zip(found["none"], times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"| {way.name} | {candidates:,} | {name} | {statistics.median(times):.2f} | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) | {shared[name]:.1f} |"
        )
    return lines


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
        f"Whole requests of {USERS} users whose states are not cached, history {W.long_length:,}, through "
        "engines that differ in `user_batches`, in turns: milliseconds a request, and the ratio of the "
        "engine without batches to this one. Users in a call are means over the last round.",
        "",
        "| requests | candidates | batches | ms | ratio (quartiles) | users in a call |",
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        for candidates in (512, W.candidates):
            lines += whole_requests(built, way, candidates, options.rounds // 3)
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
