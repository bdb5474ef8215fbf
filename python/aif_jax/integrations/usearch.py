"""Retrieval by a nearest-neighbour index (usearch) over the vectors of a trained two-tower model."""

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load, save

from aif_jax.aio import is_coroutine_function
from aif_jax.checks import check, typed, well_formed, whole
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError, ItemIndexError, RequestError
from aif_jax.extras import needs
from aif_jax.files import foreign_names, read_file, write_directory
from aif_jax.inputs import Ids, read_ids
from aif_jax.integrations.towers import Towers
from aif_jax.shown import shown
from aif_jax.types import Candidates, ItemRecords, Request, UserRecord, UserSource

SCORE_FEATURE = "retrieval_score"
"""Name of the pair feature that carries the dot product, if the schema declares one of this name."""

_INDEX, _ROWS, _NOTES = "index.usearch", "rows.safetensors", "retriever.json"
_FORMAT = 1
_GRAPH = ("connectivity", "expansion_add", "expansion_search")
_ADVICE = "build the retriever again, or copy it again"
_AT_ONCE = 32
"""Vectors that are added while searches wait: about as long as a few searches."""
_HEADROOM = 1.25
"""Factor by which a vector may be longer than all before, without a new index."""
_RESERVED = np.uint64(2**64 - 1)
"""The key that usearch gives to removed entries."""


