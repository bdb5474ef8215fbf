"""A model that is not ours, served: its answers are those of its functions, on every path."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.bundle import Bundle, export, loads
from aif_jax.bundle.files import CONFIG, read_manifest, read_verified, write_bundle_files
from aif_jax.errors import BundleError, ConfigError, DeadlineExceededError, UserSourceError
from aif_jax.features import ContentSpace
from aif_jax.nearline import ItemIndex, Tables
from aif_jax.serving import InMemoryUsers, Shapes
from aif_jax.types import UserRecord
from support import contract_models as small
from support.held import GatedUsers
from support.served import (
    CONTEXT,
    K_MAX,
    N_ITEMS,
    PATIENT_MS,
    SCHEMA,
    Make,
    Served,
    World,
    assert_ranks_as,
    assert_same,
    part_of,
    ran,
    tables_of,
    ways,
)

SHAPES = Shapes(candidates=(32, 64), histories=(8, 24), users=(4,))
ONE = Shapes(candidates=(64,), histories=(24,), users=())


def exported(path: Path, **given: Any) -> Bundle:
    settings = {
        "k_max": K_MAX, "score": small.SCORE, "long_length": small.LONG, "short_length": small.SHORT,
        "content_space": ContentSpace.declared(8),
    }  # fmt: skip
    return export(given.pop("model", small.mean_pool()), SCHEMA, path, **{**settings, **given})


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A bundle of a model that is not ours, which can answer on every rung, with its tables."""
    bundle = exported(tmp_path_factory.mktemp("other") / "bundle", rungs=(0, 1, 2, 3))
    return tables_of(bundle, world)


