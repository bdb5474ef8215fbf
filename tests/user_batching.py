"""Engines that compute user sides in batches, and what their tests ask of them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aif_jax.serving import Engine, EngineConfig
from aif_jax.types import Candidates, UserRecord
from served import Served, World

Make = Callable[..., Engine]

BROKEN = 99
"""A user whose record is malformed."""


@contextlib.contextmanager
def batching_engines(one: Served, world: World) -> Iterator[Make]:
    """Give a function from fields of `EngineConfig` to an engine, which is closed in the end."""

    def source(user: Any) -> UserRecord | None:
        if user == "nobody":
            return None
        record = world.record(int(user))
        return UserRecord(record.features, record.items, record.types[:-1]) if user == BROKEN else record

    with contextlib.ExitStack() as stack:

        def factory(**changes: Any) -> Engine:
            config = {
                "k": 10, "buckets": (32,), "long_buckets": (8, 24), "compute_threads": 2,
                "blocking_threads": 8, "user_batches": (2, 4), "unknown_user": "default", **changes,
            }  # fmt: skip
            return stack.enter_context(
                Engine(
                    *one,
                    users=source,
                    retrieve=lambda _: Candidates(*world.candidates(30)),
                    config=EngineConfig(**config),
                )
            )

        yield factory


def ranked(pendings: Any, world: World) -> list[Any]:
    return [pending.rank(*world.candidates(20)) for pending in pendings]


def batches(rankings: Any) -> list[int]:
    return [ranking.report.user_batch for ranking in rankings]


def assert_alike(rankings: Any, others: Any) -> None:
    """Check that rankings are the same but for the last bits of their scores."""
    for one, other in zip(rankings, others, strict=True):
        assert one.report.user == other.report.user
        assert dict(zip(one.ids.tolist(), one.scores.tolist(), strict=True)) == pytest.approx(
            dict(zip(other.ids.tolist(), other.scores.tolist(), strict=True)), rel=1e-5, abs=1e-6
        )


def settled(engine: Engine) -> bool:
    """Return whether nothing is left, once what was given up midway has ended."""
    sides, end = engine._release.user_sides, time.perf_counter() + 30
    while sides._flights._flights or any(sides._batches._waiting.values()):
        if time.perf_counter() > end:
            return False
        time.sleep(0.001)
    return True
