"""One call from a data set to a trained, measured and exported model.

Needs the extra ``aif_jax[train]``.
"""

from aif_jax.fitting.fit_models import fit as fit
from aif_jax.fitting.run import Run as Run
from aif_jax.fitting.stage_budget import StageChoice as StageChoice
from aif_jax.fitting.stage_budget import StageTime as StageTime
from aif_jax.fitting.stage_budget import model_within as model_within
