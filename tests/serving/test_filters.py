"""Filters of a request: the ranking without what they leave out, and its report."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, compilations
from aif_jax.errors import RequestError
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.serving import Engine, EngineConfig, Filters, Shapes
from aif_jax.types import Candidates, Request
from support.served import (
    GENRES,
    K_MAX,
    N_ITEMS,
    ONE_SIZE,
    Make,
    World,
    assert_same,
    ran,
    ways,
)


def genres_of(world: World, item: int) -> set[str]:
    return set(world.columns["genres"][world.ids.tolist().index(item)])


def kept(world: World, ids: np.ndarray, filters: Filters) -> np.ndarray:
    """Say item by item which candidates stay: the plain reading of what filters promise."""
    excluded = {int(i) for i in filters.exclude}
    allowed = None if filters.categories is None else set(filters.categories)
    return np.array(
        [
            int(i) not in excluded and (allowed is None or bool(allowed & genres_of(world, int(i))))
            for i in ids
        ]
    )


@pytest.mark.parametrize("seed", range(12))
def test_filters_random_request_ranks_as_request_without_left_out(
    engine: Engine, world: World, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids, pair = world.candidates(int(rng.integers(20, N_ITEMS)), seed=seed)
    exclude = rng.choice(world.ids, int(rng.integers(0, 60)), replace=False)
    chosen = rng.choice(GENRES, int(rng.integers(1, 4)), replace=False).tolist()
    filters = Filters(exclude, (None, chosen, set(chosen), tuple(chosen))[seed % 4])
    stay = kept(world, ids, filters)
    expected = engine.begin(5, {"hour": 3}).rank(ids[stay], {n: v[stay] for n, v in pair.items()}, k=K_MAX)
    ranking = engine.begin(5, {"hour": 3}).rank(ids, pair, k=K_MAX, filters=filters)
    assert_same(ranking, expected)  # to the bit: pair features are aligned
    assert all(ranking.heads[h].tolist() == expected.heads[h].tolist() for h in ("ctr", "cvr"))
    report = ranking.report
    assert report.candidates == len(ids)
    assert sum(report.filtered.values()) == np.count_nonzero(~stay)
    assert report.filtered.get("exclude", 0) == np.isin(ids, exclude).sum()


def test_filters_with_duplicates_count_each_item_once(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(30)
    twice = np.concatenate([ids, ids[::-1]])
    doubled = {name: np.concatenate([values, values]) for name, values in pair.items()}
    expected = engine.begin(5).rank(ids, pair, filters=Filters(ids[5:9], ["drama", "noir"]))
    ranking = engine.begin(5).rank(twice, doubled, filters=Filters(ids[5:9], ["drama", "noir"]))
    assert ranking.scores.tolist() == expected.scores.tolist()
    assert ranking.report.duplicates == 30
    assert ranking.report.filtered == expected.report.filtered


@ways
@pytest.mark.parametrize("own", [True, False])
def test_filters_every_way_to_rank_leaves_out_the_same(make: Make, world: World, way: str, own: bool) -> None:
    ids, pair = world.candidates(40)
    seen: list[Any] = []

    def retrieve(request: Request) -> Candidates:
        seen.append(request.filters)
        return Candidates(ids, pair)

    engine = make(retrieve=retrieve)
    filters = Filters(exclude=ids[:20])
    expected = engine.begin(4).rank(ids[20:], {name: values[20:] for name, values in pair.items()})
    if own:
        ranking = ran(getattr(engine, way), 4, filters=filters)
    else:
        ranking = ran(getattr(engine.begin(4), way), ids, pair, filters=filters)
    assert ranking.ids.tolist() == expected.ids.tolist()
    assert seen == ([filters] if own else [])
    requests = engine.stats()["requests"]
    assert requests["filtered:exclude"] == 20
    assert "filtered:categories" not in requests


def test_filters_rank_many_for_all_or_for_each_ranks_as_alone(make: Make, world: World) -> None:
    ids, pair = world.candidates(40)
    engine = make(retrieve=lambda request: Candidates(ids, pair))
    one, other = Filters(ids[:5]), Filters(categories=["noir"])
    for given, each in ((one, [one] * 3), ([one, None, other], [one, None, other])):
        rankings = engine.rank_many([1, 2, 3], k=5, filters=given)
        for user, filters, ranking in zip([1, 2, 3], each, rankings, strict=True):
            assert ranking.ids.tolist() == engine.rank(user, k=5, filters=filters).ids.tolist()
    with pytest.raises(RequestError, match="filters: got 2 for 3 users"):
        engine.rank_many([1, 2, 3], filters=[one, other])
    with pytest.raises(RequestError, match="filters: got a dict"):
        engine.rank_many([1, 2], filters={"exclude": [1]})


def test_filters_item_with_several_categories_passes_if_one_is_allowed(engine: Engine, world: World) -> None:
    several = [int(i) for i in world.ids if len(genres_of(world, int(i))) > 1]
    for genre in GENRES:
        ranking = engine.begin(2).rank(several, filters=Filters(categories=[genre]), k=K_MAX)
        having = [item for item in several if genre in genres_of(world, item)]
        assert len(ranking) == min(K_MAX, len(having)) > 0
        assert set(ranking.ids.tolist()) <= set(having)


@pytest.mark.parametrize("kind", ["native", "portable", "device"])
@pytest.mark.parametrize("missing", ["drop", "default"])
def test_filters_missing_items_have_no_category(
    make: Make, bundle: Bundle, tables: Tables, world: World, missing: str, kind: str
) -> None:
    served = Bundle.load(bundle.path, prefer="native" if kind == "native" else "portable")
    rows = "device" if kind == "device" else "host"
    shapes = Shapes(candidates=(32,), histories=(24,))
    config = EngineConfig(k=10, shapes=shapes, missing_items=missing, item_rows=rows)
    engine = make((served, tables), config=config)
    ids = np.concatenate([world.ids[:20], np.arange(1, 5, dtype=np.uint64)])
    report = engine.begin(3).rank(ids, {"bid": np.ones(24)}, filters=Filters(categories=["noir"])).report
    others = sum("noir" not in genres_of(world, int(i)) for i in world.ids[:20])
    left = {"drop": (others, 4), "default": (others + 4, 0)}[missing]
    assert (report.filtered["categories"], report.missing_items) == left
    assert report.k_given == min(10, 20 - others)


def test_filters_pair_features_of_left_out_items_are_not_read(engine: Engine, world: World) -> None:
    ids, _ = world.candidates(6)
    bids: list[Any] = [1.0, "not a number", 1.0, "nor this", 1.0, 1.0]
    with pytest.raises(RequestError, match="'bid'"):
        engine.begin(3).rank(ids, {"bid": bids})
    ranking = engine.begin(3).rank(ids, {"bid": bids}, filters=Filters(ids[[1, 3]]))
    assert set(ranking.ids.tolist()) == set(ids[[0, 2, 4, 5]].tolist())
    report = engine.begin(3).rank(ids, {"channel": ["?"] * 6}, filters=Filters(ids[:4])).report
    assert report.unknown_features["unknown"] == {"channel": 2}


@pytest.mark.parametrize("bad", [[1.0], 1.0, None])
def test_filters_column_of_another_length_is_refused(engine: Engine, world: World, bad: Any) -> None:
    ids, _ = world.candidates(6)
    with pytest.raises(RequestError, match=r"pair features.*'bid'"):
        engine.begin(3).rank(ids, {"bid": bad}, filters=Filters(ids))


def test_filters_nothing_left_gives_empty_ranking_with_reason(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(12)
    before = compilations()
    for filters in (Filters(ids), Filters(categories=[]), Filters(ids[:6], [])):
        for ranking in (
            engine.begin(3).rank(ids, pair, filters=filters),
            asyncio.run(engine.begin(3).rank_async(ids, pair, filters=filters)),
        ):
            assert len(ranking) == len(ranking.scores) == 0
            assert {head: len(values) for head, values in ranking.heads.items()} == {"ctr": 0, "cvr": 0}
            report = json.loads(json.dumps(ranking.report.to_json()))
            assert (report["k_given"], report["calls"]) == (0, 0)
            assert sum(report["filtered"].values()) == 12
            assert report["empty_because"].startswith("of 12 candidates none was left: ")
    assert "6 excluded by the request, 6 of no category" in report["empty_because"]
    assert compilations() == before
    assert engine.begin(3).rank(ids).report.empty_because == ""


def test_filters_unknown_categories_are_counted_or_refused(engine: Engine, world: World) -> None:
    ids, _ = world.candidates(30)
    known = engine.begin(3).rank(ids, filters=Filters(categories=["noir"]))
    ranking = engine.begin(3).rank(ids, filters=Filters(categories=["noir", "opera", None]))
    assert ranking.ids.tolist() == known.ids.tolist()
    assert ranking.report.unknown_features["unknown"]["filters.categories"] == 2
    with pytest.raises(RequestError, match=r"categories: \['opera'\].*'genres' knows none of these"):
        engine.begin(3).rank(ids, filters=Filters(categories=["opera"]))
    with pytest.raises(RequestError, match=r"categories: .*integers"):
        engine.begin(3).rank(ids, filters=Filters(categories=[1]))


def test_filters_item_of_unknown_category_is_left_out(
    make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    index = ItemIndex.build(bundle, [1, 2, 3], {"genres": [["opera"], ["noir"], []]})
    engine = make((bundle, tables._replace(items=index)))
    ranking = engine.begin(3).rank([1, 2, 3], filters=Filters(categories=["noir", "opera"]))
    assert ranking.ids.tolist() == [2]


def test_filters_rows_without_category_are_refused(make: Make, tiny_bundle: Bundle) -> None:
    tables = Tables(ItemIndex.build(tiny_bundle, [1, 2], {}), BehaviourTable.build(tiny_bundle, [1], {}))
    with make((tiny_bundle, tables), shapes=ONE_SIZE) as engine:
        with pytest.raises(RequestError, match="hold no category to filter by; train with a schema"):
            engine.begin(3).rank([1, 2], filters=Filters(categories=["noir"]))
        assert engine.begin(3).rank([1, 2], filters=Filters([1])).ids.tolist() == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": [1.5]}, "exclude: row 0 is 1.5"),
        ({"exclude": "abc"}, "exclude: got 'abc'"),
        ({"exclude": 3}, "exclude: got 3"),
        ({"exclude": None}, "exclude: got None"),
        ({"exclude": [1, "a"]}, "exclude: got int .*, str"),
        ({"exclude": np.zeros((2, 2), int)}, r"exclude: got an array of shape \(2, 2\)"),
        ({"exclude": [-1]}, "exclude: row 0 is -1"),
        ({"categories": "noir"}, "categories: got 'noir', expected an array or list"),
        ({"categories": 3}, "categories: got 3"),
    ],
)
def test_filters_malformed_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Filters(**arguments)


def test_filters_excluded_ids_of_another_kind_are_refused(engine: Engine, world: World) -> None:
    with pytest.raises(RequestError, match="exclude: got strings, but the candidates' ids are integers"):
        engine.begin(3).rank(world.ids[:5], filters=Filters(["a"]))
    with pytest.raises(RequestError, match="exclude: got integers, but the candidates' ids are strings"):
        engine.begin(3).rank(["a", "b"], filters=Filters([1]))


@pytest.mark.parametrize("kind", ["array", "list", "set", "int64", "object", "many"])
def test_filters_exclude_in_any_collection_leaves_out_the_same(
    engine: Engine, world: World, kind: str
) -> None:
    ids, pair = world.candidates(30)
    out = ids[:12]
    exclude: Any = {
        "array": out, "list": out.tolist(), "set": set(out.tolist()), "int64": out.astype(np.int64),
        "object": out.astype(object),
        "many": np.concatenate([out, np.arange(200_000, dtype=np.uint64)]),
    }[kind]  # fmt: skip
    ranking = engine.begin(3).rank(ids, pair, k=K_MAX, filters=Filters(exclude))
    assert set(ranking.ids.tolist()) == set(ids[12:].tolist())


def test_filters_string_ids_are_excluded_by_name(
    make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    names = [f"item {i}" for i in range(N_ITEMS)]
    index = ItemIndex.build(bundle, names, world.columns, world.content)
    engine = make((bundle, tables._replace(items=index)))
    for out in (names[:10], np.array(names[:10]), set(names[:10]), np.array(names[:10], object)):
        ranking = engine.begin(3).rank(names[:25], k=K_MAX, filters=Filters(out, GENRES))
        having = {n for n, genres in zip(names, world.columns["genres"], strict=True) if len(genres)}
        assert set(ranking.ids.tolist()) == set(names[10:25]) & having
        assert ranking.report.filtered["exclude"] == 10
