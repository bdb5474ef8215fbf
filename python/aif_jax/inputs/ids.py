"""Ids of users and items as any caller gives them."""

from typing import Any, NamedTuple

import numpy as np

from aif_jax.errors import AifError, RequestError
from aif_jax.inputs.columns import is_missing, read_flat
from aif_jax.shown import shown

PADDING = -1
"""Fills up candidates where retrieval found fewer, as Faiss does."""

_UINT64, _INT64 = np.dtype(np.uint64), np.dtype(np.int64)
_EXPECTED = "expected non-negative integers or strings"


class Ids(NamedTuple):
    """Ids by position.

    Attributes:
        given: integers or strings ``[N]`` as an array: that of the caller, if it is contiguous; integers of
            a list as uint64, strings of a list as objects.
        keys: uint64 ``[N]``, contiguous.
        strings: whether they are strings.
        padding: which of them are padding, bool ``[N]``, whose keys mean nothing; ``None`` if none is.
    """

    given: np.ndarray
    keys: np.ndarray
    strings: bool
    padding: np.ndarray | None = None


def read_ids(
    ids: Any,
    name: str = "ids",
    *,
    ordered: bool = True,
    padded: bool = False,
    error: type[AifError] = RequestError,
) -> Ids:
    """Read item ids.

    Args:
        ids: ``[N]``: non-negative integers (kept as they are) or strings (hashed with xxh3-64), in anything
            that `read_column` takes; not both kinds.
        name: names them in errors.
        ordered: whether their order counts; only otherwise a set is taken.
        padded: whether -1 is padding; otherwise it is an error.
        error: class of the errors.

    Raises:
        AifError: not one axis, a negative or fractional number, a missing id, or mixed kinds; the row is
            named.

    >>> read_ids(["tt0111161"]).keys
    array([17475005830659588084], dtype=uint64)
    """
    if type(ids) is np.ndarray and ids.dtype == _UINT64 and ids.ndim == 1:
        flags = ids.flags
        if flags.c_contiguous and flags.aligned:
            return Ids(ids, ids, False)
    if type(ids) is Ids:
        return ids
    column = read_flat(ids, name, error=error, ordered=ordered)
    if isinstance(column, np.ndarray):
        if isinstance(column, np.ma.MaskedArray):
            gone = np.flatnonzero(np.ma.getmaskarray(column))
            raise error(
                f"{name}: row {gone[0]} is missing, and so are {len(gone)} of {column.size} in all; leave "
                "these rows out."
            )
        kind = column.dtype.kind
        if kind in "iu":
            return _integers(column, name, padded, error)
        if kind not in "UTO":
            hint = ""
            if kind == "f":
                hint = " (A column of integers in which some are missing becomes one of floats.)"
            such = f" (row 0 is {shown(column[0])})" if len(column) else ""
            raise error(f"{name}: got dtype {column.dtype}{such}, {_EXPECTED}; convert them first.{hint}")
        values = column.tolist()
    else:
        values = column if type(column) is list else list(column)
    given = column if isinstance(column, np.ndarray) and column.dtype.kind != "O" else None
    return _objects(values, given, name, padded, error)


def item_keys(ids: Any) -> np.ndarray:
    """Turn raw ids into 64-bit keys.

    Args:
        ids: ``[N]``: non-negative integers (kept as they are) or strings (hashed with xxh3-64), as array,
            list, tuple, series or Arrow array; not both kinds.

    Returns:
        uint64 ``[N]``, contiguous. Such an array is returned as it is, without a copy.

    Raises:
        RequestError: not one axis, a negative or fractional number, a missing id, or mixed kinds.

    >>> item_keys([7, 8])
    array([7, 8], dtype=uint64)
    >>> item_keys(["tt0111161"])
    array([17475005830659588084], dtype=uint64)
    """
    return read_ids(ids).keys


def is_user_id(user: Any) -> bool:
    """Return whether a value can be the id of a user: an integer or a string."""
    return isinstance(user, (int, str, np.integer)) and not isinstance(user, bool)


