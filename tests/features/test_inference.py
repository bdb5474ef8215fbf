"""Schemas inferred from raw columns, and written for people to edit."""

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

import aif_jax
from aif_jax.errors import SchemaError
from aif_jax.features import Categorical, Hashing, MultiValued, Numeric, Schema, Vocabulary

N = 400
COLUMNS = {
    "item": np.arange(N),
    "shop_id": np.arange(N) % 50,
    "size": np.arange(N) % 8,
    "stock": np.arange(N) % 90,
    "price": np.linspace(0.5, 80, N),
    "views": np.r_[np.ones(N - 20), np.full(20, 9_000.5)],
    "new": np.arange(N) % 2 == 0,
    "colour": ["red", "blue", None, ""] * (N // 4),
    "tags": [["a"], ["a", "b"], None, []] * (N // 4),
    "section": np.arange(N) % 60,
    "percentage": np.arange(N) % 60,
    "title": [f"title number {row}" for row in range(N)],
    "joined": ["a|b", "b|c", "a|c", "c|a"] * (N // 4),
    "since": [datetime.date(2026, 1, 1)] * N,
    "empty": [None] * N,
    "vector": np.zeros((N, 8)),
}
UNTIDY = {
    "huge": [2**70 + row for row in range(N)],
    "mixed": [1, "one"] * (N // 2),
    "sometimes_lists": [["a"], "a"] * (N // 2),
    "nested": [[], [["a"]]] * (N // 2),
    "maps": [{"a": 1}] * N,
}
FEATURES = (
    Categorical(name="item", encoder=Vocabulary(min_count=3)),
    Categorical(name="shop_id", encoder=Vocabulary(min_count=2)),
    Categorical(name="size"),
    Numeric(name="stock"),
    Numeric(name="price"),
    Numeric(name="views", transform="log1p"),
    Categorical(name="new"),
    Categorical(name="colour"),
    MultiValued(name="tags", max_values=2),
    Categorical(name="section"),
    Numeric(name="percentage"),
)


def inferred(columns: object = COLUMNS, remarks: list[str] | None = None) -> Schema:
    return Schema.infer(
        {"item": columns},  # type: ignore[dict-item]
        behaviour_types=("click",), item_id="item", min_item_count=3, remarks=remarks,
    )  # fmt: skip


def test_infer_gives_each_column_its_kind_and_says_what_it_leaves_out() -> None:
    remarks: list[str] = []
    schema = inferred(COLUMNS | UNTIDY, remarks)
    assert schema.item == FEATURES
    assert schema.category == "tags"
    reasons = {"title": "different texts", "joined": "joined by '|'", "since": "dates", "empty": "no value",
               "vector": "several numbers", "huge": "more than 64 bits", "mixed": "mixes numbers and text",
               "sometimes_lists": "mixes lists and text", "nested": "lists of lists",
               "maps": "holds dict"}  # fmt: skip
    assert len(remarks) == len(reasons)
    for remark, (name, reason) in zip(remarks, reasons.items(), strict=True):
        assert f"column {name!r}" in remark
        assert reason in remark


def test_infer_given_category_of_whole_numbers_is_no_quantity() -> None:
    columns = {"item": np.arange(N), "kind": np.arange(N) % 70}
    given = {"behaviour_types": ("click",), "item_id": "item"}
    assert Schema.infer({"item": columns}, **given).item[1] == Numeric(name="kind")  # type: ignore[arg-type]
    schema = Schema.infer({"item": columns}, category="kind", **given)  # type: ignore[arg-type]
    assert (schema.category, schema.item[1]) == ("kind", Categorical(name="kind"))


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_infer_reads_frames_as_mappings(frame: type) -> None:
    assert (
        inferred(frame({name: column for name, column in COLUMNS.items() if name != "vector"})).item
        == FEATURES
    )


EVERY = Schema(
    user=(Categorical(name="town", encoder=Vocabulary(values=("Bath", 'Y"o\\rk', "\x7f\n"), max_size=9)),),
    item=(*FEATURES[1:], Categorical(name="brand", encoder=Hashing(buckets=7))),
    context=(Numeric(name="hour", clip=3.5, mean=0.25, std=1e-9),),
    behaviour_types=("click", "buy"),
    category="tags",
)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_save_and_load_keep_every_field(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"schema{suffix}"
    EVERY.save(path)
    assert Schema.load(path) == EVERY


def test_to_code_declares_the_same_schema() -> None:
    assert eval(EVERY.to_code(), {**vars(aif_jax)}) == EVERY
    assert 'category="tags"' in EVERY.to_code()


def test_load_edited_file_without_encoder_takes_the_default(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(
        'version = 1\nbehaviour_types = ["click"]\n[[item]]\nkind = "categorical"\nname = "item"\n'
    )
    assert Schema.load(path).item == (Categorical(name="item"),)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "version = ", "cannot be read: "),
        ("a.json", "{", "cannot be read: "),
        ("a.yaml", "", r"got the file name 'a.yaml', expected one in \.toml or \.json"),
    ],
)
def test_load_broken_file_raises(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SchemaError, match=words):
        Schema.load(tmp_path / name)
