"""The model in its unfolded form: what trains, and what the folded form must equal."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.config import ModelConfig
from aif_jax.features import Schema
from aif_jax.features.encoders import UNKNOWN
from aif_jax.kernels import simtier, slot_weights, tier_features
from aif_jax.models import long_sequence
from aif_jax.models.blocks import (
    RUNGS,
    Keep,
    Reference,
    active_blocks,
    as_arrays,
    draw_keep,
    hidden,
    random_key,
    shown,
)
from aif_jax.models.bridge import Bridges
from aif_jax.models.interaction import FirstLayer, Heads, TrainOnly
from aif_jax.models.item import ItemModule
from aif_jax.models.layers import masked_mean
from aif_jax.models.long_sequence import BehaviourValues
from aif_jax.models.signature import edges_of
from aif_jax.models.sim import CategoryPool, recent_categories
from aif_jax.models.tiers import channel_lengths, channels_of
from aif_jax.models.user import UserModule
from aif_jax.types import Columns


class Slots(NamedTuple):
    """SIM-hard of a user: ``category`` int32 ``[B, C_max]``, ``pooled`` ``[B, C_max, d_s]``.

    ``overflow`` int32 ``[B]`` counts what found no slot, see `recent_categories`.
    """

    category: jax.Array
    pooled: jax.Array
    overflow: jax.Array


class UserSide(NamedTuple):
    """What the interaction needs of a user, before anything is multiplied out.

    Attributes:
        vector: ``e_u`` ``[B, d]``.
        keys: user tokens ``K`` ``[B, K, d]``.
        key_mask: bool ``[B, K]``.
        long: columns of the long sequence's behaviours ``[B, L, ...]``.
        value: their values ``Y`` by type ``[B, L, d_v]``; ``None`` if no block reads them.
        channel: int32 ``[B, L]``, the type of a behaviour that has content, else -1.
        lengths: ``[B, channels]``, how many behaviours each channel counts.
        slots: SIM-hard; ``None`` without the block.
    """

    vector: jax.Array
    keys: jax.Array
    key_mask: jax.Array
    long: Mapping[str, jax.Array]
    value: jax.Array | None
    channel: jax.Array
    lengths: jax.Array
    slots: Slots | None

    @property
    def counted(self) -> jax.Array:
        """Bool ``[B, L]``: behaviours that take part in similarities."""
        return self.channel >= 0


class Tower(nnx.Module):
    """Item module and user module, which all architectures share, and the reading of training batches.

    Attributes:
        config: sizes and switches.
        blocks: the active blocks.
    """

    foldable: ClassVar[bool] = True

    def __init__(self, config: ModelConfig, schema: Schema, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self._schema = Reference(schema)
        self.blocks = active_blocks(config, schema)
        self.item = ItemModule(config, schema, self.blocks, rngs=rngs)
        self.user = UserModule(config, schema, self.blocks, rngs=rngs)
        self.train_only = TrainOnly(config, schema, rngs=rngs) if schema.train_only else None
        types, d_v = len(schema.behaviour_types), config.value_width
        self.values = BehaviourValues(types, d_v) if self.item.as_value is not None else None
        self.pool = CategoryPool(d_v, config.sim_width, rngs=rngs) if "sim_hard" in self.blocks else None

    @property
    def schema(self) -> Schema:
        """The schema that the model was built for."""
        return self._schema.value

    def user_side(
        self,
        inputs: Mapping[str, jax.Array],
        short: Mapping[str, jax.Array],
        short_type: jax.Array,
        long: Mapping[str, jax.Array],
        long_type: jax.Array,
        keep: Keep,
    ) -> UserSide:
        """Compute the user side.

        Args:
            inputs: encoded user features ``[B, ...]``.
            short: behaviour columns of the short sequence ``[B, S, ...]``, most recent first.
            short_type: int32 ``[B, S]``, -1 where there is no behaviour.
            long: behaviour columns of the long sequence ``[B, L, ...]``, most recent first.
            long_type: int32 ``[B, L]``, -1 where there is no behaviour.
            keep: what each request keeps, in training.
        """
        config, valid = self.config, long_type >= 0
        value = self.values(long["value"], long_type) if self.values is not None else None
        channel = jnp.full_like(long_type, -1)
        if "has_content" in long:
            channel = channels_of(long_type, long["has_content"])
        slots = None
        if self.pool is not None and value is not None:
            category, overflow = recent_categories(long["category"], valid, config.sim_slots)
            slots = Slots(category, self.pool(value, long["category"], valid, category), overflow)
        tokens = self.user(
            inputs,
            short.get("token"),
            short_type,
            masked_mean(value, valid) if value is not None else None,
            jnp.any(valid, axis=1),
            keep,
        )
        lengths = channel_lengths(channel, len(self.schema.behaviour_types))
        return UserSide(*tokens, long, value, channel, lengths, slots)

    def _inputs(self, batch: Mapping[str, Any], catalogue: Columns, train: bool, rngs: Any) -> "_Inputs":
        """Read a batch: gather candidates, draw and apply what is hidden in training."""
        config = self.config
        arrays = as_arrays(catalogue)
        user = as_arrays(batch["user"])
        types = {name: jnp.asarray(batch[name]) for name in ("short_type", "long_type")}
        candidates = jnp.asarray(batch["item"])
        item = self._items(arrays, jnp.maximum(candidates, 0))
        keep: dict[str, jax.Array] = {}
        if train and (config.block_dropout or config.item_id_dropout):
            block_key, id_key = jax.random.split(random_key(rngs))
            if config.block_dropout:
                names = self.blocks | {*RUNGS, "train_only"}
                keep = draw_keep(config.block_dropout, names, candidates.shape[0], block_key)
                user = hidden(user, keep["user"])
                history = keep["user"][:, None]
                types["short_type"] = jnp.where(history, types["short_type"], -1)
                history &= keep["long_history"][:, None]
                types["long_type"] = jnp.where(history, types["long_type"], -1)
            if config.item_id_dropout and (name := self.schema.item_id) is not None:
                shows = jax.random.bernoulli(id_key, 1.0 - config.item_id_dropout, candidates.shape)
                # As an id that the vocabulary does not know, which is what a cold item's is at serving.
                item[name] = jnp.where(shows, item[name], UNKNOWN)
        columns = self.item_columns
        indices = [jnp.asarray(batch[name]) for name in ("short_item", "long_item")]
        masked = [
            jnp.where(index >= 0, kind, -1)
            for index, kind in zip(indices, (types["short_type"], types["long_type"]), strict=True)
        ]
        short, long = self._behaviours(arrays, indices, columns)
        return _Inputs(user, short, masked[0], long, masked[1], item, keep)

    @property
    def item_columns(self) -> tuple[str, ...]:
        """Frozen columns of behaviours that the active blocks read, besides token and value."""
        columns: list[str] = []
        if "long_attention" in self.blocks and (self.config.long_attention == "linear" or not self.foldable):
            columns.append("content")
        if self.blocks & {"long_attention", "simtier"}:
            columns.append("has_content")
        if "simtier" in self.blocks or self.config.needs_bits:
            columns.append("signature")
        if "sim_hard" in self.blocks:
            columns.append("category")
        return tuple(columns)

    def category(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Return the encoded categories of items, int32 ``[..., C]``."""
        return self.schema.category_ids(inputs)

    def _items(self, catalogue: Mapping[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
        names = [feature.name for feature in self.schema.item]
        names += [name for name in ("content", "has_content", "signature") if name in catalogue]
        return {name: jnp.take(catalogue[name], index, axis=0, mode="clip") for name in names}

    def _behaviours(
        self, catalogue: Mapping[str, jax.Array], indices: list[jax.Array], columns: tuple[str, ...]
    ) -> list[dict[str, jax.Array]]:
        """Return the behaviour columns of histories ``[B, length]`` of catalogue positions."""
        n_items, n_behaviours = catalogue["content"].shape[0], sum(index.size for index in indices)
        clipped = [jnp.maximum(index, 0) for index in indices]
        if n_items <= n_behaviours:
            # Fewer items than behaviours: the columns of every item once, then a gather.
            table = self.item.behaviour(catalogue)
            learned = [
                {k: jnp.take(v, index, axis=0, mode="clip") for k, v in table.items()} for index in clipped
            ]
        else:
            learned = [self.item.behaviour(self._items(catalogue, index)) for index in clipped]
        frozen = {name: catalogue[name] for name in columns if name != "category"}
        if "category" in columns:
            frozen["category"] = self.category(catalogue)
        short, long = learned
        long |= {name: jnp.take(values, clipped[1], axis=0, mode="clip") for name, values in frozen.items()}
        return [short, long]

    def _train_only_term(self, batch: Mapping[str, Any], keep: Keep, train: bool) -> jax.Array | float:
        if self.train_only is None:
            return 0.0
        if not train:
            return self.train_only.absent[...]
        everyone = jnp.ones(jnp.asarray(batch["item"]).shape[0], bool)
        return self.train_only(as_arrays(batch["train_only"]), shown(keep, "train_only", everyone))


class _Inputs(NamedTuple):
    user: dict[str, jax.Array]
    short: dict[str, jax.Array]
    short_type: jax.Array
    long: dict[str, jax.Array]
    long_type: jax.Array
    item: dict[str, jax.Array]
    keep: Keep


class Aif(Tower):
    """The model of the `aif` and `cold` architectures; `cold` is the one without the long-sequence blocks.

    Args:
        config: sizes and switches.
        schema: a fitted schema.
        rngs: random keys of the initial weights.
    """

    def __init__(self, config: ModelConfig, schema: Schema, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, schema, rngs=rngs)
        self.bridges = self._build_bridges(rngs)
        self.first = FirstLayer(config, schema, self.blocks, rngs=rngs)
        self.heads = Heads(config, rngs=rngs)

    def __call__(
        self,
        batch: Mapping[str, Any],
        catalogue: Columns,
        *,
        train: bool,
        rngs: nnx.Rngs | jax.Array | None = None,
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

        Raises:
            ConfigError: ``train`` with dropout, but without ``rngs``.
        """
        inputs = self._inputs(batch, catalogue, train, rngs)
        side = self.user_side(*inputs[:5], inputs.keep)
        e = self.item(inputs.item)
        first = self.first.item(e) + self.first.user(side.vector)[:, None]
        everyone = jnp.ones(e.shape[0], bool)
        for block, (x, present) in self._blocks(e, inputs.item, side).items():
            there = shown(inputs.keep, block, everyone if present is None else present)
            first += self.first.contribution(block, x, there[:, None])
        for group in ("context", "pair"):
            if group in self.blocks:
                x, given = self.first.features(group, as_arrays(batch[group]))
                first += self.first.contribution(group, x, shown(inputs.keep, group, given))
        return self.heads(first) + self._train_only_term(batch, inputs.keep, train)

    def _blocks(
        self, e: jax.Array, item: Mapping[str, jax.Array], side: UserSide
    ) -> dict[str, tuple[jax.Array, jax.Array | None]]:
        """Return each block's input ``[B, G, n_in]``, and bool ``[B]``, whether users have it (None: all)."""
        blocks: dict[str, tuple[jax.Array, jax.Array | None]] = {}
        if "profile_item" in self.blocks:
            blocks["profile_item"] = (e * side.vector[:, None], None)
        if "bridge" in self.blocks:
            blocks["bridge"] = (self._keys_attention(e, side), None)
        similar = jnp.any(side.counted, axis=1)
        if "long_attention" in self.blocks and side.value is not None:
            blocks["long_attention"] = (self._long_attention(item, side, side.value), similar)
        if "simtier" in self.blocks:
            counts = self._tier_counts(item, side)
            tiers = tier_features(counts, side.lengths[:, None], self.config.tier_scale)
            blocks["simtier"] = (tiers * item["has_content"], similar)
        if side.slots is not None:
            weights = slot_weights(self.category(item), side.slots.category[:, None])
            blocks["sim_hard"] = (weights @ side.slots.pooled, jnp.any(side.slots.category >= 0, axis=1))
        return blocks

    def _build_bridges(self, rngs: nnx.Rngs) -> Bridges | None:
        if "bridge" not in self.blocks:
            return None
        return Bridges(self.config.bridges, self.config.width, rngs=rngs)

    def _keys_attention(self, e: jax.Array, side: UserSide) -> jax.Array:
        """Return what the candidates get from the user's tokens, ``[B, G, d]``."""
        assert self.bridges is not None
        return self.bridges.item(e) @ self.bridges.user(side.keys, side.key_mask)

    def _long_attention(self, item: Mapping[str, jax.Array], side: UserSide, value: jax.Array) -> jax.Array:
        """Return the attention of the candidates over the long sequence, ``[B, G, d_v]``."""
        match self.config.long_attention:
            case "linear":
                found = long_sequence.linear_attention(
                    item["content"], side.long["content"], value, side.counted
                )
            case "sign":
                found = long_sequence.sign_attention(
                    item["signature"], side.long["signature"], value, side.counted
                )
            case "collision":
                bits = self.config.collision_bits
                found = long_sequence.collision_attention(
                    item["signature"], side.long["signature"], value, side.counted, bits
                )
            case "mean":
                return long_sequence.mean_attention(value, side.counted)[:, None]
        return found * item["has_content"]

    def _tier_counts(self, item: Mapping[str, jax.Array], side: UserSide) -> jax.Array:
        """Return SimTier counts int32 ``[B, G, channels, T]``."""
        return simtier(
            item["signature"],
            side.long["signature"],
            side.channel,
            jnp.asarray(edges_of(self.config)),
            channels=len(self.schema.behaviour_types),
            kind=self.config.signature,
        )
