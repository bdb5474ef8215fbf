"""The same column in every form in which a caller may have it: right ones, and those that must be refused.

A column is of a kind: ``ids`` (uint64), ``names`` (string ids), ``numbers`` (floats, some missing),
``integers``, ``words`` (strings, some missing), ``lists`` (of
strings, some missing), ``content`` (float32 rows, some missing) and ``flags`` (booleans).
"""

import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

Form = Callable[[str, Any], Any]
"""Returns a column of a kind in another form, given the plain one; raises `Unfit` if it has none there."""

ARROW: dict[str, pa.DataType] = {
    "ids": pa.uint64(), "names": pa.string(), "numbers": pa.float64(), "integers": pa.int64(),
    "words": pa.string(), "lists": pa.list_(pa.string()), "content": pa.list_(pa.float32()),
    "flags": pa.bool_(),
}  # fmt: skip

ARRAYS = ("ids", "numbers", "integers", "content", "flags")
TEXTS = ("names", "words")
FLAT = ("ids", "names", "numbers", "integers", "words", "flags")


class Unfit(Exception):
    """The form does not exist for this kind of column."""


def only(*kinds: str) -> Callable[[Form], Form]:
    """Limit a form to some kinds."""

    def limited(form: Form) -> Form:
        def checked(kind: str, plain: Any) -> Any:
            if kind not in kinds:
                raise Unfit
            return form(kind, plain)

        return checked

    return limited


def values(kind: str, plain: Any) -> list[Any]:
    """Return the values of a plain column as objects of Python, ``None`` where missing."""
    if kind == "content":
        return [None if np.isnan(row).all() else row.tolist() for row in plain]
    rows = plain.tolist() if isinstance(plain, np.ndarray) else plain
    return [None if isinstance(value, float) and value != value else value for value in rows]


def _arrow(kind: str, plain: Any) -> pa.Array:
    return pa.array(values(kind, plain), ARROW[kind])


def _unaligned(plain: np.ndarray) -> np.ndarray:
    raw = np.frombuffer(b"\0" + plain.tobytes(), np.uint8)[1:]
    return raw.view(plain.dtype).reshape(plain.shape)


def _packed(plain: np.ndarray) -> np.ndarray:
    table = np.zeros(len(plain), np.dtype([("odd", np.uint8), ("column", plain.dtype, plain.shape[1:])]))
    table["column"] = plain
    return table["column"]


class Foreign:
    """A column of a library that offers nothing but ``__array__``."""

    def __init__(self, plain: np.ndarray):
        self._plain = plain

    def __len__(self) -> int:
        return len(self._plain)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self._plain, dtype)


def _series(kind: str, plain: Any, index: Any = None, dtype: Any = None) -> pd.Series:
    index = range(len(plain))[::-1] if index is None else index
    column = plain if isinstance(plain, np.ndarray) and plain.ndim == 1 else values(kind, plain)
    return pd.Series(column, index=index, dtype=dtype)


def _filtered(kind: str, plain: Any) -> pd.Series:
    twice = [each for value in values(kind, plain) for each in (value, value)]
    whole = pd.Series(twice, dtype="UInt64" if kind == "ids" else None)
    kept = whole[np.arange(len(whole)) % 2 == 1]
    return kept.astype("uint64") if kind == "ids" else kept


_NULLABLE = {"ids": "UInt64", "names": "string", "numbers": "Float64", "integers": "Int64", "types": "Int64",
             "words": "string", "flags": "boolean"}  # fmt: skip
_POLARS = {"ids": pl.UInt64, "integers": pl.Int64, "content": pl.List(pl.Float32)}
_VIEWS = {"names": pa.string_view(), "words": pa.string_view(), "lists": pa.list_view(pa.string_view()),
          "content": pa.list_view(pa.float32())}  # fmt: skip
_LARGE = {"names": pa.large_string(), "words": pa.large_string(), "lists": pa.large_list(pa.large_string()),
          "content": pa.large_list(pa.float64())}  # fmt: skip

