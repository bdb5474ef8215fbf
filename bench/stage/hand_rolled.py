"""The alternative that a good engineer writes without this project: cached folded towers, the best pure XLA.

The folded item rows of the whole catalogue lie on the device, floats in one array and the rest in others; a
request takes its rows by position, adds the folded user side, counts tiers, runs the small MLP and takes the
best, all in one compiled call. The user side is done beforehand. There are no ids to look up, no rows to
replace while requests run, and no version of the model that a row belongs to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.models.signature import edges_of
from stage.request import FIRST_CATEGORY, Case
from stage.sequential import ready
from stage.staged import Stage
from stage.timing import Contender
from stage.xla_simtier import Way
from workload import Built

FACTORED = ("e", "bridge", "content")


class Rows(NamedTuple):
    """The folded catalogue: ``floats`` ``[items, h + d + n + d_m]``, signatures and categories."""

    floats: jax.Array
    signature: jax.Array
    category: jax.Array


_ROWS: dict[int, Rows] = {}


def catalogue_rows(built: Built) -> Rows:
    """Return the item rows of the whole catalogue by position, computed once for each workload."""
    key = id(built.tables.items)
    if key not in _ROWS:
        columns, found = built.tables.items.gather(built.source.ids)
        assert found.all()
        floats = np.concatenate([columns[name] for name in ("h", *FACTORED)], axis=1)
        _ROWS[key] = Rows(*map(jax.device_put, (floats, columns["signature"], columns["category"])))
    return _ROWS[key]


def slots_of(category: jax.Array, sim_category: jax.Array) -> jax.Array:
    """Return how items' categories ``[N, C]`` average the user's slots ``[C_max]``: ``[N, C_max]``."""
    real = category >= FIRST_CATEGORY
    hits = (category[:, :, None] == sim_category) & real[:, :, None]
    given = jnp.maximum(jnp.sum(real, axis=1, dtype=jnp.float32), 1.0)
    return jnp.sum(hits, axis=1, dtype=jnp.float32) / given[:, None]


def hand_rolled(case: Case, simtier: Way, stage: Stage, name: str = "hand-rolled") -> Contender:
    """Return the alternative in one compiled call, with the stage's own user state and weights."""
    scores, operands = hand_rolled_scores(case, simtier, stage)

    @jax.jit
    def program(*given: Any) -> tuple[jax.Array, jax.Array]:
        best, order = jax.lax.top_k(scores(*given), case.k)
        return order, best

    def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
        return ready(program(*operands, case.positions[turn], case.context, case.pair[turn]))

    return Contender(name, run)


def hand_rolled_scores(
    case: Case, simtier: Way, stage: Stage
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """Return the scores as a function, and those of its operands that are the same for every request."""
    rows, weights = catalogue_rows(case.built), dict(case.built.bundle.weights)
    state = {path.removeprefix("state/"): jnp.asarray(leaf)[0] for path, leaf in stage.state.items()}
    edges, hidden = edges_of(case.built.bundle.config), case.built.bundle.config.hidden

    def scores(
        weights: Any, rows: Rows, state: Any, positions: jax.Array, context: Any, pair: Any
    ) -> jax.Array:
        floats, signature, category = (jnp.take(column, positions, axis=0, mode="clip") for column in rows)
        slots = slots_of(category, state["sim_category"])
        counts = simtier(signature, state["signature"], state["channel"] == 0, edges)
        tiers = counts.astype(jnp.float32) / jnp.maximum(state["tier_length"], 1.0)
        page = jnp.take(weights["first.embed_context.table_page"], context["page"], axis=0, mode="clip")
        left = jnp.concatenate([floats[:, hidden:], slots, tiers, pair["retrieval_score"]], axis=1)
        right = jnp.concatenate(
            [state["M"], state["sim"], weights["first.simtier.kernel"], weights["first.pair.kernel"]], axis=0
        )
        shared = state["h_u"] + page @ weights["first.context.kernel"]
        x = jax.nn.relu(floats[:, :hidden] + left @ right + shared)
        x = jax.nn.relu(x @ weights["heads.layer_0.kernel"] + weights["heads.layer_0.bias"])
        logits = x @ weights["heads.out.kernel"] + weights["heads.out.bias"]
        return jax.nn.sigmoid(logits[:, 0])

    return scores, (weights, rows, state)
