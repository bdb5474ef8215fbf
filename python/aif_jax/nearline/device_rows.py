"""Item rows in device memory that follow an item index.

The real-time stage reads them on an accelerator. The host maps item keys to slots of one wide table on the
device, int32 ``[capacity, words]``, and only slots travel with a request. Updates are scattered into the
table in batches of a few fixed sizes. Their programs are compiled ahead and take the table as a donated
operand, so that no second copy of it is made.

**Order of dispatch.** A donated update ends the life of the array that it was given: a caller that still
holds it gets "Array has been deleted". So programs must be *dispatched* in one order, and a lock gives that
order: each dispatch, for a request or for an update, holds it from taking the table to storing the new one.
The device runs programs in the order of dispatch, because each reads the results of the one before, without
waiting for a thread. A dispatcher thread would give the same order, but it would cost two
changes of thread a request, a queue to bound and a life to end at exit; and it would not dispatch sooner,
because dispatching holds the GIL most of the time anyway. No thread computes or transfers under the lock: the
transfers of a request are started before it, and an update leaves the lock to requests between its batches.
(On a CPU, JAX may run a small program in the thread that dispatches it, and then under the lock.)

**Reused slots.** A request looks its slots up before it takes the lock. Before its program is dispatched,
one of its items may be deleted and the slot given to another item. A slot changes hands only under the
lock, and each time a count of reuses goes up before the new key can be found. So a request reads the count,
looks up, and compares the count under the lock. If it is unchanged, each slot still holds the row of its
key, or the last row of a key that was deleted during the request. Otherwise the request looks up again, now
under the lock, where nothing changes. A dispatched program reads the table of its place in the order,
whatever becomes of the slots later.

**Growth.** A full table is replaced by one of twice the capacity. Programs depend on the capacity, so the
thread that writes first compiles those for the new one while requests use the old one. Then the rows are
copied on the device, which must hold both tables for that time. Writers wait, requests do not;
`DeviceRows.stats` counts both. A sufficient ``capacity`` avoids growth. The table never shrinks.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from aif_jax import _native
from aif_jax.bundle.programs import compiled_once
from aif_jax.errors import ConfigError, ItemIndexError
from aif_jax.features import bucket_for, pad_to
from aif_jax.nearline.item_index import ItemIndex
from aif_jax.nearline.store import ColumnSpecs
from aif_jax.processes import OfOneProcess
from aif_jax.strict_json import text_of

MISSING = -1
"""Slot of a key that has no row."""
DEFAULT_SLOT = 0
"""Slot of the row of an unknown item."""
BATCHES = (64, 1024, 16384)
"""Rows that one update takes; smaller ones are padded."""

_WORD_BYTES = 4
_TPU_ROW_WORDS = 128
_ROW_WORDS = 16
"""Words of a row come in multiples of a TPU's 128 lanes there, and of a cache line elsewhere."""

Device: TypeAlias = Any
"""A ``jax.Device``, which type checkers do not take for a type."""

T = TypeVar("T")


