import numpy as np
import pytest

from aif_jax.data import load
from aif_jax.errors import ConfigError
from aif_jax.evaluation import VARIANTS
from aif_jax.evaluation.curves import CURVES, curve
from aif_jax.training import preset


@pytest.mark.parametrize("name", CURVES)
def test_every_step_is_another_model_and_aif_is_there(name: str) -> None:
    model, _ = preset("movielens-1m")
    steps = curve(name, model, load("synthetic:small", content_width=64))
    configs = [step.config(model) for step in steps]
    assert len(set(configs)) == len(configs) == len({step.name for step in steps})
    assert VARIANTS["aif"] in steps
    # A step has the name of a variant only if it is that variant: rows are kept by name.
    assert all(VARIANTS.get(step.name, step) is step for step in steps)


def test_steps_are_those_that_data_and_preset_allow() -> None:
    model, _ = preset("movielens-1m")
    dataset = load("synthetic:small", content_width=48)

    def values(name: str, field: str) -> list[object]:
        return [getattr(step.config(model), field) for step in curve(name, model, dataset)]

    assert values("bridges", "bridges") == [1, 2, 4, 8, 16, 32, 64]
    assert values("tiers", "tiers") == [16, 2, 4, 8, 16, 32]  # aif's own are not even
    assert values("signature", "signature") == ["simhash"] * 4 + ["int8"] * 2
    assert values("signature", "signature_bits")[:4] == [64, 128, 256, 512]
    lengths = values("history", "long_length")
    rows = dataset.impressions
    longest = int((rows.history_end - dataset.events.offsets[rows.user]).max())
    assert lengths[0] == model.long_length  # 256 is no step
    assert lengths[1:] == [50, 100, 200, 500, 1000, 2000][: len(lengths) - 1]
    assert lengths[-1] >= min(longest, 2000)
    assert lengths[-2] < longest
    assert np.diff(lengths[1:]).min() > 0
    with pytest.raises(ConfigError, match="expected one of signature, tiers"):
        curve("moon", model, dataset)
