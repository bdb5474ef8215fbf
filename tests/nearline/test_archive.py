"""An archive loses nothing that it has confirmed, whatever happens to the process or to the files."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ItemIndexError, VersionMismatchError
from aif_jax.nearline import Archive, BehaviourTable, ItemIndex, Replica, RowTable
from support.served import World
from support.waiting import eventually

TABLES = [ItemIndex, BehaviourTable]


def made(bundle: Bundle, world: World, n: int = 40, table: type[RowTable] = ItemIndex) -> Any:
    columns = {name: column[:n] for name, column in world.columns.items()}
    return table.build(bundle, world.ids[:n], columns, world.content[:n])


def price(world: World, rows: slice, value: float) -> dict[str, Any]:
    columns = {name: column[rows] for name, column in world.columns.items()}
    return {**columns, "price": [value] * len(columns["price"])}


def same(table: RowTable, other: RowTable) -> None:
    keys = np.sort(table.store.cache.keys())
    assert np.array_equal(keys, np.sort(other.store.cache.keys()))
    mine, theirs = table.gather(keys)[0], other.gather(keys)[0]
    for name, column in mine.items():
        assert np.array_equal(column, theirs[name]), name


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("table", TABLES)
def test_archive_reopened_has_confirmed_changes(
    bundle: Bundle, world: World, tmp_path: Path, table: type[RowTable], mapped: bool
) -> None:
    index = made(bundle, world, table=table)
    with Archive(tmp_path) as archive:
        archive.start(index, (5,))
        index.upsert(world.ids[3:9], price(world, slice(3, 9), 99.0), world.content[3:9])
        index.delete(world.ids[20:25])
        with archive.batch((6,)):
            index.upsert(world.ids[50:60], price(world, slice(50, 60), 1.0))
        archive.checkpoint()
        index.delete(world.ids[8:10])
    index.delete(world.ids[:1])  # kept no longer
    with Archive(tmp_path) as archive:
        again = archive.open(table, bundle, mapped=mapped)
        assert archive.opened is not None
        assert (archive.opened.snapshot, archive.opened.changes, archive.position) == (2, 1, (6,))
        assert world.ids[0] in again
        index.upsert(world.ids[:1], price(world, slice(0, 1), world.columns["price"][0]), world.content[:1])
        same(index, again)
        again.upsert(world.ids[8:10], price(world, slice(8, 10), 3.0))
    with Archive(tmp_path) as archive:
        same(archive.open(table, bundle, mapped=mapped), again)


def test_archive_reopened_has_string_ids_and_rankable_flags(bundle: Bundle, tmp_path: Path) -> None:
    ids = [f"sku-{number}-é" for number in range(7)]
    index = ItemIndex.build(bundle, ids, {"price": np.arange(7.0)})
    with Archive(tmp_path) as archive:
        archive.start(index)
        index.delete(ids[:1])
        index.upsert(["sku-9", ids[2]], {"price": [1.0, 2.0]})
        index.set_rankable(ids[3:5], False)
    with Archive(tmp_path) as archive:
        again = archive.open(ItemIndex, bundle)
        assert sorted(again.ids()) == sorted([*ids[1:], "sku-9"])
        same(index, again)


def test_archive_log_cut_anywhere_gives_changes_before_cut(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    index = made(bundle, world, 12)
    ends, states = [], []
    with Archive(tmp_path / "whole") as archive:
        archive.start(index)
        log = tmp_path / "whole" / "000001.log"
        for step in range(4):
            ends.append(log.stat().st_size)
            states.append(index.gather(world.ids[:12]))
            if step % 2:
                index.delete(world.ids[step : step + 1])
            else:
                index.upsert(world.ids[step : step + 2], price(world, slice(step, step + 2), 50.0 + step))
    whole = log.read_bytes()
    copy = tmp_path / "cut"
    copy.mkdir()
    os.link(tmp_path / "whole" / "000001.rows", copy / "000001.rows")
    for length in [*range(ends[0], len(whole), 37), *ends, *(end - 1 for end in ends[1:])]:
        (copy / "000001.log").write_bytes(whole[:length])
        with Archive(copy) as archive:
            again = archive.open(ItemIndex, bundle, verify=False)
            whole_changes = sum(end <= length for end in ends) - 1
            rows, found = states[whole_changes]
            mine, mine_found = again.gather(world.ids[:12])
            assert np.array_equal(found, mine_found)
            assert all(np.array_equal(rows[name], mine[name]) for name in rows)
            assert archive.opened is not None
            assert archive.opened.cut_bytes == length - max(end for end in ends if end <= length)
            again.delete(world.ids[11:12])
        with Archive(copy) as archive:  # what was appended behind the cut counts
            assert world.ids[11] not in archive.open(ItemIndex, bundle, verify=False)


def test_archive_altered_byte_in_confirmed_record_is_refused(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    index = made(bundle, world, 12)
    log = tmp_path / "000001.log"
    with Archive(tmp_path) as archive:
        archive.start(index)
        begin = log.stat().st_size
        index.upsert(world.ids[:2], price(world, slice(0, 2), 50.0))
        middle = log.stat().st_size
        index.delete(world.ids[5:6])
    whole = log.read_bytes()
    for position in [*range(begin, begin + 24), *range(begin + 24, middle, 41)]:
        changed = bytearray(whole)
        changed[position] ^= 0x40
        log.write_bytes(changed)
        with (
            Archive(tmp_path) as archive,
            pytest.raises(ItemIndexError, match=f"record at byte {begin:,} is altered"),
        ):
            archive.open(ItemIndex, bundle, verify=False)
    log.write_bytes(whole)
    with Archive(tmp_path) as archive:
        same(archive.open(ItemIndex, bundle), index)


def test_archive_broken_snapshot_falls_back_to_previous_one(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    index = made(bundle, world, 12)
    with Archive(tmp_path, keep=3) as archive:
        archive.start(index)
        index.upsert(world.ids[:2], price(world, slice(0, 2), 50.0))
        archive.checkpoint()
        index.delete(world.ids[5:6])
        archive.checkpoint()
        index.delete(world.ids[7:8])
    newest = tmp_path / "000003.rows"
    whole = newest.read_bytes()
    spoilt = {
        "cut short": whole[: len(whole) // 2],
        "is not a snapshot": b"",
        "altered": whole[:70_000] + bytes([whole[70_000] ^ 1]) + whole[70_001:],
    }
    for reason, content in spoilt.items():
        newest.write_bytes(content)
        with Archive(tmp_path) as archive:
            same(archive.open(ItemIndex, bundle), index)
            assert archive.opened is not None
            assert (archive.opened.snapshot, archive.opened.log) == (2, 3)
            assert reason in archive.opened.refused[3]
    for number in (1, 2):
        (tmp_path / f"00000{number}.rows").write_bytes(b"")
    with (
        Archive(tmp_path) as archive,
        pytest.raises(ItemIndexError, match=r"no snapshot opens.*000001.*Build the rows"),
    ):
        archive.open(ItemIndex, bundle)


def test_checkpoint_deletes_snapshots_beyond_keep(bundle: Bundle, world: World, tmp_path: Path) -> None:
    with Archive(tmp_path, keep=2) as archive:
        archive.start(made(bundle, world, 5))
        for _ in range(4):
            archive.checkpoint()
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "lock") == [
            "000004.log", "000004.rows", "000005.log", "000005.rows",
        ]  # fmt: skip


@pytest.mark.parametrize("step", ["seal", "move", "write_table", "finish"])
def test_checkpoint_failing_at_any_step_loses_nothing(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    index = made(bundle, world, 12)
    owner = "change_log.ChangeLog" if step in ("seal", "move") else "row_file.RowFileWriter"
    with Archive(tmp_path) as archive:
        archive.start(index, (1,))
        index.delete(world.ids[5:6])

        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"aif_jax.nearline.{owner}.{step}", fail)
            with pytest.raises(ItemIndexError, match=r"no snapshot could be written \(.*No space left"):
                archive.checkpoint()
        # As a crash leaves it ...
    with Archive(tmp_path) as archive:
        again = archive.open(ItemIndex, bundle)
        same(index, again)
        assert archive.position == (1,)
        # ... and the next one goes well.
        archive.checkpoint()
        again.delete(world.ids[6:7])
    with Archive(tmp_path) as archive:
        same(again, archive.open(ItemIndex, bundle))


def test_archive_full_disk_refuses_change_only(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made(bundle, world, 12)
    write = os.write
    with Archive(tmp_path) as archive:
        archive.start(index)
        length = (tmp_path / "000001.log").stat().st_size
        room = [100]

        def little(file: int, content: Any) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = write(file, content[: room[0]])
            room[0] -= written
            return written

        before = index.gather(world.ids[:2])[0]["h"]
        monkeypatch.setattr(os, "write", little)
        with pytest.raises(
            ItemIndexError, match=r"cannot be written \(No space left.*not made. Then free space"
        ):
            index.upsert(world.ids[:2], price(world, slice(0, 2), 50.0))
        monkeypatch.undo()
        assert (tmp_path / "000001.log").stat().st_size == length
        assert np.array_equal(before, index.gather(world.ids[:2])[0]["h"])
        index.upsert(world.ids[:2], price(world, slice(0, 2), 60.0))
    with Archive(tmp_path) as archive:
        same(index, archive.open(ItemIndex, bundle))


def test_archive_unconfirmed_sync_refuses_writes_until_disk_has_all(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made(bundle, world, 12)
    with Archive(tmp_path) as archive:
        archive.start(index)

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", fail)
        for item in (0, 1):
            with pytest.raises(ItemIndexError, match=r"not confirmed.*Input/output error.*next write tries"):
                index.delete(world.ids[item : item + 1])
        assert world.ids[1] in index
        monkeypatch.undo()
        again: list[int] = []
        write = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda *given: again.append(len(given[1])) or write(*given))
        index.delete(world.ids[1:2])
        assert again  # the system does not write a page again whose sync has failed
    with Archive(tmp_path) as archive:
        same(index, archive.open(ItemIndex, bundle))


def test_archive_unconfirmed_write_that_disk_lost_stays_refused(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made(bundle, world, 12)
    with Archive(tmp_path) as archive:
        archive.start(index)
        length = (tmp_path / "000001.log").stat().st_size

        def lose(file: int) -> None:
            os.pwrite(file, bytes(8), length + 24)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", lose)
        with pytest.raises(ItemIndexError, match="not confirmed"):
            index.delete(world.ids[:1])
        monkeypatch.undo()
        for _ in range(2):
            with pytest.raises(ItemIndexError, match=r"has lost.*Open the archive again"):
                index.delete(world.ids[1:2])


def test_archive_log_that_cannot_be_sealed_goes_on(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made(bundle, world, 12)
    sync, failing = os.fdatasync, {2}
    with Archive(tmp_path) as archive:
        archive.start(index)
        replica = Replica(tmp_path)
        copy = replica.open(ItemIndex, bundle)
        calls = iter(range(1, 100))

        def sometimes(file: int) -> None:
            if next(calls) in failing:  # the first one is that of the new log, the second that of the sealed
                replica.poll()
                raise OSError(errno.EIO, "Input/output error")
            sync(file)

        monkeypatch.setattr(os, "fdatasync", sometimes)
        with pytest.raises(ItemIndexError, match="not confirmed"):
            archive.checkpoint()
        index.delete(world.ids[:1])
        replica.poll()
        same(index, copy)
        archive.checkpoint()
        index.delete(world.ids[1:2])
        replica.poll()
        same(index, copy)
    with Archive(tmp_path) as archive:
        same(index, archive.open(ItemIndex, bundle))


def test_archive_second_writer_and_misuse_are_refused(
    bundle: Bundle, other_bundle: Bundle, world: World, tmp_path: Path
) -> None:
    index = made(bundle, world, 12)
    with Archive(tmp_path) as archive:
        archive.start(index)
        with pytest.raises(ItemIndexError, match="another process writes there"):
            Archive(tmp_path)
        with pytest.raises(ItemIndexError, match="keeps a table already"):
            archive.start(index)
    with pytest.raises(ItemIndexError, match="keeps no table"):
        archive.checkpoint()
    with Archive(tmp_path) as archive, pytest.raises(VersionMismatchError):
        archive.open(ItemIndex, other_bundle)
    with Archive(tmp_path / "new") as archive, pytest.raises(ItemIndexError, match="it holds none"):
        archive.open(ItemIndex, bundle)
    with pytest.raises(ItemIndexError, match="keep: got 0"):
        Archive(tmp_path, keep=0)


def test_replica_follows_through_checkpoints(bundle: Bundle, world: World, tmp_path: Path) -> None:
    index = made(bundle, world, 40)
    with Archive(tmp_path, keep=3) as archive:
        archive.start(index, (1,))
        replica = Replica(tmp_path)
        copy = replica.open(ItemIndex, bundle)
        told: list[np.ndarray] = []
        copy.subscribe(told.append)
        for step in range(6):
            with archive.batch((step + 2,)):
                rows = slice(step, step + 3)
                index.upsert(world.ids[rows], price(world, rows, 40.0 + step), world.content[rows])
                index.delete(world.ids[30 + step : 31 + step])
            if step in (2, 3):
                archive.checkpoint()
            if step != 2:
                assert replica.poll() == (2 if step != 3 else 4)
                same(index, copy)
                assert replica.position == (step + 2,)
        assert replica.stats()["behind_bytes"] == 0
        assert len(told) == 12
        replica.start(0.005)
        index.delete(world.ids[20:21])
        assert eventually(lambda: world.ids[20] not in copy)
        replica.close()
        same(Replica(tmp_path).open(ItemIndex, bundle), copy)


def test_replica_behind_deleted_log_is_refused(bundle: Bundle, world: World, tmp_path: Path) -> None:
    index = made(bundle, world, 10)
    with Archive(tmp_path, keep=1) as archive:
        archive.start(index)
        replica = Replica(tmp_path)
        replica.open(ItemIndex, bundle)
        archive.checkpoint()
        index.delete(world.ids[:1])
        archive.checkpoint()
        archive.checkpoint()
        with pytest.raises(ItemIndexError, match=r"deleted before it was read.*Open the archive again"):
            replica.poll()
        assert world.ids[0] not in replica.open(ItemIndex, bundle)


def test_replica_in_thread_goes_on_after_any_error(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made(bundle, world, 10)
    with Archive(tmp_path) as archive:
        archive.start(index)
        replica = Replica(tmp_path)
        copy = replica.open(ItemIndex, bundle)
        failing = [True]

        def refuse(_: np.ndarray) -> None:
            if failing:
                raise OSError(errno.EMFILE, "Too many open files")

        copy.subscribe(refuse)
        replica.start(0.001)
        index.delete(world.ids[:1])
        assert eventually(lambda: replica.stats()["failures"] > 1)
        assert "Too many open files" in replica.stats()["failure"]
        index.delete(world.ids[1:2])
        failing.clear()
        assert eventually(lambda: world.ids[1] not in copy and replica.stats()["failure"] is None)
        replica.close()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells whose a page is")
@pytest.mark.usefixtures("with_sync")
def test_snapshot_rows_share_pages_until_written(bundle: Bundle, world: World, tmp_path: Path) -> None:
    def kilobytes(what: str) -> int:
        text = Path("/proc/self/smaps").read_text().split(str(tmp_path / "rows"))[1]
        return int(next(line for line in text.splitlines() if line.startswith(what)).split()[1])

    made(bundle, world, 150).save(tmp_path / "rows")
    index = ItemIndex.open(bundle, tmp_path / "rows")
    assert index.gather(world.ids)[1].all()
    assert kilobytes("Rss:") > 0
    assert kilobytes("Private_Dirty:") == 0
    before = (tmp_path / "rows").read_bytes()
    for _ in range(2):  # the second time rows of the file are free and used again
        index.delete(world.ids[:100])
        index.upsert(world.ids[:100], price(world, slice(0, 100), 7.0), world.content[:100])
    assert kilobytes("Private_Dirty:") > 0
    assert (tmp_path / "rows").read_bytes() == before


def test_archive_repr_shows_table_and_position(bundle: Bundle, world: World, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    assert repr(archive) == f"Archive({str(tmp_path)!r}, keeps no table)"
    index = made(bundle, world, 3)
    archive.start(index, (5,))
    assert repr(archive) == f"Archive({str(tmp_path)!r}, {index!r}, position (5,))"
    archive.close()
    assert repr(archive) == f"Archive({str(tmp_path)!r}, keeps no table)"
