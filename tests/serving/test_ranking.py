"""What the engine returns is what the unfolded model computes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.features import item_keys
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables, build_tables
from aif_jax.serving import Engine, EngineConfig, InMemoryUsers, Ranking, Shapes, UserStateCache
from aif_jax.types import ItemRecords, UserRecord
from support.served import CONFIG, ENGINE_CONFIG, K_MAX, UNCACHED, World

CONTEXT = {"hour": 17}
SMALL = EngineConfig(k=5, shapes=Shapes(candidates=(32,), histories=(24,)))


def check(
    ranking: Ranking,
    world: World,
    record: UserRecord,
    ids: np.ndarray,
    pair: Mapping[str, Any],
    context: Mapping[str, Any] = CONTEXT,
) -> None:
    """Compare a ranking with the unfolded model, candidate by candidate, and its order."""
    score, heads = world.scores(record, ids, pair, context)
    place = {int(i): p for p, i in enumerate(ids)}
    chosen = [place[int(i)] for i in ranking.ids]
    np.testing.assert_allclose(ranking.scores, score[chosen], rtol=1e-4, atol=1e-6)
    for number, head in enumerate(CONFIG.heads):
        np.testing.assert_allclose(ranking.heads[head], heads[chosen, number], rtol=1e-4, atol=1e-6)
    best = np.sort(score)[::-1][: len(ranking)]
    np.testing.assert_allclose(ranking.scores, best, rtol=1e-4, atol=1e-6)
    assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("user", range(10))
@pytest.mark.parametrize("n", [1, 16, 33, 64, 65, 150])
def test_scores_are_those_of_the_unfolded_model(
    engine: Engine, world: World, users: InMemoryUsers, user: int, n: int
) -> None:
    ids, pair = world.candidates(n, seed=user)
    ranking = engine.begin(user, CONTEXT).rank(ids, pair, k=K_MAX)
    record = users(user)
    assert record is not None
    check(ranking, world, record, ids, pair)
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


def test_ids_keep_their_kind_and_all_their_bits(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    assert ids.min() >= 2**40
    as_array = engine.begin(3).rank(ids, pair)
    as_list = engine.begin(3).rank(ids.tolist(), pair)
    signed = engine.begin(3).rank(ids.astype(np.int64), pair)
    assert as_array.ids.dtype == np.uint64
    assert signed.ids.dtype == np.int64
    assert as_array.ids.tolist() == as_list.ids.tolist() == signed.ids.tolist()
    assert set(as_array.ids.tolist()) <= set(ids.tolist())


def test_string_ids(bundle: Bundle, world: World) -> None:
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
    with Engine(bundle, named_tables, users={"ann": named}.get, config=ENGINE_CONFIG) as engine:
        ranking = engine.begin("ann", CONTEXT).rank(names[:30], pair)
        as_array = engine.begin("ann", CONTEXT).rank(np.array(names[:30]), pair)
    assert all(isinstance(name, str) for name in ranking.ids)
    assert ranking.ids.tolist() == as_array.ids.tolist()
    ids = np.array([int(name.removeprefix("item ")) for name in ranking.ids], np.uint64)
    score, _ = world.scores(record, world.ids[:30], pair, CONTEXT)
    assert ids.tolist() == world.ids[:30][np.argsort(-score)[: len(ids)]].tolist()


def test_absent_features_are_an_input_like_any_other(
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


def test_a_candidate_scores_the_same_in_any_company(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(150)
    score_of: dict[int, set[float]] = {}
    for chosen in (slice(0, 1), slice(0, 7), slice(0, 33), slice(0, 64), slice(0, 150, 7)):
        part = {name: values[chosen] for name, values in pair.items()}
        ranking = engine.begin(6, CONTEXT).rank(ids[chosen], part, k=K_MAX)
        for item, score in zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True):
            score_of.setdefault(item, set()).add(score)
    assert len(score_of) > 20
    assert all(len(scores) == 1 for scores in score_of.values())


def test_a_cached_state_holds_nothing_of_the_context(bundle: Bundle, tables: Tables, world: World) -> None:
    users = InMemoryUsers({1: world.record(1)})
    record = users(1)
    assert record is not None
    ids, pair = world.candidates(30)
    with Engine(bundle, tables, users=users, config=ENGINE_CONFIG) as engine:
        cold = engine.begin(1, {"hour": 3}).rank(ids, pair)
        hot = engine.begin(1, {"hour": 20}).rank(ids, pair)
        again = engine.begin(1, {"hour": 3}).rank(ids, pair)
        assert [r.report.user_state for r in (cold, hot, again)] == ["computed", "hit", "hit"]
        check(cold, world, record, ids, pair, {"hour": 3})
        check(hot, world, record, ids, pair, {"hour": 20})
        assert again.scores.tolist() == cold.scores.tolist()
        assert set(hot.scores.tolist()) != set(cold.scores.tolist())
        # A new revision of the record is another state.
        users.put(1, record.features, record.items[:4], record.types[:4])
        changed = engine.begin(1, {"hour": 3}).rank(ids, pair)
        assert changed.report.user_state == "computed"
        record = users(1)
        assert record is not None
        check(changed, world, record, ids, pair, {"hour": 3})


def test_without_a_cache_every_state_is_computed(
    bundle: Bundle, tables: Tables, users: InMemoryUsers, world: World
) -> None:
    config = dataclasses.replace(SMALL, user_states=UNCACHED)
    ids, pair = world.candidates(10)
    with Engine(bundle, tables, users=users, config=config) as engine:
        states = [engine.begin(4).rank(ids, pair).report.user_state for _ in range(2)]
    assert states == ["computed", "computed"]


def test_the_user_state_cache_stays_within_its_bytes(bundle: Bundle, tables: Tables, world: World) -> None:
    config = dataclasses.replace(SMALL, user_states=UserStateCache(max_bytes=128 * 1024))
    ids, pair = world.candidates(10)
    with Engine(bundle, tables, users=world.record, config=config) as engine:
        for user in range(100):
            engine.begin(user).rank(ids, pair)
        rankings = [engine.begin(user).rank(ids, pair).report.user_state for user in reversed(range(100))]
    assert 0 < rankings.count("hit") < 90


def test_a_deleted_item_is_no_candidate_but_still_counts_in_histories(
    bundle: Bundle, tables: Tables, world: World
) -> None:
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content)
    record = world.record(5)
    gone = np.unique(np.asarray(record.items)[:6])
    config = dataclasses.replace(SMALL, k=20, user_states=UNCACHED)
    others, pair = world.candidates(25, seed=3)
    keep = ~np.isin(others, gone)
    others, pair = others[keep], {name: values[keep] for name, values in pair.items()}
    with Engine(bundle, Tables(index, tables.behaviours), users={5: record}.get, config=config) as engine:
        before = engine.begin(5, CONTEXT).rank(others, pair)
        assert index.delete(gone) == len(gone)
        after = engine.begin(5, CONTEXT).rank(
            np.concatenate([others, gone]),
            {name: np.concatenate([values, values[: len(gone)]]) for name, values in pair.items()},
        )
    assert after.report.missing_items == len(gone)
    assert after.report.unknown_behaviours == 0
    assert not np.isin(after.ids, gone).any()
    assert after.ids.tolist() == before.ids.tolist()
    assert after.scores.tolist() == before.scores.tolist()
    check(after, world, record, others, pair)


def test_behaviours_without_a_row_are_left_out_and_counted(
    bundle: Bundle, tables: Tables, world: World
) -> None:
    known = world.ids[: len(world.ids) // 2]
    n = len(known)
    columns = {name: column[:n] for name, column in world.columns.items()}
    table = BehaviourTable.build(bundle, known, columns, world.content[:n])
    record = world.record(7)
    kept = np.isin(record.items, known)
    ids, pair = world.candidates(20)
    with Engine(bundle, Tables(tables.items, table), users={7: record}.get, config=ENGINE_CONFIG) as engine:
        ranking = engine.begin(7, CONTEXT).rank(ids, pair)
        hit = engine.begin(7, CONTEXT).rank(ids, pair)
    assert ranking.report.unknown_behaviours == hit.report.unknown_behaviours == (~kept).sum() > 0
    masked = UserRecord(
        features=record.features,
        items=np.where(kept, record.items, np.uint64(1)),  # no item has the id 1
        types=record.types,
    )
    check(ranking, world, masked, ids, pair)


def test_items_without_a_row_by_policy(
    bundle: Bundle, tables: Tables, world: World, users: InMemoryUsers
) -> None:
    half = len(world.ids) // 2
    columns = {name: column[:half] for name, column in world.columns.items()}
    index = ItemIndex.build(bundle, world.ids[:half], columns, world.content[:half])
    ids = np.concatenate([world.ids[:8], world.ids[half : half + 4]])
    pair = {"bid": np.full(12, 1.5)}

    def rank(policy: Any) -> Ranking:
        config = dataclasses.replace(SMALL, k=12, missing_items=policy)
        with Engine(bundle, Tables(index, tables.behaviours), users=users, config=config) as engine:
            return engine.begin(4, CONTEXT).rank(ids, pair)

    dropped, default = rank("drop"), rank("default")
    assert dropped.report.missing_items == default.report.missing_items == 4
    assert sorted(dropped.ids.tolist()) == sorted(ids[:8].tolist())
    assert dropped.report.k_given == 8
    assert sorted(default.ids.tolist()) == sorted(ids.tolist())
    of_missing = default.scores[np.isin(default.ids, ids[8:])]
    assert len(set(of_missing.tolist())) == 1  # items of which nothing is known are all alike
    unknown = ItemIndex.build(bundle, [1], {})
    with Engine(bundle, Tables(unknown, tables.behaviours), users=users, config=ENGINE_CONFIG) as engine:
        expected = engine.begin(4, CONTEXT).rank([1], {"bid": [1.5]}).scores[0]
    assert of_missing[0] == expected


def test_items_that_are_not_rankable_are_dropped_and_counted(
    bundle: Bundle, tables: Tables, world: World, users: InMemoryUsers
) -> None:
    rankable = np.arange(len(world.ids)) % 3 != 0
    index = ItemIndex.build(bundle, world.ids, world.columns, world.content, rankable=rankable)
    with Engine(bundle, Tables(index, tables.behaviours), users=users, config=ENGINE_CONFIG) as engine:
        ranking = engine.begin(2).rank(world.ids[:30], {"bid": np.ones(30)}, k=K_MAX)
    assert ranking.report.not_rankable == 10
    assert np.isin(ranking.ids, world.ids[rankable]).all()


def test_duplicates_are_kept_once_the_first_with_its_pair_features(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(10)
    doubled = np.concatenate([ids, ids[::-1], ids])
    bids = np.concatenate([pair["bid"], np.full(20, 50.0)])
    channels = np.tile(pair["channel"], 3)
    once = engine.begin(3).rank(ids, pair)
    thrice = engine.begin(3).rank(doubled, {"bid": bids, "channel": channels})
    assert thrice.report.duplicates == 20
    assert thrice.report.candidates == 30
    assert thrice.ids.tolist() == once.ids.tolist()
    assert thrice.scores.tolist() == once.scores.tolist()


def test_candidates_without_a_score_are_dropped_and_counted(
    engine: Engine, world: World, users: InMemoryUsers
) -> None:
    ids, pair = world.candidates(10)
    rows, _ = engine.tables.items.gather(item_keys(ids))
    broken = {**rows, "h": np.where(np.arange(10)[:, None] < 4, np.float32(np.nan), rows["h"])}
    index = ItemIndex.from_rows(engine.bundle, ids, broken)
    tables = Tables(index, engine.tables.behaviours)
    with Engine(engine.bundle, tables, users=users, config=ENGINE_CONFIG) as with_nan:
        ranking = with_nan.begin(3, CONTEXT).rank(ids, pair)
        assert with_nan.stats()["requests"]["unscored"] == 4
    assert ranking.report.unscored == 4
    assert len(ranking) == 6
    assert np.isfinite(ranking.scores).all()
    assert not np.isin(ranking.ids, ids[:4]).any()


def test_unrecognised_values_are_counted(engine: Engine, world: World, users: InMemoryUsers) -> None:
    ids, pair = world.candidates(10)
    pair["channel"] = np.array(["telepathy"] * 4 + ["ann"] * 6)
    users.put("abroad", {"country": "xx", "shoe_size": 43})
    report = engine.begin("abroad", {"hour": 99}).rank(ids, pair).report
    assert report.unknown_features["unknown"] == {"country": 1, "hour": 1, "channel": 4}
    assert report.unknown_features["ignored"] == {"shoe_size": 1}
