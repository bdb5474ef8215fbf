"""Look-up of keys in a sorted array."""

import numpy as np


def find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find keys in a sorted array.

    Args:
        sorted_keys: ``[n]``, ascending, each once.
        keys: ``[...]``.

    Returns:
        Positions in ``sorted_keys``, intp ``[...]``, and whether each key stands there, bool ``[...]``.
        The position of a key that is absent is that of another one; 0 if there are none at all.

    >>> position, found = find(np.array([10, 20, 30]), np.array([30, 25, 99]))
    >>> position.tolist(), found.tolist()
    ([2, 2, 2], [True, False, False])
    """
    if not len(sorted_keys):
        return np.zeros(np.shape(keys), np.intp), np.zeros(np.shape(keys), bool)
    position = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return position, np.asarray(sorted_keys[position] == keys)
