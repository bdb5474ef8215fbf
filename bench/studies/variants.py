"""The models of the table: baselines, the model, the model without each of its blocks, and controls."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aif_jax.config import BLOCKS, ModelConfig
from aif_jax.data import SHOWN, Dataset
from aif_jax.errors import ConfigError

NEGATIVES = 8
"""Sampled items that are added to each request of up to 16 impressions, in variants that learn from such."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to be trained beside others, by what differs from ``aif`` of the data set's preset."""

    name: str  # also that of its files
    text: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of `ModelConfig`
    model: Callable[[ModelConfig], ModelConfig] = lambda preset: preset  # before these changes
    # From a data set and the seed of a row to what the row is trained on; rows and their labels must stay.
    data: Callable[[Dataset, int], Dataset] = lambda dataset, _: dataset
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of `TrainConfig`

    def config(self, preset: ModelConfig) -> ModelConfig:
        return self.model(preset).replace(**self.changes)


def with_shuffled_content(dataset: Dataset, seed: int) -> Dataset:
    """Return the set with content embeddings dealt out anew among the items that have one.

    A model can learn an embedding by heart as before, but how alike two of them are says nothing any more.
    """
    if dataset.content is None:
        return dataset
    vectors = dataset.content.vectors.copy()
    have = np.flatnonzero(dataset.content.has)
    vectors[have] = vectors[np.random.default_rng(seed).permutation(have)]
    return dataclasses.replace(dataset, content=dataclasses.replace(dataset.content, vectors=vectors))


def with_shown_head(preset: ModelConfig) -> ModelConfig:
    """Return a config with one more head, for what is shown, by whose odds the score is multiplied."""
    score = f"({preset.score}) * exp(logit_{SHOWN})"
    return preset.replace(heads=(*preset.heads, SHOWN), score=score)


def _shown(name: str, architecture: str) -> Variant:
    return Variant(
        f"{name}_shown", f"{name} with a head that tells shown items from {NEGATIVES} sampled ones a request",
        {"architecture": architecture}, model=with_shown_head,
        data=lambda dataset, seed: dataset.with_shown_label(),
        training={"negatives": NEGATIVES, "negative_heads": (SHOWN,)},
    )  # fmt: skip


def _without(*blocks: str) -> dict[str, Any]:
    return {"blocks": tuple(block for block in BLOCKS if block not in blocks)}


_ALL = (
    Variant("two_tower", "a dot product of two towers", {"architecture": "two_tower"}),
    Variant("cold", "no long sequence, no bridges", {"architecture": "cold"}),
    Variant("cold_wide", "the same with as many weights as aif",
            {"architecture": "cold", "hidden": 128, "head_layers": (64,)}),
    Variant("aif", "everything"),
    Variant("exact", "softmax attention and float similarities throughout", {"architecture": "exact"}),
    Variant("aif-bridge", "aif without bridge embeddings", _without("bridge")),
    Variant("aif-long_attention", "aif without long-sequence attention", _without("long_attention")),
    Variant("aif-simtier", "aif without SimTier", _without("simtier")),
    Variant("aif-sim_hard", "aif without category sub-sequences", _without("sim_hard")),
    Variant("aif-self_attention", "aif without self-attention", _without("self_attention")),
    Variant("aif-profile_item", "aif without profile x item", _without("profile_item")),
    Variant("aif_short", "control: aif whose long sequence is as short as the short one",
            model=lambda preset: preset.replace(long_length=preset.short_length)),
    Variant("aif_mean", "control: the long sequence as its mean only, the same for every candidate",
            {**_without("simtier", "sim_hard"), "long_attention": "mean"}),
    Variant("aif_shuffled", "control: content embeddings and signatures shuffled among the items",
            data=with_shuffled_content),
    Variant("aif_sign", "aif with sign attention", {"long_attention": "sign"}),
    Variant("aif_collision", "aif with collision attention", {"long_attention": "collision"}),
    Variant("aif_int8", "aif with int8 signatures", {"signature": "int8"}),
    Variant("aif_negatives", f"aif that learns from {NEGATIVES} sampled items a request too, as negatives",
            training={"negatives": NEGATIVES}),
    _shown("aif", "aif"), _shown("cold", "cold"), _shown("exact", "exact"),
    dataclasses.replace(
        _shown("aif_deep", "aif"), text="aif_shown with an encoder of two layers, eight epochs",
        changes={"architecture": "aif", "encoder_layers": 2, "encoder_reach": 128},
        training={
            "negatives": 2 * NEGATIVES, "negative_heads": (SHOWN,), "next_weight": 1.0, "epochs": 8,
            "head_weights": (4.0, 1.0), "long_buckets": (128, 512, 1000),
        },
    ),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}
"""By name, in the order of the table."""


def chosen(names: str, *, sampled: bool = True) -> list[Variant]:
    """Return variants by their names, separated by commas, or ``all``, without those that learn from samples
    unless items can be ``sampled`` (`aif_jax.training.can_sample`).

    Raises:
        ConfigError: a name is unknown or comes twice.
    """
    if names == "all":
        return [each for each in VARIANTS.values() if sampled or "negatives" not in each.training]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or len(set(wanted)) != len(wanted) or any(name not in VARIANTS for name in wanted):
        known = ", ".join(VARIANTS)
        raise ConfigError(f"variants: got {names!r}, expected different ones of {known}, or all.")
    return [VARIANTS[name] for name in wanted]
