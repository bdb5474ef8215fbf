"""Real-time stage over device rows: the scores, order and counts of gathered rows."""

import re
from typing import Any

import jax
import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations
from aif_jax.errors import ConfigError, RequestError, UnknownItemError, VersionMismatchError
from aif_jax.features import EncodeReport
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.nearline.change_log import Rows
from aif_jax.nearline.device_rows import DeviceRows, RowPacking
from aif_jax.serving import Engine, EngineConfig, Shapes
from aif_jax.serving.candidates import EncodedCandidates, check_candidates
from aif_jax.serving.device_stage import DeviceStage, stage_over_table
from aif_jax.serving.generation import Generation
from aif_jax.serving.stage import Scored
from aif_jax.serving.user_program import compute_state
from support.served import K_MAX, World

BUCKETS, LENGTHS = (32, 64), (8, 24)


SHAPES = Shapes(candidates=BUCKETS, histories=LENGTHS, users=())


def tables_over(bundle: Bundle, world: World) -> Tables:
    return Tables(
        ItemIndex.build(bundle, world.ids, world.columns, world.content),
        BehaviourTable.build(bundle, world.ids, world.columns, world.content),
    )


class Both:
    """One catalogue served from gathered rows and from device rows."""

    def __init__(self, bundle: Bundle, world: World, missing: Any = "drop"):
        self.bundle, self.world = bundle, world
        tables = tables_over(bundle, world)
        self.index = tables.items
        self.generation = Generation(bundle, tables, EngineConfig(shapes=SHAPES, missing_items=missing))
        self.generation.warm()
        self.rows = DeviceRows(self.index)
        self.stage = DeviceStage(self.rows, bundle, BUCKETS, LENGTHS, default=missing == "default")

    def shared(self, made_by: Generation | DeviceStage, user: int, length: int) -> Any:
        state = compute_state(user, self.world.record(user, length), length, self.generation)
        return made_by.prepare(state.leaves, length, self.bundle.schema.encode_one("context", {"hour": user}))

    def checked(self, ids: Any, pair: Any) -> EncodedCandidates:
        return check_candidates(ids, pair, self.bundle.schema, self.generation.raw_pair, EncodeReport())

    def score(self, user: int, length: int, ids: Any, pair: Any, size: int, **options: Any) -> Scored:
        candidates = self.checked(ids, pair)
        shared = self.shared(self.stage, user, length)
        return self.stage.score(shared, candidates.keys, candidates.pair, size, **options)

    def compare(self, user: int, length: int, ids: Any, pair: Any) -> Scored:
        """Rank in one call both ways, and hold them together bit for bit."""
        shared = self.shared(self.generation, user, length)
        expected = self.generation.score(shared, self.checked(ids, pair), K_MAX)
        scored = self.score(user, length, ids, pair, expected.bucket)
        np.testing.assert_array_equal(scored.order[:K_MAX], expected.order)
        np.testing.assert_array_equal(scored.scores[:K_MAX], expected.scores)
        np.testing.assert_array_equal(scored.heads[:K_MAX], expected.heads)
        for name in ("missing", "not_rankable", "unscored", "bucket", "calls"):
            assert getattr(scored, name) == getattr(expected, name)
        return scored


@pytest.fixture(scope="module")
def portable(bundle: Bundle) -> Bundle:
    return Bundle.load(bundle.path, prefer="portable")


@pytest.fixture(scope="module")
def both(portable: Bundle, world: World) -> Any:
    made = Both(portable, world)
    yield made
    made.rows.close()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("n", [1, 16, 31, 32, 33, 64])
def test_device_stage_any_size_scores_as_gathered_rows(both: Both, n: int, length: int) -> None:
    for user in range(3):
        ids, pair = both.world.candidates(n, seed=user)
        scored = both.compare(user, length, ids, pair)
        assert len(scored.order) == min(n, K_MAX)


