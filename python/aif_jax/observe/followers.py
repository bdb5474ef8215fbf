"""Metrics of followers of update streams, for Prometheus. Needs the extra ``metrics``."""

from collections.abc import Iterator, Mapping
from typing import Any

from aif_jax.extras import needs

needs("prometheus_client", what=__name__)

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aif_jax.nearline import Follower

_COUNTS = {
    "updates": "Updates that were applied, by follower.",
    "upserted": "Items whose rows were computed and stored, for every table.",
    "deleted": "Items that were deleted, for every table.",
    "ignored": "Items whose deletion a table ignored.",
    "repeated": "Updates that a table held already.",
    "set_aside": "Updates of which something could not be applied, for every table: they are dead letters.",
    "dead_letters_dropped": "Dead letters that were deleted to keep their bound.",
    "source_errors": "Errors of the source.",
    "disk_full": "Attempts that a full disk refused.",
    "disk_errors": "Attempts that a disk refused for another reason.",
    "apply_errors": "Attempts that failed for a reason that is in no update.",
    "on_bad_errors": "Errors of the callback for items that are set aside.",
    "checkpoints_failed": "Snapshots that could not be written.",
}


class FollowerMetrics(Collector):
    """Reads followers' counts at each scrape.

    Args:
        registry: registry of the metrics, such as that of a `PrometheusMetrics`.
        followers: followers by the label of their metrics.
        prefix: prefix of the metrics' names.
    """

    def __init__(self, registry: CollectorRegistry, followers: Mapping[str, Follower], prefix: str = "aif"):
        self._followers, self._prefix = dict(followers), prefix
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return nothing: names are this collector's own."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the counts of all followers."""
        stats: dict[str, dict[str, Any]] = {name: one.stats() for name, one in self._followers.items()}
        for count, text in _COUNTS.items():
            family = CounterMetricFamily(f"{self._prefix}_follower_{count}", text, labels=("follower",))
            for name, found in stats.items():
                family.add_metric([name], found[count])
            yield family
        bad = CounterMetricFamily(
            f"{self._prefix}_follower_bad_items",
            "Items that were set aside, by the error.",
            labels=("follower", "error"),
        )
        lag = GaugeMetricFamily(
            f"{self._prefix}_follower_lag_seconds",
            "From when the last update was written at the source until readers could see it.",
            labels=("follower",),
        )
        going = GaugeMetricFamily(
            f"{self._prefix}_follower_going",
            "1 if it follows and nothing is wrong, 0 otherwise.",
            labels=("follower",),
        )
        letters = GaugeMetricFamily(
            f"{self._prefix}_follower_dead_letter_bytes",
            "Bytes of the files of updates that were set aside.",
            labels=("follower",),
        )
        for name, found in stats.items():
            letters.add_metric([name], found["dead_letter_bytes"])
            for error, number in found["bad"].items():
                bad.add_metric([name, error], number)
            if found["lag_s"] is not None:
                lag.add_metric([name], found["lag_s"])
            going.add_metric([name], float(found["trouble"] is None and found["failure"] is None))
        yield from (bad, lag, going, letters)
