"""Settings of an engine: what is refused, and defaults."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import (
    ConfigError,
)
from aif_jax.nearline import Tables
from aif_jax.serving import (
    Engine,
    EngineConfig,
    InMemoryUsers,
    ItemRows,
    MissingItems,
    Shapes,
    Threads,
    UserStateCache,
)
from aif_jax.serving.config import Sizes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EngineConfig(k=0), "k: got 0, expected a whole number of at least 1, or None"),
        (
            lambda: EngineConfig(k=21),
            "k: got 21, expected at most the bundle's k_max=20; lower it, or export",
        ),
        (
            lambda: EngineConfig(k=5, shapes=Shapes(candidates=(16,))),
            r"shapes\.candidates: got \[16\], expected at least the bundle's k_max=20",
        ),
        (lambda: Shapes(candidates=(40,)), r"shapes\.candidates: got 40, expected a multiple of 16"),
        (lambda: Shapes(candidates=(64, 32)), r"shapes\.candidates: got \(64, 32\), .* ascending"),
        (lambda: Shapes(candidates=()), r"shapes\.candidates: got \(\), expected a tuple of 1 or more"),
        (lambda: Shapes(candidates=64), r"shapes\.candidates: got 64, expected a tuple"),
        (
            lambda: EngineConfig(k=5, shapes=Shapes(histories=(8,))),
            r"shapes\.histories: got \(8,\), expected the model's long_length=24 last",
        ),
        (lambda: EngineConfig(shapes=(32,)), r"shapes: got \(32,\), expected Shapes\(\.\.\.\)"),
        (
            lambda: EngineConfig(missing_items="guess"),
            r"missing_items\.policy: got 'guess', expected 'drop' or",
        ),
        (lambda: MissingItems("compute", max_items=0), r"missing_items\.max_items: got 0"),
        (
            lambda: MissingItems("compute", max_wait_ms=0.0),
            r"missing_items\.max_wait_ms: got 0\.0, .* more than 0",
        ),
        (
            lambda: MissingItems("compute", retry_s=-1.0),
            r"missing_items\.retry_s: got -1\.0, expected 0 or more",
        ),
        (lambda: EngineConfig(item_rows="guess"), r"item_rows\.where: got 'guess'"),
        (lambda: ItemRows("device", device_capacity=-1), r"item_rows\.device_capacity: got -1"),
        (
            lambda: EngineConfig(unknown_user="guess"),
            "unknown_user: got 'guess', expected 'error' or 'default'",
        ),
        (
            lambda: EngineConfig(unknown_columns="guess"),
            "unknown_columns: got 'guess', expected 'error' or 'ignore'",
        ),
        (
            lambda: EngineConfig(on_deadline="never"),
            "on_deadline: got 'never', expected 'degrade' or 'error'",
        ),
        (lambda: EngineConfig(on_user_source_error=None), "on_user_source_error: got None"),
        (
            lambda: EngineConfig(max_memory_bytes=0),
            "max_memory_bytes: got 0, expected a whole number of at least 1",
        ),
        (lambda: UserStateCache(max_bytes=-1), r"user_states\.max_bytes: got -1"),
        (
            lambda: UserStateCache(ttl_s=0.0),
            r"user_states\.ttl_s: got 0\.0, expected more than 0 seconds, or None",
        ),
        (lambda: Threads(blocking=0), r"threads\.blocking: got 0"),
        (lambda: Threads(max_queued=2.5), r"threads\.max_queued: got 2\.5"),
        (
            lambda: Threads(max_queued=10**400),
            r"threads\.max_queued: got an integer of 1,329 bits, .*below 2\^63",
        ),
        (lambda: UserStateCache(max_bytes=2**63), r"user_states\.max_bytes: got 9223372036854775808"),
        (lambda: UserStateCache(ttl_s=10**400), r"user_states\.ttl_s: got an integer of 1,329 bits"),
        (lambda: EngineConfig(max_pending_age_s=0.0), r"max_pending_age_s: got 0\.0"),
    ],
)
def test_engine_config_impossible_value_is_refused(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(bundle, tables, users=users, config=make())


@pytest.mark.parametrize("sizes", [(1,), (4, 2), (2, 2), (2.5,), (True,), ("4",), None])
def test_shapes_impossible_user_counts_are_refused(sizes: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"shapes\.users: got .*, expected (.*at least 2|.*ascending|a tuple)"
    ):
        Shapes(users=sizes)


def test_engine_config_plain_word_stands_for_group() -> None:
    config = EngineConfig(missing_items="error", item_rows="host")
    assert config == EngineConfig(missing_items=MissingItems("error"), item_rows=ItemRows("host"))
    assert EngineConfig() == EngineConfig(missing_items="drop", item_rows="auto", threads=Threads())
    kept = dataclasses.replace(config, missing_items=MissingItems("compute", max_items=2), k=3)
    assert (kept.missing_items.max_items, kept.item_rows.where, kept.k) == (2, "host", 3)


def test_engine_config_default_sizes_follow_the_bundle() -> None:
    assert EngineConfig().sizes(k_max=500, long_length=256) == Sizes(
        100, (512, 1024, 2048, 4096), (64, 256), (1, 8)
    )
    assert EngineConfig(k=1).sizes(k_max=1, long_length=1).histories == (1,)
    assert EngineConfig().sizes(k_max=5000, long_length=8).candidates == (5008,)
    assert EngineConfig().sizes(k_max=20, long_length=8).k == 20
