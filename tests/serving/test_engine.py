"""The engine as a whole: progress, concurrency, report, statistics, versions."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations, loads
from aif_jax.errors import (
    VersionMismatchError,
)
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.serving import (
    Engine,
    InMemoryUsers,
    Shapes,
)
from support.served import Make, World


def test_engine_made_reports_progress(make: Make) -> None:
    steps: list[tuple[int, int, str]] = []
    make(progress=lambda *step: steps.append(step))
    # For one user and for eight, and for two sizes of candidates, each with two lengths of history.
    assert [step[:2] for step in steps] == [(done, 8) for done in range(1, 9)]
    assert "history 24, 64 candidates" in steps[-1][2]


def test_engine_concurrent_requests_do_not_share_buffers(engine: Engine, world: World) -> None:
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


def test_engine_items_changing_are_read_as_whole_rows(
    make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    dearer = {**world.columns, "price": world.columns["price"] + 4.0}
    ids, pair = world.candidates(40)
    stop = threading.Event()

    def writer() -> None:
        while not stop.is_set():
            index.upsert(world.ids, dearer, world.content)
            index.upsert(world.ids, world.columns, world.content)

    with make((bundle, tables._replace(items=index))) as engine:
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


def test_report_parts_add_up_to_total(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(64)
    report = engine.begin(7).rank(ids, pair).report
    parts = report.retrieval_ms + report.wait_ms + report.prepare_ms + report.gather_ms + report.stage_ms
    assert 0 < parts <= report.total_ms
    assert report.user_fetch_ms <= report.user_side_ms
    assert 0 <= report.hidden_ms <= report.user_side_ms
    assert json.loads(json.dumps(report.to_json()))["version"] == engine.version


def test_engine_stats_count_requests_and_rows(make: Make, world: World) -> None:
    engine, (ids, _) = make(), world.candidates(10)
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


@pytest.mark.usefixtures("no_cache_of_jax")
def test_engine_stats_count_compilation_cache_entries(
    make: Make, bundle: Bundle, tables: Tables, tmp_path: Path
) -> None:
    cached = Bundle.load(bundle.path, compilation_cache=tmp_path)
    before = compilations(), loads()
    # Sizes that no other test compiles.
    shapes = Shapes(candidates=(208, 240), histories=(24,), users=())
    stats = make((cached, tables), shapes=shapes).stats()
    did = stats["compilation_cache"]
    assert did["missing"] == did["saved"] == compilations() - before[0] >= 2
    assert (did["loaded"], did["broken"], did["not_saved"]) == (0, 0, 0)
    assert len(list(Path(did["directory"]).glob("*.executable"))) == did["saved"]
    assert stats["programs"] == {"compiled": compilations(), "loaded": before[1]}


def test_engine_tables_of_another_version_are_refused(
    bundle: Bundle, other_bundle: Bundle, tables: Tables, users: InMemoryUsers
) -> None:
    stale_index = ItemIndex.build(other_bundle, [1], {})
    with pytest.raises(VersionMismatchError, match=f"item index.*{other_bundle.version}.*{bundle.version}"):
        Engine(bundle, tables._replace(items=stale_index), users=users)
    stale_table = BehaviourTable.build(other_bundle, [1], {})
    with pytest.raises(
        VersionMismatchError, match=f"behaviour table.*{other_bundle.version}.*{bundle.version}"
    ):
        Engine(bundle, tables._replace(behaviours=stale_table), users=users)
