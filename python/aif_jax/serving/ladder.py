"""The deadline ladder: decisions how far an answer is degraded to be in time, and the times they go by.

====  ================================  ==================================================================
rung  what is ranked with               when
====  ================================  ==================================================================
0     everything                        it is predicted to be in time, or there is no deadline
1     all but the long sequence         the user program is predicted to be late, the one for the shortest
                                        history is not
2     the user prior, the context       the user side is late, was refused, or its source failed
3     the item prior                    the real-time stage itself is predicted to be late
====  ================================  ==================================================================

Blocks that a rung goes without contribute their learned absent vectors, as they do in training. A model that
cannot answer a rung does not declare it (`ModelSpec.rungs`), and requests that would need it end in an error.
"""

import dataclasses
import threading
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

Rung: TypeAlias = Literal[0, 1, 2, 3]

Reason: TypeAlias = Literal[
    "user source late", "user program late", "overloaded", "user source failed", "stage would not fit"
]

ITEM_PRIOR = "item prior"
"""Key of the time that a ranking by item priors takes."""

USER = "user"
"""Key of the time that a user program takes, whatever the history, from record to state."""

FINISH = "finish"
"""Key of the time from the end of waiting to the ranking, whatever the candidates."""

_WAKE_MS = 1.0
"""Time within which a thread or a coroutine is woken when its wait is over: loops count in milliseconds."""

_MEAN, _SPREAD = 1 / 8, 1 / 4
"""Weight of a new time in the mean and in the spread, as TCP has them for round trips (RFC 6298)."""

_SPREADS = 3.0
"""Spreads that a reserve keeps over the mean."""

_MAX_SPREADS = 6.0
"""Spreads over the mean at which a time is cut before it counts: one pause is no new mean."""

_MIN_SPREAD = 0.1
"""A spread is at least this share of the mean, or nothing would ever count as unusual."""

_DECAY = 0.98
"""Factor of an estimate each time that it keeps work from running, which would have corrected it."""


@dataclasses.dataclass(slots=True)
class _Estimate:
    mean_ms: float
    spread_ms: float


