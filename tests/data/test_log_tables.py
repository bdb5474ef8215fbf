"""`Dataset.from_events` and `Dataset.from_impressions`: what they build from tables of any library."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from aif_jax.data import (
    TEST,
    TRAIN,
    VALIDATION,
    Dataset,
    Negatives,
    building,
    by_column,
    by_time,
    by_user,
    last_n,
)
from aif_jax.data.digests import digest_of_arrays
from aif_jax.features import Categorical, Schema, Vocabulary
from support.tables import HOUR, START, shop, shown

DAY = 24 * HOUR
EVENTS = {"user": "who", "item": "what", "time": "when", "type": "kind", "content_width": 0}
SHOWN = {"user": "who", "item": "what", "time": "when", "content_width": 0}


def from_shop(events: Any = None, **changes: Any) -> Dataset:
    tables = shop()
    events = tables["events"] if events is None else events
    return Dataset.from_events(
        events, **{**EVENTS, "users": tables["users"], "items": tables["items"], **changes}
    )


def from_shown(impressions: Any = None, **changes: Any) -> Dataset:
    impressions = shown() if impressions is None else impressions
    return Dataset.from_impressions(
        impressions, **{**SHOWN, "label": "click", "request": "request", **changes}
    )


def digest(data: Dataset) -> str:
    rows, events = data.impressions, data.events
    arrays = [rows.user, rows.item, rows.history_end, rows.split, rows.request, *rows.labels.values()]
    return digest_of_arrays(*arrays, events.offsets, events.item, events.type, events.time, events.training)


def written(events: dict[str, Any], folder: Path, parts: int) -> Path:
    table = pa.table(events)
    size = -(-table.num_rows // parts)
    for part in range(parts):
        pq.write_table(table.slice(part * size, size), folder / f"part-{part}.parquet")
    return folder


FORMS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "pandas": lambda events, _: pd.DataFrame(events, index=np.arange(len(events["who"]))[::-1]),
    "polars": lambda events, _: pl.DataFrame(events),
    "polars with enums": lambda events, _: pl.DataFrame(events).with_columns(
        pl.col("kind").cast(pl.Enum(["click", "cart", "buy"])), pl.col("who").cast(pl.Categorical)
    ),
    "lazy polars": lambda events, _: pl.LazyFrame(events).filter(pl.col("when") > 0),
    "Arrow table": lambda events, _: pa.table(events),
    "dictionaries of Arrow": lambda events, _: pa.table(
        {**events, "who": pa.array(events["who"]).dictionary_encode()}
    ),
    "Arrow data set": lambda events, folder: pyarrow.dataset.dataset(written(events, folder, 2)),
    "path of a file": lambda events, folder: str(written(events, folder, 1) / "part-0.parquet"),
    "path of a folder": lambda events, folder: written(events, folder, 2),
    "glob": lambda events, folder: f"{written(events, folder, 3)}/part-*.parquet",
    "list of paths": lambda events, folder: sorted(written(events, folder, 3).iterdir()),
}


@pytest.mark.parametrize("form", FORMS)
def test_from_events_every_form_of_table_gives_the_same(form: str, tmp_path: Path) -> None:
    events = shop()["events"]
    assert digest(from_shop(FORMS[form](events, tmp_path))) == digest(from_shop(events))


def test_from_events_other_order_of_rows_gives_the_same_histories() -> None:
    events = shop()["events"]
    order = np.random.default_rng(3).permutation(len(events["who"]))
    # Of events at one time the order of the file counts, so each gets a time of its own.
    events["when"] = events["when"] * 1_000 + np.arange(len(order))
    mixed = {name: np.asarray(column)[order] for name, column in events.items()}
    assert digest(from_shop(mixed)) == digest(from_shop(events))


TIMES: dict[str, Callable[[np.ndarray], Any]] = {
    "milliseconds": lambda s: s * 10**3,
    "microseconds": lambda s: s * 10**6,
    "nanoseconds": lambda s: s * 10**9,
    "floats": lambda s: s.astype(np.float64),
    "fractions": lambda s: s + 0.25,
    "datetime64[s]": lambda s: s.astype("datetime64[s]"),
    "datetime64[h]": lambda s: s.astype("datetime64[s]").astype("datetime64[h]"),
    "datetime64[ns] of pandas": lambda s: pd.Series(pd.to_datetime(s, unit="s")),
    "zone of pandas": lambda s: pd.Series(pd.to_datetime(s, unit="s", utc=True)).dt.tz_convert("Asia/Tokyo"),
    "zone of polars": lambda s: (
        pl.from_epoch(pl.Series(s), time_unit="s")
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone("America/New_York")
    ),
    "datetimes of Python": lambda s: [datetime.datetime.fromtimestamp(x, datetime.UTC) for x in s.tolist()],
    "ISO 8601": lambda s: s.astype("datetime64[s]").astype(str).astype(object),
    "ISO 8601 with zones": lambda s: [f"{x}+00:00" for x in s.astype("datetime64[s]").astype(str)],
}


@pytest.mark.parametrize("form", TIMES)
def test_from_events_times_of_any_unit_and_zone_split_alike(form: str) -> None:
    events = shop()["events"]
    plain = from_shop(events, split=by_time("3d", "2d"))
    seconds = np.asarray(events["when"])
    data = from_shop({**events, "when": TIMES[form](seconds)}, split=by_time("3d", "2d"))
    for name in ("user", "item", "history_end", "split"):
        np.testing.assert_array_equal(getattr(data.impressions, name), getattr(plain.impressions, name))
    assert "2025-11-2" in data.notes["time"]


def test_from_events_history_ends_before_row_and_equal_times_do_not_see_each_other() -> None:
    data = from_shop()
    rows, events = data.impressions, data.events
    real = np.flatnonzero(~rows.sampled)
    users = events.user
    for row in real[::37].tolist():
        user, end = rows.user[row], rows.history_end[row]
        mine = np.flatnonzero(users == user)
        moment = events.time[end]
        assert users[end] == user
        assert rows.item[row] in events.item[mine[events.time[mine] == moment]]
        np.testing.assert_array_equal(mine[events.time[mine] < moment], np.arange(events.offsets[user], end))
    later = np.r_[False, (np.diff(events.time) == 0) & (np.diff(users) == 0)]
    assert later.any(), "no two events of a user at one time: this test shows nothing"


def test_from_events_rows_are_users_and_items_of_the_log() -> None:
    tables = shop()
    data = from_shop()
    rows, events = data.impressions, tables["events"]
    real = ~rows.sampled
    found = {
        (data.users["ids"][u], int(data.items["ids"][i]), int(data.events.time[end]))
        for u, i, end in zip(rows.user[real], rows.item[real], rows.history_end[real], strict=True)
    }
    given = zip(events["who"].tolist(), events["what"].tolist(), events["when"].tolist(), strict=True)
    assert found == set(given)
    ages = dict(zip(tables["users"]["who"], tables["users"]["age"].tolist(), strict=True))
    assert [ages[name] for name in data.users["ids"]] == np.asarray(data.users["age"]).tolist()


def test_from_events_labels_follow_types_of_one_moment() -> None:
    events = {
        "who": [1, 1, 1, 1, 2, 2, 2, 2],
        "what": [5, 5, 6, 7, 5, 6, 7, 8],
        "when": [START, START, START, START + DAY, START, START + 2 * DAY, START + 3 * DAY, START + 9 * DAY],
        "kind": ["click", "buy", "click", "click", "buy", "click", "click", "click"],
    }
    data = Dataset.from_events(
        events, **EVENTS, labels={"seen": "any", "deep": ["buy"]}, negatives=1, split=last_n(0, 1)
    )
    rows = data.impressions
    real = np.flatnonzero(~rows.sampled)
    found = [(int(rows.user[r]), int(rows.item[r]), float(rows.labels["deep"][r])) for r in real]
    assert found == [(0, 0, 1), (0, 1, 0), (0, 2, 0), (1, 0, 1), (1, 1, 0), (1, 2, 0), (1, 3, 0)]
    assert len(data.events) == 8  # both the click and the buy are history
    assert data.schema.behaviour_types == ("click", "buy")
    assert not any(rows.labels[head][rows.sampled].any() for head in data.heads)
    only = Dataset.from_events(events, **EVENTS, labels={"deep": "buy"}, negatives=1, split=last_n(0, 0))
    assert only.impressions.real(TRAIN).size == 2
    assert len(only.events) == 8


@pytest.mark.parametrize("same_day", [False, True])
def test_from_events_negatives_are_what_the_user_does_not_meet_from_then_on(same_day: bool) -> None:
    rule = Negatives(3, same_day=same_day, popularity=1.0, met=True)
    data = from_shop(negatives=rule, split=by_time(0.2, 0.2))
    rows, events = data.impressions, data.events
    real = np.maximum.accumulate(np.where(rows.sampled, 0, np.arange(len(rows))))  # row that each belongs to
    day = events.time[rows.history_end] // DAY if same_day else np.zeros(len(rows), np.int64)
    period = list(zip(rows.split.tolist(), day.tolist(), strict=True))
    items: dict[tuple[int, int], set[int]] = {}
    for row in np.flatnonzero(~rows.sampled).tolist():
        items.setdefault(period[row], set()).add(int(rows.item[row]))
    ends = [
        int(events.time[rows.history_end[rows.split == part]].max()) for part in (TRAIN, VALIDATION, TEST)
    ]
    before = dict.fromkeys((TRAIN, VALIDATION, TEST), 0)
    later = 0
    for row in np.flatnonzero(rows.sampled).tolist():
        user, start, part = int(rows.user[row]), int(rows.history_end[row]), int(rows.split[row])
        mine = slice(start, int(events.offsets[user + 1]))
        met = events.item[mine] == rows.item[row]
        assert not (met & (events.time[mine] <= ends[part])).any()
        later += bool(met.any())
        before[part] += rows.item[row] in events.item[events.offsets[user] : start]
        assert int(rows.item[row]) in items[period[row]]
        assert (rows.request[row], start) == (rows.request[real[row]], rows.history_end[real[row]])
    assert later > 100, "pairs of later parts tell training and validation what comes"
    for part in (TRAIN, VALIDATION, TEST):
        assert np.count_nonzero((rows.split == part) & rows.sampled) > rows.real(part).size
        assert before[part] > 100, "a model would learn that what was met is always a positive"


def test_from_events_negatives_without_met_items_are_new_to_the_user() -> None:
    data = from_shop(negatives=Negatives(3, met=False), split=by_time(0.2, 0.2))
    rows, events = data.impressions, data.events
    assert "none that the user has met" in data.notes["negatives"]
    for row in np.flatnonzero(rows.sampled).tolist():
        start = events.offsets[rows.user[row]]
        assert rows.item[row] not in events.item[start : rows.history_end[row]]


@pytest.mark.parametrize("again", [False, True])
def test_from_events_rows_of_met_items_are_positive_as_often_as_users_come_back(again: bool) -> None:
    """An item of the history is a negative where nobody comes back to it, and either where people do."""
    random = np.random.default_rng(0)
    users, steps, size = 40, 40, 60
    seen = np.array([random.permutation(size)[:steps] for _ in range(users)])
    if again:  # every fourth event is of the item five events ago
        seen[:, 8::4] = seen[:, 3:-5:4]
    log = {
        "who": np.repeat(np.arange(users), steps),
        "what": seen.ravel(),
        "when": START + HOUR * np.add.outer(np.arange(users), users * np.arange(steps)).ravel(),
    }
    data = Dataset.from_events(
        log, user="who", item="what", time="when", content_width=0,
        negatives=Negatives(4, popularity=0.0, met=True),
    )  # fmt: skip
    by_log = Dataset.from_events(log, user="who", item="what", time="when", content_width=0)
    chosen = by_log.notes["negatives"]
    assert chosen.endswith(f"({'19%' if again else '0%'} of the training rows are of items met before)")
    assert ("none that the user meets then or later" in chosen) == again
    assert ("none that the user has met" in chosen) != again
    rows, events = data.impressions, data.events
    met = np.array([
        rows.item[row] in events.item[events.offsets[rows.user[row]] : rows.history_end[row]]
        for row in range(len(rows))
    ])  # fmt: skip
    rates = [rows.labels["interaction"][met & (rows.split == part)].mean() for part in range(3)]
    if again:
        assert all(0.1 < rate < 0.6 for rate in rates), rates
    else:
        assert rates == [0, 0, 0]


def test_from_events_negatives_are_as_new_to_training_as_real_items() -> None:
    """Otherwise an unknown id alone would tell a real row of the test part from a sampled one."""
    events = shop(users=1_500)["events"]
    late = events["when"] > START + 36 * DAY
    events["what"] = np.where(late & (events["what"] % 2 == 0), events["what"] + 1_000, events["what"])
    data = from_shop(
        events, users=None, items=None, negatives=Negatives(4, popularity=1.0), split=by_time("2d", "3d")
    )
    rows, known = data.impressions, data.trained_items()
    test = rows.split == TEST
    real, sampled = (
        np.mean(~known[rows.item[test & ~rows.sampled]]),
        np.mean(~known[rows.item[test & rows.sampled]]),
    )
    assert real > 0.3
    assert sampled == pytest.approx(real, abs=0.08)


def test_from_events_splits_by_every_rule() -> None:
    data = from_shop(split=by_time("3d", "2026-01-01"))
    rows, time = data.impressions, data.events.time[data.impressions.history_end]
    new_year = int(np.datetime64("2026-01-01", "s").astype(np.int64))
    np.testing.assert_array_equal(
        rows.split, (time >= new_year - 3 * DAY).astype(int) + (time >= new_year).astype(int)
    )
    assert not data.events.training[data.events.time >= new_year - 3 * DAY].any()

    data = from_shop(split=by_user(0.1, 0.2))
    of_user = [set(data.impressions.split[data.impressions.user == user].tolist()) for user in range(60)]
    assert all(len(parts) == 1 for parts in of_user)
    assert [sum(parts == {part} for parts in of_user) for part in (TRAIN, VALIDATION, TEST)] == [42, 6, 12]

    data = from_shop(split=last_n(1, 2))
    for user in range(60):
        mine = data.impressions.split[(data.impressions.user == user) & ~data.impressions.sampled]
        assert mine.tolist() == [0] * (len(mine) - 3) + [1, 2, 2]

    events = shop()["events"]
    words = np.array(["train", "validation", "test"], object)[np.arange(4_000) % 3]
    data = from_shop({**events, "part": words}, split=by_column("part"))
    assert {data.impressions.real(part).size // 100 for part in range(3)} <= {12, 13}


def test_from_events_missing_and_repeated_rows_are_left_out_and_counted() -> None:
    events = pd.DataFrame(shop()["events"])
    events["what"] = events["what"].astype("Int64")
    events.loc[3, "who"] = None
    events.loc[4, "who"] = ""
    events.loc[5, "what"] = pd.NA
    events["when"] = pd.to_datetime(events["when"], unit="s")
    events.loc[6, "when"] = pd.NaT
    events.loc[7, "kind"] = None
    events = pd.concat([events, events.iloc[[10, 10, 11]]])
    clean = from_shop().notes["left_out"]
    reason = "repeated (same user, item, time and type)"
    before = clean.get(reason, 0)
    data = from_shop(events)
    assert data.notes["left_out"] == {
        "without a user": 2, "without an item": 1, "without a time": 1, "without a type": 1,
        reason: before + 3,
    }  # fmt: skip
    assert f"{before + 3:,} rows repeated" in repr(data)
    assert len(from_shop(events, repeats="keep").events) == len(data.events) + before + 3


def test_from_events_min_item_count_counts_events_of_training() -> None:
    events = shop()["events"]
    data = from_shop(min_item_count=40, negatives=8)
    encoder = data.fit_schema().feature("item", "what").encoder
    counts = np.bincount(data.events.item[data.events.training], minlength=data.n_items)
    assert encoder.values == tuple(data.items["ids"][counts >= 40].tolist())
    assert 5 < len(encoder.values) < data.n_items
    kept = dataclasses.replace(encoder, values=None, min_count=1, max_size=7)
    item = tuple(
        dataclasses.replace(feature, encoder=kept) if feature.name == "what" else feature
        for feature in data.schema.item
    )
    data = from_shop(events, schema=dataclasses.replace(data.schema, item=item))
    assert len(data.fit_schema().feature("item", "what").encoder.values) == 7


def test_from_events_without_min_item_count_leaves_rare_ids_out() -> None:
    data = from_shop()
    counts = np.bincount(data.events.item[data.events.training], minlength=data.n_items)
    assert data.schema.feature("item", "what").encoder == Vocabulary(min_count=3)  # type: ignore[union-attr]
    assert data.fit_schema().feature("item", "what").encoder.values == tuple(data.items["ids"][counts >= 3])  # type: ignore[union-attr]
    once = {name: np.asarray(column)[:30] for name, column in shop()["events"].items()} | {
        "what": np.arange(30) % 15
    }
    few = from_shop(once, items=None, users=None, split=by_user(0.2, 0.2))
    assert few.schema.feature("item", "what").encoder == Vocabulary()  # type: ignore[union-attr]


def test_from_events_context_of_a_row_is_that_of_its_negatives() -> None:
    data = from_shop(context=["page"])
    rows = data.impressions
    assert data.schema.context == (Categorical(name="page", encoder=Vocabulary()),)
    first = np.maximum.accumulate(np.where(rows.sampled, 0, np.arange(len(rows))))
    page = np.asarray(rows.context["page"])
    np.testing.assert_array_equal(page, page[first])


def test_from_impressions_keeps_requests_labels_and_features() -> None:
    table = shown()
    data = from_shown(table, pair=["bid"], train_only=["place"])
    rows = data.impressions
    assert rows.sampled is None
    requests = data.requests("train", group=8)
    assert set(np.sum(requests.rows >= 0, axis=1).tolist()) == {4}
    by_pair = {
        (who, what, number): (click, bid, place)
        for who, what, number, click, bid, place in zip(
            *(table[name].tolist() for name in ("who", "what", "request", "click", "bid", "place")),
            strict=True,
        )
    }
    for row in range(0, len(rows), 61):
        key = (
            data.users["ids"][rows.user[row]],
            int(data.items["ids"][rows.item[row]]),
            int(rows.request[row]),
        )
        values = rows.labels["click"][row], rows.pair["bid"][row], rows.train_only["place"][row]
        assert values == by_pair[key]
    assert data.schema.behaviour_types == ("click",)
    assert len(data.events) == int(table["click"].sum())


def test_from_impressions_with_events_sees_those_before_the_row_only() -> None:
    events = {**shop()["events"]}
    events["when"] = events["when"].astype("datetime64[s]")  # another unit than the impressions
    table = {**shown(), "when": shown()["when"] * 1_000}
    data = from_shown(table, events=events, type="kind")
    rows, past = data.impressions, data.events
    assert set(data.schema.behaviour_types) == {"click", "cart", "buy"}
    place = {user: row for row, user in enumerate(data.users["ids"])}
    moment = {}
    for who, number, when in zip(
        table["who"], table["request"].tolist(), table["when"].tolist(), strict=True
    ):
        moment[number] = place[who], when
    assert past.time.max() > 10**12
    for row in range(0, len(rows), 53):
        user, when = moment[int(rows.request[row])]
        start, stop = past.offsets[user], past.offsets[user + 1]
        assert rows.history_end[row] == start + np.count_nonzero(past.time[start:stop] < when)


def test_from_impressions_request_numbers_may_repeat_among_users() -> None:
    table = shown()
    table["request"] = np.array([f"r{number % 7}" for number in table["request"]], object)
    data = from_shown(table)
    rows = data.impressions
    for number in np.unique(rows.request):
        mine = rows.request == number
        assert len(set(rows.user[mine].tolist())) == 1
        assert len(set(rows.split[mine].tolist())) == 1
    assert "moved" in data.notes  # requests of weeks reach over the bounds


def test_from_impressions_missing_label_is_unknown() -> None:
    table = shown()
    label = pd.Series(table["click"]).astype("Int64")
    label[::5] = pd.NA
    data = from_shown({**table, "click": label, "like": table["bid"] > 0.5}, label=["click", "like"])
    rows = data.impressions
    assert rows.label_mask["click"].mean() == pytest.approx(0.8, abs=0.01)
    assert not rows.labels["click"][rows.label_mask["click"] == 0].any()
    assert (data.heads, rows.label_mask["like"].min()) == (("click", "like"), 1)


def test_from_impressions_repeated_row_keeps_larger_label() -> None:
    table = shown()
    twice = {name: np.concatenate([column, column[:40]]) for name, column in table.items()}
    twice["click"][4_000:] = 1
    data = from_shown(twice)
    assert len(data.impressions) == 4_000
    assert data.impressions.labels["click"].sum() == table["click"].sum() + 40 - table["click"][:40].sum()
    assert sum(data.notes["left_out"].values()) == 40


@pytest.mark.parametrize("unlisted", ["keep", "drop"])
def test_from_events_unlisted_items_are_kept_or_dropped_and_counted(unlisted: str) -> None:
    items = {name: column[1:] for name, column in shop()["items"].items()}
    data = from_shop(items=items, unlisted=unlisted)
    whole = from_shop()
    gone = int(np.count_nonzero(whole.events.item == 0))
    assert gone > 0
    if unlisted == "keep":
        assert data.n_items == 80
        encoded = data.catalogue(data.fit_schema(), content_width=4)
        assert encoded["price"][0].tolist() == [0.0, 0.0]
        assert not encoded["tags"][0].any()
    else:
        assert data.n_items == 79
        assert data.notes["left_out"]["of items that the table lacks"] == gone
    assert "without a row in their table: 1 items" in repr(data)


def test_from_events_idle_users_and_items_are_kept_and_counted() -> None:
    tables = shop()
    users = {"who": [*tables["users"]["who"], "nobody"], "age": [*tables["users"]["age"].tolist(), None]}
    data = from_shop(users=users)
    assert data.n_users == 61
    assert "in no log: 1 users" in repr(data)


def test_from_events_given_schema_stays_as_it_is(tmp_path: Path) -> None:
    inferred = from_shop().schema
    inferred.save(tmp_path / "schema.toml")
    data = from_shop(schema=Schema.load(tmp_path / "schema.toml"))
    assert data.schema == inferred
    assert data.schema.category == "tags"
    assert eval(inferred.to_code(), vars(__import__("aif_jax"))) == inferred


def test_from_events_content_of_many_events_is_derived_on_request_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = from_shop(content_width=None)
    assert few.content is not None
    assert few.content.vectors.shape == (80, 64)
    monkeypatch.setattr(building, "CONTENT_EVENTS", 500)
    many = from_shop(content_width=None)
    assert many.content is None
    assert "content: none, because to derive it from over 500 events takes minutes" in repr(many)
    asked = from_shop(content_width=64)
    assert asked.content is not None
    np.testing.assert_array_equal(asked.content.vectors, few.content.vectors)
