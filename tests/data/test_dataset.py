import dataclasses

import numpy as np
import pytest

from aif_jax.data import Content, Dataset, Events, Impressions, load
from aif_jax.data.splits import SPLITS, ends_before, split_by_last_time, split_by_position
from aif_jax.errors import ConfigError, DataError
from aif_jax.features import Categorical, MultiValued, Ragged, Schema


def tiny() -> Dataset:
    """Two users: one with five events, one with two; rows of two splits."""
    return Dataset(
        name="tiny",
        schema=Schema(
            user=(Categorical(name="town"),),
            item=(Categorical(name="item"), MultiValued(name="genres", max_values=2)),
            behaviour_types=("click", "skip"),
            context=(Categorical(name="hour"),),
            item_id="item",
        ),
        users={"ids": np.array([100, 200]), "town": np.array(["x", "y"], object)},
        items={
            "ids": np.array([7, 8, 9, 10]),
            "item": np.array([7, 8, 9, 10]),
            "genres": Ragged(np.array(["a", "b", "c"], object), np.array([0, 2, 2, 3, 3])),
        },
        events=Events(
            offsets=np.array([0, 5, 7]),
            item=np.array([0, 1, 0, 2, 1, 2, 3], np.int32),
            type=np.array([0, 1, 0, 0, 1, 1, 0], np.int32),
            time=np.array([0, 1, 1, 2, 5, 3, 4]),
            training=np.array([1, 1, 1, 0, 0, 1, 0], bool),
        ),
        impressions=Impressions(
            user=np.array([0, 1, 0, 0, 0], np.int32),
            item=np.array([1, 2, 0, 2, 3], np.int32),
            history_end=np.array([1, 5, 1, 3, 5]),
            labels={"ctr": np.array([1, 0, 1, 0, 1], np.float32)},
            label_mask={"ctr": np.ones(5, np.float32)},
            split=np.array([0, 0, 0, 0, 2], np.int8),
            request=np.array([4, 9, 4, 4, 6]),
            context={"hour": np.array([1, 2, 1, 3, 4])},
        ),
    )


def test_dataset_repr_shows_summary() -> None:
    lines = [line.strip() for line in repr(tiny()).splitlines()]
    assert [line for line in lines if not line.startswith("warning")] == [
        "Dataset(tiny: 2 users, 4 items, 7 behaviours, 5 impressions",
        "impressions: 4 train, 0 validation, 1 test; positive: ctr 60.0%",
        "behaviours of a user: 4 in the median, 5 at most",
        "behaviours before an impression: 1 in the median, 5 at the 95th percentile, none for 20.0%",
        "unknown to training in test: items of 100.0% of the impressions, users of 0.0%",
    ]
    assert tiny().summary.splitlines()[0] == "tiny: 2 users, 4 items, 7 behaviours, 5 impressions"


def test_dataset_repr_without_rows_or_labels_works() -> None:
    data = tiny()
    masked = {"ctr": np.zeros(5, np.float32)}
    unknown = dataclasses.replace(data, impressions=dataclasses.replace(data.impressions, label_mask=masked))
    assert "positive: ctr unknown" in repr(unknown)
    empty = dataclasses.replace(
        data,
        users={"ids": np.array([], int), "town": np.array([], object)},
        events=Events(np.zeros(1, np.int64), *(np.array([], int) for _ in range(4))),
        impressions=Impressions(
            *(np.array([], int) for _ in range(3)),
            labels={"ctr": np.array([], np.float32)},
            label_mask={"ctr": np.array([], np.float32)},
            split=np.array([], np.int8),
            request=np.array([], int),
        ),
    )
    assert repr(empty).splitlines()[0] == "Dataset(tiny: 0 users, 4 items, 0 behaviours, 0 impressions"


def test_dataset_requests_group_rows_in_order_of_time():
    requests = tiny().requests("train", group=2)
    assert requests.rows.tolist() == [[0, 2], [3, -1], [1, -1]]
    assert requests.user.tolist() == [0, 0, 1]
    assert requests.history_end.tolist() == [1, 3, 5]
    assert tiny().requests("validation").rows.shape == (0, 16)
    with pytest.raises(DataError, match="'future'"):
        tiny().requests("future")


