"""An engine's metrics for Prometheus. Needs the extra ``metrics``.

Distributions are observed as requests end. Everything else is read from `Engine.stats` at each scrape, so it
costs requests nothing.
"""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from aif_jax.extras import needs

needs("prometheus_client", what=__name__)

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aif_jax.errors import ConfigError
from aif_jax.observe.request_log import RequestLog
from aif_jax.serving import Failure, Observer, Report
from aif_jax.serving.observer import ObservedEngine

SECONDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0,
)  # fmt: skip
"""Upper ends of the histograms' buckets, in seconds: closest where pre-ranking happens."""

_TIMES = {
    "request_seconds": ("total_ms", "From begin to the ranking."),
    "retrieval_seconds": ("retrieval_ms", "From begin to rank."),
    "user_side_seconds": ("user_side_ms", "From the begin of the user fetch to the user state."),
    "user_fetch_seconds": ("user_fetch_ms", "The user source."),
    "hidden_seconds": ("hidden_ms", "User-side time that passed while retrieval was running anyway."),
    "wait_seconds": ("wait_ms", "Waiting for the user state: what could not be hidden."),
    "items_wait_seconds": ("items_wait_ms", "Waiting for missing item rows that were being computed."),
    "prepare_seconds": ("prepare_ms", "Checking, filtering and encoding candidates and pair features."),
    "stage_seconds": ("stage_ms", "The compiled real-time stage."),
}
_COUNTED = {
    "rung": ("rankings", "Rankings by rung: 0 is full quality."),
    "degraded": ("degraded", "Rankings below rung 0, by reason."),
    "fallback": ("fallbacks", "Rankings of fallback candidates, by reason."),
    "error": ("request_errors", "Requests that ended in an error, by its class."),
    "user_state": ("user_states", "Rankings by where the user state came from."),
    "filtered": ("filtered_candidates", "Candidates that filters of requests left out."),
    "uncomputed": ("uncomputed_items", "Missing item rows that could not be computed, by reason."),
}
"""Prefix of the engine's counters to metric; what follows the prefix is its label."""

_ENDS = ("completed", "failed", "cancelled", "expired", "shed", "panicked")
_REFUSALS = ("rejected", "refused_late", "refused_open")
_LOOKUPS = ("hits", "misses", "expiries", "evictions", "stale", "invalidated", "void", "not_kept")


