"""Coverage check of a publish: tables that lack too much of what the running ones hold."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import PublishError, RequestError, SchedulerError
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables, build_tables
from aif_jax.serving import Coverage, Engine, PublishChecks, publish
from aif_jax.serving.publish import PreChecks
from aif_jax.types import ItemRecords
from support.served import ENGINE_CONFIG, N_ITEMS, Make, Served, World, part_of, tables_of

FEW, MOST = range(90), range(135)


def at_least(share: float, within_s: float = 0.0) -> PublishChecks:
    return PublishChecks(min_coverage=share, coverage_within_s=within_s)


def test_publish_low_coverage_of_either_table_is_refused_by_name(
    make: Make, one: Served, world: World
) -> None:
    engine = make()
    for rows, said in (
        ((MOST, FEW), "has 90.00 % of the 150 rankable.*table 60.00 % of the 150"),
        ((FEW, MOST), "has 60.00 % of the 150 rankable.*table 90.00 % of the 150"),
    ):
        served = tables_of(one[0], world, *rows)
        missing = world.ids[90 if rows[0] is FEW else 135]
        with pytest.raises(PublishError, match=f"{said}.*Missing are items {missing}.* more.*Nothing was"):
            engine.publish(*served, checks=at_least(0.61))
        published = engine.publish(*served, checks=at_least(0.6))
        assert published.coverage == Coverage(
            items=pytest.approx(len(rows[0]) / N_ITEMS), behaviours=pytest.approx(len(rows[1]) / N_ITEMS),
            missing_items=N_ITEMS - len(rows[0]), missing_behaviours=N_ITEMS - len(rows[1]),
        )  # fmt: skip
        engine.rollback()
    assert engine.bundle is one[0]
    assert engine.stats()["generations"]["published"] == 2
    assert len(engine.rank(5)) == 10


def test_publish_coverage_counts_rankable_items_only(make: Make, one: Served, world: World) -> None:
    old, new = tables_of(one[0], world), tables_of(one[0], world)
    engine = make(old)
    new[1].items.set_rankable(world.ids[:30], False)
    with pytest.raises(PublishError, match=r"80\.00 % of the 150"):
        engine.publish(*new, checks=at_least(0.9))
    old[1].items.set_rankable(world.ids[:50], False)
    new[1].items.delete(world.ids[30:50])
    found = engine.publish(*new, checks=at_least(1.0)).coverage
    assert found == Coverage(items=1.0, behaviours=1.0, missing_items=0, missing_behaviours=0)


def test_publish_single_missing_item_is_below_full_coverage(make: Make, one: Served, world: World) -> None:
    new = tables_of(one[0], world, range(1, N_ITEMS))
    with pytest.raises(PublishError, match=f"99.33 %.*Missing are items {world.ids[0]}, and no behaviour"):
        make().publish(*new, checks=at_least(1.0))


@pytest.mark.parametrize("wrong", [(1.1,), (float("nan"),), (0.5, -1.0)])
def test_publish_checks_impossible_coverage_bounds_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match=r"(min_coverage|coverage_within_s): got"):
        at_least(*wrong)


def test_publish_tables_being_filled_waits_for_coverage(make: Make, two: Served, world: World) -> None:
    engine = make()
    new = tables_of(two[0], world, FEW, MOST)

    def fill() -> None:
        time.sleep(0.3)
        for start in range(90, N_ITEMS, 20):
            time.sleep(0.02)
            more = part_of(world, range(start, min(start + 20, N_ITEMS)))
            for table in new[1]:
                table.upsert(*more)

    filling = threading.Thread(target=fill)
    filling.start()
    published = engine.publish(*new, checks=at_least(1.0, 20.0))
    filling.join()
    assert (published.coverage.items, published.coverage.behaviours) == (1.0, 1.0)
    assert 0 < published.waited_s < 15
    assert engine.version == two[0].version


def test_publish_rows_deleted_from_running_tables_are_not_waited_for(
    make: Make, one: Served, world: World
) -> None:
    old, new = tables_of(one[0], world), tables_of(one[0], world, FEW, FEW)
    engine = make(old)

    def lose() -> None:
        time.sleep(0.1)
        for table in old[1]:
            table.delete(world.ids[90:])

    losing = threading.Thread(target=lose)
    losing.start()
    assert engine.publish(*new, checks=at_least(1.0, 20.0)).waited_s < 15
    losing.join()


def test_publish_rows_deleted_while_warming_are_refused(
    make: Make, one: Served, two: Served, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, new = make(), tables_of(two[0], world)

    def warm(*_: Any) -> Any:
        new[1].behaviours.delete(world.ids[:30])
        return 0, {}

    monkeypatch.setattr(publish, "warm_users", warm)
    with pytest.raises(PublishError, match=r"table 80\.00 % of the 150 behaviour rows; min_coverage=0\.9"):
        engine.publish(*new, checks=at_least(0.9, 60.0))
    assert engine.version == one[0].version
    assert engine.publish(*new, checks=at_least(0.8)).coverage.missing_behaviours == 30


class Waiting:
    """A publish that waits for coverage which does not come, in a thread of its own."""

    def __init__(self, engine: Engine, served: Served, within_s: float):
        self.error: BaseException | None = None
        self._arguments: Any = (engine, served, within_s)
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()
        time.sleep(0.1)

    def _publish(self) -> None:
        engine, served, within_s = self._arguments
        try:
            engine.publish(*served, checks=at_least(1.0, within_s))
        except BaseException as error:
            self.error = error

    def ended(self) -> BaseException | None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.error


def test_publish_coverage_not_reached_in_time_is_refused(make: Make, two: Served, world: World) -> None:
    engine = make()
    error = Waiting(engine, tables_of(two[0], world, FEW), 0.3).ended()
    assert isinstance(error, PublishError)
    assert "after 0.3 s of waiting" in str(error)
    assert len(engine.rank(5)) == 10


def test_publish_waiting_for_coverage_lets_others_publish(
    make: Make, one: Served, two: Served, world: World
) -> None:
    engine = make()
    engine.publish(*two)
    waiting = Waiting(engine, tables_of(two[0], world, FEW), 60.0)
    began_s = time.monotonic()
    assert engine.rollback() == one[0].version
    assert engine.publish(*two).version == two[0].version
    assert time.monotonic() - began_s < 30
    engine.close()
    assert isinstance(waiting.ended(), SchedulerError)


def test_pre_checks_missing_string_ids_are_named(bundle: Bundle, world: World) -> None:
    names = np.array([f"item-{number}" for number in range(20)], object)
    _, columns, content = part_of(world, range(20))
    old = build_tables(bundle, ItemRecords(names, columns, content))
    new = Tables(ItemIndex(bundle), BehaviourTable(bundle))

    def checks(tables: Tables, share: float) -> PreChecks:
        return PreChecks(bundle, tables, ENGINE_CONFIG, dict, at_least(share))

    with pytest.raises(PublishError, match=r"0.00 % of the 20.*items item-\d+, .*and 15 more, and behav"):
        checks(new, 0.5).passed(old)
    assert checks(old, 1.0).passed(new) == Coverage(
        items=1.0, behaviours=1.0, missing_items=0, missing_behaviours=0
    )
