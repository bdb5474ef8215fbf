import dataclasses

import numpy as np

from aif_jax.data import TEST, TRAIN
from aif_jax.training.candidates import candidate_lists


def test_candidate_lists_hold_one_positive_and_items_that_the_user_never_saw(dataset):
    rows = dataset.impressions
    lists = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1)
    assert len(lists) == 50
    assert (rows.split[lists.rows] == TEST).all()
    assert (rows.labels["ctr"][lists.rows] == 1).all()
    for row, items in zip(lists.rows, lists.items, strict=True):
        user = rows.user[row]
        start, end = dataset.events.offsets[user : user + 2]
        seen = set(dataset.events.item[start:end]) | set(rows.item[rows.user == user])
        others = items[1:][items[1:] >= 0]
        assert items[0] == rows.item[row]
        assert not seen & set(others.tolist())
        assert len(set(others.tolist())) == others.size >= 38
    again = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1)
    np.testing.assert_array_equal(lists.items, again.items)
    other = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=2)
    assert (lists.items != other.items).any()


def test_candidate_lists_of_whole_requests_hold_all_that_was_shown_after_their_history(dataset):
    rows = dataset.impressions
    lists = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1, whole_requests=True)
    width = lists.items.shape[1] - 40
    assert len(np.unique(rows.request[lists.rows])) == len(lists) == 50
    for row, items, positives in zip(lists.rows, lists.items, lists.positives, strict=True):
        mine = np.flatnonzero(rows.request == rows.request[row])
        assert (rows.split[mine] == TEST).all()
        assert rows.history_end[row] == rows.history_end[mine].min()
        liked = set(rows.item[mine][rows.labels["ctr"][mine] > 0].tolist())
        assert sorted(items[:width][items[:width] >= 0]) == sorted(set(rows.item[mine].tolist()))
        assert sorted(items[positives]) == sorted(liked)
        assert liked
        user = rows.user[row]
        start, end = dataset.events.offsets[user : user + 2]
        seen = set(dataset.events.item[start:end]) | set(rows.item[rows.user == user])
        others = items[width:][items[width:] >= 0]
        assert not seen & set(others.tolist())
        assert len(set(others.tolist())) == others.size >= 38
    again = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1, whole_requests=True)
    np.testing.assert_array_equal(lists.items, again.items)


def test_candidate_lists_hold_an_item_shown_twice_once_liked_if_it_was_once(dataset):
    rows = dataset.impressions
    mine = np.flatnonzero(rows.request == rows.request[np.flatnonzero(rows.split == TEST)[0]])
    item, label = rows.item.copy(), rows.labels["ctr"].copy()
    item[mine[:3]], label[mine] = item[mine[0]], 0.0
    label[mine[1]] = 1.0
    repeated = dataclasses.replace(rows, item=item, labels={**rows.labels, "ctr": label})
    changed = dataclasses.replace(dataset, impressions=repeated)
    lists = candidate_lists(changed, "test", "ctr", lists=10_000, unseen=5, whole_requests=True)
    place = np.flatnonzero(rows.request[lists.rows] == rows.request[mine[0]]).item()
    assert (lists.items[place] == item[mine[0]]).sum() == 1
    assert lists.items[place][lists.positives[place]].tolist() == [item[mine[0]]]


def test_candidate_lists_draw_half_of_the_unseen_items_by_popularity(dataset):
    rows = dataset.impressions
    shown = np.bincount(rows.item[rows.split == TRAIN], minlength=dataset.n_items)
    items = candidate_lists(dataset, "test", "ctr", lists=200, unseen=20).items
    popular, uniform = shown[items[:, 2::2]].mean(), shown[items[:, 1::2]].mean()
    assert popular > 1.5 * uniform


def test_candidate_lists_that_cannot_be_filled_are_padded(dataset):
    lists = candidate_lists(dataset, "test", "ctr", lists=5, unseen=dataset.n_items)
    assert (lists.items[:, 0] >= 0).all()
    assert (lists.items == -1).any()
