"""Where a stream of updates comes from: each update with its position, at least once, in order."""

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
        position: its place in the stream; later updates have greater ones.
        update: what changes. An update that cannot be read is the error that says so: it is counted as bad,
            and the stream goes on.
        time_s: when it was written to the stream, seconds since 1970; ``None`` if the stream does not say.
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
            wait_s: how long to wait for one, seconds.

        Returns:
            Some updates, none if none came in time, ``None`` if the stream has ended.
        """
        ...

    def acknowledge(self, position: Position) -> None:
        """Note that everything up to a position is applied and on disk, and never wanted again.

        If it raises, following goes on, and a later call covers these updates too.
        """
        ...


class IterableUpdates:
    """Updates of an iterable, numbered from ``(1,)`` on.

    Read again from a position, it is iterated from its beginning and what comes before is passed over: so it
    must give the same updates each time.

    Args:
        updates: a list, a generator; it may block between updates.
        limit: updates to deliver together, at most.
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
        """Nothing is kept of what was delivered, so there is nothing to let go of."""
