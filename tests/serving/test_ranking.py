"""Rankings of an engine: scores of the unfolded model, and items left out by policy."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.errors import UnknownItemError
from aif_jax.features import item_keys
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables, build_tables
from aif_jax.processes import OfOneProcess
from aif_jax.serving import Engine, InMemoryUsers, Ranking
from aif_jax.types import ItemRecords, UserRecord
from support.served import (
    CONFIG,
    CONTEXT,
    K_MAX,
    UNCACHED,
    Make,
    World,
    assert_ranks_as,
    assert_same,
    make_model,
    tables_of,
)


@pytest.mark.parametrize("user", range(10))
@pytest.mark.parametrize("n", [1, 16, 33, 64, 65, 150])
def test_ranking_any_size_scores_as_unfolded_model(
    engine: Engine, world: World, users: InMemoryUsers, user: int, n: int
) -> None:
    ids, pair = world.candidates(n, seed=user)
    ranking = engine.begin(user, CONTEXT).rank(ids, pair, k=K_MAX)
    record = users(user)
    assert record is not None
    assert_ranks_as(ranking, ids, *world.scores(record, ids, pair, CONTEXT))
    report = ranking.report
    assert report.k_given == len(ranking) == min(n, K_MAX)
    assert report.k_asked == K_MAX
    assert report.bucket == (32 if n <= 32 else 64)
    assert report.calls == -(-n // 64)
    assert report.long_bucket == (8 if 3 * user <= 8 else 24)
    assert report.truncated_behaviours == max(0, 3 * user - CONFIG.long_length)
    assert report.candidates == n
    assert report.rung == 0
    assert report.version == engine.version


def test_report_as_text_is_a_line_of_facts_and_a_timeline_that_fit_a_terminal(
    engine: Engine, world: World
) -> None:
    ids, pair = world.candidates(20, seed=1)
    report = engine.begin(1, CONTEXT).rank(ids, pair, k=5).report
    first, *timeline = str(report).splitlines()
    assert first == repr(report)
    assert "5 of 20 candidates" in first
    assert len(timeline) > 3
    assert max(map(len, [first, *timeline])) <= 160


def test_engine_completion_shows_documented_names_only() -> None:
    pages = "".join(
        page.read_text(encoding="utf-8") for page in (Path(__file__).parents[2] / "docs").glob("*.md")
    )
    shown = {name for name in dir(Engine) if not name.startswith("_")} - {
        *dir(OfOneProcess),
        "unpickled",
        "closed",
    }
    assert {name for name in shown if f"`{name}" not in pages and f".{name}" not in pages} == set()
    assert shown >= {"begin", "rank", "rank_many", "publish", "rollback", "close"}


def test_ranking_model_that_reads_no_histories_scores_as_unfolded_model(
    make: Make, world: World, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, blocks=("profile_item", "context", "pair"))
    world = dataclasses.replace(world, model=make_model(3, config))
    served = tables_of(export_bundle(world.model, tmp_path / "bundle", k_max=K_MAX), world)
    ids, pair = world.candidates(20)
    record = world.record(1)
    with make(served, users={1: record}.get) as engine:
        ranking = engine.begin(1, CONTEXT).rank(ids, pair, k=K_MAX)
    assert_ranks_as(ranking, ids, *world.scores(record, ids, pair, CONTEXT))


def test_ranking_ids_keep_kind_and_all_bits(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    assert ids.min() >= 2**40
    as_array = engine.begin(3).rank(ids, pair)
    as_list = engine.begin(3).rank(ids.tolist(), pair)
    signed = engine.begin(3).rank(ids.astype(np.int64), pair)
    assert as_array.ids.dtype == np.uint64
    assert signed.ids.dtype == np.int64
    assert as_array.ids.tolist() == as_list.ids.tolist() == signed.ids.tolist()
    assert set(as_array.ids.tolist()) <= set(ids.tolist())


def test_ranking_string_ids_rank_as_integers(make: Make, bundle: Bundle, world: World) -> None:
    n = 40
    names = [f"item {key}" for key in world.ids[:n].tolist()]
    columns = {name: column[:n] for name, column in world.columns.items()}
    named_tables = build_tables(bundle, ItemRecords(names, columns, world.content[:n]))
    history = np.arange(10)
    record = UserRecord(features={"country": "fr"}, items=world.ids[history], types=[0] * 10)
    named = UserRecord(
        features={"country": "fr"}, items=[names[i] for i in history], types=["click"] * 10, revision=1
    )
    pair = {"bid": np.linspace(0.1, 2.0, 30)}
    with make((bundle, named_tables), users={"ann": named}.get) as engine:
        ranking = engine.begin("ann", CONTEXT).rank(names[:30], pair)
        as_array = engine.begin("ann", CONTEXT).rank(np.array(names[:30]), pair)
    assert all(isinstance(name, str) for name in ranking.ids)
    assert ranking.ids.tolist() == as_array.ids.tolist()
    ids = np.array([int(name.removeprefix("item ")) for name in ranking.ids], np.uint64)
    score, _ = world.scores(record, world.ids[:30], pair, CONTEXT)
    assert ids.tolist() == world.ids[:30][np.argsort(-score)[: len(ids)]].tolist()


def test_ranking_absent_pair_features_score_as_missing(
    engine: Engine, world: World, users: InMemoryUsers
) -> None:
    ids, _ = world.candidates(20)
    # Without a bid the score is 0 for everybody; heads still differ.
    ranking = engine.begin(5).rank(ids)
    assert ranking.scores.tolist() == [0.0] * len(ranking)
    assert (
        ranking.ids.tolist() == ids[: len(ranking)].tolist()
    )  # equal scores: in the order of the candidates
    _, heads = world.scores(known_record(users, 5), ids, {}, {})
    np.testing.assert_allclose(ranking.heads["ctr"], heads[: len(ranking), 0], rtol=1e-4)


def known_record(users: InMemoryUsers, user: int) -> UserRecord:
    record = users(user)
    assert record is not None
    return record


def test_ranking_candidate_scores_the_same_in_any_company(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(150)
    score_of: dict[int, set[float]] = {}
    for chosen in (slice(0, 1), slice(0, 7), slice(0, 33), slice(0, 64), slice(0, 150, 7)):
        part = {name: values[chosen] for name, values in pair.items()}
        ranking = engine.begin(6, CONTEXT).rank(ids[chosen], part, k=K_MAX)
        for item, score in zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True):
            score_of.setdefault(item, set()).add(score)
    assert len(score_of) > 20
    assert all(len(scores) == 1 for scores in score_of.values())


def test_ranking_deleted_item_is_dropped_but_counts_in_histories(
    make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    record = world.record(5)
    gone = np.unique(np.asarray(record.items)[:6])
    others, pair = world.candidates(25, seed=3)
    keep = ~np.isin(others, gone)
    others, pair = others[keep], {name: values[keep] for name, values in pair.items()}
    with make(
        (bundle, tables._replace(items=index)), users={5: record}.get, k=20, user_states=UNCACHED
    ) as engine:
        before = engine.begin(5, CONTEXT).rank(others, pair)
        assert index.delete(gone) == len(gone)
        after = engine.begin(5, CONTEXT).rank(
            np.concatenate([others, gone]),
            {name: np.concatenate([values, values[: len(gone)]]) for name, values in pair.items()},
        )
    assert after.report.missing_items == len(gone)
    assert after.report.unknown_behaviours == 0
    assert not np.isin(after.ids, gone).any()
    assert_same(after, before)
    assert_ranks_as(after, others, *world.scores(record, others, pair, CONTEXT))


def test_ranking_behaviours_without_row_are_left_out_and_counted(
    make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    known = world.ids[: len(world.ids) // 2]
    n = len(known)
    columns = {name: column[:n] for name, column in world.columns.items()}
    table = BehaviourTable.build(bundle, known, columns, world.content[:n])
    record = world.record(7)
    kept = np.isin(record.items, known)
    ids, pair = world.candidates(20)
    with make((bundle, tables._replace(behaviours=table)), users={7: record}.get) as engine:
        ranking = engine.begin(7, CONTEXT).rank(ids, pair)
        hit = engine.begin(7, CONTEXT).rank(ids, pair)
    assert ranking.report.unknown_behaviours == hit.report.unknown_behaviours == (~kept).sum() > 0
    masked = UserRecord(
        features=record.features,
        items=np.where(kept, record.items, np.uint64(1)),  # no item has the id 1
        types=record.types,
        times=record.times,
    )
    assert_ranks_as(ranking, ids, *world.scores(masked, ids, pair, CONTEXT))


def test_ranking_items_without_row_follow_policy(
    make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    half = len(world.ids) // 2
    columns = {name: column[:half] for name, column in world.columns.items()}
    index = ItemIndex.build(bundle, world.ids[:half], columns, world.content[:half])
    ids = np.concatenate([world.ids[:8], world.ids[half : half + 4]])
    pair = {"bid": np.full(12, 1.5)}

    def rank(policy: Any) -> Ranking:
        with make((bundle, tables._replace(items=index)), k=12, missing_items=policy) as engine:
            return engine.begin(4, CONTEXT).rank(ids, pair)

    dropped, default = rank("drop"), rank("default")
    assert dropped.report.missing_items == default.report.missing_items == 4
    assert sorted(dropped.ids.tolist()) == sorted(ids[:8].tolist())
    assert dropped.report.k_given == 8
    assert sorted(default.ids.tolist()) == sorted(ids.tolist())
    of_missing = default.scores[np.isin(default.ids, ids[8:])]
    assert len(set(of_missing.tolist())) == 1  # items of which nothing is known are all alike
    unknown = ItemIndex.build(bundle, [1], {})
    with make((bundle, tables._replace(items=unknown))) as engine:
        expected = engine.begin(4, CONTEXT).rank([1], {"bid": [1.5]}).scores[0]
    assert of_missing[0] == expected


def test_ranking_items_not_rankable_are_dropped_and_counted(
    make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    rankable = np.arange(len(world.ids)) % 3 != 0
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content, rankable=rankable)
    with make((bundle, tables._replace(items=index))) as engine:
        ranking = engine.begin(2).rank(world.ids[:30], {"bid": np.ones(30)}, k=K_MAX)
    assert ranking.report.not_rankable == 10
    assert np.isin(ranking.ids, world.ids[rankable]).all()


def test_ranking_duplicates_keep_first_with_its_pair_features(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(10)
    doubled = np.concatenate([ids, ids[::-1], ids])
    bids = np.concatenate([pair["bid"], np.full(20, 50.0)])
    channels = np.tile(pair["channel"], 3)
    once = engine.begin(3).rank(ids, pair)
    thrice = engine.begin(3).rank(doubled, {"bid": bids, "channel": channels})
    assert thrice.report.duplicates == 20
    assert thrice.report.candidates == 30
    assert_same(thrice, once)


def test_ranking_candidates_without_score_are_dropped_and_counted(
    make: Make, engine: Engine, world: World, users: InMemoryUsers
) -> None:
    ids, pair = world.candidates(10)
    rows, _ = engine.tables.items.gather(item_keys(ids))
    broken = {**rows, "h": np.where(np.arange(10)[:, None] < 4, np.float32(np.nan), rows["h"])}
    index = ItemIndex.from_rows(engine.bundle, ids, broken)
    with make((engine.bundle, engine.tables._replace(items=index))) as with_nan:
        ranking = with_nan.begin(3, CONTEXT).rank(ids, pair)
        assert with_nan.stats()["requests"]["unscored"] == 4
    assert ranking.report.unscored == 4
    assert len(ranking) == 6
    assert np.isfinite(ranking.scores).all()
    assert not np.isin(ranking.ids, ids[:4]).any()


def test_ranking_unknown_feature_values_are_counted(
    engine: Engine, world: World, users: InMemoryUsers
) -> None:
    ids, pair = world.candidates(10)
    pair["channel"] = np.array(["telepathy"] * 4 + ["ann"] * 6)
    users.put("abroad", {"country": "xx", "shoe_size": 43})
    report = engine.begin("abroad", {"hour": 99}).rank(ids, pair).report
    assert report.unknown_features["unknown"] == {"country": 1, "hour": 1, "channel": 4}
    assert report.unknown_features["ignored"] == {"shoe_size": 1}


def test_ranking_unknown_items_are_refused_by_policy(make: Make, world: World) -> None:
    engine = make(missing_items="error")
    with pytest.raises(
        UnknownItemError, match="candidates: 2 of 3 have no row in the item index, the first is 7"
    ):
        engine.begin(3).rank([int(world.ids[0]), 7, 8])


def test_ranking_without_known_items_is_empty(engine: Engine) -> None:
    ranking = engine.begin(3).rank([1, 2, 3])
    assert len(ranking) == 0
    assert ranking.report.missing_items == 3
    assert ranking.heads.keys() == {"ctr", "cvr"}


@pytest.mark.parametrize("n", [20, 100])
def test_ranking_zeros_of_both_signs_are_in_order_of_arrival(engine: Engine, world: World, n: int) -> None:
    ids, _ = world.candidates(n)
    bids = np.where(np.arange(n) % 2, 0.0, -0.0)  # the score is a product with the bid
    ranking = engine.begin(5).rank(ids, {"bid": bids}, k=K_MAX)
    assert ranking.ids.tolist() == ids[:K_MAX].tolist()
    assert ranking.scores.tolist() == [0.0] * K_MAX
    bids[7] = 1.0
    ranking = engine.begin(5).rank(ids, {"bid": bids}, k=K_MAX)
    assert ranking.ids.tolist() == [ids[7], *np.delete(ids, 7)[: K_MAX - 1].tolist()]
