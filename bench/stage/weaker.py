"""COLD and two towers: other, weaker models, shown for what they cost; their weights are their own.

COLD (arXiv 2007.16122) is a small model over all features, run whole for every request: no long sequence, no
bridges; item tower of every candidate and user side in one compiled call, item features on the device.

Of two towers a score is one dot product of two vectors that were computed beforehand, by brute force over the
candidates, in NumPy and in JAX.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.features.score import score_of
from aif_jax.models import build_model
from stage.request import Case, device_catalogue
from stage.sequential import ready
from stage.timing import Contender

_BATCH = 8192


def cold(case: Case, name: str) -> tuple[Contender, Contender]:
    """Return COLD, and the same in the highest matmul precision, which its answers are checked against."""
    config = case.built.model.config.replace(architecture="cold")
    graph, state = nnx.split(build_model(config, case.built.bundle.schema, seed=case.built.workload.seed))
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

    def precisely(*operands: Any) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest"):
            return program(*operands)

    return contender(name, jax.jit(program)), contender("definition, cold", jax.jit(precisely))


@dataclasses.dataclass(frozen=True)
class TwoTower:
    """Vectors of one case: items float32 ``[items, d]``, user float32 ``[d]``."""

    case: Case
    items: np.ndarray
    user: np.ndarray

    def numpy(self) -> Contender:
        """Return gather, product and partial sort in NumPy."""

        def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
            scores = self.items[self.case.positions[turn]] @ self.user
            best = np.argpartition(scores, -self.case.k)[-self.case.k :]
            order = best[np.argsort(-scores[best], kind="stable")]
            return order, scores[order]

        return Contender("two towers, NumPy", run)

    def jax(self) -> Contender:
        """Return the same as one compiled call, vectors on the device."""
        items, user, k = jax.device_put(self.items), jax.device_put(self.user), self.case.k

        @jax.jit
        def program(items: jax.Array, user: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
            best, order = jax.lax.top_k(jnp.take(items, positions, axis=0, mode="clip") @ user, k)
            return order, best

        return Contender(
            "two towers, JAX", lambda turn: ready(program(items, user, self.case.positions[turn]))
        )

    def definition(self) -> Contender:
        """Return what both are checked against: products in float64 and a full sort."""

        def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
            scores = self.items[self.case.positions[turn]].astype(np.float64) @ self.user
            order = np.argsort(-scores, kind="stable")[: self.case.k]
            return order, scores[order].astype(np.float32)

        return Contender("definition, two towers", run)


def two_tower(case: Case) -> TwoTower:
    """Return the vectors of a case, by a two-tower model with weights of its own."""
    built = case.built
    config = built.model.config.replace(architecture="two_tower")
    model: Any = build_model(config, built.bundle.schema, seed=built.workload.seed)
    graph, state = nnx.split(model)

    @jax.jit
    def of_items(state: nnx.State, columns: Any) -> jax.Array:
        tower: Any = nnx.merge(graph, state)
        return tower.item_vector(columns)

    @jax.jit
    def of_user(state: nnx.State, batch: Any, columns: Any) -> jax.Array:
        tower: Any = nnx.merge(graph, state)
        return tower.user_vector(batch, columns)

    n, parts = built.workload.items, []
    for start in range(0, n, _BATCH):
        rows = np.minimum(np.arange(start, start + _BATCH), n - 1)
        part = of_items(state, {name: column[rows] for name, column in built.catalogue.items()})
        parts.append(np.asarray(part)[: n - start])
    user = np.asarray(of_user(state, case.batch(), device_catalogue(built)))[0]
    return TwoTower(case, np.concatenate(parts), user)
