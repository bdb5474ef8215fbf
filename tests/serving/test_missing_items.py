"""Rows computed while a request waits: the same rows as ever, bounded, and never an error of the request."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations
from aif_jax.errors import ConfigError, RequestError, SchedulerError
from aif_jax.features import item_keys
from aif_jax.nearline import ItemIndex, Tables, Upsert
from aif_jax.serving import Engine, EngineConfig, Filters, InMemoryUsers, MissingItems, Shapes, Threads
from aif_jax.types import ItemRecords
from support.served import K_MAX, N_ITEMS, World

COMPUTE = EngineConfig(
    k=10,
    shapes=Shapes(candidates=(32, 64), histories=(24,)),
    missing_items=MissingItems("compute", max_wait_ms=20_000.0),
)


class Catalogue:
    """An item source that knows every item of the world, under its own ids or as strings, and keeps count."""

    def __init__(self, world: World, names: list[str] | None = None):
        self._world = world
        ids = world.ids.tolist() if names is None else names
        self._row = {item: row for row, item in enumerate(ids)}
        self.asked: list[list[Any]] = []
        self.hook: Callable[[np.ndarray], Any] = lambda ids: None

    def records(self, ids: list[Any]) -> ItemRecords:
        rows = [self._row[item] for item in ids]
        columns = {
            name: [values[row] for row in rows] if isinstance(values, list) else values[rows]
            for name, values in self._world.columns.items()
        }
        return ItemRecords(ids, columns, self._world.content[rows])

    def __call__(self, ids: np.ndarray, /) -> ItemRecords | None:
        self.asked.append(ids.tolist())
        if (answer := self.hook(ids)) is not None:
            return answer
        known = [item for item in ids.tolist() if item in self._row]
        return self.records(known) if known else None


@pytest.fixture
def source(world: World) -> Catalogue:
    return Catalogue(world)


@pytest.fixture
def make(bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World) -> Iterator[Any]:
    """Make engines over an index of the first 100 items, or of the one given."""
    made: list[Engine] = []

    def make_engine(
        items: Any, index: ItemIndex | None = None, rows: Any = "auto", blocking: int = 8, **settings: Any
    ) -> Engine:
        config = dataclasses.replace(
            COMPUTE,
            missing_items=dataclasses.replace(COMPUTE.missing_items, **settings),
            item_rows=rows,
            threads=Threads(blocking=blocking),
        )
        index = part_of(bundle, world) if index is None else index
        served = Tables(index, tables.behaviours)
        engine = Engine(index.bundle, served, users=users, items=items, config=config)
        made.append(engine)
        return engine

    yield make_engine
    for engine in made:
        engine.close()


def part_of(bundle: Bundle, world: World, n: int = 100) -> ItemIndex:
    columns = {name: values[:n] for name, values in world.columns.items()}
    return ItemIndex.build(bundle, world.ids[:n], columns, world.content[:n])


def index_of(engine: Engine) -> ItemIndex:
    return engine.tables.items


def rank(engine: Engine, way: str, ids: Any, pair: Any = None, **arguments: Any) -> Any:
    pending = engine.begin(5, deadline_ms=arguments.pop("deadline_ms", None))
    if way == "rank":
        return pending.rank(ids, pair, **arguments)
    return asyncio.run(pending.rank_async(ids, pair, **arguments))


WAYS = pytest.mark.parametrize("way", ["rank", "rank_async"])


@WAYS
@pytest.mark.parametrize("kind", ["native", "portable", "device"])
def test_a_computed_row_is_the_row_that_build_makes(
    make: Any, bundle: Bundle, index: ItemIndex, engine: Engine, world: World, source: Catalogue, way: str,
    kind: str,
) -> None:  # fmt: skip
    served = Bundle.load(bundle.path, prefer="native" if kind == "native" else "portable")
    computing = make(source, part_of(served, world), rows="device" if kind == "device" else "host")
    ids, pair = world.ids[70:130], {"bid": np.linspace(0.1, 2, 60)}
    ranking = rank(computing, way, ids, pair, k=K_MAX)
    report = ranking.report
    assert (report.computed_items, report.missing_items, report.uncomputed_items) == (30, 0, {})
    assert source.asked == [world.ids[100:130].tolist()]  # the missing ones, and nothing else
    for name, column in index_of(computing).gather(world.ids[100:130])[0].items():
        assert column.tobytes() == index.gather(world.ids[100:130])[0][name].tobytes(), name
    if kind == "native":
        whole = engine.begin(5).rank(ids, pair, k=K_MAX)
        assert ranking.ids.tolist() == whole.ids.tolist()
        assert ranking.scores.tolist() == whole.scores.tolist()
    again = rank(computing, way, ids, pair, k=K_MAX)
    assert again.scores.tolist() == ranking.scores.tolist()
    assert (again.report.computed_items, len(source.asked)) == (0, 1)
    assert computing.stats()["missing_items"]["computed"] == 30
    assert computing.stats()["requests"]["computed_items"] == 30


@WAYS
def test_string_ids(make: Any, bundle: Bundle, world: World, way: str, index: ItemIndex) -> None:
    names = [f"item {i}" for i in range(N_ITEMS)]
    columns = {name: values[:100] for name, values in world.columns.items()}
    part = ItemIndex.build(bundle, names[:100], columns, world.content[:100])
    source = Catalogue(world, names)
    engine = make(source, part)
    ranking = rank(engine, way, names[90:120], k=K_MAX, filters=Filters(names[110:]))
    assert source.asked == [names[100:110]]  # what is excluded is not computed
    assert ranking.report.computed_items == 10
    assert set(ranking.ids.tolist()) == set(names[90:110])
    computed, _ = part.gather(item_keys(names[100:110]))
    for name, column in index.gather(world.ids[100:110])[0].items():
        assert column.tobytes() == computed[name].tobytes(), name
    assert set(part.ids().tolist()) == set(names[:110])


def test_categories_are_those_of_the_computed_row(make: Any, world: World, source: Catalogue) -> None:
    engine = make(source)
    ids = world.ids[95:125]
    ranking = engine.begin(5).rank(ids, k=K_MAX, filters=Filters(categories=["noir"]))
    noir = [int(i) for i, g in zip(ids, world.columns["genres"][95:125], strict=True) if "noir" in g]
    assert set(ranking.ids.tolist()) == set(noir)
    assert ranking.report.computed_items == 25


@WAYS
def test_no_more_than_the_bound_is_computed(make: Any, world: World, source: Catalogue, way: str) -> None:
    engine = make(source, max_items=7)
    report = rank(engine, way, world.ids[90:130]).report
    assert source.asked == [world.ids[100:107].tolist()]
    assert (report.computed_items, report.missing_items) == (7, 23)
    assert report.uncomputed_items == {"over_bound": 23}
    assert rank(engine, way, world.ids[90:130]).report.computed_items == 7  # the next ones
    assert engine.stats()["requests"]["uncomputed:over_bound"] == 23 + 16


@WAYS
def test_a_late_source_costs_its_items_and_no_more(
    make: Any, world: World, source: Catalogue, way: str
) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = make(source, max_wait_ms=200.0)
    began = time.perf_counter()
    report = rank(engine, way, world.ids[95:105]).report
    assert time.perf_counter() - began < 5
    assert (report.uncomputed_items, report.missing_items, report.k_given) == ({"late": 5}, 5, 5)
    assert 150 < report.items_wait_ms < 5_000
    again = rank(engine, way, world.ids[95:105]).report  # late already: nobody waits a second time
    assert (again.uncomputed_items, len(source.asked)) == ({"late": 5}, 1)
    assert again.items_wait_ms < 150
    release.set()
    wait_for(lambda: len(index_of(engine)) == 105)  # it came too late for those two, not for others
    assert rank(engine, way, world.ids[95:105]).report.missing_items == 0


@WAYS
def test_a_deadline_leaves_time_for_the_stage(make: Any, world: World, source: Catalogue, way: str) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = make(source)
    report = rank(engine, way, world.ids[95:105], deadline_ms=2_000).report
    release.set()
    assert report.uncomputed_items == {"late": 5}
    assert 600 < report.items_wait_ms < 1_500  # half of what was left
    assert (report.k_given, report.overrun_ms) == (5, 0.0)


@WAYS
@pytest.mark.parametrize(
    ("answer", "reason", "told"),
    [
        (ConnectionError("catalogue is down"), "error:ConnectionError", "ConnectionError: catalogue is down"),
        ([1, 2], "error:ItemIndexError", "returned a list, expected ItemRecords or None"),
        (ItemRecords([1], {}), "error:ItemIndexError", "1 items that it was not asked for"),
        (lambda ids: ItemRecords(ids, {"colour": ["red"] * len(ids)}), "error:SchemaError", "'colour'"),
        (lambda ids: ItemRecords(ids, {"price": [1.0]}), "error:SchemaError", "'price'"),
        (lambda ids: ItemRecords([*ids, ids[0]], {}), "error:ItemIndexError", "is given twice"),
        (lambda ids: ItemRecords(ids, {}, np.ones((1, 1))), "error:ItemIndexError", "content: got shape"),
        (lambda ids: ItemRecords([1.5], {}), "error:RequestError", "float"),
    ],
)
def test_a_failing_source_costs_its_items_and_no_more(
    make: Any, world: World, source: Catalogue, way: str, answer: Any, reason: str, told: str
) -> None:
    def hook(ids: np.ndarray) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer(ids) if callable(answer) else answer

    source.hook = hook
    engine = make(source, retry_s=60.0)
    for calls in (1, 1):  # not again for a while
        report = rank(engine, way, world.ids[95:105]).report
        assert (report.uncomputed_items, report.missing_items) == ({reason: 5}, 5)
        assert report.k_given == 5
        assert len(source.asked) == calls
    stats = engine.stats()
    assert told in stats["missing_items"]["last_error"]
    assert (stats["missing_items"]["failed"], stats["missing_items"]["put_off"]) == (5, 5)
    assert not any(name.startswith("error:") for name in stats["requests"])
    assert len(index_of(engine)) == 100


def test_what_failed_is_tried_again_after_a_while(make: Any, world: World, source: Catalogue) -> None:
    engine = make(source, retry_s=0.05)
    source.hook = lambda ids: (_ for _ in ()).throw(ConnectionError("down"))
    assert rank(engine, "rank", world.ids[98:102]).report.computed_items == 0
    source.hook = lambda ids: None
    time.sleep(0.06)
    assert rank(engine, "rank", world.ids[98:102]).report.computed_items == 2


def test_what_the_source_does_not_know_is_left_out(make: Any, world: World, source: Catalogue) -> None:
    engine = make(source, retry_s=60.0)
    ids = [int(world.ids[0]), int(world.ids[100]), 1, 2]
    report = engine.begin(5).rank(ids).report
    assert (report.computed_items, report.uncomputed_items, report.k_given) == (1, {"unknown": 2}, 2)
    report = engine.begin(5).rank(ids).report
    assert (report.computed_items, report.uncomputed_items, len(source.asked)) == (0, {"unknown": 2}, 1)
    assert engine.begin(5).rank([3]).report.empty_because.endswith("1 without an item row")


def test_items_that_may_not_be_ranked_stay_so(make: Any, world: World, source: Catalogue) -> None:
    def hook(ids: np.ndarray) -> Upsert:
        records = source.records(ids.tolist())
        return Upsert(records.ids, records.columns, records.content, np.arange(len(ids)) % 2 == 0)

    source.hook = hook
    report = make(source).begin(5).rank(world.ids[100:110]).report
    assert (report.computed_items, report.not_rankable, report.k_given) == (10, 5, 5)


def test_a_row_that_was_written_meanwhile_is_kept(make: Any, world: World, source: Catalogue) -> None:
    engine = make(source)
    index, ids = index_of(engine), world.ids[100:102]
    columns = {"item": [1], "genres": [["noir"]], "price": [9.9]}

    def hook(asked: np.ndarray) -> None:
        index.upsert(ids[:1], columns)  # a stream of updates, later than what the source has read

    source.hook = hook
    assert engine.begin(5).rank(ids).report.missing_items == 0
    expected = ItemIndex.build(index.bundle, ids[:1], columns).gather(ids[:1])[0]
    assert all(index.gather(ids[:1])[0][n].tobytes() == expected[n].tobytes() for n in expected)
    assert engine.stats()["missing_items"]["computed"] == 1


@WAYS
def test_an_item_is_computed_once_for_all_who_want_it(
    make: Any, world: World, source: Catalogue, way: str
) -> None:
    source.hook = lambda ids: time.sleep(0.1)
    engine = make(source, blocking=8)
    rankings: list[Any] = []
    barrier = threading.Barrier(6)

    def request(number: int) -> None:
        barrier.wait()
        time.sleep(0.005 * number)
        rankings.append(rank(engine, way, world.ids[100 + number : 115 + number], k=K_MAX))

    threads = [threading.Thread(target=request, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = [item for ids in source.asked for item in ids]
    uncomputed = sum(sum(ranking.report.uncomputed_items.values()) for ranking in rankings)
    assert len(asked) == len(set(asked))  # none twice
    assert len(source.asked) <= 6
    assert uncomputed == sum(ranking.report.uncomputed_items.get("busy", 0) for ranking in rankings)
    assert all(len(r) == r.report.k_given == 15 for r in rankings if not r.report.uncomputed_items)


def test_a_source_that_hangs_leaves_threads_for_others(make: Any, world: World, source: Catalogue) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = make(source, blocking=4, max_wait_ms=5.0)
    reports = [engine.begin(5).rank([world.ids[0], world.ids[100 + n]]).report for n in range(10)]
    wait_for(lambda: len(source.asked) >= 2)
    assert len(source.asked) == 2  # half of the threads
    assert [report.uncomputed_items for report in reports] == [{"late": 1}] * 2 + [{"busy": 1}] * 8
    assert all(report.k_given == 1 for report in reports)
    release.set()
    wait_for(lambda: engine.stats()["missing_items"]["under_way"] == 0)
    # Whether 5 ms are enough for it is up to the machine; the threads are there for it.
    report = engine.begin(5).rank([world.ids[115]]).report
    assert report.computed_items == 1 or report.uncomputed_items == {"late": 1}
    wait_for(lambda: len(source.asked) == 3)


def test_nothing_compiles_on_a_request(make: Any, world: World, source: Catalogue) -> None:
    engine = make(source, max_items=70)
    before = compilations()
    for start in (0, 1, 40, 69, 80):
        engine.begin(5).rank(world.ids[start : start + 70])
    for n in (1, 63, 64, 65, 70):
        index_of(engine).delete(world.ids)
        assert engine.begin(5).rank(world.ids[:n]).report.computed_items == n
    assert compilations() == before


def test_closing_ends_what_is_under_way(make: Any, world: World, source: Catalogue) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = make(source, blocking=2)
    failed: list[Any] = []

    def request() -> None:
        try:
            engine.begin(5).rank(world.ids[95:105])
        except (RequestError, SchedulerError) as error:  # which, depends on how far it had come
            failed.append(error)

    thread = threading.Thread(target=request)
    thread.start()
    wait_for(lambda: bool(source.asked))
    closer = threading.Thread(target=engine.close)
    closer.start()
    release.set()
    thread.join(20)
    closer.join(20)
    assert not thread.is_alive()
    assert not closer.is_alive()


def test_source_and_policy_go_together(bundle: Bundle, tables: Tables) -> None:
    users, expected = InMemoryUsers(), "expected an item source with missing_items='compute', else None"
    with pytest.raises(ConfigError, match=f"items: got None, {expected}; it is 'compute': change one"):
        Engine(bundle, tables, users=users, config=COMPUTE)
    with pytest.raises(ConfigError, match=f"items: got <class 'function'>, {expected}; it is 'drop':"):
        Engine(bundle, tables, users=users, items=lambda ids: None)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.perf_counter() + 20
    while not condition():
        assert time.perf_counter() < until, "it did not happen"
        time.sleep(0.005)
