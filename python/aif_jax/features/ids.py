"""64-bit keys of ids: their two 32-bit halves inside JAX, and sets of them."""

import numpy as np

from aif_jax.errors import RequestError
from aif_jax.lookup import find

_MAX_BITS = 20
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def split_ids(keys: np.ndarray) -> np.ndarray:
    """Split 64-bit keys into the two halves that JAX can hold: the one way by which ids enter it.

    Args:
        keys: uint64 ``[...]``.

    Returns:
        uint32 ``[..., 2]``, the low half first, whatever the machine's byte order; a view where possible.

    Raises:
        RequestError: the keys are not uint64: run them through `item_keys`.

    >>> split_ids(np.array([7, 2**32 + 7], np.uint64)).tolist()
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
