"""The interface of a block: what it declares, and what it computes in the unfolded and in the folded form."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.features import ContentSpace, Feature, Schema

ColumnShapes: TypeAlias = dict[str, tuple[tuple[Any, ...], np.dtype]]
"""Shape of one row and dtype, by column; a length in a shape may be a symbolic dimension of `jax.export`."""

Labels: TypeAlias = dict[int, Sequence[tuple[str, ...]]]
"""Labels of the positions along axes of a weight, by axis: the same label, the same meaning in any model. The
first word is a feature (``item.genres``), a behaviour type (``type click``) or a head (``head buy``)."""

Arrays: TypeAlias = Mapping[str, jax.Array]
Entries: TypeAlias = dict[str, Any]

F4, I4, U1 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint8)


class Weights(NamedTuple):
    """Names of the weights that the folded programs read for a block, as patterns of `fnmatch`.

    Attributes:
        item: of the item program, which for its prior reads those of ``user`` and ``stage`` too.
        user: of the user program.
        stage: of the real-time stage.
        history: of the stage too, but of no use without a history, so not for the prior.
    """

    item: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    stage: tuple[str, ...] = ()
    history: tuple[str, ...] = ()


class Cost(NamedTuple):
    """Costs of a block in the folded form: operations, and bytes of item row and user state in float32.

    Floating-point operations in leading terms; a product and its sum are two.
    """

    candidate_flops: int
    candidate_bytes: int
    user_flops: int
    user_bytes: int


class UserSide(NamedTuple):
    """The user side as the blocks read it, before anything is multiplied out.

    Attributes:
        vector: ``e_u`` ``[B, d]``.
        keys: tokens of the profile and of the short sequence ``[B, 1 + S, d]``.
        key_mask: bool ``[B, 1 + S]``, which of them exist.
        long: columns of the long sequence's behaviours ``[B, L, ...]``.
        long_type: int32 ``[B, L]``, their types, -1 where there is no behaviour.
        value: their values ``Y`` by type ``[B, L, d_v]``, if a block reads them.
        own: what each block computed of the user alone, by its name; see `InteractionBlock.user`.
        sequence: windows of events that requests share, see `aif_jax.models.aif.Inputs`; empty where each
            request has its long sequence only.
        new: int32 ``[P]``, the most recent places of the long sequence, which alone are computed where
            ``long`` holds what was kept of the others; ``None`` for all. See `ServedModel.extend`.
    """

    vector: jax.Array
    keys: jax.Array
    key_mask: jax.Array
    long: Arrays
    long_type: jax.Array
    value: Any
    own: Entries
    sequence: Arrays = MappingProxyType({})
    new: Any = None

    @property
    def channel(self) -> jax.Array:
        """Int32 ``[B, L]``: the type of a behaviour that has content, else -1."""
        return jnp.where(self.long["has_content"][..., 0] > 0, self.long_type, -1)

    @property
    def counted(self) -> jax.Array:
        """Bool ``[B, L]``: behaviours that take part in similarities."""
        return self.channel >= 0


class Candidates(NamedTuple):
    """Candidates in the unfolded form: embeddings ``e`` ``[B, G, d]``, encoded features ``[B, G, ...]``.

    An ``item`` has ``content``, ``has_content`` and ``signature`` too.
    """

    e: jax.Array
    item: Arrays
    context: Arrays
    pair: Arrays


class Setting:
    """A config and a schema; equal to another of an equal config and the same schema object.

    So comparing models never walks a vocabulary, and models of one config and one schema object are alike to
    a compiler, and share what it made.
    """

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        self.config = config
        self.schema = schema
        self.content_space = ContentSpace.declared(config.content_width)
        """Space of the content embeddings; no program reads it, so it is not compared."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Setting) or type(self) is not type(other):
            return False
        return self.schema is other.schema and self.config == other.config

    def __hash__(self) -> int:
        return hash((type(self), self.config, id(self.schema)))


