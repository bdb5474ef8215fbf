"""Prometheus metrics of an engine."""

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from aif_jax.bundle import Bundle
from aif_jax.errors import AifError, ConfigError
from aif_jax.nearline import Tables
from aif_jax.observe import RequestLog
from aif_jax.observe.prometheus import PrometheusMetrics
from support.served import Make, World
from support.waiting import eventually


def values(metrics: PrometheusMetrics) -> dict[tuple[str, ...], float]:
    """All samples of a scrape, by name and labels."""
    families = text_string_to_metric_families(metrics.scrape().decode())
    found: dict[tuple[str, ...], float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_prometheus_scrape_counts_requests(make: Make, world: World) -> None:
    metrics = PrometheusMetrics()
    engine = make(observers=[metrics])
    reports = [engine.begin(user).rank(world.ids[:20]).report for user in (1, 1, 2)]
    with pytest.raises(AifError):
        engine.begin(1).rank(world.ids[:20], k=0)
    scraped = values(metrics)
    assert scraped["aif_requests_begun_total",] == 4
    assert scraped["aif_requests_ranked_total",] == 3
    assert scraped["aif_rankings_total", "rung=0"] == 3
    assert scraped["aif_user_states_total", "user_state=hit"] == 1
    assert scraped["aif_request_errors_total", "error=RequestError"] == 1
    assert scraped["aif_failed_request_seconds_count",] == 1
    assert scraped["aif_bundle", f"version={engine.version}"] == 1
    assert scraped["aif_table_rows", "table=items"] == len(world.ids)
    assert scraped["aif_table_overwritten", "table=items"] == 0
    states = [number for (name, *_), number in scraped.items() if name == "aif_user_cache_states"]
    assert sum(states) == 2
    assert scraped["aif_tasks_total", "end=completed", "lane=blocking"] == 4
    for name, field in [("request", "total_ms"), ("stage", "stage_ms"), ("hidden", "hidden_ms")]:
        assert scraped[f"aif_{name}_seconds_count",] == 3
        total = sum(getattr(report, field) for report in reports) / 1e3
        assert scraped[f"aif_{name}_seconds_sum",] == pytest.approx(total)
    assert scraped["aif_queue_seconds_count", "task=stage"] == 3
    assert scraped["aif_user_state_age_seconds_count",] == 1


def test_prometheus_scrape_shows_shadows_and_memory(
    make: Make, world: World, bundle: Bundle, tables: Tables
) -> None:
    metrics = PrometheusMetrics()
    engine = make(observers=[metrics])
    with engine.shadow(bundle, tables, share=1.0) as shadow:
        before = values(metrics)
        engine.begin(1).rank(world.ids[:20])
        assert eventually(lambda: not shadow.stats()["waiting"])
        scraped = values(metrics)
        who = ("shadow=1", f"version={engine.version}")
        assert ("aif_shadow_overlap", who[0], "statistic=p10", who[1]) not in before
        assert scraped["aif_shadow_overlap", who[0], "statistic=p10", who[1]] == 1
        assert scraped["aif_shadow_drift", who[0], "statistic=max", who[1]] == 0
        assert scraped["aif_shadow_requests_total", "end=compared", *who] == 1
        assert scraped["aif_shadow_requests_total", "end=failed", *who] == 0
        assert scraped["aif_shadow_waiting", *who] == 0
        size = tables.items.stats()["total_bytes"]
        for generation in ("running", "shadow_1"):
            assert scraped["aif_generation_bytes", f"generation={generation}", "part=item_index"] == size
    gone = values(metrics)
    assert not any(name.startswith("aif_shadow") for name, *_ in gone)


def test_prometheus_engine_registers_nothing_globally(make: Make) -> None:
    from prometheus_client import REGISTRY

    make(observers=[PrometheusMetrics()])
    assert not any(family.name.startswith("aif_") for family in REGISTRY.collect())


def test_prometheus_two_engines_share_registry_under_two_prefixes(make: Make, world: World) -> None:
    registry = CollectorRegistry()
    one, two = PrometheusMetrics(registry, "one"), PrometheusMetrics(registry, "two")
    make(observers=[one]).begin(1).rank(world.ids[:20])
    make(observers=[two])
    scraped = values(one)
    assert scraped["one_requests_ranked_total",] == 1
    assert scraped["two_open_handles",] == 0
    threads = len(os.listdir("/proc/self/task"))
    with pytest.raises(ConfigError, match="watch another engine already"):
        make(observers=[one])
    assert len(os.listdir("/proc/self/task")) <= threads  # the engine that was refused left none behind


def test_prometheus_closed_engine_leaves_its_histograms(make: Make, world: World) -> None:
    metrics = PrometheusMetrics()
    engine = make(observers=[metrics])
    engine.begin(1).rank(world.ids[:20])
    engine.close()
    scraped = values(metrics)
    assert scraped["aif_request_seconds_count",] == 1
    assert ("aif_open_handles",) not in scraped
    make(observers=[metrics]).begin(1).rank(world.ids[:20])  # a successor may take its place
    assert values(metrics)["aif_request_seconds_count",] == 2


def test_prometheus_scrapes_during_requests_never_decrease(make: Make, world: World) -> None:
    metrics = PrometheusMetrics()
    engine = make(observers=[metrics], retrieve=lambda request: world.ids[:30])
    done = threading.Event()
    scrapes: list[dict[tuple[str, ...], float]] = []

    def scrape() -> None:
        while not done.is_set():
            scrapes.append(values(metrics))

    async def ask() -> None:
        for _ in range(20):
            await asyncio.gather(*(engine.rank_async(user) for user in range(8)))

    thread = threading.Thread(target=scrape)
    thread.start()
    with contextlib.ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(done.set)
        asyncio.run(ask())
    for name in ("aif_request_seconds_count", "aif_requests_begun_total"):
        seen = [scraped.get((name,), 0.0) for scraped in scrapes]
        assert seen == sorted(seen)
    assert values(metrics)["aif_request_seconds_count",] == 160


def test_prometheus_request_log_is_scraped(make: Make, tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 1.0)
    metrics = PrometheusMetrics(log=log)
    engine = make(observers=[metrics, log])
    engine.rank(5)
    log.flush()
    scraped = values(metrics)
    assert scraped["aif_log_requests_total", "end=logged"] == 1
    assert scraped["aif_log_requests_total", "end=dropped"] == 0
    assert scraped["aif_log_bytes_total",] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert scraped["aif_log_waiting",] == 0
