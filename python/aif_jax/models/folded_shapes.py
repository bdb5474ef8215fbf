"""Shapes and dtypes of what goes into and out of the folded programs: for row layouts and for export."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from aif_jax.config import PRIOR, ModelConfig, Precision, check_precision
from aif_jax.features import Schema
from aif_jax.features.score import score_of
from aif_jax.models.blocks import active_blocks
from aif_jax.models.precision import SCALE, reduced_columns, row_dtype, state_dtype

ColumnShapes: TypeAlias = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Shape of one row and dtype, by column."""

Spec: TypeAlias = dict[str, jax.ShapeDtypeStruct]
Size: TypeAlias = Any
"""A length: an int, or a symbolic dimension of `jax.export`."""

_F4, _I4, _U1 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint8)


class FoldedShapes:
    """What the folded programs of a config and schema take and give.

    Attributes:
        config: the model's config.
        schema: its schema.
        precision: of item rows and user states, see `aif_jax.models.precision`.
        score: the score expression; ``score.raw`` names the raw pair features that the stage wants.
        blocks: the active blocks.
        behaviour_columns: columns of the behaviour table.
        item_columns: columns of an item row that the stage reads, in the precision.
        factored: the item columns that the factors ``M`` of a user state multiply, in their order.
    """

    def __init__(self, config: ModelConfig, schema: Schema, precision: Precision = "float32") -> None:
        check_precision(precision)
        self.config = config
        self.schema = schema
        self.precision: Precision = precision
        self.score = score_of(config, schema)
        self.blocks = blocks = active_blocks(config, schema)
        attends = "long_attention" in blocks
        linear = attends and config.long_attention == "linear"
        signed = "simtier" in blocks or config.needs_bits
        category = schema.category_feature
        frozen: ColumnShapes = {}
        if linear:
            frozen["content"] = ((config.content_width,), _F4)
        if signed or attends:
            frozen["has_content"] = ((1,), _F4)
        if signed:
            frozen["signature"] = ((config.signature_bytes,), _U1)
        if "sim_hard" in blocks and category is not None:
            frozen["category"] = (category.shape or (1,), _I4)

        self.behaviour_columns: ColumnShapes = {}
        if blocks & {"self_attention", "profile_attention", "bridge"}:
            self.behaviour_columns["token"] = ((config.width,), _F4)
        if blocks & {"bridge", "long_attention", "sim_hard"}:
            self.behaviour_columns["value"] = ((config.value_width,), _F4)
        self.behaviour_columns |= frozen

        two_tower = config.architecture == "two_tower"
        self.item_columns: ColumnShapes = {} if two_tower else {"h": ((config.hidden,), _F4)}
        if two_tower or "profile_item" in blocks:
            self.item_columns["e"] = ((config.width,), _F4)
        if "bridge" in blocks:
            self.item_columns["bridge"] = ((config.bridges,), _F4)
        self.item_columns |= {name: frozen[name] for name in frozen if signed or name != "has_content"}
        narrowed = reduced_columns(self.item_columns)
        for name in narrowed:
            self.item_columns[name] = (self.item_columns[name][0], row_dtype(precision))
        if precision == "int8":
            self.item_columns[SCALE] = ((len(narrowed),), _F4)
        self.factored = tuple(name for name in ("e", "bridge", "content") if name in self.item_columns)

    def item_inputs_spec(self, m: Size) -> Spec:
        """Return encoded items with content, ``[M, ...]``: the input of the behaviour and item programs."""
        content: ColumnShapes = {
            "content": ((self.config.content_width,), _F4),
            "has_content": ((1,), _F4),
        }
        return _spec({**self.schema.spec("item"), **content}, m)

    def behaviour_spec(self, m: Size) -> Spec:
        """Return behaviour rows ``[M, ...]``."""
        return _spec(self.behaviour_columns, m)

    def rows_spec(self, n: Size) -> Spec:
        """Return what the stage reads of item rows, ``[N, ...]``."""
        return _spec(self.item_columns, n)

    def item_spec(self, m: Size) -> Spec:
        """Return item rows as the item program gives them, ``[M, ...]``: those columns and `PRIOR`."""
        return _spec({**self.item_columns, PRIOR: ((len(self.config.heads),), _F4)}, m)

    def user_inputs_spec(self, b: Size) -> Spec:
        """Return encoded user features ``[B, ...]``."""
        return _spec(self.schema.spec("user"), b)

    def short_spec(self, b: Size) -> Spec:
        """Return the behaviour columns of short sequences that the user program reads, ``[B, S, ...]``."""
        columns = {name: shape for name, shape in self.behaviour_columns.items() if name == "token"}
        return _spec(columns, b, self.config.short_length)

    def long_spec(self, b: Size, length: Size) -> Spec:
        """Return the behaviour columns of long sequences that the user program reads, ``[B, L, ...]``."""
        columns = {name: shape for name, shape in self.behaviour_columns.items() if name != "token"}
        return _spec(columns, b, length)

    def types_spec(self, b: Size, length: Size) -> jax.ShapeDtypeStruct:
        """Return behaviour types ``[B, length]``."""
        return jax.ShapeDtypeStruct((b, length), _I4)

    def state_spec(self, length: Size) -> Spec:
        """Return one user's state for a long sequence of length ``L``."""
        config, blocks, large = self.config, self.blocks, state_dtype(self.precision)
        if config.architecture == "two_tower":
            return {"vector": jax.ShapeDtypeStruct((config.width, len(config.heads)), _F4)}
        state: dict[str, tuple[tuple[Size, ...], np.dtype]] = {"h_u": ((config.hidden,), _F4)}
        if self.factored:
            rows = sum(self.item_columns[name][0][0] for name in self.factored)
            state["M"] = ((rows, config.hidden), large)
        if "sim_hard" in blocks:
            state |= {
                "sim_category": ((config.sim_slots,), _I4),
                "sim": ((config.sim_slots, config.hidden), large),
                "sim_overflow": ((), _I4),
            }
        if "simtier" in blocks:
            state |= {
                "signature": ((length, config.signature_bytes), _U1),
                "channel": ((length,), _I4),
                "tier_length": ((len(self.schema.behaviour_types),), _F4),
            }
        if config.needs_bits and config.long_attention == "sign":
            state["factor"] = ((config.signature_bits, config.value_width), large)
        elif config.needs_bits:
            bits = config.collision_bits
            state["factor"] = ((config.signature_bits // bits, 2**bits, config.value_width), large)
        return {name: jax.ShapeDtypeStruct(*state[name]) for name in sorted(state)}

    def valid_spec(self, n: Size) -> jax.ShapeDtypeStruct:
        """Return the mask of candidates ``[N]``."""
        return jax.ShapeDtypeStruct((n,), np.dtype(np.bool_))

    def context_spec(self) -> Spec:
        """Return encoded context features of one request, without a leading axis."""
        return _spec(self.schema.spec("context"))

    def pair_spec(self, n: Size) -> Spec:
        """Return encoded pair features ``[N, ...]`` and the raw ones that the score uses ``[N]``."""
        raw: ColumnShapes = {f"raw_{name}": ((), _F4) for name in self.score.raw}
        return _spec({**self.schema.spec("pair"), **raw}, n)


def _spec(columns: Mapping[str, tuple[tuple[int, ...], np.dtype]], *lead: Size) -> Spec:
    return {
        name: jax.ShapeDtypeStruct((*lead, *shape), dtype) for name, (shape, dtype) in sorted(columns.items())
    }
