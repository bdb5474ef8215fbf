"""`ModelConfig` fields from a file, and a data set whose content is wide enough for a model."""

import json
from pathlib import Path
from typing import Any

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset, load
from aif_jax.errors import ConfigError

_CONTENT_WIDTH = 64


def read_fields(path: Path | None) -> dict[str, Any]:
    """Return the fields of a JSON file; none if there is no file.

    Raises:
        ConfigError: the file is not a JSON object, or names other fields than those of `ModelConfig`.
    """
    if path is None:
        return {}
    try:
        fields = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: expected a JSON object of ModelConfig fields: {error}.") from error
    known = ModelConfig().to_json().keys()
    if unknown := sorted(fields.keys() - known):
        raise ConfigError(f"{path}: {unknown} are not ModelConfig fields; known are {sorted(known)}.")
    return fields


def load_for(data: str, fields: dict[str, Any]) -> Dataset:
    """Load a data set with content embeddings as wide as a model reads, and 64 columns at least.

    Narrower ones are the first columns of those, so models of 64 and less share one derivation.

    Args:
        data: as `aif_jax.data.load` takes it.
        fields: of the model's config; ``content_width`` is read.

    Raises:
        ConfigError: the width is not a positive integer.
        DataError: see `aif_jax.data.load`.
    """
    width = {name: value for name, value in fields.items() if name == "content_width"}
    return load(data, content_width=max(_CONTENT_WIDTH, ModelConfig.from_json(width).content_width))
