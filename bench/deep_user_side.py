"""Cost of a deep user side by its number of layers: user programs of 1 and 8 users, stage, bytes of a state.

    python bench/deep_user_side.py --layers 0,1,2,2:128,4,4:128 --rounds 15

With `--extend 1,8,32` user programs alone: states computed whole, and extended by so many behaviours, for the
history lengths of `--lengths`.

``2:128`` are two layers whose ``encoder_reach`` is 128. Models take turns, so that a busy moment meets all of
them. Weights are random: cost does not depend on them.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.features.continuation import Kept
from aif_jax.serving import EngineConfig, Shapes, UserStateCache
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_program import compute_states
from aif_jax.serving.user_states import UserState
from aif_jax.types import UserRecord
from stage.request import TURNS, Case
from workload import W, build

USERS = 8
NAMES = ("user side of 1, ms", f"user side of {USERS}, ms", "stage, ms")


def calls_of(name: str, items: int, folder: Path) -> tuple[tuple[Callable[[int], object], ...], int]:
    """Return what is measured of a model with such layers, by `NAMES`, and the bytes of a state."""
    layers, _, reach = name.partition(":")
    config = W.config.replace(encoder_layers=int(layers), encoder_reach=int(reach or 0))
    built = build(dataclasses.replace(W, items=items, config=config), folder)
    case = Case(built, W.candidates, W.long_length)
    shapes = Shapes(candidates=(case.n,), histories=(case.length,), users=(USERS,))
    generation = Generation(built.bundle, built.tables, EngineConfig(k=case.k, shapes=shapes))
    generation.warm()

    def user_side(users: int) -> list[Mapping[str, Any]]:
        states = compute_states([(n, case.user) for n in range(users)], case.length, generation)
        return jax.block_until_ready([state.leaves for state in states if isinstance(state, UserState)])

    (leaves,) = user_side(1)
    shared = generation.prepare(leaves, case.length, case.context)
    requests = [
        check_candidates(ids, pair, built.bundle.schema, generation.raw_pair, EncodeReport())
        for ids, pair in zip(case.ids, case.raw_pair, strict=True)
    ]
    calls = (
        lambda turn: user_side(1),
        lambda turn: user_side(USERS),
        lambda turn: generation.score(shared, requests[turn % TURNS], case.k),
    )
    return calls, sum(np.asarray(leaf).nbytes for leaf in leaves.values())


def extending_calls(
    layers: int, length: int, items: int, new: Sequence[int], folder: Path
) -> tuple[dict[tuple[int, str], Callable[[], object]], int]:
    """Return user sides by users and way, each checked against the whole, and the bytes kept for a user."""
    config = W.config.replace(encoder_layers=layers, long_length=length)
    case = Case(
        build(dataclasses.replace(W, items=items, long_length=length, config=config), folder), 512, length
    )
    built, record = case.built, case.user
    shapes = Shapes(candidates=(512,), histories=(length,), users=(USERS,))
    plain, extending = (
        Generation(
            built.bundle, built.tables,
            EngineConfig(k=case.k, shapes=shapes, user_states=UserStateCache(extend=extend)),
        )
        for extend in (False, True)
    )  # fmt: skip
    plain.warm()
    extending.warm()

    def states(
        generation: Generation, record: UserRecord, users: int, kept: Kept | None = None
    ) -> list[UserState]:
        found = compute_states([(n, record) for n in range(users)], length, generation, kept=[kept] * users)
        assert all(isinstance(state, UserState) for state in found)
        jax.block_until_ready([state.leaves for state in found])
        return found

    def before(n: int) -> Kept:
        rest = dataclasses.replace(record, items=record.items[n:], types=record.types[n:])
        kept = states(extending, rest, 1)[0].kept
        return kept._replace(columns={name: np.asarray(column) for name, column in kept.columns.items()})

    kept = {n: before(n) for n in new} if extending.kept else {}
    (expected,) = states(plain, record, 1)
    for each in kept.values():
        (state,) = states(extending, record, 1, each)
        assert state.why == "extended", state.why
        for name, leaf in expected.leaves.items():
            np.testing.assert_allclose(state.leaves[name], leaf, rtol=1e-4, atol=1e-5)
    calls: dict[tuple[int, str], Callable[[], object]] = {}
    for users in (1, USERS):
        calls[users, "whole"] = partial(states, plain, record, users)
        if kept:
            calls[users, "whole, kept"] = partial(states, extending, record, users)
        calls |= {
            (users, f"by {n}"): partial(states, extending, record, users, one) for n, one in kept.items()
        }
    size = sum(column.nbytes for each in kept.values() for column in each.columns.values()) // max(
        1, len(kept)
    )
    return calls, size


def measure_extending(options: argparse.Namespace, folder: Path) -> None:
    """Measure user sides, and print a table in Markdown."""
    new = [int(n) for n in options.extend.split(",")]
    depths = [int(name) for name in options.layers.split(",") if ":" not in name]  # a reach keeps nothing
    ways = ["whole", "whole, kept", *(f"by {n}" for n in new)]
    print(f"| length | layers | users | {' | '.join(ways)} | bytes kept |")
    print(f"|---|---|---|{'---|' * (len(new) + 3)}")
    for length in map(int, options.lengths.split(",")):
        models = {
            layers: extending_calls(layers, length, options.items, new, folder / f"{layers}-{length}")
            for layers in depths
        }
        calls = {(layers, *way): call for layers, (own, _) in models.items() for way, call in own.items()}
        times: dict[Any, list[float]] = {way: [] for way in calls}
        for _ in range(options.rounds):
            for way, call in calls.items():
                start = time.perf_counter()
                call()
                times[way].append(1e3 * (time.perf_counter() - start))
        for layers, (_, size) in models.items():
            for users in (1, USERS):
                cells = [
                    _cell(times[way]) if (way := (layers, users, name)) in times else "" for name in ways
                ]
                print(f"| {length} | {layers} | {users} | {' | '.join(cells)} | {size:,} |", flush=True)


def _cell(times: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", default="0,1,2,2:128,4,4:128")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--items", type=int, default=W.items)
    parser.add_argument("--wait-for", type=Path, help="measure only once this file is there")
    parser.add_argument("--extend", help="behaviours that states are extended by")
    parser.add_argument("--lengths", default="256,1024", help="history lengths, with --extend")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.extend:
            measure_extending(options, Path(folder))
            return
        models = {
            name: calls_of(name, options.items, Path(folder) / name) for name in options.layers.split(",")
        }
        while options.wait_for is not None and not options.wait_for.exists():
            time.sleep(0.5)
        times = {(name, place): [] for name in models for place in range(len(NAMES))}
        for turn in range(options.rounds):
            for place in range(len(NAMES)):
                # Each begins as often as the others, and the first stage after a user side finds cold caches.
                order = sorted(models, key=lambda name: (list(models).index(name) + turn) % len(models))
                for name in order:
                    calls = models[name][0]
                    if place == 2:
                        calls[place](turn)
                    for again in range(3 if place == 2 else 1):
                        start = time.perf_counter()
                        calls[place](turn + again)
                        times[name, place].append(1e3 * (time.perf_counter() - start))
        print(f"| layers:reach | {' | '.join(NAMES)} | bytes of a state |\n|---|{'---|' * (len(NAMES) + 1)}")
        for name, (_, size) in models.items():
            cells = [_cell(times[name, place]) for place in range(len(NAMES))]
            print(f"| {name} | {' | '.join(cells)} | {size:,} |")


if __name__ == "__main__":
    main()
