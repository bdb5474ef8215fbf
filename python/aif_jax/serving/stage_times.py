"""How long an engine's work takes, learned while it runs: what the deadline ladder plans with."""

import dataclasses
import threading
from collections.abc import Hashable

_MEAN, _SPREAD = 1 / 8, 1 / 4
"""Weight of a new time in the mean and in the spread, as TCP has them for round trips (RFC 6298)."""

_SPREADS = 3.0
"""Spreads that a reserve keeps over the mean."""

_FARTHEST = 6.0
"""Spreads over the mean at which a time is cut before it counts: one pause is no new mean."""

_LEAST_SPREAD = 0.1
"""A spread is at least this share of the mean, or nothing would ever count as unusual."""

_HOPE = 0.98
"""What is left of an estimate each time that it keeps work from running, which would have corrected it."""


@dataclasses.dataclass(slots=True)
class _Estimate:
    mean_ms: float
    spread_ms: float


class StageTimes:
    """Times by key, in milliseconds: a moving mean and a moving mean deviation of each. Safe from any thread.

    Unusual times count less than they are, and a lasting change is followed within some tens of times. A key
    of which no time is known takes none.
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
            spread = max(known.spread_ms, _LEAST_SPREAD * known.mean_ms)
            off = min(ms - known.mean_ms, _FARTHEST * spread)
            known.spread_ms = spread + _SPREAD * (abs(off) - spread)
            known.mean_ms += _MEAN * off

    def expected_ms(self, key: Hashable) -> float:
        """Return how long it takes in the mean."""
        with self._lock:
            known = self._estimates.get(key)
            return 0.0 if known is None else known.mean_ms

    def reserve_ms(self, key: Hashable) -> float:
        """Return how long it seldom exceeds: what to leave for it."""
        with self._lock:
            known = self._estimates.get(key)
            return 0.0 if known is None else known.mean_ms + _SPREADS * known.spread_ms

    def refused(self, key: Hashable) -> None:
        """Say that something was not run because of its estimate: the estimate shrinks until it is tried."""
        with self._lock:
            if (known := self._estimates.get(key)) is not None:
                known.mean_ms *= _HOPE
                known.spread_ms *= _HOPE

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return mean and reserve of every key, in milliseconds."""
        with self._lock:
            return {
                str(key): {"mean_ms": known.mean_ms, "reserve_ms": known.mean_ms + _SPREADS * known.spread_ms}
                for key, known in self._estimates.items()
            }
