"""Sources of a stream of updates: each update with its position, at least once, in order."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from aif_jax.errors import AifError
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.updates import Update


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """An update as a source delivers it.

    Attributes:
        position: its position in the stream; later updates have greater ones.
        update: the change, or the error of an update that cannot be read: it is counted as bad, and the
            stream continues.
        time_s: time at which it was written to the stream, seconds since 1970; ``None`` if unknown.
    """

    position: Position
    update: Update | AifError
    time_s: float | None = None


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


class IterableUpdates:
    """Updates of an iterable, numbered from ``(1,)`` on.

    To read from a position, it is iterated from its beginning and earlier updates are skipped: so it must
    give the same updates each time.

    Args:
        updates: a list or generator; it may block between updates.
        limit: maximum of updates that are delivered together.
    """

    def __init__(self, updates: Iterable[Update], *, limit: int = 256):
        self._updates, self._limit = updates, limit
        self._iterator: Iterator[tuple[int, Update]] | None = None

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery] | None:
        """Return up to ``limit`` updates; the iterable decides how long that takes."""
        if self._iterator is None:
            passed = 0 if after is None else int(after[0])
            self._iterator = itertools.islice(enumerate(self._updates, 1), passed, None)
        some = list(itertools.islice(self._iterator, self._limit))
        return [Delivery((number,), update) for number, update in some] or None

    def acknowledge(self, position: Position) -> None:
        """Do nothing: no delivered update is kept."""
