"""KuaiRand-Pure: short videos shown by Kuaishou's standard policy in April and May 2022.

Rows up to 28 April train, 29 and 30 April validate, 1 to 8 May test. Heads: ``long_view``, then ``is_click``.
The feedback of a scored row is its label, and a behaviour in the histories of later rows, never its input. A
request is all that a user saw on one day. Impressions of one user at the same millisecond are not in each
other's history.

Two layouts: the archive's csv files, complete from 8 April; and a windowed one, which holds of the time
before 25 April the last 50 impressions of each user, without time, tab or click, with ``long_view`` and
``is_like`` reconstructed. Those rows train with ``is_click`` masked and their context missing.

Left out on purpose: the age of the video at the time of the impression (all videos were uploaded within three
days, so it is the date in other words, and test dates are never seen in training), and item counters (the
item's id carries its prior, and a counter that is frozen for serving has seen a training row's own label).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.checks import typed
from aif_jax.data.dataset import Dataset
from aif_jax.data.files import PUBLIC_SETS, dense, read_table
from aif_jax.data.splits import TEST, TRAIN, VALIDATION, by_column
from aif_jax.features import Categorical, MultiValued, Numeric, Ragged, Schema, Vocabulary

BEHAVIOURS = ("passed", "skipped", "clicked", "long_view", "like")
"""Types of behaviour, weakest first. ``passed``: not a long view, and the click is unknown."""

LAST_TRAINING_DATE, LAST_VALIDATION_DATE = 20220428, 20220430

_LOG = ("user_id", "video_id", "time_ms", "date", "hourmin", "tab", "is_click", "long_view", "is_like")
_USER_CATEGORIES = (
    "user_active_degree", "is_live_streamer", "is_video_author",
    *(f"onehot_feat{i}" for i in range(18)),
)  # fmt: skip
_USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_VIDEO = (
    "video_id", "author_id", "video_type", "upload_dt", "upload_type", "video_duration", "music_id",
    "music_type", "tag",
)  # fmt: skip
_FIRST_DAY = np.datetime64("2022-04-01")


@typed
def kuairand(path: str | Path, *, content_width: int = 64) -> Dataset:
    """Load KuaiRand-Pure from a folder.

    Args:
        path: the unpacked archive (or its subfolder ``data``) with its csv files, or the parquet files.
        content_width: width of the content embedding.

    Raises:
        DataError: files are missing or broken; the message names their address.
    """
    source = PUBLIC_SETS["kuairand"]
    layout, path = source.detect(Path(path))
    suffix = "_pure.csv" if layout == "archive" else ".parquet"
    people = read_table(path / f"user_features{suffix}", ("user_id", *_USER_CATEGORIES, *_USER_COUNTS))
    videos = read_table(path / f"video_features_basic{suffix}", _VIDEO)
    log = _archive_log(path) if layout == "archive" else _windowed_log(path)

    user = dense(np.unique(people["user_id"]), log["user_id"], "user").astype(np.int64)
    date, known = log["date"], log["click_known"]
    # Rows without a time of their own are in their order, all before the first that has one.
    moment = np.where(log["timed"], log["time"], log["order"] - 2**40)
    behaviour = np.where(known, np.where(log["is_click"] > 0, 2, 1), 0)
    behaviour = np.where(log["is_like"] > 0, 4, np.where(log["long_view"] > 0, 3, behaviour))
    dataset = Dataset.from_impressions(
        {
            "user_id": log["user_id"],
            "video_id": log["video_id"],
            "time_ms": moment,
            "long_view": log["long_view"] > 0,
            "is_click": np.ma.MaskedArray(log["is_click"] > 0, mask=~known),
            "behaviour": behaviour,
            "tab": np.ma.MaskedArray(log["tab"], mask=~log["timed"]),
            "hour": np.ma.MaskedArray(log["hourmin"] // 100, mask=~log["timed"]),
            "part": np.where(
                date <= LAST_TRAINING_DATE, TRAIN, np.where(date <= LAST_VALIDATION_DATE, VALIDATION, TEST)
            ),
            "request": user * 10_000 + np.where(log["timed"], date % 10_000, 0),
        },
        user="user_id",
        item="video_id",
        time="time_ms",
        time_unit="ms",
        label=("long_view", "is_click"),
        type="behaviour",
        request="request",
        context=("tab", "hour"),
        users=people,
        items=_items(videos),
        repeats="keep",
        split=by_column("part"),
        schema=_schema(),
        content_width=content_width,
        name="kuairand",
    )
    notes = {
        "terms": source.terms,
        "cite": source.cite,
        "layout": layout,
        "rows_without_time": int(np.count_nonzero(~log["timed"])),
        "time": "milliseconds; rows without one are in their order, before all others",
    }
    return dataclasses.replace(dataset, notes={**dataset.notes, **notes})


def _schema() -> Schema:
    return Schema(
        user=(
            *(Categorical(name=name) for name in _USER_CATEGORIES),
            *(Numeric(name=name, transform="log1p") for name in _USER_COUNTS),
        ),
        item=(
            Categorical(name="video_id"),
            Categorical(name="author_id", encoder=Vocabulary(min_count=2)),
            Categorical(name="music_id", encoder=Vocabulary(min_count=2)),
            Categorical(name="video_type"),
            Categorical(name="upload_type"),
            Categorical(name="music_type"),
            MultiValued(name="tag", max_values=4),
            Numeric(name="duration_ms", transform="log1p"),
            Numeric(name="upload_day"),
        ),
        behaviour_types=BEHAVIOURS,
        context=(Categorical(name="tab"), Categorical(name="hour")),
        category="tag",
        item_id="video_id",
    )


def _archive_log(path: Path) -> dict[str, np.ndarray]:
    parts = [
        read_table(path / f"log_standard_{days}_pure.csv", _LOG) for days in ("4_08_to_4_21", "4_22_to_5_08")
    ]
    log = {name: np.concatenate([part[name] for part in parts]) for name in _LOG}
    rows = len(log["user_id"])
    return {
        **{name: log[name] for name in _LOG if name != "time_ms"},
        "time": log["time_ms"],
        "order": np.arange(rows),
        "timed": np.ones(rows, bool),
        "click_known": np.ones(rows, bool),
    }


def _windowed_log(path: Path) -> dict[str, np.ndarray]:
    window = read_table(
        path / "history_last50_before_2022-04-25.parquet",
        ("user_id", "pos_from_end", "video_id", "long_view", "is_like"),
    )
    parts = [
        read_table(path / f"impressions_2022-{days}.parquet", _LOG)
        for days in ("04-25_to_04-30", "05-01_to_05-08")
    ]
    timed = {name: np.concatenate([part[name] for part in parts]) for name in _LOG}

    rows, empty = len(timed["user_id"]), np.zeros(len(window["user_id"]), np.int64)
    early = {
        **{name: window[name].astype(np.int64) for name in ("user_id", "video_id", "long_view", "is_like")},
        "time": empty,
        "order": window["pos_from_end"].astype(np.int64),
        "date": empty, "hourmin": empty, "tab": empty, "is_click": empty,
        "timed": empty > 0, "click_known": empty > 0,
    }  # fmt: skip
    late = {
        **{name: timed[name].astype(np.int64) for name in _LOG if name != "time_ms"},
        "time": timed["time_ms"],
        "order": np.arange(rows),
        "timed": np.ones(rows, bool),
        "click_known": np.ones(rows, bool),
    }
    return {name: np.concatenate([early[name], late[name]]) for name in early}


def _items(videos: dict[str, Any]) -> dict[str, Any]:
    tags = [[] if tag is None else str(tag).split(",") for tag in _tag_strings(videos["tag"])]
    days = [
        np.nan if day is None else (np.datetime64(day[:10]) - _FIRST_DAY) / np.timedelta64(1, "D")
        for day in videos["upload_dt"]
    ]
    return {
        "video_id": videos["video_id"],
        **{
            name: videos[name]
            for name in ("author_id", "music_id", "video_type", "upload_type", "music_type")
        },
        "tag": Ragged(
            np.array([tag for row in tags for tag in row], dtype=object),
            np.concatenate([[0], np.cumsum([len(row) for row in tags])]).astype(np.int64),
        ),
        "duration_ms": videos["video_duration"].astype(np.float64),
        "upload_day": np.array(days, np.float64),
    }


def _tag_strings(column: np.ndarray) -> list[str | None]:
    """Return tags as text; a file in which no video has two tags is read as numbers."""
    if column.dtype == object:
        return column.tolist()
    return [None if np.isnan(tag) else str(int(tag)) for tag in column.astype(np.float64)]
