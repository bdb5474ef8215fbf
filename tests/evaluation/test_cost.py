"""What serving costs: sizes are those of what is really kept; what does not fold is told apart."""

import json

import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import load
from aif_jax.errors import ConfigError
from aif_jax.evaluation.cost import Cost, measure_costs, sizes
from aif_jax.evaluation.variants import Variant
from aif_jax.models import build_model
from aif_jax.models.store import weights_of

PRESET = ModelConfig(
    width=8, embedding_width=4, hidden=16, head_layers=(8,), item_layers=(8,), short_length=4, long_length=64,
    content_width=16, value_width=8, signature_bits=64, blocks=("simtier", "context"), heads=("ctr",),
)  # fmt: skip


def test_costs_of_what_folds_and_of_what_does_not() -> None:
    dataset = load("synthetic:small", content_width=16)
    variants = [
        Variant("aif", "", {}), Variant("exact", "", {"architecture": "exact"}),
        Variant("same", "", {}, data=lambda data, seed: data),
    ]  # fmt: skip
    said: list[str] = []
    found = measure_costs(dataset, PRESET, variants, candidates=208, rounds=3, step=said.append)
    assert list(found) == ["aif", "exact", "same"]
    assert found["same"] is found["aif"]
    assert [line.split(":")[0] for line in said] == ["cost of aif", "cost of exact", "cost"]
    aif, exact = found["aif"], found["exact"]
    assert (aif.way, exact.way) == ("engine", "sequential")
    assert aif.stage_ms is not None
    assert 0 < aif.stage_ms[0] <= aif.stage_ms[1] <= aif.stage_ms[2]
    assert aif.request_ms[1] > aif.stage_ms[0]
    assert (exact.stage_ms, exact.item_bytes, exact.user_bytes) == (None, None, None)
    assert exact.request_ms[0] > 0
    model = build_model(PRESET, dataset.fit_schema())
    assert aif.parameters == sum(array.size for array in weights_of(model).values())
    assert (aif.item_bytes, aif.user_bytes) == sizes(PRESET, dataset.fit_schema())
    for cost in (aif, exact):
        assert Cost.from_json(json.loads(json.dumps(cost.to_json()))) == cost


def test_sizes_are_those_of_rows_and_states() -> None:
    schema = load("synthetic:small", content_width=16).fit_schema()
    towers = PRESET.replace(blocks=(), architecture="two_tower")
    width, heads = towers.width, len(towers.heads)
    # A vector and the prior's logits; a vector a head.
    assert sizes(towers, schema) == (4 * (width + heads), 4 * width * heads)
    longer = PRESET.replace(long_length=128)
    # Of a behaviour the state keeps its signature and its channel.
    grown = np.subtract(sizes(longer, schema), sizes(PRESET, schema))
    assert grown.tolist() == [0, 64 * (PRESET.signature_bytes + 4)]


@pytest.mark.parametrize("bad", [{"candidates": 210}, {"candidates": 16}, {"rounds": 0}])
def test_sizes_out_of_bounds_are_refused(bad) -> None:
    with pytest.raises(ConfigError, match="multiple of 16 of at least 200"):
        measure_costs(load("synthetic:small", content_width=16), PRESET, [], **bad)
