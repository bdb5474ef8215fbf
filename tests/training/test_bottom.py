"""Negatives from items that a ranker puts last: sampled as often as asked, and never what a request holds."""

import numpy as np
import pytest

from aif_jax.errors import ConfigError
from aif_jax.training import TrainConfig, loop, train
from aif_jax.training.feed import TrainingBatches
from aif_jax.training.identity import differing
from aif_jax.training.progress import Reporter


@pytest.fixture(scope="module")
def batches(dataset, tiny):
    schema, model = dataset.fit_schema(), tiny.replace(blocks=("profile_item", "context"))

    def made(items=None, **changes):
        config = TrainConfig(batch_size=16, group=8, negatives=6, **changes)
        return TrainingBatches(dataset, schema, model, config, bottom=items)

    return made


def last_of_all(dataset):
    """Three items for each user but every third, who has none, and 1 in 3 places empty for user 1."""
    items = (np.arange(dataset.n_users)[:, None] + np.array([1, 50, 99])) % dataset.n_items
    items[::3] = -1
    items[1, 0] = -1
    return items.astype(np.int32)


def test_negatives_come_from_the_bottom_as_often_as_asked(dataset, batches):
    last = last_of_all(dataset)
    users = np.repeat(np.arange(dataset.n_users), 40)
    for share in (1.0, 0.3):
        sampler = batches(last, negative_bottom=share)._negatives
        drawn = sampler.draw_for(users, np.random.default_rng(0))
        among = (drawn[:, :, None] == last[users][:, None, :]).any(axis=2).reshape(dataset.n_users, -1)
        # Others come from there by chance: 3 of all items.
        expected = share + (1 - share) * 3 / dataset.trained_items().sum()
        whole = np.arange(dataset.n_users) % 3 != 0
        whole[1] = False
        assert abs(among[whole].mean() - expected) < 0.02
        assert abs(among[1].mean() - share * 2 / 3) < 0.12
        assert (drawn >= 0).all()
        assert dataset.trained_items()[drawn[~among.reshape(drawn.shape)]].all()
        for place in range(3):  # each of a user's as often as the others
            hit = (drawn == last[users][:, place, None]).reshape(dataset.n_users, -1)[whole]
            assert abs(hit.mean() - expected / 3) < 0.02


def test_batches_without_bottom_are_unchanged_and_with_it_hold_no_shown_item(dataset, batches):
    plain, mixed = batches(), batches(last_of_all(dataset), negative_bottom=1.0)
    sampler, users = plain._negatives, np.arange(16)
    first, second = (np.random.default_rng(1) for _ in range(2))
    np.testing.assert_array_equal(sampler.draw_for(users, first), sampler.draw((16, 6), second))
    for number in range(3):
        batch = mixed[number]
        shown, added = batch["item"][:, :8], batch["item"][:, 8:]
        assert not ((added[:, :, None] == shown[:, None, :]) & (added[:, :, None] >= 0)).any()
        assert (batch["label_mask"][:, 8:][added < 0] == 0).all()
        assert (batch["item"][:, :8] == plain[number]["item"][:, :8]).all()


def test_train_with_a_share_but_no_items_is_refused(dataset, tiny, brief):
    model = tiny.replace(blocks=("context",))
    last, asked = last_of_all(dataset), brief.replace(negatives=1, negative_bottom=0.5)
    for config, given in ((asked, None), (brief, last)):
        with pytest.raises(ConfigError, match="or neither"):
            train(model, dataset, config, bottom=given, progress=False)
    for wrong in (last[1:], last[:, 0], last.astype(np.float32)):
        with pytest.raises(ConfigError, match=rf"expected integers \[{dataset.n_users}, P\]"):
            train(model, dataset, asked, bottom=wrong, progress=False)
    for wrong in (last - 1, last + dataset.n_items, np.full_like(last, -1)):
        with pytest.raises(ConfigError, match="got items from"):
            train(model, dataset, asked, bottom=wrong, progress=False)
    runs = [
        loop._Run(model, None, dataset, asked, Reporter(False, ""), None, None, given, None)._identity()
        for given in (last, last[:, :2].copy())
    ]
    assert differing(*runs) == ["training.bottom"]  # a checkpoint of the one is not gone on with by the other
