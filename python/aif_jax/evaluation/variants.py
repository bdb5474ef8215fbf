"""What is compared: baselines, the model, the model without each of its blocks, and controls."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aif_jax.config import BLOCKS, ModelConfig
from aif_jax.data import SHOWN, Dataset
from aif_jax.errors import ConfigError
from aif_jax.training import TrainConfig

NEGATIVES = 8
"""Sampled items that are added to each request of up to 16 impressions, in variants that learn from such."""

ModelChange = Callable[[ModelConfig], ModelConfig]

DataChange = Callable[[Dataset, int], Dataset]
"""From a data set and the seed of a row to the data set that the row is trained and tested on."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to be trained beside others.

    Attributes:
        name: short, also that of its folder.
        text: what it is, in words.
        changes: fields of `ModelConfig` that differ from the data set's preset.
        model: changes the preset before, where the new fields depend on its; ``None`` for nothing.
        data: changes what items carry; ``None`` for nothing. Events and impressions, their order and their
            labels must stay, since all rows are compared on them; labels may be added.
        training: fields of `TrainConfig` that differ from the preset. Where they say that it learns from a
            teacher, it is that of `aif_jax.evaluation.teaching`.
    """

    name: str
    text: str
    changes: Mapping[str, Any]
    model: ModelChange | None = None
    data: DataChange | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, preset: ModelConfig) -> ModelConfig:
        """Return the model's config, given that of ``aif``."""
        return (preset if self.model is None else self.model(preset)).replace(**self.changes)

    def trained(self, preset: TrainConfig) -> TrainConfig:
        """Return how the model is trained, given how ``aif`` is."""
        return preset.replace(**self.training)

    def dataset(self, dataset: Dataset, seed: int) -> Dataset:
        """Return what a row of this variant is trained and tested on.

        Args:
            dataset: the study's.
            seed: of the row.
        """
        return dataset if self.data is None else self.data(dataset, seed)


def with_shuffled_content(dataset: Dataset, seed: int) -> Dataset:
    """Return the set with content embeddings dealt out anew among the items that have one.

    An item still has an embedding of its own, so a model can learn it by heart as before; but how alike two
    items are, which is what long-sequence attention and SimTier read of it, says nothing but whether they are
    one.

    Args:
        dataset: with content embeddings; one without stays as it is.
        seed: of the shuffle.
    """
    if dataset.content is None:
        return dataset
    vectors = dataset.content.vectors.copy()
    have = np.flatnonzero(dataset.content.has)
    vectors[have] = vectors[np.random.default_rng(seed).permutation(have)]
    return dataclasses.replace(dataset, content=dataclasses.replace(dataset.content, vectors=vectors))


def with_shown_head(preset: ModelConfig) -> ModelConfig:
    """Return a config with one more head, for what is shown, by which the score is multiplied.

    That head's odds are how much likelier an item is to be shown to the user than to be sampled, so the
    product orders by how likely it is to be shown and then liked.
    """
    score = f"({preset.score}) * exp(logit_{SHOWN})"
    return preset.replace(heads=(*preset.heads, SHOWN), score=score)


def _with_shown_label(dataset: Dataset, seed: int) -> Dataset:
    return dataset.with_shown_label()


def _and_what_is_shown(name: str, changes: Mapping[str, Any]) -> Variant:
    return Variant(
        f"{name}_shown",
        f"{name} with one more head, which tells shown items from {NEGATIVES} sampled ones a request",
        changes,
        model=with_shown_head,
        data=_with_shown_label,
        training={"negatives": NEGATIVES, "negative_heads": (SHOWN,)},
    )


def _without(*blocks: str) -> dict[str, Any]:
    return {"blocks": tuple(block for block in BLOCKS if block not in blocks)}


_ALL = (
    Variant("two_tower", "a dot product of two towers", {"architecture": "two_tower"}),
    Variant("cold", "no long sequence, no bridges", {"architecture": "cold"}),
    Variant(
        "cold_wide", "the same with as many weights as aif: wider layers",
        {"architecture": "cold", "hidden": 128, "head_layers": (64,)},
    ),
    Variant("aif", "everything", {}),
    Variant(
        "aif_distilled", "aif taught by a wider aif with int8 signatures, which does not judge it", {},
        training={"distillation_weight": 1.0},
    ),
    Variant(
        "aif_negatives", f"aif that learns from {NEGATIVES} sampled items a request too, as negatives", {},
        training={"negatives": NEGATIVES},
    ),
    _and_what_is_shown("aif", {}),
    _and_what_is_shown("cold", {"architecture": "cold"}),
    _and_what_is_shown("exact", {"architecture": "exact"}),
    Variant("exact", "softmax attention and float similarities throughout", {"architecture": "exact"}),
    Variant("aif-bridge", "aif without bridge embeddings", _without("bridge")),
    Variant("aif-long_attention", "aif without long-sequence attention", _without("long_attention")),
    Variant("aif-simtier", "aif without SimTier", _without("simtier")),
    Variant("aif-sim_hard", "aif without category sub-sequences", _without("sim_hard")),
    Variant("aif-self_attention", "aif without self-attention", _without("self_attention")),
    Variant("aif-profile_item", "aif without profile x item", _without("profile_item")),
    Variant(
        "aif_short", "control: aif with all blocks, whose long sequence is as short as the short one", {},
        model=lambda preset: preset.replace(long_length=preset.short_length),
    ),
    Variant("aif_sign", "aif with sign attention", {"long_attention": "sign"}),
    Variant("aif_collision", "aif with collision attention", {"long_attention": "collision"}),
    Variant("aif_int8", "aif with int8 signatures", {"signature": "int8"}),
    Variant(
        "aif_mean", "control: the long sequence as its mean only, the same for every candidate",
        {**_without("simtier", "sim_hard"), "long_attention": "mean"},
    ),
    Variant(
        "aif_shuffled", "control: content embeddings and signatures shuffled among the items", {},
        data=with_shuffled_content,
    ),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}
"""By name, in the order of the table."""


def chosen(names: str, *, sampled: bool = True) -> list[Variant]:
    """Return variants by their names.

    Args:
        names: separated by commas; ``all`` for all.
        sampled: whether ``all`` has those that learn from sampled items, see
            `aif_jax.training.can_sample`.

    Raises:
        ConfigError: a name is unknown or comes twice.
    """
    if names == "all":
        return [each for each in VARIANTS.values() if sampled or "negatives" not in each.training]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or len(set(wanted)) != len(wanted) or any(name not in VARIANTS for name in wanted):
        raise ConfigError(
            f"variants: got {names!r}, expected different ones of {', '.join(VARIANTS)}, separated by "
            "commas, or all."
        )
    return [VARIANTS[name] for name in wanted]
