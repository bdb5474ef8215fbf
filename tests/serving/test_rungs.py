"""Each rung of a running engine: its answers are those of the plain model with that much less, and say so."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.config import PRECISIONS, Precision
from aif_jax.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    RetrievalError,
    UnknownItemError,
)
from aif_jax.features.score import best_first
from aif_jax.models import Folded
from aif_jax.nearline import ItemIndex, Tables, build_tables
from aif_jax.serving import Engine, EngineConfig, InMemoryUsers, Threads
from aif_jax.serving.ladder import Ladder
from aif_jax.serving.report import Ranking
from aif_jax.types import Candidates, ItemRecords, Request, UserRecord
from support.held import until
from support.served import ENGINE_CONFIG, K_MAX, UNCACHED, Served, World

CONTEXT = {"hour": 7}
WITHIN = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.05}
PATIENT_MS = 60_000.0


def records_of(world: World) -> ItemRecords:
    return ItemRecords(world.ids, world.columns, world.content)


@pytest.fixture(scope="module")
def served(bundle: Bundle, tables: Tables, world: World, tmp_path_factory: Any) -> dict[Precision, Served]:
    """The bundle in each precision, with its tables."""
    found: dict[Precision, Served] = {"float32": (bundle, tables)}
    for precision in PRECISIONS[1:]:
        path = tmp_path_factory.mktemp("rungs") / precision
        exported = export_bundle(world.model, path, k_max=K_MAX, precision=precision)
        found[precision] = exported, build_tables(exported, records_of(world))
    return found


class Source:
    """A user source that waits until it is let go, and may fail."""

    def __init__(self, users: InMemoryUsers):
        self.users, self.gate, self.asked = users, threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.gate.set()

    def __call__(self, user: Any) -> UserRecord | None:
        self.asked.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.users(user)


@pytest.fixture
def source(users: InMemoryUsers) -> Iterator[Source]:
    made = Source(users)
    yield made
    made.gate.set()


Make = Callable[..., Engine]


@pytest.fixture
def make(served: dict[Precision, Served], source: Source) -> Iterator[Make]:
    made: list[Engine] = []

    def make_engine(
        precision: Precision = "float32", kind: str = "native", retrieve: Any = None, fallback: Any = None,
        **settings: Any,
    ) -> Engine:  # fmt: skip
        bundle, tables = served[precision]
        if kind == "portable":
            bundle = Bundle.load(bundle.path, prefer="portable")
        config = dataclasses.replace(ENGINE_CONFIG, k=K_MAX, **settings)
        engine = Engine(bundle, tables, users=source, retrieve=retrieve, fallback=fallback, config=config)
        made.append(engine)
        return engine

    yield make_engine
    source.gate.set()
    for engine in made:
        engine.close()


def ladder_of(engine: Engine) -> Ladder:
    return engine.hooks.generations.current.ladder


def believe(engine: Engine, key: Any, ms: float) -> None:
    """Have the engine believe that something takes so long."""
    for _ in range(300):
        ladder_of(engine).times.record(key, ms)


def believe_stage(engine: Engine, ms: float) -> None:
    shapes = engine.config.shapes
    for size in shapes.candidates or ():
        for length in shapes.histories or ():
            believe(engine, ladder_of(engine).stage_key(size, length), ms)


def check(ranking: Ranking, ids: np.ndarray, score: np.ndarray, heads: np.ndarray, within: float) -> None:
    """Compare a ranking with the plain model's scores of all candidates."""
    at = {int(key): place for place, key in enumerate(ids)}
    chosen = [at[int(key)] for key in ranking.ids]
    np.testing.assert_allclose(ranking.scores, score[chosen], rtol=within)
    np.testing.assert_allclose(np.stack([*ranking.heads.values()], axis=1), heads[chosen], rtol=within)
    assert ranking.scores.tolist() == sorted(ranking.scores.tolist(), reverse=True)
    left_out = np.delete(score, chosen)
    assert len(chosen) == min(K_MAX, len(ids))
    assert not len(left_out) or left_out.max() <= ranking.scores.min() * (1 + within)


