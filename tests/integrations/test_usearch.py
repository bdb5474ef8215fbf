import dataclasses
import threading

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.data import load
from aif_jax.errors import ConfigError, ItemIndexError, RequestError, UserSourceError
from aif_jax.features import item_keys
from aif_jax.integrations.towers import Towers
from aif_jax.integrations.usearch import TwoTowerRetriever
from aif_jax.models import build_model
from aif_jax.nearline.records import take
from aif_jax.training.evaluate import device_catalogue
from aif_jax.types import ItemRecords, Request, UserRecord


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
def items(dataset):
    return dataset.item_records(8)


@pytest.fixture(scope="module")
def build(dataset, model, items):
    records = {str(dataset.users["ids"][row]): dataset.user_record(row) for row in range(5)}

    def make(*, model=model, ids=items.ids, users=records.get, candidates=20, **changes):
        given = dataclasses.replace(items, ids=ids)
        return TwoTowerRetriever.build(model, given, users, candidates=candidates, **changes)

    return make


@nnx.jit
def trained_form(model, batch, catalogue):
    return model(batch, catalogue, train=False), model.user_vector(batch, catalogue)


def batch_of(dataset, model, rows):
    """Users with their whole histories, and every item as a candidate, as training would batch them."""
    rows = np.asarray(rows)
    items, types = dataset.history(rows, dataset.events.offsets[rows + 1], 6)
    everything = np.tile(np.arange(dataset.n_items, dtype=np.int32), (len(rows), 1))
    return {
        "user": dataset.encode(model.schema, "user", rows),
        "short_item": items,
        "short_type": types,
        "long_item": items,
        "long_type": types,
        "item": everything,
        "context": model.schema.missing("context", everything.shape),
        "pair": model.schema.missing("pair", everything.shape),
        "train_only": model.schema.missing("train_only", everything.shape),
    }


@pytest.fixture(scope="module")
def expected(dataset, model):
    """Logits of five users and all items, and the users' vectors, by the model as it trains."""
    found = trained_form(model, batch_of(dataset, model, range(5)), device_catalogue(dataset, model))
    return [np.asarray(each) for each in found]


