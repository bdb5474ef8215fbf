"""Device rows equal the index's rows, at every moment and beside any threads."""

import itertools
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations
from aif_jax.errors import ConfigError, ItemIndexError
from aif_jax.nearline import ItemIndex, device_rows
from aif_jax.nearline.change_log import Rows
from aif_jax.nearline.device_rows import (
    DEFAULT_SLOT,
    MISSING,
    DeviceRows,
    RowPacking,
    device_bytes,
    read_rows,
    write_rows,
)
from aif_jax.nearline.item_index import RANKABLE_COLUMN
from support.processes import shared_compilations
from support.served import World


def numbered(index: ItemIndex, numbers: Any) -> dict[str, np.ndarray]:
    """Return rows every value of which follows from one number: what it is, or its remainder by 251."""
    numbers = np.asarray(numbers)
    rows = {}
    for name, (dtype, shape) in index.store.columns.items():
        values = numbers % 251 if dtype == np.uint8 else numbers
        rows[name] = np.broadcast_to(
            values.reshape(-1, *(1,) * len(shape)).astype(dtype), (len(numbers), *shape)
        ).copy()
    return rows


@pytest.fixture
def empty(bundle: Bundle) -> ItemIndex:
    return ItemIndex(bundle)


@pytest.fixture
def rows(empty: ItemIndex) -> Iterator[DeviceRows]:
    with DeviceRows(empty) as made:
        yield made


def write(index: ItemIndex, keys: Any, numbers: Any) -> None:
    index.replay(Rows(np.asarray(keys, np.uint64), numbered(index, numbers), None))


def table_of(rows: DeviceRows) -> jax.Array:
    """Return the table on the device as it is now; the next update ends its life."""
    table, _ = rows.dispatch(np.empty(0, np.uint64), 64, lambda _, table, slots: table)
    return table


def compiled_read(rows: DeviceRows, capacity: int, size: int) -> Any:
    """Compile the gathering of rows for one capacity and number of slots."""
    program = jax.jit(read_rows, out_shardings=rows.sharding)
    return program.lower(rows.table_spec(capacity), rows.spec(size)).compile()


def check_all(rows: DeviceRows, keys: np.ndarray) -> None:
    """Compare the device's rows with the index's, and the slots with each other."""
    expected, found = rows.index.gather(keys)
    read, there = rows.read(keys)
    np.testing.assert_array_equal(there, found)
    for name, column in read.items():
        np.testing.assert_array_equal(column, expected[name], err_msg=name)
    slots = rows.slots(keys)
    used = slots[slots != MISSING]
    assert len(set(used.tolist())) == len(used)
    assert DEFAULT_SLOT not in used
    stats = rows.stats()
    assert stats["rows"] == len(rows.index) == len(rows)
    assert stats["free_slots"] == stats["capacity"] - 1 - len(rows)
    assert stats["pending"] == 0


def test_device_rows_copy_rows_of_index(index: ItemIndex, world: World) -> None:
    with DeviceRows(index) as rows:
        check_all(rows, world.ids)
        assert set(rows.columns) <= set(index.store.columns)
        assert RANKABLE_COLUMN in rows.columns
        default, found = rows.dispatch(
            np.zeros(1, np.uint64),
            64,
            lambda capacity, *operands: compiled_read(rows, capacity, 64)(*operands),
            default=True,
        )
        assert not found[0]
        default = rows.packing.unpack(np.asarray(default)[:1])
        for name, column in index.default_row().items():
            if name in rows.columns:
                np.testing.assert_array_equal(default[name], column)


