"""The comparison of precisions: float32 is the trained model itself, and the others are near it."""

import numpy as np
import pytest

from aif_jax.models import build_model, fold
from aif_jax.training import compare_precisions, evaluate
from aif_jax.training.as_served import AsServed, user_requests
from aif_jax.training.evaluate import Evaluator
from aif_jax.training.metrics import rank_correlation


@pytest.fixture(scope="module")
def model(dataset, tiny):
    blocks = ("profile_attention", "bridge", "long_attention", "sim_hard", "profile_item", "context", "pair")
    config = tiny.replace(
        architecture="aif", blocks=blocks, bridges=2, value_width=4, sim_slots=3, sim_width=4
    )
    return build_model(config, dataset.fit_schema(), seed=3)


def test_the_folded_programs_predict_what_the_trained_model_does(dataset, model):
    evaluator = Evaluator(dataset, model, "test")
    want = evaluator.predict(model)
    got = evaluator.collect(AsServed(fold(model), dataset).logits)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.nanmax(np.abs(want)))


def test_requests_hold_what_the_user_has_not_met(dataset):
    lists = user_requests(dataset, 30, 100, seed=1)
    rows = dataset.impressions
    assert lists.items.shape == (30, 100)
    assert len(set(rows.user[lists.rows])) == 30
    for row, items in zip(lists.rows, lists.items, strict=True):
        start = dataset.events.offsets[rows.user[row]]
        known = set(dataset.events.item[start : rows.history_end[row]].tolist())
        real = items[items >= 0].tolist()
        assert len(real) == len(set(real)) == min(100, dataset.n_items - len(known))
        assert not known & set(real)
    again = user_requests(dataset, 30, 100, seed=1)
    np.testing.assert_array_equal(again.items, lists.items)
    assert (user_requests(dataset, 30, 100, seed=2).items != lists.items).any()


def test_precisions_stand_beside_float32(dataset, model):
    found = compare_precisions(model, dataset, users=12, candidates=400, k=50)
    assert list(found) == ["float32", "bfloat16", "int8"]
    plain = found["float32"]
    assert (plain.correlation > 1 - 1e-12).all()
    assert (plain.overlap == 1).all()
    assert not plain.logit_error.any()
    assert plain.gauc_difference.difference == 0.0
    trained = evaluate(model, dataset, "test")
    assert plain.heads["ctr"].auc == pytest.approx(trained.auc, abs=1e-4)
    assert plain.heads["ctr"].impressions == trained.main.impressions
    for precision in ("bfloat16", "int8"):
        one = found[precision]
        assert one.precision == precision
        assert (one.candidates > 200).all()
        assert one.row_bytes < 0.7 * plain.row_bytes
        assert one.state_bytes < plain.state_bytes
        assert (one.logit_error > 0).all()
        assert (one.logit_error < 0.05).all()
        assert (one.correlation > 0.99).all()
        assert (one.overlap > 0.8).all()
        change = one.heads["ctr"].gauc - plain.heads["ctr"].gauc
        assert one.gauc_difference.difference == pytest.approx(change, abs=1e-9)
    # The scores themselves, not those of float32 under another name.
    folded = fold(model, precision="int8")
    lists = user_requests(dataset, 12, 400, seed=0)
    rankings = [AsServed(f, dataset).rankings(lists) for f in (folded, fold(model))]
    want = [rank_correlation(a[0], b[0]) for a, b in zip(*rankings, strict=True)]
    np.testing.assert_allclose(found["int8"].correlation, want)
