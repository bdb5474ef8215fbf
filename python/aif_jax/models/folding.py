"""The folded form: what belongs to one side multiplied out on that side; equal to the unfolded form.

Every block but SimTier enters the first layer linearly, so that at request time there is left

    H = h_i + h_u + h_c + [e_i, w_i, m_i, v_i, slots_i] · [M_u; G_u'] + tiers W_t + x_ui W_p
        (+ Σ_g table_u[g, s_i[g]] for `sign` and `collision` attention)

The functions are pure and take the weights first, a flat dictionary; see `ServedModel`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.config import PRIOR, ModelConfig, Precision
from aif_jax.errors import ConfigError
from aif_jax.features import Schema
from aif_jax.kernels import Form, Operands, cached_interaction, interaction
from aif_jax.models.baselines import Model, TwoTower
from aif_jax.models.blocks.base import Arrays
from aif_jax.models.folded_shapes import FoldedShapes
from aif_jax.models.folded_weights import FoldedWeights, calibration_weights, constants, path_name
from aif_jax.models.layers import as_arrays
from aif_jax.models.precision import narrow_rows, narrow_state, state_dtype, widen_rows, widen_state
from aif_jax.models.served import Program, ServedModel, zeros_of
from aif_jax.models.signature import signature_of
from aif_jax.types import Columns


class Folded(FoldedShapes, ServedModel):
    """A model in its folded form.

    Args:
        config: the model's config; not of the ``exact`` architecture.
        schema: its fitted schema.
        weights: what `fold` made of a trained model, or arrays of the same names and shapes from elsewhere.
        precision: of item rows and user states, see `aif_jax.models.precision`; weights stay float32.
        model: see `FoldedWeights`.

    Raises:
        ConfigError: the architecture does not fold, weights are missing, unknown or of another shape, or
            there is no such precision.

    Attributes, besides those of `FoldedShapes`:
        weights: arrays by name, sorted: the modules' parameters under their path (``heads.out.kernel``), and
            ``signature.planes`` ``[d_m, b]`` (simhash), the constants of blocks, ``calibration.scale`` and
            ``calibration.offset`` ``[n_heads]``.
    """

    def __init__(
        self,
        config: ModelConfig,
        schema: Schema,
        weights: Mapping[str, np.ndarray],
        precision: Precision = "float32",
        model: Model | None = None,
    ) -> None:
        _check_foldable(config)
        super().__init__(config, schema, precision)
        self._weights = FoldedWeights(self, model)
        self.weights = {name: np.asarray(weights[name]) for name in sorted(weights)}
        self.source = config.to_json()
        self._weights.check(self.weights)

    def weights_of(self, program: Program) -> dict[str, np.ndarray]:
        """Return the weights that one program reads, by name, sorted."""
        return {name: self.weights[name] for name in self._weights.names(program)}

    def behaviour(self, weights: Columns, item_inputs: Columns) -> dict[str, jax.Array]:
        """Return what the user side needs of items that appear in histories; see `ServedModel.behaviour`.

        Returns:
            Those that the model needs of ``token`` ``[M, d]``, ``value`` ``[M, d_v]``, ``content``
            ``[M, d_m]``, ``has_content`` ``[M, 1]``, ``signature`` uint8 ``[M, signature_bytes]`` and
            ``category`` int32 ``[M, C]``.
        """
        weights, items = as_arrays(weights), as_arrays(item_inputs)
        columns = self._weights.model(weights).item.behaviour(items)
        return columns | self._frozen(weights, items, self.behaviour_columns)

    def item(self, weights: Columns, item_inputs: Columns) -> dict[str, jax.Array]:
        """Return item rows; see `ServedModel.item`.

        Returns:
            ``h`` ``[M, h]`` and the ``row_columns`` of each block, in the precision, with their ``scale`` for
            int8. And ``prior`` float32 ``[M, n_heads]`` in every precision: the calibrated logits for a user
            of whom nothing is known, context and pair features missing.
        """
        weights, items = as_arrays(weights), as_arrays(item_inputs)
        model = self._weights.model(weights)
        e = model.item(items)
        columns = {"e": e} if "e" in self.item_columns else {}
        if not isinstance(model, TwoTower):
            h = model.first.item(e)
            for block in model.inputs:
                own = block.row(model, e, items)
                h = _plus(h, own.pop("h", None))
                columns |= own
            columns["h"] = h
        columns |= self._frozen(weights, items, self.item_columns)
        return narrow_rows(self.precision, columns) | {PRIOR: self._prior(weights, columns)}

    def user(
        self,
        weights: Columns,
        user_inputs: Columns,
        short: Columns,
        short_type: jax.Array,
        long: Columns,
        long_type: jax.Array,
    ) -> dict[str, jax.Array]:
        """Return user states.

        Args:
            weights: of the program ``user``.
            user_inputs: encoded user features ``[B, ...]``.
            short: ``token`` of the short sequence's behaviours ``[B, S, d]``, most recent first; empty if the
                model does not read it.
            short_type: int32 ``[B, S]``; -1 where there is no behaviour, or the table does not know its item.
            long: the other behaviour columns of the long sequence ``[B, L, ...]``, most recent first, and
                ``gap`` int32 ``[B, L]`` of a model that reads it, see `aif_jax.features.gaps.gap_steps`.
            long_type: int32 ``[B, L]``, as ``short_type``.

        Returns:
            ``h_u`` ``[B, h]``; ``M`` ``[B, rows, h]``, factors of `factored` in this order; and the entries
            of each block, see its ``state_columns``. Or ``vector`` ``[B, d, n_heads]`` alone, of a two-tower
            model. ``M`` and what blocks narrow is bfloat16 in the reduced precisions.
        """
        state = self._user(weights, user_inputs, short, short_type, long, long_type)
        return narrow_state(state, self.state_spec(long_type.shape[1]))

    def extend(
        self,
        weights: Columns,
        user_inputs: Columns,
        short: Columns,
        short_type: jax.Array,
        long: Columns,
        long_type: jax.Array,
        new: jax.Array,
    ) -> dict[str, jax.Array]:
        """Return user states and what to go on from; see `ServedModel.extend`."""
        state = self._user(weights, user_inputs, short, short_type, long, long_type, new=jnp.asarray(new))
        kept = {name: state.pop(name) for name in self.kept_columns}
        return narrow_state(state, self.state_spec(long_type.shape[1])) | kept

    def _user(self, weights: Columns, *inputs: Any, new: Any = None) -> dict[str, jax.Array]:
        """Return user states, all of them float32; inputs as of `user` or `extend`."""
        model = self._weights.model(as_arrays(weights))
        user, short, short_type, long, long_type = inputs
        side = model.user_side(
            as_arrays(user), as_arrays(short), short_type, as_arrays(long), long_type, {}, new=new
        )
        if isinstance(model, TwoTower):
            return {"vector": model.head_vectors(side.vector)}
        shared, factors, state = model.first.user(side.vector), {}, {}
        for block in model.inputs:
            own = block.state(model, side)
            shared = _plus(shared, own.pop("h_u", None))
            if "M" in own:
                factors[block.factored] = _plus(own.pop("M"), factors.get(block.factored))
            state |= own
        if factors:
            state["M"] = jnp.concatenate([factors[column] for column in self.factored], axis=1)
        return state | {"h_u": shared}

    def _prior(self, weights: Arrays, rows: Arrays) -> jax.Array:
        """Return calibrated logits ``[M, n_heads]`` of float32 rows for a user of whom nothing is known."""
        n = rows["e" if "e" in rows else "h"].shape[0]
        nothing = jnp.full((1, 1), -1, jnp.int32)  # a behaviour that there is not
        token = {name: jnp.zeros((1, 1, self.config.width)) for name in self.short_spec(1)}
        state = self._user(
            weights, zeros_of(self.user_inputs_spec(1)),
            token, nothing, zeros_of(self.long_spec(1, 1)), nothing,
        )  # fmt: skip
        # Of what an empty history leaves, only these are not zero.
        known = {name: state[name][0] for name in ("h_u", "M", "vector") if name in state}
        operands, form = self._interaction(
            weights, known, zeros_of(self.context_spec()), zeros_of(self.pair_spec(n))
        )
        return self._calibrated(weights, interaction(rows, operands, form))

    def interact(
        self, weights: Columns, state: Columns, context: Columns, rows: Columns, pair: Columns
    ) -> jax.Array:
        """Return the calibrated logits of candidates whose rows are given; see `ServedModel.interact`."""
        weights, state = as_arrays(weights), widen_state(as_arrays(state))
        operands, form = self._interaction(weights, state, as_arrays(context), as_arrays(pair))
        rows = widen_rows(self.precision, as_arrays(rows))
        return self._calibrated(weights, interaction(rows, operands, form))

    def cached_interact(
        self, weights: Columns, state: Columns, context: Columns, cached: Columns, pair: Columns
    ) -> tuple[jax.Array, jax.Array]:
        """Return calibrated logits and status by the native kernel; see `ServedModel.cached_interact`."""
        weights = as_arrays(weights)
        operands, form = self._interaction(weights, as_arrays(state), as_arrays(context), as_arrays(pair))
        index, missing, ids, count = (jnp.asarray(cached[n]) for n in ("index", "missing", "ids", "count"))
        logits, status = cached_interaction(index, missing, ids, count, operands, form)
        return self._calibrated(weights, logits), status

    def _interaction(
        self, weights: Arrays, state: Arrays, context: Arrays, pair: Arrays
    ) -> tuple[Operands, Form]:
        """Return what is left of the model once user and context are known."""
        model = self._weights.model(weights)
        if isinstance(model, TwoTower):
            return Operands(model.bias[...], state["vector"]), Form(factored=self.factored)
        shared, operands, form = state["h_u"], {}, {}
        for block in model.inputs:
            if block.state_columns(1).keys() <= state.keys():
                own = block.operands(model, weights, state, context, pair)
                shared = _plus(shared, own.pop("shared", None))
                operands |= own
                form |= block.form
        if "table" in operands:
            operands["table"] = operands["table"].astype(state_dtype(self.precision))
        operands |= {"factors": state.get("M"), "layers": model.heads.layers()}
        return Operands(shared, **operands), Form(self.factored, **form)

    def _calibrated(self, weights: Arrays, logits: jax.Array) -> jax.Array:
        model = self._weights.model(weights)
        if model.train_only is not None:
            logits += model.train_only.absent[...]
        return logits * weights["calibration.scale"] + weights["calibration.offset"]

    def _frozen(self, weights: Arrays, items: Arrays, columns: Mapping[str, Any]) -> dict[str, jax.Array]:
        frozen = {name: items[name] for name in ("content", "has_content") if name in columns}
        if "signature" in columns:
            planes = weights.get("signature.planes")
            frozen["signature"] = signature_of(self.config, items["content"], planes)
        if "category" in columns:
            frozen["category"] = self.schema.category_ids(items)
        return frozen


def fold(
    model: Model,
    *,
    score: str | None = None,
    calibration: Mapping[str, tuple[float, float]] | None = None,
    precision: Precision = "float32",
) -> Folded:
    """Return a model in its folded form.

    Args:
        model: a trained model, of any architecture but ``exact``.
        score: another score expression than the model's; training does not depend on it.
        calibration: ``(scale, offset)`` by head, applied to its logit at serving; (1, 0) where not given.
        precision: of item rows and user states, see `aif_jax.models.precision`.

    Raises:
        ConfigError: the architecture does not fold, ``score`` is not an expression over heads and pair
            features, ``calibration`` names an unknown head, or there is no such precision.
    """
    config, schema = model.config if score is None else model.config.replace(score=score), model.schema
    _check_foldable(config)
    shapes = FoldedShapes(config, schema)
    extra = constants(shapes) | calibration_weights(config.heads, calibration or {})
    _, state = nnx.split(model)
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    weights = {path_name(path): np.asarray(leaf) for path, leaf in named} | extra
    wanted = FoldedWeights(shapes, model).expected
    return Folded(config, schema, {name: weights[name] for name in wanted}, precision, model)


def _check_foldable(config: ModelConfig) -> None:
    if config.architecture == "exact":
        raise ConfigError(
            "architecture 'exact' does not fold: its attention depends on user and item together, so nothing "
            "can be computed ahead of the request. Train architecture='aif' to serve; 'exact' is a yardstick."
        )


def _plus(total: jax.Array, term: jax.Array | None) -> jax.Array:
    return total if term is None else total + term
