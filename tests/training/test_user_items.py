import numpy as np
import pytest

from aif_jax.data import TRAIN, synthetic_small
from aif_jax.training.user_items import UserItems


@pytest.mark.parametrize("seed", range(3))
def test_user_items_hold_the_given_pairs_and_no_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 30, 200), rng.integers(0, 50, 200)
    met = set(zip(users.tolist(), items.tolist(), strict=True))
    held = UserItems(50, users, items).hold(np.arange(30)[:, None], np.arange(50)[None, :])
    assert held.shape == (30, 50)
    assert {(u, i) for u, i in zip(*map(np.ndarray.tolist, np.nonzero(held)), strict=True)} == met


def test_user_items_without_pairs_hold_nothing() -> None:
    nothing = np.zeros(0, np.int32)
    assert not UserItems(5, nothing, nothing).hold(np.arange(4), np.arange(4)).any()


def test_user_items_in_training_lack_later_impressions() -> None:
    data = synthetic_small()
    rows, events = data.impressions, data.events
    train = rows.split == TRAIN
    trained, ever = UserItems.in_training(data), UserItems.ever(data)
    for users, items in ((rows.user, rows.item), (events.user, events.item)):
        assert ever.hold(users, items).all()
    assert trained.hold(rows.user[train], rows.item[train]).all()
    assert trained.hold(events.user[events.training], events.item[events.training]).all()
    assert not trained.hold(rows.user[~train], rows.item[~train]).all()