def test_device_stage_missing_and_unrankable_candidates_are_left_out_and_counted(both: Both) -> None:
    ids, pair = both.world.candidates(40, seed=5)
    ids = ids.copy()
    ids[[0, 7, 39]] += np.uint64(1)
    both.index.set_rankable(ids[[1, 2]], False)
    spoilt, _ = both.index.gather(ids[3:4])
    whole = {name: column.copy() for name, column in spoilt.items()}
    spoilt["h"][:] = np.nan
    both.index.replay(Rows(ids[3:4], spoilt, None))
    scored = both.compare(1, 24, ids, pair)
    assert (scored.missing, scored.not_rankable, scored.unscored) == (3, 2, 1)
    assert not set(scored.order.tolist()) & {0, 7, 39, 1, 2, 3}
    both.index.set_rankable(ids[[1, 2]], True)
    both.index.replay(Rows(ids[3:4], whole, None))
    scored = both.compare(1, 24, ids, pair)
    assert (scored.missing, scored.not_rankable, scored.unscored) == (3, 0, 0)


def test_device_stage_default_policy_ranks_missing_items(portable: Bundle, world: World) -> None:
    both = Both(portable, world, missing="default")
    ids, pair = world.candidates(20, seed=3)
    ids = ids.copy()
    ids[[2, 4]] += np.uint64(1)
    scored = both.compare(2, 8, ids, pair)
    assert scored.missing == 2
    assert {2, 4} < set(scored.order.tolist())


def test_device_stage_missing_candidates_are_refused_before_dispatch(both: Both) -> None:
    ids, pair = both.world.candidates(20)
    refused: list[Any] = []

    def refuse(found: np.ndarray) -> None:
        refused.append(found.tolist())
        raise UnknownItemError("there is one missing")

    assert len(both.score(1, 8, ids, pair, 32, refuse=refuse).order) == 20
    ids = ids.copy()
    ids[5] += np.uint64(1)
    with pytest.raises(UnknownItemError, match="there is one missing"):
        both.score(1, 8, ids, pair, 32, refuse=refuse)
    assert refused == [[i != 5 for i in range(20)]]


def test_device_stage_index_update_reaches_next_request(portable: Bundle, world: World) -> None:
    both = Both(portable, world)
    ids, pair = world.candidates(30, seed=9)
    before = both.compare(1, 24, ids, pair)
    positions = np.array([np.flatnonzero(world.ids == i)[0] for i in ids[:4]])
    other = {name: [column[p] for p in positions[::-1]] for name, column in world.columns.items()}
    both.index.upsert(ids[:4], other, world.content[positions[::-1]])
    after = both.compare(1, 24, ids, pair)
    assert not np.array_equal(before.scores, after.scores)
    both.index.delete(ids[10:12])
    assert both.compare(1, 24, ids, pair).missing == 2


def test_device_stage_growth_and_other_bundle_compile_nothing_on_requests(
    portable: Bundle, world: World, other_bundle: Bundle
) -> None:
    both = Both(portable, world)
    ids, pair = world.candidates(30)
    both.score(1, 8, ids, pair, 32)
    compiled = compilations()
    columns = {name: column[:20] for name, column in world.columns.items()}
    both.index.upsert(world.ids[:20], columns, world.content[:20])
    both.index.delete(world.ids[5:9])
    both.score(1, 24, ids, pair, 64)
    assert compilations() == compiled

    # Growth compiles for the writer: afterwards requests find everything ready.
    assert both.rows.stats()["capacity"] == 256
    more = np.arange(300, dtype=np.uint64)
    both.index.upsert(more, {"item": more.astype(np.int64)})
    stats = both.rows.stats()
    assert (stats["capacity"], stats["growths"]) == (512, 1)
    assert stats["grown_in_s"] > 0
    grown = compilations()
    assert grown > compiled
    both.compare(1, 24, ids, pair)
    both.compare(2, 8, more[:33], {"bid": np.ones(33), "channel": ["ann"] * 33})
    assert compilations() == grown

    # Another bundle of the architecture, at either capacity. Its index runs programs that exist already.
    other = Both(Bundle.load(other_bundle.path, prefer="portable"), world)
    other.compare(1, 24, ids, pair)
    assert compilations() == grown
    for one in (both, other):
        one.rows.close()


