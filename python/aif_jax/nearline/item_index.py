"""The item index: rows of the items that can be ranked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.inputs import read_flag, read_flags, read_ids
from aif_jax.nearline.store import ColumnSpecs
from aif_jax.nearline.table import RowTable
from aif_jax.nearline.updates import Upsert
from aif_jax.types import ItemRecords

RANKABLE_COLUMN = "rankable"
"""Column of 1 for items that may be ranked and 0 for the others, uint8 ``[n, 1]``."""


class ItemIndex(RowTable, guards=("set_rankable", "default_row", "apply")):
    """Item rows of a catalogue under one bundle version, which the real-time stage reads for its candidates.

    An item in the index may be not *rankable* (out of stock, say): it keeps its row and is not a candidate.
    `build` and `upsert` take ``rankable``, bool ``[n]``, all true by default.
    """

    kind = "item_index"
    stage = "item"
    keeps_deleted = False

    def set_rankable(self, ids: Any, rankable: bool) -> int:
        """Change whether items may be candidates, without computing their rows again.

        Returns:
            The number of them that are in the index; the others are ignored.
        """
        keys, rankable = np.unique(read_ids(ids, ordered=False).keys), read_flag(rankable, "rankable")
        with self._writing:
            columns, found = self.store.gather(keys)
            rows = {name: np.ascontiguousarray(column[found]) for name, column in columns.items()}
            rows[RANKABLE_COLUMN][:] = rankable
            self._write(np.ascontiguousarray(keys[found]), rows)
            self._sync()
        return int(found.sum())

    def default_row(self) -> dict[str, np.ndarray]:
        """Compute the row ``[1, ...]`` of an unknown item; it is rankable."""
        return {**super().default_row(), RANKABLE_COLUMN: np.ones((1, 1), np.uint8)}

    @classmethod
    def _extra_columns(cls) -> ColumnSpecs:
        return {RANKABLE_COLUMN: (np.dtype(np.uint8), (1,))}

    @classmethod
    def extra_of(cls, records: ItemRecords) -> dict[str, np.ndarray]:
        """Return the rankable flags of items, uint8 ``[n, 1]``."""
        n = len(read_ids(records.ids).keys)
        return cls._extra_values(n, {RANKABLE_COLUMN: records.rankable})

    @classmethod
    def _extra_values(cls, n: int, extra: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if unknown := extra.keys() - {RANKABLE_COLUMN}:
            raise TypeError(f"unexpected arguments {sorted(unknown)}")
        flags = extra.get(RANKABLE_COLUMN)
        if flags is None:
            return {RANKABLE_COLUMN: np.ones((n, 1), np.uint8)}
        return {RANKABLE_COLUMN: read_flags(flags, n, RANKABLE_COLUMN)[:, None].astype(np.uint8)}

    def apply(self, update: Upsert) -> int:
        """Compute and store the rows of an update, rankable or not; return their number. See `upsert`."""
        return self.upsert(update.ids, update.columns, update.content, rankable=update.rankable)
