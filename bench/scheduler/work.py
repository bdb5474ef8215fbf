"""What the tasks do: wait, or compute without the GIL, and give an answer that can be checked."""

import hashlib
import statistics
import time
from dataclasses import dataclass, field


@dataclass
class Ran:
    """What a task saw: when it began and ended, on the clock of `time.perf_counter`, and its answer."""

    start_s: float
    end_s: float
    answer: bytes


@dataclass
class Compute:
    """Hash as many bytes as take about `target_s`; hashlib releases the GIL for them."""

    target_s: float
    data: bytes = field(init=False, repr=False)
    expected: bytes = field(init=False, repr=False)
    takes_s: float = field(init=False)

    def __post_init__(self) -> None:
        trial = bytes(1 << 20)
        per_byte = min(self._time(trial) for _ in range(20)) / len(trial)
        # More than 2047 bytes, below which hashlib keeps the GIL.
        self.data = bytes(range(256)) * max(16, round(self.target_s / per_byte / 256))
        self.expected = hashlib.sha256(self.data).digest()
        self.takes_s = statistics.median(self._time(self.data) for _ in range(20))

    @staticmethod
    def _time(data: bytes) -> float:
        start = time.perf_counter()
        hashlib.sha256(data).digest()
        return time.perf_counter() - start

    def __call__(self) -> Ran:
        start = time.perf_counter()
        answer = hashlib.sha256(self.data).digest()
        return Ran(start, time.perf_counter(), answer)


@dataclass
class Wait:
    """Sleep, as a call to another service does."""

    seconds: float
    expected: bytes = b"waited"

    def __call__(self) -> Ran:
        start = time.perf_counter()
        time.sleep(self.seconds)
        return Ran(start, time.perf_counter(), b"waited")


def answer_of(number: int) -> int:
    """A task that does nearly nothing."""
    return number * number