def test_device_stage_rows_of_another_version_are_refused(both: Both, other_bundle: Bundle) -> None:
    with pytest.raises(VersionMismatchError, match="make them from an item index of this bundle"):
        DeviceStage(both.rows, other_bundle, BUCKETS, LENGTHS)


def test_device_stage_size_not_compiled_is_refused(both: Both) -> None:
    ids, pair = both.world.candidates(40)
    with pytest.raises(ConfigError, match="got 48 candidates and a history of 8, expected one of"):
        both.score(1, 8, ids, pair, 48)
    with pytest.raises(RequestError, match="is longer than 32"):
        both.score(1, 8, ids, pair, 32)


def test_device_stage_program_for_another_platform_is_refused(
    portable: Bundle, index: ItemIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DeviceRows(index) as rows:

        class Abacus:
            platform, id = "abacus", 0

        monkeypatch.setattr(rows, "device", Abacus())
        with pytest.raises(ConfigError, match="but the item rows are on abacus"):
            DeviceStage(rows, portable, BUCKETS, LENGTHS)


def test_device_stage_native_program_is_refused(bundle: Bundle, index: ItemIndex) -> None:
    assert bundle.kind == "native"
    with DeviceRows(index) as rows, pytest.raises(ConfigError, match="prefer='portable'"):
        DeviceStage(rows, bundle, BUCKETS, LENGTHS)


@pytest.mark.parametrize("missing", ["drop", "default", "error"])
def test_engine_device_rows_rank_as_host_rows(portable: Bundle, world: World, missing: Any) -> None:
    tables = tables_over(portable, world)
    index = tables.items
    users = {user: world.record(user, 20) for user in range(3)}
    ids, pair = world.candidates(100, seed=8)
    if missing != "error":
        ids = ids.copy()
        ids[[3, 70]] += np.uint64(1)

    def run(rows: Any) -> list[Any]:
        config = EngineConfig(shapes=SHAPES, missing_items=missing, item_rows=rows)
        with Engine(portable, tables, users=users.get, config=config) as engine:
            rankings = [engine.begin(user).rank(ids, pair=pair, k=K_MAX) for user in users]
            assert engine.stats()["compilations"] == 0
            index.set_rankable(ids[:50], False)
            rankings.append(engine.begin(0).rank(ids, pair=pair, k=K_MAX))
            index.set_rankable(ids[:50], True)
            if missing == "error":
                with pytest.raises(UnknownItemError, match="1 of 1 have no row"):
                    engine.begin(0).rank(ids[:1] + np.uint64(1))
            return rankings

    for device, host in zip(run("device"), run("host"), strict=True):
        np.testing.assert_array_equal(device.ids, host.ids)
        np.testing.assert_array_equal(device.scores, host.scores)
        for name in ("missing_items", "not_rankable", "unscored", "calls"):
            assert getattr(device.report, name) == getattr(host.report, name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_device_stage_lowered_for_accelerators_has_no_custom_call(
    index: ItemIndex, portable: Bundle, platform: str
) -> None:
    with DeviceRows(index) as rows:
        packing = RowPacking(rows.columns, platform)
    assert packing.words % (128 if platform == "tpu" else 16) == 0
    program = portable.program("stage")
    dims = {"n": 64, "l": 24}
    weights = tuple(
        jax.ShapeDtypeStruct(portable.weights[name].shape, portable.weights[name].dtype)
        for name in program.signature.weights
    )
    table = jax.ShapeDtypeStruct((1024, packing.words), np.int32)
    others = tuple(
        operand.at(dims)
        for operand in program.signature.inputs
        if not operand.path.startswith("rows/") and operand.path != "valid"
    )
    stage = jax.jit(stage_over_table(program, packing))
    lowered = stage.trace(weights, table, jax.ShapeDtypeStruct((64,), np.int32), others).lower(
        lowering_platforms=(platform,)
    )
    text = lowered.as_text()
    assert "aif_" not in text
    assert f"tensor<1024x{packing.words}xi32>, tensor<64x1xi32>) -> tensor<64x{packing.words}xi32>" in text
    # Signatures meet in integers, not in float32 at the highest precision.
    assert re.search(r"dot_general .*tensor<[0-9?x]+xi8>\) -> tensor<[0-9?x]+xi32>", text)
