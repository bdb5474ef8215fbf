"""Every request of a run and what became of it, so that none is lost without being missed."""

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from support.faults.service import Answer

CANCELLED = "cancelled"
"""The outcome of a request that its caller gave up on purpose."""


@dataclasses.dataclass(slots=True)
class Entry:
    """One request.

    Attributes:
        number: of the request.
        answer: if there was one.
        error: the type of the exception, or `CANCELLED`.
        text: the message of the exception.
    """

    number: int
    answer: Answer | None = None
    error: str = ""
    text: str = ""

    @property
    def lost(self) -> bool:
        """Return whether there is neither answer nor error."""
        return self.answer is None and not self.error


class Ledger:
    """Entries by request. Safe to use from any thread."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._lock = threading.Lock()

    def begin(self, number: int) -> Entry:
        """Enter a request that is about to be made."""
        entry = Entry(number)
        with self._lock:
            self.entries.append(entry)
        return entry

    def errors(self) -> Counter[str]:
        """Return how many ended in which error."""
        return Counter(entry.error for entry in self.entries if entry.error)

    def rungs(self) -> Counter[int]:
        """Return how many were answered at which rung."""
        return Counter(entry.answer.rung for entry in self.entries if entry.answer is not None)


@contextmanager
def noting(*entries: Entry) -> Iterator[None]:
    """Note the exception that ends requests, whatever it is."""
    try:
        yield
    except GeneratorExit:
        # The coroutine was thrown away with its loop, and must end.
        for entry in entries:
            entry.error = CANCELLED
        raise
    except BaseException as error:
        for entry in entries:
            entry.error, entry.text = type(error).__name__, str(error)
