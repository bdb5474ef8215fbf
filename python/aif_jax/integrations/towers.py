"""Vectors of users and items by a trained two-tower model, for an index of nearest neighbours."""

import functools
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax import _native
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.features import EncodeReport, pad_to
from aif_jax.features.records import read_features, read_history
from aif_jax.inputs import read_ids
from aif_jax.models.baselines import TwoTower
from aif_jax.models.store import digest_of_model
from aif_jax.nearline.records import read_records
from aif_jax.nearline.row_program import BATCH, batches
from aif_jax.types import ItemRecords, UserId, UserRecord


class Towers:
    """Computes vectors: the dot product of a user's and an item's orders items as the model's first head.

    It keeps of each item its vector, and its token, which is what a user's history needs of it. Behaviours
    with items that it has not been given are left out and counted. May be called from several threads.

    Args:
        model: a trained ``two_tower`` model.
        items: the catalogue; a `Dataset` gives its items. More come by `upsert`.

    Raises:
        ConfigError: the model has no towers.

    >>> from aif_jax import ModelConfig
    >>> from aif_jax.data import load
    >>> from aif_jax.models import build_model
    >>> data = load("synthetic:small", content_width=8)
    >>> config = ModelConfig(architecture="two_tower", heads=("ctr",), content_width=8, width=8)
    >>> towers = Towers(build_model(config, data.fit_schema()), data)
    >>> record = data.user_record(0)
    >>> scores = towers.item_vectors(data) @ towers.user_vector(record)
    >>> scores.shape == (data.n_items,)
    True
    """

    def __init__(self, model: Any, items: ItemRecords | Dataset | None = None) -> None:
        if not isinstance(model, TwoTower):
            raise ConfigError(
                f"Towers: got a model of class {type(model).__name__}, which has no vectors of users and "
                "items; train one with architecture='two_tower'."
            )
        self.model = model
        width = model.config.width
        self._rows = _native.EmbeddingCache(
            _native.RowLayout([("vector", "float32", (width,)), ("token", "float32", (width,))])
        )
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        graph, state = nnx.split(model)
        self._item = functools.partial(jax.jit(functools.partial(_item_rows, graph)), state)
        self._user = functools.partial(jax.jit(functools.partial(_user_vectors, graph)), state)
        if items is not None:
            self.upsert(items)

    def __len__(self) -> int:
        return len(self._rows)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the model, by which saved vectors are recognised."""
        return digest_of_model(self.model)

    @property
    def width(self) -> int:
        """Width ``d`` of a vector."""
        return self.model.config.width

    def user_vector(self, record: UserRecord, *, user: UserId = "of this record") -> np.ndarray:
        """Return the vector of one user, float32 ``[d]``.

        Args:
            record: features and history, as a user source gives them.
            user: names the user in errors.

        Raises:
            UserSourceError: the record is malformed; see `UserRecord`.
        """
        return self._vectors([record], [user])[0]

    def user_vectors(self, records: Sequence[UserRecord]) -> np.ndarray:
        """Return the vectors of several users, float32 ``[n, d]``; see `user_vector`."""
        names = [f"of record {number}" for number in range(len(records))]
        parts = [self._vectors(records[part], names[part]) for part in batches(len(records))]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)

    def item_vectors(self, items: ItemRecords | Dataset) -> np.ndarray:
        """Compute the vectors of items, float32 ``[n, d]``, without keeping them.

        Raises:
            SchemaError: a column does not fit the schema.
            ItemIndexError: the content is malformed, or not as wide as the model's.
        """
        return self._computed(self.read(items))["vector"]

    def upsert(self, items: ItemRecords | Dataset) -> np.ndarray:
        """Compute the rows of items and keep them, in place of older ones.

        Returns:
            The vectors, float32 ``[n, d]``.

        Raises:
            RequestError: the ids are malformed.
            SchemaError: a column does not fit the schema.
            ItemIndexError: the content is malformed, or not as wide as the model's.
        """
        records = self.read(items)
        keys, rows = read_ids(records.ids).keys, self._computed(records)
        self._rows.upsert(keys, rows)
        return rows["vector"]

    def vectors_of(self, keys: np.ndarray) -> np.ndarray:
        """Return the kept vectors of keys uint64 ``[n]``, float32 ``[n, d]``; zeros where there is none."""
        return np.array(self._rows.gather_column(keys, "vector")[0])

    def counts(self) -> dict[str, int]:
        """Return the numbers of computed ``users`` and of their ``unknown_behaviours``."""
        with self._lock:
            return {name: self._counts[name] for name in ("users", "unknown_behaviours")}

    def snapshot(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return all keys, uint64 ``[n]``, and rows as of one moment."""
        keys, rows, _ = self._rows.snapshot()
        return keys, rows

    def restore(self, keys: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Keep rows that `snapshot` of the same model returned."""
        self._rows.upsert(keys, rows)

    def read(self, items: ItemRecords | Dataset) -> ItemRecords:
        """Return records, or those of a data set, with columns by position; values are not checked."""
        if isinstance(items, Dataset):
            items = items.item_records(self.model.config.content_width)
        return read_records(items)

    def _computed(self, records: ItemRecords) -> dict[str, np.ndarray]:
        n = len(records.ids)
        columns: Mapping[str, np.ndarray] = self.model.schema.encode("item", records.columns, n)
        content, has = self.model.content_space.apply(records.content, n)
        given = has[:, None].astype(np.float32)
        columns = {**columns, "content": content, "has_content": given}
        rows = {name: np.zeros((n, self.width), np.float32) for name in ("vector", "token")}
        for part in batches(n):
            found = self._item({name: pad_to(column[part], BATCH) for name, column in columns.items()})
            for name, values in found.items():
                rows[name][part] = np.asarray(values)[: part.stop - part.start]
        return rows

    def _vectors(self, records: Sequence[UserRecord], users: Sequence[UserId]) -> np.ndarray:
        schema, length = self.model.schema, self.model.config.short_length
        tokens = np.zeros((len(records), length, self.width), np.float32)
        types = np.full((len(records), length), -1, np.int32)
        features, unknown = [], 0
        for row, (user, record) in enumerate(zip(users, records, strict=True)):
            history = read_history(user, record, schema)
            token, known = self._rows.gather_column(history.keys, "token")
            kept = np.flatnonzero(known)[:length]
            tokens[row, : len(kept)], types[row, : len(kept)] = token[kept], history.types[kept]
            unknown += len(known) - int(np.count_nonzero(known))
            features.append(read_features(user, record, schema, EncodeReport()))
        encoded = {f.name: np.concatenate([each[f.name] for each in features]) for f in schema.user}
        with self._lock:
            self._counts["users"] += len(records)
            self._counts["unknown_behaviours"] += unknown
        rows = 1 if len(records) == 1 else BATCH  # two shapes, so two compilations
        inputs = [{name: pad_to(column, rows) for name, column in encoded.items()}]
        inputs += [pad_to(tokens, rows), pad_to(types, rows)]
        return np.array(self._user(*inputs)[: len(records)])


def _item_rows(graph: Any, state: Any, items: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    model: TwoTower = nnx.merge(graph, state)
    # A model that reads no histories has no tokens.
    token = model.item.behaviour(items).get("token", jnp.zeros((BATCH, model.config.width)))
    return {"vector": model.item_vector(items), "token": token}


def _user_vectors(
    graph: Any, state: Any, user: Mapping[str, jax.Array], tokens: jax.Array, types: jax.Array
) -> jax.Array:
    model: TwoTower = nnx.merge(graph, state)
    reads = model.item.as_token is not None
    return model.head_vectors(model.user(user, tokens if reads else None, types, {})[0])[..., 0]
