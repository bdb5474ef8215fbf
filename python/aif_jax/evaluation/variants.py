"""What is compared: baselines, the model, the model without each of its blocks, and controls."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from aif_jax.config import BLOCKS, LONG_BLOCKS, ModelConfig
from aif_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to be trained beside others.

    Attributes:
        name: short, also that of its folder.
        text: what it is, in words.
        changes: fields of `ModelConfig` that differ from the data set's preset.
    """

    name: str
    text: str
    changes: Mapping[str, Any]

    def config(self, preset: ModelConfig) -> ModelConfig:
        """Return the model's config, given that of ``aif``."""
        return preset.replace(**self.changes)


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
    Variant("exact", "softmax attention and float similarities throughout", {"architecture": "exact"}),
    Variant("aif-bridge", "aif without bridge embeddings", _without("bridge")),
    Variant("aif-long_attention", "aif without long-sequence attention", _without("long_attention")),
    Variant("aif-simtier", "aif without SimTier", _without("simtier")),
    Variant("aif-sim_hard", "aif without category sub-sequences", _without("sim_hard")),
    Variant("aif-self_attention", "aif without self-attention", _without("self_attention")),
    Variant("aif-profile_item", "aif without profile x item", _without("profile_item")),
    Variant("aif-long", "aif that sees the short sequence only", _without(*LONG_BLOCKS)),
    Variant("aif_sign", "aif with sign attention", {"long_attention": "sign"}),
    Variant("aif_collision", "aif with collision attention", {"long_attention": "collision"}),
    Variant("aif_int8", "aif with int8 signatures", {"signature": "int8"}),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}
"""By name, in the order of the table."""


def chosen(names: str) -> list[Variant]:
    """Return variants by their names.

    Args:
        names: separated by commas; ``all`` for all.

    Raises:
        ConfigError: a name is unknown or comes twice.
    """
    if names == "all":
        return list(VARIANTS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or len(set(wanted)) != len(wanted) or any(name not in VARIANTS for name in wanted):
        raise ConfigError(
            f"variants: got {names!r}, expected different ones of {', '.join(VARIANTS)}, separated by "
            "commas, or all."
        )
    return [VARIANTS[name] for name in wanted]
