"""Protocols, records and aliases that several sub-packages share."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = jax.Array | np.ndarray
"""An array on the device or the host."""

Columns: TypeAlias = Mapping[str, Array]
"""Named arrays that share their leading axes: encoded features, row columns, a user state."""

UserId: TypeAlias = int | str
ItemId: TypeAlias = int | str
Ids: TypeAlias = npt.NDArray[np.uint64]
"""64-bit keys. They enter JAX only as ``uint32[N, 2]``, because JAX would cut them to 32 bits silently."""


def named_dtype(name: str) -> np.dtype:
    """Return the dtype of a name as ``dtype.name`` gives it; ``bfloat16`` too, which NumPy itself lacks.

    Raises:
        TypeError: it is no name of a number's dtype. NumPy would evaluate a text such as ``",f4"``.
    """
    if name == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    if not isinstance(name, str) or not name.isalnum() or (found := np.dtype(name)).kind not in "biuf":
        raise TypeError(f"dtype: got {name!r:.200}, expected the name of a dtype of numbers")
    return found


@dataclass(frozen=True, slots=True)
class UserRecord:
    """Raw features and history of one user, from a user source; the engine encodes them by the schema.

    Attributes:
        features: raw user features by name; an absent name counts as missing.
        items: item ids of the user's behaviours, most recent first, ``[L]``; integers or strings, as array,
            list, series (read by position) or Arrow array.
        types: behaviour type of each, by name or by its index in the schema, ``[L]``; the same.
        revision: changes whenever features or history change; part of the key of a cached user state.
            ``None``: the engine takes a digest of what the model reads of the record, at each request.
        times: when each behaviour was, in seconds since 1970, ``[L]``; missing where unknown, and empty if
            all are. Models with ``ModelConfig.encoder_gaps`` read the time between neighbours.

    >>> users = {17: UserRecord({"town": "York", "age": 31}, items=[9, 7], types=["buy", "click"])}
    >>> users[17].features["town"]
    'York'
    >>> users.get(18) is None  # a user source returns None for an unknown user
    True
    """

    features: Mapping[str, Any] = field(default_factory=dict)
    items: Any = ()
    types: Any = ()
    revision: Any = None
    times: Any = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Result of ``retrieve`` with pair features beside the ids.

    Attributes:
        ids: item ids, ``[N]``; integers or strings; -1 is padding.
        pair: raw pair features by name, each ``[N]``.

    >>> found = Candidates([7, 8, 9], pair={"bid": [0.5, 0.1, 0.3]})
    >>> found.ids
    [7, 8, 9]
    """

    ids: Any
    pair: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ItemRecords:
    """Raw features of items, from an item source; the engine encodes them by the schema.

    Attributes:
        ids: the items, ``[n]``; integers or strings.
        columns: raw item features by name, each with n rows, or a frame of them; an absent one counts as
            missing.
        content: raw content embeddings as the bundle's `ContentSpace` takes them, float ``[n, w]`` or a
            column of lists; ``None`` if these items have none.
        rankable: bool ``[n]``, whether each may be a candidate; ``None`` for all.

    >>> catalogue = ItemRecords(ids=[7, 8], columns={"genres": [["drama"], []], "price": [4.5, None]})
    >>> sorted(catalogue.columns)
    ['genres', 'price']
    """

    ids: Any
    columns: Mapping[str, Any]
    content: Any = None
    rankable: Any = None


@runtime_checkable
class Catalogue(Protocol):
    """Items that are asked for as records, such as those of a `Dataset`."""

    def item_records(self, content_width: int) -> ItemRecords:
        """Return the items, their content as a model of this width takes it."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One request, the argument of ``retrieve``.

    Attributes:
        user: id of the user to retrieve for.
        context: raw context features.
        k: number of results.
        filters: the request's `aif_jax.Filters`, or ``None``. The engine applies them to all that is
            retrieved; retrieval can read them to leave the items out itself, or to retrieve more.

    >>> def retrieve(request: Request) -> list[int]:
    ...     return [7, 8, 9] if request.context.get("page") == "home" else [7]
    >>> retrieve(Request(user=17, context={"page": "home"}))
    [7, 8, 9]
    """

    user: UserId
    context: Mapping[str, Any] = field(default_factory=dict)
    k: int = 0
    filters: Any = None


@runtime_checkable
class UserSource(Protocol):
    """Source of user features and histories: a dictionary, a feature store, a service."""

    def __call__(self, user: UserId, /) -> "UserRecord | None":
        """Return the user's record, or ``None`` if unknown. May block; is called from several threads."""
        ...


@runtime_checkable
class ItemSource(Protocol):
    """Source of items that the item index lacks: a catalogue service, a feature store."""

    def __call__(self, ids: np.ndarray, /) -> "ItemRecords | None":
        """Return the records of some of the items, or ``None`` if none is known.

        May block; is called from several threads, each time with ids that the index lacks: uint64 ``[m]``, or
        strings (dtype object). Items that the result leaves out count as unknown; it must not add others.
        """
        ...


class Retrieve(Protocol):
    """Retrieval: a plain callable or a coroutine function from a request to candidates."""

    def __call__(self, request: Request, /) -> "Candidates | Any | Awaitable[Candidates | Any]":
        """Return item ids ``[N]``, `Candidates`, or a table (see `Pending.rank`)."""
        ...
