"""Content embeddings that the user of `Dataset.from_events` gives, in any form."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import Content, Dataset, fit_width
from aif_jax.data.digests import digest_of_histories
from aif_jax.errors import AifError, ConfigError, DataError
from aif_jax.features import ContentSpace
from aif_jax.training import TrainConfig, train
from support.tables import shop, shown

IDS = 100 + np.arange(80)
RAW = (np.random.default_rng(3).normal(size=(80, 12)) + 4.0).astype(np.float32)


def of_shop(content: Any, **changes: Any) -> Dataset:
    tables = shop()
    given = {"user": "who", "item": "what", "time": "when", "type": "kind", "items": tables["items"]}
    return Dataset.from_events(tables["events"], **{**given, "content": content, **changes})


@pytest.fixture(scope="module")
def data() -> Dataset:
    return of_shop((IDS, RAW), content_width=5)


def content_of(data: Dataset) -> Content:
    assert data.content is not None
    return data.content


@pytest.mark.parametrize("form", ["mapping", "reversed", "column", "frame", "impressions"])
def test_from_events_forms_of_content_are_alike(data: Dataset, form: str) -> None:
    items = shop()["items"]
    if form == "mapping":
        other = of_shop(dict(zip(IDS.tolist(), RAW, strict=True)), content_width=5)
    elif form == "reversed":
        other = of_shop((pd.Series(IDS[::-1]), pa.array(RAW[::-1].tolist())), content_width=5)
    elif form == "column":
        other = of_shop("vector", items={**items, "vector": RAW.tolist()}, content_width=5)
    elif form == "frame":
        frame = pl.DataFrame({**items, "vector": RAW.tolist()})[::-1]
        other = of_shop("vector", items=frame, content_width=5)
    else:
        rows = shown()
        other = Dataset.from_impressions(
            rows, user="who", item="what", time="when", label="click", content=(IDS, RAW), content_width=5
        )
    assert content_of(other).space.raw_width == 12
    np.testing.assert_array_equal(content_of(other).raw, RAW)
    if form != "impressions":  # whose training part has other items
        np.testing.assert_array_equal(content_of(other).vectors, content_of(data).vectors)
    assert "vector" not in {feature.name for feature in other.schema.item}


def test_from_events_content_space_is_fitted_on_items_of_training_alone(data: Dataset) -> None:
    trained = data.trained_items()
    assert 0 < trained.sum() < 80
    expected = ContentSpace.fit(IDS[trained], RAW[trained], width=5)
    assert data.content_space == expected
    far = RAW.copy()
    far[~trained] += 100.0
    assert of_shop((IDS, far), content_width=5).content_space == expected
    np.testing.assert_array_equal(content_of(data).vectors, expected.apply(RAW)[0])


def test_from_events_items_without_content_are_counted_and_shown(data: Dataset) -> None:
    kept = np.flatnonzero(np.arange(80) % 4 > 0)
    some = of_shop((np.r_[IDS[kept], 7, 8], np.concatenate([RAW[kept], RAW[:2]])), content_width=5)
    assert content_of(some).has.tolist() == [place % 4 > 0 for place in range(80)]
    assert "20 of 80 items have none; 2 embeddings are of no item" in repr(some)
    assert "content: ContentSpace(fitted on" in repr(some)
    assert "0 of 80 items have none" in repr(data)


def test_from_events_space_fitted_elsewhere_is_kept() -> None:
    space = ContentSpace.fit(np.arange(500), np.random.default_rng(1).normal(size=(500, 12)) + 4, width=3)
    data = of_shop((space, IDS, RAW))
    assert data.content_space == space
    np.testing.assert_array_equal(content_of(data).vectors, space.apply(RAW)[0])
    alone = ContentSpace.fit(IDS, RAW, width=3)
    for content in (alone, (alone, IDS, RAW), (alone, (IDS, RAW)), (alone, dict(zip(IDS, RAW, strict=True)))):
        assert of_shop(content).content_space == alone
    assert of_shop(alone).content_space.source is None  # it would keep the raw matrix twice
    with pytest.raises(DataError, match=r"alone, .*give content=\(space, ids, vectors\)"):
        of_shop(of_shop(alone).content_space)
    with pytest.raises(ConfigError, match="content_width: got 4 beside"):
        of_shop(alone, content_width=4)
    unit = space.apply(RAW)[0]
    declared = of_shop((ContentSpace.declared(3), IDS, unit))
    np.testing.assert_array_equal(content_of(declared).vectors, unit)
    assert content_of(declared).raw is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("colour", "got the column 'colour', but the columns of items are"),
        (RAW, r"got a ndarray, expected \(ids, vectors\)"),
        ((IDS, RAW[:3]), "content: got shape"),
        ((IDS + 1000, RAW), "none of the 80 items has an embedding"),
        ((IDS.astype(str), RAW), "none of the 80 items has an embedding"),
        ((np.r_[IDS, 100], np.concatenate([RAW, RAW[:1]])), "the id 100 is given 2 times"),
        ((IDS, np.zeros((80, 12))), "none of the 80 items has an embedding"),
        ({}, "none of the 80 items has an embedding"),
    ],
)
def test_from_events_content_that_fits_nothing_is_refused(content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        of_shop(content)


def test_from_events_content_beside_width_0_is_refused() -> None:
    with pytest.raises(DataError, match="content_width: got 0"):
        of_shop((IDS, RAW), content_width=0)


@pytest.mark.parametrize("width", [4, 32])
def test_train_content_width_of_another_space_is_refused(data: Dataset, width: int) -> None:
    config = ModelConfig(heads=data.heads, content_width=width, blocks=())
    with pytest.raises(ConfigError, match=rf"content_width: got {width}, .* content_width=5, or .*{width}"):
        train(config, data, TrainConfig(), progress=False)
    with pytest.raises(ConfigError, match=f"content_width: got {width}"):
        data.item_records(width)
    given = Content(content_of(data).vectors, content_of(data).has)
    with pytest.raises(ConfigError, match="in no known order, so none are cut off"):
        fit_width(given, 4)


def test_dataset_item_records_are_raw_where_a_space_was_fitted(data: Dataset) -> None:
    np.testing.assert_array_equal(data.item_records(5).content, RAW)
    derived = of_shop(None, content_width=8)
    assert derived.content_space is not None
    assert derived.content_space.kind == "derived"
    expected = fit_width(content_of(derived), 4)
    assert expected.space == ContentSpace(kind="derived", width=4, digest=derived.content_space.digest)
    np.testing.assert_array_equal(derived.item_records(4).content, expected.vectors)


def test_dataset_catalogue_is_read_in_the_space_of_a_model(data: Dataset) -> None:
    schema = data.fit_schema()
    other = ContentSpace.fit(np.arange(500), np.random.default_rng(1).normal(size=(500, 12)) + 4, width=3)
    content = data.catalogue(schema, content_space=other)["content"]
    np.testing.assert_array_equal(content, other.apply(RAW)[0])
    mine = data.catalogue(schema, content_space=data.content_space)["content"]
    np.testing.assert_array_equal(mine, content_of(data).vectors)
    derived = of_shop(None, content_width=8)
    with pytest.raises(ConfigError, match="load the data set with content="):
        derived.catalogue(schema, content_space=other)
    with pytest.raises(ConfigError, match="load the data set without content="):
        data.catalogue(schema, content_space=derived.content_space)
    plain = derived.catalogue(schema, content_space=ContentSpace.declared(4))["content"]
    np.testing.assert_array_equal(plain, fit_width(content_of(derived), 4).vectors)


def test_digest_of_histories_tells_raw_content_apart(data: Dataset) -> None:
    schema = data.fit_schema()
    other = of_shop((IDS, RAW[::-1]), content_width=5)
    assert digest_of_histories(other, schema) != digest_of_histories(data, schema)


def test_from_events_wrong_kinds_of_content_are_errors_of_ours() -> None:
    for content in (7, [1, 2, 3], (IDS,), {"x": object()}, (IDS, object()), (object(), RAW)):
        with pytest.raises(AifError):
            of_shop(content)
