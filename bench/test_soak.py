"""The checks of the soak find what is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest

from soak import run
from soak.report import growth_of
from soak.truth import DELETED, RANKABLE, Truth, fitting
from soak.world import CANDIDATES, IDS, ITEMS, NOTHING, VERSIONS, K, digests


@pytest.fixture
def scores() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.permutation((NOTHING + 1) * VERSIONS * ITEMS).reshape(-1, VERSIONS, ITEMS) * np.float32(1e-3)


def answer(right: np.ndarray, asked: np.ndarray) -> SimpleNamespace:
    """Return the best of some candidates by the scores of all items."""
    best = asked[np.argsort(-right[asked])[:K]]
    return SimpleNamespace(ids=IDS[best], scores=right[best], report=SimpleNamespace(rung=0))


def test_answer_is_wrong_unless_a_possible_state_gives_it(scores: np.ndarray) -> None:
    truth, asked = Truth(), np.random.default_rng(1).permutation(ITEMS)[:CANDIDATES]
    old, new = scores[0, 0], scores[0, 0].copy()
    changed = int(answer(old, asked).ids[0] - IDS[0])
    new[changed] = scores[0, 1, changed]

    def wrong(right: np.ndarray, position: tuple[int, int], rows: tuple[int, ...] = (0,)) -> str:
        return truth.wrong(scores, [*rows], asked, position, answer(right, asked))

    assert not wrong(old, (0, 0))
    assert "scores wrong" in wrong(new, (0, 0))  # of a version that nobody has said
    assert "scores wrong" in wrong(scores[1, 0], (0, 0))  # of another user
    assert not wrong(scores[1, 0], (0, 0), rows=(0, 1))
    assert truth.say([changed], 1, RANKABLE, lambda: "5-0") == (5, 0)
    assert not wrong(old, (4, 0))
    assert not wrong(new, (4, 0))
    assert wrong(old, (5, 0))  # the tables had reached the change when the request began
    truth.say([changed], None, DELETED, lambda: "6-0")
    gone = new.copy()
    gone[changed] = -1.0
    assert not wrong(gone, (5, 0))
    assert "better ones left out" in wrong(gone, (5, 0), rows=(1,))


def test_answer_of_two_generations_fits_both(scores: np.ndarray) -> None:
    asked, other = np.arange(CANDIDATES), scores[::-1]
    mixed = answer(scores[0, 0], asked)
    mixed.scores[::2] = other[0, 0][(mixed.ids[::2] - IDS[0]).astype(int)]
    assert (fitting(scores, [0], mixed), fitting(other, [0], mixed)) == (K // 2, K // 2)


@pytest.mark.parametrize("kind", ["items", "behaviours"])
def test_table_differs_where_an_update_is_lost(built, kind: str) -> None:
    table = built.tables.items if kind == "items" else built.tables.behaviours
    table = type(table).build(built.bundle, IDS, *columns_of(built))
    truth, own = Truth(), digests(table)[0]
    hashes = np.stack([own, own + np.uint64(1), own])
    assert truth.differing(table, hashes, (0, 0)) == []
    truth.say([7, 9], 1, RANKABLE, lambda: "5-0")
    truth.say([8], 2, RANKABLE, lambda: "6-0")
    assert truth.differing(table, hashes, (4, 0)) == []
    assert truth.differing(table, hashes, (6, 0)) == [7, 9]
    truth.say([3], None, DELETED, lambda: "7-0")
    assert truth.differing(table, hashes, (7, 0)) == ([3, 7, 9] if kind == "items" else [7, 9])


def columns_of(built):
    source = built.source
    return {name: column[:ITEMS] for name, column in source.columns.items()}, source.content[:ITEMS]


def samples_of(minutes: int, leak_mb_per_hour: float) -> list[dict[str, float]]:
    """Return samples of a run with a publish every three minutes, of which six warm up."""
    warm, leak = [min(t / 180, 6) * 2e7 for t in range(minutes * 60)], leak_mb_per_hour * 1e6 / 3600
    return [
        {
            "t": float(t), "rss": 3e8 + more, "anonymous": 2e8 + more, "allocated": 1e8 + leak * t,
            "fds": 20.0, "threads": 40.0,
        }
        for t, more in enumerate(warm)
    ]  # fmt: skip


@pytest.mark.parametrize(("minutes", "judged"), [(12, 0), (24, 3), (40, 5)])
@pytest.mark.parametrize(("leak_mb_per_hour", "holds"), [(0.0, "yes"), (30.0, "no")])
def test_growth_is_judged_after_warm_up(
    minutes: int, judged: int, leak_mb_per_hour: float, holds: str
) -> None:
    published = [float(t) for t in range(180, minutes * 60, 180)]
    rows, unjudged = growth_of(samples_of(minutes, leak_mb_per_hour), published)
    assert len(rows) == judged == 5 - len(unjudged)
    for row in rows:
        assert row.also["holds"] == (holds if row.name == "growth, allocated memory" else "yes")


def test_allocated_counts_what_is_not_freed() -> None:
    allocated = run.allocator()
    before = allocated()
    block = np.ones(2**25, np.uint8)
    assert allocated() - before >= block.nbytes
    del block
    assert allocated() - before < 2**24


@pytest.mark.program
@pytest.mark.timeout(900)
def test_short_soak_tries_everything_and_finds_nothing(tmp_path) -> None:
    run.main(["--quick", "--out", str(tmp_path / "out")])
