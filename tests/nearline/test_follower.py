"""Followers apply each update of a stream once, whenever they are stopped."""

import asyncio
import dataclasses
import errno
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import DataError, ItemIndexError, SchemaError
from aif_jax.features import Ragged, item_keys
from aif_jax.nearline import (
    Archive,
    BadItem,
    BehaviourTable,
    Delete,
    Delivery,
    Follower,
    ItemIndex,
    IterableUpdates,
    Update,
    Upsert,
    read_dead_letters,
)
from aif_jax.nearline.dead_letters import DeadLetter, DeadLetters
from aif_jax.nearline.merging import Entry, checked, joined, runs
from aif_jax.nearline.row_program import RowProgram
from aif_jax.nearline.update_source import raw_of
from support.served import World
from support.waiting import eventually


def single(world: World, row: int, **changes: Any) -> Upsert:
    columns = {name: column[row : row + 1] for name, column in world.columns.items()}
    return Upsert(world.ids[row : row + 1], {**columns, **changes}, world.content[row : row + 1])


def stream(world: World, n: int, seed: int = 0) -> list[Update]:
    """Return random updates of forty items, some of them deletions and some of several items."""
    rng = np.random.default_rng(seed)
    updates: list[Update] = []
    for _ in range(n):
        row = int(rng.integers(0, 40))
        if rng.random() < 0.2:
            updates.append(Delete(world.ids[row : row + 2]))
        else:
            updates.append(single(world, row, price=[float(rng.uniform(0, 10))]))
    return updates


def expected(bundle: Bundle, updates: Sequence[Update]) -> ItemIndex:
    """Return an index to which updates were applied one by one."""
    index = ItemIndex(bundle)
    for update in updates:
        if isinstance(update, Upsert):
            index.apply(update)
        else:
            index.delete(update.ids)
    return index


def same(table: Any, other: Any) -> None:
    keys = np.sort(table.store.cache.keys())
    assert np.array_equal(keys, np.sort(other.store.cache.keys()))
    for name, column in table.gather(keys)[0].items():
        assert np.array_equal(column, other.gather(keys)[0][name]), name


def test_follower_applies_stream_to_both_tables(bundle: Bundle, world: World, tmp_path: Path) -> None:
    updates = stream(world, 60)
    with Archive(tmp_path / "items") as items, Archive(tmp_path / "behaviours") as behaviours:
        items.start(ItemIndex(bundle))
        behaviours.start(BehaviourTable(bundle))
        follower = Follower(IterableUpdates(updates, limit=7), [items, behaviours])
        follower.run()
        same(items.table, expected(bundle, updates))
        assert len(behaviours.table) > len(items.table)
        stats = follower.stats()
        assert (stats["updates"], stats["position"], stats["bad"]) == (60, [(60,), (60,)], {})
        deletions = sum(len(update.ids) for update in updates if isinstance(update, Delete))
        assert stats["deleted"] + stats["ignored"] == 2 * deletions
    with Archive(tmp_path / "items") as items:
        same(items.open(ItemIndex, bundle), expected(bundle, updates))


def test_follower_counts_by_table_and_follows_rankable(bundle: Bundle, tmp_path: Path) -> None:
    updates: list[Update] = [
        Upsert([1, 2], {"price": [1.0, 2.0]}, rankable=np.array([True, False])),
        Delete([1, 77]),
        Upsert([3], {"price": [3.0]}),
    ]
    for table, counts, ids in (
        (ItemIndex, (3, 1, 1), [2, 3, 9]),
        (BehaviourTable, (3, 0, 2), [1, 2, 3, 9]),  # it keeps what was deleted
    ):
        with Archive(tmp_path / table.kind) as archive:
            archive.start(table.build(bundle, [9], {}))
            follower = Follower(IterableUpdates(updates), [archive])
            follower.run()
            stats = follower.stats()
            assert (stats["upserted"], stats["deleted"], stats["ignored"]) == counts
            assert sorted(archive.table.ids().tolist()) == ids
            if table is ItemIndex:
                rows, _ = archive.table.gather(item_keys([2, 3]))
                assert rows["rankable"][:, 0].tolist() == [0, 1]


