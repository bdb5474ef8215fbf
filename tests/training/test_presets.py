import pytest

from aif_jax.data import load
from aif_jax.errors import ConfigError
from aif_jax.training.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("architecture", ["aif", "exact", "cold", "two_tower"])
def test_every_data_set_has_settings_for_every_architecture(name, architecture):
    model, training = preset(name, architecture)
    assert model.architecture == architecture
    assert training.epochs >= 1
    assert all(size <= model.long_length for size in training.long_buckets)


def test_settings_fit_the_data_they_are_for(dataset):
    model, _ = preset(dataset.name)
    assert set(model.heads) <= set(dataset.heads)
    assert load("synthetic:small").content.vectors.shape[1] >= model.content_width


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="no settings for data set 'netflix', only for synthetic"):
        preset("netflix")
    with pytest.raises(ConfigError, match="architecture: got 'dcn'"):
        preset("synthetic", "dcn")
