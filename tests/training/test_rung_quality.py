"""The comparison of rungs: rung 0 is the trained model, and no rung knows what it goes without."""

import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.models import build_model, fold
from aif_jax.training import compare_rungs, evaluate
from aif_jax.training.as_served import AsServed, at_rung, user_requests
from aif_jax.training.evaluate import Evaluator


@pytest.fixture(scope="module")
def model(dataset, tiny):
    blocks = ("profile_attention", "bridge", "long_attention", "profile_item", "context", "pair")
    config = tiny.replace(architecture="aif", blocks=blocks, bridges=2, value_width=4)
    return build_model(config, dataset.fit_schema(), seed=3)


def test_rungs_stand_beside_the_trained_model(dataset, model):
    found = compare_rungs(model, dataset, users=8, candidates=200, k=50, lists=40)
    assert list(found) == [0, 1, 2, 3]
    trained, full = evaluate(model, dataset, "test"), found[0]
    assert full.heads["ctr"].auc == pytest.approx(trained.main.auc, abs=1e-4)
    assert full.gauc_difference.difference == 0.0
    assert (full.overlap == 1).all()
    for rung in (1, 2, 3):
        one = found[rung]
        assert one.rung == rung
        assert (one.overlap < 1).any()
        change = one.heads["ctr"].gauc - full.heads["ctr"].gauc
        assert one.gauc_difference.difference == pytest.approx(change, abs=1e-9)


def test_the_last_rung_is_the_prior_of_the_item_rows(dataset, model):
    folded = fold(model)
    catalogue = dataset.catalogue(folded.schema, content_width=folded.config.content_width)
    items = {name: jnp.asarray(catalogue[name]) for name in folded.item_inputs_spec(1)}
    prior = np.asarray(folded.item(folded.weights_of("item"), items)["prior"])
    logits = Evaluator(dataset, model, "test").collect(AsServed(folded, dataset, rung=3).logits)
    shown = np.isfinite(logits[:, 0])
    np.testing.assert_allclose(logits[shown], prior[dataset.impressions.item[shown]], rtol=1e-4, atol=1e-5)


def test_a_rung_sees_nothing_of_what_it_goes_without(dataset, model):
    lists = user_requests(dataset, 3, 64, seed=0)
    batch = lists.batch(dataset, model.schema, np.arange(3), 5, 8)
    assert at_rung(batch, 0) == batch
    for rung, groups, types in (
        (1, (), ("long_type",)),
        (2, ("user",), ("long_type", "short_type")),
        (3, ("user", "context", "pair"), ("long_type", "short_type")),
    ):
        seen = at_rung(batch, rung)
        for group in ("user", "context", "pair"):
            for name, values in seen[group].items():
                same = np.array_equal(values, batch[group][name])
                assert not np.any(values) if group in groups else same
        for name in ("long_type", "short_type"):
            assert (np.asarray(seen[name]) == -1).all() if name in types else seen[name] is batch[name]
