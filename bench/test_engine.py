"""The engine without a wait for retrieval: what a request costs with user states cached and new."""

import asyncio
import itertools

import numpy as np
import pytest

from aif_jax.serving import Engine, EngineConfig, Shapes
from aif_jax.types import Candidates
from stage.request import CONTEXT

GROUP = "a request through the engine, retrieval at once"
KNOWN = 0


@pytest.fixture(autouse=True)
def group(benchmark, case):
    """Sizes are part of a benchmark's group, so that no two sizes are compared."""
    benchmark.group = f"{GROUP}, {case.n:,} candidates, history {case.length:,}"


@pytest.fixture(scope="module")
def engine(built, case):
    """An engine to which every user has the workload's record; `KNOWN`'s state is cached."""
    config = EngineConfig(k=case.k, shapes=Shapes(candidates=(case.n,), histories=(case.length,)))
    found = Candidates(case.ids[0], case.raw_pair[0])

    async def retrieve(_):
        return found

    with Engine(
        built.bundle, built.tables, users=lambda _: case.user, retrieve=retrieve, config=config
    ) as engine:
        engine.begin(KNOWN).rank(found.ids, found.pair)
        yield engine


@pytest.fixture(scope="module")
def expected(definition):
    """The scores of the definition."""
    return definition.run(0)[1]


@pytest.fixture
def users():
    return itertools.count(1)


def right(ranking, expected, state):
    np.testing.assert_allclose(ranking.scores, expected, rtol=1e-4, atol=1e-4)
    assert ranking.report.user_state == state


def test_engine_begin_and_rank_known_user(benchmark, case, engine, expected):
    def request():
        return engine.begin(KNOWN, CONTEXT).rank(case.ids[0], case.raw_pair[0])

    right(request(), expected, "hit")
    ranking = benchmark(request)
    benchmark.extra_info.update(stage_ms=ranking.report.stage_ms, gather_ms=ranking.report.gather_ms)


def test_engine_begin_and_rank_new_user(benchmark, case, engine, expected, users):
    def request():
        return engine.begin(next(users), CONTEXT).rank(case.ids[0], case.raw_pair[0])

    right(request(), expected, "computed")
    benchmark(request)


def test_engine_rank_known_user(benchmark, engine, expected):
    right(engine.rank(KNOWN, CONTEXT), expected, "hit")
    benchmark(lambda: engine.rank(KNOWN, CONTEXT))


def test_engine_rank_async_known_user(benchmark, engine, expected):
    with asyncio.Runner() as loop:

        def request():
            return loop.run(engine.rank_async(KNOWN, CONTEXT))

        right(request(), expected, "hit")
        benchmark(request)


def test_engine_rank_many_sixteen_known_users(benchmark, case, engine, expected):
    benchmark.group = f"sixteen users in one call, {case.n:,} candidates, history {case.length:,}"
    users = [KNOWN] * 16
    for ranking in engine.rank_many(users, contexts=[CONTEXT] * len(users)):
        right(ranking, expected, "hit")
    benchmark(lambda: engine.rank_many(users, contexts=[CONTEXT] * len(users)))
