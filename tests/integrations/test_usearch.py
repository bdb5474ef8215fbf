import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.data import load
from aif_jax.errors import ConfigError, RequestError, UserSourceError
from aif_jax.features import item_keys
from aif_jax.integrations.usearch import TwoTowerRetriever
from aif_jax.models import build_model
from aif_jax.training.evaluate import device_catalogue
from aif_jax.types import Request, UserRecord


@pytest.fixture(scope="module")
def dataset():
    return load("synthetic:small", content_width=8)


@pytest.fixture(scope="module")
def model(dataset):
    config = ModelConfig(
        architecture="two_tower",
        width=8,
        embedding_width=8,
        item_layers=(8,),
        short_length=6,
        content_width=8,
    )
    return build_model(config, dataset.fit_schema(), seed=1)


@pytest.fixture(scope="module")
def build(dataset, model):
    catalogue = dataset.catalogue(model.schema, content_width=8)
    records = {str(dataset.users["ids"][row]): dataset.user_record(row) for row in range(5)}

    def make(*, model=model, ids=dataset.items["ids"], users=records.get, candidates=20, **changes):
        return TwoTowerRetriever.build(
            model, model.schema, catalogue, ids, users, candidates=candidates, **changes
        )

    return make


def exact_scores(dataset, model, row):
    """Dot products of one user with every item, by the model itself."""
    end = dataset.events.offsets[row + 1 : row + 2]
    items, types = dataset.history(np.array([row]), end, 6)
    user = dataset.encode(model.schema, "user", np.array([row]))
    catalogue = device_catalogue(dataset, model)
    batch = {"user": user, "short_item": items, "short_type": types, "long_item": items, "long_type": types}
    return np.asarray(products(model, batch, catalogue))


@nnx.jit
def products(model, batch, catalogue):
    return model.item_vector(catalogue) @ model.user_vector(batch, catalogue)[0]


def test_retriever_finds_nearest_items_with_scores(dataset, model, build):
    retriever = build(expansion_search=600)
    keys = item_keys(dataset.items["ids"])
    for row in range(3):
        found = retriever(Request(user=str(dataset.users["ids"][row])))
        scores = exact_scores(dataset, model, row)
        best = keys[np.argsort(-scores)[:20]]
        assert found.ids.dtype == np.uint64
        assert len(set(found.ids.tolist()) & set(best.tolist())) >= 19
        by_key = dict(zip(keys.tolist(), scores.tolist(), strict=True))
        expected = [by_key[key] for key in found.ids.tolist()]
        np.testing.assert_allclose(found.pair["retrieval_score"], expected, rtol=1e-3, atol=1e-4)
        assert (np.diff(found.pair["retrieval_score"]) <= 1e-5).all()


def test_retriever_counts_unknown_users(dataset, build):
    retriever = build()
    first, second = (retriever(Request(user=str(dataset.users["ids"][row]))).ids for row in (0, 1))
    assert first.tolist() != second.tolist()
    stranger = retriever(Request(user="nobody"))
    assert stranger.ids.size == 20
    assert retriever.counts() == {"requests": 3, "unknown_users": 1, "unknown_behaviours": 0}


def test_retriever_leaves_out_and_counts_unknown_behaviours(dataset, build):
    ids = dataset.items["ids"][:3].tolist()
    records = {
        "a": UserRecord(items=ids, types=["click", "like", "skip"]),
        "b": UserRecord(items=[ids[0], 12345, ids[1], ids[2]], types=[0, 0, 1, 2]),
    }
    retriever = build(users=records.get)
    a, b = (retriever(Request(user=name)) for name in records)
    assert a.ids.tolist() == b.ids.tolist()
    assert retriever.counts()["unknown_behaviours"] == 1


def test_retriever_bad_arguments_are_refused(dataset, model, build):
    with pytest.raises(RequestError, match="got 3 ids for a catalogue of"):
        build(ids=dataset.items["ids"][:3])
    with pytest.raises(RequestError, match="same id"):
        build(ids=["same"] * dataset.n_items)
    with pytest.raises(ConfigError, match="architecture='two_tower'"):
        build(model=build_model(model.config.replace(architecture="cold", blocks=()), model.schema))
    with pytest.raises(ConfigError, match="candidates: got 0"):
        build(candidates=0)
    retriever = build(users={"u": UserRecord(items=[dataset.items["ids"][0]], types=["buy"])}.get)
    with pytest.raises(UserSourceError, match="behaviour type in row 0 is 'buy', expected one of 'click'"):
        retriever(Request(user="u"))


def test_retriever_over_string_ids_answers_with_these(build, dataset):
    names = [f"item-{key}" for key in dataset.items["ids"].tolist()]
    user = str(dataset.users["ids"][0])
    records = {user: UserRecord(), "none": UserRecord()}
    expected = build(users=records.get)(Request(user=user)).ids
    assert expected.dtype == np.uint64
    for ids in (names, pd.Series(names, index=range(len(names))[::-1]), pl.Series(names), pa.array(names)):
        found = build(ids=ids, users=records.get)(Request(user=user)).ids
        assert found.tolist() == [f"item-{key}" for key in expected.tolist()]


def test_retriever_filtered_series_in_a_record_are_read_by_position(build, dataset):
    user = str(dataset.users["ids"][0])
    record = dataset.user_record(0)
    twice = pd.Series(np.repeat(record.items, 2)), pd.Series(np.repeat(record.types, 2))
    kept = np.arange(2 * len(record.items)) % 2 == 1
    expected = build(users={user: record}.get)(Request(user=user)).ids
    filtered = UserRecord(record.features, twice[0][kept], twice[1][kept])
    assert build(users={user: filtered}.get)(Request(user=user)).ids.tolist() == expected.tolist()
