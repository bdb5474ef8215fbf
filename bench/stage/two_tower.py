"""Two towers: the cheap and weak way out. Another, weaker model: a score is one dot product of two vectors.

Item vectors of the catalogue and the user's vector are computed beforehand, so that a request is gather, dot
products and the best of them, with nothing that looks at user and item together. The weights are its own, as
COLD's are. By brute force over the candidates, in NumPy and in JAX; and by usearch, which takes no
candidates: it looks for the best of all items, which makes it retrieval, and finds most of them, not all.
"""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.models import build_model
from stage.request import Case, device_catalogue
from stage.sequential import ready
from stage.timing import Contender

NUMPY, JAX, ANN = "two towers, NumPy", "two towers, JAX", "two towers, usearch over all items"

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 1024
"""Of usearch's graph: links of a node, breadth while building, breadth while searching."""

_BATCH = 8192


@dataclasses.dataclass(frozen=True)
class TwoTower:
    """Vectors of one case.

    Attributes:
        case: the requests.
        items: float32 ``[items, d]``.
        user: float32 ``[d]``.
    """

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

        return Contender(NUMPY, run)

    def jax(self) -> Contender:
        """Return the same as one compiled call, vectors on the device."""
        items, user, k = jax.device_put(self.items), jax.device_put(self.user), self.case.k

        @jax.jit
        def program(items: jax.Array, user: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
            best, order = jax.lax.top_k(jnp.take(items, positions, axis=0, mode="clip") @ user, k)
            return order, best

        return Contender(JAX, lambda turn: ready(program(items, user, self.case.positions[turn])))

    def definition(self) -> Contender:
        """Return what both are checked against: products in float64 and a full sort."""

        def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
            scores = self.items[self.case.positions[turn]].astype(np.float64) @ self.user
            order = np.argsort(-scores, kind="stable")[: self.case.k]
            return order, scores[order].astype(np.float32)

        return Contender("definition, two towers", run)

    @cached_property
    def _users(self) -> np.ndarray:
        # Else every turn would ask for the same neighbours: users near the first one, ``[TURNS, d]``.
        rng = np.random.default_rng(5)
        spread = 0.3 * np.linalg.norm(self.user) / np.sqrt(len(self.user))
        turns = len(self.case.positions)
        return (self.user + spread * rng.normal(size=(turns, len(self.user)))).astype(np.float32)

    def ann(self) -> Contender:
        """Return usearch over all items: keys are positions in the catalogue, scores are cosines.

        Each vector has one more coordinate, so that the order of cosines is the order of dot products.
        """
        from usearch.index import Index

        norms = np.linalg.norm(self.items, axis=1, keepdims=True)
        vectors = np.concatenate([self.items, np.sqrt(norms.max() ** 2 - norms**2)], axis=1)
        index = Index(
            ndim=vectors.shape[1], metric="cos", dtype="f32", connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD, expansion_search=EXPANSION_SEARCH,
        )  # fmt: skip
        index.add(np.arange(len(vectors), dtype=np.uint64), vectors)

        def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
            found: Any = index.search(np.append(self._users[turn], np.float32(0)), self.case.k)
            return np.asarray(found.keys), 1 - np.asarray(found.distances)

        return Contender(ANN, run)

    def best_of_all(self, turn: int) -> np.ndarray:
        """Return the positions of the best of all items, by dot product: what `ann` looks for."""
        return np.argsort(-(self.items @ self._users[turn]), kind="stable")[: self.case.k]


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

    n = built.workload.items
    parts = []
    for start in range(0, n, _BATCH):
        rows = np.minimum(np.arange(start, start + _BATCH), n - 1)
        part = of_items(state, {name: column[rows] for name, column in built.catalogue.items()})
        parts.append(np.asarray(part)[: n - start])

    @jax.jit
    def of_user(state: nnx.State, batch: Any, columns: Any) -> jax.Array:
        tower: Any = nnx.merge(graph, state)
        return tower.user_vector(batch, columns)

    user = np.asarray(of_user(state, case.batch(), device_catalogue(built)))[0]
    return TwoTower(case, np.concatenate(parts), user)


def recall(tower: TwoTower, ann: Contender) -> float:
    """Return the share of the best of all items that usearch finds.

    Raises:
        AssertionError: it is under 80 %: settings or vectors are wrong.
    """
    shares = []
    for turn in range(len(tower.case.positions)):
        best = tower.best_of_all(turn)
        shares.append(len(np.intersect1d(ann.run(turn)[0], best)) / len(best))
    mean = float(np.mean(shares))
    assert mean >= 0.8, f"{ann.name}: only {mean:.0%} of the best items were found"
    return mean
