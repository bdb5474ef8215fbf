"""Bundles of each precision, from export to ranked ids. Two of them are thorough: int8 differs most."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.bundle.files import CONFIG as CONFIG_FILE
from aif_jax.bundle.files import read_manifest, read_verified, write_bundle_files
from aif_jax.config import PRECISIONS, REDUCED_COLUMNS, Precision
from aif_jax.errors import ConfigError
from aif_jax.integrations.ray import _join, _Worker
from aif_jax.models import fold
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.serving import Engine, InMemoryUsers, Shapes
from support.served import (
    CONFIG,
    ENGINE_CONFIG,
    K_MAX,
    ONE_SIZE,
    SCHEMA,
    TINY,
    Bundles,
    World,
    assert_same,
    make_model,
    tables_of,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
CONTEXT = {"hour": 17}
WITHIN = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.03}
"""Of scores, relative: a product of two probabilities of logits that are off by some thousandths."""


FLOAT32, BFLOAT16 = (pytest.param(name, marks=pytest.mark.thorough) for name in ("float32", "bfloat16"))


def with_description(bundle: Bundle, path: Path, **changes: Any) -> Path:
    """Copy a bundle with other entries in its config."""
    manifest = read_manifest(bundle.path)
    contents = {name: read_verified(bundle.path, manifest, name) for name in manifest["files"]}
    description = {**json.loads(contents[CONFIG_FILE]), **changes}
    contents[CONFIG_FILE] = json.dumps(description).encode()
    header = {"jax": manifest["jax"], "kernel_abi": manifest["kernel_abi"]}
    write_bundle_files(path, contents, header, read_manifest, overwrite=False)
    return path


def test_precisions_are_all_tested_here() -> None:
    assert PRECISIONS == ("float32", "bfloat16", "int8")


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16, "int8"])
def test_bundle_has_exported_precision(bundles: Bundles, precision: Precision) -> None:
    bundle = bundles(precision)
    assert bundle.precision == precision
    assert bundle.kind == "native"
    assert Bundle.load(bundle.path, prefer="portable").precision == precision
    compared: set[Precision] = {"float32", "int8", precision}
    assert len({bundles(other).version for other in compared}) == len(compared)
    # The weights are the same, and so are the rows of histories.
    assert bundle.signature("behaviour") == bundles("float32").signature("behaviour")
    for name, weight in bundles("float32").weights.items():
        np.testing.assert_array_equal(bundle.weights[name], weight)
    spec = fold(make_model(1), precision=precision).item_spec(1)
    given = {operand.path: operand.at({"m": 1}) for operand in bundle.signature("item").outputs}
    assert {n: (s.shape, s.dtype) for n, s in given.items()} == {
        n: (s.shape, s.dtype) for n, s in spec.items()
    }


@pytest.mark.parametrize("precision", [BFLOAT16, "int8"])
def test_refresh_keeps_precision(bundles: Bundles, precision: Precision, tmp_path: Path) -> None:
    bundle = bundles(precision)
    path = with_description(bundle, tmp_path / "copy")
    refreshed = Bundle.refresh(path)
    assert refreshed.precision == precision
    assert refreshed.version == bundle.version


def test_refresh_unknown_precision_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = with_description(bundle, tmp_path / "new", model={**bundle.spec.to_json(), "precision": "int4"})
    with pytest.raises(
        ConfigError, match="precision: got 'int4', expected one of 'float32', 'bfloat16', 'int8'"
    ):
        Bundle.refresh(path)


def test_export_bundle_unknown_precision_writes_nothing(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision: got 'half'"):
        export_bundle(world.model, tmp_path / "b", precision="half")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16, "int8"])
def test_engine_ranks_with_bundle_of_precision(
    bundles: Bundles,
    world: World,
    users: InMemoryUsers,
    precision: Precision,
    tmp_path: Path,
) -> None:
    bundle = bundles(precision)
    built = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    built.save(tmp_path / "items")
    index = ItemIndex.open(bundle, tmp_path / "items")
    rows, found = built.gather(world.ids)
    assert found.all()
    for name, column in index.gather(world.ids)[0].items():
        assert column.dtype == rows[name].dtype
        assert column.tobytes() == rows[name].tobytes()
    expected = {"float32": np.dtype(np.float32), "bfloat16": BF16, "int8": np.dtype(np.int8)}[precision]
    assert {rows[name].dtype for name in REDUCED_COLUMNS} == {expected}
    floats = CONFIG.hidden + CONFIG.width + CONFIG.bridges + CONFIG.content_width + CONFIG.encoder_width
    # has_content, signature, three categories, rankable, the prior of each head
    kept = (
        4 + CONFIG.signature_bytes + 3 * 4 + 1 + 4 * len(CONFIG.heads) + (5 * 4 if precision == "int8" else 0)
    )
    assert sum(column[0].nbytes for column in rows.values()) == floats * expected.itemsize + kept

    tables = Tables(index, BehaviourTable.build(bundle, world.ids, world.columns, world.content))
    portable = Bundle.load(bundle.path, prefer="portable")
    shapes = Shapes(candidates=(64,), histories=(24,), users=())
    config = dataclasses.replace(ENGINE_CONFIG, k=K_MAX, missing_items="default", shapes=shapes)
    with (
        Engine(bundle, tables, users=users, config=config) as engine,
        Engine(portable, tables, users=users, config=config) as other,
    ):
        for user in range(10):
            record = users(user)
            assert record is not None
            ids, pair = world.candidates(60, seed=user)
            ranking = engine.begin(user, CONTEXT).rank(ids, pair)
            # Kernels and plain JAX agree as closely as in float32.
            plain = other.begin(user, CONTEXT).rank(ids, pair)
            np.testing.assert_allclose(ranking.scores, plain.scores, rtol=1e-4)
            # A user state comes back from the cache as it went in.
            again = engine.begin(user, CONTEXT).rank(ids, pair)
            assert again.report.user_state == "hit"
            np.testing.assert_array_equal(again.scores, ranking.scores)
            np.testing.assert_array_equal(again.ids, ranking.ids)
            score, _ = world.scores(record, ids, pair, CONTEXT)
            chosen = [int(np.flatnonzero(ids == i)[0]) for i in ranking.ids]
            np.testing.assert_allclose(ranking.scores, score[chosen], rtol=WITHIN[precision])
            if precision != "float32":
                assert np.abs(ranking.scores / score[chosen] - 1).max() > 1e-4
        unknown = np.uint64(2**63 + 5)
        ranking = engine.begin(1, CONTEXT).rank(np.append(world.ids[:5], unknown))
        assert unknown in ranking.ids
        assert ranking.report.missing_items == 1
        assert index.set_rankable(world.ids[:1], False) == 1
        ranking = engine.begin(1, CONTEXT).rank(world.ids[:5])
        assert set(ranking.ids.tolist()) == set(world.ids[1:5].tolist())
        index.upsert(world.ids[:1], {n: c[:1] for n, c in world.columns.items()}, world.content[:1])
        for name, column in index.gather(world.ids)[0].items():
            assert column.tobytes() == rows[name].tobytes()


@pytest.mark.parametrize("precision", [BFLOAT16, "int8"])
def test_ray_worker_rows_keep_precision(bundles: Bundles, world: World, precision: Precision) -> None:
    bundle = bundles(precision)
    worker = _Worker(
        ItemIndex, bundle.path, bundle.version, {"id": "sku", "content": "vector", "rankable": None}
    )
    batches = [
        {
            "sku": world.ids[part],
            "vector": world.content[part],
            **{n: c[part] for n, c in world.columns.items()},
        }
        for part in (slice(0, 100), slice(100, None))
    ]
    built = _join([worker(batch) for batch in batches], ItemIndex(bundle).store.columns)
    index = ItemIndex.from_rows(bundle, built.ids, built.rows)
    local = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    rows, found = index.gather(world.ids)
    assert found.all()
    for name, column in local.gather(world.ids)[0].items():
        assert rows[name].dtype == column.dtype
        np.testing.assert_allclose(
            rows[name].astype(np.float32),
            column.astype(np.float32),
            rtol=2**-7,
            atol=1.0 * (precision == "int8"),
        )
    assert SCHEMA.item_id in world.columns


def test_bundle_under_64_bits_is_the_same_and_serves(
    tiny_bundle: Bundle, world: World, tmp_path: Path
) -> None:
    """JAX_ENABLE_X64 is for other programs of the process."""
    model, users = make_model(1, TINY), {1: world.record(1)}
    about = {"metrics": tiny_bundle.metrics, "notes": tiny_bundle.notes}
    try:
        jax.config.update("jax_enable_x64", True)
        wide = export_bundle(model, tmp_path / "wide", k_max=K_MAX, **about)
        config = dataclasses.replace(ENGINE_CONFIG, shapes=ONE_SIZE)
        with Engine(*tables_of(wide, world), users=users, config=config) as engine:
            ranking = engine.begin(1).rank(*world.candidates(20))
            jax.config.update("jax_enable_x64", False)
            assert_same(engine.begin(1).rank(*world.candidates(20)), ranking)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert wide.version == tiny_bundle.version
