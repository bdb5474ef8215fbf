"""The engine without a wait for retrieval: what a request costs with user states cached and new."""

import asyncio
import itertools

import numpy as np
import pytest

from aif_jax.serving import Engine, EngineConfig, Shapes
from aif_jax.types import Candidates
from stage.request import CONTEXT

KNOWN = 0


@pytest.fixture(autouse=True)
def group(benchmark, case):
    """Sizes are part of a benchmark's group, so that no two sizes are compared."""
    benchmark.group = f"a request through the engine, {case.n:,} candidates, history {case.length:,}"


@pytest.fixture(scope="module")
def engine(built, case):
    config = EngineConfig(k=case.k, shapes=Shapes(candidates=(case.n,), histories=(case.length,)))
    found = Candidates(case.ids[0], case.raw_pair[0])

    async def retrieve(_):
        return found

    with Engine(
        built.bundle, built.tables, users=lambda _: case.user, retrieve=retrieve, config=config
    ) as engine:
        engine.begin(KNOWN).rank(found.ids, found.pair)
        yield engine


@pytest.fixture
def timed(benchmark, definition):
    """Check the answer to a request against the definition, and time it."""

    def timed(request, state="hit"):
        for ranking in request():
            np.testing.assert_allclose(ranking.scores, definition.run(0)[1], rtol=1e-4, atol=1e-4)
            assert ranking.report.user_state == state
        benchmark(request)

    return timed


def test_engine_begin_and_rank_known_user(timed, case, engine):
    timed(lambda: [engine.begin(KNOWN, CONTEXT).rank(case.ids[0], case.raw_pair[0])])


def test_engine_begin_and_rank_new_user(timed, case, engine):
    users = itertools.count(1)
    timed(lambda: [engine.begin(next(users), CONTEXT).rank(case.ids[0], case.raw_pair[0])], "computed")


def test_engine_rank_known_user(timed, engine):
    timed(lambda: [engine.rank(KNOWN, CONTEXT)])


def test_engine_rank_async_known_user(timed, engine):
    with asyncio.Runner() as loop:
        timed(lambda: [loop.run(engine.rank_async(KNOWN, CONTEXT))])


def test_engine_rank_many_sixteen_known_users(benchmark, timed, case, engine):
    benchmark.group = f"sixteen users in one call, {case.n:,} candidates, history {case.length:,}"
    timed(lambda: engine.rank_many([KNOWN] * 16, contexts=[CONTEXT] * 16))
