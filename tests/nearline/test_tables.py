"""Item index and behaviour table: their rows are those that the bundle's programs compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ItemIndexError, RequestError, SchemaError, VersionMismatchError
from aif_jax.features import item_keys
from aif_jax.nearline import BehaviourTable, ItemIndex, RowTable
from support.served import SCHEMA, World

TABLES = [ItemIndex, BehaviourTable]


def small(bundle: Bundle, world: World, n: int = 5, table: type[RowTable] = ItemIndex) -> Any:
    columns = {name: column[:n] for name, column in world.columns.items()}
    return table.build(bundle, world.ids[:n], columns, world.content[:n])


@pytest.mark.parametrize("table", TABLES)
def test_build_computes_rows_of_the_program(bundle: Bundle, world: World, table: type[RowTable]) -> None:
    done: list[tuple[int, int]] = []
    n = len(world.ids)
    built = table.build(
        bundle, world.ids, world.columns, world.content, progress=lambda *step: done.append(step)
    )
    assert len(built) == n
    assert done[-1] == (n, n)
    assert built.version == bundle.version
    rows, found = built.gather(world.ids)
    assert found.all()
    encoded = SCHEMA.encode("item", world.columns, n)
    inputs = {f"item/{name}": array for name, array in encoded.items()}
    inputs["item/content"] = world.content
    inputs["item/has_content"] = np.any(world.content != 0, axis=1, keepdims=True).astype(np.float32)
    expected = bundle.call(table.stage, m=n)(inputs)
    assert rows.keys() - {"rankable"} == expected.keys()
    for name, column in expected.items():
        np.testing.assert_allclose(rows[name], np.asarray(column), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("table", TABLES)
def test_table_repr_shows_rows_bytes_and_bundle(bundle: Bundle, world: World, table: type[RowTable]) -> None:
    built = small(bundle, world, 5, table)
    size = built.store.cache.layout.row_bytes
    assert repr(built) == f"{table.__name__}(5 rows of {size} bytes, bundle {bundle.version[:8]})"
    built.delete(world.ids[1:5])
    assert repr(built).startswith(f"{table.__name__}(1 row of ")
    assert repr(table.__new__(table)) == f"{table.__name__}(without rows)"


def test_item_index_ids_above_32_bits_stay_distinct(bundle: Bundle, world: World) -> None:
    low, high = np.uint64(5), np.uint64(2**32 + 5)
    columns = {"price": np.array([1.0, 9.0])}
    index = ItemIndex.build(bundle, np.array([low, high]), columns)
    rows, found = index.gather(np.array([low, high]))
    assert found.all()
    assert not np.array_equal(rows["h"][0], rows["h"][1])


@pytest.mark.parametrize("table", TABLES)
def test_table_saved_and_opened_has_same_rows(
    bundle: Bundle, world: World, tmp_path: Path, table: type[RowTable]
) -> None:
    built = small(bundle, world, 20, table)
    built.delete(world.ids[3:5])
    built.save(tmp_path / "rows")
    opened = table.open(bundle, tmp_path / "rows")
    assert np.array_equal(np.sort(opened.ids()), np.sort(built.ids()))
    before, found_before = built.gather(world.ids[:20])
    after, found_after = opened.gather(world.ids[:20])
    assert np.array_equal(found_before, found_after)
    assert found_after.sum() == 18
    for name, column in before.items():
        assert np.array_equal(column, after[name])


def test_table_open_of_other_version_or_kind_is_refused(
    bundle: Bundle, other_bundle: Bundle, world: World, tmp_path: Path
) -> None:
    small(bundle, world).save(tmp_path / "rows")
    with pytest.raises(VersionMismatchError, match=f"{bundle.version}.*{other_bundle.version}"):
        ItemIndex.open(other_bundle, tmp_path / "rows")
    with pytest.raises(ItemIndexError, match="'item_index', expected 'behaviour_table'"):
        BehaviourTable.open(bundle, tmp_path / "rows")


def test_item_index_string_ids_survive_save_and_open(bundle: Bundle, tmp_path: Path) -> None:
    ids = [f"sku-{number}" for number in range(7)]
    index = ItemIndex.build(bundle, ids, {"price": np.arange(7.0)})
    assert sorted(index.ids()) == ids
    assert "sku-3" in index
    assert "sku-9" not in index
    index.delete(["sku-3"])
    index.upsert(["sku-8"], {"price": [8.0]})
    index.save(tmp_path / "rows")
    assert sorted(ItemIndex.open(bundle, tmp_path / "rows").ids()) == sorted({*ids, "sku-8"} - {"sku-3"})
    with pytest.raises(ItemIndexError, match=r"got integers, but the table's ids are strings"):
        index.upsert([3], {})


def test_item_index_colliding_strings_are_refused_by_name(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No two strings with one xxh3-64 hash are at hand, so the hash is made worse.
    def short_hash(ids: Any, name: str, error: Any) -> np.ndarray:
        return np.array([len(name) for name in ids], np.uint64)

    monkeypatch.setattr("aif_jax.inputs.ids._hashed", short_hash)
    with pytest.raises(ItemIndexError, match=r"'bb' and 'cc' have the same 64-bit hash 2"):
        ItemIndex.build(bundle, ["a", "bb", "cc"], {})
    index = ItemIndex.build(bundle, ["a", "bb"], {})
    with pytest.raises(ItemIndexError, match=r"'bb' and 'dd' have the same 64-bit hash 2"):
        index.upsert(["dd"], {})
    index.upsert(["bb"], {"price": [1.0]})


@pytest.mark.parametrize("ids", [[1, 2, 1], ["x", "y", "x"]])
def test_item_index_repeated_id_is_refused(bundle: Bundle, ids: list[Any]) -> None:
    with pytest.raises(ItemIndexError, match=f"{ids[0]!r} is given twice, in rows 0 and 2"):
        ItemIndex.build(bundle, ids, {})


def test_item_index_malformed_catalogue_is_refused(bundle: Bundle, world: World) -> None:
    with pytest.raises(ItemIndexError, match=r"content: got 3 columns, expected 8"):
        ItemIndex.build(bundle, [1, 2], {}, np.zeros((2, 3), np.float32))
    with pytest.raises(ItemIndexError, match=r"row 1 has length 3"):
        ItemIndex.build(bundle, [1, 2], {}, np.array([[0.0] * 8, [3.0] + [0.0] * 7], np.float32))
    with pytest.raises(SchemaError, match="colour"):
        ItemIndex.build(bundle, [1], {"colour": ["red"]})
    with pytest.raises(SchemaError, match="price"):
        ItemIndex.build(bundle, [1, 2], {"price": [1.0]})
    with pytest.raises(RequestError, match="float"):
        ItemIndex.build(bundle, np.array([1.5]), {})
    with pytest.raises(ItemIndexError, match="rankable: row 0 is 2, expected true or false"):
        ItemIndex.build(bundle, [1], {}, rankable=np.array([2]))


def test_from_rows_takes_complete_rows_only(bundle: Bundle, world: World) -> None:
    built = small(bundle, world)
    rows, _ = built.gather(world.ids[:5])
    copied = ItemIndex.from_rows(bundle, world.ids[:5], rows)
    again, found = copied.gather(world.ids[:5])
    assert found.all()
    assert all(np.array_equal(rows[name], again[name]) for name in rows)
    with pytest.raises(
        ItemIndexError, match=r"rows: have the unknown columns \['x'\], expected .*'item' program"
    ):
        ItemIndex.from_rows(bundle, world.ids[:5], {**rows, "x": rows["h"]})
    del rows["h"]
    with pytest.raises(ItemIndexError, match=r"rows: lack the columns \['h'\], expected .*'item' program"):
        ItemIndex.from_rows(bundle, world.ids[:5], rows)


def test_item_index_upsert_changes_and_delete_removes_rows(bundle: Bundle, world: World) -> None:
    index = small(bundle, world)
    before, _ = index.gather(world.ids[:2])
    assert index.upsert(world.ids[:1], {"price": [0.5]}) == 1
    after, _ = index.gather(world.ids[:2])
    assert not np.array_equal(before["h"][0], after["h"][0])
    assert np.array_equal(before["h"][1], after["h"][1])
    assert index.delete(world.ids[:3]) == 3
    assert index.delete(world.ids[:3]) == 0
    assert index.gather(world.ids[:5])[1].tolist() == [False, False, False, True, True]


def test_set_rankable_changes_flag_and_keeps_row(bundle: Bundle, world: World) -> None:
    index = ItemIndex.build(bundle, [1, 2, 3], {}, rankable=np.array([True, False, True]))
    assert index.gather(item_keys([1, 2, 3]))[0]["rankable"][:, 0].tolist() == [1, 0, 1]
    assert index.set_rankable([1, 2, 99], False) == 2
    assert index.gather(item_keys([1, 2, 3]))[0]["rankable"][:, 0].tolist() == [0, 0, 1]
    rows, _ = index.gather(item_keys([3]))
    index.set_rankable([3], True)
    assert np.array_equal(index.gather(item_keys([3]))[0]["h"], rows["h"])


def test_table_stats_count_rows_and_unknown_values(bundle: Bundle) -> None:
    index = ItemIndex.build(bundle, [1, 2], {"genres": [["drama", "opera"], []]})
    stats = index.stats()
    assert stats["rows"] == 2
    assert stats["encoding"]["unknown"] == {"genres": 1}


def test_item_index_ids_from_view_or_set_are_accepted(bundle: Bundle) -> None:
    ids = np.arange(10, dtype=np.uint64)
    index = ItemIndex.build(bundle, ids[::-2], {})
    assert sorted(index.ids().tolist()) == [1, 3, 5, 7, 9]
    assert index.gather(ids[::-1])[1].tolist() == [True, False] * 5
    assert index.delete(ids[::2][::-1]) == 0
    assert index.upsert(dict.fromkeys([2, 4]).keys(), {}) == 2
    assert index.delete(ids[::-2]) == 5


def test_emptied_table_accepts_ids_of_other_type(bundle: Bundle, tmp_path: Path) -> None:
    index = ItemIndex.build(bundle, ["a", "b"], {})
    index.delete(["a", "b"])
    index.upsert([1, 2], {})
    assert sorted(index.ids().tolist()) == [1, 2]
    index.save(tmp_path / "rows")
    assert sorted(ItemIndex.open(bundle, tmp_path / "rows").ids().tolist()) == [1, 2]
