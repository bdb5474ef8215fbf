import dataclasses

import numpy as np
import pytest

from aif_jax.data import TRAIN, VALIDATION, Content, Dataset, collaborative_content, fit_width, load
from aif_jax.data.content import FOLDS, out_of_fold, turned
from aif_jax.errors import ConfigError, DataError
from aif_jax.training.metrics import auc


def two_camps(random, users=60, items=30, taken=8):
    """Users who take up items of their own half only; the last item of each half is left alone."""
    half = items // 2
    user = np.repeat(np.arange(users), taken)
    item = np.concatenate(
        [random.choice(half - 1, taken, replace=False) + half * (u % 2) for u in range(users)]
    )
    return user, item


@pytest.fixture
def pairs():
    return two_camps(np.random.default_rng(0))


def content_of(user, item, width=6):
    return collaborative_content(user, item, n_users=60, n_items=30, width=width)


def test_collaborative_content_items_of_same_users_are_similar(pairs):
    content = content_of(*pairs, width=1)
    cosine = content.vectors @ content.vectors.T
    camp = np.arange(30) // 15
    same = (camp[:, None] == camp) & content.has[:, None] & content.has
    other = (camp[:, None] != camp) & content.has[:, None] & content.has
    assert cosine[same].min() > 0.99
    assert cosine[other].max() < -0.99


def test_collaborative_content_rows_are_centred_unit_vectors(pairs):
    content = content_of(*pairs)
    np.testing.assert_allclose(np.linalg.norm(content.vectors[content.has], axis=1), 1.0, atol=1e-6)
    assert content.vectors.dtype == np.float32
    # Bringing rows to one length moves the mean a little off the middle again.
    assert np.linalg.norm(content.vectors[content.has].mean(axis=0)) < 0.2


def test_collaborative_content_unused_items_have_none(pairs):
    content = content_of(*pairs)
    assert np.flatnonzero(~content.has).tolist() == [14, 29]
    assert not content.vectors[~content.has].any()


def test_collaborative_content_few_users_have_none_and_change_nothing(pairs):
    user, item = pairs
    expected = content_of(user, item)
    rare = np.arange(4)  # four users meet item 14, twice each; five meet item 29
    more = np.r_[user, rare, rare], np.r_[item, np.full(8, 14)]
    found = content_of(*more)
    np.testing.assert_array_equal(found.has, expected.has)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)
    assert content_of(np.r_[user, np.arange(5)], np.r_[item, np.full(5, 29)]).has[29]


def test_collaborative_content_without_enough_users_is_empty():
    content = collaborative_content(np.arange(4), np.zeros(4, int), n_users=4, n_items=2, width=3)
    assert not content.has.any()
    assert content.vectors.shape == (2, 3)


def test_collaborative_content_ignores_repeats_and_order(pairs):
    user, item = pairs
    expected = content_of(user, item).vectors
    shuffle = np.random.default_rng(1).permutation(len(user))
    np.testing.assert_allclose(content_of(user[shuffle], item[shuffle]).vectors, expected, atol=1e-5)
    np.testing.assert_allclose(content_of(np.r_[user, user], np.r_[item, item]).vectors, expected, atol=1e-5)


def test_collaborative_content_dense_and_iterative_svd_agree(pairs):
    full = content_of(*pairs, width=28)
    cut = fit_width(full, 6)
    # Columns beyond the sixth must not change the first six: compare cosines, which signs cannot disturb.
    few = content_of(*pairs, width=6)
    np.testing.assert_allclose(cut.vectors @ cut.vectors.T, few.vectors @ few.vectors.T, atol=1e-4)


def test_collaborative_content_low_rank_leaves_zero_columns():
    content = collaborative_content(
        np.array([0, 1]), np.array([0, 1]), n_users=2, n_items=3, width=5, min_users=1
    )
    assert content.vectors.shape == (3, 5)
    assert not content.vectors[:, 1:].any()
    assert content.has.tolist() == [True, True, False]


def test_collaborative_content_item_at_mean_has_none():
    # One user, all items alike: nothing is left after centring.
    content = collaborative_content(
        np.zeros(4, int), np.arange(4), n_users=1, n_items=4, width=2, min_users=1
    )
    assert not content.has.any()
    assert not content.vectors.any()


@pytest.mark.parametrize("width", [2, 8])
def test_collaborative_content_of_full_matrix_is_empty(width):
    user, item = np.divmod(np.arange(64), 8)
    content = collaborative_content(user, item, n_users=9, n_items=10, width=width)
    assert not content.has.any()
    np.testing.assert_array_equal(content.vectors, np.zeros((10, width)))


def test_fit_width_cuts_derived_columns_and_refuses_to_widen(pairs):
    content = content_of(*pairs, width=4)
    cut = fit_width(content, 2)
    assert cut.vectors.shape == (30, 2)
    assert (cut.space.kind, cut.space.width) == ("derived", 2)
    assert fit_width(content, 4) is content
    for width in (0, 5):
        with pytest.raises(ConfigError, match=f"content_width={width}"):
            fit_width(content, width)


