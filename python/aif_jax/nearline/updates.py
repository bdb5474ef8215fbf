"""Updates of items: the changes that a stream delivers."""

import dataclasses
from typing import Any, TypeAlias

from aif_jax.types import ItemRecords


@dataclasses.dataclass(frozen=True, slots=True)
class Upsert(ItemRecords):
    """Items that are new or have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Items that are gone: no candidates any more. They still count in the histories of users."""

    ids: Any


Update: TypeAlias = Upsert | Delete
