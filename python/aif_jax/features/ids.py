"""Ids of users and items: 64-bit keys on the host, two 32-bit halves inside JAX."""

from typing import Any

import numpy as np

from aif_jax.errors import RequestError
from aif_jax.lookup import find

_MAX_BITS = 20
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def item_keys(ids: Any) -> np.ndarray:
    """Turn raw ids into 64-bit keys.

    Args:
        ids: ``[N]``: non-negative integers (kept as they are) or strings (hashed with xxh3-64), as an array,
            list or tuple; not both kinds.

    Returns:
        uint64 ``[N]``. A uint64 array is returned as it is, without a copy.

    Raises:
        RequestError: not one axis, a negative or fractional number, a missing id, or mixed kinds.

    >>> item_keys([7, 8])
    array([7, 8], dtype=uint64)
    >>> item_keys(["tt0111161"])
    array([17475005830659588084], dtype=uint64)
    """
    if not isinstance(ids, np.ndarray):
        if isinstance(ids, (str, bytes)):
            raise RequestError(f"ids: got one {type(ids).__name__}, expected N of them; wrap it in a list.")
        values = list(ids)
        if all(type(value) is str for value in values):
            return _hashed(values)
        # NumPy would turn mixed kinds into strings, and integers about 2^63 into floats: both silently.
        ids = np.empty(len(values), object)
        ids[:] = values
    if ids.ndim != 1:
        raise RequestError(f"ids: got shape {ids.shape}, expected [N].")
    kind = ids.dtype.kind
    if kind == "u":
        return ids.astype(np.uint64, copy=False)
    if kind == "i":
        if len(ids) and ids.min() < 0:
            raise RequestError(
                f"ids: got the negative id {ids.min()}, expected non-negative integers or strings."
            )
        return ids.astype(np.uint64)
    if kind in "UT":
        return _hashed(ids.tolist())
    if kind == "O":
        values = ids.tolist()
        if all(isinstance(value, str) for value in values):
            return _hashed([str(value) for value in values])
        if all(isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values):
            bad = [value for value in values if not 0 <= value < 2**64]
            if bad:
                raise RequestError(f"ids: got {bad[0]}, expected integers in [0, 2^64), or strings.")
            return np.array(values, np.uint64)
        examples = {type(value).__name__: repr(value)[:40] for value in reversed(values)}
        given = ", ".join(f"{kind} (such as {examples[kind]})" for kind in sorted(examples))
        raise RequestError(f"ids: got {given}, expected all integers or all strings; convert them first.")
    raise RequestError(
        f"ids: got dtype {ids.dtype}, expected all integers or all strings; convert them first."
    )


def split_ids(keys: np.ndarray) -> np.ndarray:
    """Split 64-bit keys into the two halves that JAX can hold: the one way by which ids enter it.

    Args:
        keys: uint64 ``[...]``.

    Returns:
        uint32 ``[..., 2]``, the low half first, whatever the machine's byte order; a view where possible.

    Raises:
        RequestError: the keys are not uint64: run them through `item_keys`.

    >>> split_ids(item_keys([7, 2**32 + 7])).tolist()
    [[7, 0], [7, 1]]
    """
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64:
        given = keys.dtype if isinstance(keys, np.ndarray) else type(keys).__name__
        raise RequestError(f"keys: got {given}, expected a uint64 array; item_keys makes one.")
    little = np.ascontiguousarray(keys, dtype="<u8")
    halves = little.reshape(-1).view("<u4").reshape(*keys.shape, 2)
    return halves.astype(np.uint32, copy=False)


class KeySet:
    """A set of 64-bit keys with a vectorised membership test.

    A table of marks, addressed by some bits of a hash, rules most keys out; only the others are searched for
    among the sorted keys.

    Args:
        keys: uint64 ``[m]``.
    """

    __slots__ = ("_keys", "_marks", "_shift")

    def __init__(self, keys: np.ndarray):
        self._keys = np.unique(keys)
        bits = min(_MAX_BITS, max(8, (16 * len(self._keys)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._marks = np.zeros(1 << bits, bool)
        self._marks[self._places(self._keys)] = True

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Return which of the keys uint64 ``[n]`` are in the set, bool ``[n]``."""
        found = self._marks[self._places(keys)]
        likely = np.flatnonzero(found)
        if len(likely):
            found[likely] = find(self._keys, keys[likely])[1]
        return found

    def _places(self, keys: np.ndarray) -> np.ndarray:
        # The product wraps; its high bits depend on every bit of the key.
        return ((keys * _SPREAD) >> self._shift).astype(np.intp)


def _hashed(values: list[str]) -> np.ndarray:
    if not values:
        return np.zeros(0, np.uint64)
    from aif_jax import _native

    return np.asarray(_native.hash_strings(values), np.uint64)
