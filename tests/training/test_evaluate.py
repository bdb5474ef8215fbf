import numpy as np
import pytest
from scipy import special

from aif_jax.data import TEST, VALIDATION, RequestSource
from aif_jax.errors import DataError, TrainingError
from aif_jax.models import build_model
from aif_jax.training import metrics
from aif_jax.training.candidates import candidate_lists
from aif_jax.training.evaluate import Evaluator, Metrics, device_catalogue, evaluate, predict
from aif_jax.training.feed import for_device


@pytest.fixture(scope="module")
def model(dataset, tiny):
    return build_model(tiny, dataset.fit_schema(), seed=3)


def test_predict_puts_logits_at_their_impressions_whatever_the_batches(dataset, model):
    logits = predict(model, dataset, "validation", group=8, batch_size=16)
    part = dataset.impressions.split == VALIDATION
    assert logits.shape == (len(dataset.impressions), 1)
    assert np.isfinite(logits[part]).all()
    assert np.isnan(logits[~part]).all()

    source = RequestSource(dataset, model.schema, "validation", group=8, short_length=4, long_length=1)
    batch = source.batch(np.array([3]), 1)
    alone = np.asarray(model(for_device(batch), device_catalogue(dataset, model), train=False))
    real = batch["impression"] >= 0
    np.testing.assert_allclose(logits[batch["impression"][real]], alone[real], atol=1e-5)


def test_evaluate_gives_the_metrics_of_the_predictions(dataset, model):
    rows = dataset.impressions
    lists = candidate_lists(dataset, "test", "ctr", lists=40, unseen=29)
    found = evaluate(model, dataset, "test", lists=lists, group=8, batch_size=16)
    part = rows.split == TEST
    logits = predict(model, dataset, "test", group=8, batch_size=16)[part, 0]
    labels = rows.labels["ctr"][part]
    assert found.auc == metrics.auc(labels, logits)
    assert found.gauc == metrics.gauc(rows.user[part], labels, logits)
    assert found.log_loss == metrics.log_loss(labels, logits)
    assert found.main.impressions == part.sum()
    assert found.hit_lists == 40
    assert 0.0 <= found.hit_rate[10] <= found.hit_rate[50] == 1.0, (
        "a list of 30 has every item in the first 50"
    )
    assert Metrics.from_json(found.to_json()) == found


@pytest.mark.parametrize("without", ["long_history", "long_attention"])
def test_predict_without_a_part_equals_predict_of_requests_that_lack_it(dataset, tiny, without):
    # Nothing but long_attention reads the long history here.
    config = tiny.replace(architecture="aif", blocks=("long_attention", "context"), block_dropout=0.1)
    seeing = build_model(config, dataset.fit_schema(), seed=3)
    evaluator = Evaluator(dataset, seeing, "test", group=8, batch_size=16)
    catalogue = device_catalogue(dataset, seeing)
    want = evaluator.collect(
        lambda batch: seeing(
            {**batch, "long_type": np.full_like(batch["long_type"], -1)}, catalogue, train=False
        )
    )
    part = dataset.impressions.split == TEST
    found = evaluator.predict(seeing, without=without)[part]
    np.testing.assert_allclose(found, want[part], atol=1e-5)
    assert np.abs(found - evaluator.predict(seeing)[part]).max() > 1e-4


def test_score_lists_in_other_buckets_gives_the_same_scores(dataset, tiny):
    config = tiny.replace(
        architecture="aif",
        blocks=("long_attention", "simtier", "context"),
        long_length=500,
        signature_bits=64,
    )
    seeing = build_model(config, dataset.fit_schema(), seed=3)
    lists = candidate_lists(dataset, "test", "ctr", lists=40, unseen=9)
    lengths = lists.history_lengths(dataset)
    assert all(((lengths > low) & (lengths <= high)).any() for low, high in ((0, 80), (80, 110), (110, 500)))
    one, three = (
        Evaluator(dataset, seeing, "test", buckets=buckets).score_lists(seeing, lists, batch_size=8)
        for buckets in ((), (80, 110, 500))
    )
    np.testing.assert_allclose(one, three, atol=1e-5)
    assert (one.std(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("ctr", lambda logits: logits[..., 0]),
        ("ctr * exp(logit_like)", lambda logits: np.exp(logits[..., 1]) / (1 + np.exp(-logits[..., 0]))),
        ("like * retrieval_score", lambda logits: logits[..., 0]),
    ],
)
def test_score_lists_of_an_expression_gives_what_an_engine_orders_by(dataset, tiny, score, expected):
    config = tiny.replace(heads=("ctr", "like"), score=score)
    model = build_model(config, dataset.fit_schema(), seed=3)
    lists = candidate_lists(dataset, "test", "ctr", lists=20, unseen=9)
    evaluator = Evaluator(dataset, model, "test")
    heads = {head: build_model(config.replace(score=head), model.schema, seed=3) for head in config.heads}
    logits = np.stack(
        [
            evaluator.score_lists(heads["ctr"], lists),
            special.logit(evaluator.score_lists(heads["like"], lists).astype(np.float64)),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(evaluator.score_lists(model, lists), expected(logits), rtol=1e-4)
    main = evaluator.score_lists(model, lists, main_head=True)
    np.testing.assert_array_equal(main, logits[..., 0])


def test_predict_of_a_model_that_gives_nan_raises(dataset, model):
    broken = build_model(model.config, model.schema, seed=3)
    kernel = broken.item.mlp.layer_0.kernel
    kernel[...] = kernel[...].at[0, 0].set(np.nan)
    with pytest.raises(TrainingError, match="600 of 600 impressions of split 'validation'"):
        predict(broken, dataset, "validation", group=8, batch_size=16)


def test_predict_of_an_unknown_part_raises(dataset, model):
    with pytest.raises(DataError, match="split: got 'dev'"):
        predict(model, dataset, "dev")
