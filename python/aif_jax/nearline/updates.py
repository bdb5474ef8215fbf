"""Updates of items, as a stream delivers them."""

import dataclasses
from typing import Any, TypeAlias

from aif_jax.types import ItemRecords


@dataclasses.dataclass(frozen=True, slots=True)
class Upsert(ItemRecords):
    """Items that are new or have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Deleted items: not candidates any more. They still count in the histories of users."""

    ids: Any


Update: TypeAlias = Upsert | Delete