@pytest.mark.parametrize("seed", range(4))
def test_device_rows_follow_random_changes_through_growth_and_reuse(
    empty: ItemIndex, rows: DeviceRows, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = np.arange(400, dtype=np.uint64) * np.uint64(2**33 + 1)
    numbers = itertools.count(1)
    grown: set[int] = set()
    for step in range(40):
        some = rng.choice(keys, rng.integers(1, 60), replace=False)
        match rng.integers(0, 5):
            case 0 | 1:
                write(empty, some, [next(numbers) for _ in some])
            case 2:
                empty.delete(some)
            case 3:
                empty.set_rankable(some, bool(rng.integers(0, 2)))
            case 4 if step > 20:
                write(empty, keys, [next(numbers) for _ in keys])
        check_all(rows, keys)
        grown.add(rows.stats()["capacity"])
    stats = rows.stats()
    assert len(grown) > 1
    assert stats["growths"] >= len(grown) - 1
    assert stats["reuses"] > 0
    assert stats["removed"] > 0


def test_device_rows_repeated_key_keeps_last_row(empty: ItemIndex, rows: DeviceRows) -> None:
    keys = np.array([5, 9, 5, 5, 9], np.uint64)
    values = numbered(empty, [1, 2, 3, 4, 5])
    rows.apply(keys, {name: values[name] for name in rows.columns})
    read, found = rows.read(np.array([5, 9, 7], np.uint64))
    assert found.tolist() == [True, True, False]
    for name, column in numbered(empty, [4, 5]).items():
        if name in rows.columns:
            np.testing.assert_array_equal(read[name][:2], column)
            assert not read[name][2].any()
    assert rows.remove(np.array([5, 5, 7], np.uint64)) == 1
    assert len(rows) == 1


def test_device_rows_write_batches_of_every_size(empty: ItemIndex) -> None:
    largest = device_rows.BATCHES[-1]
    keys = np.arange(largest + 1100, dtype=np.uint64)
    with DeviceRows(empty, capacity=2 * largest) as rows:
        write(empty, keys, np.arange(len(keys)))
        check_all(rows, keys)
        assert rows.stats()["updates"] == 2
        write(empty, keys[:65], np.arange(65) + 7)
        write(empty, keys[100:101], [3])
        check_all(rows, keys)
        assert rows.stats()["growths"] == 0
    # A new copy finds them all.
    with DeviceRows(empty) as rows:
        check_all(rows, keys)
        stats = rows.stats()
        assert stats["capacity"] == 2 * largest
        assert stats["device_bytes"] == device_bytes(empty) == device_bytes(empty, capacity=largest + 1)


def test_device_rows_update_reuses_memory_and_compiles_nothing(empty: ItemIndex, rows: DeviceRows) -> None:
    write(empty, range(30), range(30))
    compiled = compilations()
    before = table_of(rows)
    pointer = before.unsafe_buffer_pointer()
    write(empty, range(10, 50), range(40))
    assert table_of(rows).unsafe_buffer_pointer() == pointer
    assert before.is_deleted()
    rows_spec = rows.spec(64, rows.packing.words)
    program = jax.jit(write_rows, donate_argnums=0).lower(rows.table_spec(2**16), rows.spec(64), rows_spec)
    memory = program.compile().memory_analysis()
    assert memory.alias_size_in_bytes == 2**16 * rows.packing.words * 4
    assert memory.temp_size_in_bytes < memory.alias_size_in_bytes // 50
    assert compilations() == compiled


def test_device_rows_not_immediate_change_on_sync(empty: ItemIndex) -> None:
    keys = np.arange(20, dtype=np.uint64)
    with DeviceRows(empty, immediate=False) as rows:
        write(empty, keys, range(20))
        empty.delete(keys[:5])
        assert len(rows) == 0
        assert rows.stats()["pending"] == 25
        assert rows.sync() == 20
        check_all(rows, keys)
        assert rows.sync() == 0


def test_device_rows_failed_copy_raises_in_writer_and_is_retried(
    empty: ItemIndex, rows: DeviceRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = np.arange(20, dtype=np.uint64)
    write(empty, keys[:10], range(10))

    def full(*_: Any) -> Any:
        raise MemoryError("the device is full")

    with monkeypatch.context() as patched:
        patched.setattr(rows, "_compiled_write", lambda *_: full)
        with pytest.raises(MemoryError, match="the device is full"):
            write(empty, keys, range(100, 120))
    assert rows.stats()["pending"] == 20
    assert len(rows) == 10
    rows.sync()
    check_all(rows, keys)


def test_device_rows_failed_construction_unsubscribes(
    empty: ItemIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("the device is full")

    with monkeypatch.context() as patched:
        patched.setattr(DeviceRows, "_compiled_write", lambda *_: full)
        with pytest.raises(MemoryError, match="the device is full"):
            DeviceRows(empty)
    assert not empty._listeners
    write(empty, [1], [1])


def test_device_rows_lost_in_failed_update_are_refused(
    empty: ItemIndex, rows: DeviceRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(table: Any, *_: Any) -> Any:
        table.delete()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(rows, "_compiled_write", lambda *_: failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        write(empty, [1], [1])
    with pytest.raises(ItemIndexError, match=r"were lost in an update that failed \(RuntimeError: out of"):
        rows.read(np.array([1], np.uint64))


def test_device_rows_closed_follow_nothing_and_are_refused(empty: ItemIndex) -> None:
    rows = DeviceRows(empty)
    rows.close()
    write(empty, [1], [1])
    for call in (lambda: rows.read(np.array([1], np.uint64)), lambda: rows.remove(np.array([1], np.uint64))):
        with pytest.raises(ItemIndexError, match="were closed; make new DeviceRows"):
            call()
    rows.close()


@pytest.mark.parametrize(
    ("keys", "change", "says"),
    [
        (np.zeros(2, np.int64), {}, r"keys: got int64\[2\], expected uint64"),
        ([1, 2], {}, "keys: got list"),
        (np.zeros(2, np.uint64), {"h": None}, "got nothing for column 'h'"),
        (np.zeros(2, np.uint64), {"h": np.zeros((2, 3), np.float32)}, r"got float32\[2, 3\] for column 'h'"),
        (np.zeros(2, np.uint64), {"e": np.zeros((2, 8), np.float64)}, r"got float64\[2, 8\] for column 'e'"),
    ],
)
def test_device_rows_apply_of_misfit_rows_is_refused(
    empty: ItemIndex, rows: DeviceRows, keys: Any, change: dict[str, Any], says: str
) -> None:
    given = {
        name: column for name, column in (numbered(empty, [1, 2]) | change).items() if column is not None
    }
    with pytest.raises(ItemIndexError, match=says):
        rows.apply(keys, given)


@pytest.mark.parametrize("device", ["cpu", 0, [jax.devices()[0]]])
def test_device_rows_on_something_else_than_device_is_refused(empty: ItemIndex, device: Any) -> None:
    with pytest.raises(ConfigError, match=r"device: got .*, expected one of jax\.devices\(\)"):
        DeviceRows(empty, device)


def test_device_rows_on_second_device_follow_index(bundle: Bundle, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        import jax, numpy as np
        sys.path.insert(0, sys.argv[2])
        from support.served import make_items
        from aif_jax.bundle import Bundle
        from aif_jax.nearline import ItemIndex
        from aif_jax.nearline.device_rows import DeviceRows

        second = jax.devices()[1]
        bundle = Bundle.load(sys.argv[1], prefer="portable")
        ids, columns, content = make_items()
        index = ItemIndex.build(bundle, ids[:100], {n: c[:100] for n, c in columns.items()}, content[:100])
        with DeviceRows(index, second) as rows:
            index.upsert(ids[100:], {n: c[100:] for n, c in columns.items()}, content[100:])
            index.delete(ids[::7])
            read, there = rows.read(ids)
            expected, found = index.gather(ids)
            assert (there == found).all() and found.any() and not found.all()
            for name, column in read.items():
                np.testing.assert_array_equal(column, expected[name], err_msg=name)
            assert rows.stats()["growths"] > 0
            devices, _ = rows.dispatch(ids[:1], 64, lambda _, table, slots: table.devices() | slots.devices())
            assert devices == {second}
        """
    )
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}",
        "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path), "PATH": "", **shared_compilations(),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle.path), str(Path(__file__).parent.parent)],
        env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def reader(rows: DeviceRows, size: int) -> Callable[[np.ndarray], tuple[dict[str, np.ndarray], np.ndarray]]:
    """Return what gathers rows as a request does: without the writers' lock, through `dispatch` alone."""
    programs = {}

    def prepare(capacity: int) -> None:
        programs[capacity] = compiled_read(rows, capacity, size)

    rows.on_growth(prepare)

    def read(keys: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        result, found = rows.dispatch(
            keys, size, lambda capacity, table, slots: programs[capacity](table, slots)
        )
        return rows.packing.unpack(np.asarray(result)[: len(keys)]), found

    return read


def test_dispatch_slot_reused_after_lookup_reads_no_other_row(
    empty: ItemIndex, rows: DeviceRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader(rows, 64)
    write(empty, [1, 2], [10, 20])
    looked_up = rows.slots

    def meanwhile(keys: np.ndarray) -> np.ndarray:
        slots = looked_up(keys)
        monkeypatch.setattr(rows, "slots", looked_up)
        empty.delete([1])
        write(empty, [3], [30])
        assert looked_up(np.array([3], np.uint64))[0] == slots[0]
        return slots

    monkeypatch.setattr(rows, "slots", meanwhile)
    columns, found = read(np.array([1, 2, 3], np.uint64))
    assert found.tolist() == [False, True, True]
    assert columns["h"][1:, 0].tolist() == [20.0, 30.0]
    assert rows.stats()["looked_up_again"] == 1


def test_dispatch_row_deleted_after_lookup_is_still_read(
    empty: ItemIndex, rows: DeviceRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader(rows, 64)
    write(empty, [1, 2], [10, 20])
    looked_up = rows.slots

    def meanwhile(keys: np.ndarray) -> np.ndarray:
        slots = looked_up(keys)
        monkeypatch.setattr(rows, "slots", looked_up)
        empty.delete([1])
        return slots

    monkeypatch.setattr(rows, "slots", meanwhile)
    columns, found = read(np.array([1, 2], np.uint64))
    assert found.tolist() == [True, True]
    assert columns["h"][:, 0].tolist() == [10.0, 20.0]
    assert read(np.array([1, 2], np.uint64))[1].tolist() == [False, True]


def test_dispatch_beside_writers_reads_whole_rows(empty: ItemIndex) -> None:
    """A row's number is ``1000 key + version``: whoever reads it sees whose it is, and of which version."""
    n, per_item, rounds = 300, 1000, 120
    rng = np.random.default_rng(0)
    write(empty, range(n), per_item * np.arange(n))
    rows = DeviceRows(empty)
    read = reader(rows, 128)
    # Versions only rise: what has been written before a read starts is the least that it may see.
    written = np.zeros(n, np.int64)
    errors: list[BaseException] = []
    done = threading.Event()
    reads = [0] * 4
    start = threading.Barrier(6)

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                start.wait(60)
                work()
            except BaseException as error:
                errors.append(error)
                done.set()

        return run

    def reading(number: int) -> Callable[[], None]:
        mine = np.random.default_rng(number)

        def work() -> None:
            while not done.is_set() or not reads[number]:
                keys = mine.choice(n + 50, 100, replace=False).astype(np.uint64)
                known = keys < n
                least = written[keys[known].astype(int)].copy()
                columns, found = read(keys)
                seen = columns["h"][:, 0].astype(np.int64)
                for name, column in columns.items():
                    expected = seen % 251 if column.dtype == np.uint8 else seen
                    flat = column.reshape(len(keys), -1).astype(np.int64)[found]
                    np.testing.assert_array_equal(
                        flat, np.broadcast_to(expected[found, None], flat.shape), err_msg=name
                    )
                np.testing.assert_array_equal(seen[found] // per_item, keys[found].astype(np.int64))
                assert not found[~known].any()
                stays = known & (keys < n // 2)  # the others are deleted now and then
                assert found[stays].all()
                fresh = (seen % per_item)[known] >= least
                assert fresh[found[known]].all()
                reads[number] += 1

        return work

    def updating() -> None:
        for version in range(1, rounds):
            keys = rng.choice(n // 2, 40, replace=False)
            write(empty, keys, per_item * keys + version)
            written[keys] = version
        done.set()

    def replacing() -> None:
        """Delete and insert, so that slots change hands all the time; insert others, so that tables grow."""
        mine = np.random.default_rng(99)
        version = 0
        while not done.is_set():
            version = (version + 1) % 900
            keys = n // 2 + mine.choice(n // 2, 20, replace=False)
            empty.delete(keys.astype(np.uint64))
            keys = mine.permutation(keys)
            # Versions of these do not only rise.
            write(empty, keys, per_item * keys + version)
            if version % 10 == 0:
                more = np.arange(40, dtype=np.uint64) + np.uint64(10**6 + 40 * version)
                write(empty, more, np.full(40, 7))

    threads = [threading.Thread(target=guarded(work)) for work in
               (*(reading(number) for number in range(4)), updating, replacing)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    stats = rows.stats()
    assert min(reads) > 0
    assert stats["reuses"] > 0
    check_all(rows, np.concatenate([np.arange(n, dtype=np.uint64), empty.store.cache.keys()[:50]])[:n])
    rows.close()


def test_subscribe_notifies_until_unsubscribed(bundle: Bundle, world: World) -> None:
    index = ItemIndex(bundle)
    told: list[list[int]] = []

    def failing(_: np.ndarray) -> None:
        raise RuntimeError("no")

    stop = index.subscribe(lambda keys: told.append(keys.tolist()))
    columns = {name: column[:3] for name, column in world.columns.items()}
    ids = world.ids[:3].tolist()
    index.upsert(ids, columns, world.content[:3])
    index.set_rankable(ids[:2], False)
    index.delete(ids[1:2])
    assert told == [ids, ids[:2], ids[1:2]]
    stop_failing = index.subscribe(failing)
    last = index.subscribe(lambda keys: told.append([-1]))
    with pytest.raises(RuntimeError, match="no"):
        index.delete(ids[:1])
    assert told[-2:] == [ids[:1], [-1]]
    assert len(index) == 1
    for end in (stop_failing, last, stop):
        end()
    index.delete(ids)
    assert len(told) == 5


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_row_packing_unpacks_same_bits(platform: str) -> None:
    rng = np.random.default_rng(0)
    bfloat16 = np.dtype(jnp.bfloat16)
    columns = {
        "a": (np.dtype(np.float32), (5,)), "b": (np.dtype(np.uint8), (7,)), "c": (np.dtype(np.int32), ()),
        "d": (bfloat16, (3,)), "e": (np.dtype(np.float16), (2, 3)), "f": (np.dtype(np.int8), (1,)),
        "g": (np.dtype(np.uint32), (2, 2)),
    }  # fmt: skip
    packing = RowPacking(columns, platform)
    assert packing.words == (128 if platform == "tpu" else 32)
    rows = {
        name: rng.integers(0, 256, (9, *shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
        for name, (dtype, shape) in columns.items()
    }
    words = packing.pack(rows, 16)
    assert words.shape == (16, packing.words)
    assert not words[9:].any()
    traced = jax.jit(packing.unpack_traced)(words)
    for got in (packing.unpack(words), {name: np.asarray(column) for name, column in traced.items()}):
        for name, (dtype, shape) in columns.items():
            assert (got[name].dtype, got[name].shape) == (dtype, (16, *shape))
            same = np.ascontiguousarray(got[name][:9]).view(np.uint8)
            np.testing.assert_array_equal(same, np.ascontiguousarray(rows[name]).view(np.uint8), err_msg=name)
