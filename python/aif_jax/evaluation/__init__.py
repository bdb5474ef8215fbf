"""Evaluation of a trained model or a bundle on a data set: metrics with errors, calibration, slices, floors.

Needs the extra ``aif_jax[train]``; pictures need matplotlib.
"""

from aif_jax.evaluation.evaluation import Bin as Bin
from aif_jax.evaluation.evaluation import Evaluation as Evaluation
from aif_jax.evaluation.evaluation import HeadEvaluation as HeadEvaluation
from aif_jax.evaluation.evaluation import Reference as Reference
from aif_jax.evaluation.evaluation import SliceEvaluation as SliceEvaluation
from aif_jax.evaluation.evaluation import evaluate_model as evaluate_model
from aif_jax.evaluation.paired import Estimate as Estimate
from aif_jax.evaluation.paired import PairedBootstrap as PairedBootstrap
from aif_jax.evaluation.pictures import picture as picture
from aif_jax.evaluation.scoring import Scorer as Scorer
from aif_jax.evaluation.scoring import open_scorer as open_scorer
