import dataclasses

import numpy as np
import pytest

from aif_jax.data import RequestBatcher, RequestSource, collate, load
from aif_jax.errors import DataError


@pytest.fixture(scope="module")
def dataset():
    return load("synthetic:small")


@pytest.fixture(scope="module")
def schema(dataset):
    return dataset.fit_schema()


def source_of(dataset, schema, split="train", **changes):
    return RequestSource(
        dataset, schema, split, **{"group": 4, "short_length": 10, "long_length": 200, **changes}
    )


def batcher_of(dataset, schema, **changes):
    lengths = {name: changes.pop(name) for name in ("group", "short_length") if name in changes}
    source = source_of(dataset, schema, long_length=600, **lengths)
    return RequestBatcher(source, **{"batch_size": 16, "long_buckets": (60, 100), "seed": 3, **changes})


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_same(value, right[key])
        else:
            np.testing.assert_array_equal(value, right[key], err_msg=key)
            assert np.asarray(value).dtype == np.asarray(right[key]).dtype, key


def test_request_source_batch_equals_plain_loop(dataset, schema):
    source = source_of(dataset, schema)
    rows, events = dataset.impressions, dataset.events
    encoded = {group: dataset.encode(schema, group) for group in ("user", "context", "pair", "train_only")}
    batch = source.batch(np.arange(len(source)), 200)
    for b, request in enumerate(source.requests.rows):
        first = request[0]
        user = rows.user[first]
        past = list(range(events.offsets[user], rows.history_end[first]))[::-1]
        for name, length in (("short", 10), ("long", 200)):
            padding = [-1] * (length - len(past))
            assert batch[f"{name}_item"][b].tolist() == [events.item[e] for e in past[:length]] + padding
            assert batch[f"{name}_type"][b].tolist() == [events.type[e] for e in past[:length]] + padding
        assert batch["user_index"][b] == user
        for name, array in encoded["user"].items():
            np.testing.assert_array_equal(batch["user"][name][b], array[user])
        for g, row in enumerate(request):
            assert batch["impression"][b, g] == row
            assert batch["item"][b, g] == (-1 if row < 0 else rows.item[row])
            for group in ("context", "pair", "train_only"):
                for name, array in encoded[group].items():
                    expected = np.zeros_like(array[0]) if row < 0 else array[row]
                    np.testing.assert_array_equal(batch[group][name][b, g], expected)
            for h, head in enumerate(dataset.heads):
                known = row >= 0 and rows.label_mask[head][row] > 0
                assert batch["label_mask"][b, g, h] == known
                assert batch["labels"][b, g, h] == (rows.labels[head][row] if known else 0)


def test_request_source_history_ends_before_its_rows(dataset, schema):
    source = source_of(dataset, schema)
    batch = source.batch(np.arange(len(source)), 200)
    events, rows = dataset.events, dataset.impressions
    for b in range(len(source)):
        length = np.count_nonzero(batch["long_item"][b] >= 0)
        end = source.requests.history_end[b]
        np.testing.assert_array_equal(batch["long_item"][b, :length], events.item[end - length : end][::-1])
        for row in batch["impression"][b][batch["impression"][b] >= 0]:
            assert end <= rows.history_end[row]
            # The event that this row became starts a moment which the history must not have reached.
            moment = events.time[rows.history_end[row]]
            assert end == 0 or events.user[end - 1] != rows.user[row] or events.time[end - 1] < moment


@pytest.mark.parametrize("step", [1, 10])
def test_request_source_windows_hold_histories_and_nothing_after_the_batch(dataset, schema, step):
    length = 20
    source = source_of(dataset, schema, long_length=length, sequence_step=step)
    ends, events = source.requests.history_end, dataset.events
    assert (source.lengths == length).any()  # some histories are longer
    shared = 0
    for indices, bucket, most in RequestBatcher(source, batch_size=16, seed=3).plan(0):
        batch = source.batch(indices, bucket, most)
        items, types = batch["sequence_item"], batch["sequence_type"]
        assert items.shape == types.shape == (most, length)
        row, end, real = batch["sequence_row"], batch["sequence_end"], indices >= 0
        assert (row[~real] == -1).all()
        for b in np.flatnonzero(real):
            n, stop = end[b], ends[indices[b]]
            whole = stop - events.offsets[batch["user_index"][b]]
            assert min(whole, length - step + 1) <= n <= length
            np.testing.assert_array_equal(items[row[b], :n], events.item[stop - n : stop])
            np.testing.assert_array_equal(types[row[b], :n], events.type[stop - n : stop])
        for window in range(most):
            mine = real & (row == window)
            assert (items[window] >= 0).sum() == end[mine].max(initial=0)
            shared += mine.sum() > 1
    assert shared > 10


