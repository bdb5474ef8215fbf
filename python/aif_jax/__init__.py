"""AIF: asynchronous inference for pre-ranking, in JAX with a Rust extension.

The names here are what serving needs; `aif_jax.data` loads interaction logs and `aif_jax.training` trains.
"""

from aif_jax._native import EmbeddingCache, RowLayout, Scheduler
from aif_jax.bundle import Bundle, export_bundle
from aif_jax.config import ModelConfig
from aif_jax.errors import AifError
from aif_jax.features import Categorical, ContentSpace, Hashing, MultiValued, Numeric, Schema, Vocabulary
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables, build_tables
from aif_jax.serving import Engine, EngineConfig, Filters, PublishChecks, Ranking, Report
from aif_jax.types import Candidates, ItemRecords, Request, UserRecord

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
    "export_bundle",
]
