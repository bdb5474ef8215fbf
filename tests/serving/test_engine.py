"""The engine as a whole: nothing compiles on requests, buffers are not shared, figures add up."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations, loads
from aif_jax.errors import ConfigError
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving import Engine, EngineConfig, InMemoryUsers
from aif_jax.serving.config import Sizes
from aif_jax.serving.staging import Staging
from served import ENGINE_CONFIG, World


def test_making_an_engine_tells_its_progress(
    bundle: Bundle, index: ItemIndex, behaviours: BehaviourTable, users: InMemoryUsers
) -> None:
    steps: list[tuple[int, int, str]] = []
    Engine(
        bundle,
        index,
        behaviours,
        users=users,
        config=ENGINE_CONFIG,
        progress=lambda *step: steps.append(step),
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
    bundle: Bundle, behaviours: BehaviourTable, users: InMemoryUsers, world: World
) -> None:
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    dearer = {**world.columns, "price": world.columns["price"] + 4.0}
    ids, pair = world.candidates(40)
    stop = threading.Event()

    def writer() -> None:
        while not stop.is_set():
            index.upsert(world.ids, dearer, world.content)
            index.upsert(world.ids, world.columns, world.content)

    with Engine(bundle, index, behaviours, users=users, config=ENGINE_CONFIG) as engine:
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
    staging = Staging({"h": (np.dtype(np.float32), (3,)), "sig": (np.dtype(np.uint8), (5,))})
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
    bundle: Bundle, index: ItemIndex, behaviours: BehaviourTable, users: InMemoryUsers, world: World
) -> None:
    with Engine(bundle, index, behaviours, users=users, config=ENGINE_CONFIG) as engine:
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
    bundle: Bundle, index: ItemIndex, behaviours: BehaviourTable, users: InMemoryUsers, tmp_path: Path
) -> None:
    cached = Bundle.load(bundle.path, compilation_cache=tmp_path)
    before = compilations(), loads()
    config = EngineConfig(k=10, buckets=(208, 240), long_buckets=(24,))  # sizes that no other test compiles
    with Engine(cached, index, behaviours, users=users, config=config) as engine:
        stats = engine.stats()
    did = stats["compilation_cache"]
    assert did["missing"] == did["saved"] == compilations() - before[0] >= 2
    assert (did["loaded"], did["broken"], did["not_saved"]) == (0, 0, 0)
    assert len(list(Path(did["directory"]).glob("*.executable"))) == did["saved"]
    assert stats["programs"] == {"compiled": compilations(), "loaded": before[1]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 21}, "k: got 21, but the bundle was exported for at most k_max=20"),
        ({"k": 5, "buckets": (16,)}, "the smallest is 16, expected at least the bundle's k_max of 20"),
        ({"k": 5, "buckets": (40,)}, "multiples of 16"),
        ({"k": 5, "buckets": (64, 32)}, "ascending"),
        ({"k": 5, "buckets": ()}, "one or more"),
        ({"k": 5, "long_buckets": (8,)}, "expected the model's long_length of 24"),
        ({"k": 5, "missing_items": "guess"}, "missing_items: got 'guess'"),
        ({"k": 5, "unknown_user": "guess"}, "unknown_user: got 'guess'"),
        ({"k": 5, "user_state_bytes": -1}, "user_state_bytes: got -1"),
        ({"k": 5, "user_state_ttl_s": 0.0}, "user_state_ttl_s: got 0.0"),
        ({"k": 5, "blocking_threads": 0}, "blocking_threads: got 0"),
        ({"k": 5, "max_pending_age_s": 0.0}, "max_pending_age_s: got 0.0"),
    ],
)
def test_configs_that_cannot_work(
    bundle: Bundle,
    index: ItemIndex,
    behaviours: BehaviourTable,
    users: InMemoryUsers,
    arguments: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(bundle, index, behaviours, users=users, config=EngineConfig(**arguments))


def test_default_buckets_follow_the_bundle() -> None:
    assert EngineConfig().sizes(k_max=500, long_length=256) == Sizes(
        100, (512, 1024, 2048, 4096), (64, 256), (1, 8)
    )
    assert EngineConfig(k=1).sizes(k_max=1, long_length=1).long_buckets == (1,)
    assert EngineConfig().sizes(k_max=5000, long_length=8).buckets == (5008,)
    assert EngineConfig().sizes(k_max=20, long_length=8).k == 20
