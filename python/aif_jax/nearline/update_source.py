"""Sources of a stream of updates: each update with its position, at least once, in order."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from aif_jax.errors import AifError, DataError
from aif_jax.features.copies import copied
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.records import concatenated
from aif_jax.nearline.updates import Delete, Update, Upsert
from aif_jax.strict_json import dumps, shortened, text_of
from aif_jax.types import ItemRecords

_MOST_PARTS, _MOST_CHARS = 16, 4096
"""Bounds of a position."""

_MOST_TEXT = 1 << 20
"""Characters that a dead letter keeps of one value that JSON cannot hold: its text can take minutes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """An update as a source delivers it.

    Attributes:
        position: its position in the stream; later updates have greater ones.
        update: the change, or the error of an update that cannot be read: it is set aside, and the stream
            continues. `decoded` gives either.
        time_s: time at which it was written to the stream, seconds since 1970; ``None`` if unknown.
        raw: what the source read, for the file of dead letters; ``()`` for the update itself.
    """

    position: Position
    update: Update | AifError
    time_s: float | None = None
    raw: tuple[bytes, ...] = ()


@runtime_checkable
class UpdateSource(Protocol):
    """A stream of updates that can be read again from any position that was not acknowledged."""

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery] | None:
        """Return the next updates, in order.

        Args:
            after: position of the last one that is not wanted again; ``None`` for the stream's beginning. It
                differs from the last one that was delivered only at the first call.
            wait_s: seconds to wait for one.

        Returns:
            Some updates, none if none came in time, ``None`` if the stream has ended.
        """
        ...

    def acknowledge(self, position: Position) -> None:
        """Note that all updates up to a position are applied and on disk, and never wanted again.

        If it raises, following continues, and a later call covers these updates too.
        """
        ...


def _copied(update: Update) -> Update:
    if not isinstance(update, (Upsert, Delete)):
        return update  # for the error of the follower
    try:
        fields = {field.name: copied(getattr(update, field.name)) for field in dataclasses.fields(update)}
    except AifError:  # a generator, for example, which the follower sets aside
        return update
    return type(update)(**fields)


class IterableUpdates:
    """Updates of an iterable, numbered from ``(1,)`` on.

    To read from a position, it is iterated from its beginning and earlier updates are skipped: so it must
    give the same updates each time. The same after an error that it raises; an iterator, which cannot begin
    again, is asked for its next update then.

    Args:
        updates: a list or generator; it may block between updates.
        limit: maximum of updates that are delivered together.
    """

    def __init__(self, updates: Iterable[Update], *, limit: int = 256):
        self._updates, self._limit = updates, limit
        self._iterator: Iterator[Update] | None = None
        self._read = 0
        self._error: BaseException | None = None

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery] | None:
        """Return up to ``limit`` updates; the iterable decides how long that takes."""
        passed = 0 if after is None else int(after[0])
        if self._iterator is None:
            self._iterator = iter(self._updates)
            if self._iterator is not self._updates:
                self._read = 0
        some: list[Delivery] = []
        try:
            while len(some) < self._limit:
                update = next(self._iterator)
                self._read, self._error = self._read + 1, None
                if self._read > passed:
                    # Copied: a generator may use its arrays again for the next update.
                    some.append(Delivery((self._read,), _copied(update)))
        except StopIteration:
            if self._error is not None and not some:  # a generator that has raised has no more to give
                raise self._error from None
        except Exception as error:
            self._iterator, self._error = None, error
            if not some:
                raise
        return some or None

    def acknowledge(self, position: Position) -> None:
        """Do nothing: no delivered update is kept."""


def decoded(decode: Callable[[], Update], where: str) -> Update | AifError:
    """Return the update that ``decode`` makes of one entry, or the error of an entry that has none.

    The one place where a source decodes: whatever its libraries raise is the error of that entry alone.
    """
    try:
        return decode()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of native libraries included
        return own_error(error, where)


