"""Rungs of a running engine: each answers as the plain model with that much less, and reports it."""

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.config import PRECISIONS, ModelConfig, Precision
from aif_jax.errors import (
    DeadlineExceededError,
    OverloadedError,
    UnknownItemError,
    UserSourceError,
)
from aif_jax.models import Folded
from aif_jax.nearline import ItemIndex, build_tables
from aif_jax.serving import Engine, InMemoryUsers, Shapes, Threads
from aif_jax.serving.ladder import Ladder
from aif_jax.serving.report import Ranking
from aif_jax.serving.request import Phase
from aif_jax.types import ItemRecords, UserRecord
from support.held import GatedUsers, until
from support.served import (
    CONTEXT,
    K_MAX,
    PATIENT_MS,
    TINY,
    UNCACHED,
    Bundles,
    Make,
    Served,
    World,
    assert_ranks_as,
    make_model,
    ran,
    ways,
)
from support.waiting import eventually

WITHIN = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.05}


def records_of(world: World) -> ItemRecords:
    return ItemRecords(world.ids, world.columns, world.content)


@pytest.fixture(scope="module")
def served(one: Served, world: World, bundles: Bundles) -> Callable[[Precision], Served]:
    """A function from a precision to the bundle in it, with its tables."""

    @functools.cache
    def exported(precision: Precision) -> Served:
        if precision == "float32":
            return one
        return bundles(precision), build_tables(bundles(precision), records_of(world))

    return exported


@pytest.fixture
def source(users: InMemoryUsers) -> GatedUsers:
    return GatedUsers(users)


@pytest.fixture
def gated(make: Make, source: GatedUsers) -> Make:
    """A function that makes engines over `source`, which return as many results as can be."""
    return functools.partial(make, users=source, k=K_MAX)


def ladder_of(engine: Engine) -> Ladder:
    return engine.hooks.generations.current.ladder


def believe(engine: Engine, key: Any, ms: float) -> None:
    """Have the engine believe that something takes so long."""
    for _ in range(300):
        ladder_of(engine).times.record(key, ms)


def deadline_ms(engine: Engine, n: int, wait_ms: float = 100.0) -> float:
    """Return the deadline with which an engine waits so long for the user side of n candidates.

    It is made to believe in a stage so slow that its reserve outlasts any delay of the machine.
    """
    believe_stage(engine, 1e6)
    kept_ms = ladder_of(engine).wait_ms(0.0, n)
    assert kept_ms is not None
    return wait_ms - kept_ms


def believe_stage(engine: Engine, ms: float) -> None:
    shapes = engine.config.shapes
    for size in shapes.candidates or ():
        for length in shapes.histories or ():
            believe(engine, ladder_of(engine).stage_key(size, length), ms)


def item_prior(world: World, ids: np.ndarray, pair: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The score of items by the model's heads for nobody, nowhere, with nothing known of the pair."""
    _, heads = world.scores(UserRecord(), ids, {}, {})
    return heads[:, 0] * (heads[:, 1] + 0.1) * np.asarray(pair["bid"], np.float32), heads


def differs(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one / other - 1).max() > 0.1)


every_program = pytest.mark.parametrize(
    ("precision", "kind"),
    [
        pytest.param(
            precision, kind, marks=[pytest.mark.thorough] * (kind == "portable" and precision != "float32")
        )
        for precision in PRECISIONS
        for kind in ("native", "portable")
    ],
)


