"""Two ways of serving the same requests, side by side: one thing after the other, and AIF."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aif_jax.data.dataset import Dataset
from aif_jax.errors import AifError
from aif_jax.features import Schema, item_keys, pad_to
from aif_jax.lookup import find
from aif_jax.models.aif import Aif
from aif_jax.models.sequential import Sequential
from aif_jax.serving import Engine, Ranking
from aif_jax.timeline import Bar
from aif_jax.types import Columns, Request, Retrieve, UserSource

RELATIVE = 1e-4
"""Largest relative difference of scores between the two ways; they are one model with one set of weights."""


class SequentialServer:
    """Serves requests the usual way: retrieval, then features, then the whole model.

    Args:
        model: the unfolded model.
        dataset: whose items the candidates are.
        schema: the model's fitted schema.
        catalogue: its items, encoded, with signatures.
        users: user source.
        retrieve: retrieval.
        k: results of a request.
        bucket: candidate count to compile for; requests have at most so many.
    """

    def __init__(
        self,
        model: Aif,
        dataset: Dataset,
        schema: Schema,
        catalogue: Columns,
        *,
        users: UserSource,
        retrieve: Retrieve,
        k: int,
        bucket: int,
    ) -> None:
        self._scorer = Sequential(model, catalogue, k=k)
        self._config, self._schema, self._users, self._retrieve = model.config, schema, users, retrieve
        keys = dataset.item_keys()
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]
        self._bucket = bucket

    def rank(self, request: Request) -> tuple[np.ndarray, np.ndarray, list[Bar]]:
        """Return ids and scores, best first, and where the time went."""
        start = time.perf_counter()
        bars: list[Bar] = []

        def done(name: str, lane: str, since: float) -> float:
            now = time.perf_counter()
            bars.append(Bar(name, lane, (since - start) * 1e3, (now - start) * 1e3))
            return now

        ids: Any = self._retrieve(request)
        ids = np.asarray(getattr(ids, "ids", ids))
        now = done("retrieval", "retrieval", start)
        batch, raw = self._encode(request, ids)
        now = done("features", "user", now)
        order, scores = self._scorer(batch, raw)
        kept = order[np.isfinite(scores)]
        result = ids[kept]
        done("whole model", "request", now)
        return result, scores[: len(kept)], bars

    def _encode(self, request: Request, ids: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        record = self._users(request.user)
        if record is None:
            raise AifError(f"user {request.user!r} is unknown to the user source.")
        n, schema = self._bucket, self._schema
        history = self._rows(record.items)
        types = np.asarray(record.types, np.int32)
        batch: dict[str, Any] = {
            "user": {name: value[None] for name, value in schema.encode_one("user", record.features).items()},
            "item": pad_to(self._rows(ids), n, fill=-1)[None],
            "context": {
                name: np.broadcast_to(value, (1, n, *value.shape))
                for name, value in schema.encode_one("context", request.context).items()
            },
            "pair": schema.missing("pair", (1, n)),
            "train_only": schema.missing("train_only", (1, n)),
        }
        for name, length in (("short", self._config.short_length), ("long", self._config.long_length)):
            batch[f"{name}_item"] = pad_to(history[:length], length, fill=-1)[None]
            batch[f"{name}_type"] = pad_to(types[:length], length, fill=-1)[None]
        return batch, {name: np.zeros(n, np.float32) for name in self._scorer.raw}

    def _rows(self, ids: Any) -> np.ndarray:
        place, found = find(self._sorted, item_keys(ids))
        return np.where(found, self._order[place], -1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Measurements of `compare`.

    Attributes:
        latency: milliseconds of each request by way.
        rankings: the engine's rankings, with their reports.
        sequential_bars: where the time went the usual way, by request.
        worst_difference: largest relative difference of scores between the ways over all requests.
    """

    latency: Mapping[str, list[float]]
    rankings: list[Ranking]
    sequential_bars: list[list[Bar]]
    worst_difference: float


def compare(
    sequential: SequentialServer,
    engine: Engine,
    requests: tuple[Request, ...],
    *,
    tick: Callable[[], None] = lambda: None,
    warmup: int = 5,
) -> Comparison:
    """Serve every request both ways, taking turns at going first, and hold the answers against each other.

    Args:
        sequential: the usual way.
        engine: AIF's way.
        requests: what to serve; each is a different user, so that no user state is cached.
        tick: called after each request.
        warmup: how many of them are served first and not counted.

    Raises:
        AifError: the two ways do not agree on the scores.
    """
    latency: dict[str, list[float]] = {"sequential": [], "aif": []}
    rankings: list[Ranking] = []
    bars: list[list[Bar]] = []
    worst = 0.0

    def usual_way(request: Request) -> np.ndarray:
        _, scores, parts = sequential.rank(request)
        bars.append(parts)
        return scores

    def aif_way(request: Request) -> np.ndarray:
        rankings.append(engine.rank(request.user, context=request.context, k=request.k))
        return rankings[-1].scores

    ways = {"sequential": usual_way, "aif": aif_way}
    for number, request in enumerate(requests):
        scores: dict[str, np.ndarray] = {}
        for way in ways if number % 2 else reversed(ways):
            start = time.perf_counter()
            scores[way] = ways[way](request)
            latency[way].append((time.perf_counter() - start) * 1e3)
        worst = max(worst, _difference(scores["aif"], scores["sequential"]))
        if number >= warmup:
            tick()
    for measured in (*latency.values(), rankings, bars):
        del measured[:warmup]
    if worst > RELATIVE:
        raise AifError(
            f"the two ways disagree: scores differ by {worst:.1e} (relative), expected at most {RELATIVE:g}."
        )
    return Comparison(latency, rankings, bars, worst)


def _difference(left: np.ndarray, right: np.ndarray) -> float:
    """Compare scores, best first; near-equal candidates may change places, which the values do not show."""
    if left.shape != right.shape:
        return float("inf")
    return float(np.max(np.abs(left - right) / np.maximum(np.abs(right), 1e-6), initial=0.0))
