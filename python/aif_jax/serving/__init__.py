"""Serving: one engine round a bundle and its tables."""

from aif_jax.features import Filters as Filters
from aif_jax.nearline import Coverage as Coverage
from aif_jax.serving.config import EngineConfig as EngineConfig
from aif_jax.serving.config import ItemRows as ItemRows
from aif_jax.serving.config import MissingItems as MissingItems
from aif_jax.serving.config import Shapes as Shapes
from aif_jax.serving.config import Threads as Threads
from aif_jax.serving.config import UserStateCache as UserStateCache
from aif_jax.serving.engine import Engine as Engine
from aif_jax.serving.observer import Failure as Failure
from aif_jax.serving.observer import Observer as Observer
from aif_jax.serving.publish import GoldenRequest as GoldenRequest
from aif_jax.serving.publish import Publication as Publication
from aif_jax.serving.publish import PublishChecks as PublishChecks
from aif_jax.serving.report import Ranking as Ranking
from aif_jax.serving.report import Report as Report
from aif_jax.serving.report import Served as Served
from aif_jax.serving.report import Span as Span
from aif_jax.serving.report import Task as Task
from aif_jax.serving.request import Pending as Pending
from aif_jax.serving.shadow import Shadow as Shadow
from aif_jax.user_sources import BatchedUsers as BatchedUsers
from aif_jax.user_sources import InMemoryUsers as InMemoryUsers
