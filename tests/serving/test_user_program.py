"""User sides computed in one call of the program: each state is that of the user alone."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import UserSourceError
from aif_jax.nearline import Tables
from aif_jax.serving import EngineConfig, Shapes
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_program import compute_state, compute_states
from aif_jax.types import UserRecord
from support.served import World


@pytest.fixture(scope="module")
def generation(bundle: Bundle, tables: Tables) -> Iterator[Generation]:
    shapes = Shapes(candidates=(32,), histories=(8, 24), users=(2, 4))
    made = Generation(bundle, tables, EngineConfig(k=10, shapes=shapes))
    made.warm()
    yield made
    made.close()


@pytest.mark.parametrize("users", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [8, 24])
@pytest.mark.parametrize("long", [True, False])
def test_user_program_batch_gives_each_user_own_state(
    generation: Generation, world: World, users: int, length: int, long: bool
) -> None:
    rng = np.random.default_rng(users * length)
    for _ in range(4):
        lengths = [0, 3, length, length + 40, *rng.integers(0, length + 1, 8)]
        rng.shuffle(lengths)
        records = [world.record(int(rng.integers(1000)), n) for n in lengths[:users]]
        records[0].items[:2] = 7  # of which the behaviour table has no rows
        together = compute_states(list(enumerate(records)), length, generation, long=long)
        for user, (record, state) in enumerate(zip(records, together, strict=True)):
            alone = compute_state(user, record, length, generation, long=long)
            assert not isinstance(state, Exception)
            assert (state.length, state.hit, state.unknown_behaviours, state.truncated) == (
                alone.length, alone.hit, alone.unknown_behaviours, alone.truncated,
            )  # fmt: skip
            assert state.encoding is not None
            assert alone.encoding is not None
            assert state.encoding.as_dict() == alone.encoding.as_dict()
            assert state.leaves.keys() == alone.leaves.keys()
            for name, leaf in alone.leaves.items():
                expected, given = np.asarray(leaf), np.asarray(state.leaves[name])
                assert (given.shape, given.dtype) == (expected.shape, expected.dtype)
                if np.issubdtype(expected.dtype, np.floating) or expected.dtype.kind == "V":
                    np.testing.assert_allclose(
                        given.astype(np.float64), expected.astype(np.float64), rtol=1e-4, atol=1e-5
                    )
                else:
                    np.testing.assert_array_equal(given, expected)


def test_user_program_malformed_record_fails_alone(generation: Generation, world: World) -> None:
    good = [world.record(user) for user in range(3)]
    bad = UserRecord({}, good[0].items, good[0].types[:-1])
    users = [(0, good[0]), (1, bad), (2, good[1]), (3, good[2])]
    states = compute_states(users, 24, generation)
    untimely = dataclasses.replace(good[0], times=good[0].times[:-1])
    with pytest.raises(UserSourceError, match="18 items and 17 times; expected one time for each item, or"):
        compute_state(0, untimely, 24, generation)
    assert isinstance(states[1], UserSourceError)
    assert "18 items and 17 types" in str(states[1])
    for place, record in ((0, good[0]), (2, good[1]), (3, good[2])):
        alone, state = compute_state(place, record, 24, generation), states[place]
        assert not isinstance(state, Exception)
        for name, leaf in alone.leaves.items():
            np.testing.assert_allclose(
                np.asarray(state.leaves[name]).astype(np.float64),
                np.asarray(leaf).astype(np.float64),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
    assert all(isinstance(state, UserSourceError) for state in compute_states([(1, bad)] * 2, 24, generation))
    with pytest.raises(UserSourceError, match="18 items and 17 types"):
        compute_state(1, bad, 24, generation)