def own_error(error: BaseException, where: str) -> AifError:
    """Return an error as one of ours; ``where`` names the entry in that of another library."""
    if isinstance(error, AifError):
        return error
    found = DataError(f"{where}: cannot be read ({described(error)}); correct the program that wrote it.")
    found.__cause__ = error
    return found


def described(error: BaseException) -> str:
    """Return name and text of an error, whatever its ``__str__`` does."""
    return f"{type(error).__name__}: {shortened(text_of(error), 500)}"


def checked_deliveries(found: Any, after: Position | None) -> tuple[list[Delivery], int]:
    """Check what a source has read.

    Args:
        found: result of `UpdateSource.read`.
        after: position that was given to it.

    Returns:
        The deliveries, in ascending order, and the number of repetitions that were left out. One that cannot
        be placed in the stream has the position ``()`` and the reason as its update.

    Raises:
        DataError: it is not a sequence, or its positions are not of the stream that ``after`` is of.
    """
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes, bytearray)):
        raise DataError(
            f"source: read returned a {type(found).__name__}, expected a list of Delivery, or None."
        )
    checked: list[Delivery] = []
    last: Position | None = None
    seen: set[Position] = set()
    strangers = repeated = 0
    for one in found:
        if not isinstance(one, Delivery):
            wrong = f"source: delivered a {type(one).__name__}, expected a Delivery."
            checked.append(Delivery((), DataError(wrong), raw=raw_of(one)))
            continue
        if not _is_position(position := one.position):
            wrong = (
                f"position: got {shortened(text_of(position))}, expected a tuple of integers of 64 bits and "
                f"strings of at most {_MOST_CHARS:,} characters."
            )
        elif position in seen:
            repeated += 1
            continue
        elif not _comparable(position, after):
            strangers += 1
            wrong = (
                f"position: got {shortened(text_of(position))}, which does not compare with that of the "
                f"archive, {after}."
            )
        elif last is not None and not (_comparable(position, last) and position > last):
            wrong = (
                f"position: got {shortened(text_of(position))} behind {shortened(text_of(last))}, expected "
                "ascending positions."
            )
        else:
            last = position
            seen.add(position)
            checked.append(dataclasses.replace(one, time_s=_seconds(one.time_s)))
            continue
        checked.append(Delivery((), DataError(f"source: {wrong}"), raw=raw_of(one)))
    if strangers == len(checked) > 0:
        raise DataError(
            f"source: its positions, such as {shortened(text_of(found[0].position))}, do not compare with "
            f"that of the archive, {after}; follow the stream that the archive has followed, or start "
            "another archive."
        )
    return checked, repeated


def raw_of(delivery: Any) -> tuple[bytes, ...]:
    """Return the bytes of a delivery for the dead letters: what was read, or the JSON of its update."""
    try:
        if isinstance(raw := getattr(delivery, "raw", ()), tuple) and raw:
            return tuple(bytes(part) for part in raw)
        update = delivery.update if isinstance(delivery, Delivery) else delivery
        if isinstance(update, ItemRecords):
            columns = {name: concatenated([column]) for name, column in update.columns.items()}
            update = {
                "ids": update.ids,
                "columns": columns,
                "content": update.content,
                "rankable": update.rankable,
            }
        elif isinstance(update, Delete):
            update = {"deleted": update.ids}
        return (dumps(update, max_chars=_MOST_TEXT),)
    except Exception:  # it is not what its type says
        return (text_of(delivery).encode("utf-8", "backslashreplace"),)


def _is_position(position: Any) -> bool:
    return (
        type(position) is tuple
        and 0 < len(position) <= _MOST_PARTS
        and all(
            (type(part) is int and part.bit_length() <= 64)
            or (type(part) is str and len(part) <= _MOST_CHARS)
            for part in position
        )
    )


def _seconds(time_s: Any) -> float | None:
    try:
        seconds = float(time_s)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def _comparable(position: Position, other: Position | None) -> bool:
    try:
        return other is None or isinstance(position > other, bool)
    except TypeError:
        return False