class PrometheusMetrics(Observer, Collector):
    """Metrics of one engine, in a registry of their own unless one is given.

    Args:
        registry: registry of the metrics; ``None`` for a new one. Engines that share one need different
            prefixes.
        prefix: prefix of the metrics' names.
        log: log of the engine's requests, whose counters are exported too.

    Attributes:
        registry: registry of the metrics.
        content_type: media type of `scrape`.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(
        self, registry: CollectorRegistry | None = None, prefix: str = "aif", log: RequestLog | None = None
    ):
        self._log = log
        self.registry = CollectorRegistry() if registry is None else registry
        self._prefix = prefix
        self._engine: ObservedEngine | None = None
        self._opening = threading.Lock()
        self._times = {name: (field, self._histogram(name, text)) for name, (field, text) in _TIMES.items()}
        self._queue = self._histogram("queue_seconds", "Waiting for a thread, by task.", ("task",))
        self._age = self._histogram(
            "user_state_age_seconds", "Age of cached user states that were used.",
            buckets=(1, 5, 15, 60, 120, 300, 600, 1800, 3600),
        )  # fmt: skip
        self._failed = self._histogram("failed_request_seconds", "From begin to the error.")
        self.registry.register(self)

    def opened(self, engine: ObservedEngine) -> None:
        """Read this engine's counters from now on.

        Raises:
            ConfigError: it reads another engine's already.
        """
        with self._opening:
            if self._engine is not None and not self._engine.closed:
                raise ConfigError(
                    "these PrometheusMetrics watch another engine already; make one for each engine, with "
                    "prefixes of their own if they share a registry."
                )
            self._engine = engine

    def ranked(self, report: Report) -> None:
        """Observe the times of a ranking."""
        for field, histogram in self._times.values():
            histogram.observe(getattr(report, field) / 1e3)
        for task, queued_ms in report.queue_ms.items():
            self._queue.labels(task).observe(queued_ms / 1e3)
        if report.user_state == "hit":
            self._age.observe(report.user_state_age_ms / 1e3)

    def failed(self, failure: Failure) -> None:
        """Observe how long a request took to fail."""
        self._failed.observe(failure.total_ms / 1e3)

    def scrape(self) -> bytes:
        """Return all metrics of the registry in Prometheus's text format, of type `content_type`."""
        return generate_latest(self.registry)

    # -- for the registry -------------------------------------------------------------------------

    def describe(self) -> list[Metric]:
        """Return nothing: the metrics depend on the requests, and names are this observer's own."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the engine's counters."""
        engine = self._engine
        if engine is None or engine.closed:
            return
        stats = engine.stats()
        bundle = self._gauge("bundle", "1 for the bundle version that serves.", ("version",))
        bundle.add_metric([stats["version"]], 1)
        yield bundle
        yield from self._requests(stats["requests"])
        open_handles = self._gauge("open_handles", "Handles that were begun and neither ranked nor dropped.")
        yield _single(open_handles, stats["open_handles"])
        compilations = self._gauge("compilations", "Programs compiled since the engine was made.")
        yield _single(compilations, stats["compilations"])
        yield from self._scheduler(stats["scheduler"])
        yield from self._user_states(stats["user_states"])
        yield from self._tables({"items": stats["item_index"], "behaviours": stats["behaviour_table"]})
        yield from self._memory(stats["memory"])
        yield from self._shadows(stats["shadows"])
        errors = self._counter("observer_errors", "Errors that observers raised.", ("observer",))
        for name, number in stats["observer_errors"].items():
            errors.add_metric([name], number)
        yield errors
        if self._log is not None:
            yield from self._request_log(self._log.stats())

    def _request_log(self, stats: Mapping[str, Any]) -> Iterator[Metric]:
        ended = self._counter("log_requests", "Requests of the sample of the log, by end.", ("end",))
        for end in ("logged", "dropped", "failed"):
            ended.add_metric([end], stats[end])
        yield ended
        yield _single(self._counter("log_bytes", "Bytes of the files of the log."), stats["bytes"])
        yield _single(self._gauge("log_waiting", "Requests that wait to be written."), stats["waiting"])

    def _requests(self, counts: Mapping[str, int]) -> Iterator[Metric]:
        families = {prefix: self._counter(name, text, (prefix,)) for prefix, (name, text) in _COUNTED.items()}
        for name, number in counts.items():
            prefix, colon, label = name.partition(":")
            if colon and prefix in families:
                families[prefix].add_metric([label], number)
            elif not colon:
                yield _single(self._counter(f"requests_{name}", "See Engine.stats."), number)
        yield from families.values()

    def _scheduler(self, lanes: Mapping[str, Any]) -> Iterator[Metric]:
        ended = self._counter("tasks", "Tasks of the scheduler, by lane and how they ended.", ("lane", "end"))
        refused = self._counter("tasks_refused", "Tasks that were not taken.", ("lane", "reason"))
        gauges = {
            name: self._gauge(f"tasks_{name}", f"Tasks that are {name}.", ("lane",))
            for name in ("queued", "running")
        }
        threads = self._gauge("threads", "Threads of the scheduler.", ("lane",))
        for lane, stats in lanes.items():
            for end in _ENDS:
                ended.add_metric([lane, end], stats[end])
            for reason in _REFUSALS:
                refused.add_metric([lane, reason], stats[reason])
            for name, gauge in gauges.items():
                gauge.add_metric([lane], stats[name])
            threads.add_metric([lane], stats["threads"])
        yield from (ended, refused, *gauges.values(), threads)

    def _user_states(self, buckets: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
        events = self._counter("user_cache_events", "What the user-state cache did.", ("bucket", "event"))
        rows = self._gauge("user_cache_states", "User states in the cache.", ("bucket",))
        size = self._gauge("user_cache_bytes", "Bytes of user states in the cache.", ("bucket",))
        for bucket, stats in buckets.items():
            for event in _LOOKUPS:
                events.add_metric([bucket, event], stats[event])
            rows.add_metric([bucket], stats["live_rows"])
            size.add_metric([bucket], stats["payload_bytes"])
        yield from (events, rows, size)

    def _tables(self, tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        rows = self._gauge("table_rows", "Rows of a table.", ("table",))
        size = self._gauge("table_bytes", "Bytes of a table, with everything that belongs to it.", ("table",))
        spoilt = self._gauge(
            "table_overwritten", "1 if the mapped file of a table was written to.", ("table",)
        )
        for table, stats in tables.items():
            rows.add_metric([table], stats["rows"])
            size.add_metric([table], stats["total_bytes"])
            spoilt.add_metric([table], int(stats["overwritten"] is not None))
        yield from (rows, size, spoilt)

    def _memory(self, memory: Mapping[str, Any]) -> Iterator[Metric]:
        size = self._gauge("generation_bytes", "Bytes that a generation needs.", ("generation", "part"))
        for generation, parts in memory["generations"].items():
            for part in parts.keys() - {"total"}:
                size.add_metric([generation, part], parts[part])
        yield size

    def _shadows(self, shadows: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        who = ("shadow", "version")
        ended = self._counter("shadow_requests", "Requests that shadows sampled, by end.", (*who, "end"))
        failed = self._counter("shadow_failures", "Requests that shadows could not rank.", (*who, "error"))
        waiting = self._gauge("shadow_waiting", "Requests that wait to be ranked by shadows.", who)
        overlap = self._gauge("shadow_overlap", "Overlap of the best k, lately.", (*who, "statistic"))
        drift = self._gauge("shadow_drift", "Largest difference of a score, lately.", (*who, "statistic"))
        for number, stats in shadows.items():
            labels = [number, stats["version"]]
            for end in ("compared", "dropped"):
                ended.add_metric([*labels, end], stats[end])
            ended.add_metric([*labels, "failed"], sum(stats["failed"].values()))
            for error, count in stats["failed"].items():
                failed.add_metric([*labels, error], count)
            waiting.add_metric(labels, stats["waiting"])
            if stats["window"]:
                for name in ("mean", "p10"):
                    overlap.add_metric([*labels, name], stats[f"overlap_{name}"])
                for name in ("mean", "p90", "max"):
                    drift.add_metric([*labels, name], stats[f"drift_{name}"])
        yield from (ended, failed, waiting, overlap, drift)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        return Histogram(f"{self._prefix}_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> CounterMetricFamily:
        return CounterMetricFamily(f"{self._prefix}_{name}", text, labels=labels)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=labels)


def _single(family: CounterMetricFamily | GaugeMetricFamily, value: float) -> Metric:
    """Return a metric without labels, of one value."""
    family.add_metric([], value)
    return family
