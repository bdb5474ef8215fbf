"""How much longer a request takes than max(retrieval, user side) + stage.

Every round asks the same request once in every way, in an order drawn anew, and runs the parts alone.
"""

import asyncio
import dataclasses
import gc
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from aif_jax.serving import Engine, Ranking
from load.parts import Parts, Retrieval
from load.service import CONTEXT_OF_REQUESTS, REQUESTS, Answer, Service, Truth
from load.ways import engine_config


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to ask.

    Attributes:
        ms: how long retrieval takes.
        retrieval: its kind, see `Retrieval`.
        call: ``rank``, ``rank_async``, or ``begin and rank`` (the caller retrieves).
        warm: whether the user's state is in the engine's cache.
    """

    ms: float
    retrieval: str
    call: str
    warm: bool

    @property
    def name(self) -> str:
        """What tables call it."""
        state = "warm" if self.warm else "cold"
        return f"retrieval of {self.ms:g} ms {self.retrieval}, {self.call}, {state}"


@dataclasses.dataclass
class Sample:
    """One request, in milliseconds.

    Attributes:
        total: from the call to its return.
        retrieval: of this request, from start to end of the function itself.
        user_side: of this request, as its report says; 0 when the state was cached but for fetching it.
        stage: of this request, as its report says: rows, operands, compiled call.
        prepare: checking and encoding the candidates.
        before: from the call until retrieval began.
        after: from the later of retrieval and user side until the stage was called.
        back: from the end of the stage to the return.
    """

    total: float
    retrieval: float
    user_side: float
    stage: float
    prepare: float
    before: float
    after: float
    back: float

    def overhead(self, stage: float | None = None) -> float:
        """Return what the request took beyond its parts: with its own stage, or one that took that long."""
        return self.total - max(self.retrieval, self.user_side) - (self.stage if stage is None else stage)


FIELDS = [field.name for field in dataclasses.fields(Sample)]


class Asker:
    """An engine with the retrieval of one cell, asked from one thread or one event loop."""

    def __init__(self, service: Service, cell: Cell, loop: "Loop"):
        self.cell = cell
        self._service = service
        self.retrieval = Retrieval(service, cell.ms, cell.retrieval)
        self._loop = loop
        self._asked = 0
        built = service.built
        self.engine = Engine(
            built.bundle, built.tables,
            users=service.user, retrieve=self.retrieval.function, config=engine_config(service),
        )  # fmt: skip

    def warm(self) -> None:
        """Let the engine meet the users whose states are to be warm."""
        for user in range(REQUESTS) if self.cell.warm else ():
            found = self._service.candidates(user)
            self.engine.begin(user).rank(found.ids, found.pair)

    def ask(self, number: int) -> tuple[Ranking, float, float]:
        """Ask a request; return the ranking, and when the call began and ended."""
        # The same request by a user whom the engine has not met, unless the state is to be warm.
        user = number if self.cell.warm else number + REQUESTS * (1 + self._asked)
        self._asked += 1
        if self.cell.call == "rank_async":
            return self._loop.run(self._ask_async, user)
        began = time.perf_counter()
        if self.cell.call == "rank":
            ranking = self.engine.rank(user, CONTEXT_OF_REQUESTS)
        else:
            pending = self.engine.begin(user, CONTEXT_OF_REQUESTS)
            found = self.retrieval.function(_Asked(user))
            ranking = pending.rank(found.ids, found.pair)
        return ranking, began, time.perf_counter()

    async def _ask_async(self, user: int) -> tuple[Ranking, float, float]:
        began = time.perf_counter()
        ranking = await self.engine.rank_async(user, CONTEXT_OF_REQUESTS)
        return ranking, began, time.perf_counter()


@dataclasses.dataclass(frozen=True)
class _Asked:
    user: int


class Loop:
    """An event loop in a thread of its own, for callers that are coroutines."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="callers")
        self._thread.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a coroutine function to its end."""
        return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop).result()

    def close(self) -> None:
        """Stop the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def measure(
    service: Service, truth: Truth, cells: list[Cell], rounds: int, each_round: Callable[[], None]
) -> dict[str, Any]:
    """Measure the cells in turns.

    Raises:
        AssertionError: an answer is wrong, by engine or stage alone.
    """
    parts = Parts(service)
    samples: dict[Cell, list[Sample]] = {cell: [] for cell in cells}
    users: list[float] = []
    stages: dict[float, list[float]] = {ms: [] for ms in sorted({cell.ms for cell in cells})}
    with ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        askers = [Asker(service, cell, loop) for cell in cells]
        for asker in askers:
            stack.callback(asker.engine.close)
            asker.warm()
        # As a server should when it is warm: else each collection walks all of JAX, for 0.1 s.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        order = random.Random(0)
        for number in range(-2, rounds):
            request = number % REQUESTS
            user_ms = _timed(parts.user_side, request)[1]
            stage_ms = {}
            for ms in stages:
                # As idle before as it is while retrieval sleeps: threads and caches must wake up there too.
                time.sleep(ms / 1e3)
                answer, stage_ms[ms] = _timed(parts.stage, request)
                assert not (told := truth.wrong(request, answer)), f"stage alone: {told}"
            for asker in order.sample(askers, len(askers)):
                sample, answer = _sample(asker, request)
                assert not (told := truth.wrong(request, answer)), f"{asker.cell.name}: {told}"
                if number >= 0:
                    samples[asker.cell].append(sample)
            if number >= 0:
                users.append(user_ms)
                for ms, spent in stage_ms.items():
                    stages[ms].append(spent)
            each_round()
    alone = Alone(float(np.median(users)), {ms: float(np.median(spent)) for ms, spent in stages.items()})
    return {
        "cells": [_summary(cell, taken, alone) for cell, taken in samples.items()],
        "user_side_alone": _quantiles(np.array(users)),
        "stage_alone": [{"after_idle_ms": ms, **_quantiles(np.array(s))} for ms, s in stages.items()],
    }


@dataclasses.dataclass(frozen=True)
class Alone:
    """Medians of the parts by themselves, in milliseconds; the stage after a sleep as long as retrieval."""

    user_side: float
    stage: dict[float, float]


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


def _summary(cell: Cell, taken: list[Sample], alone: Alone) -> dict[str, Any]:
    medians = {name: float(np.median([getattr(sample, name) for sample in taken])) for name in FIELDS}
    stage = alone.stage[cell.ms]
    parts = max(medians["retrieval"], 0.0 if cell.warm else alone.user_side) + stage
    return {
        **dataclasses.asdict(cell), "name": cell.name, "samples": len(taken), "medians": medians,
        "overhead": _quantiles(np.array([sample.overhead(stage) for sample in taken])),
        "overhead_own_stage": _quantiles(np.array([sample.overhead() for sample in taken])),
        "overhead_parts_alone": _quantiles(np.array([sample.total - parts for sample in taken])),
    }  # fmt: skip


def _quantiles(ms: np.ndarray) -> dict[str, float]:
    shares = {"p25": 0.25, "p50": 0.5, "p75": 0.75, "p99": 0.99, "p99_9": 0.999}
    return {name: float(np.quantile(ms, share)) for name, share in shares.items()}
