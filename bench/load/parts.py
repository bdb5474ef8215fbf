"""A request's parts by themselves, as the engine runs them: user side, stage, retrieval."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.generation import Generation
from aif_jax.serving.priors import Priors
from aif_jax.serving.stage import Shared
from aif_jax.serving.user_program import compute_state
from aif_jax.types import Candidates, Request, UserRecord
from load.service import CONTEXT_OF_REQUESTS, REQUESTS, Answer, Service
from load.ways import engine_config


class Parts:
    """User side and real-time stage of the service's requests, called directly, without an engine."""

    def __init__(self, service: Service):
        self._service = service
        built = service.built
        self._generation = Generation(built.bundle, built.tables, engine_config(service))
        self._generation.warm()
        schema, raw = built.bundle.schema, self._generation.raw_pair
        self._candidates = []
        for number in range(REQUESTS):
            found = service.candidates(number)
            self._candidates.append(check_candidates(found.ids, found.pair, schema, raw, EncodeReport()))
        self._context = schema.encode_one("context", CONTEXT_OF_REQUESTS)
        self._shared = [self.user_side(number) for number in range(REQUESTS)]

    def user_side(self, number: int) -> Shared:
        """Compute a user's state from the record and lay it out for the stage; wait for it."""
        return self.user_side_of(self._service.user(number))

    def user_side_of(self, record: UserRecord, *, long_sequence: bool = True) -> Shared:
        """Compute a user side, with or without the long sequence of the record; wait for it."""
        length = self._service.shared.length
        state = compute_state(0, record, length, self._generation, long=long_sequence)
        shared = self._generation.prepare(state.leaves, state.length, self._context)
        jax.block_until_ready(state.leaves)
        return shared

    def stage(self, number: int, shared: Shared | None = None) -> Answer:
        """Score the candidates of a request for its user side, both checked and computed beforehand."""
        shared, candidates = shared or self._shared[number % REQUESTS], self._candidates[number % REQUESTS]
        scored = self._generation.score(shared, candidates, self._service.k)
        return Answer(candidates.ids[scored.order], scored.scores)

    def by_item_prior(self, number: int) -> Answer:
        """Rank the candidates of a request by their items' priors."""
        candidates = self._candidates[number % REQUESTS]
        scored = Priors(self._generation).by_item_prior(candidates, self._service.k)
        return Answer(candidates.ids[scored.order], scored.scores)


class Retrieval:
    """A retrieval that takes a while in one of several ways, and remembers when it last ran.

    Args:
        service: whose candidates it finds.
        ms: how long it takes.
        kind: ``sleeps``, ``is a coroutine`` (that sleeps), or ``computes`` (in Python, holding the GIL).
    """

    def __init__(self, service: Service, ms: float, kind: str):
        self._service = service
        self.ms = ms
        self.kind = kind
        self.began_s = self.ended_s = 0.0
        self.function: Callable[[Request], Any] = {
            "sleeps": self._sleep, "is a coroutine": self._coroutine, "computes": self._compute,
        }[kind]  # fmt: skip
        self._steps = _steps_in(ms) if kind == "computes" else 0

    def alone(self) -> None:
        """Take the time without finding anything, in a plain function."""
        if self.kind == "computes":
            burn(self._steps)
        else:
            time.sleep(self.ms / 1e3)

    def _sleep(self, request: Request) -> Candidates:
        self.began_s = time.perf_counter()
        time.sleep(self.ms / 1e3)
        return self._found(request)

    async def _coroutine(self, request: Request) -> Candidates:
        self.began_s = time.perf_counter()
        await asyncio.sleep(self.ms / 1e3)
        return self._found(request)

    def _compute(self, request: Request) -> Candidates:
        self.began_s = time.perf_counter()
        burn(self._steps)
        return self._found(request)

    def _found(self, request: Request) -> Candidates:
        found = self._service.candidates(int(request.user))
        self.ended_s = time.perf_counter()
        return found


def burn(steps: int) -> int:
    """Compute in Python for a fixed number of steps."""
    value = 1
    for _ in range(steps):
        value = (value * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
    return value


def _steps_in(ms: float) -> int:
    trial, times = 20_000, []
    for _ in range(9):
        began = time.perf_counter()
        burn(trial)
        times.append(time.perf_counter() - began)
    return round(trial * ms / 1e3 / float(np.median(times)))
