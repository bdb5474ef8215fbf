"""Tested settings by data set, chosen on the validation part, never on the test part.

``movielens-1m-new-users`` has the settings of ``movielens-1m``, whose validation part has rows of all users.
"""

from typing import Any

from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.training.config import TrainConfig

_MODEL: dict[str, dict[str, Any]] = {
    "synthetic": {
        "heads": ("ctr", "like"),
        "score": "ctr",
        "content_width": 64,
        "block_dropout": 0.05,
        "item_id_dropout": 0.05,
    },
    # One user in 15 has 500 behaviours or more, one in 147 has 1,000 or more.
    "movielens-1m": {
        "heads": ("liked",),
        "score": "liked",
        "content_width": 64,
        "long_length": 1000,
        "block_dropout": 0.02,
        "item_id_dropout": 0.02,
    },
    "movielens-100k": {
        "heads": ("liked",),
        "score": "liked",
        "content_width": 64,
        "block_dropout": 0.05,
        "item_id_dropout": 0.05,
    },
    # 19 histories of 20 are shorter than 60 behaviours.
    "kuairand": {
        "heads": ("long_view", "is_click"),
        "score": "long_view",
        "content_width": 64,
        "long_length": 96,
        "block_dropout": 0.05,
        "item_id_dropout": 0.05,
    },
}

_MODEL["movielens-1m-new-users"] = _MODEL["movielens-1m"]

_TRAINING: dict[str, dict[str, Any]] = {
    "synthetic": {"epochs": 2, "learning_rate": 6e-3},
    "movielens-1m": {"epochs": 3, "learning_rate": 8e-3, "long_buckets": (64, 128, 256, 512, 1000)},
    "movielens-100k": {"epochs": 4, "learning_rate": 6e-3},
    "kuairand": {"epochs": 2, "learning_rate": 6e-3, "batch_size": 128},
}

_TRAINING["movielens-1m-new-users"] = _TRAINING["movielens-1m"]

REFIT = frozenset({"kuairand"})
"""Data sets split by date. Their models train on the validation part too before the test, because it is the
nearest to the test in time. Their epochs were chosen with the validation part held out."""

WHOLE_REQUESTS = frozenset({"kuairand"})
"""Data sets whose candidate lists hold whole requests: all that a user was shown on one day, positive or not.
The others do not record what was shown together, and each of their lists holds one positive."""

PRESETS = tuple(_MODEL)
"""Names of the data sets that have settings of their own."""


def preset(name: str, architecture: str = "aif") -> tuple[ModelConfig, TrainConfig]:
    """Return settings for a data set and an architecture.

    Args:
        name: `aif_jax.data.Dataset.name`.
        architecture: ``aif``, ``exact``, ``cold`` or ``two_tower``; all share the data set's widths.

    Raises:
        ConfigError: there are no settings for this data set, or no such architecture.
    """
    if name not in _MODEL:
        raise ConfigError(
            f"no settings for data set {name!r}, only for {', '.join(PRESETS)}; give your own ModelConfig "
            "and TrainConfig."
        )
    model = ModelConfig.from_json({**_MODEL[name], "architecture": architecture})
    return model, TrainConfig(**_TRAINING[name])