def test_request_batcher_by_windows_holds_every_row_once_in_equal_epochs(dataset, schema):
    source = source_of(dataset, schema, long_length=60, sequence_step=30)
    batcher = RequestBatcher(source, batch_size=16, long_buckets=(20,), seed=3)
    epochs = [[batch["impression"] for batch in batcher.epoch(number)] for number in (0, 1)]
    expected = np.sort(source.requests.rows[source.requests.rows >= 0])
    for batches in epochs:
        assert len(batches) == len(batcher)
        rows = np.concatenate([batch[batch >= 0] for batch in batches])
        np.testing.assert_array_equal(np.sort(rows), expected)
    assert [batch.tolist() for batch in epochs[0]] != [batch.tolist() for batch in epochs[1]]
    rows = sum(len(batch) for batch in epochs[0])
    assert rows < 1.5 * len(source)  # padding requests are few


def test_collate_of_single_requests_equals_batch(dataset, schema):
    source = source_of(dataset, schema, "test")
    indices = [5, 0, 7]
    requests = [source[i] for i in indices]
    assert_same(collate(requests, 200), source.batch(np.array(indices), 200))
    # A shorter bucket loses the oldest behaviours, a larger batch is filled with padding requests.
    assert_same(collate(requests, 30, batch_size=5), source.batch(np.array([*indices, -1, -1]), 30))
    assert [len(request["long_item"]) for request in requests] == source.lengths[indices].tolist()
    assert_same(source[-1], source[len(source) - 1])
    with pytest.raises(IndexError):
        source[len(source)]
    with pytest.raises(DataError, match="3 requests for a batch of 2"):
        collate(requests, 30, batch_size=2)


def test_request_source_under_grain_yields_every_row(dataset, schema):
    import grain

    source = source_of(dataset, schema)
    batches = list(
        grain.MapDataset.source(source).shuffle(seed=0).batch(8, batch_fn=lambda r: collate(r, 64))
    )
    seen = np.concatenate([batch["impression"].ravel() for batch in batches])
    assert sorted(seen[seen >= 0]) == np.flatnonzero(dataset.impressions.split == 0).tolist()


def test_request_source_padding_request_is_empty(dataset, schema):
    batch = source_of(dataset, schema).batch(np.array([-1, 3]), 50)
    for key in ("item", "long_item", "long_type", "short_item", "short_type", "user_index", "impression"):
        assert (batch[key][0] == -1).all()
        assert (batch[key][1] != -1).any()
    assert not batch["label_mask"][0].any()
    assert not any(array[0].any() for array in batch["user"].values())
    assert not any(array[0].any() for array in batch["pair"].values())


def test_request_batcher_epoch_holds_every_row_once_in_fitting_bucket(dataset, schema):
    batcher = batcher_of(dataset, schema)
    batches = list(batcher.epoch(0))
    assert len(batches) == len(batcher)
    rows = np.concatenate([batch["impression"].ravel() for batch in batches])
    assert sorted(rows[rows >= 0]) == np.flatnonzero(dataset.impressions.split == 0).tolist()
    seen = {batch["long_item"].shape for batch in batches}
    assert seen == {(16, 60), (16, 100), (16, 600)}
    length = np.minimum(
        batcher.source.requests.history_end - dataset.events.offsets[batcher.source.requests.user], 600
    )
    by_first_row = dict(zip(batcher.source.requests.rows[:, 0].tolist(), length.tolist(), strict=True))
    for batch in batches:
        for first, items in zip(batch["impression"][:, 0].tolist(), batch["long_item"], strict=True):
            if first >= 0:
                assert np.count_nonzero(items >= 0) == by_first_row[first]


