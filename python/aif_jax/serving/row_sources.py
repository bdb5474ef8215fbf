"""How item rows come to a compiled stage: read inside it, or gathered on the host and passed in.

A native program reads rows from the embedding cache itself, by id; a portable one is given them. Either way a
call says of each candidate whether it has a row and whether it may be ranked.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from aif_jax.bundle.programs import Call
from aif_jax.features import pad_to
from aif_jax.kernels import FOUND, RANKABLE, handle_operand
from aif_jax.nearline import ItemIndex
from aif_jax.nearline.item_index import RANKABLE as RANKABLE_COLUMN
from aif_jax.nearline.store import RowStore
from aif_jax.serving.staging import Staging


class StageRun(NamedTuple):
    """What one call of the stage gave.

    Attributes:
        results: the stage's results by path, all of them ready.
        status: of each candidate, uint8 ``[n]``: the bits `FOUND` and `RANKABLE`.
        gather_s: seconds spent on collecting rows before the call.
    """

    results: dict[str, np.ndarray]
    status: np.ndarray
    gather_s: float = 0.0


class RowSource(Protocol):
    """Calls a stage for candidates whose rows are somewhere."""

    def run(self, call: Call, shared: Mapping[str, Any], keys: np.ndarray, size: int) -> StageRun:
        """Run the stage on candidates.

        Args:
            call: the stage compiled for ``size`` candidates.
            shared: its other operands, by path.
            keys: uint64 ``[n]``, at most ``size``.
            size: candidates that the call takes.
        """
        ...


class CachedRows:
    """For native programs: ids go into the program, rows are read where they lie.

    Args:
        index: the item rows.
        default: the row ``[1, ...]`` that stands in for missing ones; ``None``: nothing does.
    """

    def __init__(self, index: ItemIndex, default: Mapping[str, np.ndarray] | None):
        self._index = index
        self._default: RowStore | None = None
        self._handles = {"index": handle_operand(index.store.cache), "missing": np.zeros(2, np.uint32)}
        if default is not None:
            self._default = RowStore(index.store.columns)
            self._default.upsert(np.zeros(1, np.uint64), default)
            self._handles["missing"] = handle_operand(self._default.cache)

    def run(self, call: Call, shared: Mapping[str, Any], keys: np.ndarray, size: int) -> StageRun:
        """See `RowSource.run`."""
        n = len(keys)
        operands = {
            **shared,
            **self._handles,
            "ids": pad_to(keys.view(np.uint32).reshape(n, 2), size),
            "count": np.asarray(n, np.int32),
        }
        results = {path: np.asarray(array) for path, array in call(operands).items()}
        return StageRun(results, results["status"][:n])


class GatheredRows:
    """For portable programs: rows are collected into leased buffers, and these are the program's operands.

    Args:
        index: the item rows.
        default: as of `CachedRows`.
    """

    def __init__(self, index: ItemIndex, default: Mapping[str, np.ndarray] | None):
        self._index = index
        self._default = default
        self._staging = Staging(index.store.columns)

    def run(self, call: Call, shared: Mapping[str, Any], keys: np.ndarray, size: int) -> StageRun:
        """See `RowSource.run`."""
        began = time.perf_counter()
        n = len(keys)
        lease = self._staging.lend(size)
        columns = lease.columns
        _, found = self._index.gather(keys, {name: array[:n] for name, array in columns.items()})
        status = np.where(found, np.uint8(FOUND), np.uint8(0))
        there = found
        if self._default is not None and not found.all():
            absent = np.flatnonzero(~found)
            for name, array in columns.items():
                array[absent] = self._default[name]
            there = np.ones(n, bool)
        status[there & (columns[RANKABLE_COLUMN][:n, 0] != 0)] |= np.uint8(RANKABLE)
        valid = np.zeros(size, bool)
        valid[:n] = (status & RANKABLE) != 0
        operands = {
            **shared,
            **{f"rows/{name}": column for name, column in columns.items()},
            "valid": valid,
        }
        gather_s = time.perf_counter() - began
        results = jax.block_until_ready(call(operands))
        # Not before the results are ready: until then the program reads the buffers.
        self._staging.give_back(lease)
        return StageRun({path: np.asarray(array) for path, array in results.items()}, status, gather_s)