@every_program
def test_rungs_each_scores_as_model_with_that_much_less(
    gated: Make, source: GatedUsers, world: World, served: Callable[[Precision], Served],
    precision: Precision,
    kind: str,
) -> None:  # fmt: skip
    bundle, tables = served(precision)
    if kind == "portable":
        bundle = Bundle.load(bundle.path, prefer="portable")
    shapes, within = Shapes(candidates=(64,), histories=(8, 24), users=()), WITHIN[precision]
    engine = gated((bundle, tables), shapes=shapes, user_states=UNCACHED)
    ladder, requests = ladder_of(engine), []
    for seed in (5, 8):
        record = source.users(seed)
        assert record is not None
        ids, pair = world.candidates((60, 140)[seed == 8], seed=seed)
        requests.append((seed, record, ids, pair))

    def ranked(seed: int, ids: Any, pair: Any, within_ms: float = PATIENT_MS) -> Ranking:
        ranking = engine.begin(seed, CONTEXT, deadline_ms=within_ms).rank(ids, pair)
        assert len(ranking) == K_MAX
        return ranking

    for seed, record, ids, pair in requests:
        full = world.scores(record, ids, pair, CONTEXT)
        ranking = ranked(seed, ids, pair)
        assert (ranking.report.rung, ranking.report.rung_reason) == (0, None)
        assert_ranks_as(ranking, ids, *full, within)

    believe(engine, ladder.user_key(24), 1e9)
    for seed, record, ids, pair in requests:
        full = world.scores(record, ids, pair, CONTEXT)
        short = world.scores(record, ids, pair, CONTEXT, long=False)
        assert differs(short[0], full[0])
        ranking = ranked(seed, ids, pair)
        report = ranking.report
        assert (report.rung, report.rung_reason, report.long_bucket) == (1, "user program late", 8)
        assert_ranks_as(ranking, ids, *short, within)

    source.gate.clear()
    for seed, record, ids, pair in requests:
        short = world.scores(record, ids, pair, CONTEXT, long=False)
        nobody = world.scores(UserRecord(), ids, pair, CONTEXT)
        assert differs(nobody[0], short[0])
        ranking = ranked(seed, ids, pair, deadline_ms(engine, len(ids)))
        report = ranking.report
        assert (report.rung, report.rung_reason, report.user_state) == (2, "user source late", "prior")
        assert_ranks_as(ranking, ids, *nobody, within)

    believe_stage(engine, 1e9)
    for seed, _, ids, pair in requests:
        nobody = world.scores(UserRecord(), ids, pair, CONTEXT)
        prior = item_prior(world, ids, pair)
        assert differs(prior[0], nobody[0])
        ranking = ranked(seed, ids, pair)
        report = ranking.report
        assert report.total_ms < 30_000  # it does not wait for what it could not use
        assert (report.rung, report.rung_reason, report.calls) == (3, "stage would not fit", 0)
        assert_ranks_as(ranking, ids, *prior)  # in every precision
    counts = engine.stats()["requests"]
    assert [counts[f"rung:{rung}"] for rung in range(4)] == [2, 2, 2, 2]
    assert counts["degraded:user program late"] == 2
    assert counts["degraded:user source late"] == 2
    assert counts["degraded:stage would not fit"] == 2


# --- item prior ------------------------------------------------------------------------------------


def test_item_prior_missing_items_follow_policy_and_are_counted(
    gated: Make, world: World, one: Served
) -> None:
    bundle, tables = one
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    ids, pair = world.candidates(30, seed=1)
    index.set_rankable(ids[:3], False)
    strange = np.arange(1, 5, dtype=np.uint64)
    ids, bid = np.concatenate([ids, strange]), np.append(pair["bid"], np.ones(4))
    bid[5] = np.inf
    for policy in ("drop", "default", "error"):
        served = bundle, tables._replace(items=index)
        with gated(served, users=InMemoryUsers(), missing_items=policy, unknown_user="default") as engine:
            believe_stage(engine, 1e9)
            pending = engine.begin(1, deadline_ms=PATIENT_MS)
            if policy == "error":
                with pytest.raises(UnknownItemError, match="4 of 34 have no row"):
                    pending.rank(ids, {"bid": bid})
                continue
            ranking = pending.rank(ids, {"bid": bid}, k=20)
            report = ranking.report
            assert (report.rung, report.missing_items, report.not_rankable, len(ranking)) == (3, 4, 3, 20)
            assert not set(ranking.ids.tolist()) & set(ids[:3].tolist())
            assert bool(set(ranking.ids.tolist()) & set(strange.tolist())) == (policy == "default")