def item_prior(world: World, ids: np.ndarray, pair: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The score of items by the model's heads for nobody, nowhere, with nothing known of the pair."""
    _, heads = world.scores(UserRecord(), ids, {}, {})
    return heads[:, 0] * (heads[:, 1] + 0.1) * np.asarray(pair["bid"], np.float32), heads


def differs(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one / other - 1).max() > 0.1)


every_program = pytest.mark.parametrize(
    ("precision", "kind"), [(p, kind) for p in PRECISIONS for kind in ("native", "portable")]
)


@every_program
def test_every_rung_is_the_model_with_that_much_less(
    make: Make, source: Source, world: World, precision: Precision, kind: str
) -> None:
    engine, within = make(precision, kind, user_states=UNCACHED), WITHIN[precision]
    ladder, requests = ladder_of(engine), []
    for seed in (5, 8):
        record = source.users(seed)
        assert record is not None
        ids, pair = world.candidates((60, 140)[seed == 8], seed=seed)
        requests.append((seed, record, ids, pair))

    def ranked(seed: int, ids: Any, pair: Any, deadline_ms: float = PATIENT_MS) -> Ranking:
        return engine.begin(seed, CONTEXT, deadline_ms=deadline_ms).rank(ids, pair)

    for seed, record, ids, pair in requests:
        full = world.scores(record, ids, pair, CONTEXT)
        ranking = ranked(seed, ids, pair)
        assert (ranking.report.rung, ranking.report.rung_reason) == (0, None)
        check(ranking, ids, *full, within)

    believe(engine, ladder.user_key(24), 1e9)
    for seed, record, ids, pair in requests:
        full = world.scores(record, ids, pair, CONTEXT)
        short = world.scores(record, ids, pair, CONTEXT, long=False)
        assert differs(short[0], full[0])
        ranking = ranked(seed, ids, pair)
        report = ranking.report
        assert (report.rung, report.rung_reason, report.long_bucket) == (1, "user program late", 8)
        check(ranking, ids, *short, within)

    believe_stage(engine, 100.0)  # so that a machine that wakes us late is no reason to skip the stage
    source.gate.clear()
    for seed, record, ids, pair in requests:
        short = world.scores(record, ids, pair, CONTEXT, long=False)
        nobody = world.scores(UserRecord(), ids, pair, CONTEXT)
        assert differs(nobody[0], short[0])
        ranking = ranked(seed, ids, pair, 400)
        report = ranking.report
        assert (report.rung, report.rung_reason, report.user_state) == (2, "user source late", "prior")
        check(ranking, ids, *nobody, within)

    believe_stage(engine, 1e9)
    for seed, _, ids, pair in requests:
        nobody = world.scores(UserRecord(), ids, pair, CONTEXT)
        prior = item_prior(world, ids, pair)
        assert differs(prior[0], nobody[0])
        began = time.perf_counter()
        ranking = ranked(seed, ids, pair, 2000)
        assert time.perf_counter() - began < 1.0  # it does not wait for what it could not use
        report = ranking.report
        assert (report.rung, report.rung_reason, report.calls) == (3, "stage would not fit", 0)
        check(ranking, ids, *prior, 1e-4)  # in every precision
    counts = engine.stats()["requests"]
    assert [counts[f"rung:{rung}"] for rung in range(4)] == [2, 2, 2, 2]
    assert counts["degraded:user program late"] == 2
    assert counts["degraded:user source late"] == 2
    assert counts["degraded:stage would not fit"] == 2


# -- item prior -----------------------------------------------------------------------------------


def test_item_prior_counts_and_policies(make: Make, world: World, served: dict[Precision, Served]) -> None:
    bundle, tables = served["float32"]
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    ids, pair = world.candidates(30, seed=1)
    index.set_rankable(ids[:3], False)
    strange = np.arange(1, 5, dtype=np.uint64)
    ids, bid = np.concatenate([ids, strange]), np.append(pair["bid"], np.ones(4))
    bid[5] = np.inf
    for policy in ("drop", "default", "error"):
        config = dataclasses.replace(ENGINE_CONFIG, k=K_MAX, missing_items=policy, unknown_user="default")
        with Engine(bundle, tables._replace(items=index), users=InMemoryUsers(), config=config) as engine:
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


