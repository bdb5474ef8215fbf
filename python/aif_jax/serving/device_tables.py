"""The table of rows in device memory: how it is laid out, read, written and made larger inside programs.

On one device it is int32 ``[capacity, words]`` (see `device_packing`). Over a mesh of D devices it is
``[D, capacity / D, words]``, its first axis sharded: slot ``s`` is row ``s // D`` of device ``s % D``, so
that devices fill evenly and a larger table leaves every row on its device. Slots mean the same in both.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from aif_jax.errors import ConfigError

Device: TypeAlias = Any
"""A ``jax.Device``, which type checkers do not take for a type."""

_AXIS = "rows"


class TableLayout(Protocol):
    """Where the table lies, and what programs do with it. All but `capacity_for` and `spec` are traceable.

    Attributes:
        devices: the devices, in order.
        whole: sharding of operands that every device has whole.
    """

    devices: tuple[Device, ...]
    whole: Sharding

    def capacity_for(self, rows: int) -> int:
        """Return the smallest capacity of at least ``rows`` rows; capacities double."""
        ...

    def spec(self, words: int, capacity: int) -> jax.ShapeDtypeStruct:
        """Return shape, dtype and sharding of a table."""
        ...

    def read(self, table: jax.Array, slots: jax.Array) -> jax.Array:
        """Return rows ``[n, words]`` of slots int32 ``[n]``; those of negative slots are anything."""
        ...

    def write(self, table: jax.Array, slots: jax.Array, rows: jax.Array) -> jax.Array:
        """Return the table with rows ``[n, words]`` under slots int32 ``[n]``, which are all different.

        Slots from the capacity upward are passed over.
        """
        ...

    def grown(self, table: jax.Array, capacity: int) -> jax.Array:
        """Return a table of a larger capacity; the rows keep their slots, new ones are zeros."""
        ...


def layout_of(devices: Device | Sequence[Device] | None) -> TableLayout:
    """Return the layout for one device (``None``: JAX's first), or for several that share the rows.

    Raises:
        ConfigError: no devices, one twice, or not devices of JAX.
    """
    given = tuple(devices) if isinstance(devices, Sequence) else (devices or jax.devices()[0],)
    if not given or len(set(given)) != len(given) or not all(isinstance(d, jax.Device) for d in given):
        raise ConfigError(
            f"devices: got {devices!r}, expected one device of jax.devices(), or several different ones."
        )
    return OneDevice(given[0]) if len(given) == 1 else ShardedRows(given)


class OneDevice:
    """All rows on one device; the methods are those of `TableLayout`."""

    def __init__(self, device: Device):
        self.devices: tuple[Device, ...] = (device,)
        self.whole: Sharding = SingleDeviceSharding(device)

    def capacity_for(self, rows: int) -> int:
        """See `TableLayout`."""
        return _power_of_two(rows)

    def spec(self, words: int, capacity: int) -> jax.ShapeDtypeStruct:
        """See `TableLayout`."""
        return jax.ShapeDtypeStruct((capacity, words), np.int32, sharding=self.whole)

    def read(self, table: jax.Array, slots: jax.Array) -> jax.Array:
        """See `TableLayout`."""
        return _taken(table, slots)

    def write(self, table: jax.Array, slots: jax.Array, rows: jax.Array) -> jax.Array:
        """See `TableLayout`."""
        return _put(table, slots, rows)

    def grown(self, table: jax.Array, capacity: int) -> jax.Array:
        """See `TableLayout`."""
        return _padded(table, capacity)


class ShardedRows:
    """Rows dealt out to several devices; the methods are those of `TableLayout`.

    Each device reads the rows that it has, zeros for the others, and a sum over the devices makes them whole
    on all: every request moves its N rows once between devices, and each device then runs the whole stage.
    So this buys memory, not speed. Writes and growth move nothing between devices.
    """

    def __init__(self, devices: Sequence[Device]):
        self.devices: tuple[Device, ...] = tuple(devices)
        self._mesh = Mesh(np.array(self.devices), (_AXIS,))
        self.whole: Sharding = NamedSharding(self._mesh, PartitionSpec())

    def capacity_for(self, rows: int) -> int:
        """See `TableLayout`."""
        return len(self.devices) * _power_of_two(-(-rows // len(self.devices)))

    def spec(self, words: int, capacity: int) -> jax.ShapeDtypeStruct:
        """See `TableLayout`."""
        count = len(self.devices)
        split = NamedSharding(self._mesh, PartitionSpec(_AXIS))
        return jax.ShapeDtypeStruct((count, capacity // count, words), np.int32, sharding=split)

    def read(self, table: jax.Array, slots: jax.Array) -> jax.Array:
        """See `TableLayout`."""

        def local(table: jax.Array, slots: jax.Array) -> jax.Array:
            mine, row = self._own(slots)
            rows = _taken(table[0], row)
            return jax.lax.psum(jnp.where(mine[:, None], rows, jnp.zeros_like(rows)), _AXIS)

        return self._on_each(local, (PartitionSpec(_AXIS), PartitionSpec()), PartitionSpec())(table, slots)

    def write(self, table: jax.Array, slots: jax.Array, rows: jax.Array) -> jax.Array:
        """See `TableLayout`."""

        def local(table: jax.Array, slots: jax.Array, rows: jax.Array) -> jax.Array:
            mine, row = self._own(slots)
            capacity = table.shape[1]
            beyond = capacity + jnp.arange(len(row), dtype=jnp.int32)
            return _put(table[0], jnp.where(mine & (row < capacity), row, beyond), rows)[None]

        given = (PartitionSpec(_AXIS), PartitionSpec(), PartitionSpec())
        return self._on_each(local, given, PartitionSpec(_AXIS))(table, slots, rows)

    def grown(self, table: jax.Array, capacity: int) -> jax.Array:
        """See `TableLayout`."""

        def local(table: jax.Array) -> jax.Array:
            return _padded(table[0], capacity // len(self.devices))[None]

        return self._on_each(local, (PartitionSpec(_AXIS),), PartitionSpec(_AXIS))(table)

    def _own(self, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return which slots are this device's, and their rows here."""
        count = np.int32(len(self.devices))
        return slots % count == jax.lax.axis_index(_AXIS), slots // count

    def _on_each(self, function: Any, given: Any, returned: Any) -> Any:
        return jax.shard_map(function, mesh=self._mesh, in_specs=given, out_specs=returned)


def _taken(table: jax.Array, slots: jax.Array) -> jax.Array:
    return jnp.take(table, slots, axis=0, mode="clip")


def _put(table: jax.Array, slots: jax.Array, rows: jax.Array) -> jax.Array:
    return table.at[slots].set(rows, mode="drop", unique_indices=True)


def _padded(table: jax.Array, size: int) -> jax.Array:
    return jnp.concatenate([table, jnp.zeros((size - table.shape[0], *table.shape[1:]), table.dtype)])


def _power_of_two(rows: int) -> int:
    return 1 << max(rows - 1, 0).bit_length()
