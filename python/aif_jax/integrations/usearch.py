"""Retrieval by a nearest-neighbour index (usearch) over the vectors of a trained two-tower model."""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.errors import ConfigError, RequestError
from aif_jax.features import EncodeReport, Schema
from aif_jax.features.records import read_history
from aif_jax.inputs import Ids, read_ids
from aif_jax.lookup import find
from aif_jax.types import Candidates, Columns, Request, UserId, UserRecord, UserSource

SCORE_FEATURE = "retrieval_score"
"""Name of the pair feature that carries the dot product, if the schema declares one of this name."""


class TwoTowerRetriever:
    """A ``retrieve`` callable: returns the items whose vectors are nearest to the user's.

    May be called from several threads. A user whom the source does not know is served as one without features
    and history, and counted in `counts`, as are behaviours whose item is not in the catalogue.

    Build it with `build`. The largest dot product is not a nearest neighbour in any metric, and a graph index
    over raw dot products misses many of them. So each vector ``x`` gets one more coordinate ``√(M² - |x|²)``,
    ``M`` being the largest norm, and a user's gets 0: then the order of cosines is the order of dot products
    (Bachrach et al., RecSys 2014).
    """

    def __init__(
        self,
        index: Any,
        user_vector: Any,
        schema: Schema,
        ids: Ids,
        users: UserSource,
        *,
        radius: float,
        short_length: int,
        candidates: int,
    ) -> None:
        self._index = index
        self._user_vector = user_vector
        self._schema = schema
        order = np.argsort(ids.keys, kind="stable")
        self._sorted_keys, self._rows = ids.keys[order], order
        self._names = ids.given if ids.strings else None
        self._users = users
        self._radius = radius
        self._short_length = short_length
        self._candidates = candidates
        self._scored = any(feature.name == SCORE_FEATURE for feature in schema.pair)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @classmethod
    def build(
        cls,
        model: nnx.Module,
        schema: Schema,
        catalogue: Columns,
        ids: Any,
        users: UserSource,
        *,
        candidates: int = 1000,
        connectivity: int = 16,
        expansion_add: int = 128,
        expansion_search: int = 256,
        batch: int = 8192,
    ) -> Self:
        """Compute every item's vector and index it.

        Args:
            model: a trained ``two_tower`` model.
            schema: fitted, as the model was trained with.
            catalogue: encoded item features, leading axis ``n_items`` (``dataset.catalogue(schema)``).
            ids: the items' ids, ``[n_items]``, integers or strings.
            users: source of user features and histories.
            candidates: number of items that one request gets; fewer if the catalogue is smaller.
            connectivity: links a node of the index (M of HNSW).
            expansion_add: breadth of the search while building (efConstruction).
            expansion_search: breadth of the search while serving (ef); at least `candidates` is used.
            batch: items a call of the item tower.

        Raises:
            ConfigError: usearch is not installed, the model has no towers, or ``candidates`` is under 1.
            RequestError: ids are not as many as the catalogue's items, or two are the same.
        """
        try:
            from usearch.index import Index
        except ImportError as error:
            raise ConfigError(
                "TwoTowerRetriever needs usearch, which is not installed: pip install 'aif_jax[usearch]'."
            ) from error
        if not (hasattr(model, "user_vector") and hasattr(model, "item_vector")):
            raise ConfigError(
                f"TwoTowerRetriever: {type(model).__name__} has no user_vector and item_vector; "
                "train a model with architecture='two_tower'."
            )
        if candidates < 1:
            raise ConfigError(f"candidates: got {candidates}, expected at least 1.")
        ids = read_ids(ids)
        columns = {name: np.asarray(column) for name, column in catalogue.items()}
        n_items = len(next(iter(columns.values())))
        if ids.keys.size != n_items:
            raise RequestError(f"ids: got {ids.keys.size} ids for a catalogue of {n_items} items.")
        if np.unique(ids.keys).size != n_items:
            raise RequestError("ids: two items have the same id (or two strings the same hash).")
        towers: Any = model
        device_catalogue = {name: jnp.asarray(column) for name, column in columns.items()}
        vectors = _item_vectors(model, columns, n_items, min(batch, n_items))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        radius = max(float(norms.max()), 1e-12)
        vectors = np.concatenate([vectors, np.sqrt(np.maximum(radius**2 - norms**2, 0.0))], axis=1)
        index = Index(
            ndim=vectors.shape[1],
            metric="cos",
            dtype="f32",
            connectivity=connectivity,
            expansion_add=expansion_add,
            expansion_search=max(expansion_search, candidates),
        )
        index.add(ids.keys, vectors)

        graph, state = nnx.split(towers)

        @jax.jit
        def user_vector(weights: Any, inputs: Mapping[str, Any], items: Columns) -> jax.Array:
            tower: Any = nnx.merge(graph, weights)
            return tower.user_vector(inputs, items)[0]

        return cls(
            index,
            lambda inputs: np.asarray(user_vector(state, inputs, device_catalogue)),
            schema,
            ids,
            users,
            radius=radius,
            short_length=towers.config.short_length,
            candidates=min(candidates, n_items),
        )

    def __call__(self, request: Request, /) -> Candidates:
        """Retrieve.

        Returns:
            ids ``[N]``, nearest first: integers as uint64, or the strings of the catalogue; with
            the pair feature ``retrieval_score``, the dot product, float32 ``[N]``, if the schema declares
            one.
        """
        vector = self._user_vector(self._inputs(request.user, self._users(request.user)))
        found = self._index.search(np.append(vector, np.float32(0.0)), self._candidates)
        ids = np.asarray(found.keys, np.uint64)
        if self._names is not None:
            ids = self._names[self._rows[find(self._sorted_keys, ids)[0]]]
        if not self._scored:
            return Candidates(ids)
        cosines = 1.0 - np.asarray(found.distances, np.float32)
        scores = cosines * np.float32(np.linalg.norm(vector) * self._radius)
        return Candidates(ids, {SCORE_FEATURE: scores})

    def counts(self) -> dict[str, int]:
        """Return the numbers of ``requests``, ``unknown_users`` and ``unknown_behaviours``."""
        with self._lock:
            names = ("requests", "unknown_users", "unknown_behaviours")
            return {name: self._counts[name] for name in names}

    def _inputs(self, user: UserId, record: UserRecord | None) -> dict[str, Any]:
        """Encode one user, leading axis 1."""
        known = UserRecord() if record is None else record
        rows, types, unknown = self._history(user, known)
        with self._lock:
            self._counts["requests"] += 1
            self._counts["unknown_users"] += record is None
            self._counts["unknown_behaviours"] += unknown
        encoded = self._schema.encode_one("user", known.features, report=EncodeReport(), strict=False)
        return {
            "user": {name: value[None] for name, value in encoded.items()},
            "short_item": rows[None],
            "short_type": types[None],
            # The towers read the short sequence only.
            "long_item": np.full((1, 1), -1, np.int32),
            "long_type": np.full((1, 1), -1, np.int32),
        }

    def _history(self, user: UserId, record: UserRecord) -> tuple[np.ndarray, np.ndarray, int]:
        rows = np.full(self._short_length, -1, np.int32)
        types = np.full(self._short_length, -1, np.int32)
        history = read_history(user, record, self._schema)
        place, known = find(self._sorted_keys, history.keys)
        kept = min(int(known.sum()), self._short_length)
        rows[:kept] = self._rows[place[known]][:kept]
        types[:kept] = history.types[known][:kept]
        return rows, types, int(known.size - known.sum())


def _item_vectors(model: nnx.Module, columns: Columns, n_items: int, batch: int) -> np.ndarray:
    graph, state = nnx.split(model)

    @jax.jit
    def compute(weights: Any, inputs: Columns) -> jax.Array:
        towers: Any = nnx.merge(graph, weights)
        return towers.item_vector(inputs)

    parts = []
    for start in range(0, n_items, batch):
        rows = np.minimum(np.arange(start, start + batch), n_items - 1)  # one shape, so one compilation
        parts.append(np.asarray(compute(state, {name: column[rows] for name, column in columns.items()})))
    return np.concatenate(parts)[:n_items]
