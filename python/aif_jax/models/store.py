"""A trained model on disk: its configuration, its schema and its weights, in files that no code runs from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aif_jax.checks import well_formed
from aif_jax.config import ModelConfig
from aif_jax.data.digests import digest_of_arrays
from aif_jax.errors import BundleError, WriteError
from aif_jax.features import ContentSpace, Schema
from aif_jax.features.content_space import CONTENT_SPACE
from aif_jax.files import foreign_names, read_file, write_directory
from aif_jax.models.baselines import Model, build_model
from aif_jax.strict_json import shortened

CONFIG, WEIGHTS = "model.json", "weights.safetensors"
_FORMAT = 1


def save_model(model: Model, path: Path, *, metrics: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write a trained model into a directory.

    Args:
        model: what was trained.
        path: the directory; a model that is there is replaced, once the new one has been read back.
        metrics: its quality, JSON-serialisable.
        notes: what else to keep with it (data set, seed), JSON-serialisable.

    Raises:
        BundleError: a parameter is not finite, which is named; the directory holds other files; or it cannot
            be written. What was there is as it was.
    """
    if path.is_dir() and (foreign := foreign_names(path, (CONFIG, WEIGHTS, CONTENT_SPACE))):
        raise BundleError(
            f"{path}: holds {', '.join(foreign[:3])}, which is no part of a saved model, so it is not "
            "replaced; choose another directory."
        )
    weights = weights_of(model)
    check_finite(weights, "the model's parameters")
    description = {
        "format": _FORMAT,
        "model": model.config.to_json(),
        "schema": model.schema.to_json(),
        "metrics": dict(metrics),
        "notes": dict(notes),
    }
    files = {WEIGHTS: save(weights)}
    model.content_space.write(description, files)
    files[CONFIG] = json.dumps(description, indent=1).encode()
    try:
        write_directory(path, files, load_model)
    except WriteError as error:
        raise BundleError(str(error)) from error


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
    """Read what `save_model` wrote.

    Returns:
        The model, and the description with ``metrics`` and ``notes``.

    Raises:
        BundleError: a file is missing or broken, or the weights do not fit the configuration.
    """
    try:
        description = json.loads(read_file(path / CONFIG))
        weights = load(read_file(path / WEIGHTS))
        arrays = load(read_file(path / CONTENT_SPACE)) if (path / CONTENT_SPACE).exists() else {}
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise BundleError(
            f"{path}: not a saved model ({error}); expected {CONFIG} and {WEIGHTS}, "
            "as `aif train` writes them."
        ) from error
    found = description.get("format") if isinstance(description, dict) else description
    if found != _FORMAT:
        raise BundleError(f"{path}: format {shortened(repr(found))}, this release reads {_FORMAT}.")
    with well_formed(path / CONFIG, BundleError, "train the model again, or copy it again"):
        schema = Schema.from_json(description["schema"])
        config = ModelConfig.from_json(description["model"])
        space = ContentSpace.read(description, arrays, config.content_width)
        model = build_model(config, schema, content_space=space)
    set_weights(model, weights, str(path))
    return model, description


def weights_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the parameters of a model by dotted name."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)), sep=".")
    return {name: np.asarray(value) for name, value in sorted(flat.items())}


def digest_of_model(model: Model) -> str:
    """Return a digest of a model's config, schema, content space and weights."""
    space = model.content_space
    about = [model.config.to_json(), model.schema.to_json(), space.to_json()]
    written = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    return digest_of_arrays(written, *space.arrays().values(), *weights_of(model).values())


def check_finite(weights: Mapping[str, np.ndarray], what: str) -> None:
    """Check that no weight is infinite or NaN.

    Args:
        weights: arrays by dotted name.
        what: what they are, for the message.

    Raises:
        BundleError: one is, which is named with the place of the first such value.
    """
    wrong = {
        name: bad for name, array in weights.items()
        if array.dtype.kind not in "iub" and len(bad := np.argwhere(~np.isfinite(array)))
    }  # fmt: skip
    if wrong:
        name, places = next(iter(wrong.items()))
        first = places[0].tolist()
        others = (
            f", and so are some of {len(wrong) - 1} more ({', '.join(list(wrong)[1:4])})"
            if wrong.keys() - {name}
            else ""
        )
        raise BundleError(
            f"{what}: {name} has {len(places):,} of {weights[name].size:,} values that are not finite, the "
            f"first is {weights[name][tuple(first)]} at {first}{others}; a model that diverged is not "
            "written. Train again with a lower learning rate, or take an earlier checkpoint."
        )


def set_weights(model: nnx.Module, weights: Mapping[str, np.ndarray], origin: str) -> None:
    """Put weights by dotted name into a model.

    Raises:
        BundleError: names or shapes differ from the model's.
    """
    state = nnx.state(model, nnx.Param)
    expected: dict[str, Any] = dict(traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="."))
    if set(expected) != set(weights):
        raise BundleError(
            f"{origin}: weights {sorted(set(expected) ^ set(weights))} are only in the file "
            "or only in the model."
        )
    for name, value in expected.items():
        if value.shape != weights[name].shape:
            raise BundleError(
                f"{origin}: weight {name} has shape {weights[name].shape}, the model expects {value.shape}."
            )
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(dict(weights), sep="."))
    nnx.update(model, state)