@pytest.mark.parametrize(("visit", "most"), [(1, 0), (4, 3), (16, 7)])
def test_dataset_requests_of_a_visit_lack_few_behaviours_and_read_none_ahead(visit, most):
    random = np.random.default_rng(0)
    n = 4_000
    shown = {
        "user": random.integers(0, 20, n),
        "item": random.integers(0, 50, n),
        "time": random.integers(0, 3_000, n),
        "click": random.random(n) < 0.5,
    }
    names = {"user": "user", "item": "item", "time": "time", "label": "click", "time_unit": "step"}
    data = Dataset.from_impressions(shown, **names, content_width=0)
    rows, plain, found = data.impressions, data.requests("train", 64), data.requests("train", 64, visit)
    assert sorted(found.rows[found.rows >= 0]) == sorted(plain.rows[plain.rows >= 0])
    real = found.rows >= 0
    own = np.where(real, rows.history_end[found.rows], found.history_end[:, None])
    lacking, length = own - found.history_end[:, None], own - data.events.offsets[found.user][:, None]
    assert (np.where(real, rows.user[found.rows], found.user[:, None]) == found.user[:, None]).all()
    assert lacking.min() >= 0
    assert lacking.max() == most  # an eighth of histories of 64 to 127, where the visit does not end before
    assert (lacking <= length / 8).all()
    assert len(found) < len(plain)
    assert data.request_sizes("train", visit).sum() == real.sum()


def test_dataset_history_is_most_recent_first_of_one_user():
    items, types = tiny().history(np.array([0, 1, 1]), np.array([5, 7, 5]), 4)
    assert items.tolist() == [[1, 2, 0, 1], [3, 2, -1, -1], [-1, -1, -1, -1]]
    assert types.tolist() == [[1, 0, 0, 1], [0, 1, -1, -1], [-1, -1, -1, -1]]


def test_dataset_fit_schema_reads_training_part_only():
    dataset = tiny()
    assert dataset.trained_items().tolist() == [True, True, True, False]
    schema = dataset.fit_schema()
    assert schema.feature("item", "item").encoder.values == (7, 8, 9)
    assert schema.feature("context", "hour").encoder.values == (1, 2, 3)
    assert dataset.encode(schema, "context")["hour"].tolist() == [2, 3, 2, 4, 1]


def test_dataset_catalogue_has_requested_content_width():
    dataset = tiny()
    schema = dataset.fit_schema()
    with pytest.raises(DataError, match="wide"):
        dataset.catalogue(schema)
    catalogue = dataset.catalogue(schema, content_width=3)
    assert catalogue["item"].tolist() == [2, 3, 4, 1]
    assert catalogue["genres"].tolist() == [[2, 3], [0, 0], [4, 0], [0, 0]]
    assert catalogue["content"].shape == (4, 3)
    assert not catalogue["content"].any()
    assert catalogue["has_content"].tolist() == [[0.0]] * 4
    content = Content(np.eye(4, dtype=np.float32), np.array([True] * 4))
    wide = dataclasses.replace(dataset, content=content)
    assert wide.catalogue(schema)["content"].shape == (4, 4)
    for width in (2, 5):
        with pytest.raises(ConfigError, match=f"content_width: got {width}, .* content_width=4"):
            wide.catalogue(schema, content_width=width)


def test_dataset_user_record_equals_user_source_record():
    record = tiny().user_record(0)
    assert record.features == {"town": "x"}
    assert record.items.tolist() == [8, 9, 7, 8, 7]
    assert record.types.tolist() == [1, 0, 0, 1, 0]
    assert record.times == ()
    earlier = tiny().user_record(0, history_end=3, length=2)
    assert earlier.items.tolist() == [7, 8]


def in_unit(unit: str, time: list[int]) -> Dataset:
    data = tiny()
    return dataclasses.replace(data, events=dataclasses.replace(data.events, time=np.array(time), unit=unit))


def test_dataset_gaps_are_steps_of_the_seconds_since_the_event_before() -> None:
    assert in_unit("s", [0, 1, 1, 2, 5, 3, 4]).gaps.tolist() == [0, 2, 1, 2, 3, 0, 2]
    assert in_unit("ms", [0, 1, 1, 2, 5000, 3, 4]).gaps.tolist() == [0, 1, 1, 1, 3, 0, 1]
    assert in_unit("s", [-7, -5, -5, 0, 1, -1, 4]).gaps.tolist() == [0, 0, 0, 0, 2, 0, 0]
    assert not tiny().gaps.any()


def test_dataset_user_record_holds_times_in_seconds() -> None:
    record = in_unit("ms", [0, 1, 1, 2, 5000, 3, 4]).user_record(0)
    assert record.times.tolist() == [5.0, 0.002, 0.001, 0.001, 0.0]


def test_dataset_with_validation_in_training_moves_rows():
    dataset = load("synthetic:small")
    before = np.bincount(dataset.impressions.split, minlength=3)
    after = np.bincount(dataset.with_validation_in_training().impressions.split, minlength=3)
    assert after.tolist() == [before[0] + before[1], 0, before[2]]


def test_dataset_with_frozen_histories_ends_before_part():
    dataset = load("synthetic:small")
    split = np.where(dataset.impressions.user % 2, SPLITS["test"], dataset.impressions.split)
    dataset = with_rows(dataset, split=split.astype(np.int8))
    frozen = dataset.with_frozen_histories("test")
    rows, ends = dataset.impressions, frozen.impressions.history_end
    test = rows.split == SPLITS["test"]
    np.testing.assert_array_equal(ends[~test], rows.history_end[~test])
    assert (ends <= rows.history_end).all()
    assert (ends[test] < rows.history_end[test]).any()
    for user in np.unique(rows.user[test]):
        mine = test & (rows.user == user)
        assert set(ends[mine]) == {rows.history_end[mine].min()}