def test_follower_update_delivered_again_is_applied_once(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    updates = stream(world, 50, seed=1)
    seen: list[int] = []

    class Forgetful(IterableUpdates):
        """Delivers everything from its beginning, however far the reader is."""

        def read(self, after: Any, wait_s: float) -> Any:
            deliveries = super().read(after if seen else None, wait_s)
            seen.append(1)
            return deliveries

    with Archive(tmp_path / "items") as items, Archive(tmp_path / "behaviours") as behaviours:
        items.start(ItemIndex(bundle))
        behaviours.start(BehaviourTable(bundle))
        Follower(IterableUpdates(updates[:30]), [items]).run()  # one of them is ahead
        follower = Follower(Forgetful(updates, limit=9), [items, behaviours])
        follower.run()
        assert follower.stats()["repeated"] == 30
        same(items.table, expected(bundle, updates))
        assert behaviours.position == items.position == (50,)


def test_follower_bad_items_are_left_out_and_reported(bundle: Bundle, world: World, tmp_path: Path) -> None:
    both = Upsert(
        world.ids[3:5],
        {"price": [1.0, 2.0], "item": [3, 4]},
        np.stack([world.content[3] * 3, world.content[4]]),
    )
    updates = [single(world, 0), both, single(world, 1, colour=["red"]), "nonsense", single(world, 2)]
    bad: list[BadItem] = []
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(IterableUpdates(updates), [archive], on_bad=bad.append)  # type: ignore[arg-type]
        follower.run()
        stats = follower.stats()
        assert (stats["bad"], stats["set_aside"]) == ({"ItemIndexError": 2, "SchemaError": 1}, 3)
        assert [(one.position, one.ids) for one in bad] == [
            ((2,), (world.ids[3],)), ((3,), (world.ids[1],)), ((4,), ()),
        ]  # fmt: skip
        assert isinstance(bad[1].reason, SchemaError)
        same(archive.table, expected(bundle, [single(world, 0), single(world, 2), Upsert(
            world.ids[4:5], {"price": [2.0], "item": [4]}, world.content[4:5]
        )]))  # fmt: skip


def test_follower_too_many_bad_items_are_shown_and_passed_over(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    updates = [single(world, row % 3, **({"colour": ["red"]} if row % 5 else {})) for row in range(1400)]
    shown: list[str | None] = []

    def endless() -> Any:
        yield from updates
        shown.append(follower.stats()["trouble"])
        yield from (single(world, row % 3) for row in range(2000))

    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(IterableUpdates(endless(), limit=50), [archive], max_bad_share=0.5, pause_s=0)
        follower.run()
        assert shown[0] is not None
        assert re.search(r"80% of the last 1,000 updates.*Does the stream fit", shown[0])
        stats = follower.stats()
        assert (stats["trouble"], stats["set_aside"], archive.position) == (None, 1120, (3400,))
        silent = Follower(IterableUpdates(updates, limit=50), [archive], max_bad_share=None, pause_s=0)
        silent.run()
        assert silent.stats()["trouble"] is None


def test_follower_waits_for_full_disk_and_unavailable_source(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = stream(world, 20, seed=2)
    write, failures = os.write, iter([True] * 3)

    def sometimes(file: int, content: Any) -> int:
        if next(failures, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    class Away(IterableUpdates):
        away = 2

        def read(self, after: Any, wait_s: float) -> Any:
            if self.away:
                self.away -= 1
                raise ConnectionError("nobody there")
            return super().read(after, wait_s)

        def acknowledge(self, position: Any) -> None:
            acknowledged.append(position)
            if len(acknowledged) < 3:  # it went away between reading and this
                raise ConnectionError("nobody there")

    acknowledged: list[Any] = []
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        monkeypatch.setattr(os, "write", sometimes)
        follower = Follower(Away(updates, limit=8), [archive])
        follower.run()
        stats = follower.stats()
        assert (stats["source_errors"], stats["disk_full"], stats["trouble"], stats["updates"]) == (
            4,
            3,
            None,
            20,
        )
        assert acknowledged == [(8,), (16,), (20,)]
        same(archive.table, expected(bundle, updates))


def test_follower_disk_that_does_not_confirm_is_waited_for(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = stream(world, 30, seed=3)
    sync, calls = os.fdatasync, iter(range(100))

    def sometimes(file: int) -> None:
        if next(calls) in (2, 4, 5):
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        monkeypatch.setattr(os, "fdatasync", sometimes)
        follower = Follower(IterableUpdates(updates, limit=5), [archive])
        follower.run()
        stats = follower.stats()
        assert (stats["disk_errors"], stats["trouble"], stats["updates"]) == (3, None, 30)
        same(archive.table, expected(bundle, updates))
    with Archive(tmp_path) as archive:
        same(archive.open(ItemIndex, bundle), expected(bundle, updates))
        assert archive.position == (30,)


def test_follower_in_thread_writes_checkpoints_and_waits_for_broken_source(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    updates = stream(world, 40, seed=4)

    def endless() -> Any:
        yield from updates
        raise ItemIndexError("the stream is broken")

    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        with Follower(IterableUpdates(endless(), limit=4), [archive], checkpoint_bytes=1000) as follower:
            follower.start()
            with pytest.raises(ItemIndexError, match="call start once"):
                follower.start()
            assert eventually(lambda: follower.stats()["source_errors"] > 1)
            assert follower.stats()["trouble"] == "source: ItemIndexError: the stream is broken"
            assert follower.stats()["failure"] is None
        assert eventually(lambda: archive.stats()["checkpoints"] > 1)
        same(archive.table, expected(bundle, updates))
    with Archive(tmp_path) as archive:
        same(archive.open(ItemIndex, bundle), expected(bundle, updates))


def test_runs_join_alike_upserts_and_keep_last_of_an_item() -> None:
    def upsert(item: Any, price: Any, **more: Any) -> Upsert:
        return Upsert([item], {"price": price, **more})

    deliveries = [
        Delivery((1,), upsert(1, [1.0])),
        Delivery((2,), upsert(2, [2.0])),
        Delivery((3,), upsert(1, np.array([3.0]))),
        Delivery((4,), upsert(4, [4.0], genres=Ragged(["a", "b"], np.array([0, 2])))),
        Delivery((5,), upsert(5, [5.0], genres=[["c"]])),
        Delivery((6,), Delete([1])),
        Delivery((7,), upsert(7, [7.0, 7.5])),
        Delivery((8,), upsert(8, [8.0])),
    ]
    found = list(runs([Entry(one, checked(one.update)) for one in deliveries]))
    assert [[one.delivery.position[0] for one in run] for run in found] == [[1, 2, 3], [4, 5], [6], [7], [8]]
    first, second = joined(found[0]), joined(found[1])
    assert isinstance(first, Upsert)
    assert isinstance(second, Upsert)
    assert (first.ids, first.columns) == ([2, 1], {"price": [2.0, 3.0]})
    assert (second.ids, second.columns) == ([4, 5], {"price": [4.0, 5.0], "genres": [["a", "b"], ["c"]]})


def test_follower_updates_during_build_reach_both_generations(
    bundle: Bundle, other_bundle: Bundle, world: World, tmp_path: Path
) -> None:
    updates = stream(world, 60, seed=5)
    columns = {name: column[:40] for name, column in world.columns.items()}
    before = [Upsert(world.ids[:40], columns, world.content[:40]), *updates]
    with Archive(tmp_path / "one") as one, Archive(tmp_path / "two") as two:
        one.start(ItemIndex(bundle))
        Follower(IterableUpdates(before[:21], limit=5), [one]).run()
        # The next generation is built of the catalogue as it was at a position that was taken before.
        two.start(expected(other_bundle, before[:21]), one.position)
        followers = [Follower(IterableUpdates(before, limit=n), [kept]) for n, kept in ((4, one), (9, two))]
        for follower in followers:
            follower.start()
        for follower in followers:
            assert eventually(lambda follower=follower: "following" not in repr(follower))
            assert follower.stats()["failure"] is None
        same(one.table, expected(bundle, before))
        same(two.table, expected(other_bundle, before))


def test_follower_repr_shows_counts(bundle: Bundle, world: World, tmp_path: Path) -> None:
    updates = [single(world, 0), single(world, 1, price=["dear"])]
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(IterableUpdates(updates), [archive])
        assert repr(follower) == "Follower(1 archive, 0 updates, 0 bad items)"
        follower.run()
        assert repr(follower) == "Follower(1 archive, 2 updates, 1 bad item)"
        follower.close()
        assert repr(follower) == "Follower(1 archive, 2 updates, 1 bad item, closed)"


def test_follower_repr_shows_whether_it_follows(bundle: Bundle, tmp_path: Path) -> None:
    more = threading.Event()

    def blocking() -> Any:
        more.wait(60)
        yield from ()
        raise SystemExit("the program ends")

    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        with Follower(IterableUpdates(blocking()), [archive]) as follower:
            follower.start()
            assert repr(follower) == "Follower(1 archive, 0 updates, 0 bad items, following)"
            more.set()
            assert eventually(lambda: "following" not in repr(follower))
            assert repr(follower) == "Follower(1 archive, 0 updates, 0 bad items, ended by SystemExit)"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_follower_bad_update_does_not_change_good_ones_beside_it(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    good = single(world, 3, price=[1.0])
    updates: list[Any] = [
        Delete([-1]),
        Upsert([5, 6], {"price": [1.0]}),
        good,
        single(world, 3, price=["dear"]),  # the same item: the good row stays
        single(world, 4),
        Upsert([*world.ids[5:7].tolist(), -1], {"price": [1.0, 2.0, 3.0]}),
        Delete([int(world.ids[4]), -1]),
        Upsert(["text"], {}),
        Upsert(world.ids[:1], {"price": [10**400]}),
        Upsert(np.ma.masked_array(world.ids[7:9], [False, True]), {"price": [1.0, 2.0]}),
        Upsert((item for item in [1]), {}),
        Upsert([1], None),  # type: ignore[arg-type]
        Unprintable(),
        None,
    ]
    with Archive(tmp_path / "items") as items, Archive(tmp_path / "behaviours") as behaviours:
        items.start(ItemIndex.build(bundle, world.ids[:1], {}))
        behaviours.start(BehaviourTable.build(bundle, world.ids[:1], {}))
        follower = Follower(IterableUpdates(updates), [items, behaviours])
        follower.run()
        stats = follower.stats()
        assert (stats["failure"], stats["trouble"], stats["apply_errors"]) == (None, None, 0)
        assert set(items.table.ids().tolist()) == {int(world.ids[row]) for row in (0, 3, 5, 6, 7)}
        alone = expected(bundle, [good])
        keys = item_keys(world.ids[3:4])
        assert np.array_equal(items.table.gather(keys)[0]["h"], alone.gather(keys)[0]["h"])
        assert [items.position, behaviours.position] == [(14,), (14,)]
    for folder in ("items", "behaviours"):
        letters = list(read_dead_letters(tmp_path / folder))
        assert [letter.position for letter in letters] == [
            (n,) for n in (1, 2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14)
        ]
        assert json.loads(letters[1].raw[0])["columns"] == {"price": [1.0]}
        assert letters[3].reasons[0][0] == (-1,)


def test_follower_source_that_lies_is_shown_and_asked_again(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    good = [Delivery((number,), single(world, number)) for number in range(1, 6)]
    answers: list[Any] = [
        Unprintable(),
        asyncio.CancelledError(),
        5,
        [*good[:2], None, Delivery(None, Delete([1])), Delivery((1.5,), Delete([1])), good[0], good[2]],  # type: ignore[arg-type]
        [Delivery(("text",), Delete([1])), good[3], dataclasses.replace(good[1], position=(2,))],
        [Delivery(("text",), Delete([1]))],
        [dataclasses.replace(good[4], time_s=10**400), Delivery((10**5000,), Delete([1]))],
        [],
        None,
    ]

    class Lying:
        def read(self, after: Any, wait_s: float) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        def acknowledge(self, position: Any) -> None:
            raise Unprintable

    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(Lying(), [archive])
        follower.run()
        stats = follower.stats()
        assert sorted(archive.table.ids().tolist()) == sorted(world.ids[1:6].tolist())
        assert (archive.position, stats["set_aside"], stats["repeated"]) == ((5,), 6, 1)
        assert stats["source_errors"] == 4 + 3  # and as many failed acknowledgements
    assert [letter.position for letter in read_dead_letters(tmp_path)] == [None] * 6


def test_follower_callback_that_raises_is_counted(bundle: Bundle, tmp_path: Path) -> None:
    def refuse(bad: BadItem) -> None:
        raise Unprintable

    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(IterableUpdates([Delete([-1]), Upsert([1], {})]), [archive], on_bad=refuse)
        follower.run()
        stats = follower.stats()
        assert (stats["on_bad_errors"], stats["trouble"], 1 in archive.table) == (
            1,
            "on_bad: Unprintable: <Unprintable>",
            True,
        )


def test_follower_error_that_is_no_updates_fault_is_waited_for(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = stream(world, 20, seed=6)
    run, failures = RowProgram.run, iter([True] * 3)

    def sometimes(*given: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("the device is lost")
        return run(*given)

    monkeypatch.setattr(RowProgram, "run", sometimes)
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(IterableUpdates([*updates, Delete([-1])]), [archive])
        follower.run()
        stats = follower.stats()
        assert stats["apply_errors"] >= 1
        assert (stats["set_aside"], stats["trouble"]) == (1, None)
        same(archive.table, expected(bundle, updates))


def test_dead_letters_that_disk_refuses_hold_up_position(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failures = os.pwrite, iter([True] * 2)

    def sometimes(*given: Any) -> int:
        if next(failures, False):
            assert archive.position is None
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*given)

    monkeypatch.setattr(os, "pwrite", sometimes)
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        seen: list[BadItem] = []
        follower = Follower(IterableUpdates([single(world, 0), Delete([-1])]), [archive], on_bad=seen.append)
        follower.run()
        assert (follower.stats()["disk_full"], len(seen)) == (2, 1)
    assert [letter.position for letter in read_dead_letters(tmp_path)] == [(2,)]


def test_dead_letters_keep_their_bound_and_newest(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path, 1 << 20)
    for number in range(45):
        letters.write([DeadLetter((number,), (((number,), "DataError", "x" * 5000),), (b"y" * 30_000, b"z"))])
        letters.write([DeadLetter((number,), (((number,), "DataError", "said"),), (b"y" * 30_000, b"z"))])
        letters.confirm()
        assert letters.bytes <= 1 << 20
    letters.write([DeadLetter((45,), (), (b"y" * (10 << 20), b"z"))])
    letters.confirm()
    letters.close()
    found = list(read_dead_letters(tmp_path))
    assert [letter.position for letter in found] == [(number,) for number in range(letters.dropped, 46)]
    assert found[0].raw == (b"y" * 30_000, b"z")
    assert found[0].reasons == (((letters.dropped,), "DataError", "said"),)
    assert found[-1].raw_bytes == (10 << 20) + 1
    assert letters.bytes <= 1 << 20


def test_dead_letter_of_megabytes_that_are_no_text_keeps_its_beginning(tmp_path: Path) -> None:
    update = Upsert([b"\xff" * (40 << 20)], {"price": [b"\xfe" * (40 << 20)]})
    letters = DeadLetters(tmp_path, 64 << 20)
    letters.write(
        [DeadLetter((1,), ((tuple(update.ids), "DataError", "said"),), raw_of(Delivery((1,), update)))]
    )
    letters.close()
    (found,) = read_dead_letters(tmp_path)
    assert found.reasons[0][0] == ("\\xff" * 200 + "... (41,943,040 bytes)",)
    raw = json.loads(found.raw[0])
    assert raw["columns"]["price"] == ["\\xfe" * (1 << 20) + "... (41,943,040 bytes)"]


def test_dead_letters_of_killed_writer_are_read_once(tmp_path: Path) -> None:
    letter = DeadLetter((1,), ((("a",), "DataError", "said"),), (b"\xff",))
    for _ in range(2):  # killed before the position was written, so that it comes again
        DeadLetters(tmp_path, 1 << 20).write([letter])
    path = tmp_path / "dead-letters.jsonl"
    with path.open("ab") as file:
        file.write(b'{"position": [2], "rea')
    (found,) = read_dead_letters(tmp_path)
    assert dataclasses.replace(found, set_aside_s=0.0) == dataclasses.replace(letter, raw_bytes=1)
    DeadLetters(tmp_path, 1 << 20).write([dataclasses.replace(letter, position=(2,))])
    assert [letter.position for letter in read_dead_letters(tmp_path)] == [(1,), (2,)]


@pytest.mark.parametrize("line", [b"\0", b"[]", b"5", b"[" * 100_000, b"\xff"], ids=range(5))
def test_dead_letters_line_of_another_program_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "dead-letters.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DataError, match="line 1: is not a dead letter"):
        list(read_dead_letters(tmp_path))


def test_iterable_updates_that_raise_are_asked_again_and_lose_none(world: World) -> None:
    class Shaky:
        failures = 2

        def __iter__(self) -> Any:
            for number in range(5):
                if number == 3 and self.failures:
                    self.failures -= 1
                    raise OSError("away")
                yield Delete([number])

    source = IterableUpdates(Shaky(), limit=4)  # type: ignore[arg-type]
    read: list[Any] = []
    errors = 0
    while True:
        try:
            found = source.read((len(read),) if read else None, 0.0)
        except OSError:
            errors += 1
            continue
        if found is None:
            break
        read += [one.position for one in found]
    assert (read, errors) == ([(number,) for number in range(1, 6)], 1)


def test_iterable_updates_of_a_generator_that_uses_its_arrays_again_are_kept() -> None:
    ids, prices = np.zeros(1, np.uint64), [0.0]

    def updates() -> Any:
        for number in range(5):
            ids[:], prices[0] = number, float(number)
            yield Upsert(ids, {"price": prices})
        yield Delete(ids)

    deliveries = IterableUpdates(updates()).read(None, 0.0)
    assert deliveries is not None
    *upserts, last = [delivery.update for delivery in deliveries]
    assert [(int(u.ids[0]), u.columns["price"]) for u in upserts] == [(n, [float(n)]) for n in range(5)]
    assert isinstance(last, Delete)