class RowPacking:
    """The place of each column in a row of 32-bit words.

    One gather reads a whole row of such a table, and one scatter writes it. On a TPU it saves more than
    calls: XLA stores a narrow table by columns, and copies all of it into another layout to gather rows, for
    every request (512 of 1,200 MB with a million rows of the standard workload, as compiled for a TPU v5e).
    It stores a table whose rows are a multiple of 128 words by rows.

    Args:
        columns: dtype (of 1, 2 or 4 bytes) and shape within one row, by column name.
        platform: of the device that the rows are for.

    Attributes:
        columns: as given.
        words: 32-bit words of a row, padding included.
    """

    def __init__(self, columns: ColumnSpecs, platform: str):
        self.columns = dict(columns)
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (dtype, shape) in self.columns.items():
            size = -(-int(np.prod(shape)) * dtype.itemsize // _WORD_BYTES)
            self._places[name] = (end, size)
            end += size
        multiple = _TPU_ROW_WORDS if platform == "tpu" else _ROW_WORDS
        self.words = -(-end // multiple) * multiple

    def pack(self, rows: Mapping[str, np.ndarray], size: int) -> np.ndarray:
        """Return columns ``[n, ...]`` as words, int32 ``[size, words]``, zeros from n on."""
        words = np.zeros((size, self.words), np.int32)
        in_bytes = words.view(np.uint8)
        for name, (dtype, shape) in self.columns.items():
            n, n_bytes = len(rows[name]), int(np.prod(shape)) * dtype.itemsize
            start = self._places[name][0] * _WORD_BYTES
            column = np.ascontiguousarray(rows[name]).view(np.uint8).reshape(n, n_bytes)
            in_bytes[:n, start : start + n_bytes] = column
        return words

    def unpack(self, words: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns ``[n, ...]`` of words ``[n, words]``, copied."""
        in_bytes, n = np.ascontiguousarray(words).view(np.uint8), len(words)
        rows = {}
        for name, (dtype, shape) in self.columns.items():
            start, n_bytes = self._places[name][0] * _WORD_BYTES, int(np.prod(shape)) * dtype.itemsize
            column = np.array(in_bytes[:, start : start + n_bytes], order="C")
            rows[name] = column.view(dtype).reshape(n, *shape)
        return rows

    def unpack_traced(self, words: jax.Array) -> dict[str, jax.Array]:
        """Return the columns ``[n, ...]`` of words int32 ``[n, words]`` inside a program, bit for bit."""
        return {name: self._column(words, name) for name in self.columns}

    def _column(self, words: jax.Array, name: str) -> jax.Array:
        dtype, shape = self.columns[name]
        start, size = self._places[name]
        n = words.shape[0]
        values: Any = jax.lax.bitcast_convert_type(words[:, start : start + size], jnp.dtype(dtype))
        # A word is several narrower values, on an axis of its own, the lowest bits first.
        return values.reshape(n, -1)[:, : int(np.prod(shape))].reshape(n, *shape)


class DeviceRows(
    OfOneProcess,
    guards=("sync", "apply", "remove", "__len__", "slots", "dispatch", "read", "stats", "on_growth"),
):
    """The rows of an item index in the memory of one device.

    It may be used from any thread. Close it to give the memory back.

    Args:
        index: the rows to follow.
        device: the device that keeps them; ``None``: JAX's first.
        capacity: rows to have room for from the start, rounded up; at least those of the index.
        immediate: a write to the index returns only when the update has been dispatched, so that every
            request that starts afterwards sees it, as on the host. Otherwise call `sync`.

    Raises:
        ConfigError: ``device`` is not a device.

    Attributes:
        index: the index that it follows.
        device: the device that keeps the rows.
        sharding: of the table and of everything that is sent to it.
        columns: dtype and shape within one row of the columns that are kept.
        packing: the places of the columns in a row of the table.
    """

    unpickled = "make them in each process, of an index that it opened."

    def __init__(
        self, index: ItemIndex, device: Device | None = None, *, capacity: int = 0, immediate: bool = True
    ):
        super().__init__()
        if device is not None and not isinstance(device, jax.Device):
            raise ConfigError(
                f"device: got {device!r}, expected one of jax.devices(), or None for the first."
            )
        self.index = index
        self.device: Device = jax.devices()[0] if device is None else device
        self.sharding = SingleDeviceSharding(self.device)
        self.columns = _columns_of(index)
        self.packing = RowPacking(self.columns, self.device.platform)
        self._slots = _native.EmbeddingCache(
            _native.RowLayout([("slot", "int32", ())]), initial_keys=len(index)
        )
        self._immediate = immediate
        self._dispatching = threading.Lock()  # table, slots and their order on the device
        self._writing = threading.RLock()  # one writer at a time, compiling included; taken first
        self._noting = threading.Lock()
        self._pending: list[np.ndarray] = []
        self._prepare: list[Callable[[int], None]] = []
        self._free: list[int] = []
        self._used = DEFAULT_SLOT + 1
        self._reuses = 0
        self._counts = dict.fromkeys(("written", "removed", "updates", "looked_up_again", "growths"), 0)
        self._grown_in_s = 0.0
        self._closed = False
        self._broken = ""
        self._capacity = _first_capacity(index, capacity)
        self._held: dict[Any, Any] = {}
        self._compile_writes(self._capacity)
        self._table: jax.Array | None = self._compiled_zeros(self._capacity)()
        # Listen first, then copy: what is written meanwhile is noted, and copied again.
        self._unsubscribe = index.subscribe(self._note)
        try:
            default = index.default_row()
            with self._writing:
                slots, no_keys = np.array([DEFAULT_SLOT], np.int32), np.empty(0, np.uint64)
                self._update(slots, {name: default[name] for name in self.columns}, no_keys, slots[:0])
                self._note_only(index.store.cache.keys())
                self.sync()
                self._counts["updates"] = self._counts["written"] = 0
        except BaseException:
            self.close()
            raise

    # -- following the index ----------------------------------------------------------------------

    def sync(self) -> int:
        """Copy what has changed in the index since the last time; return the number of keys looked at.

        Raises:
            ItemIndexError: the rows are closed, or were lost (see `apply`).
            jax.errors.JaxRuntimeError: the device has no memory for a larger table.

        What could not be copied is tried again by the next call.
        """
        with self._writing:
            with self._noting:
                noted, self._pending = self._pending, []
            if not noted:
                return 0
            keys = np.unique(np.concatenate(noted))
            done = 0
            try:
                for part in _batches(len(keys)):
                    rows, found = self.index.gather(keys[part])
                    self.apply(keys[part][found], {name: rows[name][found] for name in self.columns})
                    self.remove(keys[part][~found])
                    done = part.stop
            finally:
                self._note_only(keys[done:])
            return len(keys)

    def apply(self, keys: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Write rows, new ones and others; of a key that comes twice the last row stays.

        Args:
            keys: uint64 ``[n]``.
            rows: every column of `columns`, ``[n, ...]``.

        Raises:
            ItemIndexError: a column is missing or of another shape or dtype; the rows are closed; or an
                update failed on the way to the device and took the table with it: make new `DeviceRows`.
            jax.errors.JaxRuntimeError: the device has no memory for a larger table; nothing was changed.
        """
        self._check_rows(keys, rows)
        unique, last = np.unique(keys[::-1], return_index=True)
        keys, rows = unique, {name: rows[name][::-1][last] for name in self.columns}
        with self._writing:
            for part in _batches(len(keys)):
                batch = keys[part]
                slots = self.slots(batch)
                new = np.flatnonzero(slots == MISSING)
                self._make_room(len(new))
                slots[new] = fresh = self._fresh(len(new))
                part_rows = {name: rows[name][part] for name in self.columns}
                self._update(slots, part_rows, np.ascontiguousarray(batch[new]), fresh)
                self._counts["written"] += len(batch)

    def remove(self, keys: np.ndarray) -> int:
        """Remove keys, uint64 ``[n]``; return the number of them that had a row.

        No request that starts afterwards finds them. Nothing happens on the device; their slots are free.
        """
        with self._writing, self._dispatching:
            self._checked_table()
            keys = np.unique(keys)
            slots = self.slots(keys)
            there = slots != MISSING
            self._slots.delete(keys)
            self._free.extend(slots[there].tolist())
            self._counts["removed"] += (removed := int(there.sum()))
        return removed

    # -- reading ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._slots)

    def slots(self, keys: np.ndarray) -> np.ndarray:
        """Return the slots of keys uint64 ``[n]``: int32 ``[n]``, `MISSING` where there is no row.

        A slot may be another key's as soon as this returns: use `dispatch`.
        """
        columns, found = self._slots.gather(np.ascontiguousarray(keys))
        return np.where(found, columns["slot"], np.int32(MISSING))

    def dispatch(
        self,
        keys: np.ndarray,
        size: int,
        call: Callable[[int, jax.Array, jax.Array], T],
        *,
        default: bool = False,
        refuse: Callable[[np.ndarray], None] | None = None,
    ) -> tuple[T, np.ndarray]:
        """Look keys up and dispatch a program over their rows.

        Args:
            keys: uint64 ``[n]``.
            size: slots that the program takes, at least n.
            call: dispatches a program compiled for the capacity, its first argument, over the table and
                slots int32 ``[size]`` on the device, negative where there is no row to read. It must neither
                wait nor compile nor keep the table.
            default: a missing key reads the default row.
            refuse: called with a mask of the keys that have a row, bool ``[n]``, if some have none; may
                raise.

        Returns:
            The result of ``call``, and a mask of the keys that have a row of their own, bool ``[n]``.

        Raises:
            ItemIndexError: the rows are closed or were lost.
        """
        reuses = self._reuses
        slots = self.slots(keys)
        if refuse is not None and (slots == MISSING).any():
            refuse(slots != MISSING)
        sent = self._sent(slots, size, default)
        with self._dispatching:
            table = self._checked_table()
            if reuses != self._reuses:
                self._counts["looked_up_again"] += 1
                slots = self.slots(keys)
                sent = self._sent(slots, size, default)
            result = call(self._capacity, table, sent)
        return result, slots != MISSING

    def read(self, keys: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Copy rows back to the host, to look at them.

        Args:
            keys: uint64 ``[n]``.

        Returns:
            Columns ``[n, ...]``, zeros where there is no row, and a mask of the rows found, bool ``[n]``.
        """
        parts: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        with self._writing:  # no growth between compiling and dispatching
            for part in _batches(len(keys)) if len(keys) else (slice(0, 0),):
                size = bucket_for(part.stop - part.start, BATCHES)
                program = self._compiled_read(self._capacity, size)
                read, found = self.dispatch(
                    keys[part], size, lambda _, *operands, program=program: program(*operands)
                )
                rows = self.packing.unpack(np.asarray(read)[: len(found)])
                for column in rows.values():
                    column[~found] = 0
                parts.append((rows, found))
        columns = {name: np.concatenate([rows[name] for rows, _ in parts]) for name in self.columns}
        return columns, np.concatenate([found for _, found in parts])

    # -- life -------------------------------------------------------------------------------------

    def on_growth(self, prepare: Callable[[int], None]) -> None:
        """Have ``prepare(capacity)`` called before a table of another capacity comes into use, and now."""
        with self._writing:
            prepare(self._capacity)
            self._prepare.append(prepare)

    def stats(self) -> dict[str, Any]:
        """Return sizes and counters.

        ``rows``, ``capacity``, ``free_slots``; ``device_bytes`` of the table; ``pending`` keys that changed
        in the index and were not copied yet; ``written`` and ``removed`` rows since the start and ``updates``
        dispatched for them; ``reuses`` of slots (batches) and ``looked_up_again``, the requests that met one;
        ``growths`` and the seconds ``grown_in_s`` that writers waited for them.
        """
        with self._noting:
            pending = sum(map(len, self._pending))
        with self._dispatching:
            return {
                "rows": len(self), "capacity": self._capacity, "pending": pending,
                "free_slots": self._capacity - self._used + len(self._free), "reuses": self._reuses,
                "device_bytes": self._capacity * self.packing.words * _WORD_BYTES,
                "grown_in_s": self._grown_in_s, **self._counts,
            }  # fmt: skip

    def close(self) -> None:
        """Stop following the index and give the device's memory back. In a forked child it does nothing."""
        if self.forked:
            return
        self._closed = True
        self._unsubscribe()
        with self._writing, self._dispatching:
            self._broken = self._broken or "were closed"
            self._table = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------------

    def _note(self, keys: np.ndarray) -> None:
        if self._closed:  # while the index was about to notify
            return
        self._note_only(keys)
        if self._immediate:
            self.sync()

    def _note_only(self, keys: np.ndarray) -> None:
        if len(keys):
            with self._noting:
                self._pending.append(np.array(keys, np.uint64))

    def _sent(self, slots: np.ndarray, size: int, default: bool) -> jax.Array:
        if default:
            slots = np.where(slots == MISSING, np.int32(DEFAULT_SLOT), slots)
        return jax.device_put(pad_to(slots, size, fill=MISSING), self.sharding)

    def _fresh(self, n: int) -> np.ndarray:
        """Return n free slots, reused ones first; they are taken by `_update`."""
        old = self._free[: -n - 1 : -1]
        return np.array([*old, *range(self._used, self._used + n - len(old))], np.int32)

    def _update(
        self, slots: np.ndarray, rows: Mapping[str, np.ndarray], new: np.ndarray, fresh: np.ndarray
    ) -> None:
        """Dispatch one update; from then on new keys are found under their slots from `_fresh`."""
        n = len(slots)
        size = bucket_for(n, BATCHES)
        program = self._compiled_write(self._capacity, size)
        # Padding goes beyond the table, each row to a place of its own.
        beyond = self._capacity + np.arange(size - n, dtype=np.int32)
        operands = jax.device_put(
            (np.concatenate([slots, beyond]), self.packing.pack(rows, size)), self.sharding
        )
        with self._dispatching:
            reused = min(len(new), len(self._free))
            self._reuses += reused > 0
            before = self._checked_table()
            try:
                self._table = program(before, *operands)
            except BaseException as error:
                if before.is_deleted():
                    said = f"{type(error).__name__}: {text_of(error)}"
                    self._broken = f"were lost in an update that failed ({said})"
                raise
            self._counts["updates"] += 1
            if len(new):
                self._slots.upsert(new, {"slot": fresh})
                del self._free[len(self._free) - reused :]
                self._used += len(new) - reused

    def _make_room(self, n: int) -> None:
        """Grow the table if n more rows do not fit."""
        needed = self._used + n - len(self._free)
        if needed <= self._capacity:
            return
        began = time.perf_counter()
        capacity = _power_of_two(needed)
        self._compile_writes(capacity)
        for prepare in self._prepare:
            prepare(capacity)
        grow = self._compiled_growth(capacity)
        with self._dispatching:
            self._table = grow(self._checked_table())
            self._capacity = capacity
            self._counts["growths"] += 1
            self._grown_in_s += time.perf_counter() - began

    def _checked_table(self) -> jax.Array:
        if self._broken or self._table is None:
            raise ItemIndexError(
                f"the rows on {self.device} {self._broken}; make new DeviceRows from the item index, which "
                "has them all."
            )
        return self._table

    def _check_rows(self, keys: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64 or keys.ndim != 1:
            given = f"{keys.dtype}{list(keys.shape)}" if isinstance(keys, np.ndarray) else type(keys).__name__
            raise ItemIndexError(f"keys: got {given}, expected uint64 [n]; item_keys makes them.")
        for name, (dtype, shape) in self.columns.items():
            row = rows.get(name)
            if row is None or row.dtype != dtype or row.shape != (len(keys), *shape):
                given = "nothing" if row is None else f"{row.dtype}{list(row.shape)}"
                raise ItemIndexError(
                    f"rows: got {given} for column {name!r}, expected {dtype}{[len(keys), *shape]}."
                )

    # -- programs ---------------------------------------------------------------------------------

    def program_key(self, name: str, capacity: int, *rest: Any) -> tuple[Any, ...]:
        """Return all that a program over this table depends on, besides what it computes."""
        return (name, self.device.platform, self.device.id, self.packing.words, capacity, *rest)

    def spec(self, *shape: int) -> jax.ShapeDtypeStruct:
        """Return the spec of an int32 operand on the device: slots ``[n]`` or rows ``[n, words]``."""
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=self.sharding)

    def table_spec(self, capacity: int) -> jax.ShapeDtypeStruct:
        """Return the spec of the table at a capacity."""
        return self.spec(capacity, self.packing.words)

    def _compiled_zeros(self, capacity: int) -> Any:
        zeros = functools.partial(jnp.zeros, (capacity, self.packing.words), np.int32)
        return self._compiled(self.program_key("device_zeros", capacity), zeros)

    def _compile_writes(self, capacity: int) -> None:
        for size in BATCHES:
            self._compiled_write(capacity, size)

    def _compiled_write(self, capacity: int, size: int) -> Any:
        key, rows = self.program_key("device_write", capacity, size), self.spec(size, self.packing.words)
        table, slots = self.table_spec(capacity), self.spec(size)
        return self._compiled(key, write_rows, table, slots, rows, donate_argnums=0)

    def _compiled_read(self, capacity: int, size: int) -> Any:
        key = self.program_key("device_read", capacity, size)
        return self._compiled(key, read_rows, self.table_spec(capacity), self.spec(size))

    def _compiled_growth(self, capacity: int) -> Any:
        key = self.program_key("device_growth", capacity, self._capacity)
        grown = functools.partial(_grown, capacity=capacity)
        return self._compiled(key, grown, self.table_spec(self._capacity))

    def _compiled(
        self, key: tuple[Any, ...], function: Callable[..., jax.Array], *operands: Any, **options: Any
    ) -> Any:
        def compile_it() -> Any:
            return jax.jit(function, out_shardings=self.sharding, **options).lower(*operands).compile()

        return compiled_once(key, compile_it, self._held)


def read_rows(table: jax.Array, slots: jax.Array) -> jax.Array:
    """Return the rows ``[n, words]`` of slots int32 ``[n]``; those of negative slots are arbitrary."""
    return jnp.take(table, slots, axis=0, mode="clip")


def write_rows(table: jax.Array, slots: jax.Array, rows: jax.Array) -> jax.Array:
    """Return the table with rows ``[n, words]`` under slots int32 ``[n]``, which are all different.

    Slots from the capacity upward are ignored.
    """
    return table.at[slots].set(rows, mode="drop", unique_indices=True)


def device_bytes(index: ItemIndex, capacity: int = 0) -> int:
    """Return the bytes that ``DeviceRows(index, capacity=capacity)`` would take."""
    packing = RowPacking(_columns_of(index), jax.devices()[0].platform)
    return _first_capacity(index, capacity) * packing.words * _WORD_BYTES


def _grown(table: jax.Array, *, capacity: int) -> jax.Array:
    return jnp.concatenate([table, jnp.zeros((capacity - table.shape[0], *table.shape[1:]), table.dtype)])


def _first_capacity(index: ItemIndex, capacity: int) -> int:
    """Return the capacity of a new table, which also has room for the default row."""
    return _power_of_two(max(capacity, len(index) + 1, BATCHES[0]))


def _power_of_two(rows: int) -> int:
    return 1 << max(rows - 1, 0).bit_length()


def _columns_of(index: ItemIndex) -> ColumnSpecs:
    """Return the columns that have any bytes."""
    return {name: spec for name, spec in index.store.columns.items() if 0 not in spec[1]}


def _batches(n: int) -> Iterator[slice]:
    for start in range(0, n, BATCHES[-1]):
        yield slice(start, min(start + BATCHES[-1], n))
