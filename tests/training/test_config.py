import json

import pytest

from aif_jax.errors import ConfigError
from aif_jax.training.config import TrainConfig


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(long_buckets=(32, 64), head_weights=(1.0, 0.5), negative_heads=("ctr",), max_steps=7),
        TrainConfig(distillation_list_weight=0.5),
    ],
)
def test_train_config_json_round_trip_is_equal(config):
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_train_config_replace_validates():
    assert TrainConfig().replace(epochs=3).epochs == 3
    with pytest.raises(ConfigError, match="epochs: got 0"):
        TrainConfig().replace(epochs=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("group", True),
        ("max_steps", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1e-3),
        ("distillation_weight", -1),
        ("final_rate", 1.5),
        ("negative_popularity", -0.1),
        ("negative_bottom", 0.5),  # of no negatives
        ("negative_keep_rate", 0.0),
        ("long_buckets", (64, 32)),
        ("long_buckets", (0,)),
        ("head_weights", (-1.0,)),
        ("checkpoint_interval", 10),
        ("next_weight", -1.0),
        ("next_pool", 0),
    ],
)
def test_train_config_invalid_value_raises_with_name(field, value):
    with pytest.raises(ConfigError, match=field):
        TrainConfig(**{field: value})


def test_train_config_unknown_field_raises():
    with pytest.raises(ConfigError, match="learning_rat'"):
        TrainConfig.from_json({"learning_rat": 1e-3})
