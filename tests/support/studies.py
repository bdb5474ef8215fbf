"""Studies that run in seconds: models of one block, with the weights that they start from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.data import Dataset, load
from aif_jax.data.splits import SPLITS
from aif_jax.evaluation import Study
from aif_jax.evaluation.cost import Cost
from aif_jax.evaluation.variants import Variant
from aif_jax.evaluation.where import where
from aif_jax.features import Schema
from aif_jax.models import build_model
from aif_jax.training import TrainResult

SMALL: dict[str, Any] = {
    "blocks": ("context",), "width": 8, "embedding_width": 4, "hidden": 8, "head_layers": (8,),
    "item_layers": (8,), "short_length": 4, "long_length": 16, "content_width": 32, "signature_bits": 64,
}  # fmt: skip

VARIANTS = {
    "cold": Variant("cold", "wider", {"hidden": 16}),
    "aif": Variant("aif", "as it is", {}),
    "exact": Variant("exact", "wider still", {"hidden": 24}),
}
"""Named as the table wants them; of one architecture, so that little is compiled."""


_SCHEMAS: dict[str, Schema] = {}


def small_dataset() -> Dataset:
    """With several requests of a user in the test part: all of those of every eighth."""
    made = load("synthetic:small", content_width=32)
    rows = made.impressions
    split = np.where(rows.user % 8 == 1, SPLITS["test"], rows.split).astype(np.int8)
    return dataclasses.replace(made, impressions=dataclasses.replace(rows, split=split))


def untrained(config: Any, dataset: Dataset, training: Any, **_: Any) -> TrainResult:
    """Stand in for `train`: the model before its first step."""
    fitted = dataset.fit_schema()
    # Models of one config and schema share compiled programs.
    schema = _SCHEMAS.setdefault(json.dumps(fitted.to_json()), fitted)
    return TrainResult(
        model=build_model(config, schema, seed=training.seed), schema=schema, history=(), metrics=None,
        steps=7, examples_per_s=10.0, compile_s=0.0, parameters=5, encoding={},
    )  # fmt: skip


def make(dataset: Dataset, folder: Path, names: str = "cold,aif", seeds: int = 2, **options: Any) -> Study:
    """Return a study of some of `VARIANTS`; other fields of the model go into ``changes``."""
    changes = options.pop("changes", {})
    return Study(
        dataset, folder, [VARIANTS[name] for name in names.split(",")], seeds=seeds, epochs=1, lists=12,
        candidates=210, changes={**SMALL, **changes}, progress=False, **options,
    )  # fmt: skip


def cost_of(way: str, request: float) -> Cost:
    """Return a cost as `measure_costs` gives it."""
    served = way == "engine"
    return Cost(
        way=way, parameters=77, item_bytes=100 if served else None, user_bytes=2000 if served else None,
        candidates=4096, history=64, rounds=3, stage_ms=(1.0, 1.5, 2.0) if served else None,
        request_ms=(request - 0.5, request, request + 0.5), made=where(),
    )  # fmt: skip
