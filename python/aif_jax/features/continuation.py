"""Continuation of histories: which of them go on from what a program kept of the behaviours before.

What is kept of a behaviour, ``<name>_kept``, depends on ``<name>``, ``gap`` and type of it and of those
before it in the sequence (see `ServedModel.extend`). So it holds as long as these are the same, which a
digest of their bytes tells: ids would not tell that an item was updated, or has a row by now. A history that
lost its oldest behaviours is no continuation: what was kept of the others has seen them.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

NEWEST = 32
"""Places that are computed of a history that goes on: the most behaviours that may have come since."""

WAYS = ("extended", "first", "changed", "slid", "many")
"""Ways of computing a state, see `Continuation`."""


class Kept(NamedTuple):
    """The kept columns of one history.

    Attributes:
        columns: by name ``[1, L, ...]``, most recent behaviour first; may still be under way.
        length: number of its behaviours.
        digest: uint32 ``[4]``, of what they were computed of.
    """

    columns: Mapping[str, Any]
    length: int
    digest: np.ndarray


class Continuation(NamedTuple):
    """The way in which a history follows another one.

    Attributes:
        before: what was kept of the other one, if anything.
        length: number of its behaviours.
        new: behaviours that the other one lacks; ``None`` if everything is to be computed.
        why: ``extended``; or ``first`` (nothing was kept), ``changed``, ``slid`` (changed, with more
            behaviours than the model reads, so that the oldest drop out), or ``many`` (over `NEWEST` new).
        digest: as of `Kept`.
    """

    before: Kept | None
    length: int
    new: int | None
    why: str
    digest: np.ndarray


def continuation(columns: Sequence[np.ndarray], kept: Kept | None, *, truncated: bool) -> Continuation:
    """Compare a history with what was kept.

    Args:
        columns: what kept columns depend on, ``[n, ...]`` each, most recent behaviour first.
        kept: of the same user; ``None`` for nothing.
        truncated: whether the model reads a part of the user's history only.
    """
    n = len(columns[0])
    # Rows of bytes, oldest behaviour first, so that a history's digest begins as that of its beginning does.
    rows = [np.ascontiguousarray(column[::-1]).reshape(n, math.prod(column.shape[1:])) for column in columns]
    read = np.concatenate([row.view(np.uint8) for row in rows], axis=1)
    count = 0 if kept is None else kept.length
    hashed = hashlib.blake2b(read[:count].reshape(-1).data, digest_size=16)
    goes_on = kept is not None and count <= n and _words(hashed.digest()) == kept.digest.tolist()
    hashed.update(read[count:].reshape(-1).data)
    digest = np.array(_words(hashed.digest()), np.uint32)
    if goes_on and n - count <= NEWEST:
        return Continuation(kept, n, n - count, "extended", digest)
    why = "many" if goes_on else "first" if kept is None else "slid" if truncated else "changed"
    return Continuation(kept, n, None, why, digest)


def carried(
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    users: Sequence[Continuation | None],
    size: int,
    length: int,
) -> dict[str, np.ndarray]:
    """Return operands ``long/<name>`` ``[size, length, ...]``: what was kept, where it stands now."""
    operands = {}
    for name, (dtype, shape) in specs.items():
        rows = operands[f"long/{name}"] = np.zeros((size, length, *shape), dtype)
        for row, user in zip(rows, users, strict=False):
            if user is not None and user.before is not None and user.new is not None:
                old = user.length - user.new
                row[user.new : user.length] = np.asarray(user.before.columns[name])[0, :old]
    return operands


def _words(digest: bytes) -> list[int]:
    return np.frombuffer(digest, np.uint32).tolist()