def test_towers_dot_products_equal_logits_of_training_form(dataset, model, items, expected):
    logits, vectors = expected
    towers = Towers(model, dataset)
    records = [dataset.user_record(row) for row in range(5)]
    users = towers.user_vectors(records)
    np.testing.assert_allclose(users, vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(users @ towers.item_vectors(items).T, logits[..., 0], rtol=1e-5, atol=1e-5)
    for record, vector in zip(records, users, strict=True):
        np.testing.assert_allclose(towers.user_vector(record), vector, rtol=1e-5, atol=1e-6)
    assert towers.user_vectors([]).shape == (0, 8)
    assert towers.counts() == {"users": 10, "unknown_behaviours": 0}


def test_towers_more_users_than_a_batch_get_the_same_vectors(dataset, model):
    towers = Towers(model, dataset)
    records = [dataset.user_record(row) for row in range(40)] * 7
    found = towers.user_vectors(records)
    np.testing.assert_array_equal(found[:40], found[240:])


def test_towers_of_other_architecture_are_refused(model):
    cold = build_model(model.config.replace(architecture="cold", blocks=()), model.schema)
    with pytest.raises(ConfigError, match=r"class Aif, which has no vectors .* architecture='two_tower'"):
        Towers(cold)


def test_retriever_finds_items_of_largest_dot_product_with_scores(dataset, build, expected):
    retriever = build(expansion_search=600)
    keys = item_keys(dataset.items["ids"])
    for row in range(3):
        found = retriever(Request(user=str(dataset.users["ids"][row])))
        scores = expected[0][row, :, 0]
        best = keys[np.argsort(-scores)[:20]]
        assert found.ids.dtype == np.uint64
        assert len(set(found.ids.tolist()) & set(best.tolist())) >= 16  # the graph differs by timing
        by_key = dict(zip(keys.tolist(), scores.tolist(), strict=True))
        same = [by_key[key] for key in found.ids.tolist()]
        np.testing.assert_allclose(found.pair["retrieval_score"], same, rtol=1e-5, atol=1e-5)
        assert (np.diff(found.pair["retrieval_score"]) <= 0).all()
        ids, scores = retriever.search(dataset.user_record(row), 7)
        assert ids.tolist() == found.ids[:7].tolist()
        np.testing.assert_allclose(scores, found.pair["retrieval_score"][:7], rtol=1e-5)


def test_retriever_counts_unknown_users(dataset, build):
    retriever = build()
    first, second = (retriever(Request(user=str(dataset.users["ids"][row]))).ids for row in (0, 1))
    assert first.tolist() != second.tolist()
    stranger = retriever(Request(user="nobody"))
    assert stranger.ids.size == 20
    counts = {"requests": 3, "unknown_users": 1, "unknown_behaviours": 0, "rebuilds": 0}
    assert retriever.counts() == counts


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


def test_retriever_bad_arguments_are_refused(dataset, build):
    with pytest.raises(RequestError, match="same id"):
        build(ids=["same"] * dataset.n_items)
    with pytest.raises(RequestError, match="keeps for itself"):
        build(ids=np.arange(2**64 - dataset.n_items, 2**64, dtype=np.uint64))
    with pytest.raises(ConfigError, match="candidates: got 0"):
        build(candidates=0)

    async def awaited(user):
        return None

    with pytest.raises(ConfigError, match="users: got a coroutine function, expected a plain one"):
        build(users=awaited)
    retriever = build(users={"u": UserRecord(items=[dataset.items["ids"][0]], types=["buy"])}.get)
    with pytest.raises(UserSourceError, match="'u': the behaviour type in row 0 is 'buy', expected one of"):
        retriever(Request(user="u"))
    with pytest.raises(RequestError, match="k: got 0"):
        retriever.search(UserRecord(), 0)
    with pytest.raises(RequestError, match="got integers and strings"):
        retriever.upsert(["new"], {})


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


def test_retriever_upserted_and_deleted_items_are_those_of_one_built_at_once(dataset, model, items):
    half = np.arange(dataset.n_items) < dataset.n_items // 2
    users = dataset.user_source()
    retriever = TwoTowerRetriever.build(model, take(items, np.flatnonzero(half)), users, candidates=20)
    rest = take(items, np.flatnonzero(~half))
    retriever.upsert(rest.ids, rest.columns, rest.content)
    again = take(rest, np.arange(50))
    retriever.upsert(again.ids, again.columns, again.content)
    assert len(retriever) == dataset.n_items
    gone = items.ids[::3]
    assert retriever.delete(gone) == len(gone)
    assert retriever.delete(gone) == 0
    left = take(items, np.flatnonzero(~np.isin(items.ids, gone)))
    vectors = retriever.towers.item_vectors(left)
    for row in range(5):
        record = dataset.user_record(row)
        best = left.ids[np.argsort(-(vectors @ retriever.user_vector(record)))[:20]]
        ids, _ = retriever.search(record, 20)
        assert len(set(ids.tolist()) & set(best.tolist())) >= 19
        # A deleted item is no candidate, but is still part of histories.
        np.testing.assert_array_equal(retriever.user_vector(record), Towers(model, items).user_vector(record))


def test_retriever_item_with_a_longer_vector_than_all_before_is_found_and_counted(dataset, model, items):
    vectors = Towers(model).item_vectors(items)
    order = np.argsort(np.linalg.norm(vectors, axis=1))
    short, longest = take(items, order[:100]), take(items, order[-1:])
    retriever = TwoTowerRetriever.build(model, short, dataset.user_source(), candidates=5)
    assert np.linalg.norm(vectors[order[-1]]) > 1.3 * np.linalg.norm(vectors[order[99]])
    retriever.upsert(longest.ids, longest.columns, longest.content)
    assert retriever.counts()["rebuilds"] == 1
    assert len(retriever) == 101
    both = np.concatenate([vectors[order[:100]], vectors[order[-1:]]])
    ids = np.concatenate([short.ids, longest.ids])
    found = 0
    for row in range(20):
        record = dataset.user_record(row)
        best = ids[np.argsort(-(both @ retriever.user_vector(record)))[:5]]
        found += len(np.intersect1d(retriever.search(record, 5)[0], best))
    assert found >= 95  # of 100: the search is approximate


@pytest.mark.parametrize("strings", [False, True])
def test_retriever_saved_and_loaded_answers_alike(dataset, model, items, tmp_path, strings):
    ids = [f"item-{key}" for key in items.ids.tolist()] if strings else items.ids
    users = dataset.user_source()
    retriever = TwoTowerRetriever.build(model, dataclasses.replace(items, ids=ids), users, candidates=20)
    gone = take(dataclasses.replace(items, ids=ids), np.arange(10))
    retriever.delete(gone.ids)
    retriever.save(tmp_path / "retriever")
    again = TwoTowerRetriever.load(tmp_path / "retriever", model, users)
    requests = [Request(user=str(user)) for user in dataset.users["ids"][:5]]
    for request in requests:
        assert again(request).ids.tolist() == retriever(request).ids.tolist()
    again.upsert(gone.ids, gone.columns, gone.content)
    assert len(again) == dataset.n_items


def test_retriever_of_another_model_or_damaged_is_not_loaded(dataset, model, items, tmp_path):
    users = dataset.user_source()
    path = tmp_path / "retriever"
    retriever = TwoTowerRetriever.build(model, take(items, np.arange(30)), users)
    retriever.save(path)
    with pytest.raises(ItemIndexError, match="another model computed these vectors"):
        TwoTowerRetriever.load(path, build_model(model.config, model.schema, seed=2), users)
    for name in ("index.usearch", "rows.safetensors"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ItemIndexError, match=f"{name}: is not what was written"):
            TwoTowerRetriever.load(path, model, users)
        (path / name).write_bytes(whole)
    (path / "retriever.json").write_text("[]")
    with pytest.raises(ItemIndexError, match="has other contents than this release reads"):
        TwoTowerRetriever.load(path, model, users)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ItemIndexError, match=r"holds notes\.txt"):
        retriever.save(path)


def test_retriever_searches_while_items_come_and_go_return_known_items(dataset, model, items):
    retriever = TwoTowerRetriever.build(model, items, dataset.user_source(), candidates=20)
    record, stop, failures = dataset.user_record(0), threading.Event(), []
    known = set(items.ids.tolist())
    searched = threading.Barrier(3)

    def search():
        searched.wait()
        while not stop.is_set():
            ids, scores = retriever.search(record, 20)
            if not known.issuperset(ids.tolist()) or not np.isfinite(scores).all():
                failures.append(ids)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    searched.wait()
    for start in range(0, 200, 40):
        part = take(items, np.arange(start, start + 40))
        assert retriever.delete(part.ids) == 40
        retriever.upsert(part.ids, part.columns, part.content)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(retriever) == dataset.n_items
    assert len(set(retriever.search(record, dataset.n_items)[0].tolist())) == dataset.n_items


def test_retriever_without_items_returns_none(dataset, model):
    empty = ItemRecords(np.zeros(0, np.uint64), {}, None)
    retriever = TwoTowerRetriever.build(model, empty, dataset.user_source())
    assert retriever(Request(user=str(dataset.users["ids"][0]))).ids.size == 0