def test_request_batcher_order_depends_on_seed_and_epoch_alone(dataset, schema):
    def order(batcher, epoch, **options):
        return [batch["impression"][:, 0].tolist() for batch in batcher.epoch(epoch, **options)]

    first, again = batcher_of(dataset, schema), batcher_of(dataset, schema)
    assert order(first, 1) == order(again, 1)
    assert order(first, 1) != order(first, 2)
    assert order(first, 1) != order(batcher_of(dataset, schema, seed=4), 1)
    assert order(first, 1)[2:] == order(first, 1, skip=2)
    still = batcher_of(dataset, schema, shuffle=False)
    assert order(still, 0) == order(still, 5)
    assert [batch["impression"][:, 0].tolist() for batch in still] == order(still, 0)


def test_request_source_gaps_equal_plain_loop(dataset, schema):
    source = source_of(dataset, schema, "test", long_length=20, sequence_step=1, gaps=True)
    chosen = np.append(np.arange(len(source))[::9], -1)
    batch = source.batch(chosen, 20, windows=len(chosen))
    events = dataset.events
    for b, request in enumerate(chosen[:-1]):
        user, end = source.requests.user[request], source.requests.history_end[request]
        start = events.offsets[user]
        past = range(max(start, end - 20), end)
        seconds = {e: int(events.time[e] - events.time[e - 1]) for e in past if e > start}
        steps = [(1 + seconds[e]).bit_length() if e > start else 0 for e in past]
        assert len(set(steps)) > 1
        assert batch["long_gap"][b].tolist() == steps[::-1] + [0] * (20 - len(steps))
        assert batch["sequence_gap"][batch["sequence_row"][b]].tolist() == steps + [0] * (20 - len(steps))
    assert not batch["long_gap"][-1].any()


def test_request_source_gaps_read_no_time_after_the_history(dataset, schema):
    """A row's own time is that of the next event, so a gap after the history would tell when it happens."""

    def given(time):
        changed = dataclasses.replace(dataset, events=dataclasses.replace(dataset.events, time=time))
        source = source_of(changed, schema, "test", sequence_step=1, gaps=True)
        return source.requests, source.batch(np.arange(len(source)), 200, windows=len(source))

    requests, before = given(dataset.events.time)
    end = np.full(dataset.n_users, len(dataset.events))
    np.minimum.at(end, requests.user, requests.history_end)
    events = dataset.events
    later = np.arange(len(events)) >= end[events.user]
    assert later.any()
    _, after = given(events.time + 10**6 * later)
    first = requests.history_end == end[requests.user]
    np.testing.assert_array_equal(after["long_gap"][first], before["long_gap"][first])
    rows = before["sequence_row"][first]
    np.testing.assert_array_equal(after["sequence_gap"][rows], before["sequence_gap"][rows])
    _, slower = given(8 * events.time)
    assert (slower["long_gap"] != before["long_gap"])[first].any(axis=1).all()


def test_request_source_heads_by_name_select_labels(dataset, schema):
    source = source_of(dataset, schema, heads=("like", "ctr"))
    both = source_of(dataset, schema).batch(np.arange(4), 10)
    np.testing.assert_array_equal(source.batch(np.arange(4), 10)["labels"], both["labels"][..., ::-1])
    with pytest.raises(DataError, match=r"\['cvr'\]"):
        source_of(dataset, schema, heads=("cvr",))


def test_request_source_unknown_label_is_masked(dataset, schema):
    impressions = dataset.impressions
    spoiled = np.where(impressions.label_mask["like"] > 0, impressions.labels["like"], np.nan)
    labels = {**impressions.labels, "like": spoiled.astype(np.float32)}
    broken = dataclasses.replace(dataset, impressions=dataclasses.replace(impressions, labels=labels))
    batch = source_of(broken, schema).batch(np.arange(20), 10)
    assert np.isfinite(batch["labels"]).all()


def test_request_batcher_invalid_sizes_raise(dataset, schema):
    for changes in (
        {"batch_size": 0},
        {"long_buckets": (601,)},
        {"long_buckets": (0, 5)},
        {"short_length": 0},
        {"group": 0},
    ):
        with pytest.raises(DataError):
            batcher_of(dataset, schema, **changes)
    train_only = with_split(dataset, 0)
    with pytest.raises(DataError, match="no rows in split 'test'"):
        source_of(train_only, schema, "test")


def with_split(dataset, number):
    split = np.full(len(dataset.impressions), number, np.int8)
    return dataclasses.replace(dataset, impressions=dataclasses.replace(dataset.impressions, split=split))
