"""Rows are read back as they were written, appear whole or not at all, and are small."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.errors import DataError
from aif_jax.evaluation import row_store
from aif_jax.evaluation.facts_file import write_facts
from aif_jax.evaluation.row import Row
from aif_jax.evaluation.row_store import RowStore
from aif_jax.evaluation.user_pairs import UserPairs
from aif_jax.evaluation.where import where
from aif_jax.training import HeadMetrics, Metrics
from aif_jax.training.metrics import gauc, user_aucs


def made_up(users: int = 50, seed: int = 0, **changes: Any) -> Row:
    """A row of random scores, six impressions a user on average."""
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, users, 6 * users))
    labels, scores = rng.integers(0, 2, user.size), rng.normal(size=(2, user.size))
    cold = rng.random(user.size) < 0.1
    head = HeadMetrics(auc=0.5, gauc=0.6, log_loss=0.7, impressions=user.size, users=users)
    found = Metrics(split="test", heads={"ctr": head}, hit_rate={10: 0.1, 50: 0.2}, hit_lists=3)
    row = Row(
        variant="aif", seed=seed, identity={"data": "made up", "model": {"width": 3}}, made=where(),
        metrics=found, frozen=found,
        growing_pairs=UserPairs.of(user, labels, scores[0]),
        frozen_pairs=UserPairs.of(user, labels, scores[1]),
        cold_pairs=UserPairs.of(user[cold], labels[cold], scores[1][cold]), cold_auc=float("nan"),
        retention={"ndcg": 1.0}, judge="x", teacher="", parameters=3, steps=4, examples_per_s=5.5,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def assert_same(a: Row, b: Row) -> None:
    assert repr(a.facts()) == repr(b.facts())  # NaN is not equal to itself
    assert a.arrays().keys() == b.arrays().keys()
    for name, array in a.arrays().items():
        np.testing.assert_array_equal(b.arrays()[name], array)


@pytest.mark.parametrize("seed", range(4))
def test_aucs_from_whole_numbers_are_those_of_the_scores_to_the_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, labels = rng.integers(0, 40, 900), rng.integers(0, 2, 900)
    scores = np.round(rng.normal(size=900), 1 if seed % 2 else 9)  # with ties and without
    found, plain = UserPairs.of(users, labels, scores), user_aucs(users, labels, scores)
    np.testing.assert_array_equal(found.aucs, plain.aucs)
    assert found.gauc == gauc(users, labels, scores)
    for place, user in enumerate(plain.users):
        positive, negative = (scores[(users == user) & (labels == label)] for label in (1, 0))
        right = np.sign(positive[:, None] - negative[None]) + 1
        assert (found.pairs[place], found.halves[place]) == (right.size, right.sum())
    assert len(UserPairs.of(users[:0], labels[:0], scores[:0])) == 0


def test_a_row_is_read_back(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows")
    assert list(store) == []
    assert store.get("aif", 0) is None
    first, ranker = made_up(), made_up(seed=7, variant="ranker", scores=np.ones((2, 3), np.float32))
    none = np.zeros(0, np.int64)
    bare = made_up(seed=8, cold_pairs=UserPairs(none, none, none))
    for row in (first, ranker, bare):
        store.put(row)
        back = store.get(row.variant, row.seed)
        assert back is not None
        assert_same(back, row)
    assert [row.name for row in store] == ["aif-0", "aif-8", "ranker-7"]


def test_a_row_is_small_and_holds_no_ids(tmp_path: Path) -> None:
    """As many users as the largest set that is tabled has; random scores, which compress worst."""
    row, store = made_up(users=22_709), RowStore(tmp_path)
    store.put(row)
    assert (tmp_path / "aif-0.npz").stat().st_size < 100_000
    assert all(len(array) <= 22_709 for array in row.arrays().values())


def test_a_kill_while_writing_leaves_the_row_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RowStore(tmp_path)
    store.put(made_up())

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            store.put(made_up(parameters=99))
    assert [row.parameters for row in store] == [3]


def test_what_is_no_row_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RowStore(tmp_path)
    store.put(made_up())
    path = tmp_path / "aif-0.npz"
    whole = path.read_bytes()
    for broken in (b"", b"nonsense", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read as facts and arrays")):
            store.get("aif", 0)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(DataError, match="cannot be read as facts and arrays"):
        list(store)
    write_facts(path, {"format": 1, "moon": 1}, made_up().arrays())
    with pytest.raises(DataError, match=r"no whole row \('"):
        store.get("aif", 0)
    with monkeypatch.context() as patch:
        patch.setattr(row_store, "FORMAT", 2)
        store.put(made_up())
    with pytest.raises(DataError, match="of format 2, expected 1"):
        store.get("aif", 0)
