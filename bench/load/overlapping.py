"""The time of a request beyond max(retrieval, user side) + stage.

Every round asks the same request once in every way, in an order drawn anew, and runs the parts alone.
"""

import asyncio
import dataclasses
import gc
import itertools
import random
import time
import types
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving import Engine, Ranking
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.generation import Generation
from aif_jax.serving.priors import Priors
from aif_jax.serving.stage import Shared
from aif_jax.serving.user_program import compute_state
from aif_jax.types import Candidates, UserRecord
from load.service import REQUESTS, Answer, Service, Truth
from load.ways import engine_config
from stage.request import CONTEXT


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
        self._context = schema.encode_one("context", CONTEXT)
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
        scored = self._generation.score(shared, candidates, self._service.shared.k)
        return Answer(candidates.ids[scored.order], scored.scores)

    def by_item_prior(self, number: int) -> Answer:
        candidates = self._candidates[number % REQUESTS]
        scored = Priors(self._generation).by_item_prior(candidates, self._service.shared.k)
        return Answer(candidates.ids[scored.order], scored.scores)


class Retrieval:
    """A retrieval that takes some milliseconds and remembers when it last ran."""

    def __init__(self, service: Service, ms: float, kind: str):
        self.began_s = self.ended_s = 0.0

        def found(request: Any) -> Candidates:
            candidates = service.candidates(int(request.user))
            self.ended_s = time.perf_counter()
            return candidates

        def sleep(request: Any) -> Candidates:
            self.began_s = time.perf_counter()
            time.sleep(ms / 1e3)
            return found(request)

        async def coroutine(request: Any) -> Candidates:
            self.began_s = time.perf_counter()
            await asyncio.sleep(ms / 1e3)
            return found(request)

        kinds: dict[str, Callable[[Any], Any]] = {"sleeps": sleep, "is a coroutine": coroutine}
        self.function = kinds[kind]


@dataclasses.dataclass(frozen=True)
class Cell:
    ms: float  # how long retrieval takes
    retrieval: str  # its kind, see `Retrieval`
    call: str  # `rank`, `rank_async`, or `begin and rank` (the caller retrieves)
    warm: bool  # whether the user's state is in the engine's cache

    @property
    def name(self) -> str:
        state = "warm" if self.warm else "cold"
        return f"retrieval of {self.ms:g} ms {self.retrieval}, {self.call}, {state}"


@dataclasses.dataclass
class Sample:
    total: float  # from the call to its return
    retrieval: float  # of this request, from start to end of the function itself
    user_side: float  # of this request, by its report; 0 when the state was cached but for fetching it
    stage: float  # of this request, by its report: rows, operands, compiled call
    prepare: float  # checking and encoding the candidates
    before: float  # from the call until retrieval began
    after: float  # from the later of retrieval and user side until the stage was called
    back: float  # from the end of the stage to the return

    def beyond(self, stage: float | None = None) -> float:
        """Return what the request took beyond its parts: with its own stage, or one that took that long."""
        return self.total - max(self.retrieval, self.user_side) - (self.stage if stage is None else stage)


FIELDS = [field.name for field in dataclasses.fields(Sample)]


@dataclasses.dataclass(frozen=True)
class Found:
    """Samples by cell, and milliseconds of the parts alone; the stage after a sleep as long as retrieval."""

    samples: dict[Cell, list[Sample]]
    user_side_ms: list[float]
    stage_ms: dict[float, list[float]]

    def beyond(self, cell: Cell) -> list[float]:
        """Return what each request took beyond its own retrieval and user side and the stage by itself."""
        stage = float(np.median(self.stage_ms[cell.ms]))
        return [sample.beyond(stage) for sample in self.samples[cell]]


