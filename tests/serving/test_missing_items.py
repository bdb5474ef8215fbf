"""Item rows computed while a request waits: equal to built ones, bounded, never an error of the request."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations
from aif_jax.errors import ConfigError, RequestError, SchedulerError
from aif_jax.features import item_keys
from aif_jax.nearline import ItemIndex, Tables, Upsert
from aif_jax.serving import Engine, EngineConfig, Filters, InMemoryUsers, MissingItems, Shapes, Threads
from aif_jax.types import ItemRecords
from support.served import K_MAX, N_ITEMS, Make, World, assert_same, part_of, ran, ways
from support.waiting import eventually

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
def computing(make: Make, bundle: Bundle, tables: Tables, world: World) -> Make:
    """A function that makes engines over an index of the first 100 items, or of the one given.

    It takes an item source, and fields of `MissingItems` and of `EngineConfig`.
    """
    fields = {field.name for field in dataclasses.fields(MissingItems)}

    def make_engine(items: Any, index: ItemIndex | None = None, **settings: Any) -> Engine:
        changes = {name: settings.pop(name) for name in fields & settings.keys()}
        missing = dataclasses.replace(COMPUTE.missing_items, **changes)
        index = first_items(bundle, world) if index is None else index
        served = index.bundle, tables._replace(items=index)
        return make(served, items=items, config=COMPUTE, missing_items=missing, **settings)

    return make_engine


def first_items(bundle: Bundle, world: World, n: int = 100) -> ItemIndex:
    return ItemIndex.build(bundle, *part_of(world, range(n)))


def index_of(engine: Engine) -> ItemIndex:
    return engine.tables.items


def rank(engine: Engine, way: str, ids: Any, pair: Any = None, **arguments: Any) -> Any:
    pending = engine.begin(5, deadline_ms=arguments.pop("deadline_ms", None))
    return ran(getattr(pending, way), ids, pair, **arguments)


@ways
@pytest.mark.parametrize("kind", ["native", "portable", "device"])
def test_missing_items_computed_row_equals_built_row(
    computing: Make, bundle: Bundle, index: ItemIndex, engine: Engine, world: World, source: Catalogue,
    way: str, kind: str,
) -> None:  # fmt: skip
    served = Bundle.load(bundle.path, prefer="native" if kind == "native" else "portable")
    rows = "device" if kind == "device" else "host"
    own = computing(source, first_items(served, world), item_rows=rows)
    ids, pair = world.ids[70:130], {"bid": np.linspace(0.1, 2, 60)}
    ranking = rank(own, way, ids, pair, k=K_MAX)
    report = ranking.report
    assert (report.computed_items, report.missing_items, report.uncomputed_items) == (30, 0, {})
    assert source.asked == [world.ids[100:130].tolist()]  # the missing ones, and nothing else
    for name, column in index_of(own).gather(world.ids[100:130])[0].items():
        assert column.tobytes() == index.gather(world.ids[100:130])[0][name].tobytes(), name
    if kind == "native":
        whole = engine.begin(5).rank(ids, pair, k=K_MAX)
        assert_same(ranking, whole)
    again = rank(own, way, ids, pair, k=K_MAX)
    assert again.scores.tolist() == ranking.scores.tolist()
    assert (again.report.computed_items, len(source.asked)) == (0, 1)
    assert own.stats()["missing_items"]["computed"] == 30
    assert own.stats()["requests"]["computed_items"] == 30


@ways
def test_missing_items_string_ids_are_computed(
    computing: Make, bundle: Bundle, world: World, way: str, index: ItemIndex
) -> None:
    names = [f"item {i}" for i in range(N_ITEMS)]
    _, columns, content = part_of(world, range(100))
    part = ItemIndex.build(bundle, names[:100], columns, content)
    source = Catalogue(world, names)
    engine = computing(source, part)
    ranking = rank(engine, way, names[90:120], k=K_MAX, filters=Filters(names[110:]))
    assert source.asked == [names[100:110]]  # what is excluded is not computed
    assert ranking.report.computed_items == 10
    assert set(ranking.ids.tolist()) == set(names[90:110])
    computed, _ = part.gather(item_keys(names[100:110]))
    for name, column in index.gather(world.ids[100:110])[0].items():
        assert column.tobytes() == computed[name].tobytes(), name
    assert set(part.ids().tolist()) == set(names[:110])


@ways
def test_missing_items_coroutine_item_source_is_awaited(
    computing: Make, world: World, source: Catalogue, way: str
) -> None:
    async def awaited(ids: np.ndarray) -> ItemRecords | None:
        return source(ids)

    assert rank(computing(awaited), way, world.ids[95:105]).report.computed_items == 5


def test_missing_items_category_filter_reads_computed_rows(
    computing: Make, world: World, source: Catalogue
) -> None:
    engine = computing(source)
    ids = world.ids[95:125]
    ranking = engine.begin(5).rank(ids, k=K_MAX, filters=Filters(categories=["noir"]))
    noir = [int(i) for i, g in zip(ids, world.columns["genres"][95:125], strict=True) if "noir" in g]
    assert set(ranking.ids.tolist()) == set(noir)
    assert ranking.report.computed_items == 25


@ways
def test_missing_items_more_than_bound_computes_bound(
    computing: Make, world: World, source: Catalogue, way: str
) -> None:
    engine = computing(source, max_items=7)
    report = rank(engine, way, world.ids[90:130]).report
    assert source.asked == [world.ids[100:107].tolist()]
    assert (report.computed_items, report.missing_items) == (7, 23)
    assert report.uncomputed_items == {"over_bound": 23}
    assert rank(engine, way, world.ids[90:130]).report.computed_items == 7  # the next ones
    assert engine.stats()["requests"]["uncomputed:over_bound"] == 23 + 16


@ways
def test_missing_items_late_source_leaves_out_its_items(
    computing: Make, world: World, source: Catalogue, way: str
) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = computing(source, max_wait_ms=600.0)
    report = rank(engine, way, world.ids[95:105]).report  # while the source hangs
    assert (report.uncomputed_items, report.missing_items, report.k_given) == ({"late": 5}, 5, 5)
    assert 500 < report.items_wait_ms < 15_000
    again = rank(engine, way, world.ids[95:105]).report  # late already: it does not wait again
    assert (again.uncomputed_items, len(source.asked)) == ({"late": 5}, 1)
    assert again.items_wait_ms < 400
    release.set()
    assert eventually(lambda: len(index_of(engine)) == 105)  # it came too late for those two, not for others
    assert rank(engine, way, world.ids[95:105]).report.missing_items == 0


@ways
def test_missing_items_deadline_leaves_time_for_the_stage(
    computing: Make, world: World, source: Catalogue, way: str
) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = computing(source)
    report = rank(engine, way, world.ids[95:105], deadline_ms=2_000).report
    release.set()
    assert report.uncomputed_items == {"late": 5}
    assert 600 < report.items_wait_ms < 1_900  # half of what was left
    assert (report.k_given, report.overrun_ms) == (5, 0.0)


@ways
@pytest.mark.parametrize(
    ("answer", "reason", "message"),
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
def test_missing_items_failing_source_leaves_out_its_items(
    computing: Make, world: World, source: Catalogue, way: str, answer: Any, reason: str, message: str
) -> None:
    def hook(ids: np.ndarray) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer(ids) if callable(answer) else answer

    source.hook = hook
    engine = computing(source, retry_s=60.0)
    for calls in (1, 1):  # not again for a while
        report = rank(engine, way, world.ids[95:105]).report
        assert (report.uncomputed_items, report.missing_items) == ({reason: 5}, 5)
        assert report.k_given == 5
        assert len(source.asked) == calls
    stats = engine.stats()
    assert message in stats["missing_items"]["last_error"]
    assert (stats["missing_items"]["failed"], stats["missing_items"]["put_off"]) == (5, 5)
    assert not any(name.startswith("error:") for name in stats["requests"])
    assert len(index_of(engine)) == 100


def test_missing_items_failed_items_are_tried_again_after_retry_time(
    computing: Make, world: World, source: Catalogue
) -> None:
    engine = computing(source, retry_s=0.05)
    source.hook = lambda ids: (_ for _ in ()).throw(ConnectionError("down"))
    assert rank(engine, "rank", world.ids[98:102]).report.computed_items == 0
    source.hook = lambda ids: None
    time.sleep(0.06)
    assert rank(engine, "rank", world.ids[98:102]).report.computed_items == 2


def test_missing_items_unknown_to_source_are_left_out(
    computing: Make, world: World, source: Catalogue
) -> None:
    engine = computing(source, retry_s=60.0)
    ids = [int(world.ids[0]), int(world.ids[100]), 1, 2]
    report = engine.begin(5).rank(ids).report
    assert (report.computed_items, report.uncomputed_items, report.k_given) == (1, {"unknown": 2}, 2)
    report = engine.begin(5).rank(ids).report
    assert (report.computed_items, report.uncomputed_items, len(source.asked)) == (0, {"unknown": 2}, 1)
    assert engine.begin(5).rank([3]).report.empty_because.endswith("1 without an item row")


def test_missing_items_not_rankable_stay_so(computing: Make, world: World, source: Catalogue) -> None:
    def hook(ids: np.ndarray) -> Upsert:
        records = source.records(ids.tolist())
        return Upsert(records.ids, records.columns, records.content, np.arange(len(ids)) % 2 == 0)

    source.hook = hook
    report = computing(source).begin(5).rank(world.ids[100:110]).report
    assert (report.computed_items, report.not_rankable, report.k_given) == (10, 5, 5)


def test_missing_items_row_written_meanwhile_is_kept(
    computing: Make, world: World, source: Catalogue
) -> None:
    engine = computing(source)
    index, ids = index_of(engine), world.ids[100:102]
    columns = {"item": [1], "genres": [["noir"]], "price": [9.9]}

    def hook(asked: np.ndarray) -> None:
        index.upsert(ids[:1], columns)  # a stream of updates, later than what the source has read

    source.hook = hook
    assert engine.begin(5).rank(ids).report.missing_items == 0
    expected = ItemIndex.build(index.bundle, ids[:1], columns).gather(ids[:1])[0]
    assert all(index.gather(ids[:1])[0][n].tobytes() == expected[n].tobytes() for n in expected)
    assert engine.stats()["missing_items"]["computed"] == 1


@ways
def test_missing_items_wanted_by_many_are_computed_once(
    computing: Make, world: World, source: Catalogue, way: str
) -> None:
    source.hook = lambda ids: time.sleep(0.1)
    engine = computing(source, threads=Threads(blocking=8))
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


def test_missing_items_hanging_source_leaves_threads_for_others(
    computing: Make, world: World, source: Catalogue
) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = computing(source, threads=Threads(blocking=4), max_wait_ms=5.0)
    reports = [engine.begin(5).rank([world.ids[0], world.ids[100 + n]]).report for n in range(10)]
    assert eventually(lambda: len(source.asked) >= 2)
    assert len(source.asked) == 2  # half of the threads
    assert [report.uncomputed_items for report in reports] == [{"late": 1}] * 2 + [{"busy": 1}] * 8
    assert all(report.k_given == 1 for report in reports)
    release.set()
    assert eventually(lambda: engine.stats()["missing_items"]["under_way"] == 0)
    # Whether 5 ms are enough for it is up to the machine; the threads are there for it.
    report = engine.begin(5).rank([world.ids[115]]).report
    assert report.computed_items == 1 or report.uncomputed_items == {"late": 1}
    assert eventually(lambda: len(source.asked) == 3)


def test_missing_items_any_number_compiles_nothing(computing: Make, world: World, source: Catalogue) -> None:
    engine = computing(source, max_items=70)
    before = compilations()
    for start in (0, 1, 40, 69, 80):
        engine.begin(5).rank(world.ids[start : start + 70])
    for n in (1, 63, 64, 65, 70):
        index_of(engine).delete(world.ids)
        assert engine.begin(5).rank(world.ids[:n]).report.computed_items == n
    assert compilations() == before


def test_engine_close_ends_computation_of_missing_items(
    computing: Make, world: World, source: Catalogue
) -> None:
    release = threading.Event()
    source.hook = lambda ids: release.wait(20) and None
    engine = computing(source, threads=Threads(blocking=2))
    failed: list[Any] = []

    def request() -> None:
        try:
            engine.begin(5).rank(world.ids[95:105])
        except (RequestError, SchedulerError) as error:  # which, depends on how far it had come
            failed.append(error)

    thread = threading.Thread(target=request)
    thread.start()
    assert eventually(lambda: source.asked)
    closer = threading.Thread(target=engine.close)
    closer.start()
    release.set()
    thread.join(20)
    closer.join(20)
    assert not thread.is_alive()
    assert not closer.is_alive()


def test_engine_item_source_without_compute_policy_is_refused(bundle: Bundle, tables: Tables) -> None:
    users, expected = InMemoryUsers(), "expected an item source with missing_items='compute', else None"
    with pytest.raises(ConfigError, match=f"items: got None, {expected}; it is 'compute': change one"):
        Engine(bundle, tables, users=users, config=COMPUTE)
    with pytest.raises(ConfigError, match=f"items: got <class 'function'>, {expected}; it is 'drop':"):
        Engine(bundle, tables, users=users, items=lambda ids: None)
