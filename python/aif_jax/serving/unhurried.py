"""Work that nobody waits for, done so that requests keep the cores."""

import contextlib
import time
from collections.abc import Iterator

REST = 5.0
"""Times what a piece of work took that the next one waits."""


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Rest five times as long as a piece of work took: the cores are there for requests.

    A low priority would be worse: a thread of low priority that holds the GIL holds up all others.
    """
    began_s = time.perf_counter()
    yield
    time.sleep(REST * (time.perf_counter() - began_s))
