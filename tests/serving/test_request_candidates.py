"""Candidates as ids or as a table of any library: the ranking of plain arrays, and errors."""

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import (
    RequestError,
    RetrievalError,
)
from aif_jax.nearline import ItemIndex, Tables
from aif_jax.serving import Engine, Filters
from aif_jax.types import Candidates
from support.served import K_MAX, N_ITEMS, Make, World, assert_same, ran, ways


def series(values: Any) -> pd.Series:
    """Return a series whose labels contradict its positions."""
    return pd.Series(values, index=range(len(values))[::-1])


def nullable(values: Any) -> pd.Series:
    """Return a series of the nullable type of its values."""
    return series(values).convert_dtypes()


def frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return a frame whose labels contradict its positions."""
    made = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})
    made.index = made.index[::-1]
    return made


class Stream:
    """An Arrow table of some other library, which says nothing but how to read it."""

    def __init__(self, table: Any):
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def structured(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    table = np.empty(len(columns["id"]), [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    return table


def arrow(columns: Mapping[str, Any], *, chunks: int = 1) -> pa.Table:
    whole = pa.table(dict(columns))
    step = -(-len(whole) // chunks)
    return pa.concat_tables(whole.slice(start, step) for start in range(0, len(whole), step))


def dictionary(columns: Mapping[str, Any], kind: Any = None) -> pa.Table:
    kind = kind or pa.string()
    encoded = pa.array(columns["channel"].tolist(), kind).dictionary_encode()
    return pa.table({**columns, "channel": encoded})


def item_id(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {"item_id" if name == "id" else name: values for name, values in columns.items()}


TABLES: dict[str, Any] = {
    "mapping": dict,
    "read-only mapping": MappingProxyType,
    "item_id": item_id,
    "lists": lambda columns: {name: values.tolist() for name, values in columns.items()},
    "series": lambda columns: {name: series(values) for name, values in columns.items()},
    "structured": structured,
    "record array": lambda columns: structured(columns).view(np.recarray),
    "frame": frame,
    "polars": lambda columns: pl.DataFrame({name: np.asarray(v) for name, v in columns.items()}),
    "arrow": arrow,
    "arrow in chunks": lambda columns: arrow(columns, chunks=4),
    "record batch": lambda columns: pa.RecordBatch.from_pydict(dict(columns)),
    "arrow columns": lambda columns: {name: pa.array(values) for name, values in columns.items()},
    "dictionary": dictionary,
    "dictionary of large strings": lambda columns: dictionary(columns, pa.large_string()),
    "stream": lambda columns: Stream(arrow(columns, chunks=3)),
    "reader": lambda columns: arrow(columns, chunks=2).to_reader(),
}
"""Every kind of table, made of NumPy columns."""


@pytest.mark.parametrize("kind", TABLES)
def test_candidates_table_of_any_kind_ranks_as_its_columns(engine: Engine, world: World, kind: str) -> None:
    ids, pair = world.candidates(50)
    expected = engine.begin(4).rank(ids, pair)
    columns = {"channel": pair["channel"], "id": ids, "bid": pair["bid"]}
    ranking = engine.begin(4).rank(TABLES[kind](columns))
    assert ranking.ids.dtype == np.uint64
    assert_same(ranking, expected)
    assert ranking.report.unknown_features == expected.report.unknown_features
    stay = ranking.report.candidates == 50
    out = Filters(ids[:9], ["noir", "horror"])
    filtered = engine.begin(4).rank(TABLES[kind](columns), filters=out)
    assert filtered.scores.tolist() == engine.begin(4).rank(ids, pair, filters=out).scores.tolist()
    assert stay


@pytest.mark.parametrize("kind", TABLES)
@ways
def test_retrieve_returning_any_table_ranks_as_its_columns(
    make: Make, world: World, kind: str, way: str
) -> None:
    ids, pair = world.candidates(40)
    engine = make(retrieve=lambda request: TABLES[kind]({"id": ids, **pair}))
    ranking = ran(getattr(engine, way), 4)
    assert ranking.scores.tolist() == engine.begin(4).rank(ids, pair).scores.tolist()


def test_candidates_pair_features_of_table_and_argument_are_joined(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(30)
    expected = engine.begin(4).rank(ids, pair)
    table = {"id": ids, "bid": pair["bid"]}
    for channel in (pair["channel"], series(pair["channel"]), pa.array(pair["channel"])):
        assert engine.begin(4).rank(table, {"channel": channel}).scores.tolist() == expected.scores.tolist()
    assert table.keys() == {"id", "bid"}  # the caller's own stays as it was


IDS: dict[str, Any] = {
    "series": series, "arrow": pa.array, "chunked": lambda ids: pa.chunked_array([ids[:3], ids[3:]]),
    "int64": lambda ids: pa.array(ids.astype(np.int64)), "nullable": nullable,
}  # fmt: skip


@pytest.mark.parametrize("kind", IDS)
def test_candidates_ids_of_series_or_arrow_rank_as_array(engine: Engine, world: World, kind: str) -> None:
    ids, pair = world.candidates(30)
    expected = engine.begin(4).rank(ids, pair)
    assert engine.begin(4).rank(IDS[kind](ids), pair).ids.tolist() == expected.ids.tolist()
    out = engine.begin(4).rank(ids, pair, k=K_MAX, filters=Filters(IDS[kind](ids[:20])))
    assert set(out.ids.tolist()) == set(ids[20:].tolist())


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_candidates_string_ids_in_tables_rank_as_list(
    make: Make, bundle: Bundle, tables: Tables, world: World, kind: pa.DataType
) -> None:
    names = [f"item {i}" for i in range(N_ITEMS)]
    index = ItemIndex.build(bundle, names, world.columns, world.content)
    engine = make((bundle, tables._replace(items=index)))
    _, pair = world.candidates(40)
    chosen = [*names[:39], "nobody's"]
    expected = engine.begin(4).rank(chosen, pair)
    assert expected.report.missing_items == 1
    column = pa.array(chosen, pa.string()).cast(kind)
    for table in (
        pa.table({"id": column, **pair}),
        pa.table({"item_id": pa.chunked_array([column.slice(0, 7), column.slice(7)]), **pair}),
        {"id": column, **pair},
        frame({"id": np.array(chosen, object), **pair}),
        structured({"id": np.array(chosen), **pair}),
    ):
        ranking = engine.begin(4).rank(table)
        assert_same(ranking, expected)


def test_pair_number_beyond_float32_counts_as_the_largest_one(engine: Engine, world: World) -> None:
    ids, most = world.ids[:3], float(np.finfo(np.float32).max)
    for given, meant in ((1e300, most), (-1e300, -most), (np.inf, 0.0), (np.nan, 0.0)):
        ranking, expected = (engine.begin(4).rank(ids, {"bid": [1.0, bid, 2.0]}) for bid in (given, meant))
        assert ranking.scores.tolist() == expected.scores.tolist()


def test_candidates_missing_values_of_every_library_count_as_missing(engine: Engine, world: World) -> None:
    ids, _ = world.candidates(4)
    bids, channels = [1.0, None, 0.5, 2.0], ["ann", None, "new", None]
    whole = [1, None, 3, 2]
    for number, column in ((bids, "float64"), (whole, "int64")):
        pair = {"bid": [np.nan if v is None else float(v) for v in number], "channel": channels}
        expected = engine.begin(4).rank(ids, pair)
        tables = (
            pa.table({"id": ids, "bid": pa.array(number, column), "channel": channels}),
            pa.table(
                {
                    "id": ids,
                    "bid": pa.array(number, column),
                    "channel": pa.array(channels).dictionary_encode(),
                }
            ),
            pd.DataFrame({"id": series(ids), "bid": nullable(number), "channel": nullable(channels)}),
        )
        for table in tables:
            ranking = engine.begin(4).rank(table)
            assert ranking.scores.tolist() == expected.scores.tolist()
            assert ranking.report.unknown_features["missing"] == expected.report.unknown_features["missing"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"bid": [1.0]}, r"table with the columns \['bid'\], expected one named 'id' \(or 'item_id'\)"),
        ({}, r"table with the columns \[\], expected one named 'id'"),
        (
            {"id": [1], "colour": [1]},
            r"columns \['colour'\] of the table are not in the schema.*'bid', 'chan",
        ),
        ({"id": [1], "item_id": [1]}, r"columns \['item_id'\] of the table"),
        ({"id": [1], 7: [1]}, r"columns \['7'\] of the table"),
        ({"id": []}, "there are none"),
        ({"id": 3}, "got 3, expected an array or list"),
        ({"id": [1, 2], "bid": [1.0]}, "of 2 candidates: feature 'bid'"),
        ({"id": [1.5]}, "float"),
        (pa.table({"id": pa.array([5, None, 6])}), "row 1 is missing, and so are 1 of 3"),
        (pa.table({"id": ["a", None]}), r"row 1 is missing \(None\)"),
        (pa.table([[1], [2]], names=["id", "id"]), r"columns \['id'\] stand in the table twice"),
        (pa.table({"id": [1], "bid": [[1.0]]}), "feature 'bid'"),
        (Stream(pa.chunked_array([[1, 2]])), "a Stream that Arrow cannot read as a table"),
        (np.zeros((2, 2), [("id", np.int64)]), r"an array of shape \(2, 2\)"),
        (np.zeros(2, [("id", "S3")]), r"dtype \|S3"),
    ],
)
def test_candidates_table_that_does_not_fit_is_refused(engine: Engine, table: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"(candidates|pair features).*{message}"):
        engine.begin(3).rank(table)


def test_candidates_pair_features_named_twice_or_unnamed_are_refused(
    engine: Engine, world: World, make: Make
) -> None:
    ids, pair = world.candidates(5)
    with pytest.raises(RequestError, match=r"pair features: \['bid'\] are columns of the table and named by"):
        engine.begin(3).rank({"id": ids, **pair}, {"bid": pair["bid"]})
    with pytest.raises(RequestError, match="pair features: got a list, expected columns by name"):
        engine.begin(3).rank(ids, [1.0] * 5)  # type: ignore[arg-type]
    broken = make(retrieve=lambda request: Candidates({"id": ids, **pair}, {"bid": pair["bid"]}))
    with pytest.raises(RetrievalError, match="what cannot be ranked: pair features"):
        broken.rank(3)


def test_candidates_unknown_columns_ignored_by_config_are_counted(make: Make, world: World) -> None:
    ids, pair = world.candidates(30)
    engine = make(unknown_columns="ignore")
    table = {"id": ids, **pair, "colour": ["red"] * 30, "rank": object()}
    ranking = engine.begin(4).rank(table)
    assert ranking.scores.tolist() == engine.begin(4).rank(ids, pair).scores.tolist()
    assert ranking.report.unknown_features["ignored"] == {"colour": 1, "rank": 1}
    with pytest.raises(RequestError, match=r"columns \['colour'\] are not in the schema"):
        engine.begin(4).rank(ids, {"colour": ["red"] * 30})  # a mistake in code, not in data


def test_candidates_foreign_arrow_table_without_pyarrow_is_refused(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, pair = world.candidates(5)
    stream = Stream(pa.table({"id": ids, **pair}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(
        RequestError, match=r"a Stream, an Arrow table of another library.*pip install pyarrow"
    ):
        engine.begin(3).rank(stream)
    assert len(engine.begin(3).rank({"id": ids, **pair})) == 5
    assert len(engine.begin(3).rank(frame({"id": ids, **pair}))) == 5


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "there are none"),
        (np.zeros(0, np.uint64), "there are none"),
        (np.array([1.0, 2.0]), "float64"),
        ([1.5], "float"),
        (np.zeros((2, 2), np.int64), r"shape \(2, 2\)"),
        ([[1, 2], [3, 4]], "list"),
        ([1, "two"], r"int \(such as 1\), str \(such as 'two'\)"),
        ([7, -2], "row 1 is -2, .*view"),
        ([-1, -1], "none but padding"),
        ([b"x" * 1000], r"row 0 is b'x{195}\.\.\., of type bytes, expected all integers"),
        (None, "got None"),
        (17, "got 17"),
        ("abc", "got 'abc'"),
        ([None], "row 0 is missing"),
    ],
)
def test_candidates_malformed_ids_are_refused(engine: Engine, ids: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"candidates: .*{message}"):
        engine.begin(3).rank(ids)


def test_candidates_pair_features_that_do_not_fit_are_refused(engine: Engine, world: World) -> None:
    ids, _ = world.candidates(4)
    with pytest.raises(RequestError, match=r"pair features of 4 candidates.*'bid'.*\(3,\)"):
        engine.begin(3).rank(ids, {"bid": [1.0, 2.0, 3.0]})
    with pytest.raises(RequestError, match=r"pair features.*\['price'\] are not in the schema.*'bid'"):
        engine.begin(3).rank(ids, {"price": [1.0] * 4})
    with pytest.raises(RequestError, match=r"pair features.*'bid'"):
        engine.begin(3).rank(ids, {"bid": ["a", "b", "c", "d"]})


def test_candidates_unaligned_ids_rank_as_aligned(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    shifted = np.frombuffer(b"\0" + ids.tobytes(), np.uint8)[1:].view(np.uint64)
    assert not shifted.flags.aligned
    expected = engine.begin(4).rank(ids, pair)
    assert engine.begin(4).rank(shifted, pair).scores.tobytes() == expected.scores.tobytes()


@pytest.mark.parametrize("collection", [set, tuple, lambda ids: dict.fromkeys(ids).keys()])
def test_candidates_any_collection_is_ranked(engine: Engine, world: World, collection: Any) -> None:
    ids = world.ids[:5].tolist()
    assert sorted(engine.begin(3).rank(collection(ids)).ids.tolist()) == sorted(ids)


def test_candidates_padding_is_left_out_and_counted(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(20)
    expected = engine.begin(4).rank(ids, pair)
    at = [0, 7, 20]
    padded = np.insert(ids.astype(np.int64), at, -1)
    wide = {"bid": np.insert(pair["bid"], at, 9.0), "channel": np.insert(pair["channel"], at, "ann")}
    for given in (padded, padded.tolist(), pa.array(padded)):
        ranking = engine.begin(4).rank(given, wide)
        assert_same(ranking, expected)
        assert (ranking.report.candidates, ranking.report.padded) == (23, 3)
        assert ranking.report.duplicates == 0
    assert expected.report.padded == 0
    only = engine.begin(4).rank([-1, int(ids[0])], filters=Filters(ids[:1]))
    assert "1 were padding" in only.report.empty_because


def test_candidates_strings_for_an_index_of_integers_are_refused(
    engine: Engine, make: Make, bundle: Bundle, tables: Tables, world: World
) -> None:
    with pytest.raises(
        RequestError, match=r"candidates: got strings such as 'a', but the ids of the item .* integers"
    ):
        engine.begin(3).rank(["a", "b"])
    named = ItemIndex.build(bundle, [f"item {i}" for i in range(N_ITEMS)], world.columns, world.content)
    by_name = make((bundle, tables._replace(items=named)), retrieve=lambda request: [5], fallback=["item 1"])
    with pytest.raises(RequestError, match=r"candidates: got integers such as 5, but .* strings"):
        by_name.begin(3).rank([5, 6])
    assert by_name.rank(3).report.retrieval == "fallback"


def test_candidates_set_beside_pair_features_is_refused(engine: Engine, world: World) -> None:
    ids, pair = world.candidates(5)
    with pytest.raises(RequestError, match="candidates: got a set, whose order is arbitrary"):
        engine.begin(3).rank(set(ids.tolist()), pair)
