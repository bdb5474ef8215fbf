"""What became of an engine's requests, counted over its life."""

import threading
from collections import Counter

from aif_jax.serving.report import Report

_LEFT_OUT = (
    "candidates", "duplicates", "missing_items", "not_rankable", "unscored", "unknown_behaviours",
    "truncated_behaviours", "category_overflow", "computed_items",
)  # fmt: skip


class RequestCounts:
    """Counters by name. Safe to use from any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, number: int = 1) -> None:
        """Add to one counter."""
        with self._lock:
            self._counts[name] += number

    def ranking(self, report: Report) -> None:
        """Count a ranking that reached its caller, and what was left out of it."""
        counts = self._counts
        with self._lock:
            counts["ranked"] += 1
            counts[f"user_state:{report.user_state}"] += 1
            counts["unknown_users"] += report.unknown_user
            counts["user_batched"] += report.user_batch > 1
            for name in _LEFT_OUT:
                counts[name] += getattr(report, name)
            counts[f"rung:{report.rung}"] += 1
            if report.rung:
                counts[f"degraded:{report.rung_reason}"] += 1
            if report.retrieval == "fallback":
                counts[f"fallback:{report.retrieval_reason}"] += 1
            for name, number in report.filtered.items():
                counts[f"filtered:{name}"] += number
            for reason, number in report.uncomputed_items.items():
                counts[f"uncomputed:{reason}"] += number
            counts["overrun"] += report.overrun_ms > 0

    def as_dict(self) -> dict[str, int]:
        """Return a copy of the counters."""
        with self._lock:
            return dict(self._counts)