class Asker:
    """An engine with the retrieval of one cell, asked from one thread or one event loop."""

    def __init__(self, service: Service, cell: Cell, runner: asyncio.Runner):
        self.cell, self._runner = cell, runner
        self.retrieval = Retrieval(service, cell.ms, cell.retrieval)
        built, config, retrieve = service.built, engine_config(service), self.retrieval.function
        self.engine = Engine(built.bundle, built.tables, users=service.user, retrieve=retrieve, config=config)
        self._new = itertools.count(1)
        for user in range(REQUESTS) if cell.warm else ():
            found = service.candidates(user)
            self.engine.begin(user).rank(found.ids, found.pair)

    def ask(self, number: int) -> tuple[Ranking, float, float]:
        """Ask a request; return the ranking, and when the call began and ended."""
        # The same request by a user whom the engine has not met, unless the state is to be warm.
        user = number if self.cell.warm else number + REQUESTS * next(self._new)
        if self.cell.call == "rank_async":
            return self._runner.run(self._ask_async(user))
        began = time.perf_counter()
        if self.cell.call == "rank":
            ranking = self.engine.rank(user, CONTEXT)
        else:
            pending = self.engine.begin(user, CONTEXT)
            found = self.retrieval.function(types.SimpleNamespace(user=user))
            ranking = pending.rank(found.ids, found.pair)
        return ranking, began, time.perf_counter()

    async def _ask_async(self, user: int) -> tuple[Ranking, float, float]:
        began = time.perf_counter()
        ranking = await self.engine.rank_async(user, CONTEXT)
        return ranking, began, time.perf_counter()


def measure(service: Service, truth: Truth, cells: list[Cell], rounds: int) -> Found:
    """Measure the cells in turns.

    Raises:
        AssertionError: an answer is wrong, by engine or stage alone.
    """
    parts = Parts(service)
    samples: dict[Cell, list[Sample]] = {cell: [] for cell in cells}
    users: list[float] = []
    stages: dict[float, list[float]] = {ms: [] for ms in sorted({cell.ms for cell in cells})}
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        askers = [Asker(service, cell, runner) for cell in cells]
        for asker in askers:
            stack.callback(asker.engine.close)
        # As a server should when it is warm: else each collection walks all of JAX, for 0.1 s.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        order = random.Random(0)
        for number in range(-2, rounds):
            request = number % REQUESTS
            users.append(_timed(parts.user_side, request)[1])
            for ms, taken in stages.items():
                # As idle before as it is while retrieval sleeps: threads and caches must wake up there too.
                time.sleep(ms / 1e3)
                answer, spent = _timed(parts.stage, request)
                taken.append(spent)
                assert not (fault := truth.wrong(request, answer)), f"stage alone: {fault}"
            for asker in order.sample(askers, len(askers)):
                sample, answer = _sample(asker, request)
                assert not (fault := truth.wrong(request, answer)), f"{asker.cell.name}: {fault}"
                samples[asker.cell].append(sample)
            if number < 0:  # warming up
                for kept in (*samples.values(), users, *stages.values()):
                    kept.clear()
    return Found(samples, users, stages)


def _timed(function: Callable[[int], Any], number: int) -> tuple[Any, float]:
    began = time.perf_counter()
    result = function(number)
    return result, (time.perf_counter() - began) * 1e3


def _sample(asker: Asker, number: int) -> tuple[Sample, Answer]:
    ranking, began, ended = asker.ask(number)
    report, retrieval = ranking.report, asker.retrieval
    assert report.user_state == ("hit" if asker.cell.warm else "computed")
    user_end = max(span.end_s for span in report.spans if span.lane == "user")
    stage = next(span for span in report.spans if span.name == "real-time stage")
    sample = Sample(
        total=(ended - began) * 1e3,
        retrieval=(retrieval.ended_s - retrieval.began_s) * 1e3,
        user_side=report.user_side_ms,
        stage=report.gather_ms + report.stage_ms,
        prepare=report.prepare_ms,
        before=(retrieval.began_s - began) * 1e3,
        after=(stage.start_s - max(retrieval.ended_s, user_end)) * 1e3 - report.prepare_ms - report.gather_ms,
        back=(ended - stage.end_s) * 1e3,
    )
    return sample, Answer(ranking.ids, ranking.scores, report.rung)