def test_fit_width_of_columns_in_no_known_order_is_refused():
    content = Content(np.eye(4, dtype=np.float32), np.array([True, True, True, True]))
    for width in (2, 5):
        with pytest.raises(ConfigError, match=r"project the embeddings: ContentSpace\.fit"):
            fit_width(content, width)


def test_collaborative_content_without_events_raises():
    with pytest.raises(DataError, match="no training events"):
        collaborative_content(np.array([], int), np.array([], int), n_users=1, n_items=1, width=2)
    with pytest.raises(DataError, match="width"):
        collaborative_content(np.array([0]), np.array([0]), n_users=1, n_items=1, width=0)


def test_content_like_an_earlier_one_is_turned_back_to_it():
    data = load("synthetic:small", content_width=8)
    vectors, has = data.content.vectors, data.content.has
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    today = dataclasses.replace(data, content=Content((vectors @ turn).astype(np.float32), has))
    # The earlier set has its items in another order, lacks some, and has others.
    kept = np.random.default_rng(1).permutation(data.n_items)[:300]
    ids = np.r_[np.asarray(data.items["ids"])[kept], 7]
    space = dataclasses.replace(data.content.space, digest="yesterday")
    found = today.with_content_like(ids, np.r_[vectors[kept], vectors[:1]], space)
    assert found.content_space == space
    assert np.abs(today.content.vectors - vectors).max() > 0.5
    np.testing.assert_allclose(found.content.vectors, vectors, atol=1e-5)
    np.testing.assert_array_equal(found.content.has, has)


def test_content_like_an_earlier_one_that_does_not_fit_is_refused():
    data = load("synthetic:small", content_width=8)
    ids, vectors, space = np.asarray(data.items["ids"]), data.content.vectors, data.content.space
    with pytest.raises(DataError, match="is 8 wide and the earlier one 4"):
        data.with_content_like(ids, vectors[:, :4], space)
    with pytest.raises(DataError, match="is 0 wide and the earlier one 8"):
        dataclasses.replace(data, content=None).with_content_like(ids, vectors, space)
    with pytest.raises(DataError, match="shares 0 items with content"):
        data.with_content_like(np.arange(data.n_items), vectors, space)


def cosines(content):
    return content.vectors @ content.vectors.T


def test_out_of_fold_content_of_a_user_knows_nothing_of_that_user(pairs):
    user, item = pairs
    sizes = {"n_users": 60, "n_items": 30}

    def derived(of_item):
        return out_of_fold(content_of(user, of_item), user, of_item, **sizes)

    mine = 9 % FOLDS
    before, after = derived(item), derived(np.where(user == 9, (item + 7) % 30, item))
    assert len(before.folds) == FOLDS
    for fold, (one, other) in enumerate(zip(before.folds, after.folds, strict=True)):
        same = np.allclose(cosines(one), cosines(other), atol=1e-5)
        assert same is (fold == mine)
    assert not np.allclose(cosines(before), cosines(after), atol=1e-5)


def test_out_of_fold_content_lies_as_that_of_all_users_after_every_change(pairs):
    user, item = pairs
    content = out_of_fold(content_of(user, item), user, item, n_users=60, n_items=30)
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    places = np.flatnonzero(content.has)
    moved = turned(content, places, content.vectors[places] @ axes, content.space)
    for found in (content, moved, fit_width(content, 2)):
        for each in found.folds:
            both = each.has & found.has
            assert np.mean(np.sum(each.vectors[both] * found.vectors[both], axis=1)) > 0.6  # others: about 0


def test_from_events_content_does_not_tell_training_rows_from_sampled_ones():
    """Everybody takes items at random, so nothing about a history says which item comes next."""
    random = np.random.default_rng(0)
    log = {
        "user": random.integers(0, 300, 9_000), "item": random.integers(0, 400, 9_000),
        "time": 1_760_000_000 + random.integers(0, 30 * 86_400, 9_000),
    }  # fmt: skip
    data = Dataset.from_events(log, user="user", item="item", time="time", content_width=16)
    content, rows = data.content, data.impressions

    def likeness(of_fold, part):
        chosen = np.flatnonzero(rows.split == part)
        users, items = rows.user[chosen], rows.item[chosen]
        history, _ = data.history(users, rows.history_end[chosen], 20)
        fold = users % FOLDS if of_fold else np.full(len(users), FOLDS)
        vectors = np.stack([each.vectors for each in (*content.folds, content)])
        past = np.where((history >= 0)[..., None], vectors[fold[:, None], history], 0.0).sum(axis=1)
        scores = np.sum(vectors[fold, items] * past, axis=1)
        return auc(rows.labels["interaction"][chosen], scores)

    assert likeness(False, TRAIN) > 0.6, "what was derived from a row tells it from sampled ones"
    assert likeness(True, TRAIN) < 0.53
    assert abs(likeness(False, VALIDATION) - 0.5) < 0.05


def test_from_impressions_content_has_no_folds():
    data = load("synthetic:small", content_width=8)
    assert data.content.folds == ()
