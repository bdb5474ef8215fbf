"""The stage over device rows is the stage over gathered rows: same scores, same order, same counts."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations
from aif_jax.errors import ConfigError, UnknownItemError, VersionMismatchError
from aif_jax.features import EncodeReport
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving import Engine
from aif_jax.serving.candidates import CheckedCandidates, check_candidates
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.device_packing import RowPacking
from aif_jax.serving.device_rows import DeviceRows
from aif_jax.serving.device_stage import DeviceStage, stage_over_table
from aif_jax.serving.stage import StagePart
from aif_jax.serving.stages import Generation
from aif_jax.serving.user_program import compute_state
from aif_jax.serving.user_states import UserState
from served import K_MAX, World

BUCKETS, LONGS = (32, 64), (8, 24)


class Both:
    """One catalogue served from gathered rows and from device rows."""

    def __init__(self, bundle: Bundle, world: World, missing: Any = "drop"):
        self.bundle, self.world = bundle, world
        self.index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
        behaviours = BehaviourTable.build(bundle, world.ids, world.columns, world.content)
        config = EngineConfig(buckets=BUCKETS, long_buckets=LONGS, missing_items=missing)
        self.generation = Generation(bundle, self.index, behaviours, config)
        self.generation.warm()
        self.rows = DeviceRows(self.index)
        self.stage = DeviceStage(self.rows, bundle, BUCKETS, LONGS, default=missing == "default")

    def state(self, user: int, length: int) -> UserState:
        return compute_state(user, self.world.record(user, length), length, self.generation)

    def checked(self, ids: Any, pair: Any) -> CheckedCandidates:
        return check_candidates(ids, pair, self.bundle.schema, self.generation.raw_pair, EncodeReport())

    def part(self, user: int, length: int, ids: Any, pair: Any, size: int, **options: Any) -> StagePart:
        candidates = self.checked(ids, pair)
        context = self.bundle.schema.encode_one("context", {"hour": user})
        shared = {**self.state(user, length).leaves, **{f"context/{n}": a for n, a in context.items()}}
        return self.stage.score_part(shared, candidates.keys, candidates.pair, size, length, **options)

    def compare(self, user: int, length: int, ids: Any, pair: Any) -> StagePart:
        """Rank in one call both ways, and hold them together bit for bit."""
        candidates = self.checked(ids, pair)
        context = self.bundle.schema.encode_one("context", {"hour": user})
        expected = self.generation.score(self.state(user, length).leaves, length, context, candidates, K_MAX)
        part = self.part(user, length, ids, pair, expected.bucket)
        np.testing.assert_array_equal(part.order[:K_MAX], expected.order)
        np.testing.assert_array_equal(part.scores[:K_MAX], expected.scores)
        np.testing.assert_array_equal(part.heads[:K_MAX], expected.heads)
        counts = (part.missing, part.not_rankable, part.unscored)
        assert counts == (expected.missing, expected.not_rankable, expected.unscored)
        return part


@pytest.fixture(scope="module")
def portable(bundle: Bundle) -> Bundle:
    return Bundle.load(bundle.path, prefer="portable")


@pytest.fixture(scope="module")
def both(portable: Bundle, world: World) -> Any:
    made = Both(portable, world)
    yield made
    made.rows.close()


@pytest.mark.parametrize("length", LONGS)
@pytest.mark.parametrize("n", [1, 16, 31, 32, 33, 64])
def test_scores_order_and_counts_are_those_of_gathered_rows(both: Both, n: int, length: int) -> None:
    for user in range(3):
        ids, pair = both.world.candidates(n, seed=user)
        part = both.compare(user, length, ids, pair)
        assert len(part.order) == min(n, K_MAX)


def test_missing_and_unrankable_candidates_are_left_out_and_counted(both: Both) -> None:
    ids, pair = both.world.candidates(40, seed=5)
    ids = ids.copy()
    ids[[0, 7, 39]] += np.uint64(1)
    both.index.set_rankable(ids[[1, 2]], False)
    spoilt, _ = both.index.gather(ids[3:4])
    whole = {name: column.copy() for name, column in spoilt.items()}
    spoilt["h"][:] = np.nan
    both.index._write(ids[3:4], spoilt)
    part = both.compare(1, 24, ids, pair)
    assert (part.missing, part.not_rankable, part.unscored) == (3, 2, 1)
    assert not set(part.order.tolist()) & {0, 7, 39, 1, 2, 3}
    both.index.set_rankable(ids[[1, 2]], True)
    both.index._write(ids[3:4], whole)
    part = both.compare(1, 24, ids, pair)
    assert (part.missing, part.not_rankable, part.unscored) == (3, 0, 0)


def test_the_default_row_stands_in_for_missing_ones(portable: Bundle, world: World) -> None:
    both = Both(portable, world, missing="default")
    ids, pair = world.candidates(20, seed=3)
    ids = ids.copy()
    ids[[2, 4]] += np.uint64(1)
    part = both.compare(2, 8, ids, pair)
    assert part.missing == 2
    assert {2, 4} < set(part.order.tolist())


def test_missing_candidates_may_be_refused_before_anything_is_dispatched(both: Both) -> None:
    ids, pair = both.world.candidates(20)
    refused: list[Any] = []

    def refuse(found: np.ndarray) -> None:
        refused.append(found.tolist())
        raise UnknownItemError("there is one missing")

    assert len(both.part(1, 8, ids, pair, 32, refuse=refuse).order) == 20
    ids = ids.copy()
    ids[5] += np.uint64(1)
    with pytest.raises(UnknownItemError, match="there is one missing"):
        both.part(1, 8, ids, pair, 32, refuse=refuse)
    assert refused == [[i != 5 for i in range(20)]]


def test_updates_of_the_index_reach_the_next_request(portable: Bundle, world: World) -> None:
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


def test_nothing_is_compiled_after_the_start_not_by_growth_on_a_request_nor_by_another_bundle(
    portable: Bundle, world: World, other_bundle: Bundle
) -> None:
    both = Both(portable, world)
    ids, pair = world.candidates(30)
    both.part(1, 8, ids, pair, 32)
    compiled = compilations()
    columns = {name: column[:20] for name, column in world.columns.items()}
    both.index.upsert(world.ids[:20], columns, world.content[:20])
    both.index.delete(world.ids[5:9])
    both.part(1, 24, ids, pair, 64)
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


def test_rows_of_another_version_are_refused(both: Both, other_bundle: Bundle) -> None:
    with pytest.raises(VersionMismatchError, match="make them from an item index of this bundle"):
        DeviceStage(both.rows, other_bundle, BUCKETS, LONGS)


def test_sizes_that_were_not_compiled_are_refused(both: Both) -> None:
    ids, pair = both.world.candidates(20)
    with pytest.raises(ConfigError, match="got 48 candidates and a history of 8, expected one of"):
        both.part(1, 8, ids, pair, 48)


def test_programs_for_another_platform_are_refused(
    portable: Bundle, index: ItemIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DeviceRows(index) as rows:

        class Abacus:
            platform, id = "abacus", 0

        monkeypatch.setattr(rows.layout, "devices", (Abacus(),))
        with pytest.raises(ConfigError, match="but the item rows are on abacus"):
            DeviceStage(rows, portable, BUCKETS, LONGS)


def test_native_programs_which_read_the_hosts_cache_are_refused(bundle: Bundle, index: ItemIndex) -> None:
    assert bundle.kind == "native"
    with DeviceRows(index) as rows, pytest.raises(ConfigError, match="prefer='portable'"):
        DeviceStage(rows, bundle, BUCKETS, LONGS)


@pytest.mark.parametrize("missing", ["drop", "default", "error"])
def test_an_engine_with_rows_on_a_device_ranks_as_one_without(
    portable: Bundle, world: World, missing: Any
) -> None:
    index = ItemIndex.build(portable, world.ids, world.columns, world.content)
    behaviours = BehaviourTable.build(portable, world.ids, world.columns, world.content)
    users = {user: world.record(user, 20) for user in range(3)}
    ids, pair = world.candidates(100, seed=8)
    if missing != "error":
        ids = ids.copy()
        ids[[3, 70]] += np.uint64(1)

    def run(rows: Any) -> list[Any]:
        config = EngineConfig(buckets=BUCKETS, long_buckets=LONGS, missing_items=missing, rows=rows)
        with Engine(portable, index, behaviours, users=users.get, config=config) as engine:
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
def test_it_lowers_for_accelerators_without_a_custom_call_of_ours(
    index: ItemIndex, portable: Bundle, platform: str
) -> None:
    with DeviceRows(index) as rows:
        layout = rows.layout
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
    stage = jax.jit(stage_over_table(program, layout, packing))
    lowered = stage.trace(weights, table, jax.ShapeDtypeStruct((64,), np.int32), others).lower(
        lowering_platforms=(platform,)
    )
    text = lowered.as_text()
    assert "aif_" not in text
    assert f"tensor<1024x{packing.words}xi32>, tensor<64x1xi32>) -> tensor<64x{packing.words}xi32>" in text
    # Signatures meet in integers, not in float32 at the highest precision.
    assert re.search(r"dot_general .*tensor<[0-9?x]+xi8>\) -> tensor<[0-9?x]+xi32>", text)


def test_rows_shared_by_four_devices_rank_as_those_on_one(bundle: Bundle, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import json, sys
        import jax, numpy as np
        sys.path.insert(0, sys.argv[2])
        from served import make_items, World, K_MAX
        from aif_jax.bundle import Bundle
        from aif_jax.nearline import ItemIndex
        from aif_jax.serving.device_rows import DeviceRows
        from aif_jax.serving.device_stage import DeviceStage

        assert len(jax.devices()) == 4
        bundle = Bundle.load(sys.argv[1], prefer="portable")
        ids, columns, content = make_items()
        index = ItemIndex.build(bundle, ids[:100], {n: c[:100] for n, c in columns.items()}, content[:100])
        layouts = {"last": jax.devices()[3], "four": jax.devices(), "three": jax.devices()[:3]}
        made = {name: DeviceRows(index, devices) for name, devices in layouts.items()}
        stages = {name: DeviceStage(rows, bundle, (32, 64), (24,)) for name, rows in made.items()}
        index.upsert(ids[100:], {n: c[100:] for n, c in columns.items()}, content[100:])
        index.delete(ids[::7])
        more = np.arange(400, dtype=np.uint64)
        index.upsert(more, {"item": more.astype(np.int64)})
        index.set_rankable(more[::3], False)
        keys = np.concatenate([ids, more])
        rng = np.random.default_rng(0)
        operands = {}
        for operand in bundle.signature("stage").inputs:
            spec = operand.at({"n": 50, "l": 24})
            whole = np.issubdtype(spec.dtype, np.integer)
            drawn = rng.integers(0, 3, spec.shape) if whole else rng.normal(size=spec.shape)
            operands[operand.path] = drawn.astype(spec.dtype)
        pair = {p.removeprefix("pair/"): np.abs(a) for p, a in operands.items() if p.startswith("pair/")}
        asked = rng.permutation(keys)[:50]
        expected, found = index.gather(keys)
        report = {}
        for name, rows in made.items():
            read, there = rows.read(keys)
            assert (there == found).all()
            for column in read:
                np.testing.assert_array_equal(read[column], expected[column], err_msg=f"{name} {column}")
            part = stages[name].score_part(operands, asked, pair, 64, 24)
            report[name] = [part.order.tolist(), part.scores.tolist(), part.heads.tolist(),
                            part.unscored, part.missing, part.not_rankable]
            stats = rows.stats()
            report[name + " growths"] = stats["growths"]
        table = made["four"]._table
        report["shards"] = sorted((s.device.id, s.data.shape[1] * 4) for s in table.addressable_shards)
        report["capacity"] = made["four"].stats()["capacity"]
        print(json.dumps(report))
        """
    )
    environment = {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path), "PATH": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle.path), str(Path(__file__).parent.parent)],
        env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["four"] == report["last"] == report["three"]
    order, _, _, unscored, missing, not_rankable = report["last"]
    assert missing > 0
    assert not_rankable > 0
    assert len(order) == min(K_MAX, 50 - missing - not_rankable - unscored)
    assert min(report["last growths"], report["four growths"], report["three growths"]) > 0
    assert report["shards"] == [[device, report["capacity"]] for device in range(4)]


def test_the_script_for_whoever_has_an_accelerator_runs(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    environment = {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join([str(root / "bench"), *sys.path]),
        "HOME": str(tmp_path), "PATH": "",
    }  # fmt: skip
    record = tmp_path / "record.jsonl"
    command = [sys.executable, str(root / "bench/device_stage.py"), "--small", "--rounds", "3"]
    done = subprocess.run(
        [*command, "--record", str(record)],
        env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kept = json.loads(record.read_text())
    assert kept == json.loads(done.stdout)
    assert kept["device"] == "1 x cpu (cpu)"
    assert kept["request"]["p50_ms"] > 0