class LatencyEstimates:
    """Times by key, in milliseconds: a moving mean and a moving mean deviation of each. Safe from any thread.

    Unusual times count less than they are, and a lasting change is followed within some tens of times. The
    estimate of a key without a time is 0.

    >>> times = LatencyEstimates()
    >>> times.record("user", 4.0)
    >>> times.expected_ms("user"), times.reserve_ms("user")
    (4.0, 10.0)
    """

    def __init__(self) -> None:
        self._estimates: dict[Hashable, _Estimate] = {}
        self._lock = threading.Lock()

    def record(self, key: Hashable, ms: float) -> None:
        """Count a time; the first of a key is taken as it is."""
        with self._lock:
            known = self._estimates.get(key)
            if known is None:
                self._estimates[key] = _Estimate(ms, ms / 2)
                return
            spread = max(known.spread_ms, _MIN_SPREAD * known.mean_ms)
            off = min(ms - known.mean_ms, _MAX_SPREADS * spread)
            known.spread_ms = spread + _SPREAD * (abs(off) - spread)
            known.mean_ms += _MEAN * off

    def expected_ms(self, key: Hashable) -> float:
        """Return the mean."""
        with self._lock:
            known = self._estimates.get(key)
            return 0.0 if known is None else known.mean_ms

    def reserve_ms(self, key: Hashable) -> float:
        """Return a time that is seldom exceeded."""
        with self._lock:
            known = self._estimates.get(key)
            return 0.0 if known is None else known.mean_ms + _SPREADS * known.spread_ms

    def refused(self, key: Hashable) -> None:
        """Shrink an estimate that kept something from running, so that it is tried again some day."""
        with self._lock:
            if (known := self._estimates.get(key)) is not None:
                known.mean_ms *= _DECAY
                known.spread_ms *= _DECAY

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return mean and reserve of every key, in milliseconds."""
        with self._lock:
            return {
                str(key): {"mean_ms": known.mean_ms, "reserve_ms": known.mean_ms + _SPREADS * known.spread_ms}
                for key, known in self._estimates.items()
            }


class Choice(NamedTuple):
    """A rung and the reason why it is not 0; ``None`` on rung 0."""

    rung: Rung
    reason: Reason | None


FULL = Choice(0, None)


class Ladder:
    """Chooses rungs by the time that is left and the time that the rest of the request takes.

    Without a deadline (``None`` milliseconds left) nothing is degraded for being late.

    Args:
        times: estimates under the keys of `user_key` and `stage_key`, `USER`, `FINISH` and `ITEM_PRIOR`.
        candidates: candidate counts that the stage is compiled for, ascending.
        histories: history lengths, ascending.
        enabled: whether lateness is answered with a lower rung; otherwise a late request is an error.
        rungs: those that the model declares.
    """

    def __init__(
        self,
        times: LatencyEstimates,
        candidates: Sequence[int],
        histories: Sequence[int],
        *,
        enabled: bool,
        rungs: Collection[int],
    ):
        self.times = times
        self.rungs = tuple(rungs)
        self.enabled = enabled and self.rungs != (0,)
        self.without_user: Rung | None = 2 if 2 in rungs else 3 if 3 in rungs else None
        self._candidates = tuple(candidates)
        self._histories = tuple(histories)

    def degrades(self, left_ms: float | None) -> bool:
        """Return whether a request with so much time left may be degraded for being late or too much."""
        return self.enabled and left_ms is not None

    def user_key(self, length: int, users: int = 1) -> tuple[str, int, int]:
        """Return the key of one call of the user program for a history length, from records to states."""
        return "user", length, users

    def stage_key(self, n: int, length: int) -> tuple[str, int, int]:
        """Return the key of one call of the stage for n candidates and a history length."""
        for size in self._candidates:
            if n <= size:
                return "stage", size, length
        return "stage", self._candidates[-1], length

    def wait_ms(self, left_ms: float | None, n: int) -> float | None:
        """Return how long a request of n candidates may wait for its user side; 0 or less for not at all.

        The time left after it is enough for the stage, even if the user side comes at the last moment.
        """
        if left_ms is None or not self.enabled:
            return left_ms
        stage_ms = self._calls(n) * self.times.reserve_ms(self.stage_key(n, self._histories[-1]))
        return left_ms - stage_ms - _WAKE_MS

    def retrieval_ms(self, left_ms: float | None) -> float | None:
        """Return how long a request may wait for candidates, for which there is a substitute."""
        return None if left_ms is None else left_ms - self.times.reserve_ms(FINISH) - _WAKE_MS

    def user_program(self, left_ms: float | None, length: int) -> Choice:
        """Choose the user program, rung 0 or 1, when it is about to start.

        Rung 0 too if neither is predicted to be in time: then the request goes without, but the next one
        finds the state.
        """
        shortest = self._histories[0]
        if left_ms is None or not self.enabled or length == shortest or 1 not in self.rungs:
            return FULL
        left_ms -= self.times.reserve_ms(FINISH) + _WAKE_MS
        full = self.user_key(length)
        short_ms = self.times.expected_ms(self.user_key(shortest))
        if self.times.expected_ms(full) <= left_ms or short_ms > left_ms:
            return FULL
        self.times.refused(full)
        return Choice(1, "user program late")

    def stage(self, chosen: Choice, left_ms: float | None, n: int, length: int) -> Choice:
        """Choose between the stage, on the rung chosen so far, and the item prior, when it is about to start.

        Args:
            chosen: the rung of the user side.
            left_ms: time left; not positive if the deadline passed while the request waited.
            n: candidates.
            length: history length of the user state.
        """
        if left_ms is None or not self.enabled or 3 not in self.rungs or chosen.rung == 3:
            return chosen
        if self.stage_ms(n, length) <= left_ms:
            return chosen
        if left_ms > 0:
            self.times.refused(self.stage_key(n, length))
        return Choice(3, "stage would not fit")

    def stage_ms(self, n: int, length: int) -> float:
        """Return the expected time of the stage for n candidates."""
        return self._calls(n) * self.times.expected_ms(self.stage_key(n, length))

    def record_user(self, length: int, ms: float, users: int = 1) -> None:
        """Count the time of one call of the user program, compiled for so many users."""
        self.times.record(self.user_key(length, users), ms)
        # Admission asks for the time of a request on its own, which pays for all of its call.
        if users == 1:
            self.times.record(USER, ms)

    def record_finish(self, n: int, length: int, ms: float) -> None:
        """Count the time from the end of waiting to a ranking of n candidates by the stage."""
        calls = 1 if n <= self._candidates[-1] else self._calls(n)
        self.times.record(self.stage_key(n, length), ms / calls)
        self.times.record(FINISH, ms)

    def stats(self) -> dict[str, Any]:
        """Return whether it is ``enabled``, the ``rungs`` that the model has, and the ``times``."""
        return {"enabled": self.enabled, "rungs": self.rungs, "times": self.times.as_dict()}

    def _calls(self, n: int) -> int:
        return max(1, -(-n // self._candidates[-1]))
