"""Tables of rows in device memory: how they are laid out, read, written and made larger inside programs.

A table is one array for each column. On one device it is ``[capacity, ...]``. Over a mesh of D devices it is
``[D, capacity / D, ...]``, its first axis sharded: slot ``s`` is row ``s // D`` of device ``s % D``, so that
devices fill evenly and a larger table leaves every row on its device. Slots mean the same in both layouts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from aif_jax.errors import ConfigError
from aif_jax.nearline.store import ColumnSpecs

Device: TypeAlias = Any
"""A ``jax.Device``, which type checkers do not take for a type."""

Tables: TypeAlias = Mapping[str, jax.Array]

_AXIS = "rows"


class TableLayout(Protocol):
    """Where tables lie, and what programs do with them. The methods are pure and traceable but for `place`.

    Attributes:
        devices: the devices, in order.
        whole: sharding of operands that every device has whole.
    """

    devices: tuple[Device, ...]
    whole: Sharding

    def capacity_for(self, rows: int) -> int:
        """Return the smallest capacity of at least ``rows`` rows; capacities double."""
        ...

    def specs(self, columns: ColumnSpecs, capacity: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shape, dtype and sharding of the tables of some columns."""
        ...

    def read(self, tables: Tables, slots: jax.Array) -> dict[str, jax.Array]:
        """Return rows ``[n, ...]`` of slots int32 ``[n]``; those of negative slots are anything."""
        ...

    def write(self, tables: Tables, slots: jax.Array, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return tables with rows ``[n, ...]`` under slots int32 ``[n]``, which are all different.

        Slots from the capacity upward are passed over.
        """
        ...

    def grown(self, tables: Tables, capacity: int) -> dict[str, jax.Array]:
        """Return tables of a larger capacity; the rows keep their slots, new ones are zeros."""
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
    """All rows on one device."""

    def __init__(self, device: Device):
        self.devices: tuple[Device, ...] = (device,)
        self.whole: Sharding = SingleDeviceSharding(device)

    def capacity_for(self, rows: int) -> int:
        """See `TableLayout`."""
        return _power_of_two(rows)

    def specs(self, columns: ColumnSpecs, capacity: int) -> dict[str, jax.ShapeDtypeStruct]:
        """See `TableLayout`."""
        return {
            name: jax.ShapeDtypeStruct((capacity, *shape), dtype, sharding=self.whole)
            for name, (dtype, shape) in columns.items()
        }

    def read(self, tables: Tables, slots: jax.Array) -> dict[str, jax.Array]:
        """See `TableLayout`."""
        return _taken(tables, slots)

    def write(self, tables: Tables, slots: jax.Array, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """See `TableLayout`."""
        return _put(tables, slots, rows)

    def grown(self, tables: Tables, capacity: int) -> dict[str, jax.Array]:
        """See `TableLayout`."""
        return {name: _padded(table, capacity) for name, table in tables.items()}


class ShardedRows:
    """Rows dealt out to several devices.

    Each device reads the rows that it has, zeros for the others, and a sum over the devices makes them whole
    on all: every request moves its N rows once between devices, and each device then runs the whole stage.
    So this buys memory, not speed. Writes and growth move nothing between devices.
    """

    def __init__(self, devices: Sequence[Device]):
        self.devices: tuple[Device, ...] = tuple(devices)
        self._mesh = Mesh(np.array(self.devices), (_AXIS,))
        self.whole: Sharding = NamedSharding(self._mesh, PartitionSpec())
        self._split = NamedSharding(self._mesh, PartitionSpec(_AXIS))

    def capacity_for(self, rows: int) -> int:
        """See `TableLayout`."""
        return len(self.devices) * _power_of_two(-(-rows // len(self.devices)))

    def specs(self, columns: ColumnSpecs, capacity: int) -> dict[str, jax.ShapeDtypeStruct]:
        """See `TableLayout`."""
        count = len(self.devices)
        return {
            name: jax.ShapeDtypeStruct((count, capacity // count, *shape), dtype, sharding=self._split)
            for name, (dtype, shape) in columns.items()
        }

    def read(self, tables: Tables, slots: jax.Array) -> dict[str, jax.Array]:
        """See `TableLayout`."""

        def local(tables: Tables, slots: jax.Array) -> dict[str, jax.Array]:
            mine, row = self._own(slots)
            rows = _taken({name: table[0] for name, table in tables.items()}, row)
            kept = {
                name: jnp.where(mine.reshape(-1, *(1,) * (values.ndim - 1)), values, jnp.zeros_like(values))
                for name, values in rows.items()
            }
            return jax.lax.psum(kept, _AXIS)

        return self._on_each(local, (PartitionSpec(_AXIS), PartitionSpec()), PartitionSpec())(tables, slots)

    def write(self, tables: Tables, slots: jax.Array, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """See `TableLayout`."""

        def local(tables: Tables, slots: jax.Array, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            mine, row = self._own(slots)
            here = {name: table[0] for name, table in tables.items()}
            capacity = next(iter(here.values())).shape[0]
            beyond = capacity + jnp.arange(len(row), dtype=jnp.int32)
            written = _put(here, jnp.where(mine & (row < capacity), row, beyond), rows)
            return {name: table[None] for name, table in written.items()}

        specs = (PartitionSpec(_AXIS), PartitionSpec(), PartitionSpec())
        return self._on_each(local, specs, PartitionSpec(_AXIS))(tables, slots, rows)

    def grown(self, tables: Tables, capacity: int) -> dict[str, jax.Array]:
        """See `TableLayout`."""

        def local(tables: Tables) -> dict[str, jax.Array]:
            size = capacity // len(self.devices)
            return {name: _padded(table[0], size)[None] for name, table in tables.items()}

        return self._on_each(local, (PartitionSpec(_AXIS),), PartitionSpec(_AXIS))(tables)

    def _own(self, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return which slots are this device's, and their rows here."""
        count = np.int32(len(self.devices))
        return slots % count == jax.lax.axis_index(_AXIS), slots // count

    def _on_each(self, function: Any, given: Any, returned: Any) -> Any:
        return jax.shard_map(function, mesh=self._mesh, in_specs=given, out_specs=returned)


def _taken(tables: Tables, slots: jax.Array) -> dict[str, jax.Array]:
    return {name: jnp.take(table, slots, axis=0, mode="clip") for name, table in tables.items()}


def _put(tables: Tables, slots: jax.Array, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {
        name: table.at[slots].set(rows[name], mode="drop", unique_indices=True)
        for name, table in tables.items()
    }


def _padded(table: jax.Array, size: int) -> jax.Array:
    more = jnp.zeros((size - table.shape[0], *table.shape[1:]), table.dtype)
    return jnp.concatenate([table, more])


def _power_of_two(rows: int) -> int:
    return 1 << max(rows - 1, 0).bit_length()
