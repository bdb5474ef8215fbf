"""Ways to serve the same requests, each as a coroutine function.

Retrieval sleeps. The rivals are given what makes them fast: encoded features beforehand, positions instead of
ids, a fixed user per request without a source to ask, and threads of whatever number serves best.
"""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

from aif_jax.serving import Engine, EngineConfig, Shapes
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_program import compute_state
from aif_jax.serving.user_states import UserState
from aif_jax.types import Candidates, Request
from load.service import REQUESTS, Answer, Service
from stage.hand_rolled import hand_rolled_scores
from stage.request import CONTEXT, device_catalogue
from stage.sequential import Attention, SequentialModel
from stage.staged import stage_contender
from stage.xla_simtier import Way as SimTierWay
from workload import Built


class Way(Protocol):
    """One way to serve.

    `serve` answers a request; ``deadline_ms`` counts from now, and only ways that know of deadlines heed it.
    """

    name: str

    async def serve(self, number: int, deadline_ms: float | None) -> Answer: ...

    def close(self) -> None: ...


class Nothing:
    """A server that answers from memory, after retrieval: only the cost of sending is left."""

    name = "nothing"

    def __init__(self, answers: list[Answer], retrieval_s: float):
        self._answers, self._retrieval_s = answers, retrieval_s

    async def serve(self, number: int, deadline_ms: float | None) -> Answer:
        await asyncio.sleep(self._retrieval_s)
        return self._answers[number % len(self._answers)]

    def close(self) -> None:
        """Nothing to stop."""


class _Pooled:
    def __init__(self, service: Service, retrieval_s: float, threads: int):
        self._service, self._retrieval_s = service, retrieval_s
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _answer(self, number: int, order: Any, scores: Any) -> Answer:
        positions = self._service.operands(number)[0]
        return Answer(self._service.built.source.ids[positions[np.asarray(order)]], np.asarray(scores))


class Sequential(_Pooled):
    """Everything after retrieval, in one compiled call per request: `SequentialModel` with one attention."""

    def __init__(
        self, service: Service, retrieval_s: float, simtier: SimTierWay, threads: int, attention: Attention
    ):
        super().__init__(service, retrieval_s, threads)
        self.name = "sequential" if attention == "exact" else f"sequential, {attention} attention"
        model = SequentialModel(service.shared, attention, simtier)
        self._program = jax.jit(model.rank_whole)
        self._shared = model.state, device_catalogue(service.built)

    def compute(self, number: int) -> Answer:
        batch = self._service.batches[number % REQUESTS]
        return self._answer(number, *self._program(*self._shared, batch, *self._service.operands(number)))

    async def serve(self, number: int, deadline_ms: float | None) -> Answer:
        await asyncio.sleep(self._retrieval_s)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.compute, number)


class Overlapped(_Pooled):
    """The overlap written by hand: cached folded rows, pure XLA, the user side in another thread.

    The user side is this project's own, from record to state.
    """

    name = "overlapped in plain Python"

    def __init__(self, service: Service, retrieval_s: float, simtier: SimTierWay, threads: int):
        super().__init__(service, retrieval_s, threads)
        built, shared = service.built, service.shared
        self._generation = Generation(built.bundle, built.tables, engine_config(service))
        self._generation.warm()
        stage = stage_contender(shared, built)
        scores, (self._weights, self._rows, _) = hand_rolled_scores(shared, simtier, stage)
        self._program = jax.jit(lambda *given: jax.lax.top_k(scores(*given), shared.k))

    def user_side(self, number: int) -> UserState:
        record, length = self._service.user(number), self._service.shared.length
        state = compute_state(number, record, length, self._generation)
        jax.block_until_ready(state.leaves)
        return state

    def stage(self, number: int, state: UserState) -> Answer:
        leaves = {path.removeprefix("state/"): leaf[0] for path, leaf in state.leaves.items()}
        best, order = self._program(self._weights, self._rows, leaves, *self._service.operands(number))
        return self._answer(number, order, best)

    async def serve(self, number: int, deadline_ms: float | None) -> Answer:
        loop = asyncio.get_running_loop()
        user = loop.run_in_executor(self._pool, self.user_side, number)
        await asyncio.sleep(self._retrieval_s)
        return await loop.run_in_executor(self._pool, self.stage, number, await user)


class Engined:
    """This project's engine as it comes, users from a dictionary; it knows of deadlines and may refuse.

    Every request is by a user whom the engine has not met, or by one of a number of ``users`` in turns.
    """

    name = "engine"

    def __init__(
        self, service: Service, retrieval_s: float, *, built: Built | None = None, users: int = 0,
        config: EngineConfig | None = None,
    ):  # fmt: skip
        built = built or service.built

        async def retrieve(request: Request) -> Candidates:
            await asyncio.sleep(retrieval_s)
            return service.candidates(int(request.user))

        config = config or engine_config(service)
        self._asked, self._users = itertools.count(1), users
        self.engine = Engine(built.bundle, built.tables, users=service.user, retrieve=retrieve, config=config)

    async def serve(self, number: int, deadline_ms: float | None) -> Answer:
        user = number % self._users if self._users else number % REQUESTS + REQUESTS * next(self._asked)
        ranking = await self.engine.rank_async(user, CONTEXT, deadline_ms=deadline_ms)
        report = ranking.report
        assert self._users or report.user_state == "computed" or report.rung
        return Answer(ranking.ids, ranking.scores, report.rung, report.version)

    def close(self) -> None:
        self.engine.close()


def engine_config(service: Service, **changes: Any) -> EngineConfig:
    """Return the settings of an engine for the service's requests: sizes only, unless changed."""
    shapes = Shapes(candidates=(service.shared.n,), histories=(service.shared.length,))
    return EngineConfig(**{"k": service.shared.k, "shapes": shapes, **changes})