def test_a_bundle_without_item_priors_has_no_rung_3(
    world: World, users: InMemoryUsers, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older releases wrote them."""
    item = Folded.item
    monkeypatch.setattr(
        Folded, "item", lambda self, *given: {n: a for n, a in item(self, *given).items() if n != "prior"}
    )
    bundle = export_bundle(world.model, tmp_path / "old", k_max=K_MAX)
    tables = build_tables(bundle, records_of(world))
    assert "prior" not in tables.items.store.columns
    ids, pair = world.candidates(40)
    source = Source(users)
    with Engine(bundle, tables, users=source, config=ENGINE_CONFIG) as engine:
        believe_stage(engine, 1e9)
        source.gate.clear()
        ranking = engine.begin(5, CONTEXT, deadline_ms=500).rank(ids, pair, k=K_MAX)
        source.gate.set()
        assert ranking.report.rung == 2
        check(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT), 1e-4)
        assert not engine.stats()["ladder"]["item_prior"]


# -- why ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["rank", "rank_async"])
def test_a_source_that_hangs_costs_its_request_no_more_than_the_deadline(
    make: Make, source: Source, world: World, way: str
) -> None:
    engine = make()
    source.gate.clear()
    ids, pair = world.candidates(40)
    pending = engine.begin(5, CONTEXT, deadline_ms=80)
    ranking = pending.rank(ids, pair) if way == "rank" else asyncio.run(pending.rank_async(ids, pair))
    report = ranking.report
    assert report.rung in (2, 3)  # 3 if this machine woke us too late
    assert report.total_ms < 1_000
    if report.rung == 2:
        assert report.wait_ms > 40
        check(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT), 1e-4)
    names = {span.name for span in report.spans}
    assert "user program" not in names


def test_a_late_state_is_there_for_the_next_request(make: Make, source: Source, world: World) -> None:
    engine = make()
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


def test_a_state_without_the_long_sequence_is_not_kept(make: Make, source: Source, world: World) -> None:
    engine = make()
    ids, pair = world.candidates(40)
    believe(engine, ladder_of(engine).user_key(24), 1e9)
    assert engine.begin(8, CONTEXT, deadline_ms=PATIENT_MS).rank(ids, pair).report.rung == 1
    report = engine.begin(8, CONTEXT).rank(ids, pair).report
    assert (report.rung, report.user_state, report.long_bucket) == (0, "computed", 24)


def test_a_full_queue_degrades_what_has_a_deadline(make: Make, source: Source, world: World) -> None:
    engine = make(threads=Threads(blocking=1, max_queued=1))
    source.gate.clear()
    ids, pair = world.candidates(40)
    held = [engine.begin(1)]
    assert until(engine, lambda stats: stats["scheduler"]["blocking"]["running"])
    held.append(engine.begin(2))  # the first has the thread, the second the place in the queue
    with pytest.raises(OverloadedError):
        engine.begin(5, CONTEXT)
    report = (ranking := engine.begin(5, CONTEXT, deadline_ms=PATIENT_MS).rank(ids, pair)).report
    assert (report.rung, report.rung_reason) == (2, "overloaded")
    assert report.wait_ms < 50
    check(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT), 1e-4)
    assert engine.stats()["requests"]["degraded:overloaded"] == 1
    source.gate.set()
    for pending in held:
        pending.cancel()


@pytest.mark.parametrize("way", ["rank", "rank_async"])
def test_a_full_queue_is_not_to_blame_for_a_caller_who_is_late(
    make: Make, source: Source, world: World, way: str
) -> None:
    engine = make(threads=Threads(blocking=1, max_queued=1))
    source.gate.clear()
    held = [engine.begin(1)]
    assert until(engine, lambda stats: stats["scheduler"]["blocking"]["running"])
    held.append(engine.begin(2))
    pending = engine.begin(5, CONTEXT, deadline_ms=20)
    time.sleep(0.05)
    with pytest.raises(DeadlineExceededError, match="of the deadline of 20 ms before the real-time stage"):
        _ = pending.rank(world.ids[:5]) if way == "rank" else asyncio.run(pending.rank_async(world.ids[:5]))
    source.gate.set()
    for other in held:
        other.cancel()


@pytest.mark.parametrize("deadline_ms", [None, PATIENT_MS])
def test_a_source_that_fails(make: Make, source: Source, world: World, deadline_ms: float | None) -> None:
    source.error = ConnectionError("down")
    ids, pair = world.candidates(40)
    with pytest.raises(ConnectionError, match="down"):
        make().begin(5, CONTEXT, deadline_ms=deadline_ms).rank(ids, pair)
    engine = make(on_user_source_error="degrade")
    ranking = engine.begin(5, CONTEXT, deadline_ms=deadline_ms).rank(ids, pair)
    assert (ranking.report.rung, ranking.report.rung_reason) == (2, "user source failed")
    check(ranking, ids, *world.scores(UserRecord(), ids, pair, CONTEXT), 1e-4)


def test_lateness_is_an_error_where_it_is_told_to_be(make: Make, source: Source, world: World) -> None:
    engine = make(on_deadline="error")
    believe_stage(engine, 1e9)
    believe(engine, ladder_of(engine).user_key(24), 1e9)
    assert engine.begin(8, CONTEXT, deadline_ms=PATIENT_MS).rank(world.ids[:40]).report.rung == 0
    source.gate.clear()
    with pytest.raises(DeadlineExceededError, match="its user source has not answered"):
        engine.begin(8, CONTEXT, deadline_ms=30).rank(world.ids[:40])


@pytest.mark.parametrize("done", [True, False])
def test_a_caller_who_comes_after_the_deadline_gets_an_error(
    make: Make, source: Source, world: World, done: bool
) -> None:
    engine = make()
    if not done:
        source.gate.clear()
    pending = engine.begin(5, deadline_ms=20)
    time.sleep(0.05)
    with pytest.raises(DeadlineExceededError, match="deadline of 20 ms"):
        pending.rank(world.ids[:5])


def test_nothing_is_degraded_without_a_deadline(make: Make, source: Source, world: World) -> None:
    engine = make(user_states=UNCACHED)
    believe_stage(engine, 1e9)
    believe(engine, ladder_of(engine).user_key(24), 1e9)
    ids, pair = world.candidates(40)
    source.gate.clear()
    threading.Timer(0.05, source.gate.set).start()
    ranking = engine.begin(8, CONTEXT).rank(ids, pair)
    assert ranking.report.rung == 0
    record = source.users(8)
    assert record is not None
    check(ranking, ids, *world.scores(record, ids, pair, CONTEXT), 1e-4)


@pytest.mark.parametrize("way", ["rank", "rank_async"])
def test_a_deadline_of_a_millisecond_is_answered_or_refused_quickly_and_never_wrongly(
    make: Make, source: Source, world: World, way: str
) -> None:
    engine = make(user_states=UNCACHED)
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
        check(outcome, ids, *right[outcome.report.rung], 1e-4)
        answered += 1
    assert answered > 0
    assert np.median(seconds or 0.0) < 0.05


# -- retrieval ------------------------------------------------------------------------------------


def hanging(released: threading.Event) -> Any:
    def retrieve(request: Request) -> Any:
        released.wait(30)
        return []

    return retrieve


async def hanging_coroutine(request: Request) -> Any:
    await asyncio.sleep(30)


def raising(request: Request) -> Any:
    raise OSError("no route")


ways = pytest.mark.parametrize("way", ["rank", "rank_async"])


def run(engine: Engine, way: str, **given: Any) -> Ranking:
    return engine.rank(5, **given) if way == "rank" else asyncio.run(engine.rank_async(5, **given))


@ways
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_retrieval_that_hangs_is_given_up(make: Make, world: World, way: str, kind: str) -> None:
    released = threading.Event()
    ids, pair = world.candidates(30)
    retrieve = hanging(released) if kind == "plain" else hanging_coroutine
    engine = make(retrieve=retrieve, fallback=Candidates(ids, pair))
    try:
        report = (ranking := run(engine, way, context=CONTEXT, deadline_ms=100)).report
    finally:
        released.set()
    assert (report.retrieval, report.retrieval_reason) == ("fallback", "late")
    assert report.total_ms < 300
    if report.rung == 0:  # all but always: the user side has had all the time
        check(ranking, ids, *world.scores(world.record(5, 15), ids, pair, CONTEXT), 1e-4)
    assert engine.stats()["requests"]["fallback:late"] == 1


@ways
@pytest.mark.parametrize("deadline_ms", [None, PATIENT_MS])
@pytest.mark.parametrize(
    ("retrieve", "reason"),
    [
        (raising, "raised OSError"),
        (lambda request: None, "not candidates"),
        (lambda request: [], "not candidates"),
        (lambda request: [1.5, 2.5], "not candidates"),
        (lambda request: Candidates([1, 2], {"bid": [1.0]}), "not candidates"),
    ],
)
def test_retrieval_that_fails_gives_way_to_the_fallback(
    make: Make, world: World, retrieve: Any, reason: str, deadline_ms: float | None, way: str
) -> None:
    ids, pair = world.candidates(30)
    asked: list[Request] = []

    def fallback(request: Request) -> Candidates:
        asked.append(request)
        return Candidates(ids, pair)

    engine = make(retrieve=retrieve, fallback=fallback)
    ranking = run(engine, way, context=CONTEXT, deadline_ms=deadline_ms)
    report = ranking.report
    assert (report.retrieval, report.retrieval_reason, report.rung) == ("fallback", reason, 0)
    assert [(request.user, request.context) for request in asked] == [(5, CONTEXT)]
    check(ranking, ids, *world.scores(world.record(5, 15), ids, pair, CONTEXT), 1e-4)
    with pytest.raises(RetrievalError):
        run(make(retrieve=retrieve), way, context=CONTEXT, deadline_ms=deadline_ms)


@ways
def test_good_retrieval_is_used(make: Make, world: World, way: str) -> None:
    ids, pair = world.candidates(30)
    engine = make(retrieve=lambda request: Candidates(ids, pair), fallback=world.ids[:3])
    report = run(engine, way, deadline_ms=PATIENT_MS).report
    assert (report.retrieval, report.retrieval_reason, report.candidates) == ("own", None, 30)
    assert "fallback:late" not in engine.stats()["requests"]
    assert engine.begin(5).rank(ids).report.retrieval == "caller"


def test_a_fallback_that_is_none(make: Make, world: World) -> None:
    for given, message in (
        ("abc", "got|a str"), ([], "there are no candidates"), (hanging_coroutine, "a coroutine function"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"fallback: .*({message})"):
            make(fallback=given)
    for fallback in (raising, lambda request: None):
        with pytest.raises(RetrievalError, match=r"fallback raised OSError|returned"):
            make(retrieve=raising, fallback=fallback).rank(5)


@pytest.mark.parametrize("seed", range(60))
def test_best_first_is_the_start_of_a_stable_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    scores = rng.integers(0, int(rng.choice([2, 5, 1_000])), n).astype(np.float32)
    scores[rng.random(n) < 0.3] = -np.inf
    for k in {0, 1, n // 2, n}:
        want = np.argsort(-scores, kind="stable")[:k]
        np.testing.assert_array_equal(best_first(scores, k), want)


def test_configured_policies_are_checked() -> None:
    with pytest.raises(ConfigError, match="on_deadline: got 'never', expected 'degrade' or 'error'"):
        EngineConfig(on_deadline="never")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_user_source_error: got None"):
        EngineConfig(on_user_source_error=None)  # type: ignore[arg-type]
