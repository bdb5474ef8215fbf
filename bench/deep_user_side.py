"""Cost of a deep user side by its number of layers: user programs of 1 and 8 users, stage, bytes of a state.

    python bench/deep_user_side.py --layers 0,1,2,2:128,4,4:128 --rounds 15

``2:128`` are two layers whose ``encoder_reach`` is 128. Models take turns, so that a busy moment meets all of
them. Weights are random: cost does not depend on them.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving import EngineConfig, Shapes
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_program import compute_states
from aif_jax.serving.user_states import UserState
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


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", default="0,1,2,2:128,4,4:128")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--items", type=int, default=W.items)
    parser.add_argument("--wait-for", type=Path, help="measure only once this file is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
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
            cells = []
            for place in range(len(NAMES)):
                low, middle, high = statistics.quantiles(times[name, place], n=4)
                cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            print(f"| {name} | {' | '.join(cells)} | {size:,} |")


if __name__ == "__main__":
    main()
