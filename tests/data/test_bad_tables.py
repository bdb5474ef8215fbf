"""Tables that cannot become a data set, and what their owner reads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from aif_jax.data import Dataset, Negatives, by_column, by_time, last_n
from aif_jax.errors import AifError, ConfigError, DataError, SchemaError
from aif_jax.features import Categorical, Numeric, Schema
from support.tables import HOUR, START, shop, shown

Tables = dict[str, Any]
DAY = 24 * HOUR


def events(table: Tables, **changes: Any) -> Dataset:
    names = {"user": "who", "item": "what", "time": "when", "type": "kind", "content_width": 0}
    return Dataset.from_events(table, **{**names, **changes})


def impressions(table: Tables, **changes: Any) -> Dataset:
    names = {"user": "who", "item": "what", "time": "when", "label": "click", "content_width": 0}
    return Dataset.from_impressions(table, **{**names, **changes})


def changed(**columns: Any) -> Tables:
    return {**shop()["events"], **columns}


def users_of(change: Callable[[list[str]], list[Any]]) -> Tables:
    names = change(list(shop()["users"]["who"]))
    return {"who": names, "age": list(range(len(names)))}


WHEN = shop()["events"]["when"]
SCHEMA = Schema(
    item=(Categorical(name="what"), Numeric(name="price")),
    behaviour_types=("click", "cart", "buy"),
    item_id="what",
)
PRICES = {"what": 100 + np.arange(80), "price": np.array(["9.50", "n/a"] * 40, object)}

CASES: dict[str, tuple[Callable[[], Dataset], type[AifError], str]] = {
    "no time column": (
        lambda: events(changed(), time="timestamp"),
        DataError,
        r"events: has no column 'timestamp'; its columns are \['who', 'what', 'when', 'kind', 'page'\]\.",
    ),
    "no such label": (lambda: impressions(shown(), label="like"), DataError, "has no column 'like'"),
    "strings in a numeric feature": (
        lambda: events(changed(), items=PRICES, schema=SCHEMA),
        SchemaError,
        r"feature 'price': row 0 is '9.50', of type str, expected numbers",
    ),
    "labels outside 0..1": (
        lambda: impressions({**shown(), "click": np.arange(4_000) % 5 + 1}),
        DataError,
        r"label 'click': 3,200 of 4,000 values are neither 0 nor 1, such as 2 in row 1; make a label of "
        r"grades first, such as log\['click'\] >= 2.5\.",
    ),
    "labels of text": (
        lambda: impressions({**shown(), "click": ["yes", "no"] * 2_000}),
        DataError,
        "label 'click': row 0 is 'yes', of type str, expected numbers",
    ),
    "users in events but not in users": (
        lambda: events(changed(), users=users_of(lambda names: names[3:])),
        DataError,
        r"users: the table lacks 3 of the 60 ids in the log, such as 'u0', 'u1', 'u2'\. Add them, or give "
        r"unlisted='keep' \(their features are missing\) or unlisted='drop'",
    ),
    "users of another kind": (
        lambda: events(changed(), users=users_of(lambda names: list(range(len(names))))),
        DataError,
        r"users: ids are integers such as 0, 1, 2, but the log has strings such as 'u0', 'u1', 'u10'",
    ),
    "duplicate items": (
        lambda: events(changed(), items={"what": [*(100 + np.arange(80)), 105, 105], "price": range(82)}),
        DataError,
        r"items: 1 ids stand more than once, such as 105 in rows \[5, 80\]; keep one row of each\.",
    ),
    "items without the column of ids": (
        lambda: events(changed(), items={"id": 100 + np.arange(80), "price": range(80)}),
        DataError,
        r"items: has no column 'what', the ids as the log names them; its columns are \['id', 'price'\]",
    ),
    "empty test part": (
        lambda: events(changed(), split=by_time(validation="2d", test="2026-06-01")),
        DataError,
        r"events: no row in the validation and the test part: by_time\(validation='2d', "
        r"test='2026-06-01'\) puts all .* rows elsewhere",
    ),
    "empty training part": (
        lambda: events(changed(), split=by_time(validation="30d", test="30d")),
        DataError,
        "events: no row in the train part",
    ),
    "one class only": (
        lambda: impressions({**shown(), "click": np.ones(4_000)}),
        DataError,
        r"label 'click': all 3,\d\d\d known training labels are 1, expected some 0 and some 1\. If the table "
        r"holds only what people did, .* use Dataset.from_events, which samples negatives",
    ),
    "mixed time units": (
        lambda: events(changed(when=np.where(np.arange(4_000) < 1_000, WHEN, WHEN * 1_000))),
        DataError,
        r"events: column 'when': mixes units: 3,000 rows are epochs in milliseconds \(such as 17\d+\), 1,000 "
        r"rows are epochs in seconds \(such as 17\d+\)\. Bring all rows to one unit",
    ),
    "zeros among times": (
        lambda: events(changed(when=np.where(np.arange(4_000) < 3, 0, WHEN))),
        DataError,
        r"3 rows are less than any date since 1973 \(such as 0\).*leave rows without a time empty, not 0",
    ),
    "times of text": (
        lambda: events(changed(when=["30/11/2026 20:15"] * 4_000)),
        DataError,
        r"column 'when': cannot be read as times \(the first is '30/11/2026 20:15'\); expected ISO 8601",
    ),
    "times in one table only": (
        lambda: impressions({**shown(), "when": np.arange(4_000)}, events=changed(), type="kind"),
        DataError,
        "the two tables hold steps .* and epochs in seconds; give both the same clock",
    ),
    "duration of steps": (
        lambda: events(changed(when=np.arange(4_000)), split=by_time("1d", "1d")),
        DataError,
        "got the duration '1d', but the times are steps without dates; give a share",
    ),
    "100 % of test items unseen": (
        lambda: events(changed(what=np.where(WHEN >= START + 36 * DAY, 5_000, 100) + np.arange(4_000) % 50)),
        DataError,
        r"all items of the \d+ test rows are absent from the training part, so no model can know them\. "
        "Check that ids are stable over time",
    ),
    "no rows": (lambda: events({name: [] for name in changed()}), DataError, "got a table without rows"),
    "no rows left": (
        lambda: events(changed(who=[None] * 4_000)),
        DataError,
        "column 'who': every id is missing",
    ),
    "negative items": (
        lambda: events(changed(what=np.arange(4_000) - 1)),
        DataError,
        "items: got the negative id -1, expected non-negative integers or strings",
    ),
    "fractions as ids": (
        lambda: events(changed(what=np.arange(4_000) / 2)),
        DataError,
        "column 'what': holds the fraction 0.5, expected ids",
    ),
    "mixed ids": (
        lambda: events(changed(what=[7, "seven"] * 2_000)),
        DataError,
        "column 'what': .*; expected one kind of values in all rows",
    ),
    "not a table": (lambda: events([1, 2, 3]), DataError, "events: got a list, expected a DataFrame"),  # type: ignore[arg-type]
    "path of nothing": (
        lambda: events("no/such/*.parquet"),  # type: ignore[arg-type]
        DataError,
        "events: got the path 'no/such/.*parquet', which matches no file",
    ),
    "columns of different lengths": (
        lambda: events(changed(page=["home"]), context=["page"]),
        DataError,
        "events: columns have different lengths: .*'page': 1",
    ),
    "unknown type": (
        lambda: events(changed(), schema=Schema(item=SCHEMA.item[:1], behaviour_types=("click",))),
        DataError,
        r"type: got '(cart|buy)', expected one of the schema's behaviour types \('click',\)",
    ),
    "types like ids": (
        lambda: events(changed(kind=np.arange(4_000))),
        DataError,
        r"type: got 4,000 different values, such as \[0, 1, 2\]; expected the few kinds of behaviour",
    ),
    "label of no type": (
        lambda: events(changed(), labels={"deep": ["order"]}),
        DataError,
        r"labels: head 'deep' names \['order'\], but the types of events are \('click', 'cart', 'buy'\)",
    ),
    "feature without a column": (
        lambda: events(changed(), schema=SCHEMA),
        SchemaError,
        r"item: the schema has a feature 'price', but the columns are \['ids', 'what'\]",
    ),
    "name that is no feature": (
        lambda: events(changed(), items={"what": 100 + np.arange(80), "unit price": np.arange(80)}),
        SchemaError,
        "item: column 'unit price' cannot be a feature by this name; rename it, for example to 'unit_price'",
    ),
    "split of other words": (
        lambda: events(changed(part=["train", "dev"] * 2_000), split=by_column("part")),
        DataError,
        "split column 'part': got 'dev', expected 'train', 'validation', 'test', or 0, 1, 2",
    ),
    "split of no time": (
        lambda: events(changed(), split=by_time("a week", "1d")),
        DataError,
        r"by_time\(validation=\): got 'a week', expected a share such as 0.1, a duration such as '7d'",
    ),
    "share of percents": (
        lambda: events(changed(), split=by_time(10, 10)),
        DataError,
        r"by_time\(validation=\): got 10, expected a share from 0 to below 1",
    ),
    "rows of half": (lambda: events(changed(), split=last_n(0.5)), DataError, "got 0.5, expected a whole"),  # type: ignore[arg-type]
    "no negatives": (lambda: events(changed(), negatives=Negatives(0)), ConfigError, "count: got 0"),
    "none a row": (lambda: events(changed(), negatives=0), ConfigError, "negatives: got 0"),
    "negatives by the million": (
        lambda: events(changed(), negatives=1_000_000),
        ConfigError,
        "count: got 1000000, expected at most 1,000",
    ),
    "users who met all items": (
        lambda: events(changed(what=np.full(4_000, 100))),
        DataError,
        "known training labels are 1, .* No negative was found, since the users met nearly all items",
    ),
    "one column twice": (
        lambda: events(changed(), user="what"),
        DataError,
        "item: got 'what', which is the column of user already",
    ),
    "no name of a column": (lambda: events(changed(), user=3), ConfigError, "user: got 3, expected a string"),
    "a word for a list": (
        lambda: events(changed(), context="page"),
        ConfigError,
        "context: got 'page', expected a list, each a string",
    ),
    "a word for a split": (
        lambda: events(changed(), split="time"), ConfigError, "split: got 'time', expected a Split"
    ),
    "a table for a split": (
        lambda: events(changed(), split={}), ConfigError, "split: got {}, expected a Split"
    ),
    "split at no time": (
        lambda: events(changed(), split=by_time(None, 0.1)),
        DataError,
        r"by_time\(validation=\): got None, expected a share such as 0.1",
    ),
    "a word for labels": (
        lambda: events(changed(), labels="any"), ConfigError, "labels: got 'any', expected a mapping"
    ),
    "label of no name": (
        lambda: events(changed(), labels={"deep buy": ["buy"]}),
        DataError,
        "label 'deep buy' is not a name that a score expression could use",
    ),
    "label of a keyword": (
        lambda: events(changed(), labels={"if": ["buy"]}), DataError, "label 'if' is not a name that a score"
    ),
    "label of another form of Unicode": (
        lambda: events(changed(), labels={"\ufb01t": ["buy"]}), DataError, "label '\ufb01t' is not a name"
    ),
    "iterator as a column": (
        lambda: events(changed(what=iter(range(4_000)))), DataError, "column .what.: got a range_iterator"
    ),
    "single value as a column": (
        lambda: events(changed(what=np.array(1))), DataError, "events: column 'what': got the single value 1"
    ),
    "empty name of a column": (lambda: events(changed(), user=""), DataError, "events: has no column ''"),
    "empty name of the types": (lambda: events(changed(), type=""), DataError, "events: has no column ''"),
    "path too long for the system": (
        lambda: events("x" * 5_000), DataError, r"events: got the path 'x{150}', which matches no file"
    ),
    "min_item_count too high": (
        lambda: events(changed(), min_item_count=9_999),
        DataError,
        r"no item occurs 9999 times in the training part, the min_count of 'what'; .* \d+ times\. Lower it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_table_is_refused_with_what_was_found_and_how_to_mend_it(case: str) -> None:
    build, error, text = CASES[case]
    with pytest.raises(error, match=text) as raised:
        build().fit_schema()
    assert len(str(raised.value)) < 700


def test_lazy_frame_reads_named_columns_only() -> None:
    def broken(column: pl.Series) -> pl.Series:
        raise RuntimeError("read")

    read = pl.col("when").map_batches(broken, return_dtype=pl.Int64)
    frame = pl.LazyFrame(shop()["events"]).with_columns(read.alias("broken"))
    assert len(events(frame).events)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="read"):
        frame.collect()


def warned(data: Dataset) -> str:
    assert all(f"warning: {text}" in repr(data) for text in data.warnings)
    return " ".join(data.warnings)


def test_warning_future_times() -> None:
    when = pd.to_datetime(np.where(np.arange(4_000) < 5, 2**33, WHEN), unit="s")
    assert "5 times lie in the future" in warned(events(changed(when=when), split=last_n()))


def test_warning_few_rows_and_short_histories() -> None:
    table = {name: column[:300] for name, column in shop(users=200)["events"].items()}
    text = warned(events(table, split=by_time(0.2, 0.2)))
    assert "training impressions are few" in text
    assert "histories are short" in text


def test_warning_one_class_in_test_part() -> None:
    table = shown()
    click = np.where(table["when"] >= np.quantile(table["when"], 0.8), 0, table["click"])
    assert "label 'click' has one class in the test part" in warned(impressions({**table, "click": click}))


def test_warning_popularity_shift() -> None:
    random = np.random.default_rng(0)
    what = np.where(WHEN < START + 35 * DAY, random.integers(0, 2_000, 4_000), random.integers(0, 60, 4_000))
    assert "popularity shifts" in warned(events(changed(what=what)))


def test_warning_unknown_items_and_no_validation_part() -> None:
    late = (WHEN >= START + 36 * DAY) & (np.arange(4_000) % 2 == 0)
    data = events(changed(what=np.where(late, 5_000, shop()["events"]["what"])), split=by_time(0, "4d"))
    assert "of the test impressions are unknown to training" in warned(data)
    assert "no validation part" in warned(data)


def test_sound_log_has_no_warning() -> None:
    assert events(shop(users=400)["events"]).warnings == ()