def test_rungs_bundle_without_item_priors_ends_at_rung_2(
    gated: Make, source: GatedUsers, world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, spec = Folded.item, ModelConfig.spec
    monkeypatch.setattr(
        Folded, "item", lambda self, *given: {n: a for n, a in item(self, *given).items() if n != "prior"}
    )
    monkeypatch.setattr(ModelConfig, "spec", lambda self, *given: spec(self, *given).replace(rungs=(0, 1, 2)))
    world = dataclasses.replace(world, model=make_model(1, TINY))
    bundle = export_bundle(world.model, tmp_path / "old", k_max=K_MAX)
    tables = build_tables(bundle, records_of(world))
    assert "prior" not in tables.items.store.columns
    ids, pair = world.candidates(40)
    engine = gated((bundle, tables), shapes=Shapes(candidates=(64,), histories=(24,), users=()))
    believe_stage(engine, 1e9)
    source.gate.clear()
    ranking = engine.begin(5, CONTEXT, deadline_ms=PATIENT_MS).rank(ids, pair)
    assert ranking.report.rung == 2
    assert_ranks_as(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT))
    assert engine.stats()["ladder"]["rungs"] == (0, 1, 2)


# --- reasons ---------------------------------------------------------------------------------------


@ways
def test_rungs_hanging_source_is_answered_by_the_deadline(
    gated: Make, source: GatedUsers, world: World, way: str
) -> None:
    engine = gated()
    source.gate.clear()
    ids, pair = world.candidates(40)
    pending = engine.begin(5, CONTEXT, deadline_ms=deadline_ms(engine, len(ids)))
    ranking = ran(getattr(pending, way), ids, pair)
    report = ranking.report
    assert (report.rung, report.overrun_ms) == (2, 0.0)
    assert 50 < report.wait_ms < report.total_ms < 30_000
    assert_ranks_as(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT))
    names = {span.name for span in report.spans}
    assert "user program" not in names


def test_rungs_late_state_is_kept_for_next_request(gated: Make, source: GatedUsers, world: World) -> None:
    engine = gated()
    ids, pair = world.candidates(40)
    source.gate.clear()
    pending = engine.begin(5, CONTEXT, deadline_ms=PATIENT_MS)
    assert source.asked.wait(30)  # what has not started is dropped
    believe_stage(engine, 1e9)  # so that it does not wait
    assert pending.rank(ids, pair).report.rung == 3
    source.gate.set()
    assert until(engine, lambda stats: stats["requests"].get("late_user_sides", 0) == 1)
    report = engine.begin(5, CONTEXT).rank(ids, pair).report
    assert (report.rung, report.user_state) == (0, "hit")


def test_rungs_state_without_long_sequence_is_not_kept(gated: Make, source: GatedUsers, world: World) -> None:
    engine = gated()
    ids, pair = world.candidates(40)
    believe(engine, ladder_of(engine).user_key(24), 1e9)
    assert engine.begin(8, CONTEXT, deadline_ms=PATIENT_MS).rank(ids, pair).report.rung == 1
    report = engine.begin(8, CONTEXT).rank(ids, pair).report
    assert (report.rung, report.user_state, report.long_bucket) == (0, "computed", 24)


def test_rungs_full_queue_degrades_request_with_deadline(
    gated: Make, source: GatedUsers, world: World
) -> None:
    engine = gated(threads=Threads(blocking=1, max_queued=1))
    source.gate.clear()
    ids, pair = world.candidates(40)
    held = [engine.begin(1)]
    assert until(engine, lambda stats: stats["scheduler"]["blocking"]["running"])
    held.append(engine.begin(2))  # the first has the thread, the second the place in the queue
    with pytest.raises(OverloadedError):
        engine.begin(5, CONTEXT)
    report = (ranking := engine.begin(5, CONTEXT, deadline_ms=PATIENT_MS).rank(ids, pair)).report
    assert (report.rung, report.rung_reason) == (2, "overloaded")
    assert report.wait_ms < 15_000
    assert_ranks_as(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT))
    assert engine.stats()["requests"]["degraded:overloaded"] == 1
    source.gate.set()
    for pending in held:
        pending.cancel()


@ways
def test_rungs_full_queue_and_late_caller_raises_deadline_error(
    gated: Make, source: GatedUsers, world: World, way: str
) -> None:
    engine = gated(threads=Threads(blocking=1, max_queued=1))
    source.gate.clear()
    held = [engine.begin(1)]
    assert until(engine, lambda stats: stats["scheduler"]["blocking"]["running"])
    held.append(engine.begin(2))
    pending = engine.begin(5, CONTEXT, deadline_ms=20)
    time.sleep(0.05)
    with pytest.raises(DeadlineExceededError, match="of the deadline of 20 ms before the real-time stage"):
        ran(getattr(pending, way), world.ids[:5])
    source.gate.set()
    for other in held:
        other.cancel()


