"""Shapes and dtypes of what goes into and out of the folded programs: for row layouts and for export."""

from typing import Any, TypeAlias

import jax
import numpy as np

from aif_jax.config import PRIOR, ModelConfig, Precision, check_precision
from aif_jax.features import Schema
from aif_jax.features.score import score_of
from aif_jax.models.blocks import active_blocks
from aif_jax.models.blocks.base import F4, I4, ColumnShapes
from aif_jax.models.precision import SCALE, reduced_columns, row_dtype, state_dtype

Spec: TypeAlias = dict[str, jax.ShapeDtypeStruct]
Size: TypeAlias = Any
"""A length: an int, or a symbolic dimension of `jax.export`."""


class FoldedShapes:
    """Inputs and outputs of the folded programs of a config and schema.

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
        self.blocks = active_blocks(config, schema)
        two_tower = config.architecture == "two_tower"
        self.behaviour_columns: ColumnShapes = {}
        self.item_columns: ColumnShapes = (
            {"e": ((config.width,), F4)} if two_tower else {"h": ((config.hidden,), F4)}
        )
        for block in self.blocks:
            self.behaviour_columns |= block.behaviour_columns
            self.item_columns |= block.row_columns
        if not self.behaviour_columns:
            # No block reads histories; the table still knows which items exist, and a row needs a column.
            self.behaviour_columns["has_content"] = ((1,), F4)
        narrowed = reduced_columns(self.item_columns)
        for name in narrowed:
            self.item_columns[name] = (self.item_columns[name][0], row_dtype(precision))
        if precision == "int8":
            self.item_columns[SCALE] = ((len(narrowed),), F4)
        factored = [block.factored for block in self.blocks if block.factored is not None]
        self.factored = ("e",) if two_tower else tuple(dict.fromkeys(factored))

    def item_inputs_spec(self, m: Size) -> Spec:
        """Return encoded items with content, ``[M, ...]``: the input of the behaviour and item programs."""
        content: ColumnShapes = {"content": ((self.config.content_width,), F4), "has_content": ((1,), F4)}
        return _spec({**self.schema.spec("item"), **content}, m)

    def behaviour_spec(self, m: Size) -> Spec:
        """Return behaviour rows ``[M, ...]``."""
        return _spec(self.behaviour_columns, m)

    def rows_spec(self, n: Size) -> Spec:
        """Return what the stage reads of item rows, ``[N, ...]``."""
        return _spec(self.item_columns, n)

    def item_spec(self, m: Size) -> Spec:
        """Return item rows as the item program gives them, ``[M, ...]``: those columns and `PRIOR`."""
        return _spec({**self.item_columns, PRIOR: ((len(self.config.heads),), F4)}, m)

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
        return jax.ShapeDtypeStruct((b, length), I4)

    def state_spec(self, length: Size) -> Spec:
        """Return one user's state for a long sequence of length ``L``."""
        config, large = self.config, state_dtype(self.precision)
        if config.architecture == "two_tower":
            return _spec({"vector": ((config.width, len(config.heads)), F4)})
        state: ColumnShapes = {"h_u": ((config.hidden,), F4)}
        if self.factored:
            rows = sum(self.item_columns[name][0][0] for name in self.factored)
            state["M"] = ((rows, config.hidden), large)
        for block in self.blocks:
            for name, (shape, dtype) in block.state_columns(length).items():
                state[name] = (shape, large if name in block.narrowed else dtype)
        return _spec(state)

    def valid_spec(self, n: Size) -> jax.ShapeDtypeStruct:
        """Return the mask of candidates ``[N]``."""
        return jax.ShapeDtypeStruct((n,), np.dtype(np.bool_))

    def context_spec(self) -> Spec:
        """Return encoded context features of one request, without a leading axis."""
        return _spec(self.schema.spec("context"))

    def pair_spec(self, n: Size) -> Spec:
        """Return encoded pair features ``[N, ...]`` and the raw ones that the score uses ``[N]``."""
        raw: ColumnShapes = {f"raw_{name}": ((), F4) for name in self.score.raw}
        return _spec({**self.schema.spec("pair"), **raw}, n)


def _spec(columns: ColumnShapes, *lead: Size) -> Spec:
    return {
        name: jax.ShapeDtypeStruct((*lead, *shape), dtype) for name, (shape, dtype) in sorted(columns.items())
    }
