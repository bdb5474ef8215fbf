"""Raw content embeddings through a bundle: every way into the tables gives the rows of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError, ItemIndexError
from aif_jax.features import ContentSpace
from aif_jax.integrations.parquet import catalogue_batches
from aif_jax.integrations.redis import decode_update, encode_update
from aif_jax.models import add_signatures
from aif_jax.models.store import load_model, save_model
from aif_jax.nearline import (
    Archive,
    BehaviourTable,
    Delivery,
    ItemIndex,
    Upsert,
    build_snapshot,
    build_tables,
)
from aif_jax.nearline.applying import apply_deliveries
from aif_jax.serving import Engine
from aif_jax.types import ItemRecords
from support.served import ENGINE_CONFIG, N_ITEMS, TINY, World, exported_once, make_model, part_of

WIDE = 384


def raw_embeddings() -> np.ndarray:
    """Return embeddings as a text encoder gives them: 384 wide, far from the origin; some items have none."""
    random = np.random.default_rng(5)
    latent = random.normal(size=(N_ITEMS, 12)) @ random.normal(size=(12, WIDE))
    rows = latent + 0.3 * random.normal(size=(N_ITEMS, WIDE)) + 6.0 * random.normal(size=WIDE)
    rows[::9] = np.nan
    return rows.astype(np.float32)


RAW = raw_embeddings()


@pytest.fixture(scope="module")
def space(world: World) -> ContentSpace:
    return ContentSpace.fit(world.ids, RAW, width=TINY.content_width, name="text")


@pytest.fixture(scope="module")
def spaced(space: ContentSpace, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose model was trained on raw embeddings."""
    model = make_model(1, TINY)
    model.set_content_space(space)
    return exported_once(tmp_path_factory, "spaced", model)


@pytest.fixture(scope="module")
def expected(spaced: Bundle, space: ContentSpace, world: World) -> dict[str, np.ndarray]:
    """The item rows of the training catalogue, by the program itself."""
    content, has = space.apply(RAW)
    inputs = {
        f"item/{name}": np.asarray(a)
        for name, a in world.catalogue.items()
        if name in ("item", "price", "genres")
    }
    inputs |= {"item/content": content, "item/has_content": has[:, None].astype(np.float32)}
    padded = {name: np.concatenate([a, a[:1].repeat(256 - N_ITEMS, axis=0)]) for name, a in inputs.items()}
    return {name: np.asarray(a)[:N_ITEMS] for name, a in spaced.call("item", m=256)(padded).items()}


def same_rows(index: ItemIndex, world: World, expected: dict[str, np.ndarray]) -> None:
    rows, found = index.gather(world.ids)
    assert found.all()
    for name, column in expected.items():
        assert rows[name].tobytes() == column.tobytes(), name


def built(bundle: Bundle, world: World, folder: Path) -> ItemIndex:
    return ItemIndex.build(bundle, world.ids, world.columns, RAW)


def of_lists(bundle: Bundle, world: World, folder: Path) -> ItemIndex:
    rows = [None if np.isnan(row).all() else row.tolist() for row in RAW]
    return build_tables(bundle, ItemRecords(world.ids, world.columns, rows)).items


def upserted(bundle: Bundle, world: World, folder: Path) -> ItemIndex:
    index = ItemIndex(bundle)
    for rows in (range(0, 60), range(60, 61), range(61, N_ITEMS - 3)):
        ids, columns, _ = part_of(world, rows)
        index.upsert(ids, columns, RAW[list(rows)])
    ids, columns, _ = part_of(world, range(N_ITEMS - 5, N_ITEMS))
    assert index.add(ids, columns, RAW[-5:]) == 3
    return index


def snapshot(bundle: Bundle, world: World, folder: Path) -> ItemIndex:
    vectors = [None if np.isnan(row).all() else row for row in RAW]
    columns = {name: list(column) for name, column in world.columns.items()}
    pq.write_table(pa.table({"id": world.ids, **columns, "content": vectors}), folder / "items.parquet")
    batches = catalogue_batches(folder / "items.parquet", rows=40)
    report = build_snapshot(ItemIndex, bundle, batches, folder / "rows")
    assert not report.bad
    return ItemIndex.open(bundle, folder / "rows")


def streamed(bundle: Bundle, world: World, folder: Path) -> ItemIndex:
    """Updates through the form of a Redis stream into an archive, which is then opened anew."""
    with Archive(folder / "archive") as archive:
        index = ItemIndex(bundle)
        archive.start(index)
        deliveries = []
        for row in range(N_ITEMS):
            ids, columns, _ = part_of(world, [row])
            update = decode_update(
                {"update": encode_update(Upsert(ids, columns, RAW[row : row + 1]), "")}, ""
            )
            if row % 9:  # what was sent is raw, as it came
                np.testing.assert_array_equal(update.content, RAW[row : row + 1])
            deliveries.append(Delivery((row,), update))
        done, aside = apply_deliveries(index, deliveries)
        assert (done["upserted"], aside) == (N_ITEMS, [])
    return Archive(folder / "archive").open(ItemIndex, bundle)


