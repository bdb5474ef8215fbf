"""Estimates of how long steps take, from the times that they took."""

import dataclasses
import threading
from collections.abc import Hashable

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
