"""Sets of 64-bit keys of item ids; keys of users."""

import hashlib
from typing import NamedTuple

import numpy as np

from aif_jax.lookup import find
from aif_jax.types import UserId

_MAX_BITS = 20
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


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


class UserKeys(NamedTuple):
    """Hashes of 64 bits each: where something of a user lies; against collisions whose it is; what it is of.

    Attributes:
        user: uint64 ``[1]``.
        owner: uint32 ``[1, 2]``.
        source: uint32 ``[1, 2]``.
    """

    user: np.ndarray
    owner: np.ndarray
    source: np.ndarray


def user_keys(user: UserId, source: str) -> UserKeys:
    """Return the keys of what was made of a source for a user."""
    # 5 and NumPy's 5 are one user, and "5" is another.
    who = _digest(f"{'text' if isinstance(user, str) else 'number'}\0{user}")
    what = _digest(source)[:1]
    return UserKeys(who[:1], who[1:].view(np.uint32).reshape(1, 2), what.view(np.uint32).reshape(1, 2))


def _digest(text: str) -> np.ndarray:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)