@pytest.mark.parametrize("way", [built, of_lists, upserted, snapshot, streamed])
def test_raw_content_every_way_in_gives_rows_of_training(
    way: Callable[[Bundle, World, Path], ItemIndex],
    spaced: Bundle,
    world: World,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    same_rows(way(spaced, world, tmp_path), world, expected)


def test_raw_content_ranks_as_the_unfolded_model(
    spaced: Bundle, space: ContentSpace, world: World, users: Any
) -> None:
    content, has = space.apply(RAW)
    catalogue = {**world.catalogue, "content": content, "has_content": has[:, None].astype(np.float32)}
    model = make_model(1, TINY)
    trained = World(model, world.ids, world.columns, content, add_signatures(TINY, catalogue))
    tables = build_tables(spaced, ItemRecords(world.ids, world.columns, RAW))
    ids, pair = world.candidates(60)
    with Engine(spaced, tables, users=users, config=ENGINE_CONFIG) as engine:
        for user in (5, 9):
            ranking = engine.begin(user, {"hour": 17}).rank(ids, pair, k=20)
            score, _ = trained.scores(users(user), ids, pair, {"hour": 17})
            assert set(ranking.ids.tolist()) == set(ids[np.argsort(-score)[:20]].tolist())


def test_centred_content_is_refused_where_the_bundle_centres(
    spaced: Bundle, space: ContentSpace, world: World, tmp_path: Path
) -> None:
    """Centred vectors, which a bundle without a space asks for, are refused in every shape."""
    has = ~np.isnan(RAW).all(axis=1)
    centred = np.where(has[:, None], RAW - RAW[has].mean(axis=0), 0.0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    with pytest.raises(ItemIndexError, match=r"got 8 columns, expected 384"):
        ItemIndex.build(spaced, world.ids, world.columns, space.apply(RAW)[0])
    with pytest.raises(ItemIndexError, match="has length 1, expected"):
        ItemIndex.build(spaced, world.ids, world.columns, unit)
    for table in (ItemIndex, BehaviourTable):
        with pytest.raises(ConfigError, match="these are centred already"):
            table.build(spaced, world.ids, world.columns, centred)
        records = [ItemRecords(world.ids, world.columns, centred)]
        with pytest.raises(ConfigError, match="these are centred already"):
            build_snapshot(table, spaced, records, tmp_path / table.kind)


def test_stream_of_centred_content_is_set_aside(spaced: Bundle, world: World) -> None:
    """Rows that are applied together show that they are centred; none of them goes in alone then."""
    has = np.flatnonzero(~np.isnan(RAW).all(axis=1))
    index, deliveries = ItemIndex(spaced), []
    for row in has.tolist():
        ids, columns, _ = part_of(world, [row])
        centred = RAW[row : row + 1] - RAW[has].mean(axis=0)
        deliveries.append(Delivery((row,), Upsert(ids, columns, centred)))
    _, aside = apply_deliveries(index, deliveries)
    assert [one.ids for one in aside] == [(world.ids[row],) for row in has]
    assert "these are centred already" in str(aside[0].reason)
    whole = Delivery((0,), Upsert(*part_of(world, has)[:2], RAW[has] - RAW[has].mean(axis=0)))
    _, aside = apply_deliveries(index, [whole])
    assert [len(one.ids) for one in aside] == [len(has)]
    assert len(index) == 0


def test_stream_of_raw_and_centred_content_keeps_the_raw(spaced: Bundle, world: World) -> None:
    """Deliveries beside a large centred one: large ones are judged alone, small ones together."""
    has = np.flatnonzero(~np.isnan(RAW).all(axis=1))
    telling = spaced.content_space.telling_rows
    assert telling is not None
    large, small, bad = np.split(has, [5 * telling, 5 * telling + 3])
    mean = RAW[has].mean(axis=0)

    def delivery(rows: np.ndarray, content: np.ndarray) -> Delivery:
        return Delivery((int(rows[0]),), Upsert(*part_of(world, rows)[:2], content))

    singles = [delivery(row, RAW[row]) for row in small.reshape(-1, 1)]
    given = [singles[0], delivery(bad, RAW[bad] - mean), delivery(large, RAW[large]), *singles[1:]]
    index = ItemIndex(spaced)
    done, aside = apply_deliveries(index, given)
    assert [one.ids for one in aside] == [tuple(world.ids[bad])]
    assert done["upserted"] == len(index) == len(large) + len(small)
    # Enough small ones that are centred show it together, and none of them goes in, but one without content.
    rows, without = bad.reshape(-1, 1), np.array([0])
    given = [delivery(large, RAW[large]), *(delivery(row, RAW[row] - mean) for row in rows)]
    given.insert(2, delivery(without, RAW[without]))
    index = ItemIndex(spaced)
    _, aside = apply_deliveries(index, given)
    assert [one.ids for one in aside] == [(world.ids[row],) for row in bad]
    assert len(index) == len(large) + 1


def test_raw_content_of_a_bundle_without_a_space_is_refused(bundle: Bundle, world: World) -> None:
    assert bundle.content_space == ContentSpace.declared(TINY.content_width)
    with pytest.raises(ItemIndexError, match="got 384 columns, expected 8"):
        ItemIndex.build(bundle, world.ids, world.columns, RAW)
    cut = RAW[:, :8]
    with pytest.raises(ItemIndexError, match=r"expected 1 .*less the mean of the training catalogue"):
        ItemIndex.build(bundle, world.ids, world.columns, cut)


def test_bundle_keeps_the_space_of_the_model(spaced: Bundle, space: ContentSpace) -> None:
    assert spaced.content_space == space
    assert Bundle.load(spaced.path).content_space == space


def test_saved_model_keeps_its_space(space: ContentSpace, tmp_path: Path) -> None:
    model = make_model(1, TINY)
    assert model.content_space == ContentSpace.declared(TINY.content_width)
    for kept in (space, ContentSpace(kind="derived", width=8, digest="x"), ContentSpace.declared(8), space):
        model.set_content_space(kept)
        save_model(model, tmp_path / "model", metrics={}, notes={})
        assert load_model(tmp_path / "model")[0].content_space == kept
    with pytest.raises(ConfigError, match="content_width: got 8"):
        model.set_content_space(ContentSpace.declared(9))
