"""The model: user, item and interaction modules, their folded form, and the baselines.

Throughout, ``B`` is requests, ``G`` candidates of one request in training, ``N`` candidates in serving, ``S``
and ``L`` the lengths of the short and the long sequence, ``d`` the width, ``h`` the width of the first
interaction layer. Arrays are float32 unless said otherwise.
"""

from aif_jax.features.score import Score as Score
from aif_jax.models.baselines import build_model as build_model
from aif_jax.models.folding import Folded as Folded
from aif_jax.models.folding import fold as fold
from aif_jax.models.own_model import OwnModel as OwnModel
from aif_jax.models.signature import add_signatures as add_signatures
