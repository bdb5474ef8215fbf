"""Memory that generations need: as reported, and bounded before another one is made."""

import dataclasses
import gc
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.config import PRECISIONS, ModelConfig
from aif_jax.errors import PublishError
from aif_jax.features import Categorical, Hashing, Schema
from aif_jax.models.folded_shapes import FoldedShapes
from aif_jax.nearline.item_index import RANKABLE_COLUMN
from aif_jax.nearline.store import row_layout
from aif_jax.serving import EngineConfig, PublishChecks, UserStateCache
from aif_jax.serving.generation import Generation
from support.served import ENGINE_CONFIG, Make, Served, World, tables_of

DESIGN = Path(__file__).resolve().parent.parent.parent / "DESIGN.md"


def budget(number: int | None) -> EngineConfig:
    states = UserStateCache(max_bytes=2**20)
    return dataclasses.replace(ENGINE_CONFIG, max_memory_bytes=number, user_states=states)


def parts_of(served: Served) -> dict[str, int]:
    bundle, (index, behaviours) = served
    parts = {
        "item_index": index.stats()["total_bytes"], "behaviour_table": behaviours.stats()["total_bytes"],
        "user_states": 2**20, "weights": sum(np.asarray(array).nbytes for array in bundle.weights.values()),
    }  # fmt: skip
    return {**parts, "total": sum(parts.values())}


def test_engine_stats_memory_counts_bytes_of_each_generation(
    make: Make, one: Served, two: Served, world: World
) -> None:
    engine = make(config=budget(None))
    memory = engine.stats()["memory"]
    assert memory == {
        "generations": {"running": parts_of(one)}, "total_bytes": parts_of(one)["total"],
        "max_bytes": None,
    }  # fmt: skip
    assert min(parts_of(one).values()) > 0
    engine.publish(*two)
    held = engine.begin(5)
    memory = engine.stats()["memory"]
    assert memory["generations"] == {"running": parts_of(two), "previous": parts_of(one)}
    assert memory["total_bytes"] == parts_of(two)["total"] + parts_of(one)["total"]
    rebuilt = tables_of(two[0], world)
    engine.publish(*rebuilt)
    memory = engine.stats()["memory"]
    assert set(memory["generations"]) == {"running", "previous", "retired_1"}
    # The second and the third share their weights; the first is the way back, since its version is another.
    each = parts_of(one)["total"] + parts_of(two)["total"] + parts_of(rebuilt)["total"]
    assert memory["total_bytes"] == each - parts_of(two)["weights"]
    held.cancel()
    assert set(engine.stats()["memory"]["generations"]) == {"running", "previous"}
    assert engine.drop_previous() == one[0].version
    assert engine.drop_previous() is None
    assert set(engine.stats()["memory"]["generations"]) == {"running"}
    with pytest.raises(PublishError, match="no generation to go back to"):
        engine.rollback()
    assert len(engine.rank(5)) == 10


def test_publish_beyond_memory_budget_is_refused_before_anything_is_made(
    make: Make, one: Served, two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = parts_of(one)["total"] + parts_of(two)["total"]
    engine = make(config=budget(needed - 1))
    with monkeypatch.context() as patched:
        patched.setattr(Generation, "warm", lambda *_: pytest.fail("it was made"))
        with pytest.raises(PublishError) as error:
            engine.publish(*two, checks=PublishChecks(coverage_within_s=60.0))
    for name, parts in (("next", parts_of(two)), ("running", parts_of(one))):
        stated = re.search(rf"{name}: ([^;(]*?)(; |\. \()", str(error.value))
        assert stated, error.value
        assert stated[1] == ", ".join(f"{part.replace('_', ' ')} {n:,}" for part, n in parts.items())
    assert f"need {needed:,} bytes, but max_memory_bytes is {needed - 1:,}" in str(error.value)
    assert engine.version == one[0].version
    assert make(config=budget(needed)).publish(*two).version == two[0].version


def test_drop_previous_makes_room_for_a_publish(make: Make, one: Served, two: Served) -> None:
    engine = make(config=budget(parts_of(one)["total"] + parts_of(two)["total"]))
    engine.publish(*two)
    with pytest.raises(PublishError, match=r"previous: item index .*call drop_previous"):
        engine.publish(*two)
    engine.drop_previous()
    # What is there already is not needed twice.
    assert engine.publish(*two).version == two[0].version


@pytest.mark.parametrize("held", [False, True])
def test_retired_generation_is_freed_when_its_last_request_is_over(
    make: Make, one: Served, two: Served, world: World, held: bool
) -> None:
    first = tables_of(one[0], world)
    tables, engine = weakref.ref(first[1].items), make(first)
    del first
    pending = engine.begin(5) if held else None
    engine.publish(*two)
    engine.drop_previous()
    gc.collect()
    assert (tables() is not None) == held
    if pending is not None:
        assert set(engine.stats()["memory"]["generations"]) == {"running", "retired_1"}
        assert len(pending.rank(world.ids[:20])) == 10
        del pending
        gc.collect()
        assert tables() is None


SCHEMA = Schema(
    user=(), item=(Categorical(name="item", encoder=Hashing(buckets=64)),), behaviour_types=("click",),
    context=(), pair=(), category="item", item_id="item",
)  # fmt: skip


LARGE = ModelConfig(
    width=64, hidden=128, head_layers=(64,), item_layers=(128,), content_width=64, value_width=64, bridges=16
)
"""The sizes of the benchmarks."""


def columns(spec: Any, **more: Any) -> Any:
    return {name: (np.dtype(leaf.dtype), leaf.shape[1:]) for name, leaf in spec.items()} | more


def test_row_layout_bytes_of_an_item_are_those_of_the_design(index: Any, behaviours: Any) -> None:
    text = DESIGN.read_text(encoding="utf-8")
    for config in (ModelConfig(), LARGE):
        for precision in PRECISIONS:
            shapes = FoldedShapes(config, SCHEMA, precision)
            rankable = {RANKABLE_COLUMN: (np.dtype(np.uint8), (1,))}
            row = row_layout(columns(shapes.item_spec(1), **rankable)).row_bytes
            behaviour = row_layout(columns(shapes.behaviour_spec(1))).row_bytes
            assert f"| {config.width}, {config.hidden} | {precision} | {row:,} | {behaviour:,} |" in text
    # What the page computes is what a table stores.
    for table in (index, behaviours):
        assert row_layout(table.store.columns).row_bytes == table.store.cache.layout.row_bytes
    assert set(index.store.columns) == set(columns(FoldedShapes(index.bundle.config, index.bundle.schema)
        .item_spec(1), rankable=None))  # fmt: skip
