"""An item's prior: its logits for a user of whom nothing is known, context and pair features missing."""

import jax
import numpy as np
import pytest

from aif_jax.config import BLOCKS, PRECISIONS
from aif_jax.models import add_signatures, fold
from support.model_cases import (
    ITEMS,
    folded_logits_of,
    logits_of,
    make_batch,
    make_catalogue,
    numbers,
    only,
    quick_jit,
    random_config,
    random_model,
    random_schema,
    zero_model,
)

KINDS = (
    {"blocks": BLOCKS, "heads": ("ctr", "cvr")},
    {"signature": "int8"},
    {"long_attention": "sign", "blocks": BLOCKS},
    {"long_attention": "collision", "blocks": BLOCKS},
    {"long_attention": "mean", "blocks": BLOCKS},
    {"architecture": "cold"},
    {"architecture": "two_tower"},
    {"blocks": ()},
)


def neutral(rng, config, schema):
    """A request of every item by a user, in a context and with pair features, of whom nothing is known."""
    batch = make_batch(rng, config, schema, batch=1, group=ITEMS)
    batch["item"] = np.arange(ITEMS, dtype=np.int32)[None]
    for name in ("short_item", "short_type", "long_item", "long_type"):
        batch[name] = np.full_like(batch[name], -1)
    for group in ("user", "context", "pair"):
        batch[group] = {name: np.zeros_like(values) for name, values in batch[group].items()}
    return batch


@pytest.mark.parametrize("number", numbers(KINDS))
def test_prior_equals_logits_of_a_neutral_request(number):
    rng = np.random.default_rng(number)
    config = random_config(rng, **(KINDS[number] if number < len(KINDS) else {}))
    schema = random_schema(rng)
    unfolded, through_the_stage = logits_of(config, schema), folded_logits_of(config, schema)
    through_the_rows = quick_jit(fold(zero_model(config, schema)).item)
    for _ in range(2):
        model = random_model(rng, config, schema)
        catalogue = add_signatures(config, make_catalogue(rng, config, schema))
        batch, folded = neutral(rng, config, schema), fold(model)
        items = only(catalogue, folded.item_inputs_spec(1))
        with jax.default_matmul_precision("highest"):
            want = unfolded(model, batch, catalogue)[0]
            by_stage = through_the_stage(folded.weights, batch, catalogue)[0]
            rows = through_the_rows(folded.weights_of("item"), items)
        assert want.std() > 1e-3
        tolerance = {"rtol": 1e-4, "atol": 1e-4 * np.abs(want).max()}
        np.testing.assert_allclose(rows["prior"], want, **tolerance)
        np.testing.assert_allclose(rows["prior"], by_stage, **tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prior_is_calibrated_and_independent_of_precision(precision):
    rng = np.random.default_rng(5)
    config, schema = random_config(rng, blocks=BLOCKS, heads=("ctr", "cvr")), random_schema(rng)
    model = random_model(rng, config, schema)
    plain = fold(model)
    folded = fold(model, precision=precision, calibration={"cvr": (0.5, -0.25)})
    items = only(make_catalogue(rng, config, schema), plain.item_inputs_spec(1))
    with jax.default_matmul_precision("highest"):
        want = np.asarray(quick_jit(plain.item)(plain.weights_of("item"), items)["prior"])
        got = np.asarray(quick_jit(folded.item)(folded.weights_of("item"), items)["prior"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want * [1.0, 0.5] + [0.0, -0.25], rtol=1e-5, atol=1e-6)
