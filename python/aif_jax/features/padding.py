"""Shape buckets: compiled programs take a few sizes only, and smaller arrays are padded to the next one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.errors import RequestError


def bucket_for(n: int, buckets: Sequence[int]) -> int:
    """Return the smallest bucket that holds n rows.

    Args:
        n: rows to hold.
        buckets: the sizes there are, in any order.

    Raises:
        RequestError: n is negative, or larger than every bucket.

    >>> bucket_for(300, (256, 512, 1024))
    512
    """
    fitting = [bucket for bucket in buckets if bucket >= n]
    if n < 0 or not fitting:
        raise RequestError(
            f"got {n} rows, but the buckets are {sorted(buckets)}; send fewer, or configure a larger bucket."
        )
    return min(fitting)


def pad_to(array: np.ndarray, n: int, axis: int = 0, fill: float | int | bool = 0) -> np.ndarray:
    """Pad one axis of an array at its end.

    Args:
        array: any array.
        n: the axis's new length.
        axis: which axis.
        fill: value of the padding, cast to the array's dtype.

    Returns:
        A new array, or ``array`` itself if it is long enough already.

    Raises:
        RequestError: the axis is longer than n.

    >>> pad_to(np.array([7, 8]), 4, fill=-1).tolist()
    [7, 8, -1, -1]
    """
    size = array.shape[axis]
    if size == n:
        return array
    if size > n:
        raise RequestError(
            f"axis {axis} of shape {array.shape} is longer than {n}; padding cannot shorten it."
        )
    shape = list(array.shape)
    shape[axis] = n
    padded = np.full(shape, fill, array.dtype)
    index = [slice(None)] * array.ndim
    index[axis] = slice(0, size)
    padded[tuple(index)] = array
    return padded


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays one after the other; a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def joined_rows(users: Sequence[Mapping[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Lay out features, ``[1, ...]`` of each user, as ``[size, ...]``."""
    if size == 1:
        return dict(users[0])
    # Places without a user repeat the first one; nobody reads their states.
    filled = [*users, *[users[0]] * (size - len(users))]
    return {name: np.concatenate([features[name] for features in filled]) for name in users[0]}


def parted(leaves: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """Return what a program gave for each user, ``[1, ...]`` each: the inverse of `joined_rows`."""
    if size == 1:
        return [dict(leaves)]
    # To slice on a device would be another program for each leaf, and a state is kept in host memory anyway.
    on_host = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    return [{name: leaf[n : n + 1] for name, leaf in on_host.items()} for n in range(size)]


def laid_out(
    name: str,
    columns: Mapping[str, np.ndarray],
    types: np.ndarray,
    spans: Sequence[tuple[int, int]],
    size: int,
    length: int,
) -> dict[str, np.ndarray]:
    """Lay out behaviours ``[n, ...]``, of which each user has a span, as ``[size, length, ...]``.

    Those without a row have type -1, as padding does.
    """
    operands = {f"{name}/{column}": _placed(rows, spans, size, length) for column, rows in columns.items()}
    operands[f"{name}_type"] = _placed(types, spans, size, length, fill=-1)
    return operands


def _placed(
    rows: np.ndarray, spans: Sequence[tuple[int, int]], size: int, length: int, fill: int = 0
) -> np.ndarray:
    if size == 1 and spans and spans[0][1] - spans[0][0] >= length:
        return rows[None, spans[0][0] : spans[0][0] + length]
    placed = np.full((size, length, *rows.shape[1:]), fill, rows.dtype)
    for place, (start, end) in zip(placed, spans, strict=False):
        count = min(end - start, length)
        place[:count] = rows[start : start + count]
    return placed
