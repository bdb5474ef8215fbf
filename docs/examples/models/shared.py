"""Parts that the examples share: a made-up log, training, and the comparison with the sequential way.

The sequential way does after retrieval what the engine does before and beside it: one compiled program runs
the model's user side and its item side for every candidate.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import aif_jax as aif
from aif_jax.data.synthetic import synthetic
from aif_jax.models import OwnModel
from aif_jax.serving import Shapes, UserStateCache
from aif_jax.training import TrainConfig, train

LENGTH, CANDIDATES, K, RETRIEVAL_S = 50, 2048, 100, 0.01
DATA = synthetic(n_items=4096, n_users=300, n_requests=5, shown=8, history=80, content_width=16)
IDS = np.asarray(DATA.items["ids"])  # ascending
SCHEMA = DATA.fit_schema()
CATALOGUE = {name: jnp.asarray(column) for name, column in DATA.catalogue(SCHEMA).items()}

Batch = dict[str, Any]


def trained(model: nnx.Module, epochs: int = 2, long_length: int = LENGTH) -> OwnModel:
    """Return a model of the contract after training on the log by the loop that trains ours."""
    own = OwnModel(
        model, SCHEMA, heads=("ctr",), long_length=long_length, content_space=DATA.content_space
    )  # fmt: skip
    if not epochs:
        return own
    return train(own, DATA, TrainConfig(epochs=epochs, batch_size=64, group=8, learning_rate=3e-3)).model


class Sequential:
    """Ranks requests after retrieval, in one compiled program around ``logits(batch, catalogue)``."""

    def __init__(self, logits: Callable[[Batch, Any], jax.Array]):
        self._best = jax.jit(lambda batch, catalogue: jax.lax.top_k(logits(batch, catalogue)[0], K))

    def __call__(self, user: int, candidates: np.ndarray, pair: Any, context: Any) -> Any:
        """Return the best candidates and their probabilities."""
        record, n = DATA.user_record(user, length=LENGTH), len(candidates)
        absent = LENGTH - len(record.items)
        types = np.pad(record.types, (0, absent), constant_values=-1)[None].astype(np.int32)
        rows = np.searchsorted(IDS, record.items)
        items = np.pad(rows, (0, absent), constant_values=-1)[None].astype(np.int32)
        encoded = SCHEMA.encode_one("context", context)
        batch = {
            "user": SCHEMA.encode("user", {name: [v] for name, v in record.features.items()}, 1),
            "item": np.searchsorted(IDS, candidates)[None].astype(np.int32),
            "context": {name: np.broadcast_to(leaf, (1, n, *leaf.shape)) for name, leaf in encoded.items()},
            "pair": {name: leaf[None] for name, leaf in SCHEMA.encode("pair", pair, n).items()},
            "long_item": items, "long_type": types, "short_item": items[:, :20], "short_type": types[:, :20],
        }  # fmt: skip
        logits, order = self._best(batch, CATALOGUE)
        return candidates[np.asarray(order)], 1 / (1 + np.exp(-np.asarray(logits)))


def compare(
    bundle: aif.Bundle, sequential: Sequential, requests: int = 40, clients: int = 8
) -> dict[str, float]:
    """Serve the same requests in both ways; return the largest difference of a score, and their times."""
    rng, context = np.random.default_rng(0), {"hour": 20, "device": "phone"}
    found = rng.permutation(IDS)[:CANDIDATES]
    pair = {"retrieval_score": rng.normal(size=CANDIDATES), "channel": np.full(CANDIDATES, "taste")}

    def retrieve(request: Any) -> aif.Candidates:
        time.sleep(RETRIEVAL_S)
        return aif.Candidates(found, pair)

    def by_engine(user: int) -> tuple[Any, Any, float]:
        ranking = engine.rank(user, context, k=K)
        return ranking.ids, ranking.scores, ranking.report.total_ms - ranking.report.retrieval_ms

    def one_after_the_other(user: int) -> tuple[Any, Any, float]:
        retrieve(None)
        began_s = time.perf_counter()
        return *sequential(user, found, pair, context), (time.perf_counter() - began_s) * 1e3

    users = rng.integers(0, DATA.n_users, requests).tolist()
    shapes = Shapes(candidates=(CANDIDATES,), histories=(bundle.spec.long_length,), users=())
    config = aif.EngineConfig(user_states=UserStateCache(max_bytes=0), shapes=shapes)
    records = DATA.item_records(DATA.content_space.width)
    if bundle.spec.content_width == 1:
        records = dataclasses.replace(records, content=None)  # the model reads none
    tables = aif.build_tables(bundle, records)
    source = lambda user: DATA.user_record(user, length=LENGTH)  # noqa: E731
    result: dict[str, float] = {"difference": 0.0}
    with aif.Engine(bundle, tables, users=source, retrieve=retrieve, config=config) as engine:
        ways = {"engine": by_engine, "sequential": one_after_the_other}
        times: dict[str, list[float]] = {name: [way(0)[2]] for name, way in ways.items()}
        for user in users:  # in turns, since a machine has better and worse moments
            for name, way in ways.items():
                times[name].append(way(user)[2])
        for name, way in ways.items():
            result[f"{name}_ms"] = float(np.median(times[name][1:]))
            with ThreadPoolExecutor(clients) as pool:
                began_s = time.perf_counter()
                list(pool.map(way, users))
                result[f"{name}_rps"] = requests / (time.perf_counter() - began_s)
        for user in users[:10]:
            (ids, scores, _), (same, expected, _) = by_engine(user), one_after_the_other(user)
            there = dict(zip(same.tolist(), expected.tolist(), strict=True))
            apart = [
                abs(there[i] - s) for i, s in zip(ids.tolist(), scores.tolist(), strict=True) if i in there
            ]
            assert len(apart) >= K - 1, "the ways rank other candidates"
            result["difference"] = max(result["difference"], *apart)
    return result
