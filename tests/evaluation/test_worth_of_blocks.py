"""Worth and cost of each block of a model."""

import dataclasses

import numpy as np
import pytest

from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation.blocks import WHOLE, cost_of_blocks, worth_of_blocks
from aif_jax.models import build_model
from aif_jax.models.aif import Aif
from aif_jax.training import Evaluator
from aif_jax.training.metrics import auc, gauc
from support.fitted import SMALL, shop


@pytest.fixture(scope="module")
def data() -> Dataset:
    return shop(1_500)


@pytest.mark.parametrize("one_row_each", [False, True])
def test_worth_of_blocks_is_the_metric_lost_without_each(data: Dataset, one_row_each: bool) -> None:
    model, head = build_model(SMALL, data.fit_schema(), seed=1), "click"
    if one_row_each:  # no user has both classes
        part = np.random.default_rng(0).permutation(np.flatnonzero(data.impressions.split == 2))
        kept = np.zeros(len(data.impressions), np.float32)
        kept[part[np.unique(data.impressions.user[part], return_index=True)[1]]] = 1
        mask = {**data.impressions.label_mask, head: kept}
        data = dataclasses.replace(data, impressions=dataclasses.replace(data.impressions, label_mask=mask))
    rows = np.flatnonzero((data.impressions.split == 2) & (np.asarray(data.impressions.label_mask[head]) > 0))
    users, labels = data.impressions.user[rows], data.impressions.labels[head][rows]
    evaluator = Evaluator(data, model, "test")
    scores = {
        name: evaluator.predict(model, without=name)[rows, 0]
        for name in (WHOLE, "long_attention", "profile_item")
    }
    quality = {
        name: auc(labels, found) if one_row_each else gauc(users, labels, found)
        for name, found in scores.items()
    }
    worth = worth_of_blocks(model, data, "test", head, resamples=50)
    assert set(worth) == {"long_attention", "profile_item"}
    for name, found in worth.items():
        assert found.value == pytest.approx(quality[WHOLE] - quality[name], abs=1e-9)
        assert found.value != 0
        assert found.standard_error > 0


def test_worth_of_blocks_without_block_dropout_raises_with_advice(data: Dataset) -> None:
    model = build_model(SMALL.replace(block_dropout=0.0), data.fit_schema())
    with pytest.raises(ConfigError, match="trained with block_dropout over 0"):
        worth_of_blocks(model, data, "test", "click")


def test_cost_of_blocks_is_highest_for_the_one_that_works_most(data: Dataset) -> None:
    config = SMALL.replace(
        blocks=("profile_item", "simtier", "encoder"), encoder_layers=2, encoder_width=64, long_length=256,
        signature_bits=512,
    )  # fmt: skip
    model = build_model(config, data.fit_schema())
    assert isinstance(model, Aif)
    cost = cost_of_blocks(model, candidates=2048, rounds=25)
    assert set(cost) == set(config.blocks)
    assert cost["encoder"].user > max(cost["simtier"].user, cost["profile_item"].user)
    assert cost["simtier"].stage > cost["profile_item"].stage
