"""Settings of training to choose from, as variants of a study on the validation part."""

import json
import re
from pathlib import Path
from typing import Any

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation.variants import VARIANTS, Variant
from aif_jax.training import TrainConfig, can_sample

PRESET = "preset"
"""The name that asks for `usual_settings`."""


def usual_settings(model: ModelConfig, training: TrainConfig, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Return what is worth trying beside a preset, one thing at a time.

    Args:
        model: the config of ``aif``.
        training: the preset.
        dataset: where items have pair features that the model reads, nothing is sampled.

    Returns:
        Fields of `TrainConfig` that differ from the preset, by name.
    """
    rate = training.learning_rate
    found: dict[str, dict[str, Any]] = {
        "rate_halved": {"learning_rate": rate / 2},
        "rate_doubled": {"learning_rate": rate * 2},
        "one_epoch_more": {"epochs": training.epochs + 1},
        "distilled_0.5": {"distillation_weight": 0.5},
        "distilled_1": {"distillation_weight": 1.0},
        "distilled_lists": {"distillation_list_weight": 1.0},
    }
    if not can_sample(dataset.schema, model):
        return found
    return {
        "negatives_4": {"negatives": 4},
        "negatives_8": {"negatives": 8},
        "negatives_4_uniform": {"negatives": 4, "negative_popularity": 0.0},
        "negatives_4_popular": {"negatives": 4, "negative_popularity": 1.0},
        "negatives_4_bottom": {"negatives": 4, "negative_bottom": 0.5},
        **found,
    }


def settings_variants(
    wanted: str, model: ModelConfig, training: TrainConfig, dataset: Dataset
) -> list[Variant]:
    """Return ``aif`` as it is and with each of some settings; of the usual ones also ``aif_shown``.

    Args:
        wanted: `PRESET` for `usual_settings`, or a JSON file of such a dictionary.
        model: the config of ``aif``.
        training: the preset.
        dataset: what is trained on.

    Raises:
        ConfigError: the file holds no such dictionary, a name is no name of a file, a field is unknown or
            invalid, or a setting changes nothing.
    """
    settings = usual_settings(model, training, dataset) if wanted == PRESET else _read(Path(wanted))
    plain = VARIANTS["aif"]
    found = [plain]
    for name, changes in settings.items():
        # From JSON, so that an unknown field is an error of ours.
        config = TrainConfig.from_json({**training.to_json(), **changes})
        if config == training:
            raise ConfigError(f"settings {name!r}: {changes} change nothing; leave them out.")
        text = "aif trained with " + ", ".join(f"{field} {value}" for field, value in changes.items())
        found.append(Variant(f"aif_{name}", text, plain.changes, training=changes))
    if wanted == PRESET and can_sample(dataset.schema, model):
        found.append(VARIANTS["aif_shown"])
    return found


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected {PRESET!r} or a JSON file of settings: {error}.") from error
    if not isinstance(settings, dict) or not all(
        re.fullmatch(r"\w[\w.-]*", name) and isinstance(each, dict) for name, each in settings.items()
    ):
        raise ConfigError(
            f'{path}: expected settings by name, such as {{"more": {{"epochs": 3}}}}, each with fields of '
            "TrainConfig, and names of letters, digits, dots and dashes."
        )
    return settings
