import csv
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from aif_jax.data import kuairand, load
from aif_jax.errors import DataError
from support.kuairand import VIDEO_COLUMNS, log_row, user_row

# Invented. A user's rows: (user, video, date, hourmin, time, tab, click, long view, like).
ROWS = [
    (7, 1, 20220410, 900, 10, 1, 1, 1, 0),
    (7, 2, 20220411, 900, 20, 1, 0, 0, 0),
    (7, 3, 20220425, 1030, 30, 2, 1, 0, 0),
    (7, 4, 20220425, 1045, 40, 2, 0, 0, 0),
    (7, 1, 20220425, 1045, 40, 2, 1, 1, 1),
    (7, 2, 20220429, 2300, 50, 1, 0, 1, 0),
    (7, 3, 20220501, 0, 60, 1, 1, 1, 0),
    (9, 4, 20220412, 100, 15, 1, 1, 0, 1),
    (9, 1, 20220508, 200, 70, 0, 0, 0, 0),
    (5, 1, 20220428, 300, 33, 0, 1, 1, 0),
]
VIDEOS = [
    (1, 11, "NORMAL", "2022-04-09", "Web", 0, 9000.0, 720, 1280, 5, 9.0, "3,8"),
    (2, 11, "NORMAL", "2022-04-10", "Web", 0, None, 720, 1280, 6, None, "3"),
    (3, 12, "AD", "2022-04-11", "Kmovie", 0, 60000.0, 720, 1280, 5, 9.0, None),
    (4, 13, "NORMAL", "2022-04-11", "Web", 0, 100.0, 720, 1280, 7, 4.0, "8"),
]


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_archive(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_csv(data / "log_standard_4_08_to_4_21_pure.csv", [log_row(r) for r in ROWS if r[2] <= 20220421])
    write_csv(data / "log_standard_4_22_to_5_08_pure.csv", [log_row(r) for r in ROWS if r[2] > 20220421])
    write_csv(data / "user_features_pure.csv", [user_row(user) for user in (9, 7, 5, 4)])
    write_csv(
        data / "video_features_basic_pure.csv", [dict(zip(VIDEO_COLUMNS, v, strict=True)) for v in VIDEOS]
    )
    return folder


def write_windowed(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    early = [r for r in ROWS if r[2] < 20220425]
    window = [
        {
            "user_id": r[0],
            "pos_from_end": p,
            "video_id": r[1],
            "long_view": r[7],
            "is_like": r[8],
            "times_in_window": 1,
        }
        for r, p in zip(early, (-2, -1, -1), strict=True)
    ]
    write_parquet(folder / "history_last50_before_2022-04-25.parquet", window[::-1])
    # User 7's window is said to end after the first timed row, as it does for some users of the real set.
    meta = [{"user_id": u, "history_len": 2, "last_time_ms": t} for u, t in ((9, 15), (7, 35))]
    write_parquet(folder / "history_meta.parquet", meta)
    for name, low, high in (("04-25_to_04-30", 20220425, 20220430), ("05-01_to_05-08", 20220501, 20220508)):
        write_parquet(
            folder / f"impressions_2022-{name}.parquet", [log_row(r) for r in ROWS if low <= r[2] <= high]
        )
    write_parquet(folder / "user_features.parquet", [user_row(user) for user in (9, 7, 5, 4)])
    write_parquet(
        folder / "video_features_basic.parquet", [dict(zip(VIDEO_COLUMNS, v, strict=True)) for v in VIDEOS]
    )
    return folder


@pytest.fixture(params=[write_archive, write_windowed], ids=["archive", "windowed"])
def dataset(request, tmp_path):
    return kuairand(request.param(tmp_path / "set"), content_width=2)


def of_user(dataset, user):
    return np.flatnonzero(dataset.users["ids"][dataset.impressions.user] == user)


def test_kuairand_rows_are_ordered_by_time_and_split_by_date(dataset):
    rows = of_user(dataset, 7)
    impressions = dataset.impressions
    assert dataset.items["ids"][impressions.item[rows]].tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert impressions.split[rows].tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert impressions.split[of_user(dataset, 9)].tolist() == [0, 2]
    assert impressions.labels["long_view"][rows].tolist() == [1, 0, 0, 0, 1, 1, 1]
    assert dataset.events.training[rows].tolist() == [True] * 5 + [False] * 2
    # User 4 did nothing.
    assert dataset.users["ids"].tolist() == [4, 5, 7, 9]
    assert len(of_user(dataset, 4)) == 0


def test_kuairand_simultaneous_impressions_are_not_in_history(dataset):
    rows = of_user(dataset, 7)
    assert (dataset.impressions.history_end[rows] - rows[0]).tolist() == [0, 1, 2, 3, 3, 5, 6]


def test_kuairand_request_holds_one_day_of_a_user(dataset):
    rows = of_user(dataset, 7)
    request = dataset.impressions.request[rows]
    assert request[2] == request[3] == request[4]
    assert len(set(request[[1, 2, 5, 6]].tolist())) == 4
    assert (
        dataset.requests("train").rows[dataset.requests("train").user == 2][-1, :3].tolist()
        == rows[2:5].tolist()
    )


def test_kuairand_features_of_videos_and_users_are_encoded(dataset):
    schema = dataset.fit_schema()
    catalogue = dataset.catalogue(schema)
    assert schema.feature("item", "tag").encoder.values == ("3", "8")
    assert catalogue["tag"][:, :2].tolist() == [[2, 3], [2, 0], [0, 0], [3, 0]]
    # Author 11 made two videos, the others one each: too few to learn from.
    assert catalogue["author_id"].tolist() == [2, 2, 1, 1]
    assert catalogue["duration_ms"][1].tolist() == [0.0, 0.0]
    assert dataset.items["upload_day"].tolist() == [8.0, 9.0, 10.0, 10.0]
    users = dataset.encode(schema, "user")
    assert users["onehot_feat12"][-1] == 0
    assert (users["user_active_degree"] == 2).all()


def test_kuairand_archive_has_clicks_and_context_of_every_row(tmp_path):
    dataset = kuairand(write_archive(tmp_path), content_width=2)
    rows = of_user(dataset, 7)
    types = [dataset.schema.behaviour_types[t] for t in dataset.events.type[rows]]
    assert types == ["long_view", "skipped", "clicked", "skipped", "like", "long_view", "long_view"]
    assert dataset.impressions.label_mask["is_click"].all()
    assert dataset.impressions.labels["is_click"][rows].tolist() == [1, 0, 1, 0, 1, 0, 1]
    hours = dataset.encode(dataset.fit_schema(), "context", rows)["hour"]
    values = dataset.fit_schema().feature("context", "hour").encoder.values
    # Hours 23 and 0 occur in validation and test only.
    assert [values[h - 2] if h > 1 else None for h in hours] == [9, 9, 10, 10, 10, None, None]
    assert (hours[-2:] == 1).all()
    assert dataset.notes["rows_without_time"] == 0


def test_kuairand_window_masks_unknown_clicks_and_context(tmp_path):
    dataset = kuairand(write_windowed(tmp_path), content_width=2)
    rows = of_user(dataset, 7)
    types = [dataset.schema.behaviour_types[t] for t in dataset.events.type[rows]]
    assert types == ["long_view", "passed", "clicked", "skipped", "like", "long_view", "long_view"]
    assert dataset.impressions.label_mask["is_click"][rows].tolist() == [0, 0, 1, 1, 1, 1, 1]
    context = dataset.encode(dataset.fit_schema(), "context", rows)
    assert (context["hour"] == 0).tolist() == [True, True, False, False, False, False, False]
    assert (context["tab"] == 0).tolist() == [True, True, False, False, False, False, False]
    assert dataset.notes["rows_without_time"] == 3
    assert (np.diff(dataset.events.time[rows]) >= 0).all()


def test_kuairand_content_ignores_feedback_and_later_rows(tmp_path, monkeypatch):
    before = kuairand(write_archive(tmp_path / "a"), content_width=2)
    flipped = [(*row[:6], 1 - row[6], 1 - row[7], 1 - row[8]) for row in ROWS]
    later = [(*row[:1], 4, *row[2:]) if row[2] > 20220428 else row for row in flipped]
    monkeypatch.setattr(f"{__name__}.ROWS", later)
    after = kuairand(write_archive(tmp_path / "b"), content_width=2)
    assert not np.array_equal(before.impressions.labels["long_view"], after.impressions.labels["long_view"])
    assert not np.array_equal(before.impressions.item, after.impressions.item)
    np.testing.assert_array_equal(before.content.vectors, after.content.vectors)
    assert before.fit_schema() == after.fit_schema()


def test_kuairand_missing_file_raises_with_address(tmp_path):
    write_archive(tmp_path)
    (tmp_path / "data" / "user_features_pure.csv").unlink()
    with pytest.raises(DataError, match=r"lacks user_features_pure\.csv; expected.*zenodo.*CC BY-SA 4\.0"):
        load(f"kuairand:{tmp_path}")


def test_kuairand_missing_column_raises_with_file(tmp_path):
    write_archive(tmp_path)
    write_csv(tmp_path / "data" / "user_features_pure.csv", [{"user_id": 7}])
    with pytest.raises(DataError, match=r"user_features_pure\.csv.*user_active_degree"):
        kuairand(tmp_path)


def test_kuairand_undescribed_video_raises(tmp_path):
    write_archive(tmp_path)
    first = dict(zip(VIDEO_COLUMNS, VIDEOS[0], strict=True))
    write_csv(tmp_path / "data" / "video_features_basic_pure.csv", [first])
    with pytest.raises(DataError, match=r"items: the table lacks .* such as 2"):
        kuairand(tmp_path)
    write_csv(tmp_path / "data" / "video_features_basic_pure.csv", [first, first])
    with pytest.raises(DataError, match="items: 1 ids stand more than once, such as 1"):
        kuairand(tmp_path)


if "AIF_JAX_DATA" in os.environ:
    # Only where the real sets are at hand: AIF_JAX_DATA names a folder with ml-1m, ml-100k and kuairand.
    REAL = Path(os.environ["AIF_JAX_DATA"])

    def test_kuairand_real_window_has_published_size_and_floors():
        dataset = load(f"kuairand:{REAL / 'kuairand'}", content_width=8)
        rows = dataset.impressions
        assert np.bincount(rows.split).tolist() == [817_187 + 57_741, 37_043, 133_545]
        past, test = rows.split < 2, rows.split == 2
        long_view = rows.labels["long_view"]
        shown = np.bincount(rows.item[past], minlength=dataset.n_items)
        won = np.bincount(rows.item[past], long_view[past], minlength=dataset.n_items)
        prior = ((won + 20 * long_view[past].mean()) / (shown + 20))[rows.item[test]]
        assert auc(long_view[test] > 0, prior) == pytest.approx(0.6871, abs=5e-5)
        assert auc(rows.labels["is_click"][test] > 0, prior) == pytest.approx(0.6659, abs=5e-5)
        seen = np.bincount(rows.user[past], minlength=dataset.n_users)
        kept = np.bincount(rows.user[past], long_view[past], minlength=dataset.n_users)
        user = ((kept + 5 * long_view[past].mean()) / (seen + 5))[rows.user[test]]
        assert auc(long_view[test] > 0, prior + user) == pytest.approx(0.7296, abs=5e-5)
        length = rows.history_end[test] - dataset.events.offsets[rows.user[test]]
        assert np.percentile(length, [5, 50, 95, 100]).tolist() == [10, 54, 80, 190]

    def auc(label, score):
        positive, negative = np.sort(score[label]), np.sort(score[~label])
        below = sum(np.searchsorted(negative, positive, side=side).sum() for side in ("left", "right"))
        return below / 2 / len(positive) / len(negative)
