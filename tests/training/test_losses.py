import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.errors import ConfigError
from aif_jax.training import losses


def entropy(logit, label):
    p = 1 / (1 + np.exp(-logit))
    return -(label * np.log(p) + (1 - label) * np.log(1 - p))


def problem(shape=(3, 4, 2), seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, 2, shape).astype(np.float32)
    mask = rng.integers(0, 2, shape).astype(np.float32)
    return logits, labels, mask


def test_sigmoid_loss_is_the_mean_over_the_unmasked_entries_of_each_head():
    logits, labels, mask = problem()
    got = losses.sigmoid_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    for head in range(2):
        seen = mask[..., head] > 0
        expected = entropy(logits[..., head][seen], labels[..., head][seen]).mean()
        np.testing.assert_allclose(got[head], expected, rtol=1e-5)


def test_mask_values_are_weights():
    logits, labels, _ = problem((4, 1))
    weights = np.array([[2.0], [0.0], [1.0], [0.5]], np.float32)
    got = losses.sigmoid_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    np.testing.assert_allclose(
        got[0], np.average(entropy(logits, labels)[:, 0], weights=weights[:, 0]), rtol=1e-5
    )


def test_masked_entries_reach_neither_loss_nor_gradient_even_as_nan():
    logits, labels, mask = problem()
    poisoned_logits = np.where(mask > 0, logits, np.nan).astype(np.float32)
    poisoned_labels = np.where(mask > 0, labels, np.nan).astype(np.float32)

    def total(z, y):
        return losses.sigmoid_loss(z, jnp.asarray(y), jnp.asarray(mask)).sum()

    clean, clean_gradient = jax.value_and_grad(total)(jnp.asarray(logits), labels)
    value, gradient = jax.value_and_grad(total)(jnp.asarray(poisoned_logits), poisoned_labels)
    assert value == clean
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert (np.asarray(gradient)[mask == 0] == 0).all()


def test_a_head_without_labels_costs_nothing():
    logits, labels, mask = problem()
    mask[..., 1] = 0
    got = losses.sigmoid_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    assert got[1] == 0.0
    assert got[0] > 0.0


def test_shift_undoes_the_sampling_of_negatives():
    # With the base rate p and negatives kept at rate r, the best constant logit under the shift is logit(p).
    rate, keep = 0.1, 0.25
    sampled = rate / (rate + keep * (1 - rate))

    def loss(logit):
        labels = jnp.array([[1.0], [0.0]])
        weights = jnp.array([[sampled], [1 - sampled]])
        shift = losses.log_odds_shift(keep)
        return losses.sigmoid_loss(jnp.full((2, 1), logit), labels, weights, shift=shift).sum()

    best = np.log(rate / (1 - rate))
    assert abs(jax.grad(loss)(jnp.float32(best))) < 1e-6
    assert abs(jax.grad(loss)(jnp.float32(best + 0.3))) > 1e-3


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_shift_refuses_a_rate_that_is_no_share(rate):
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        losses.log_odds_shift(rate)


def test_in_batch_softmax_equals_its_formula_row_by_row():
    rng = np.random.default_rng(3)
    users, vectors = rng.normal(size=(2, 5, 4)).astype(np.float32)
    items = np.array([7, 3, 7, 1, 2], np.int32)
    vectors[2] = vectors[0]
    log_q = np.log(rng.uniform(0.05, 0.5, 5)).astype(np.float32)
    mask = np.array([1, 1, 1, 1, 0], np.float32)
    expected = []
    for i in range(4):
        others = [j for j in range(4) if j == i or items[j] != items[i]]
        z = {j: users[i] @ vectors[j] / 0.5 - log_q[j] for j in others}
        expected.append(-np.log(np.exp(z[i]) / sum(np.exp(v) for v in z.values())))
    got = losses.in_batch_softmax_loss(
        *map(jnp.asarray, (users, vectors, items, log_q, mask)), temperature=0.5
    )
    np.testing.assert_allclose(got, np.mean(expected), rtol=1e-5)


def test_in_batch_softmax_ignores_rows_without_a_positive():
    rng = np.random.default_rng(4)
    users, vectors = rng.normal(size=(2, 4, 3)).astype(np.float32)
    items, log_q = np.arange(4, dtype=np.int32), np.zeros(4, np.float32)
    mask = np.array([1, 1, 0, 1], np.float32)

    def loss(u, v, keep):
        return losses.in_batch_softmax_loss(
            u, v, jnp.asarray(items[keep]), jnp.asarray(log_q[keep]), jnp.asarray(mask[keep])
        )

    everything, kept = np.arange(4), np.array([0, 1, 3])
    u, v = jnp.asarray(users), jnp.asarray(vectors)
    np.testing.assert_allclose(loss(u, v, everything), loss(u[kept], v[kept], kept), rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x, v, everything))(u)
    assert (np.asarray(gradient)[2] == 0).all()
    nobody = losses.in_batch_softmax_loss(u, v, jnp.asarray(items), jnp.asarray(log_q), jnp.zeros(4))
    assert nobody == 0.0
