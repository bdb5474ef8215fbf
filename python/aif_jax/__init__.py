"""AIF: asynchronous inference for pre-ranking, in JAX with a Rust extension.

The names here are what serving needs; `aif_jax.data` loads interaction logs and `aif_jax.training` trains.
"""

from aif_jax.bundle import Bundle as Bundle
from aif_jax.bundle import export_bundle as export_bundle
from aif_jax.config import ModelConfig as ModelConfig
from aif_jax.errors import AifError as AifError
from aif_jax.features import Categorical as Categorical
from aif_jax.features import Hashing as Hashing
from aif_jax.features import MultiValued as MultiValued
from aif_jax.features import Numeric as Numeric
from aif_jax.features import Schema as Schema
from aif_jax.features import Vocabulary as Vocabulary
from aif_jax.nearline import BehaviourTable as BehaviourTable
from aif_jax.nearline import ItemIndex as ItemIndex
from aif_jax.serving import Engine as Engine
from aif_jax.serving import EngineConfig as EngineConfig
from aif_jax.serving import Ranking as Ranking
from aif_jax.serving import Report as Report
from aif_jax.types import Candidates as Candidates
from aif_jax.types import Request as Request
from aif_jax.types import UserRecord as UserRecord
