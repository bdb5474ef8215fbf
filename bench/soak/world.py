"""The world of the soak: items and users in several versions, and all scores that are ever right.

They are computed beforehand by the unfolded model, so an answer can be checked while everything changes.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from aif_jax.features.score import score_of
from aif_jax.models import add_signatures
from aif_jax.nearline import BehaviourTable, ItemIndex, Upsert
from aif_jax.nearline.table import RowTable
from aif_jax.types import UserRecord
from load.service import known
from stage.request import CONTEXT
from workload import FIRST_ID, SMALL, Built, build

ITEMS, MOVING, VERSIONS = 1536, 1024, 3
"""Items, those that the stream changes (the first ones), and versions of each."""

USERS = 12
"""Users with versions: of even ones the record changes, of odd ones a row that their history is full of."""

KINDS = (ItemIndex, BehaviourTable)
CANDIDATES, K, LENGTH = 256, 50, SMALL.long_length
IDS = np.uint64(FIRST_ID) + np.arange(ITEMS, dtype=np.uint64)
PAIR = np.random.default_rng(3).normal(size=ITEMS).astype(np.float32)  # the pair feature of each item

LONG, SHORT, NOBODY, NOTHING = 0, USERS * VERSIONS, 2 * USERS * VERSIONS, 2 * USERS * VERSIONS + 1
"""Rows of the right scores: users by version at rung 0, and at rung 1; rung 2; rung 3."""

Source = Mapping[str, np.ndarray]


def items(source: Source, rows: Any, versions: Any, rankable: Any = None) -> Upsert:
    """Return items in some versions: each looks as another item does in version 0."""
    rows = np.asarray(rows)
    looks = (rows + 517 * np.asarray(versions)) % ITEMS
    columns = {"item": rows, "category": source["category"][looks].tolist(), "price": source["price"][looks]}
    return Upsert(IDS[rows], columns, source["content"][looks], rankable)


def own_item(user: int) -> int:
    """Return the moving item that an odd user's history is full of; nothing else changes it."""
    return MOVING - 1 - user


def history(user: int, version: int) -> np.ndarray:
    """Return the items of a user's history, ``[L]``."""
    settled = np.random.default_rng((user, version * (1 - user % 2))).integers(MOVING, ITEMS, LENGTH)
    return np.where(np.arange(LENGTH) % 2, settled, own_item(user)) if user % 2 else settled


def record(user: int, version: int) -> UserRecord:
    """Return a user's record, always of the same revision, so that only an invalidation tells of a change."""
    version *= 1 - user % 2
    features = {"country": (user + version) % 8, "age": 25.0 + 3 * user + 10 * version}
    return UserRecord(features, IDS[history(user, version)], np.zeros(LENGTH, np.int32))


def base_of(user: int) -> int:
    """Return the user whose record a user has. Those past `USERS` are guests, new to the engine."""
    return user if user < USERS else user % (USERS // 2) * 2


def digests(table: RowTable) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of the row of each item, uint64 ``[n]``, and its flag: 1 if it is hidden, 2 if absent."""
    columns, found = table.gather(IDS)
    rankable = columns.pop("rankable", np.ones((ITEMS, 1), np.uint8))[:, 0]
    rows = np.concatenate([columns[name].reshape(ITEMS, -1).view(np.uint8) for name in sorted(columns)], 1)
    hashes = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(hashes, np.uint64), np.where(found, 1 - rankable, 2)


def prepare(folder: Path, number: int) -> None:
    """Export the bundle of a generation, whose number seeds its weights, and write what is right of it."""
    built = build(dataclasses.replace(SMALL, items=ITEMS, k=K), folder, weights=number)
    given = built.source
    source = {
        "category": np.array(given.columns["category"]),
        "price": given.columns["price"],
        "content": given.content,
    }
    right: dict[str, np.ndarray] = {}
    for kind in KINDS:
        looks = [items(source, np.arange(ITEMS), version) for version in range(VERSIONS)]
        tables = [kind.build(built.bundle, one.ids, one.columns, one.content) for one in looks]
        right[kind.kind] = np.stack([digests(table)[0] for table in tables])
    np.savez(folder / "right.npz", scores=_scores(built, source), **right, **source)


def _scores(built: Built, source: Source) -> np.ndarray:
    """Return the scores of all items in all versions by the unfolded model, float32 ``[rows, V, ITEMS]``."""
    schema, config, n = built.model.schema, built.model.config, ITEMS * VERSIONS
    looks = items(source, np.tile(np.arange(ITEMS), VERSIONS), np.repeat(np.arange(VERSIONS), ITEMS))
    encoded = {
        **schema.encode("item", looks.columns, n),
        "content": looks.content,
        "has_content": np.ones((n, 1), np.float32),
    }
    catalogue = {name: jax.device_put(column) for name, column in add_signatures(config, encoded).items()}
    score, (graph, state) = score_of(config, schema), nnx.split(built.model)

    @jax.jit
    def program(state: Any, catalogue: Any, batch: Any) -> jax.Array:
        return score(nnx.merge(graph, state)(batch, catalogue, train=False)[0], {})

    context = schema.encode_one("context", CONTEXT).items()
    pair = schema.encode("pair", {"retrieval_score": np.tile(PAIR, VERSIONS)}, n).items()
    shared = {
        "item": np.arange(n, dtype=np.int32)[None], "pair": {name: column[None] for name, column in pair},
        "context": {name: np.broadcast_to(value, (1, n, *value.shape)) for name, value in context},
    }  # fmt: skip

    def row(user: int, version: int, rung: int) -> np.ndarray:
        seen, types = history(user, version), np.zeros((1, LENGTH), np.int32)
        seen = np.where(seen < MOVING, seen + version * ITEMS, seen).astype(np.int32)[None]
        features = schema.encode_one("user", record(user, version).features).items()
        batch = {
            "user": {name: np.asarray(value)[None] for name, value in features}, **shared,
            "long_item": seen, "short_item": seen[:, : config.short_length],
            "long_type": types, "short_type": types[:, : config.short_length],
        }  # fmt: skip
        with jax.default_matmul_precision("highest"):
            found = program(state, catalogue, known(schema, batch, rung))
        return np.asarray(found, np.float32).reshape(VERSIONS, ITEMS)

    users = [(user, version) for user in range(USERS) for version in range(VERSIONS)]
    return np.stack(
        [row(*user, rung) for rung in (0, 1) for user in users] + [row(0, 0, rung) for rung in (2, 3)]
    )
