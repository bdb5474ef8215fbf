"""Out-of-core builds give the same rows as builds in memory, however often they are interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ItemIndexError, RequestError
from aif_jax.nearline import BehaviourTable, BuildProgress, ItemIndex, RowTable, Upsert, build, build_snapshot
from support.served import World


def catalogue(
    world: World, size: int = 40, *, rankable: bool = False, names: bool = False
) -> Iterator[Upsert]:
    n = len(world.ids)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        columns = {name: column[rows] for name, column in world.columns.items()}
        flags = np.arange(n)[rows] % 3 > 0 if rankable else None
        ids = [f"sku-{item}" for item in world.ids[rows]] if names else world.ids[rows]
        yield Upsert(ids, columns, world.content[rows], flags)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch counts as done at once."""
    monkeypatch.setattr(build, "_SYNC_S", 0.0)


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("kind", [ItemIndex, BehaviourTable])
def test_build_snapshot_equals_build_in_memory(
    bundle: Bundle, world: World, tmp_path: Path, kind: type[RowTable], names: bool
) -> None:
    seen: list[BuildProgress] = []
    report = build_snapshot(
        kind,
        bundle,
        catalogue(world, rankable=True, names=names),
        tmp_path / "rows",
        total=150,
        progress=seen.append,
    )
    assert (report.rows, report.resumed, report.bad.total()) == (150, 0, 0)
    assert [(step.rows, step.total) for step in seen] == [(n, 150) for n in (40, 80, 120, 150)]
    assert seen[-1].eta_s == 0
    assert seen[0].rate > 0
    ids: Any = [f"sku-{item}" for item in world.ids] if names else world.ids
    flags = {"rankable": np.arange(150) % 3 > 0} if kind is ItemIndex else {}
    expected = kind.build(bundle, ids, world.columns, world.content, **flags)
    opened = kind.open(bundle, tmp_path / "rows")
    assert sorted(opened.ids().tolist()) == sorted(expected.ids().tolist())
    keys = expected.store.cache.keys()
    for name, column in expected.gather(keys)[0].items():
        assert np.array_equal(column, opened.gather(keys)[0][name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


@pytest.mark.usefixtures("no_pause")
def test_build_snapshot_interrupted_resumes_to_same_bytes(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    build_snapshot(ItemIndex, bundle, catalogue(world, 10, names=True), tmp_path / "whole")

    def until(batch: int) -> Iterator[Upsert]:
        for number, records in enumerate(catalogue(world, 10, names=True)):
            if number == batch:
                raise KeyboardInterrupt
            yield records

    for batch in (3, 3, 4, 11):
        with pytest.raises(KeyboardInterrupt):
            build_snapshot(ItemIndex, bundle, until(batch), tmp_path / "rows")
        # What a kill leaves behind the last rows that count.
        for name in ("rows", "keys", "names"):
            with open(tmp_path / "rows.building" / name, "ab") as stream:
                stream.write(b"half of somethi")
        assert not (tmp_path / "rows").exists()
    report = build_snapshot(ItemIndex, bundle, catalogue(world, 10, names=True), tmp_path / "rows")
    assert report.rows == 150
    assert report.resumed >= 100
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.usefixtures("no_pause")
def test_build_snapshot_over_leftovers_of_another_build_is_refused(
    bundle: Bundle, other_bundle: Bundle, world: World, tmp_path: Path
) -> None:
    def broken_off() -> Iterator[Upsert]:
        yield from list(catalogue(world))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_snapshot(ItemIndex, bundle, broken_off(), tmp_path / "rows")
    for kind, model, size, said in [
        (ItemIndex, other_bundle, 40, "was left by a build of version"),
        (BehaviourTable, bundle, 40, "was left by a build of kind item_index"),
        (ItemIndex, bundle, 30, "are not those that were built before"),
    ]:
        with pytest.raises(ItemIndexError, match=f"{said}.*resume=False"):
            build_snapshot(kind, model, catalogue(world, size), tmp_path / "rows")
    assert (
        build_snapshot(ItemIndex, bundle, catalogue(world, 30), tmp_path / "rows", resume=False).rows == 150
    )


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("name", ["rows", "keys", "state.json"])
def test_build_snapshot_over_leftovers_that_were_cut_short_is_refused(
    bundle: Bundle, world: World, tmp_path: Path, name: str
) -> None:
    def broken_off() -> Iterator[Upsert]:
        yield from list(catalogue(world))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_snapshot(ItemIndex, bundle, broken_off(), tmp_path / "rows")
    left = tmp_path / "rows.building" / name
    left.write_bytes(left.read_bytes()[:-8])
    with pytest.raises(ItemIndexError, match=r"(cut short|cannot be read as the state).*resume=False"):
        build_snapshot(ItemIndex, bundle, catalogue(world), tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_build_snapshot_beside_another_build_or_other_files_is_refused(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    def meanwhile() -> Iterator[Upsert]:
        yield from list(catalogue(world))[:1]
        with pytest.raises(ItemIndexError, match="another build writes there"):
            build_snapshot(ItemIndex, bundle, catalogue(world), tmp_path / "rows")
        yield from list(catalogue(world))[1:]

    assert build_snapshot(ItemIndex, bundle, meanwhile(), tmp_path / "rows").rows == 150
    (tmp_path / "rows.building").mkdir()
    (tmp_path / "rows.building" / "notes").write_text("mine")
    with pytest.raises(ItemIndexError, match="holds notes, which is no part of a build"):
        build_snapshot(ItemIndex, bundle, catalogue(world), tmp_path / "rows", resume=False)
    assert (tmp_path / "rows.building" / "notes").read_text() == "mine"


def test_build_snapshot_leaves_out_bad_items_and_refuses_too_many(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    def spoilt(*bad: int) -> Iterator[Upsert]:
        for number, records in enumerate(catalogue(world, 50)):
            content = np.array(records.content)
            for row in bad:
                if row // 50 == number:
                    content[row % 50] = 5.0
            yield Upsert(records.ids, records.columns, content)

    with pytest.raises(ItemIndexError, match=r"3 of 150 items are bad, expected at most 1\.0%.*length 14\.1"):
        build_snapshot(ItemIndex, bundle, spoilt(3, 70, 149), tmp_path / "rows", resume=False)
    report = build_snapshot(
        ItemIndex, bundle, spoilt(3, 70, 149), tmp_path / "rows", max_bad_share=0.05, resume=False
    )
    assert (report.rows, report.bad) == (147, {"ItemIndexError": 3})
    assert [item for item, _ in report.named] == [int(world.ids[row]) for row in (3, 70, 149)]
    index = ItemIndex.open(bundle, tmp_path / "rows")
    assert not index.gather(world.ids[[3, 70, 149]])[1].any()
    good = np.setdiff1d(world.ids, world.ids[[3, 70, 149]])
    expected = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    assert np.array_equal(index.gather(good)[0]["h"], expected.gather(good)[0]["h"])

    def hopeless() -> Iterator[Upsert]:
        for records in catalogue(world, 150):
            yield Upsert(records.ids, {"colour": ["red"] * 150})

    with pytest.raises(ItemIndexError, match=r"more than 100 of 150 items are bad.*colour"):
        build_snapshot(ItemIndex, bundle, hopeless(), tmp_path / "rows")


def test_build_snapshot_names_items_whatever_their_values_raise(bundle: Bundle, tmp_path: Path) -> None:
    prices: list[Any] = [1.0, 10**400, 3.0, [4.0]]
    report = build_snapshot(
        ItemIndex, bundle, [Upsert([11, 12, 13, 14], {"price": prices})], tmp_path / "rows", max_bad_share=0.5
    )
    assert report.rows == 2
    assert [item for item, _ in report.named] == [12, 14]
    assert all(reason for _, reason in report.named)
    for wrong, said in (
        (Upsert([1, 2], {"price": [1.0]}), "price: has 1 rows, expected 2"),
        (5, "got a int"),
    ):
        with pytest.raises(RequestError, match=said):
            build_snapshot(ItemIndex, bundle, [wrong], tmp_path / "other")  # type: ignore[list-item]


def test_build_snapshot_repeated_item_keeps_first_row(bundle: Bundle, world: World, tmp_path: Path) -> None:
    def twice() -> Iterator[Upsert]:
        for records in catalogue(world, 50):
            yield records
            yield Upsert(world.ids[:2], {"price": [9.0, 9.0]})

    report = build_snapshot(ItemIndex, bundle, twice(), tmp_path / "rows", max_bad_share=0.1)
    assert (report.rows, report.bad) == (150, {"Twice": 6})
    index = ItemIndex.open(bundle, tmp_path / "rows")
    expected = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    for name, column in expected.gather(world.ids)[0].items():
        assert np.array_equal(column, index.gather(world.ids)[0][name]), name


def test_build_snapshot_through_link_keeps_link_and_builds_beside_its_target(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "rows").symlink_to(tmp_path / "disk" / "rows")

    def looking() -> Iterator[Upsert]:
        yield from catalogue(world)
        assert (tmp_path / "disk" / "rows.building").is_dir()

    build_snapshot(ItemIndex, bundle, looking(), tmp_path / "rows")
    assert (tmp_path / "rows").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["rows"]
    assert len(ItemIndex.open(bundle, tmp_path / "rows")) == len(world.ids)


def test_build_snapshot_empty_catalogue_builds_and_mixed_ids_are_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    assert build_snapshot(ItemIndex, bundle, [], tmp_path / "rows").rows == 0
    assert len(ItemIndex.open(bundle, tmp_path / "rows")) == 0
    mixed = [Upsert([1], {}), Upsert(["a"], {})]
    with pytest.raises(ItemIndexError, match="got integers and strings"):
        build_snapshot(ItemIndex, bundle, mixed, tmp_path / "mixed")
