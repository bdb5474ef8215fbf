"""Readers of what others wrote, each as a function of bytes.

A target returns if its reader raises an `AifError` with a short message, or gives a value that is right: it
comes back when it is written and read again. It raises for anything else. Inputs are JSON where a reader's
are, so that one mutator (`fuzz.mutation`) serves all. A file with checksums is described in JSON and written
with right ones, as another program might write it; bytes that are not JSON are the file themselves.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.data.described import checked
from aif_jax.errors import AifError
from aif_jax.features import Schema
from aif_jax.features.score import Score
from aif_jax.integrations.redis import decode_update, decode_user, encode_update, encode_user
from aif_jax.strict_json import dumps, parse
from aif_jax.training import TrainConfig
from fuzz import files

Target = Callable[[bytes], None]

MAX_MESSAGE = 3000
"""Characters of a message: several given values, each cut to 200, beside the names that are known."""


def refusing(target: Target) -> Target:
    """Return a target that may also refuse: by an error of ours with a short message that can be printed."""

    @functools.wraps(target)
    def run(data: bytes) -> None:
        try:
            target(data)
        except AifError as error:
            message = str(error)
            message.encode()
            assert len(message) <= MAX_MESSAGE, f"{len(message)} characters: {message[:300]}"

    return run


def from_json(data: bytes) -> Any:
    """Return JSON as Python reads it, with NaN and keys given twice; an empty object for other bytes."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return {}


def same(again: Any, value: Any) -> None:
    """Check that a value came back."""
    assert again == value, f"{again!r:.500} instead of {value!r:.500}"


def strict_json(data: bytes) -> None:
    values = parse(data, max_depth=16)
    same(values, json.loads(data))
    same(parse(dumps(values), max_depth=16), values)


def schema(data: bytes) -> None:
    made = Schema.from_json(from_json(data))
    again = Schema.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    same(again.to_json(), made.to_json())
    if made.fitted:
        assert all(feature.size >= 2 for feature in made.item if hasattr(feature, "size"))


def model_config(data: bytes) -> None:
    _config(ModelConfig, data)


def train_config(data: bytes) -> None:
    _config(TrainConfig, data)


def _config(kind: Any, data: bytes) -> None:
    made = kind.from_json(from_json(data))
    same(kind.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))), made)


def description(data: bytes) -> None:
    values = from_json(data)
    if not isinstance(values, dict):
        return
    described = checked("config.toml", values, "[data]")
    described.reading()
    described.settings("training", TrainConfig)


def score(data: bytes) -> None:
    given = Score(data.decode("utf-8", "surrogateescape"), ("ctr", "cvr"), ("bid", "price"))
    logits = np.array([[-1.0, 2.0], [0.0, 80.0], [3.0, -300.0]], np.float32)
    raw = {name: np.array([0.0, -2.0, 1e30], np.float32) for name in given.raw}
    scores, probabilities = given.in_numpy(logits, raw)
    assert (scores.shape, scores.dtype, probabilities.shape) == ((3,), np.float32, (3, 2))


def update(data: bytes) -> None:
    value = decode_update({b"update": data}, "entry")
    coded = encode_update(value, "entry")
    same(encode_update(decode_update({"update": coded}, "entry"), "entry"), coded)


def user(data: bytes) -> None:
    value = decode_user(data, "key")
    again = decode_user(encode_user(value, "key", keep_revision=True), "key")
    same(repr(again), repr(value))


TARGETS: dict[str, Target] = {
    target.__name__: refusing(target)
    for target in (
        strict_json, schema, model_config, train_config, description, score, update, user,
        files.manifest, files.bundle, files.snapshot, files.change_log, files.parquet, files.saved_model,
        files.run_identity, files.retriever,
    )
}  # fmt: skip