def read_user_ids(
    users: Any, name: str = "users", *, ordered: bool = False, checked: bool = True
) -> list[Any]:
    """Read the ids of several users, integers or strings, by position.

    Args:
        users: ``[n]``, anything that `read_column` takes.
        name: names them in errors.
        ordered: whether their order counts; only otherwise a set is taken.
        checked: whether to check each; otherwise that is left to where its request begins.

    Raises:
        RequestError: they are no column, or one is neither an integer nor a string.
    """
    column = read_flat(users, name, ordered=ordered)
    ids = column.tolist() if isinstance(column, np.ndarray) else list(column)
    if checked:
        for row, user in enumerate(ids):
            if not is_user_id(user):
                raise RequestError(f"{name}: row {row} is {shown(user)}, expected an integer or a string.")
    return ids


def _integers(column: np.ndarray, name: str, padded: bool, error: type[AifError]) -> Ids:
    if column.dtype.kind == "u":
        return Ids(column, column.astype(_UINT64, copy=False), False)
    keys = column.view(_UINT64) if column.dtype == _INT64 else column.astype(_UINT64)
    if not len(column) or column.min() >= 0:
        return Ids(column, keys, False)
    padding = column == PADDING if padded else np.zeros(len(column), bool)
    if len(wrong := np.flatnonzero((column < 0) & ~padding)):
        raise error(_negative(name, int(wrong[0]), int(column[wrong[0]])))
    return Ids(column, keys, False, padding)


def _objects(
    values: list[Any], given: np.ndarray | None, name: str, padded: bool, error: type[AifError]
) -> Ids:
    """Read ids that are objects of Python. NumPy would turn mixed kinds into strings, all silently."""
    kinds = set(map(type, values))
    if kinds and all(issubclass(kind, str) for kind in kinds):
        # An enumeration's `str()` is its name, and a subclass is no string to the hash.
        strings = values if kinds == {str} else [str.__str__(value) for value in values]
        return Ids(_array_of(strings) if given is None else given, _hashed(strings, name, error), True)
    if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        integers = values if kinds <= {int} else list(map(int, values))
        try:
            keys = np.array(integers, np.uint64)
        except OverflowError:
            padding = np.array([padded and value == PADDING for value in integers])
            for row, value in enumerate(integers):
                if not 0 <= value < 2**64 and not padding[row]:
                    if -(2**63) <= value < 0:
                        raise error(_negative(name, row, value)) from None
                    raise error(
                        f"{name}: row {row} is {shown(value)}, expected integers in [0, 2^64), or strings."
                    ) from None
            keys = np.array([value % 2**64 for value in integers], np.uint64)
            return Ids(keys, keys, False, padding)
        return Ids(keys, keys, False)
    for row, value in enumerate(values):
        if is_missing(value):
            raise error(f"{name}: row {row} is missing ({shown(value)}), {_EXPECTED}; leave such rows out.")
    usual = (str, int, np.integer)
    odd = next((row for row, v in enumerate(values) if isinstance(v, bool) or not isinstance(v, usual)), None)
    if odd is None:
        examples = {type(value).__name__: shown(value) for value in reversed(values)}
        kinds_given = ", ".join(f"{kind} (such as {examples[kind][:60]})" for kind in sorted(examples))
        raise error(f"{name}: got {kinds_given}, expected all integers or all strings; convert them first.")
    raise error(
        f"{name}: row {odd} is {shown(values[odd])}, of type {type(values[odd]).__name__}, expected all "
        "integers or all strings; convert them first."
    )


def _negative(name: str, row: int, value: int) -> str:
    return (
        f"{name}: row {row} is {value}, {_EXPECTED}. Signed 64-bit hashes become ids by .view(np.uint64), "
        "everywhere; "
        "-1 is taken as padding among candidates only."
    )


def _array_of(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _hashed(values: list[str], name: str, error: type[AifError]) -> np.ndarray:
    from aif_jax import _native

    try:
        return np.asarray(_native.hash_strings(values), np.uint64)
    except RequestError as raised:
        raise error(f"{name}: {raised}") from None
