"""Training: one loop for every architecture, metrics, floors, and tested settings.

Needs the extra ``aif_jax[train]``.
"""

from aif_jax.extras import needs

needs("optax", "orbax.checkpoint", "grain", what=__name__)

from aif_jax.training.allocator import keep_freed_memory as keep_freed_memory
from aif_jax.training.candidates import CandidateLists as CandidateLists
from aif_jax.training.candidates import candidate_lists as candidate_lists
from aif_jax.training.choosing import Choice as Choice
from aif_jax.training.choosing import choose as choose
from aif_jax.training.config import TrainConfig as TrainConfig
from aif_jax.training.evaluate import Evaluator as Evaluator
from aif_jax.training.evaluate import HeadMetrics as HeadMetrics
from aif_jax.training.evaluate import Metrics as Metrics
from aif_jax.training.evaluate import evaluate as evaluate
from aif_jax.training.evaluate import predict as predict
from aif_jax.training.feed import can_sample as can_sample
from aif_jax.training.floors import floor_scores as floor_scores
from aif_jax.training.floors import floors as floors
from aif_jax.training.loop import Epoch as Epoch
from aif_jax.training.loop import TrainResult as TrainResult
from aif_jax.training.loop import train as train
from aif_jax.training.presets import REFIT as REFIT
from aif_jax.training.presets import WHOLE_REQUESTS as WHOLE_REQUESTS
from aif_jax.training.presets import preset as preset
from aif_jax.training.two_tower import two_tower as two_tower
from aif_jax.training.warm_start import WarmStart as WarmStart
