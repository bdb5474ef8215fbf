"""Tested settings by data set, chosen on the validation part, never on the test part.

They stand in the files of `aif_jax.data.configs`, which have the shape of everybody's config.
"""

from aif_jax.checks import typed
from aif_jax.config import ModelConfig
from aif_jax.data.described import built_in_settings
from aif_jax.training.config import TrainConfig

REFIT = frozenset({"kuairand"})
"""Data sets split by date. Their models train on the validation part too before the test, because it is the
nearest to the test in time. Their epochs were chosen with the validation part held out."""

WHOLE_REQUESTS = frozenset({"kuairand"})
"""Data sets whose candidate lists hold whole requests: all that a user was shown on one day, positive or not.
The others do not record what was shown together, and each of their lists holds one positive."""


@typed
def preset(name: str, architecture: str = "aif") -> tuple[ModelConfig, TrainConfig]:
    """Return settings for a data set and an architecture.

    Args:
        name: `aif_jax.data.Dataset.name`.
        architecture: ``aif``, ``exact``, ``cold`` or ``two_tower``; all share the data set's widths.

    Raises:
        ConfigError: there are no settings for this data set, or no such architecture.
    """
    parts = built_in_settings(name)
    model = ModelConfig.from_json({**parts["model"], "architecture": architecture})
    return model, TrainConfig.from_json(parts["training"])