@pytest.fixture(scope="module")
def plain(world: World, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The same with rows of reduced precision, a calibration, and full answers only."""
    path = tmp_path_factory.mktemp("plain") / "bundle"
    calibration = {"ctr": (0.5, 0.25)}
    return tables_of(exported(path, precision={"vector": "int8"}, calibration=calibration), world)


def test_other_model_is_described_by_its_bundle(other: Served, plain: Served) -> None:
    bundle, spec = other[0], other[0].spec
    assert (bundle.kind, spec.name, spec.heads, spec.rungs) == (
        "native",
        "Functions",
        ("ctr", "cvr"),
        (0, 1, 2, 3),
    )
    assert (spec.short_length, spec.long_length, bundle.k_max) == (small.SHORT, small.LONG, K_MAX)
    assert plain[0].kind == "native"
    assert plain[0].precision == "vector int8"
    assert plain[1].items.store.columns["vector"] == (np.dtype(np.int8), (8,))
    with pytest.raises(ConfigError, match=r"holds a model of class Functions, which has no ModelConfig"):
        _ = bundle.config


@ways
def test_other_model_engine_ranks_as_its_functions(
    make: Make, other: Served, users: InMemoryUsers, world: World, way: str
) -> None:
    engine = make(other, shapes=SHAPES)
    for seed in (0, 3, 9):
        ids, pair = world.candidates(50 + seed, seed)
        pending = engine.begin(seed, CONTEXT)
        ranking = ran(getattr(pending, way), ids, pair)
        expected = small.scores(world, users(seed), ids, pair, CONTEXT)
        assert_ranks_as(ranking, ids, *expected, within=1e-5)
        assert list(ranking.heads) == ["ctr", "cvr"]
        assert ranking.report.rung == 0
    assert engine.stats()["ladder"]["rungs"] == (0, 1, 2, 3)


def test_other_model_rank_many_computes_users_together(
    make: Make, other: Served, users: InMemoryUsers, world: World
) -> None:
    ids, pair = world.candidates(30)
    rankings = make(other, shapes=SHAPES).rank_many([2, 3, 4, 5], contexts=[CONTEXT] * 4)
    for seed, ranking in zip((2, 3, 4, 5), rankings, strict=True):
        assert_ranks_as(ranking, ids, *small.scores(world, users(seed), ids, pair, CONTEXT), within=1e-5)


def test_other_model_calibrated_with_rows_of_reduced_precision_ranks_closely(
    make: Make, plain: Served, users: InMemoryUsers, world: World
) -> None:
    ids, pair = world.candidates(50)
    ranking = make(plain, shapes=ONE).begin(5, CONTEXT).rank(ids, pair)
    ctr, cvr = small.scores(world, users(5), ids, pair, CONTEXT)[1].T
    ctr = 1 / (1 + np.exp(-(0.5 * np.log(ctr / (1 - ctr)) + 0.25)))
    exact = ctr * (cvr + 0.1) * pair["bid"], np.stack([ctr, cvr], axis=1)
    assert_ranks_as(ranking, ids, *exact, within=0.05)
    with pytest.raises(AssertionError):
        assert_ranks_as(ranking, ids, *exact, within=1e-6)


@pytest.mark.parametrize("where", ["host", "device"])
def test_other_model_portable_programs_rank_as_its_functions(
    make: Make, other: Served, users: InMemoryUsers, world: World, where: str
) -> None:
    portable = Bundle.load(other[0].path, prefer="portable")
    engine = make(tables_of(portable, world), shapes=ONE, item_rows=where)
    ids, pair = world.candidates(50)
    ranking = engine.begin(7, CONTEXT).rank(ids, pair)
    assert_ranks_as(ranking, ids, *small.scores(world, users(7), ids, pair, CONTEXT), within=1e-5)


@pytest.mark.parametrize("policy", ["drop", "default"])
def test_other_model_missing_and_unrankable_items_follow_policy(
    make: Make, other: Served, users: InMemoryUsers, world: World, policy: str
) -> None:
    bundle, tables = other
    index = ItemIndex.build(bundle, *part_of(world, np.arange(4, N_ITEMS)))
    index.set_rankable(world.ids[4:7], False)
    engine = make((bundle, Tables(index, tables.behaviours)), shapes=ONE, missing_items=policy, k=K_MAX)
    rows = np.arange(20)
    ids, pair = world.ids[rows], {"bid": np.linspace(0.5, 2.0, 20)}
    ranking = engine.begin(5, CONTEXT).rank(ids, pair)
    report = ranking.report
    assert (report.missing_items, report.not_rankable) == (4, 3)
    score, _ = small.scores(world, users(5), ids, pair, CONTEXT)
    there = rows[7:]
    ranked = dict(zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True))
    assert set(ranked) == set(world.ids[there if policy == "drop" else np.r_[0:4, 7:20]].tolist())
    np.testing.assert_allclose([ranked[int(world.ids[row])] for row in there], score[there], rtol=1e-5)
    if policy == "default":
        assert not np.allclose([ranked[int(world.ids[row])] for row in range(4)], score[:4], rtol=1e-3)


def test_other_model_degraded_rungs_are_those_that_it_declares(
    make: Make, other: Served, plain: Served, users: InMemoryUsers, world: World
) -> None:
    ids, pair = world.candidates(40)
    source = GatedUsers(users)
    source.gate.clear()
    engine = make(other, users=source, shapes=ONE, k=K_MAX)
    ladder = engine.hooks.generations.current.ladder
    for _ in range(300):  # a stage so slow that its reserve outlasts any delay of the machine
        ladder.times.record(ladder.stage_key(40, small.LONG), 1e6)
    kept_ms = ladder.wait_ms(0.0, 40)
    assert kept_ms is not None
    ranking = engine.begin(5, CONTEXT, deadline_ms=100 - kept_ms).rank(ids, pair)
    assert (ranking.report.rung, ranking.report.rung_reason) == (2, "user source late")
    assert_ranks_as(ranking, ids, *small.scores(world, UserRecord(), ids, pair, CONTEXT), within=1e-5)
    full_only = make(plain, users=source, shapes=ONE, k=K_MAX)
    assert full_only.stats()["ladder"]["rungs"] == (0,)
    with pytest.raises(DeadlineExceededError, match="its user source has not answered"):
        full_only.begin(5, CONTEXT, deadline_ms=300).rank(ids, pair)


def test_other_model_item_prior_is_its_logits_for_nobody(
    make: Make, other: Served, users: InMemoryUsers, world: World
) -> None:
    engine = make(other, shapes=ONE, k=K_MAX)
    ladder = engine.hooks.generations.current.ladder
    for _ in range(300):
        ladder.times.record(ladder.stage_key(40, small.LONG), 1e9)
    ids, pair = world.candidates(40)
    ranking = engine.begin(5, CONTEXT, deadline_ms=PATIENT_MS).rank(ids, pair)
    assert ranking.report.rung == 3
    _, heads = small.scores(world, UserRecord(), ids, {}, {})
    score = heads[:, 0] * (heads[:, 1] + 0.1) * pair["bid"].astype(np.float32)
    assert_ranks_as(ranking, ids, score, heads, within=1e-5)


def test_other_model_without_user_rungs_raises_error_of_source(
    make: Make, plain: Served, world: World
) -> None:
    def broken(user: Any) -> UserRecord:
        raise OSError("down")

    engine = make(plain, users=broken, shapes=ONE, on_user_source_error="degrade")
    with pytest.raises(UserSourceError, match="down"):
        engine.begin(5, CONTEXT).rank(*world.candidates(30))


def test_other_model_with_gaps_reads_the_times_of_behaviours_that_it_knows(
    make: Make, world: World, tmp_path: Path
) -> None:
    def user(p: Any, features: Any, histories: Any) -> Any:
        return {**small.user(p, features, histories), "gap": histories["long"]["gap"].astype(np.float32)}

    def interact(p: Any, state: Any, context: Any, rows: Any, pair: Any) -> Any:
        place = jnp.arange(state["gap"].shape[0], dtype=jnp.float32)
        return {"told": (state["gap"] * place).sum() / 1000 + 0 * rows["vector"][:, 0]}

    model = small.mean_pool(user=user, interact=interact)
    bundle = exported(tmp_path / "bundle", model=model, score="", gaps=True)
    items = [*world.ids[:3].tolist(), 10**9, int(world.ids[4])]
    times = [86_407.0, 86_400.0, 0.0, 0.0, 0.0]
    known = UserRecord({}, items, ["click"] * 5, times=times)
    sources = {1: known, 2: dataclasses.replace(known, times=[])}
    engine = make(tables_of(bundle, world), shapes=ONE, users=sources.get)
    ids, pair = world.candidates(30)
    told = [float(engine.begin(n, CONTEXT).rank(ids, pair).heads["told"][0]) for n in (1, 2)]
    # Steps 4, 17, 1, (of an unknown item) and 0, at the places 0, 1, 2, 3, 4.
    assert told[0] == pytest.approx(1 / (1 + np.exp(-(17 * 1 + 1 * 2) / 1000)), abs=1e-6)
    assert told[1] == 0.5


def test_other_model_programs_come_from_a_compilation_cache(
    plain: Served, tmp_path: Path, no_cache_of_jax: None
) -> None:
    first = Bundle.load(plain[0].path, compilation_cache=tmp_path)
    first.call("stage", n=16 * 71, l=23)  # of no other test
    del first
    before, again = loads(), Bundle.load(plain[0].path, compilation_cache=tmp_path)
    again.call("stage", n=16 * 71, l=23)
    assert again.kind == "native"
    assert loads() > before


def read_apart(bundle: Bundle) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the contents of a bundle's files by name, and the header of its manifest."""
    manifest = read_manifest(bundle.path)
    contents = {name: read_verified(bundle.path, manifest, name) for name in manifest["files"]}
    return contents, {"jax": manifest["jax"], "kernel_abi": manifest["kernel_abi"]}


def test_refresh_other_model_ranks_as_before(plain: Served, world: World, tmp_path: Path, make: Make) -> None:
    contents, header = read_apart(plain[0])
    write_bundle_files(
        tmp_path / "b", contents, {**header, "jax": "0.0.1"}, lambda path: path, overwrite=False
    )
    refreshed = Bundle.refresh(tmp_path / "b")
    assert (refreshed.kind, refreshed.path) == ("native", tmp_path / "b")
    assert read_manifest(tmp_path / "b")["jax"] == header["jax"]
    ids, pair = world.candidates(30)
    answers = [
        make(served, shapes=ONE).begin(5, CONTEXT).rank(ids, pair)
        for served in (plain, tables_of(refreshed, world))
    ]
    assert_same(*answers)


def test_refresh_other_model_of_other_kernels_keeps_portable_programs(plain: Served, tmp_path: Path) -> None:
    contents, header = read_apart(plain[0])
    write_bundle_files(
        tmp_path / "b", contents, {**header, "kernel_abi": 0}, lambda path: path, overwrite=False
    )
    refreshed = Bundle.refresh(tmp_path / "b")
    assert refreshed.kind == "portable"
    assert "native: not taken, the bundle was exported without such programs" in refreshed.explain()


def test_refresh_other_model_that_jax_cannot_read_says_what_to_do(plain: Served, tmp_path: Path) -> None:
    contents, header = read_apart(plain[0])
    contents["programs/user.portable"] = b"of a jax long ago"
    write_bundle_files(tmp_path / "b", contents, header, lambda path: path, overwrite=False)
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(
        BundleError, match=r"class Functions.*cannot be read by jax.*export the model again, or"
    ):
        Bundle.refresh(tmp_path / "b")
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before


def test_load_bundle_of_older_format_is_refused(other: Served, tmp_path: Path) -> None:
    contents, header = read_apart(other[0])
    write_bundle_files(tmp_path / "b", contents, {**header, "format": 1}, lambda path: path, overwrite=False)
    with pytest.raises(BundleError, match=r"has format 1, this release \(aif_jax [\d.]+\) reads 2; export"):
        Bundle.load(tmp_path / "b")


def test_load_description_without_a_model_is_refused(other: Served, tmp_path: Path) -> None:
    contents, header = read_apart(other[0])
    description = json.loads(contents[CONFIG])
    description["model"]["rungs"] = [0, 7]
    contents[CONFIG] = json.dumps(description).encode()
    write_bundle_files(tmp_path / "b", contents, header, lambda path: path, overwrite=False)
    with pytest.raises(ConfigError, match=r"rungs: got \(0, 7\)"):
        Bundle.load(tmp_path / "b")
