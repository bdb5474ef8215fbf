"""The training, validation and test parts of a data set, and the rules that divide rows among them."""

import numpy as np

from aif_jax.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS: dict[str, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
"""The parts by name, in order of time."""


def split_number(split: str | int) -> int:
    """Return the number of a part given by name or number.

    Raises:
        DataError: there is no such part.
    """
    if split in SPLITS:
        return SPLITS[str(split)]
    if isinstance(split, int) and split in SPLITS.values():
        return split
    raise DataError(f"split: got {split!r}, expected {', '.join(map(repr, SPLITS))}.")


def split_by_position(
    offsets: np.ndarray, *, train_tenths: int = 8, validation_tenths: int = 1
) -> np.ndarray:
    """Cut every user's rows by position: the first tenths train, the next validate, the rest test.

    A bound that falls between two rows is rounded to the nearest, halves down, in whole numbers, so that the
    sizes of the parts are the same on every machine.

    Args:
        offsets: int64 ``[n_users + 1]``; user ``u`` has the rows ``offsets[u]:offsets[u + 1]``, oldest first.
        train_tenths: tenths of a user's rows that train.
        validation_tenths: tenths that validate.

    Returns:
        int8 ``[rows]`` of `TRAIN`, `VALIDATION`, `TEST`.
    """
    counts = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    total = np.repeat(counts, counts)
    train_end = (train_tenths * total + 4) // 10
    validation_end = ((train_tenths + validation_tenths) * total + 4) // 10
    return ((position >= train_end).astype(np.int8) + (position >= validation_end)).astype(np.int8)


def split_by_last_time(last: np.ndarray, *, train_tenths: int = 8, validation_tenths: int = 1) -> np.ndarray:
    """Cut the users by the time of their last row: the first tenths train, the next validate, the rest test.

    Args:
        last: int ``[n_users]``; users with equal times keep their order.
        train_tenths: tenths of the users that train.
        validation_tenths: tenths that validate.

    Returns:
        int8 ``[n_users]`` of `TRAIN`, `VALIDATION`, `TEST`.
    """
    split = np.empty(len(last), np.int8)
    split[np.argsort(last, kind="stable")] = split_by_position(
        np.array([0, len(last)]), train_tenths=train_tenths, validation_tenths=validation_tenths
    )
    return split


def ends_before(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return, for every event, where the history strictly before its time ends.

    Events of one user at one time are not in each other's history, whichever comes first in the file.

    Args:
        user: int ``[E]``, ascending.
        time: int ``[E]``, ascending within a user.

    Returns:
        int64 ``[E]``: the index of the first event of the same user and time.
    """
    if not len(user):
        return np.zeros(0, np.int64)
    first = np.r_[True, (user[1:] != user[:-1]) | (time[1:] != time[:-1])]
    return np.maximum.accumulate(np.where(first, np.arange(len(user)), 0)).astype(np.int64)
