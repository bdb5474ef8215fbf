"""User states that go on from earlier ones: the answers are those of states computed whole."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError
from aif_jax.features.continuation import WAYS, Kept
from aif_jax.nearline import Tables
from aif_jax.serving import EngineConfig, Shapes, UserStateCache
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_program import compute_states
from aif_jax.serving.user_states import UserState
from aif_jax.types import UserRecord
from support.served import CONFIG, Make, Served, World, exported_once, make_model, part_of, tables_of

LONG = 80
SHAPES = Shapes(candidates=(32,), histories=(LONG,), users=(2,))
EXTENDING = UserStateCache(extend=True, ttl_s=None)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = CONFIG.replace(blocks=("self_attention", "encoder"), encoder_layers=3, long_length=LONG)
    return exported_once(tmp_path_factory, "deep", make_model(3, config))


@pytest.fixture(scope="module")
def served(deep: Bundle, world: World) -> Served:
    """Bundle and tables for tests that do not write to them; the behaviour table lacks some items."""
    return tables_of(deep, world, behaviours=np.arange(10, 150))


@pytest.fixture(scope="module")
def generations(served: Served) -> Iterator[tuple[Generation, Generation]]:
    """One that extends states, and one that does not."""
    made = tuple(
        Generation(*served, EngineConfig(k=10, shapes=SHAPES, user_states=UserStateCache(extend=extend)))
        for extend in (True, False)
    )
    for each in made:
        each.warm()
    yield made
    for each in made:
        each.close()


def test_bundle_kept_columns_follow_from_what_the_encoder_reads(
    deep: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = CONFIG.replace(blocks=("encoder", "sim_hard"), encoder_layers=2, encoder_gaps=False)
    timeless = exported_once(tmp_path_factory, "timeless", make_model(3, config))
    assert deep.kept_columns == {"event_kept": (np.float32, (2, CONFIG.encoder_width))}
    assert deep.kept_sources == ["event", "gap"]
    assert timeless.kept_sources == ["event"]


def last(record: UserRecord, n: int) -> UserRecord:
    """Return the record as it was at its n-th behaviour, with a revision of its own."""
    since = slice(len(record.items) - n, None)
    columns = {name: getattr(record, name)[since] for name in ("items", "types", "times")}
    return dataclasses.replace(record, **columns, revision=n)


def computed(generation: Generation, records: Any, kept: Any = None) -> list[UserState]:
    states = compute_states(list(enumerate(records)), LONG, generation, kept=kept)
    assert all(isinstance(state, UserState) for state in states)
    return states  # type: ignore[return-value]


def test_user_program_random_appended_parts_equal_the_whole(
    generations: tuple[Generation, Generation], world: World
) -> None:
    extending, whole = generations
    rng, seen = np.random.default_rng(0), set[str]()
    for turn in range(12):
        records = [world.record(int(rng.integers(1000)), LONG) for _ in range(2)]
        lengths = rng.integers(0, LONG // 2, 2)
        kept: list[Kept | None] = [None, None]
        while lengths.max() <= LONG:
            now = [last(record, int(n)) for record, n in zip(records, lengths, strict=True)]
            users = slice(0, 1 + turn % 2)
            got = computed(extending, now[users], kept[users])
            for state, expected in zip(got, computed(whole, now[users]), strict=True):
                assert expected.kept is None
                seen.add(state.why)
                assert state.leaves.keys() == expected.leaves.keys()
                for name, leaf in expected.leaves.items():
                    np.testing.assert_allclose(state.leaves[name], leaf, rtol=1e-4, atol=1e-5)
            kept[users] = [state.kept for state in got]
            lengths += rng.choice([0, 1, 5, 31, 32, 33], 2)
    assert seen == {"extended", "first", "many"}


def test_user_states_continued_histories_are_extended_and_others_computed_whole(
    make: Make, deep: Bundle, world: World
) -> None:
    """Scores are those of an engine that extends nothing, and everything is counted."""
    record = world.record(3, LONG + 40)
    # Of the same rows each; both are written to.
    given = [tables_of(deep, world, behaviours=np.arange(10, 150)) for _ in range(2)]
    answered: dict[str, UserRecord] = {}
    engines = [
        make(own, users=lambda user: answered["now"], shapes=SHAPES, user_states=states)
        for own, states in zip(given, (EXTENDING, UserStateCache()), strict=True)
    ]
    ids, pair = world.candidates(30)

    turns = itertools.count()

    def origin(now: UserRecord) -> str:
        answered["now"] = dataclasses.replace(now, revision=next(turns))
        extended, expected = (engine.begin(1).rank(ids, pair) for engine in engines)
        assert expected.report.user_state == "computed"
        np.testing.assert_allclose(extended.scores, expected.scores, rtol=1e-4, atol=1e-6)
        return extended.report.user_state

    def updated(rows: Any) -> None:
        for _, tables in given:
            new_ids, columns, content = part_of(world, rows)
            tables.behaviours.upsert(new_ids, {**columns, "price": [9.0] * len(new_ids)}, content)

    assert [origin(last(record, n)) for n in (0, 20, 20, 50)] == [
        "computed",
        "extended",
        "extended",
        "extended",
    ]
    assert [origin(last(record, n)) for n in (49, 50, 51)] == ["computed", "extended", "extended"]
    other = dataclasses.replace(last(record, 52), types=(last(record, 52).types + 1) % 3)
    assert origin(other) == "computed"
    assert [origin(last(record, n)) for n in (53, 54)] == ["computed", "extended"]
    early = dataclasses.replace(last(record, 54), times=last(record, 54).times - np.linspace(0, 1e6, 54))
    assert origin(early) == "computed"
    oldest = int(np.flatnonzero(np.isin(world.ids, record.items[-1]))[0])
    assert origin(last(record, 54)) == "computed"
    updated([oldest])
    assert [origin(last(record, n)) for n in (55, 56)] == ["computed", "extended"]
    lacking = world.ids[0]
    unknown = dataclasses.replace(
        last(record, 56), items=np.r_[record.items[-56:][:30], [lacking], record.items[-25:]]
    )
    assert [origin(unknown), origin(unknown)] == ["computed", "extended"]
    updated([0])
    assert origin(unknown) == "computed"
    assert [origin(last(record, n)) for n in (60, LONG, LONG + 1, LONG + 2)] == [
        "computed", "extended", "computed", "computed",
    ]  # fmt: skip
    stats = engines[0].stats()["user_states"][str(LONG)]
    assert {way: stats[way] for way in WAYS} == {
        "extended": 9, "first": 1, "changed": 9, "slid": 2, "many": 0,
    }  # fmt: skip
    assert stats["bytes_per_state"] == stats["payload_bytes"]
    plain = engines[1].stats()["user_states"][str(LONG)]
    assert not plain.keys() & {*WAYS}
    kept_bytes = LONG * 2 * CONFIG.encoder_width * 4 + 5 * 4
    assert stats["bytes_per_state"] == plain["bytes_per_state"] + kept_bytes


def test_user_states_publish_and_invalidate_forget_what_was_kept(
    make: Make, served: Served, deep: Bundle, world: World
) -> None:
    answered = {"now": last(world.record(3, LONG), 40)}
    engine = make(served, users=lambda user: answered["now"], shapes=SHAPES, user_states=EXTENDING)
    ids, pair = world.candidates(30)

    def ranked(n: int) -> Any:
        answered["now"] = last(world.record(3, LONG), n)
        return engine.begin(1).rank(ids, pair)

    assert [ranked(n).report.user_state for n in (40, 41)] == ["computed", "extended"]
    assert engine.invalidate(1) == 1
    assert [ranked(n).report.user_state for n in (42, 43)] == ["computed", "extended"]
    # The states of recent users are computed for the new generation, by its tables.
    fewer = tables_of(deep, world, behaviours=np.arange(75))
    engine.publish(*fewer)
    after = ranked(44)
    assert after.report.user_state == "extended"
    fresh = make(fewer, users=lambda user: answered["now"], shapes=SHAPES)
    np.testing.assert_allclose(after.scores, fresh.begin(1).rank(ids, pair).scores, rtol=1e-4, atol=1e-6)


def test_user_states_extend_of_a_shallow_model_keeps_nothing(bundle: Bundle, tables: Tables) -> None:
    generation = Generation(bundle, tables, EngineConfig(k=10, user_states=EXTENDING))
    assert not generation.kept
    assert not bundle.kept_columns
    with pytest.raises(ConfigError, match=r"user_states\.extend"):
        UserStateCache(extend=1)  # type: ignore[arg-type]
