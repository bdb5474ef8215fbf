"""The ablation table: many variants of the model on one data set, several seeds each, compared in pairs.

Needs the extra ``aif_jax[train]``.
"""

from aif_jax.evaluation.study import Study as Study
from aif_jax.evaluation.table import markdown as markdown
from aif_jax.evaluation.variants import VARIANTS as VARIANTS
from aif_jax.evaluation.variants import Variant as Variant
