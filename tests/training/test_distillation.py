"""Learning from a ranker: the loss, what batches hold for it, and that a model moves towards its teacher."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.errors import ConfigError, TrainingError
from aif_jax.training.config import TrainConfig
from aif_jax.training.evaluate import predict
from aif_jax.training.feed import TrainingBatches
from aif_jax.training.loop import train
from aif_jax.training.losses import distillation_loss


def problem(seed=0, shape=(5, 6, 2)):
    rng = np.random.default_rng(seed)
    logits, teacher = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = (rng.random(shape) < 0.6).astype(np.float32)
    mask[0], mask[1], mask[1, 2] = 0, 0, 1  # a request without any candidate, and one with a single one
    return logits, teacher, mask


def plainly(logits, teacher, mask, pointwise, listwise):
    """Request by request, candidate by candidate."""
    totals = []
    for head in range(logits.shape[-1]):
        points, lists = [], []
        for z, t, m in zip(logits[..., head], teacher[..., head], mask[..., head] > 0, strict=True):
            z, t = z[m].astype(np.float64), t[m].astype(np.float64)
            p, q = 1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-z))
            points += (-(p * np.log(q) + (1 - p) * np.log(1 - q))).tolist()
            if m.sum() > 1:
                lists.append(-np.sum(np.exp(t) / np.exp(t).sum() * (z - np.log(np.exp(z).sum()))))
        totals.append(pointwise * np.mean(points) + listwise * np.mean(lists))
    return totals


@pytest.mark.parametrize(("pointwise", "listwise"), [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_the_loss_is_what_a_loop_gives(pointwise, listwise):
    logits, teacher, mask = problem()
    found = distillation_loss(logits, teacher, mask, pointwise=pointwise, listwise=listwise)
    np.testing.assert_allclose(found, plainly(logits, teacher, mask, pointwise, listwise), rtol=1e-5)


def test_what_is_masked_adds_nothing_and_the_teacher_itself_is_the_best():
    logits, teacher, mask = problem()

    def loss(z, t=teacher):
        return distillation_loss(z, t, mask, pointwise=1.0, listwise=1.0).sum()

    spoilt = np.where(mask > 0, teacher, 1e9).astype(np.float32)
    wild = np.where(mask > 0, logits, np.nan).astype(np.float32)
    np.testing.assert_allclose(loss(wild, spoilt), loss(logits), rtol=1e-6)
    gradient = jax.grad(loss)(jnp.asarray(wild))
    assert np.isfinite(np.asarray(gradient)).all()
    assert not np.asarray(gradient)[mask == 0].any()
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(teacher)), 0.0, atol=1e-6)
    assert not np.asarray(jax.grad(lambda t: loss(jnp.asarray(logits), t))(jnp.asarray(teacher))).any()
    nothing = distillation_loss(logits, teacher, np.zeros_like(mask), pointwise=1.0, listwise=1.0)
    assert nothing.tolist() == [0.0, 0.0]


def test_batches_hold_the_teachers_logits_of_what_was_shown(dataset, tiny):
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(len(dataset.impressions), 1)).astype(np.float32)
    teacher[::3] = np.nan
    config = TrainConfig(batch_size=8, group=8, negatives=2, distillation_weight=1.0)
    model = tiny.replace(blocks=("profile_item", "context"))
    batch = TrainingBatches(dataset, dataset.fit_schema(), model, config, teacher)[0]
    rows = batch["impression"]
    said = (rows >= 0) & (rows % 3 != 0)
    np.testing.assert_array_equal(batch["teacher_mask"][..., 0], said)
    np.testing.assert_array_equal(batch["teacher"][said][:, 0], teacher[rows[said], 0])
    assert not batch["teacher"][~said].any()
    assert batch["item"].shape == rows.shape == (8, 10)
    assert "teacher" not in TrainingBatches(dataset, dataset.fit_schema(), model, config)[0]


def test_a_model_moves_towards_its_teacher(dataset, tiny, brief, tmp_path):
    part = dataset.impressions.split == 0
    assert dataset.impressions.labels["ctr"][part].mean() < 0.45
    wanted = np.full((len(part), 1), 3.0, np.float32)  # sure that everything is clicked
    config = brief.replace(learning_rate=2e-2, distillation_weight=9.0, checkpoint_dir=str(tmp_path))
    taught = train(tiny, dataset, config, teacher=wanted, progress=False)
    assert predict(taught.model, dataset, "train")[part].mean() > 1.0
    with pytest.raises(TrainingError, match=r"training\.teacher"):
        train(tiny, dataset, config, teacher=wanted + 1, progress=False)


def test_teacher_and_weights_go_together(dataset, tiny, brief):
    some = np.zeros((len(dataset.impressions), 1), np.float32)
    weighted = brief.replace(distillation_list_weight=1.0)
    for config, teacher in ((weighted, None), (brief, some)):
        with pytest.raises(ConfigError, match="or neither"):
            train(tiny, dataset, config, teacher=teacher, progress=False)
    with pytest.raises(ConfigError, match="one for every impression and head"):
        train(tiny, dataset, weighted, teacher=some[1:], progress=False)
    with pytest.raises(ConfigError, match="no logit is finite"):
        train(tiny, dataset, weighted, teacher=some * np.nan, progress=False)
    with pytest.raises(ConfigError, match="distillation_weight: got -1"):
        TrainConfig(distillation_weight=-1)


def test_weights_are_read_back_from_json():
    config = TrainConfig(distillation_list_weight=0.5)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
