"""Shapes and dtypes of what goes into and out of the folded programs: for row layouts and for export."""

from typing import Any

from aif_jax.config import PRIOR, ModelConfig, Precision, check_precision
from aif_jax.features import Schema
from aif_jax.features.score import score_of
from aif_jax.models.blocks import active_blocks
from aif_jax.models.blocks.base import F4, I4, ColumnShapes
from aif_jax.models.precision import SCALE, reduced_columns, row_dtype, state_dtype
from aif_jax.models.served import ServedShapes, Size, Spec, spec_of


class FoldedShapes(ServedShapes):
    """Inputs and outputs of the folded programs of a config and schema.

    Attributes, besides those of `ServedShapes`:
        config: the model's config.
        precision: of item rows and user states, see `aif_jax.models.precision`.
        blocks: the active blocks.
        factored: the item columns that the factors ``M`` of a user state multiply, in their order.
    """

    def __init__(self, config: ModelConfig, schema: Schema, precision: Precision = "float32") -> None:
        check_precision(precision)
        self.config = config
        self.spec = config.spec(precision)
        self.schema = schema
        self.precision: Precision = precision
        self.score = score_of(config, schema)
        self.blocks = active_blocks(config, schema)
        two_tower = config.architecture == "two_tower"
        self.behaviour_columns: ColumnShapes = {}
        self.kept_columns: ColumnShapes = {}
        self.item_columns: ColumnShapes = (
            {"e": ((config.width,), F4)} if two_tower else {"h": ((config.hidden,), F4)}
        )
        for block in self.blocks:
            self.behaviour_columns |= block.behaviour_columns
            self.item_columns |= block.row_columns
            self.kept_columns |= block.kept_columns
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

    def item_spec(self, m: Size) -> Spec:
        """Return item rows as the item program gives them, ``[M, ...]``: those columns and `PRIOR`."""
        return spec_of({**self.item_columns, PRIOR: ((len(self.config.heads),), F4)}, m)

    def short_spec(self, b: Size) -> Spec:
        """Return the behaviour columns of short sequences that the user program reads, ``[B, S, ...]``."""
        columns = {name: shape for name, shape in self.behaviour_columns.items() if name == "token"}
        return spec_of(columns, b, self.config.short_length)

    def long_spec(self, b: Size, length: Size) -> Spec:
        """Return the behaviour columns of long sequences that the user program reads, ``[B, L, ...]``."""
        columns = {name: shape for name, shape in self.behaviour_columns.items() if name != "token"}
        if self.config.reads_gaps:  # of the record, not of the table
            columns["gap"] = ((), I4)
        return spec_of(columns, b, length)

    def histories_spec(self, b: Size, length: Size) -> dict[str, Any]:
        """Return what the user program reads of histories; see `ServedModel.histories_spec`."""
        return {
            "short": self.short_spec(b), "short_type": self.types_spec(b, self.config.short_length),
            "long": self.long_spec(b, length), "long_type": self.types_spec(b, length),
        }  # fmt: skip

    def state_spec(self, length: Size) -> Spec:
        """Return one user's state for a long sequence of length ``L``."""
        config, large = self.config, state_dtype(self.precision)
        if config.architecture == "two_tower":
            return spec_of({"vector": ((config.width, len(config.heads)), F4)})
        state: ColumnShapes = {"h_u": ((config.hidden,), F4)}
        if self.factored:
            rows = sum(self.item_columns[name][0][0] for name in self.factored)
            state["M"] = ((rows, config.hidden), large)
        for block in self.blocks:
            for name, (shape, dtype) in block.state_columns(length).items():
                state[name] = (shape, large if name in block.narrowed else dtype)
        return spec_of(state)