@pytest.mark.parametrize("deadline_ms", [None, PATIENT_MS])
def test_rungs_failing_source_raises_or_degrades_by_config(
    gated: Make, source: GatedUsers, world: World, deadline_ms: float | None
) -> None:
    source.error = ConnectionError("down")
    ids, pair = world.candidates(40)
    with pytest.raises(UserSourceError, match="down"):
        gated().begin(5, CONTEXT, deadline_ms=deadline_ms).rank(ids, pair)
    engine = gated(on_user_source_error="degrade")
    ranking = engine.begin(5, CONTEXT, deadline_ms=deadline_ms).rank(ids, pair)
    assert (ranking.report.rung, ranking.report.rung_reason) == (2, "user source failed")
    assert_ranks_as(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT))


def test_rungs_on_deadline_error_raises_instead_of_degrading(
    gated: Make, source: GatedUsers, world: World
) -> None:
    engine = gated(on_deadline="error")
    believe_stage(engine, 1e9)
    believe(engine, ladder_of(engine).user_key(24), 1e9)
    assert engine.begin(8, CONTEXT, deadline_ms=PATIENT_MS).rank(world.ids[:40]).report.rung == 0
    source.gate.clear()
    with pytest.raises(DeadlineExceededError, match="its user source has not answered"):
        engine.begin(8, CONTEXT, deadline_ms=30).rank(world.ids[:40])


@pytest.mark.parametrize("done", [True, False])
def test_rungs_caller_after_deadline_gets_an_error(
    gated: Make, source: GatedUsers, world: World, done: bool
) -> None:
    engine = gated()
    if not done:
        source.gate.clear()
    pending = engine.begin(5, deadline_ms=20)
    time.sleep(0.05)
    with pytest.raises(DeadlineExceededError, match="deadline of 20 ms"):
        pending.rank(world.ids[:5])


def test_rungs_without_deadline_degrade_nothing(gated: Make, source: GatedUsers, world: World) -> None:
    engine = gated(user_states=UNCACHED)
    believe_stage(engine, 1e9)
    believe(engine, ladder_of(engine).user_key(24), 1e9)
    ids, pair = world.candidates(40)
    source.gate.clear()
    pending = engine.begin(8, CONTEXT)
    with ThreadPoolExecutor(1) as caller:
        task = caller.submit(pending.rank, ids, pair)
        assert eventually(lambda: pending.phase is Phase.RANKING)
        source.gate.set()
        ranking = task.result(30)
    assert ranking.report.rung == 0
    record = source.users(8)
    assert record is not None
    assert_ranks_as(ranking, ids, *world.scores(record, ids, pair, CONTEXT))


@ways
def test_rungs_millisecond_deadlines_are_answered_rightly_or_refused(
    gated: Make, source: GatedUsers, world: World, way: str
) -> None:
    engine = gated(user_states=UNCACHED)
    ids, pair = world.candidates(40)
    record = source.users(8)
    assert record is not None
    right = {
        0: world.scores(record, ids, pair, CONTEXT), 1: world.scores(record, ids, pair, CONTEXT, long=False),
        2: world.scores(UserRecord(), ids, pair, CONTEXT), 3: item_prior(world, ids, pair),
    }  # fmt: skip
    answered, seconds = 0, list[float]()

    async def one() -> Ranking:
        return await engine.begin(8, CONTEXT, deadline_ms=1.0).rank_async(ids, pair)

    async def many(number: int) -> list[Any]:
        return [await asyncio.gather(one(), return_exceptions=True) for _ in range(number)]

    def outcomes() -> Iterator[Any]:
        if way == "rank_async":
            yield from (found for (found,) in asyncio.run(many(150)))
            return
        for _ in range(150):
            began = time.perf_counter()
            try:
                yield engine.begin(8, CONTEXT, deadline_ms=1.0).rank(ids, pair)
            except DeadlineExceededError as error:
                yield error
            seconds.append(time.perf_counter() - began)

    for outcome in outcomes():
        if isinstance(outcome, DeadlineExceededError):
            continue
        assert_ranks_as(outcome, ids, *right[outcome.report.rung])
        answered += 1
    assert answered > 0
    assert np.median(seconds or 0.0) < 1.0
