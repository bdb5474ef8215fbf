"""The model in its unfolded form: what trains, and what the folded form must equal."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.features import ContentSpace, Schema
from aif_jax.features.content_space import check_width
from aif_jax.features.encoders import UNKNOWN
from aif_jax.models.blocks import active_blocks
from aif_jax.models.blocks.base import Block, Candidates, InteractionBlock, Setting, UserSide
from aif_jax.models.dropout import RUNGS, Keep, draw_keep, hidden, random_key, shown
from aif_jax.models.interaction import FirstLayer, Heads, TrainOnly
from aif_jax.models.item import STATISTICS, ItemModule
from aif_jax.models.layers import as_arrays
from aif_jax.models.user import BehaviourValues, UserModule
from aif_jax.types import Columns


class Inputs(NamedTuple):
    """A batch as a model reads it: histories and candidates gathered, what training hides hidden.

    ``sequence`` is empty, or, for a model that reads ``event``, the batch's windows: ``event``
    ``[U, L, w]``, ``type``, ``gap``, ``row`` and ``end`` as in `aif_jax.data.batching`; and ``pool``
    ``[U, P, w]``, the vectors of sampled items, in a batch that has them.
    """

    user: dict[str, jax.Array]
    short: dict[str, jax.Array]
    short_type: jax.Array
    long: dict[str, jax.Array]
    long_type: jax.Array
    item: dict[str, jax.Array]
    context: dict[str, jax.Array]
    pair: dict[str, jax.Array]
    keep: Keep
    sequence: dict[str, jax.Array]


class Tower(nnx.Module):
    """Item module and user module, which all architectures share, and the reading of training batches.

    Attributes:
        config: sizes and switches.
        blocks: the active blocks.
        inputs: those of them that are inputs of the first interaction layer.
        instead: blocks that take the place of those of the same name, in all models of a class.
    """

    instead: ClassVar[Sequence[type[Block]]] = ()

    def __init__(self, config: ModelConfig, schema: Schema, *, rngs: nnx.Rngs) -> None:
        self._setting = Setting(config, schema)
        self.blocks = active_blocks(config, schema, self.instead)
        self.inputs = tuple(block for block in self.blocks if isinstance(block, InteractionBlock))
        columns = self._behaviour_columns()
        self.item = ItemModule(config, schema, columns, rngs=rngs)
        self.user = UserModule(config, schema, self.blocks, rngs=rngs)
        self.train_only = TrainOnly(config, schema, rngs=rngs) if schema.train_only else None
        types, d_v = len(schema.behaviour_types), config.value_width
        self.values = BehaviourValues(types, d_v) if "value" in columns else None

    @property
    def config(self) -> ModelConfig:
        """The config that the model was built for."""
        return self._setting.config

    @property
    def schema(self) -> Schema:
        """The schema that the model was built for."""
        return self._setting.schema

    @property
    def content_space(self) -> ContentSpace:
        """The space of the content embeddings that the model reads."""
        return self._setting.content_space

    def set_content_space(self, space: ContentSpace) -> None:
        """Keep the space of the content embeddings that the model is trained on.

        Raises:
            ConfigError: it has another width than the model's content_width.
        """
        self._setting.content_space = check_width(space, self.config.content_width)

    @property
    def droppable(self) -> set[str]:
        """Names of what a request can go without: the blocks, and `RUNGS`."""
        return {block.name for block in self.blocks} | {*RUNGS, "train_only"}

    def user_side(
        self,
        inputs: Mapping[str, jax.Array],
        short: Mapping[str, jax.Array],
        short_type: jax.Array,
        long: Mapping[str, jax.Array],
        long_type: jax.Array,
        keep: Keep,
        sequence: Mapping[str, jax.Array] = MappingProxyType({}),
        new: Any = None,
    ) -> UserSide:
        """Compute the user side.

        Args:
            inputs: encoded user features ``[B, ...]``.
            short: behaviour columns of the short sequence ``[B, S, ...]``, most recent first.
            short_type: int32 ``[B, S]``, -1 where there is no behaviour.
            long: behaviour columns of the long sequence ``[B, L, ...]``, most recent first.
            long_type: int32 ``[B, L]``, -1 where there is no behaviour.
            keep: what each request keeps, in training.
            sequence: of `Inputs`.
            new: of `UserSide`.
        """
        tokens = self.user(inputs, short.get("token"), short_type, keep)
        value = self.values(long["value"], long_type) if self.values is not None else None
        side = UserSide(*tokens, long, long_type, value, {}, sequence, new)
        return side._replace(own={block.name: block.user(self, side) for block in self.inputs})

    def read(
        self,
        batch: Mapping[str, Any],
        catalogue: Columns,
        train: bool = False,
        rngs: Any = None,
        keep: Keep | None = None,
    ) -> Inputs:
        """Read a batch: gather candidates and histories, apply what is hidden, which training draws.

        Arguments as of `Aif.__call__`. The first five parts of the result are the arguments of `user_side`.
        """
        config = self.config
        arrays = as_arrays(catalogue)
        user = as_arrays(batch["user"])
        types = {name: jnp.asarray(batch[name]) for name in ("short_type", "long_type")}
        candidates = jnp.asarray(batch["item"])
        item = self.items_at(arrays, jnp.maximum(candidates, 0))
        keep = {} if keep is None else keep
        if train and (config.block_dropout or config.item_id_dropout):
            block_key, id_key = jax.random.split(random_key(rngs))
            if config.block_dropout:
                keep = draw_keep(config.block_dropout, self.droppable, candidates.shape[0], block_key)
            if config.item_id_dropout and (name := self.schema.item_id) is not None:
                shows = jax.random.bernoulli(id_key, 1.0 - config.item_id_dropout, candidates.shape)
                # As an id that the vocabulary does not know, which is what a cold item's is at serving.
                item[name] = jnp.where(shows, item[name], UNKNOWN)
                if STATISTICS in item:
                    item[STATISTICS] = jnp.where(shows[..., None], item[STATISTICS], 0.0)
        if keep:
            user = hidden(user, keep["user"])
            history = keep["user"][:, None]
            types["short_type"] = jnp.where(history, types["short_type"], -1)
            history &= keep["long_history"][:, None]
            types["long_type"] = jnp.where(history, types["long_type"], -1)
        sequence = {
            name.removeprefix("sequence_"): jnp.asarray(value)
            for name, value in batch.items()
            if name.startswith("sequence_") and "event" in self._behaviour_columns()
        }
        indices = [jnp.asarray(batch["short_item"]), jnp.asarray(batch["long_item"])]
        indices += [sequence.pop(name) for name in ("item", "pool") if name in sequence]
        masked = [
            jnp.where(index >= 0, kind, -1)
            for index, kind in zip(indices[:2], (types["short_type"], types["long_type"]), strict=True)
        ]
        short, long, *windows = self._behaviours(arrays, indices)
        if self.config.reads_gaps:
            long["gap"] = jnp.asarray(batch["long_gap"])
        sequence |= {name: each["event"] for name, each in zip(("event", "pool"), windows, strict=False)}
        context, pair = (as_arrays(batch.get(group, {})) for group in ("context", "pair"))
        return Inputs(user, short, masked[0], long, masked[1], item, context, pair, keep, sequence)

    def items_at(self, catalogue: Mapping[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
        """Return what the item module reads of catalogue positions, ``[*index.shape, ...]`` by column."""
        names = [feature.name for feature in self.schema.item]
        names += [name for name in ("content", "has_content", "signature", STATISTICS) if name in catalogue]
        return {name: jnp.take(catalogue[name], index, axis=0, mode="clip") for name in names}

    def _behaviours(
        self, catalogue: Mapping[str, jax.Array], indices: list[jax.Array]
    ) -> list[dict[str, jax.Array]]:
        """Return the behaviour columns of histories ``[B, length]`` of catalogue positions.

        The first is the short sequence, the second the long one, which alone gets frozen columns.
        """
        n_items, n_behaviours = catalogue["content"].shape[0], sum(index.size for index in indices)
        clipped = [jnp.maximum(index, 0) for index in indices]
        if n_items <= n_behaviours:
            # Fewer items than behaviours: the columns of every item once, then a gather.
            table = self.item.behaviour(catalogue)
            learned = [
                {k: jnp.take(v, index, axis=0, mode="clip") for k, v in table.items()} for index in clipped
            ]
        else:
            learned = [self.item.behaviour(self.items_at(catalogue, index)) for index in clipped]
        long = learned[1]
        columns = self._behaviour_columns() - {"token", "value", "event"}
        frozen = {name: catalogue[name] for name in sorted(columns - {"category"})}
        if "category" in columns:
            frozen["category"] = self.schema.category_ids(catalogue)
        long |= {name: jnp.take(values, clipped[1], axis=0, mode="clip") for name, values in frozen.items()}
        return learned

    def _behaviour_columns(self) -> set[str]:
        return {name for block in self.blocks for name in block.behaviour_columns}

    def _train_only_term(self, batch: Mapping[str, Any], keep: Keep, train: bool) -> jax.Array | float:
        if self.train_only is None:
            return 0.0
        if not train:
            return self.train_only.absent[...]
        everyone = jnp.ones(jnp.asarray(batch["item"]).shape[0], bool)
        return self.train_only(as_arrays(batch["train_only"]), shown(keep, "train_only", everyone))


class Aif(Tower):
    """The model of the `aif` and `cold` architectures; `cold` is the one without the long-sequence blocks.

    Args:
        config: sizes and switches.
        schema: a fitted schema.
        rngs: random keys of the initial weights.
    """

    def __init__(self, config: ModelConfig, schema: Schema, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, schema, rngs=rngs)
        for block in reversed(self.inputs):  # so that a seed gives the weights that it always gave
            for name, module in block.modules(rngs).items():
                setattr(self, name, module)
        self.first = FirstLayer(config, self.inputs, rngs=rngs)
        self.heads = Heads(config, rngs=rngs)

    def __call__(
        self,
        batch: Mapping[str, Any],
        catalogue: Columns,
        *,
        train: bool,
        rngs: nnx.Rngs | jax.Array | None = None,
        keep: Keep | None = None,
    ) -> jax.Array:
        """Return logits ``[B, G, n_heads]``.

        Args:
            batch: encoded requests: ``user`` features by name ``[B, ...]``; ``context``, ``pair`` and, in
                training, ``train_only`` features ``[B, G, ...]``; positions in the catalogue ``item`` int32
                ``[B, G]``, ``short_item`` ``[B, S]``, ``long_item`` ``[B, L]`` and types ``short_type``,
                ``long_type``, all -1 where there is nothing, most recent first.
            catalogue: encoded items with ``content``, ``has_content`` and ``signature``, see
                `add_signatures`.
            train: hide blocks and item ids at random, and read the train-only features.
            rngs: what to draw with; an `nnx.Rngs` or a key.
            keep: what each request keeps, bool ``[B]`` for each of `droppable`; by default everything.

        Raises:
            ConfigError: ``train`` with dropout, but without ``rngs``.
        """
        return self.logits_and_side(batch, catalogue, train=train, rngs=rngs, keep=keep)[0]

    def logits_and_side(
        self,
        batch: Mapping[str, Any],
        catalogue: Columns,
        *,
        train: bool,
        rngs: nnx.Rngs | jax.Array | None = None,
        keep: Keep | None = None,
    ) -> tuple[jax.Array, UserSide]:
        """Return logits, and the user side that they come from; arguments as of `__call__`."""
        inputs = self.read(batch, catalogue, train, rngs, keep)
        side = self.user_side(*inputs[:5], inputs.keep, inputs.sequence)
        candidates = self.candidates(inputs)
        first = self.first.item(candidates.e) + self.first.user(side.vector)[:, None]
        everyone = jnp.ones((candidates.e.shape[0], 1), bool)
        for block, (x, present) in self.block_inputs(candidates, side).items():
            there = shown(inputs.keep, block, everyone if present is None else present)
            first += self.first.contribution(block, x, there)
        return self.heads(first) + self._train_only_term(batch, inputs.keep, train), side

    def candidates(self, inputs: Inputs) -> Candidates:
        """Return what the blocks need of the candidates of a batch."""
        return Candidates(self.item(inputs.item), inputs.item, inputs.context, inputs.pair)

    def block_inputs(
        self, candidates: Candidates, side: UserSide
    ) -> dict[str, tuple[jax.Array, jax.Array | None]]:
        """Return each block's input of the first layer, and where it is present; by name, in order."""
        return {block.name: block.input(self, candidates, side) for block in self.inputs}
