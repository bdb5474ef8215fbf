"""Fidelity curves: one approximation of the model at a time, from coarse to fine, as variants of a study."""

from collections.abc import Callable
from typing import Any

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation.variants import VARIANTS, Variant

BITS = (64, 128, 256, 512)
INT8_WIDTHS = (32, 48, 64, 128)
TIERS = (2, 4, 8, 16, 32)
BRIDGES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (50, 100, 200, 500, 1000, 2000)

Steps = list[tuple[str, str, dict[str, Any]]]
"""Of each step: short name, text, and fields of `ModelConfig`."""


def _signature(preset: ModelConfig, dataset: Dataset) -> Steps:
    width = preset.content_width if dataset.content is None else dataset.content.vectors.shape[1]
    steps: Steps = [
        (f"simhash{bits}", f"signatures of {bits} bits", {"signature": "simhash", "signature_bits": bits})
        for bits in BITS
    ]
    # An int8 signature is the content embedding in bytes, so its width is that of the embedding itself.
    return steps + [
        (
            f"int8x{size}",
            f"int8 signatures, content embeddings of width {size}",
            {"signature": "int8", "content_width": size},
        )
        for size in INT8_WIDTHS
        if size <= width
    ]


def _tiers(preset: ModelConfig, dataset: Dataset) -> Steps:
    low, high = preset.tier_edges[0], preset.tier_edges[-1]
    return [
        (
            f"tiers{count}",
            f"SimTier of {count} tiers, edges evenly from {low:g} to {high:g}",
            {"tier_edges": tuple(np.linspace(low, high, count + 1)[1:-1].round(6).tolist())},
        )
        for count in TIERS
    ]


def _bridges(preset: ModelConfig, dataset: Dataset) -> Steps:
    return [(f"bridges{count}", f"{count} bridges", {"bridges": count}) for count in BRIDGES]


def _attention(preset: ModelConfig, dataset: Dataset) -> Steps:
    steps: Steps = [
        (f"{kind}_attention", f"{kind} attention", {"long_attention": kind})
        for kind in ("mean", "linear", "sign")
    ]
    return steps + [
        (
            f"collision{bits}",
            f"collision attention, groups of {bits} bits",
            {"long_attention": "collision", "collision_bits": bits},
        )
        for bits in (2, 4, 8)
    ]


def _history(preset: ModelConfig, dataset: Dataset) -> Steps:
    rows = dataset.impressions
    longest = int((rows.history_end - dataset.events.offsets[rows.user]).max(initial=1))
    # Beyond the first length that holds every history there is nothing more to see.
    needed = [length for place, length in enumerate(LENGTHS) if place == 0 or LENGTHS[place - 1] < longest]
    return [(f"history{length}", f"long_length {length}", {"long_length": length}) for length in needed]


_CURVES: dict[str, Callable[[ModelConfig, Dataset], Steps]] = {
    "signature": _signature, "tiers": _tiers, "bridges": _bridges, "attention": _attention,
    "history": _history,
}  # fmt: skip

CURVES = tuple(_CURVES)
"""What may be varied."""


def curve(name: str, preset: ModelConfig, dataset: Dataset) -> list[Variant]:
    """Return the variants of one curve, from coarse to fine, and ``aif`` first if it is none of them.

    A step that is the model of one of `VARIANTS` is that variant, so that its rows are shared.

    Args:
        name: one of `CURVES`.
        preset: the config of ``aif``.
        dataset: how wide its content embeddings are and how long its histories.

    Raises:
        ConfigError: there is no such curve, or a step does not go with the preset.
    """
    if name not in _CURVES:
        raise ConfigError(f"curve: got {name!r}, expected one of {', '.join(CURVES)}.")
    plain = [variant for variant in VARIANTS.values() if variant.data is None and not variant.training]
    known = {variant.config(preset): variant for variant in plain}
    found: list[Variant] = []
    for short, text, changes in _CURVES[name](preset, dataset):
        made = Variant(f"aif_{short}", f"aif with {text}", changes)
        found.append(known.get(made.config(preset), made))
    aif = VARIANTS["aif"]
    return found if aif in found else [aif, *found]
