"""COLD (arXiv 2007.16122) in JAX: a small model over all features, run whole for every request.

No long sequence and no bridges; item tower of every candidate and user side computed when the candidates are
there, in one compiled call, item features already on the device. The weights are its own.
"""

import jax
import numpy as np
from flax import nnx

from aif_jax.features.score import score_of
from aif_jax.models import build_model
from stage.request import Case, device_catalogue
from stage.sequential import ready
from stage.timing import Contender


def cold(case: Case) -> tuple[Contender, Contender]:
    """Return COLD, and the same in the highest matmul precision, which its answers are checked against."""
    config = case.built.model.config.replace(architecture="cold")
    model = build_model(config, case.built.bundle.schema, seed=case.built.workload.seed)
    graph, state = nnx.split(model)
    score = score_of(config, case.built.bundle.schema)
    catalogue = device_catalogue(case.built)
    context = {n: np.broadcast_to(value, (1, case.n, *value.shape)) for n, value in case.context.items()}

    def program(state: nnx.State, catalogue: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        scores = score(nnx.merge(graph, state)(batch, catalogue, train=False)[0], {})
        best, order = jax.lax.top_k(scores, case.k)
        return order, best

    def contender(name: str, program: jax.stages.Wrapped) -> Contender:
        def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
            request = {
                "item": case.positions[turn][None],
                "context": context,
                "pair": {name: column[None] for name, column in case.pair[turn].items()},
            }
            return ready(program(state, catalogue, {**case.batch(), **request}))

        return Contender(name, run)

    def precisely(*operands: object) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest"):
            return program(*operands)  # type: ignore[arg-type]

    return contender("cold", jax.jit(program)), contender("definition, cold", jax.jit(precisely))
