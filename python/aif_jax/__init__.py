"""AIF: asynchronous inference for pre-ranking, in JAX with a Rust extension.

What serving needs is imported at once; the names that read logs and train are imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from aif_jax._native import EmbeddingCache, RowLayout, Scheduler
from aif_jax.bundle import Bundle, export, export_bundle
from aif_jax.config import ModelConfig
from aif_jax.errors import AifError
from aif_jax.features import Categorical, ContentSpace, Hashing, MultiValued, Numeric, Schema, Vocabulary
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables, build_tables
from aif_jax.serving import Engine, EngineConfig, Filters, PublishChecks, Ranking, Report
from aif_jax.types import Candidates, ItemRecords, Request, UserRecord

if TYPE_CHECKING:
    from aif_jax.data import Dataset as Dataset
    from aif_jax.data import Negatives as Negatives
    from aif_jax.data import by_column as by_column
    from aif_jax.data import by_time as by_time
    from aif_jax.data import by_user as by_user
    from aif_jax.data import last_n as last_n
    from aif_jax.fitting import Run as Run
    from aif_jax.fitting import fit as fit
    from aif_jax.models.contract import Functions as Functions
    from aif_jax.training import TrainConfig as TrainConfig

__all__ = [
    "AifError",
    "BehaviourTable",
    "Bundle",
    "Candidates",
    "Categorical",
    "ContentSpace",
    "EmbeddingCache",
    "Engine",
    "EngineConfig",
    "Filters",
    "Hashing",
    "ItemIndex",
    "ItemRecords",
    "ModelConfig",
    "MultiValued",
    "Numeric",
    "PublishChecks",
    "Ranking",
    "Report",
    "Request",
    "RowLayout",
    "Scheduler",
    "Schema",
    "Tables",
    "UserRecord",
    "Vocabulary",
    "build_tables",
    "export",
    "export_bundle",
]

LATER = {
    **dict.fromkeys(("Dataset", "Negatives", "by_column", "by_time", "by_user", "last_n"), "aif_jax.data"),
    **dict.fromkeys(("Run", "fit"), "aif_jax.fitting"),
    "Functions": "aif_jax.models.contract",
    "TrainConfig": "aif_jax.training",
}
"""Further public names by the package that has them: imported when they are used, as some need an extra."""


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
