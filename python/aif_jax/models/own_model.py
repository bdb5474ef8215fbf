"""A model of the contract in the form that trains: its functions over the batches of a data set."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.checks import typed
from aif_jax.config import ModelSpec
from aif_jax.errors import ConfigError
from aif_jax.features import ContentSpace, Schema
from aif_jax.models.blocks.base import Setting
from aif_jax.models.layers import as_arrays
from aif_jax.types import Columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(ModelSpec):
    """Heads and lengths of an `OwnModel`, in the words of `ModelConfig`.

    Attributes, besides those of `ModelSpec`:
        reads_gaps: whether the sequence ``long`` has the time between behaviours.
    """

    item_statistics: ClassVar[bool] = False
    reads_gaps: bool = False

    @property
    def architecture(self) -> str:
        """Name of the model's class."""
        return self.name

    def has(self, block: str) -> bool:
        """Return whether batches need what a block of our model reads: the long sequence, pair features."""
        return block == "pair" or (block == "long_attention" and self.long_length > 1)


class OwnModel(nnx.Module):
    """A Flax NNX module with the methods of `PreRanker`, for `train`, `predict` and `evaluate`.

    Training calls it in training mode with new random numbers for dropout in each step, and trains its
    `nnx.Param` variables. It is exported without this class: ``export(trained.model, ...)``.

    Args:
        model: the module. One with other state that training changes, such as batch norm, is refused.
        schema: fitted, of the data set that it is trained on.
        heads: labels of the data set, the main one first; the names of the model's logits.
        long_length: behaviours of the sequence ``long``; 0 for none.
        short_length: behaviours of the sequence ``short``; 0 for none.
        content_space: of the content that the model reads; ``None`` if it reads none.
        gaps: as of `aif_jax.export`.

    Attributes:
        model: the module, after training with its weights.

    Raises:
        ConfigError: the object is no such module, or a setting is out of its range.
    """

    droppable: ClassVar[frozenset[str]] = frozenset()
    """`predict` can leave none of its parts out."""

    @typed
    def __init__(
        self,
        model: nnx.Module,
        schema: Schema,
        *,
        heads: tuple[str, ...],
        long_length: int = 0,
        short_length: int = 0,
        content_space: ContentSpace | None = None,
        gaps: bool = False,
    ) -> None:
        name = type(model).__name__
        if absent := [each for each in ("item", "user", "interact") if not hasattr(model, each)]:
            raise ConfigError(
                f"{name}: has no method {', '.join(absent)}; expected those of aif_jax.PreRanker."
            )
        if jax.tree.leaves(nnx.state(model, nnx.BatchStat)):
            raise ConfigError(
                f"{name}: keeps running statistics (nnx.BatchStat), which training does not update; use "
                "nnx.LayerNorm, or train it yourself and export it."
            )
        config = OwnConfig(
            name=name, heads=heads, score=heads[0] if heads else "", short_length=max(short_length, 1),
            long_length=max(long_length, 1),
            content_width=1 if content_space is None else content_space.width, reads_gaps=gaps,
        )  # fmt: skip
        if gaps and not long_length:
            raise ConfigError("gaps: got True, but they are of the sequence long; give a long_length.")
        self.model = model
        self._sequences = tuple(
            which for which, length in (("short", short_length), ("long", long_length)) if length
        )
        self._setting = Setting(cast(Any, config), schema)
        self._setting.content_space = cast(Any, content_space)

    @property
    def config(self) -> OwnConfig:
        """Lengths, heads and name of the model."""
        return cast(OwnConfig, self._setting.config)

    @property
    def schema(self) -> Schema:
        """The schema that the model was built for."""
        return self._setting.schema

    @property
    def content_space(self) -> ContentSpace | None:
        """The space of the content embeddings that the model reads; ``None`` if it reads none."""
        return self._setting.content_space

    def __call__(
        self,
        batch: Mapping[str, Any],
        catalogue: Columns,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Return the logits ``[B, G, heads]`` of requests.

        Args:
            batch: see `aif_jax.data.batching`.
            catalogue: encoded items, see `Dataset.catalogue`.
            train: in training mode.
            rngs: random numbers of the step, for dropout.

        Raises:
            ConfigError: the model does not return the logits of its heads.
        """
        # A copy, since what a compiled step was given must not change in it.
        model: Any = nnx.clone(self.model)
        if train:
            model.train()
            key = jax.random.key(0) if rngs is None else rngs()
            nnx.reseed(model, default=key, dropout=key)
        else:
            model.eval()
        columns = as_arrays(catalogue)

        def rows(function: Callable[..., Any], items: jax.Array) -> dict[str, jax.Array]:
            taken = {name: column[jnp.maximum(items, 0).ravel()] for name, column in columns.items()}
            found = function(taken)
            return {name: leaf.reshape(*items.shape, *leaf.shape[1:]) for name, leaf in found.items()}

        histories: dict[str, dict[str, jax.Array]] = {}
        for which in self._sequences:
            types = jnp.asarray(batch[f"{which}_type"])
            mask = types >= 0
            read = getattr(model, "behaviour", None)
            vectors = {} if read is None else rows(read, jnp.asarray(batch[f"{which}_item"]))
            shown = {
                name: jnp.where(mask.reshape(*mask.shape, *[1] * (leaf.ndim - 2)), leaf, 0)
                for name, leaf in vectors.items()
            }
            histories[which] = {**shown, "type": jnp.maximum(types, 0), "mask": mask}
            if which == "long" and self.config.reads_gaps:
                histories[which]["gap"] = jnp.where(mask, jnp.asarray(batch["long_gap"]), 0)
        # All rows of a request have its context.
        context = {name: leaf[:, 0] for name, leaf in batch["context"].items()}
        states, items = model.user(batch["user"], histories), rows(model.item, jnp.asarray(batch["item"]))
        logits = functools.partial(self._logits, model)
        return jax.vmap(logits)(states, context, items, batch["pair"])

    def _logits(
        self, model: Any, state: Columns, context: Columns, rows: Columns, pair: Columns
    ) -> jax.Array:
        logits, heads = model.interact(state, context, rows, pair), self.config.heads
        if isinstance(logits, Mapping):
            if missing := set(heads) - set(logits):
                raise ConfigError(
                    f"{self.config.name}.interact: returned logits of {sorted(logits)}, but not of the heads "
                    f"{sorted(missing)}; name the logits as the labels."
                )
            return jnp.stack([logits[head] for head in heads], axis=-1)
        if logits.ndim != 2 or logits.shape[1] != len(heads):
            raise ConfigError(
                f"{self.config.name}.interact: returned logits {logits.shape}, expected [N, {len(heads)}]."
            )
        return logits
