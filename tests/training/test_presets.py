import pytest

from aif_jax.data import load
from aif_jax.errors import ConfigError
from aif_jax.training.presets import preset

PRESETS = ("kuairand", "movielens-100k", "movielens-1m", "movielens-1m-new-users", "synthetic")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("architecture", ["aif", "exact", "cold", "two_tower"])
def test_preset_exists_for_every_data_set_and_architecture(name, architecture):
    model, training = preset(name, architecture)
    assert model.architecture == architecture
    assert training.epochs >= 1
    assert all(size <= model.long_length for size in training.long_buckets)


def test_preset_fits_its_data_set(dataset):
    model, _ = preset(dataset.name)
    assert set(model.heads) <= set(dataset.heads)
    assert load("synthetic:small").content.vectors.shape[1] >= model.content_width


def test_preset_unknown_name_raises():
    with pytest.raises(ConfigError, match="no settings for data set 'netflix', only for kuairand"):
        preset("netflix")
    with pytest.raises(ConfigError, match="architecture: got 'dcn'"):
        preset("synthetic", "dcn")