class TwoTowerRetriever:
    """A ``retrieve`` callable: returns the items whose vectors have the largest dot products with the user's.

    Make it with `build` or `load`. May be called from several threads, also while items come and go. A user
    whom the source does not know is served as one without features and history, and counted in `counts`, as
    are behaviours whose item was never given. A deleted item is not retrieved, but still counts in histories.

    The largest dot product is not a nearest neighbour in any metric, and a graph index over raw dot products
    misses many of them. So each vector ``x`` gets one more coordinate ``√(M² - |x|²)``, ``M`` being at least
    the largest norm, and a user's gets 0: then the order of cosines is the order of dot products (Bachrach et
    al., RecSys 2014). If an item's norm exceeds ``M``, the index is made anew with a larger one, and counted.
    """

    @typed
    def __init__(self, towers: Towers, users: UserSource, *, candidates: int, **graph: int) -> None:
        if candidates < 1:
            raise ConfigError(f"candidates: got {candidates}, expected at least 1.")
        if is_coroutine_function(users):
            raise ConfigError("users: got a coroutine function, expected a plain one, or a mapping's get.")
        self.towers = towers
        self._users, self._candidates = users, candidates
        self._graph: dict[str, Any] = graph
        self._scored = any(feature.name == SCORE_FEATURE for feature in towers.model.schema.pair)
        self._names: dict[int, str] = {}
        self._strings: bool | None = None
        self._radius = 1e-12
        self._index = self._new_index()
        self._gate, self._writes = _Gate(), threading.Lock()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @classmethod
    def build(
        cls,
        model: Any,
        items: ItemRecords | Dataset,
        users: UserSource,
        *,
        candidates: int = 1000,
        connectivity: int = 16,
        expansion_add: int = 128,
        expansion_search: int = 256,
    ) -> Self:
        """Compute every item's vector and index it.

        Args:
            model: a trained ``two_tower`` model, such as that of `aif_jax.training.two_tower`.
            items: the items; a data set gives its own.
            users: source of user features and histories.
            candidates: number of items that one request gets; fewer if there are fewer.
            connectivity: links a node of the index (M of HNSW).
            expansion_add: breadth of the search while building (efConstruction).
            expansion_search: breadth of the search while serving (ef); at least `candidates` is used.

        Raises:
            MissingExtraError: usearch is not installed.
            ConfigError: the model has no towers, or ``candidates`` is under 1.
            RequestError: ids are malformed, or two are the same.
            SchemaError: a column does not fit the schema.
        """
        graph = {
            "connectivity": connectivity,
            "expansion_add": expansion_add,
            "expansion_search": max(expansion_search, candidates),
        }
        made = cls(Towers(model), users, candidates=candidates, **graph)
        made._add(items)
        return made

    def __call__(self, request: Request, /) -> Candidates:
        """Retrieve.

        Returns:
            ids ``[N]``, nearest first: integers as uint64, or the strings of the catalogue; with
            the pair feature ``retrieval_score``, the dot product, float32 ``[N]``, if the schema declares
            one.
        """
        record = self._users(request.user)
        with self._lock:
            self._counts["requests"] += 1
            self._counts["unknown_users"] += record is None
        vector = self.towers.user_vector(UserRecord() if record is None else record, user=request.user)
        ids, scores = self._nearest(vector, self._candidates)
        return Candidates(ids, {SCORE_FEATURE: scores} if self._scored else {})

    def user_vector(self, record: UserRecord) -> np.ndarray:
        """Return a user's vector, float32 ``[d]``; see `Towers.user_vector`."""
        return self.towers.user_vector(record)

    def search(self, record: UserRecord, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids ``[k]`` of the best items for a user, best first, and the dot products ``[k]``.

        Raises:
            UserSourceError: the record is malformed; see `UserRecord`.
            RequestError: ``k`` is under 1.
        """
        if k < 1:
            raise RequestError(f"k: got {k}, expected at least 1.")
        return self._nearest(self.towers.user_vector(record), k)

    def upsert(self, ids: Any, columns: Any, content: Any = None) -> None:
        """Add items, or replace those that are there; searches see each from when this returns.

        Args:
            ids: ``[n]``, integers or strings, as those before.
            columns: raw item features by name, as in `ItemRecords`.
            content: content embeddings ``[n, d_m]``, or ``None``.

        Raises:
            RequestError: ids are malformed, repeated, or of the other kind.
            SchemaError: a column does not fit the schema.
            ItemIndexError: the content does not fit the model.
        """
        self._add(ItemRecords(ids, columns, content))

    def delete(self, ids: Any) -> int:
        """Stop retrieving items; return how many there were."""
        keys = read_ids(ids).keys
        with self._writes, self._gate.alone():
            return int(np.sum(self._index.remove(keys))) if len(keys) else 0

    def __len__(self) -> int:
        with self._gate.shared():
            return len(self._index)

    def counts(self) -> dict[str, int]:
        """Return the numbers of ``requests``, ``unknown_users``, ``unknown_behaviours`` and ``rebuilds``."""
        with self._lock:
            own = {name: self._counts[name] for name in ("requests", "unknown_users", "rebuilds")}
        return {**own, "unknown_behaviours": self.towers.counts()["unknown_behaviours"]}

    def save(self, path: str | Path) -> None:
        """Write index and rows into a directory; one that is there is replaced.

        Raises:
            ItemIndexError: the directory holds other files.
            WriteError: the system refuses; what was there is still there.
        """
        path = Path(path)
        if path.is_dir() and (foreign := foreign_names(path, (_INDEX, _ROWS, _NOTES))):
            raise ItemIndexError(
                f"{path}: holds {', '.join(foreign[:3])}, which is no part of a retriever; choose another "
                "directory."
            )
        with self._writes:
            keys, rows = self.towers.snapshot()
            index = bytes(self._index.save())
            notes = {
                "format": _FORMAT, "model": self.towers.digest, "candidates": self._candidates, **self._graph,
                "radius": self._radius, "strings": self._strings, "items": len(self._index),
                "names": [[str(key), name] for key, name in self._names.items()],
            }  # fmt: skip
        files = {_INDEX: index, _ROWS: save({"keys": keys, **rows})}
        notes |= {name: _digest(data) for name, data in files.items()}
        files[_NOTES] = json.dumps(notes).encode()
        write_directory(path, files, lambda written: _read(written, self.towers.digest))

    @classmethod
    def load(cls, path: str | Path, model: Any, users: UserSource) -> Self:
        """Read what `save` wrote.

        Args:
            path: the directory.
            model: the model whose vectors these are.
            users: source of user features and histories.

        Raises:
            ItemIndexError: a file is missing or broken, or another model computed the vectors.
            MissingExtraError: usearch is not installed.
            ConfigError: the model has no towers.
        """
        towers = Towers(model)
        notes, index, rows = _read(Path(path), towers.digest)
        with well_formed(Path(path) / _NOTES, ItemIndexError, _ADVICE):
            for name in ("candidates", *_GRAPH):
                whole(name, notes[name], 1)
            made = cls(
                towers, users, candidates=notes["candidates"], **{name: notes[name] for name in _GRAPH}
            )
            made._radius, made._strings = float(notes["radius"]), notes["strings"]
            check("radius", made._radius, 0 < made._radius < np.inf, "a number over 0")
            check("strings", made._strings, made._strings in (True, False, None), "true, false or null")
            made._names = {int(key): str(name) for key, name in notes["names"]}
            made._index.load(index)
            keys = rows.pop("keys")
            towers.restore(keys, rows)
            if (made._index.ndim, len(made._index)) != (towers.width + 1, notes["items"]):
                raise ValueError(f"{len(made._index)} vectors of width {made._index.ndim}")
            if made._strings and not made._names.keys() >= set(keys.tolist()):
                raise ValueError("ids without a name")
        made._index.expansion_search = notes["expansion_search"]
        return made

    def _nearest(self, vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with self._gate.shared():
            found = self._index.search(np.append(vector, np.float32(0.0)), k, threads=1)
        keys = np.array(found.keys, np.uint64)
        scores = self.towers.vectors_of(keys) @ vector
        order = np.argsort(-scores, kind="stable")
        keys, scores = keys[order], scores[order]
        if not self._strings:
            return keys, scores
        return np.array([self._names[key] for key in keys.tolist()], object), scores

    def _add(self, items: ItemRecords | Dataset) -> None:
        with self._writes:
            records = self.towers.read(items)
            ids = read_ids(records.ids)
            self._check(ids)
            vectors = self.towers.upsert(records)
            if ids.strings:
                self._names |= zip(ids.keys.tolist(), map(str, ids.given.tolist()), strict=True)
            self._strings = ids.strings if len(ids.keys) else self._strings
            norm = float(np.linalg.norm(vectors, axis=1).max(initial=0.0))
            if norm > self._radius:
                self._rebuild(norm * _HEADROOM, ids.keys)
                return
            self._insert(self._index, ids.keys, vectors)

    def _check(self, ids: Ids) -> None:
        if len(np.unique(ids.keys)) < len(ids.keys):
            raise RequestError("ids: two items have the same id (or two strings the same hash).")
        if _RESERVED in ids.keys:
            raise RequestError(f"ids: got {_RESERVED}, which the index keeps for itself; use another id.")
        if len(ids.keys) and self._strings not in (None, ids.strings):
            raise RequestError("ids: got integers and strings; use one kind throughout.")
        for key, name in zip(ids.keys.tolist(), ids.given.tolist(), strict=True) if ids.strings else ():
            if self._names.get(key, name) != name:
                raise RequestError(
                    f"ids: {name!r} and {self._names[key]!r} have the same hash; rename one of them."
                )

    def _rebuild(self, radius: float, more: np.ndarray) -> None:
        """Make the index anew, of the items that it holds and some more, for vectors up to a norm."""
        present = np.array(self._index.keys[:], np.uint64) if len(self._index) else np.zeros(0, np.uint64)
        keys = np.union1d(present, more)
        self._radius, self._counts["rebuilds"] = radius, self._counts["rebuilds"] + bool(len(present))
        index = self._new_index()
        vectors = self._extended(self.towers.vectors_of(keys))
        index.add(keys, vectors)
        with self._gate.alone():
            self._index = index

    def _insert(self, index: Any, keys: np.ndarray, vectors: np.ndarray) -> None:
        extended = self._extended(vectors)
        for start in range(0, len(keys), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            # usearch reuses the places of removed vectors, and moves all when it grows: no search beside it.
            with self._gate.alone():
                index.remove(keys[part])
                index.add(keys[part], extended[part], threads=1)

    def _extended(self, vectors: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.concatenate([vectors, np.sqrt(np.maximum(self._radius**2 - norms**2, 0.0))], axis=1)

    def _new_index(self) -> Any:
        needs("usearch", what="TwoTowerRetriever")
        from usearch.index import Index

        return Index(ndim=self.towers.width + 1, metric="cos", dtype="f32", **self._graph)


class _Gate:
    """Many readers or one writer; a waiting writer lets no further readers in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writer = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._writer)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Writers come one at a time: the caller holds a lock of theirs."""
        with self._changed:
            self._writer = True
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._writer = False
                self._changed.notify_all()


def _read(path: Path, model: str) -> tuple[dict[str, Any], bytes, dict[str, np.ndarray]]:
    try:
        data = {name: read_file(path / name) for name in (_INDEX, _ROWS, _NOTES)}
        notes = json.loads(data[_NOTES])
    except (OSError, ValueError, RecursionError) as error:
        raise ItemIndexError(f"{path}: not a saved retriever ({error}); {_ADVICE}.") from error
    with well_formed(path / _NOTES, ItemIndexError, _ADVICE):
        if notes["format"] != _FORMAT:
            raise ItemIndexError(
                f"{path}: format {shown(notes['format'])}, this release reads {_FORMAT}; {_ADVICE}."
            )
        if notes["model"] != model:
            raise ItemIndexError(f"{path}: another model computed these vectors; {_ADVICE}.")
        for name in (_INDEX, _ROWS):
            if _digest(data[name]) != notes[name]:
                raise ItemIndexError(f"{path / name}: is not what was written; {_ADVICE}.")
        return notes, data[_INDEX], load(data[_ROWS])


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