def with_events(dataset, **changes):
    return dataclasses.replace(dataset, events=dataclasses.replace(dataset.events, **changes))


def with_rows(dataset, **changes):
    return dataclasses.replace(dataset, impressions=dataclasses.replace(dataset.impressions, **changes))


def with_content(dataset, vectors, has):
    return dataclasses.replace(dataset, content=Content(vectors.astype(np.float32), np.array(has)))


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda d: with_events(d, time=np.array([0, 1, 0, 2, 5, 3, 4])), "order of time"),
        (lambda d: with_events(d, item=np.array([0, 1, 0, 2, 1, 2, 4], np.int32)), "outside the 4 items"),
        (lambda d: with_events(d, type=np.array([0, 1, 0, 0, 1, 1, 2], np.int32)), "2 behaviour types"),
        (lambda d: with_events(d, offsets=np.array([0, 5, 6])), "offsets"),
        (lambda d: with_events(d, unit="days"), "times in 'days', expected one of s, ms"),
        (lambda d: with_rows(d, history_end=np.array([1, 4, 1, 3, 5])), "outside its user's events"),
        (
            lambda d: with_rows(d, time=np.array([1, 0, 1, 1, 6])),
            "history of row 3 ends with an event of time 1",
        ),
        (lambda d: with_rows(d, time=np.array([1, 0])), "'time': 2"),
        (lambda d: with_rows(d, history_end=np.array([1, 8, 1, 3, 5])), "outside its user's events"),
        (lambda d: with_rows(d, request=np.array([4, 4, 4, 4, 6])), "different users"),
        (lambda d: with_rows(d, request=np.array([4, 9, 4, 4, 4])), "different splits"),
        (lambda d: with_rows(d, context={"hour": np.array([1])}), "'hour': 1"),
        (lambda d: with_rows(d, label_mask={}), "masks"),
        (lambda d: dataclasses.replace(d, users={"town": ["x", "y"]}), "'ids'"),
        (
            lambda d: dataclasses.replace(
                d, content=Content(np.zeros((3, 2), np.float32), np.zeros(3, bool))
            ),
            "3 rows and 3 flags for 4 items",
        ),
        (lambda d: with_content(d, np.full((4, 2), 1.0), [True] * 4), "4 items, the first in row 0"),
        (lambda d: with_content(d, np.eye(4), [True, True, False, True]), "1 items, the first in row 2"),
        (lambda d: with_content(d, np.full((4, 2), np.nan), [False] * 4), "4 items, the first in row 0"),
    ],
)
def test_dataset_inconsistent_parts_raise(breakage, message):
    with pytest.raises(DataError, match=message):
        breakage(tiny())


def test_split_by_last_time_orders_users():
    last = np.array([50, 10, 90, 20, 90, 40, 80, 30, 70, 60])
    # 10 to 70 and 80 are the first eight; of the two at 90 the first validates.
    assert split_by_last_time(last).tolist() == [0, 0, 1, 0, 2, 0, 0, 0, 0, 0]
    assert split_by_last_time(last, train_tenths=3, validation_tenths=2).tolist() == [
        1, 0, 2, 0, 2, 1, 2, 0, 2, 2,
    ]  # fmt: skip
    assert split_by_last_time(np.zeros(0, np.int64)).size == 0


def test_split_by_position_cuts_80_10_10_of_each_user():
    sizes = np.array([10, 5, 1, 0, 23])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    split = split_by_position(offsets)
    for size, start in zip(sizes, offsets[:-1], strict=True):
        mine = split[start : start + size]
        assert (np.diff(mine) >= 0).all()
        # Rounded to the nearest, halves down.
        assert np.count_nonzero(mine == 0) == np.ceil(0.8 * size - 0.5)
        assert np.count_nonzero(mine <= 1) == np.ceil(round(0.9 * size, 6) - 0.5)


def test_ends_before_excludes_events_of_same_time():
    user = np.array([0, 0, 0, 1, 1, 2])
    time = np.array([1, 1, 2, 2, 2, 2])
    assert ends_before(user, time).tolist() == [0, 0, 2, 3, 3, 5]
    assert ends_before(np.array([], int), np.array([], int)).tolist() == []


@pytest.mark.parametrize("spec", ["movielens-25m:/x", "synthetic:huge", "kuairand:", ""])
def test_load_unknown_description_lists_known_ones(spec):
    with pytest.raises(DataError, match=r"synthetic:small.*movielens-1m:PATH"):
        load(spec)


def test_load_public_set_without_path_names_address():
    with pytest.raises(
        DataError, match=r"expected movielens-1m:PATH.*https://files\.grouplens\.org.*no commercial"
    ):
        load("movielens-1m")
