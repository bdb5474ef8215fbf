"""Decisions of the ladder, and the latency estimates behind them."""

import numpy as np
import pytest

from aif_jax.serving.ladder import FINISH, FULL, Choice, Ladder, LatencyEstimates

CANDIDATES, HISTORIES, ALL = (32, 64), (8, 24), (0, 1, 2, 3)


def made(*, enabled: bool = True, rungs: tuple[int, ...] = ALL, **times: float) -> Ladder:
    """A ladder that knows ``stage`` (a call), ``user_8``, ``user_24`` and ``finish``, all hardly spread."""
    ladder = Ladder(LatencyEstimates(), CANDIDATES, HISTORIES, enabled=enabled, rungs=rungs)
    for length in HISTORIES:
        for size in CANDIDATES:
            settle(ladder.times, ladder.stage_key(size, length), times.get("stage", 2.0))
        settle(ladder.times, ladder.user_key(length), times.get(f"user_{length}", 1.0))
    settle(ladder.times, FINISH, times.get("finish", times.get("stage", 2.0)))
    return ladder


def settle(times: LatencyEstimates, key: object, ms: float) -> None:
    for _ in range(60):
        times.record(key, ms)


def test_latency_estimates_steady_time_has_small_reserve() -> None:
    times = LatencyEstimates()
    assert times.expected_ms("a") == times.reserve_ms("a") == 0.0
    settle(times, "a", 4.0)
    assert times.expected_ms("a") == pytest.approx(4.0)
    assert 4.0 < times.reserve_ms("a") < 6.0
    assert times.expected_ms("b") == 0.0
    assert times.as_dict()["a"]["mean_ms"] == pytest.approx(4.0)


def test_latency_estimates_varying_time_is_mostly_within_reserve() -> None:
    rng, times = np.random.default_rng(0), LatencyEstimates()
    late = 0
    drawn = rng.gamma(20.0, 0.1, 3000)  # mean 2 ms, standard deviation 0.45
    for number, ms in enumerate(drawn):
        late += number >= 100 and ms > times.reserve_ms("a")
        times.record("a", ms)
    assert 0 < late / 2900 < 0.04
    assert times.reserve_ms("a") < 2.0 * 2.0


def test_latency_estimates_pause_moves_little_and_lasting_change_is_followed() -> None:
    times = LatencyEstimates()
    settle(times, "a", 2.0)
    times.record("a", 500.0)
    assert times.expected_ms("a") < 2.5
    for _ in range(60):
        times.record("a", 10.0)
    assert times.expected_ms("a") == pytest.approx(10.0, rel=0.05)


def test_latency_estimates_refused_work_fades() -> None:
    times = LatencyEstimates()
    settle(times, "a", 100.0)
    refused = 0
    while times.expected_ms("a") > 5.0:
        times.refused("a")
        refused += 1
    assert 50 < refused < 300
    times.refused("nothing is known of it")


def test_ladder_without_deadline_degrades_nothing() -> None:
    ladder = made(stage=1e6, user_24=1e6)
    assert not ladder.degrades(None)
    assert ladder.wait_ms(None, 64) is None
    assert ladder.retrieval_ms(None) is None
    assert ladder.user_program(None, 24) == FULL
    assert ladder.stage(FULL, None, 64, 24) == FULL
    failed = Choice(2, "user source failed")
    assert ladder.stage(failed, None, 64, 8) == failed


def test_ladder_disabled_degrades_nothing() -> None:
    ladder = made(enabled=False, stage=1e6, user_24=1e6)
    assert not ladder.degrades(10.0)
    assert ladder.wait_ms(10.0, 64) == 10.0
    assert ladder.user_program(10.0, 24) == FULL
    assert ladder.stage(FULL, 10.0, 64, 24) == FULL
    assert ladder.stage(FULL, -1.0, 64, 24) == FULL


def test_ladder_wait_ends_when_the_stage_has_to_start() -> None:
    ladder = made(stage=2.0)
    reserve = ladder.times.reserve_ms(ladder.stage_key(40, 24))
    assert 18.0 - reserve < (ladder.wait_ms(20.0, 40) or 0.0) < 20.0 - reserve
    # Three calls of the largest size.
    assert ladder.wait_ms(20.0, 160) == pytest.approx((ladder.wait_ms(20.0, 64) or 0.0) - 2 * reserve)
    assert (ladder.wait_ms(1.0, 64) or 0.0) < 0
    assert (ladder.retrieval_ms(20.0) or 0.0) == pytest.approx(ladder.wait_ms(20.0, 64), abs=1e-3)


@pytest.mark.parametrize(
    ("remaining_ms", "length", "rung"),
    [(50.0, 24, 0), (10.0, 24, 1), (10.0, 8, 0), (3.0, 24, 0)],
    ids=["fits", "only the short one fits", "is the short one", "neither fits"],
)
def test_ladder_long_sequence_is_left_out_only_where_that_helps(
    remaining_ms: float, length: int, rung: int
) -> None:
    ladder = made(stage=2.0, user_8=1.0, user_24=20.0)
    choice = ladder.user_program(remaining_ms, length)
    assert choice == ((1, "user program late") if rung else FULL)


def test_ladder_late_stage_gives_way_to_item_prior() -> None:
    for chosen in (FULL, Choice(1, "user program late"), Choice(2, "user source late")):
        ladder = made(stage=4.0)
        assert ladder.stage(chosen, 5.0, 64, 24) == chosen
        assert ladder.stage(chosen, 5.0, 65, 24) == (3, "stage would not fit")  # two calls
        assert ladder.stage(chosen, 3.0, 64, 24) == (3, "stage would not fit")
        assert ladder.stage(chosen, -0.1, 64, 24) == (3, "stage would not fit")
        assert made(stage=4.0, rungs=(0, 1, 2)).stage(chosen, 3.0, 64, 24) == chosen


def test_ladder_skipped_program_is_tried_again() -> None:
    ladder = made(stage=1.0, user_24=100.0)
    tries = 0
    while ladder.user_program(20.0, 24).rung:
        tries += 1
        assert tries < 300
    tries = 0
    ladder = made(stage=100.0)
    while ladder.stage(FULL, 10.0, 64, 24).rung:
        tries += 1
        assert tries < 300
    assert tries > 50


def test_ladder_recorded_times_decide() -> None:
    ladder = Ladder(LatencyEstimates(), CANDIDATES, HISTORIES, enabled=True, rungs=ALL)
    assert ladder.stage(FULL, 0.1, 130, 24) == FULL  # nothing is known yet
    ladder.record_finish(130, 24, 9.0)
    assert ladder.times.expected_ms(ladder.stage_key(64, 24)) == pytest.approx(3.0)
    assert ladder.times.expected_ms(FINISH) == pytest.approx(9.0)
    assert ladder.stage(FULL, 5.0, 130, 24).rung == 3
    assert ladder.stage(FULL, 5.0, 64, 24) == FULL
