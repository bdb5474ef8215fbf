"""Prometheus metrics of a follower."""

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from aif_jax.bundle import Bundle
from aif_jax.nearline import Archive, Delete, Delivery, Follower, ItemIndex, Upsert
from aif_jax.nearline.change_log import Position
from aif_jax.observe.followers import FollowerMetrics
from support.served import World


class Once:
    """Delivers three updates, one of them bad, all written a minute ago."""

    def __init__(self, world: World):
        updates = (Upsert(world.ids[:2], {"price": [1.0, 2.0]}), Upsert(world.ids[2:3], {"colour": ["red"]}))
        self._left = [
            Delivery((number,), update, time.time() - 60)
            for number, update in enumerate((*updates, Delete(world.ids[1:2])), 1)
        ]

    def read(self, after: Position | None, wait_s: float) -> list[Delivery] | None:
        some, self._left = self._left, []
        return some or None

    def acknowledge(self, position: Position) -> None:
        assert position == (3,)


def test_follower_metrics_scrape_shows_updates_and_lag(bundle: Bundle, world: World, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        follower = Follower(Once(world), [archive])
        FollowerMetrics(registry, {"items": follower})
        assert 'aif_follower_updates_total{follower="items"} 0.0' in generate_latest(registry).decode()
        follower.run()
        scraped = generate_latest(registry).decode().splitlines()
    for line in (
        'aif_follower_updates_total{follower="items"} 3.0',
        'aif_follower_upserted_total{follower="items"} 2.0',
        'aif_follower_deleted_total{follower="items"} 1.0',
        'aif_follower_bad_items_total{error="SchemaError",follower="items"} 1.0',
        'aif_follower_set_aside_total{follower="items"} 1.0',
        'aif_follower_dead_letters_dropped_total{follower="items"} 0.0',
        'aif_follower_going{follower="items"} 1.0',
    ):
        assert line in scraped
    (letters,) = [line for line in scraped if line.startswith("aif_follower_dead_letter_bytes{")]
    assert float(letters.split()[1]) == (tmp_path / "dead-letters.jsonl").stat().st_size
    (lag,) = [line for line in scraped if line.startswith("aif_follower_lag_seconds{")]
    assert 59 < float(lag.split()[1]) < 120