FORMS: dict[str, Form] = {
    "list": values,
    "tuple": lambda kind, plain: tuple(values(kind, plain)),
    "array of objects": only(*FLAT)(lambda kind, plain: np.array(values(kind, plain), object)),
    "strided": only(*ARRAYS)(lambda kind, plain: np.repeat(plain, 2, axis=0)[::2]),
    "reversed view": only(*ARRAYS)(lambda kind, plain: plain[::-1].copy()[::-1]),
    "transposed": only("content")(lambda kind, plain: np.asfortranarray(plain)),
    "unaligned": only(*ARRAYS)(lambda kind, plain: _unaligned(plain)),
    "field of a packed array": only(*ARRAYS)(lambda kind, plain: _packed(plain)),
    "big-endian": only(*ARRAYS)(lambda kind, plain: plain.astype(plain.dtype.newbyteorder(">"))),
    "read-only": only(*ARRAYS)(
        lambda kind, plain: np.frombuffer(plain.tobytes(), plain.dtype).reshape(plain.shape)
    ),
    "masked": only(*ARRAYS)(
        lambda kind, plain: np.ma.MaskedArray(
            np.nan_to_num(plain, nan=7), np.isnan(plain) if kind in ("numbers", "content") else False
        )
    ),
    "int64": only("ids")(lambda kind, plain: plain.astype(np.int64)),
    "flags of 0 and 1": only("flags")(lambda kind, plain: plain.astype(np.int8)),
    "buffer": only("numbers")(lambda kind, plain: array.array("d", plain.tolist())),
    "foreign array": only(*ARRAYS)(lambda kind, plain: Foreign(plain)),
    "fixed-width strings": only("names")(lambda kind, plain: np.array(plain.tolist())),
    "big-endian strings": only("names")(lambda kind, plain: np.array(plain.tolist()).astype(">U20")),
    "variable-width strings": only("names")(
        lambda kind, plain: np.array(plain.tolist(), np.dtypes.StringDType())
    ),
    "pandas": _series,
    "pandas, filtered": _filtered,
    "pandas, labels twice": lambda kind, plain: _series(kind, plain, [5] * len(plain)),
    "pandas, labels of text": lambda kind, plain: _series(
        kind, plain, [f"row {n}" for n in range(len(plain))]
    ),
    "pandas nullable": only(*_NULLABLE)(
        lambda kind, plain: pd.Series(values(kind, plain), dtype=_NULLABLE[kind])
    ),
    "pandas array": only(*_NULLABLE)(
        lambda kind, plain: pd.array(values(kind, plain), dtype=_NULLABLE[kind])
    ),
    "pandas objects": lambda kind, plain: pd.Series(values(kind, plain), dtype=object),
    "pandas categorical": only(*TEXTS, "ids", "integers")(
        lambda kind, plain: _series(kind, plain).astype("category")
    ),
    "pandas of Arrow": lambda kind, plain: pd.Series(pd.arrays.ArrowExtensionArray(_arrow(kind, plain))),
    "pandas index": only(*FLAT)(lambda kind, plain: pd.Index(plain)),
    "pandas frame": only("content")(lambda kind, plain: pd.DataFrame(plain, index=range(len(plain))[::-1])),
    "polars": lambda kind, plain: pl.Series(values(kind, plain), dtype=_POLARS.get(kind)),
    "polars categorical": only(*TEXTS)(
        lambda kind, plain: pl.Series(values(kind, plain), dtype=pl.Categorical)
    ),
    "polars array": only("content")(
        lambda kind, plain: pl.Series(values(kind, plain), dtype=pl.Array(pl.Float32, plain.shape[1]))
    ),
    "polars frame": only("content")(
        lambda kind, plain: pl.DataFrame(plain, [f"c{n}" for n in range(plain.shape[1])])
    ),
    "arrow": _arrow,
    "arrow slice": lambda kind, plain: pa.concat_arrays([_arrow(kind, plain), _arrow(kind, plain)]).slice(
        len(plain)
    ),
    "arrow chunked": lambda kind, plain: pa.chunked_array([_arrow(kind, plain[:2]), _arrow(kind, plain[2:])]),
    "arrow dictionary": only(*TEXTS, "ids", "integers")(
        lambda kind, plain: _arrow(kind, plain).dictionary_encode()
    ),
    "arrow large": only(*_LARGE)(lambda kind, plain: pa.array(values(kind, plain), _LARGE[kind])),
    "arrow view": only(*_VIEWS)(lambda kind, plain: pa.array(values(kind, plain), _VIEWS[kind])),
    "arrow fixed-size lists": only("content")(
        lambda kind, plain: pa.array(values(kind, plain), pa.list_(pa.float32(), plain.shape[1]))
    ),
}
"""Forms whose answer is that of the plain column."""


