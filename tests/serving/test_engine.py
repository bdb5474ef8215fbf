"""The engine as a whole: nothing compiles on requests, buffers are not shared, figures add up."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations, loads
from aif_jax.errors import ConfigError
from aif_jax.nearline import ItemIndex, Tables
from aif_jax.nearline.row_buffers import RowBuffers
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
from support.served import ENGINE_CONFIG, World


def test_making_an_engine_tells_its_progress(bundle: Bundle, tables: Tables, users: InMemoryUsers) -> None:
    steps: list[tuple[int, int, str]] = []
    Engine(
        bundle, tables, users=users, config=ENGINE_CONFIG, progress=lambda *step: steps.append(step)
    ).close()
    # For one user and for eight, and for two sizes of candidates, each with two lengths of history.
    assert [step[:2] for step in steps] == [(done, 8) for done in range(1, 9)]
    assert "history 24, 64 candidates" in steps[-1][2]


def test_concurrent_requests_do_not_share_buffers(engine: Engine, world: World) -> None:
    requests = []
    for seed in range(12):
        ids, pair = world.candidates(30 + 3 * seed, seed=seed)
        requests.append((seed % 10, {"hour": seed}, ids, pair))
    expected = [engine.begin(user, context).rank(ids, pair) for user, context, ids, pair in requests]
    wrong: list[str] = []
    barrier = threading.Barrier(6)

    def worker(number: int) -> None:
        rng = np.random.default_rng(number)
        barrier.wait()
        for _ in range(60):
            chosen = int(rng.integers(len(requests)))
            user, context, ids, pair = requests[chosen]
            ranking = engine.begin(user, context).rank(ids, pair)
            if ranking.scores.tolist() != expected[chosen].scores.tolist():
                wrong.append(f"request {chosen}")

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_requests_read_whole_rows_while_items_change(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World
) -> None:
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    changing = Tables(index, tables.behaviours)
    dearer = {**world.columns, "price": world.columns["price"] + 4.0}
    ids, pair = world.candidates(40)
    stop = threading.Event()

    def writer() -> None:
        while not stop.is_set():
            index.upsert(world.ids, dearer, world.content)
            index.upsert(world.ids, world.columns, world.content)

    with Engine(bundle, changing, users=users, config=ENGINE_CONFIG) as engine:
        seen: dict[int, set[float]] = {int(i): set() for i in ids}
        allowed: dict[int, set[float]] = {int(i): set() for i in ids}
        for columns in (world.columns, dearer):
            index.upsert(world.ids, columns, world.content)
            for part in (slice(0, 20), slice(20, 40)):
                chosen = {name: values[part] for name, values in pair.items()}
                ranking = engine.begin(6).rank(ids[part], chosen, k=20)
                for item, score in zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True):
                    allowed[item].add(score)
        thread = threading.Thread(target=writer)
        thread.start()
        try:
            for _ in range(150):
                ranking = engine.begin(6).rank(ids, pair, k=20)
                for item, score in zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True):
                    seen[item].add(score)
        finally:
            stop.set()
            thread.join()
    assert all(scores <= allowed[item] for item, scores in seen.items())
    assert sum(len(scores) == 2 for scores in seen.values()) > 5  # both versions were met


def test_staging_lends_a_buffer_to_one_call_at_a_time() -> None:
    staging = RowBuffers({"h": (np.dtype(np.float32), (3,)), "sig": (np.dtype(np.uint8), (5,))})
    first, second = staging.lend(16), staging.lend(16)
    assert first is not second
    assert first.columns["h"].shape == (16, 3)
    assert first.columns["sig"].dtype == np.uint8
    assert all(column.ctypes.data % 64 == 0 for column in first.columns.values())
    staging.give_back(first)
    assert staging.lend(16) is first
    assert staging.lend(32).size == 32


def test_the_report_adds_up(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(64)
    report = engine.begin(7).rank(ids, pair).report
    parts = report.retrieval_ms + report.wait_ms + report.prepare_ms + report.gather_ms + report.stage_ms
    assert 0 < parts <= report.total_ms
    assert report.user_fetch_ms <= report.user_side_ms
    assert 0 <= report.hidden_ms <= report.user_side_ms
    assert json.loads(json.dumps(report.to_json()))["version"] == engine.version


def test_stats_count_what_happened(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World
) -> None:
    with Engine(bundle, tables, users=users, config=ENGINE_CONFIG) as engine:
        ids, _ = world.candidates(10)
        for _ in range(3):
            engine.begin(4).rank(np.concatenate([ids, ids[:2], [np.uint64(1)]]))
        stats = engine.stats()
    requests = stats["requests"]
    assert (requests["begun"], requests["ranked"]) == (3, 3)
    assert (requests["duplicates"], requests["missing_items"], requests["candidates"]) == (6, 3, 39)
    assert (requests["user_state:computed"], requests["user_state:hit"]) == (1, 2)
    assert stats["item_index"]["rows"] == len(world.ids)
    assert stats["compilations"] == 0
    assert stats["compilation_cache"] == {}


def test_stats_tell_what_the_compilation_cache_did(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, tmp_path: Path
) -> None:
    cached = Bundle.load(bundle.path, compilation_cache=tmp_path)
    before = compilations(), loads()
    # Sizes that no other test compiles.
    config = EngineConfig(k=10, shapes=Shapes(candidates=(208, 240), histories=(24,)))
    with Engine(cached, tables, users=users, config=config) as engine:
        stats = engine.stats()
    did = stats["compilation_cache"]
    assert did["missing"] == did["saved"] == compilations() - before[0] >= 2
    assert (did["loaded"], did["broken"], did["not_saved"]) == (0, 0, 0)
    assert len(list(Path(did["directory"]).glob("*.executable"))) == did["saved"]
    assert stats["programs"] == {"compiled": compilations(), "loaded": before[1]}


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
        (lambda: EngineConfig(max_memory_bytes=0), "max_memory_bytes: got 0, expected a whole number"),
        (lambda: UserStateCache(max_bytes=-1), r"user_states\.max_bytes: got -1"),
        (
            lambda: UserStateCache(ttl_s=0.0),
            r"user_states\.ttl_s: got 0\.0, expected more than 0 seconds, or None",
        ),
        (lambda: Threads(blocking=0), r"threads\.blocking: got 0"),
        (lambda: Threads(max_queued=2.5), r"threads\.max_queued: got 2\.5"),
        (lambda: EngineConfig(max_pending_age_s=0.0), r"max_pending_age_s: got 0\.0"),
    ],
)
def test_configs_that_cannot_work(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(bundle, tables, users=users, config=make())


@pytest.mark.parametrize("sizes", [(1,), (4, 2), (2, 2), (2.5,), (True,), ("4",), None])
def test_numbers_of_users_that_make_no_sense(sizes: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"shapes\.users: got .*, expected (.*at least 2|.*ascending|a tuple)"
    ):
        Shapes(users=sizes)


def test_a_plain_word_stands_for_a_group_of_settings() -> None:
    config = EngineConfig(missing_items="error", item_rows="host")
    assert config == EngineConfig(missing_items=MissingItems("error"), item_rows=ItemRows("host"))
    assert EngineConfig() == EngineConfig(missing_items="drop", item_rows="auto", threads=Threads())
    kept = dataclasses.replace(config, missing_items=MissingItems("compute", max_items=2), k=3)
    assert (kept.missing_items.max_items, kept.item_rows.where, kept.k) == (2, "host", 3)


def test_default_sizes_follow_the_bundle() -> None:
    assert EngineConfig().sizes(k_max=500, long_length=256) == Sizes(
        100, (512, 1024, 2048, 4096), (64, 256), (1, 8)
    )
    assert EngineConfig(k=1).sizes(k_max=1, long_length=1).histories == (1,)
    assert EngineConfig().sizes(k_max=5000, long_length=8).candidates == (5008,)
    assert EngineConfig().sizes(k_max=20, long_length=8).k == 20
