"""Workloads: a model with random weights, a catalogue, a user; all of it follows from sizes and a seed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.config import ModelConfig
from aif_jax.features import Categorical, Hashing, MultiValued, Numeric, Schema
from aif_jax.models import add_signatures, build_model
from aif_jax.models.aif import Aif
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.types import UserRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    items: int = 100_000  # of the catalogue
    candidates: int = 4096  # N
    short_length: int = 100  # S
    long_length: int = 1024  # L
    k: int = 500  # results
    seed: int = 0  # of everything random
    config: ModelConfig = dataclasses.field(
        default_factory=lambda: ModelConfig(
            width=64, hidden=128, head_layers=(64,), item_layers=(128,), content_width=64, value_width=64,
            bridges=16, short_length=100, long_length=1024,
        )
    )  # fmt: skip


PRECISIONS = ("float32", "bfloat16", "int8")

FIRST_ID = 2**40
"""Ids start past what 32 bits hold."""

W = Workload()
"""The project's standard sizes, with a catalogue of 100,000 items (the design's has 1,000,000)."""


SMALL = dataclasses.replace(
    W, items=3000, candidates=256, short_length=20, long_length=128, k=50,
    config=W.config.replace(short_length=20, long_length=128),
)  # fmt: skip
"""Every part of the standard workload, and little of each."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Inputs of a workload's tables: ids, raw item features and content embeddings."""

    ids: np.ndarray
    columns: dict[str, Any]
    content: np.ndarray


@dataclasses.dataclass(frozen=True)
class Built:
    """A workload with everything in memory.

    The behaviour table holds the items of the user's history, which is all that is ever read of it here.
    """

    workload: Workload
    model: Aif
    catalogue: dict[str, np.ndarray]
    user: UserRecord
    candidates: np.ndarray
    pair: dict[str, np.ndarray]
    source: Source
    bundle: Bundle
    tables: Tables


def build(workload: Workload, folder: Path, weights: int | None = None) -> Built:
    """Build model, bundle, index, behaviour table and one user with a full history.

    The weights are of another seed if one is given; all else is the same.
    """
    rng = np.random.default_rng(workload.seed)
    n, config = workload.items, workload.config
    schema = Schema(
        user=(Categorical(name="country", encoder=Hashing(buckets=64)), Numeric(name="age")),
        item=(
            Categorical(name="item", encoder=Hashing(buckets=50_000)),
            MultiValued(name="category", max_values=4, encoder=Hashing(buckets=512)),
            Numeric(name="price"),
        ),
        behaviour_types=("click",),
        context=(Categorical(name="page", encoder=Hashing(buckets=8)),),
        pair=(Numeric(name="retrieval_score"),),
        category="category",
        item_id="item",
    )
    ids = np.arange(n, dtype=np.uint64) + np.uint64(FIRST_ID)
    columns = {
        "item": np.arange(n),
        "category": rng.integers(0, 300, (n, 2)).tolist(),
        "price": rng.normal(size=n).astype(np.float32),
    }
    schema = schema.fit(
        user={"country": np.arange(8), "age": rng.normal(40, 10, 100)},
        item=columns,
        context={"page": np.arange(4)},
        pair={"retrieval_score": rng.normal(size=100)},
    )
    content = rng.normal(size=(n, config.content_width)).astype(np.float32)
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    model = build_model(config, schema, seed=workload.seed if weights is None else weights)
    assert isinstance(model, Aif)
    catalogue = {
        **schema.encode("item", columns, n),
        "content": content,
        "has_content": np.ones((n, 1), np.float32),
    }
    history = rng.integers(0, n, workload.long_length)
    user = UserRecord(
        features={"country": 3, "age": 30.0}, items=ids[history], types=np.zeros(len(history), np.int32)
    )
    catalogue = {name: np.asarray(column) for name, column in add_signatures(config, catalogue).items()}
    source = Source(ids, columns, content)
    return Built(
        workload=workload, model=model, catalogue=catalogue, user=user, source=source,
        candidates=ids[rng.choice(n, workload.candidates, replace=False)],
        pair={"retrieval_score": rng.normal(size=workload.candidates).astype(np.float32)},
        **_served(model, source, user, workload.k, folder),
    )  # fmt: skip


def with_other_weights(built: Built, seed: int, folder: Path) -> Built:
    model = build_model(built.workload.config, built.model.schema, seed=seed)
    assert isinstance(model, Aif)
    served = _served(model, built.source, built.user, built.workload.k, folder / f"weights-{seed}")
    return dataclasses.replace(built, model=model, **served)


def in_precision(built: Built, precision: str, folder: Path) -> Built:
    """Return a workload whose bundle and tables are of another of the `PRECISIONS`."""
    if precision == "float32":
        return built
    k, folder = built.workload.k, folder / precision
    served = _served(built.model, built.source, built.user, k, folder, precision=precision)
    return dataclasses.replace(built, **served)


def _served(
    model: Aif, source: Source, user: UserRecord, k: int, folder: Path, **options: Any
) -> dict[str, Any]:
    """Export a model and build its tables; return ``bundle`` and ``tables``."""
    bundle = export_bundle(model, folder / "bundle", k_max=k, **options)
    seen = np.unique(user.items) - source.ids[0]
    histories = {name: [column[int(row)] for row in seen] for name, column in source.columns.items()}
    tables = Tables(
        ItemIndex.build(bundle, source.ids, source.columns, source.content),
        BehaviourTable.build(bundle, source.ids[seen], histories, source.content[seen]),
    )
    return {"bundle": bundle, "tables": tables}
