"""The training, validation and test parts of a data set, and the rules that divide rows among them."""

import dataclasses
from typing import Any

import numpy as np

from aif_jax.checks import typed
from aif_jax.data.moments import duration, moment
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


@dataclasses.dataclass(frozen=True)
class Held:
    """Rows and events that a rule of splitting divides, both by user, then by time.

    Attributes:
        user: int32 ``[I]``, user of each row.
        time: int64 ``[I]``, never falling within a user.
        event_user: int32 ``[E]``, likewise for the events.
        event_time: int64 ``[E]``.
        unit: of the times, see `aif_jax.data.moments`.
        column: the column that the rule names, ``[I]``, of numbers or words; or ``None``.
    """

    user: np.ndarray
    time: np.ndarray
    event_user: np.ndarray
    event_time: np.ndarray
    unit: str
    column: Any = None


@dataclasses.dataclass(frozen=True)
class Split:
    """A rule that divides rows among training, validation and test; made by the functions of this module.

    Attributes:
        kind: ``time``, ``user``, ``last`` or ``column``.
        validation: how much of it, in the terms of the rule.
        test: the same.
        column: the column that names the part of each row.
    """

    kind: str
    validation: Any = None
    test: Any = None
    column: str | None = None

    def __str__(self) -> str:
        if self.kind == "column":
            return f"by_column({self.column!r})"
        name = "last_n" if self.kind == "last" else f"by_{self.kind}"
        return f"{name}(validation={self.validation!r}, test={self.test!r})"

    def divide(self, held: Held) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of each row, int8 ``[I]``, and which events lie in training, bool ``[E]``."""
        if self.kind == "time":
            first, second = self._bounds(held)
            split = (held.time >= first).astype(np.int8) + (held.time >= second)
            return split.astype(np.int8), held.event_time < first
        if self.kind == "user":
            split = self._users(held)
            return split[held.user], split[held.event_user] == TRAIN
        split = self._last(held) if self.kind == "last" else _named(held.column, str(self.column))
        return split, _before_held_out(held, split)

    def _bounds(self, held: Held) -> tuple[int, int]:
        """Return the first time of validation and of test."""
        if not len(held.time):
            return 0, 0
        newest, given, ordered = int(held.time.max()) + 1, (self.validation, self.test), None
        if any(isinstance(value, (int, float)) for value in given):
            ordered = np.sort(held.time)
        bounds, end = [], newest
        share = 0.0
        for name, value in (("test", self.test), ("validation", self.validation)):
            if isinstance(value, (int, float)):
                assert ordered is not None
                share += value
                place = min(int(np.ceil(len(ordered) * (1 - share))), len(ordered) - 1)
                end = min(end, int(ordered[place])) if value else end
            elif (length := duration(value, held.unit, f"by_time({name}=)")) is not None:
                end -= length
            else:
                end = moment(value, held.unit, f"by_time({name}=)")
            bounds.append(end)
        if bounds[1] > bounds[0]:
            raise DataError(f"{self}: validation would begin after test; give them in order of time.")
        return bounds[1], bounds[0]

    def _users(self, held: Held) -> np.ndarray:
        """Return the part of each user by the time of the last event or row, the newest in test."""
        size = int(max(held.user.max(initial=-1), held.event_user.max(initial=-1))) + 1
        last = np.full(size, np.iinfo(np.int64).min)
        for user, time in ((held.event_user, held.event_time), (held.user, held.time)):
            ends = np.flatnonzero(np.r_[user[1:] != user[:-1], True]) if len(user) else np.zeros(0, np.intp)
            last[user[ends]] = np.maximum(last[user[ends]], time[ends])
        present = np.unique(held.user)
        test, validation = round(len(present) * self.test), round(len(present) * self.validation)
        order = present[np.argsort(last[present], kind="stable")]
        split = np.zeros(size, np.int8)
        split[order[len(order) - test - validation :]] = VALIDATION
        split[order[len(order) - test :]] = TEST
        return split

    def _last(self, held: Held) -> np.ndarray:
        """Return the parts by place from the user's end; a user's first row always trains."""
        starts = (
            np.flatnonzero(np.r_[True, held.user[1:] != held.user[:-1]])
            if len(held.user)
            else np.zeros(0, int)
        )
        counts = np.diff(np.r_[starts, len(held.user)])
        position = np.arange(len(held.user)) - np.repeat(starts, counts)
        left = np.repeat(counts, counts) - 1 - position
        split = (left < self.test + self.validation).astype(np.int8) + (left < self.test)
        return np.where(position == 0, TRAIN, split).astype(np.int8)


def by_time(validation: Any = 0.1, test: Any = 0.1) -> Split:
    """Cut the log at two points in time, the same for all users: the newest rows test.

    Args:
        validation: a share of the rows (0.1), a duration (``"1d"``, ``"12h"``, a timedelta), or the time at
            which the part begins (``"2026-11-29"``, a datetime).
        test: the same.

    >>> print(by_time(validation="1d", test="1d"))
    by_time(validation='1d', test='1d')
    """
    for name, value in (("validation", validation), ("test", test)):
        if isinstance(value, (int, float)):
            _check_share(f"by_time({name}=)", value)
    return Split("time", validation, test)


def by_user(validation: float = 0.1, test: float = 0.1) -> Split:
    """Cut the users by the time of their last event: the newest shares of them validate and test."""
    _check_share("by_user(validation=)", validation)
    _check_share("by_user(test=)", test)
    return Split("user", validation, test)


def last_n(validation: int = 1, test: int = 1) -> Split:
    """Hold out the last rows of every user; the first row of a user always trains."""
    for name, value in (("validation", validation), ("test", test)):
        if type(value) is not int or value < 0:
            raise DataError(f"last_n({name}=): got {value!r}, expected a whole number of rows, at least 0.")
    return Split("last", validation, test)


@typed
def by_column(column: str) -> Split:
    """Take the part of each row from a column of ``train``, ``validation``, ``test``, or of 0, 1, 2."""
    return Split("column", column=column)


def _check_share(what: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise DataError(f"{what}: got {value!r}, expected a share from 0 to below 1, such as 0.1.")


def _named(column: Any, name: str) -> np.ndarray:
    """Return parts from words or numbers."""
    values = np.asarray(column)
    if values.dtype.kind in "iub" and (not len(values) or (values.min() >= 0 and values.max() <= TEST)):
        return values.astype(np.int8)
    words, place = np.unique(values.astype(str), return_inverse=True)
    known = [SPLITS.get(word, -1) for word in words.tolist()]
    if -1 in known:
        raise DataError(
            f"split column {name!r}: got {words[known.index(-1)][:50]!r}, expected "
            f"{', '.join(map(repr, SPLITS))}, or 0, 1, 2."
        )
    return np.array(known, np.int8)[place]


def _before_held_out(held: Held, split: np.ndarray) -> np.ndarray:
    """Return which events lie before the first held-out row of their user; without one, of training's end."""
    size = int(max(held.user.max(initial=-1), held.event_user.max(initial=-1))) + 1
    trained, out = split == TRAIN, split != TRAIN
    end = int(held.time[trained].max(initial=np.iinfo(np.int64).min))
    first = np.full(size, end + 1 if trained.any() and out.any() else np.iinfo(np.int64).max)
    users, places = np.unique(held.user[out], return_index=True)
    first[users] = held.time[out][places]
    return held.event_time < first[held.event_user]
