"""The usual way of serving, as a yardstick: after retrieval, the whole unfolded model in one compiled call.

Nothing is computed ahead: user module, item module of every candidate and interaction all run when the
candidates are there. It is given every advantage that this way can have: item features already on the device,
one compiled program, one call. What AIF saves is measured against this, and what AIF scores must equal it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.features.score import score_of
from aif_jax.kernels import top_k
from aif_jax.models.aif import Aif
from aif_jax.types import Columns


class Sequential:
    """Scores one request at a time with the unfolded model.

    Args:
        model: any model but a two-tower one.
        catalogue: encoded items with ``signature``, see `aif_jax.models.add_signatures`.
        k: how many candidates to keep.
    """

    def __init__(self, model: Aif, catalogue: Columns, *, k: int) -> None:
        graph, self._state = nnx.split(model)
        score = score_of(model.config, model.schema)
        self.raw = score.raw
        self._catalogue = {name: jax.device_put(np.asarray(column)) for name, column in catalogue.items()}

        def program(
            state: Any, catalogue: Columns, batch: Mapping[str, Any], raw: Columns
        ) -> tuple[jax.Array, jax.Array]:
            logits = nnx.merge(graph, state)(batch, catalogue, train=False)[0]
            scores = score(logits, {name: jnp.asarray(column) for name, column in raw.items()})
            best, order = top_k(jnp.where(jnp.asarray(batch["item"])[0] >= 0, scores, -jnp.inf), k)
            return order, best

        self._program = jax.jit(program)

    def __call__(self, batch: Mapping[str, Any], raw: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Score the candidates of one request and return the best.

        Args:
            batch: one request with ``N`` candidates, as the model takes it, ``B`` = 1.
            raw: raw values ``[N]`` of the pair features in `raw`.

        Returns:
            Positions int32 ``[k]`` of the best candidates, best first, and their scores float32 ``[k]``.
        """
        order, best = self._program(self._state, self._catalogue, batch, raw)
        return np.asarray(order), np.asarray(best)