class Block(Setting, ABC):
    """One block of the model.

    Its modules are attributes of the model, so that weights keep their names; methods find them there.

    Attributes:
        name: of the switch in ``ModelConfig.blocks``.
        behaviour_columns: columns of a behaviour row that it reads, some of `shared`: ``token`` of the short
            sequence, others of the long one.
        row_columns: columns of an item row that the stage reads for it.
        kept_columns: what its `InteractionBlock.state` returns of each behaviour to go on from, see
            `ServedShapes`.
        factored: the item column that its rows of ``M`` multiply, if it has any. Blocks of the same column
            share the rows: their factors are added.
        narrowed: those of its item columns and state entries that a reduced precision narrows. For the item
            columns `aif_jax.config.REDUCED_COLUMNS` says in which order.
        weights: which of them each program reads.
        constants: arrays that are not trained, by the name under which programs get them.
        form: fields of `aif_jax.kernels.Form`.
    """

    name: ClassVar[str]

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__(config, schema)
        self.behaviour_columns: ColumnShapes = {}
        self.row_columns: ColumnShapes = {}
        self.kept_columns: ColumnShapes = {}
        self.factored: str | None = None
        self.narrowed: tuple[str, ...] = ()
        self.weights = Weights()
        self.constants: dict[str, np.ndarray] = {}
        self.form: Entries = {}
        self._declare()

    def _declare(self) -> None:
        """Set the attributes that are not as above."""

    @classmethod
    def exists(cls, schema: Schema) -> bool:
        """Return whether a schema has what the block reads."""
        return True

    def shared(self, *names: str) -> ColumnShapes:
        """Return the shapes of columns that several blocks read of an item, those of some names."""
        config, category = self.config, self.schema.category_feature
        columns: ColumnShapes = {
            "e": ((config.width,), F4),
            "token": ((config.width,), F4),
            "value": ((config.value_width,), F4),
            "event": ((config.encoder_width,), F4),
            "content": ((config.content_width,), F4),
            "has_content": ((1,), F4),
            "signature": ((config.signature_bytes,), U1),
            "category": ((category.shape or (1,)) if category else (0,), I4),
        }
        return {name: columns[name] for name in names}

    def state_columns(self, length: Any) -> ColumnShapes:
        """Return its own entries of one user's state, for a long sequence of length ``L``."""
        return {}

    def labels(self) -> dict[str, Labels]:
        """Return labels of those of its weights whose rows follow schema or config, by full name.

        A warm start takes rows over by their label, and starts new ones at 0; rows of other weights by their
        position.
        """
        return {}

    def user_modules(self, rngs: nnx.Rngs) -> Entries:
        """Return modules and parameters that become attributes of the `UserModule`, by name."""
        return {}

    @abstractmethod
    def flops(self, length: int) -> tuple[int, int]:
        """Return floating-point operations of the stage for each candidate, and of the rest for each user."""

    def cost(self, length: int) -> Cost:
        """Return what it costs with a long sequence of length ``L``; what it shares with others counts."""
        state = self.state_columns(length)
        if self.factored is not None:
            state["M"] = ((*self.row_columns[self.factored][0], self.config.hidden), F4)
        row_bytes, state_bytes = (
            sum(int(np.prod(shape, dtype=int)) * dtype.itemsize for shape, dtype in columns.values())
            for columns in (self.row_columns, state)
        )
        candidate, user = self.flops(length)
        return Cost(candidate, row_bytes, user, state_bytes)


class UserBlock(Block):
    """A part of the user vector ``e_u``: one more input ``[B, d]`` of its MLP.

    Dropped, or without a short sequence, it is the learned vector ``user.absent_<name>``.
    """

    @abstractmethod
    def part(self, user: Any, profile: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Return the part ``[B, d]``.

        Args:
            user: the `UserModule`.
            profile: ``P`` ``[B, d]``.
            tokens: ``X``, the short sequence ``[B, S, d]``.
            mask: bool ``[B, S]``, which tokens exist.
        """


class InteractionBlock(Block):
    """An input of the first interaction layer, ``[.., width]``, with the weight ``first.<name>``.

    Dropped, or without its input, it contributes the learned vector ``first.absent_<name>``. The first layer
    embeds its ``features``, if it has any, as ``first.embed_<name>``.

    Results by name are entries of the block's own, except ``h`` of a row, ``h_u`` and ``M`` of a state and
    ``shared`` of the operands: they are added to what others give under this name.
    """

    width: int
    features: tuple[Feature, ...] = ()

    def modules(self, rngs: nnx.Rngs) -> Entries:
        """Return modules and parameters that become attributes of the model, by name."""
        return {}

    def user(self, model: Any, side: UserSide) -> Any:
        """Return what both forms need of the user alone: arrays, which ``side.own`` holds afterwards."""
        return None

    @abstractmethod
    def input(self, model: Any, candidates: Candidates, side: UserSide) -> tuple[jax.Array, Any]:
        """Return the input ``[B, G, width]`` in the unfolded form, and where it is present.

        That is bool ``[B, 1]`` or ``[B, G]``; ``None``: always.
        """

    def row(self, model: Any, e: jax.Array, items: Arrays) -> dict[str, jax.Array]:
        """Return item columns that are not `shared`, of encoded items ``[M, ...]`` with embeddings ``e``."""
        return {}

    def state(self, model: Any, side: UserSide) -> dict[str, jax.Array]:
        """Return its entries of user states ``[B, ...]``; ``M``: ``[B, width of the factored column, h]``."""
        return {}

    def operands(self, model: Any, weights: Arrays, state: Arrays, context: Arrays, pair: Arrays) -> Entries:
        """Return fields of `aif_jax.kernels.Operands`, from a state that has the block's entries.

        The state behind an item's prior has none. Of the model's weights a program has only those that
        `Block.weights` names.

        Args:
            model: the model.
            weights: by name; for `Block.constants`.
            state: one user's state, without a leading axis.
            context: encoded context features of one request, without a leading axis.
            pair: encoded pair features ``[N, ...]``.
        """
        return {}
