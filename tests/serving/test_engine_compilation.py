"""No compilation on requests, as counted by JAX itself."""

import asyncio
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import ItemIndex, Tables
from aif_jax.serving import Engine, Filters, InMemoryUsers, MissingItems, Shapes, UserStateCache
from aif_jax.types import Candidates, ItemRecords, Request, UserRecord
from support.served import K_MAX, N_ITEMS, Make, World

BUCKETS = (16 * 2, 16 * 4)


LONGS = (8, 24)


SHAPES = Shapes(candidates=BUCKETS, histories=LONGS)


COUNTS = (
    1, 15, 16, 17, BUCKETS[0] - 1, BUCKETS[0], BUCKETS[0] + 1, BUCKETS[1] - 1, BUCKETS[1], BUCKETS[1] + 1,
    int(2.5 * BUCKETS[1]),
)  # fmt: skip


HISTORIES = (0, 1, 5, LONGS[0], LONGS[0] + 1, LONGS[1], 2 * LONGS[1])


class CompileEvents:
    """Names of the events by which JAX tells that it traces, lowers or compiles, in any thread."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seen.append(event)


@pytest.fixture(scope="module")
def all_events() -> CompileEvents:
    # JAX offers no public way to take one listener away again, so there is one for all tests.
    return CompileEvents()


@pytest.fixture
def events(all_events: CompileEvents) -> CompileEvents:
    """A listener that hears what JAX compiles, shown each time: silence would pass every test."""
    all_events.seen.clear()
    jax.clear_caches()
    jnp.add(np.float32(1), np.float32(2)).block_until_ready()
    assert "/jax/core/compile/backend_compile_duration" in all_events.seen
    all_events.seen.clear()
    return all_events


@pytest.fixture
def people(world: World) -> InMemoryUsers:
    """One user for each length of history, under that length; ``-1`` knows only items that nobody has."""
    users = {length: world.record(length, length) for length in HISTORIES}
    strange = np.arange(1, 13, dtype=np.uint64)
    return InMemoryUsers({**users, -1: UserRecord(items=strange, types=np.zeros(12, np.int64))})


@pytest.fixture(params=["native", "portable"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def served_bundle(bundle: Bundle, kind: Any) -> Bundle:
    return Bundle.load(bundle.path, prefer=kind)


def candidates(world: World, n: int, *, unknown: int = 0) -> tuple[np.ndarray, dict[str, Any]]:
    """Return n different ids, of which at least ``unknown`` are in no index, and their pair features."""
    known = min(N_ITEMS, n - unknown)
    ids, _ = world.candidates(known, seed=n)
    ids = np.concatenate([ids, np.arange(1, n - known + 1, dtype=np.uint64)])
    rng = np.random.default_rng(n)
    return rng.permutation(ids), {
        "bid": rng.uniform(0.1, 2.0, n),
        "channel": np.array(["ann", "new", "other"])[rng.integers(0, 3, n)],
    }


@pytest.fixture
def fresh(make: Make, served_bundle: Bundle, tables: Tables, people: InMemoryUsers) -> Make:
    """A function that makes engines, after which JAX has forgotten what it compiled."""

    def make_engine(served_tables: Tables = tables, **given: Any) -> Engine:
        engine = make((served_bundle, served_tables), **{"users": people, "shapes": SHAPES, **given})
        # What an earlier test happened to compile shall not hide what a request would compile.
        jax.clear_caches()
        return engine

    return make_engine


@pytest.mark.parametrize(
    ("missing_items", "max_bytes"),
    [
        ("drop", 2**20),
        ("default", 0),
        *(pytest.param(*rest, marks=pytest.mark.thorough) for rest in (("drop", 0), ("default", 2**20))),
    ],
)
def test_engine_request_of_any_size_compiles_nothing(
    fresh: Make, events: CompileEvents, world: World, missing_items: str, max_bytes: int
) -> None:
    cache = UserStateCache(max_bytes=max_bytes)
    engine = fresh(missing_items=missing_items, user_states=cache, unknown_user="default")
    events.seen.clear()
    states: set[str] = set()
    users = (*HISTORIES, -1, 987_654)
    for n, user, paired in itertools.product(COUNTS, users, (True, False)):
        ids, pair = candidates(world, n)
        unknown, unknown_pair = candidates(world, n, unknown=-(-n // 2))
        ranking = engine.begin(user).rank(ids, pair if paired else None)
        states.add(ranking.report.user_state)
        ranking = engine.begin(user, {"hour": n % 30}).rank(unknown, unknown_pair if paired else None, k=1)
        assert ranking.report.missing_items >= n // 2
        assert ranking.report.calls == -(-n // BUCKETS[1])
        assert not events.seen, f"{n} candidates, user {user}, pair features {paired}: {events.seen}"
    assert states == ({"computed", "hit"} if max_bytes else {"computed"})
    assert engine.stats()["compilations"] == 0


def test_engine_every_way_to_ask_compiles_nothing(fresh: Make, events: CompileEvents, world: World) -> None:
    ids, pair = candidates(world, 50)

    def retrieve(request: Request) -> Any:
        return Candidates(ids, pair) if request.user else ids[:7].tolist()

    engine = fresh(retrieve=retrieve)
    events.seen.clear()
    engine.rank(5, {"hour": 3}, k=K_MAX)
    engine.rank(0)
    asyncio.run(engine.rank_async(8, deadline_ms=60_000))
    engine.rank_many(list(HISTORIES), k=3)
    doubled = engine.begin(9).rank(np.concatenate([ids, ids]))
    assert doubled.report.duplicates == len(ids)
    engine.rank(5, filters=Filters(ids[:9], ["noir", "drama"]))
    assert len(engine.rank(5, filters=Filters(ids))) == 0
    engine.begin(9).rank({"id": ids, **pair}, filters=Filters(ids[20:]))
    engine.begin(24).rank([int(i) for i in ids], {"bid": [None] * len(ids)})
    abandoned = engine.begin(48)
    abandoned.cancel()
    assert not events.seen, events.seen


def test_engine_catalogue_change_compiles_nothing_on_request(
    fresh: Make, served_bundle: Bundle, tables: Tables, events: CompileEvents, world: World
) -> None:
    index = ItemIndex.build(served_bundle, world.ids, world.columns, world.content)
    with fresh(tables._replace(items=index)) as engine:
        events.seen.clear()
        index.set_rankable(world.ids[:40], False)
        index.delete(world.ids[40:80])
        ranking = engine.begin(8).rank(world.ids)
        assert ranking.report.missing_items == 40
        assert ranking.report.not_rankable == 40
        assert not events.seen, events.seen


def test_engine_missing_rows_compile_nothing_on_request(
    fresh: Make, served_bundle: Bundle, tables: Tables, events: CompileEvents, world: World
) -> None:
    index = ItemIndex(served_bundle)
    computing = MissingItems("compute", max_items=300, max_wait_ms=60_000.0)

    def items(ids: np.ndarray) -> ItemRecords:
        return ItemRecords(ids, {"price": np.ones(len(ids))})

    with fresh(tables._replace(items=index), items=items, missing_items=computing) as engine:
        events.seen.clear()
        for n in (1, 63, 64, 65, 255, 256, 257, 300):
            index.delete(np.arange(300, dtype=np.uint64))
            report = engine.begin(8).rank(np.arange(n, dtype=np.uint64)).report
            assert report.computed_items == n, report.uncomputed_items
            assert not events.seen, f"{n} missing: {events.seen}"
