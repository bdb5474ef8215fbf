"""The sequential way in JAX: after retrieval, item tower, exact attention and SimTier in one compiled call.

The model has the widths and weights of the one that the stage serves; its attention over the long sequence
is softmax attention, as in the `exact` architecture. It is given what a sequential server can have: the
catalogue's encoded features on the device, positions instead of ids, one call, the first layer as one
product, and each part in the fastest form that we found in pure XLA.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.features.score import score_of
from aif_jax.models.aif import Aif
from aif_jax.models.blocks.base import Candidates, UserSide
from aif_jax.models.blocks.long_attention import LongAttention, linear_attention, softmax_attention
from aif_jax.models.blocks.simtier import SimTier
from aif_jax.models.signature import edges_of
from stage.request import Case, device_catalogue
from stage.timing import Contender
from stage.xla_simtier import Way, reference

Attention: TypeAlias = Literal["exact", "exact, as defined", "linear"]

SHARPNESS = 8.0
"""Inverse temperature of the softmax: what the `exact` architecture starts with."""

_BLOCK = 1024


class SequentialModel:
    """The unfolded model with one kind of attention and one way of SimTier."""

    def __init__(self, case: Case, attention: Attention, simtier: Way):
        self.case = case
        model = case.built.model
        variant = _variant(case, attention, simtier)
        # The variant has the same parameters; only their values are taken from the model.
        self.graph, _ = nnx.split(
            nnx.eval_shape(lambda: variant(model.config, model.schema, rngs=nnx.Rngs(0)))
        )
        self.state = nnx.split(model)[1]
        self.score = score_of(model.config, model.schema)

    def user_side(self, state: Any, catalogue: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> UserSide:
        """Return the user side of one user, before anything is multiplied out."""
        model = nnx.merge(self.graph, state)
        return model.user_side(*model.read(batch, catalogue)[:5], {})

    def rank(
        self,
        state: Any,
        catalogue: Mapping[str, jax.Array],
        side: UserSide,
        positions: jax.Array,
        context: Mapping[str, jax.Array],
        pair: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Return positions ``[k]`` of the best candidates and their scores ``[k]``."""
        model = nnx.merge(self.graph, state)
        first = model.first
        items = model.items_at(catalogue, positions)
        e = model.item(items)
        rows, pair = ({name: column[None] for name, column in group.items()} for group in (items, pair))
        candidates = Candidates(e[None], rows, context, pair)
        blocks = {name: x[0] for name, (x, _) in model.block_inputs(candidates, side).items()}
        names = [name for name in blocks if name != "context"]
        left = jnp.concatenate([e, *(blocks[name] for name in names)], axis=1)
        right = jnp.concatenate([first.item.kernel[...], *(first.weight(name) for name in names)], axis=0)
        shared = first.user(side.vector)[0]
        shared += first.contribution("context", *first.features("context", context))
        scores = self.score(model.heads(left @ right + shared), {})
        best, order = jax.lax.top_k(scores, self.case.k)
        return order, best

    def rank_whole(
        self, state: Any, catalogue: Any, batch: Any, *request: Any
    ) -> tuple[jax.Array, jax.Array]:
        return self.rank(state, catalogue, self.user_side(state, catalogue, batch), *request)

    def rank_as_defined(self, state: Any, catalogue: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(self.graph, state)(batch, catalogue, train=False)[0]
        best, order = jax.lax.top_k(self.score(logits, {}), self.case.k)
        return order, best


def _variant(case: Case, attention: Attention, simtier: Way) -> type[Aif]:
    edges = edges_of(case.built.model.config)

    class OtherAttention(LongAttention):
        def attention(self, model: Any, item: Any, side: UserSide) -> jax.Array:
            operands = (item["content"], side.long["content"], side.value, side.counted)
            if attention == "linear":
                found = linear_attention(*operands)
            elif attention == "exact, as defined":
                found = softmax_attention(*operands[:3], side.counted[:, None], jnp.float32(SHARPNESS))
            else:
                found = blocked_attention(*(array[0] for array in operands))[None]
            return found * item["has_content"]

    class OtherSimTier(SimTier):
        def counts(self, item: Any, side: UserSide) -> jax.Array:
            counts = simtier(item["signature"][0], side.long["signature"][0], side.channel[0] == 0, edges)
            return counts[None, :, None]

    class Variant(Aif):
        """The unfolded model with other ways to compute two of its blocks."""

        instead = (OtherAttention, OtherSimTier)

    return Variant


def blocked_attention(
    content: jax.Array, theirs: jax.Array, value: jax.Array, counted: jax.Array
) -> jax.Array:
    """Return `softmax_attention` ``[N, d_v]`` of one user, for 1,024 candidates at a time, divided last."""

    def block(own: jax.Array) -> jax.Array:
        logits = jnp.where(counted, SHARPNESS * (own @ theirs.T), -1e30)
        weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
        return (weights @ value) / jnp.sum(weights, axis=1, keepdims=True)

    n, width = content.shape
    size = _BLOCK if n % _BLOCK == 0 else n
    return jax.lax.map(block, content.reshape(-1, size, width)).reshape(n, -1)


def sequential(case: Case, simtier: Way, name: str) -> Contender:
    """Return the sequential way with exact attention: user side included, all in one call."""
    model = SequentialModel(case, "exact", simtier)
    catalogue, batch = device_catalogue(case.built), case.batch()
    program = jax.jit(model.rank_whole)

    def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
        request = case.positions[turn], case.context, case.pair[turn]
        return ready(program(model.state, catalogue, batch, *request))

    return Contender(name, run)


def as_defined(case: Case, attention: Literal["exact, as defined", "linear"]) -> Contender:
    """Return the model's own definition, products in full precision; answers are checked against it."""
    model = SequentialModel(case, attention, reference)
    catalogue = device_catalogue(case.built)
    program = jax.jit(model.rank_as_defined)

    def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
        with jax.default_matmul_precision("highest"):
            return ready(program(model.state, catalogue, case.batch(turn)))

    return Contender(f"definition, {attention}", run)


def ready(results: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Return results as arrays in memory, which waits for them."""
    order, scores = results
    return np.asarray(order), np.asarray(scores)
