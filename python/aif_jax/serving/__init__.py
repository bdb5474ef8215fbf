"""Serving: one engine round a bundle, its item index and its behaviour table."""

from aif_jax.serving.config import EngineConfig as EngineConfig
from aif_jax.serving.coverage import Coverage as Coverage
from aif_jax.serving.engine import Engine as Engine
from aif_jax.serving.environment import Check as Check
from aif_jax.serving.environment import check_environment as check_environment
from aif_jax.serving.filters import Filters as Filters
from aif_jax.serving.observer import Failure as Failure
from aif_jax.serving.observer import Observer as Observer
from aif_jax.serving.pending import Pending as Pending
from aif_jax.serving.publishing import GoldenRequest as GoldenRequest
from aif_jax.serving.publishing import Publication as Publication
from aif_jax.serving.report import Ranking as Ranking
from aif_jax.serving.report import Report as Report
from aif_jax.serving.report import Span as Span
from aif_jax.serving.report import Task as Task
from aif_jax.serving.shadow import Shadow as Shadow
from aif_jax.serving.users import InMemoryUsers as InMemoryUsers
