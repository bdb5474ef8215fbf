"""Item rows in device memory, following an item index: what the real-time stage reads on an accelerator.

The host maps item keys to slots of one wide table on the device (see `device_packing`). Only slots travel
with a request. Updates are scattered into the table in batches of a few fixed sizes, each compiled ahead,
with the table donated, so that no second copy of it is made.

**One order of dispatch.** A donated update ends the life of the arrays that it was given: who still holds
them gets "Array has been deleted". What has to be kept in order is the *dispatch* of programs, and a lock
does that: whoever dispatches, for a request or an update, holds it from picking the table up to laying the
new one down. The device then runs programs in the order of dispatch, since each needs what the one before
it wrote, and waits for nobody's thread. A dispatcher thread would give the same order for two changes of
thread a request, a queue to bound, and a life to end at exit; it would not dispatch sooner, as dispatching
holds the GIL for the most part anyway. The lock is held for no computation and no transfer: those of a
request are started before it, and an update is given up to requests between its batches. (On a CPU, where
JAX may run a small program in the thread that dispatches it, it is.)

**No row under another's slot.** A request looks its slots up before it takes the lock. Until its program is
dispatched, one of its items may be deleted and the slot given to another item. A slot changes hands only
under the lock, and each time the count of reuses goes up before the new key can be found. So a request
reads the count, then looks up, and under the lock compares: if the count is the same, each of its slots
still holds the row of its key, or of the key that had it when it was deleted during the request, which is
the row as it was. If not, it looks up again, now under the lock, where nothing changes. What is dispatched
reads the table of its place in the order, whatever becomes of the slots later.

**Growth.** A full table is replaced by one of twice the capacity. Programs depend on the capacity, so
those for the new one are compiled first, by the thread that writes, while requests go on with the old
one; then the rows are copied on the device, for which it must hold both. Writers wait, requests do not;
both are counted in `DeviceRows.stats`. Give ``capacity`` to never see it. It never shrinks.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
import numpy as np

from aif_jax import _native
from aif_jax.bundle.programs import compiled_once
from aif_jax.errors import ItemIndexError
from aif_jax.features import bucket_for, pad_to
from aif_jax.nearline import ItemIndex
from aif_jax.nearline.store import ColumnSpecs
from aif_jax.serving.device_packing import RowPacking
from aif_jax.serving.device_tables import Device, layout_of

MISSING = -1
"""Slot of a key that has no row."""
DEFAULT_SLOT = 0
"""Slot of the row of an item of which nothing is known."""
BATCHES = (64, 1024, 16384)
"""Rows that one update takes; smaller ones are padded."""

T = TypeVar("T")


class DeviceRows:
    """The rows of an item index in device memory. Safe to use from any thread; close it when it is done with.

    Args:
        index: the rows to follow.
        devices: one device, or several that share the rows (see `device_tables`); ``None``: JAX's first.
        capacity: rows to have room for from the start, rounded up; at least those of the index.
        immediate: whether a write to the index returns only when the update has been dispatched, so that it
            is visible to every request that starts afterwards, as on the host. Otherwise call `sync`.

    Raises:
        ConfigError: ``devices`` are not devices.

    Attributes:
        index: the index that it follows.
        layout: where the table lies.
        columns: dtype and shape within one row of the columns that are kept.
        packing: how a row is laid out in the table.
    """

    def __init__(
        self,
        index: ItemIndex,
        devices: Device | Sequence[Device] | None = None,
        *,
        capacity: int = 0,
        immediate: bool = True,
    ):
        self.index = index
        self.layout = layout_of(devices)
        self.columns = _columns_of(index)
        self.packing = RowPacking(self.columns, self.layout.devices[0].platform)
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
        self._capacity = self.layout.capacity_for(_least_capacity(index, capacity))
        self._compile(self._capacity)
        self._table: jax.Array | None = self._compiled_zeros(self._capacity)()
        # First listen, then copy: what is written meanwhile is noted, and copied again.
        self._unsubscribe = index.subscribe(self._note)
        try:
            default = index.default_row()
            with self._writing:
                slots = np.array([DEFAULT_SLOT], np.int32)
                self._update(slots, {name: default[name] for name in self.columns})
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
        """Forget keys, uint64 ``[n]``, so that no request that starts afterwards finds them.

        Their slots are free for others; nothing happens on the device.

        Returns:
            How many of them had a row.
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
            default: whether a missing key reads the default row.
            refuse: called with which keys have a row, bool ``[n]``, if some have none; may raise.

        Returns:
            What ``call`` returned, and which keys have a row of their own, bool ``[n]``.

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
            Columns ``[n, ...]``, zeros where there is no row, and which rows were found, bool ``[n]``.
        """
        parts: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        with self._writing:  # no growth between compiling and dispatching
            for part in _batches(len(keys)) if len(keys) else (slice(0, 0),):
                size = bucket_for(part.stop - part.start, BATCHES)
                program = self._compiled_read(self._capacity, size)
                call = functools.partial(_ignoring_capacity, program)
                read, found = self.dispatch(keys[part], size, call)
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

        ``rows``, ``capacity``, ``free_slots``; ``device_bytes`` of the table, over all devices; ``pending``
        keys that changed in the index and were not copied yet; ``written`` and ``removed`` rows since the
        start and ``updates`` dispatched for them; ``reuses`` of slots (batches) and ``looked_up_again``, the
        requests that met one; ``growths`` and the seconds ``grown_in_s`` that writers waited for them.
        """
        with self._noting:
            pending = sum(map(len, self._pending))
        with self._dispatching:
            return {
                "rows": len(self), "capacity": self._capacity, "pending": pending,
                "free_slots": self._capacity - self._used + len(self._free), "reuses": self._reuses,
                "device_bytes": self._capacity * self.packing.words * 4,
                "grown_in_s": self._grown_in_s, **self._counts,
            }  # fmt: skip

    def close(self) -> None:
        """Stop following the index and give the device's memory back."""
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
        if self._closed:  # while the index was about to tell
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
        return jax.device_put(pad_to(slots, size, fill=MISSING), self.layout.whole)

    def _fresh(self, n: int) -> np.ndarray:
        """Return n slots that no key has, freed ones first; they are taken by `_update`."""
        old = self._free[: -n - 1 : -1]
        return np.array([*old, *range(self._used, self._used + n - len(old))], np.int32)

    def _update(
        self,
        slots: np.ndarray,
        rows: Mapping[str, np.ndarray],
        new: np.ndarray | None = None,
        fresh: np.ndarray | None = None,
    ) -> None:
        """Dispatch one update, and have keys found from then on that are new, under slots from `_fresh`."""
        n = len(slots)
        size = bucket_for(n, BATCHES)
        program = self._compiled_write(self._capacity, size)
        # Padding goes beyond the table, each row to a place of its own.
        beyond = self._capacity + np.arange(size - n, dtype=np.int32)
        operands = jax.device_put(
            (np.concatenate([slots, beyond]), self.packing.pack(rows, size)),
            self.layout.whole,
        )
        with self._dispatching:
            reused = 0 if fresh is None else min(len(fresh), len(self._free))
            self._reuses += reused > 0
            before = self._checked_table()
            try:
                self._table = program(before, *operands)
            except BaseException as error:
                if before.is_deleted():
                    self._broken = f"were lost in an update that failed ({type(error).__name__}: {error})"
                raise
            self._counts["updates"] += 1
            if new is not None and fresh is not None and len(new):
                self._slots.upsert(new, {"slot": fresh})
                del self._free[len(self._free) - reused :]
                self._used += len(new) - reused

    def _make_room(self, n: int) -> None:
        """Grow the table if n more rows do not fit."""
        needed = self._used + n - len(self._free)
        if needed <= self._capacity:
            return
        began = time.perf_counter()
        capacity = self.layout.capacity_for(needed)
        self._compile(capacity)
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
                f"the rows on {', '.join(map(str, self.layout.devices))} {self._broken}; "
                "make new DeviceRows from the item index, which has them all."
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
        devices = tuple((device.platform, device.id) for device in self.layout.devices)
        return (name, devices, self.packing.words, capacity, *rest)

    def spec(self, capacity: int) -> jax.ShapeDtypeStruct:
        """Return shape, dtype and sharding of the table at a capacity."""
        return self.layout.spec(self.packing.words, capacity)

    def slots_spec(self, size: int) -> jax.ShapeDtypeStruct:
        """Return shape, dtype and sharding of slots."""
        return jax.ShapeDtypeStruct((size,), np.int32, sharding=self.layout.whole)

    def _compile(self, capacity: int) -> None:
        for size in BATCHES:
            self._compiled_write(capacity, size)

    def _compiled_zeros(self, capacity: int) -> Any:
        spec = self.spec(capacity)

        def compile_it() -> Any:
            zeros = jax.jit(lambda: jax.numpy.zeros(spec.shape, spec.dtype), out_shardings=spec.sharding)
            return zeros.lower().compile()

        return compiled_once(self.program_key("device_zeros", capacity), compile_it)

    def _compiled_write(self, capacity: int, size: int) -> Any:
        spec = self.spec(capacity)

        def compile_it() -> Any:
            rows = jax.ShapeDtypeStruct((size, self.packing.words), np.int32, sharding=self.layout.whole)
            write = jax.jit(self.layout.write, donate_argnums=0, out_shardings=spec.sharding)
            return write.lower(spec, self.slots_spec(size), rows).compile()

        return compiled_once(self.program_key("device_write", capacity, size), compile_it)

    def _compiled_read(self, capacity: int, size: int) -> Any:
        def compile_it() -> Any:
            read = jax.jit(self.layout.read, out_shardings=self.layout.whole)
            return read.lower(self.spec(capacity), self.slots_spec(size)).compile()

        return compiled_once(self.program_key("device_read", capacity, size), compile_it)

    def _compiled_growth(self, capacity: int) -> Any:
        def compile_it() -> Any:
            sharding = self.spec(capacity).sharding
            grow = jax.jit(lambda table: self.layout.grown(table, capacity), out_shardings=sharding)
            return grow.lower(self.spec(self._capacity)).compile()

        return compiled_once(self.program_key("device_growth", capacity, self._capacity), compile_it)


def device_bytes(index: ItemIndex, capacity: int = 0) -> int:
    """Return the bytes that the rows of an index would take on JAX's first device, before they are there.

    Args:
        index: the rows.
        capacity: rows to have room for from the start; see `DeviceRows`.
    """
    layout = layout_of(None)
    words = RowPacking(_columns_of(index), layout.devices[0].platform).words
    return layout.capacity_for(_least_capacity(index, capacity)) * words * 4


def _least_capacity(index: ItemIndex, capacity: int) -> int:
    """Return how many rows a table must have room for: the default row is one of them."""
    return max(capacity, len(index) + 1, BATCHES[0])


def _columns_of(index: ItemIndex) -> ColumnSpecs:
    """Return the columns that have any bytes."""
    return {name: spec for name, spec in index.store.columns.items() if 0 not in spec[1]}


def _ignoring_capacity(program: Any, _capacity: int, *operands: Any) -> Any:
    return program(*operands)


def _batches(n: int) -> Iterator[slice]:
    for start in range(0, n, BATCHES[-1]):
        yield slice(start, min(start + BATCHES[-1], n))