def _changed(plain: Any, kind: str, value: Any) -> list[Any]:
    return [*values(kind, plain)[:-1], value]


def _generator(kind: str, plain: Any) -> Iterator[Any]:
    return (value for value in values(kind, plain))


IDS = ("ids", "names")
COUNTED = ("numbers", "integers", "words", "lists", "content", "flags")

REFUSED: dict[str, Form] = {
    "generator": _generator,
    "set": only(*IDS)(lambda kind, plain: set(values(kind, plain))),
    "mapping": lambda kind, plain: dict(enumerate(values(kind, plain))),
    "frame": only(*FLAT)(lambda kind, plain: pd.DataFrame({"column": values(kind, plain)})),
    "lazy frame": lambda kind, plain: pl.LazyFrame({"column": values(kind, plain)}),
    "polars expression": lambda kind, plain: pl.col("column"),
    "one value": lambda kind, plain: values(kind, plain)[0],
    "array of no axis": only(*ARRAYS)(lambda kind, plain: plain.reshape(-1)[:1].reshape(())),
    "structured": only(*ARRAYS)(lambda kind, plain: np.zeros(len(plain), [("column", plain.dtype)])),
    "bytes": lambda kind, plain: b"column",
    "one row less": only(*COUNTED)(lambda kind, plain: plain[:-1]),
    "two axes": only(*FLAT)(lambda kind, plain: np.array([values(kind, plain)] * 2, object).T),
    "lists": only(*FLAT)(lambda kind, plain: [[value] for value in values(kind, plain)]),
    "bytes in it": lambda kind, plain: _changed(plain, kind, b"x"),
    "an object in it": lambda kind, plain: _changed(plain, kind, object()),
    "dates": only(*FLAT)(lambda kind, plain: np.zeros(len(plain), "datetime64[s]")),
    "complex numbers": only(*FLAT)(lambda kind, plain: np.zeros(len(plain), complex)),
    "None in it": only(*IDS, "flags")(lambda kind, plain: _changed(plain, kind, None)),
    "masked entry": only("ids", "flags")(
        lambda kind, plain: np.ma.MaskedArray(plain, np.arange(len(plain)) == 1)
    ),
    "missing in a nullable series": only(*IDS, "flags")(
        lambda kind, plain: pd.Series(_changed(plain, kind, None), dtype=_NULLABLE[kind])
    ),
    "null in polars": only(*IDS, "flags")(
        lambda kind, plain: pl.Series(_changed(plain, kind, None), dtype=_POLARS.get(kind))
    ),
    "null in arrow": only(*IDS, "flags")(
        lambda kind, plain: pa.array(_changed(plain, kind, None), ARROW[kind])
    ),
    "floats": only("ids", "flags")(lambda kind, plain: plain.astype(float)),
    "mixed kinds": only(*IDS)(lambda kind, plain: [*values(kind, plain)[:-1], "x" if kind == "ids" else 7]),
    "negative": only("ids")(lambda kind, plain: -plain.astype(np.int64)),
    "booleans": only("ids")(lambda kind, plain: [True] * len(plain)),
    "400 digits": only("ids", "numbers", "integers", "flags", "content")(
        lambda kind, plain: _changed(plain, kind, 10**400)
    ),
    "text": only("numbers", "flags")(lambda kind, plain: _changed(plain, kind, "false")),
    "two": only("flags")(lambda kind, plain: _changed(plain, kind, 2)),
    "lone surrogate": only("names")(lambda kind, plain: _changed(plain, kind, "\ud800")),
    "fractions": only("integers")(lambda kind, plain: plain + 0.5),
    "infinite": only("content")(
        lambda kind, plain: np.where(np.arange(len(plain))[:, None] == 1, np.inf, plain)
    ),
    "some not finite": only("content")(
        lambda kind, plain: np.where(np.arange(plain.size).reshape(plain.shape) == 1, np.nan, plain)
    ),
    "narrow": only("content")(lambda kind, plain: plain[:, :-1]),
    "rows of texts": only("content")(lambda kind, plain: [["a"] * plain.shape[1]] * len(plain)),
}
"""Forms that are refused."""
