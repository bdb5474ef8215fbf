import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.errors import ConfigError
from aif_jax.training import losses

sigmoid_loss, next_item_loss = jax.jit(losses.sigmoid_loss), jax.jit(losses.next_item_loss)
in_batch_softmax_loss = jax.jit(losses.in_batch_softmax_loss)
distillation_loss = jax.jit(losses.distillation_loss)


def entropy(logit, label):
    p = 1 / (1 + np.exp(-logit))
    return -(label * np.log(p) + (1 - label) * np.log(1 - p))


def problem(shape=(3, 4, 2), seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, 2, shape).astype(np.float32)
    mask = rng.integers(0, 2, shape).astype(np.float32)
    return logits, labels, mask


def test_sigmoid_loss_is_mean_over_unmasked_entries():
    logits, labels, mask = problem()
    got = sigmoid_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    for head in range(2):
        seen = mask[..., head] > 0
        expected = entropy(logits[..., head][seen], labels[..., head][seen]).mean()
        np.testing.assert_allclose(got[head], expected, rtol=1e-5)


def test_sigmoid_loss_mask_values_are_weights():
    logits, labels, _ = problem((4, 1))
    weights = np.array([[2.0], [0.0], [1.0], [0.5]], np.float32)
    got = sigmoid_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    np.testing.assert_allclose(
        got[0], np.average(entropy(logits, labels)[:, 0], weights=weights[:, 0]), rtol=1e-5
    )


def test_sigmoid_loss_masked_nan_reaches_neither_loss_nor_gradient():
    logits, labels, mask = problem()
    poisoned_logits = np.where(mask > 0, logits, np.nan).astype(np.float32)
    poisoned_labels = np.where(mask > 0, labels, np.nan).astype(np.float32)

    def total(z, y):
        return sigmoid_loss(z, jnp.asarray(y), jnp.asarray(mask)).sum()

    gradients = jax.jit(jax.value_and_grad(total))
    clean, clean_gradient = gradients(jnp.asarray(logits), labels)
    value, gradient = gradients(jnp.asarray(poisoned_logits), poisoned_labels)
    assert value == clean
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert (np.asarray(gradient)[mask == 0] == 0).all()


def test_sigmoid_loss_head_without_labels_is_zero():
    logits, labels, mask = problem()
    mask[..., 1] = 0
    got = sigmoid_loss(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    assert got[1] == 0.0
    assert got[0] > 0.0


def test_log_odds_shift_undoes_sampling_of_negatives():
    # With the base rate p and negatives kept at rate r, the best constant logit under the shift is logit(p).
    rate, keep = 0.1, 0.25
    sampled = rate / (rate + keep * (1 - rate))

    def loss(logit):
        labels = jnp.array([[1.0], [0.0]])
        weights = jnp.array([[sampled], [1 - sampled]])
        shift = losses.log_odds_shift(keep)
        return sigmoid_loss(jnp.full((2, 1), logit), labels, weights, shift=shift).sum()

    best, gradient = np.log(rate / (1 - rate)), jax.jit(jax.grad(loss))
    assert abs(gradient(np.float32(best))) < 1e-6
    assert abs(gradient(np.float32(best + 0.3))) > 1e-3


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_log_odds_shift_invalid_rate_raises(rate):
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        losses.log_odds_shift(rate)


def test_in_batch_softmax_loss_equals_formula():
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
    got = in_batch_softmax_loss(*map(jnp.asarray, (users, vectors, items, log_q, mask)), temperature=0.5)
    np.testing.assert_allclose(got, np.mean(expected), rtol=1e-5)


def test_in_batch_softmax_loss_ignores_rows_without_positive():
    rng = np.random.default_rng(4)
    users, vectors = rng.normal(size=(2, 4, 3)).astype(np.float32)
    items, log_q = np.arange(4, dtype=np.int32), np.zeros(4, np.float32)
    mask = np.array([1, 1, 0, 1], np.float32)

    def loss(u, v, keep):
        return in_batch_softmax_loss(
            u, v, jnp.asarray(items[keep]), jnp.asarray(log_q[keep]), jnp.asarray(mask[keep])
        )

    everything, kept = np.arange(4), np.array([0, 1, 3])
    u, v = jnp.asarray(users), jnp.asarray(vectors)
    np.testing.assert_allclose(loss(u, v, everything), loss(u[kept], v[kept], kept), rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: loss(x, v, everything)))(u)
    assert (np.asarray(gradient)[2] == 0).all()
    nobody = in_batch_softmax_loss(u, v, jnp.asarray(items), jnp.asarray(log_q), jnp.zeros(4))
    assert nobody == 0.0


def test_next_item_loss_equals_formula_over_places_with_a_next_item():
    rng = np.random.default_rng(5)
    expected, following = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    pool = rng.normal(size=(2, 5, 4)).astype(np.float32)
    usable, mask = rng.random((2, 3, 5)) < 0.6, np.array([[True, True, False], [True, False, False]])
    found = []
    for u, t in zip(*np.nonzero(mask), strict=True):
        own = expected[u, t] @ following[u, t] / 2
        others = [expected[u, t] @ pool[u, p] / 2 for p in range(5) if usable[u, t, p]]
        found.append(np.log(sum(np.exp([own, *others]))) - own)
    given = [jnp.asarray(array) for array in (expected, following, pool, usable)]
    np.testing.assert_allclose(next_item_loss(*given, jnp.asarray(mask)), np.mean(found), rtol=1e-5)
    nothing = jax.jit(jax.value_and_grad(losses.next_item_loss))(*given, np.zeros_like(mask))
    assert nothing[0] == 0.0
    assert not nothing[1].any()


def distillation_problem(seed=0, shape=(5, 6, 2)):
    rng = np.random.default_rng(seed)
    logits, teacher = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = (rng.random(shape) < 0.6).astype(np.float32)
    mask[0], mask[1], mask[1, 2] = 0, 0, 1  # a request without any candidate, and one with a single one
    return logits, teacher, mask


def plain_distillation_loss(logits, teacher, mask, pointwise, listwise):
    """Return the loss, computed request by request, candidate by candidate."""
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
def test_distillation_loss_equals_plain_loop(pointwise, listwise):
    logits, teacher, mask = distillation_problem()
    found = distillation_loss(logits, teacher, mask, pointwise=pointwise, listwise=listwise)
    np.testing.assert_allclose(
        found, plain_distillation_loss(logits, teacher, mask, pointwise, listwise), rtol=1e-5
    )


def test_distillation_loss_ignores_masked_and_is_minimal_at_teacher():
    logits, teacher, mask = distillation_problem()

    def loss(z, t=teacher):
        return distillation_loss(z, t, mask, pointwise=1.0, listwise=1.0).sum()

    spoilt = np.where(mask > 0, teacher, 1e9).astype(np.float32)
    wild = np.where(mask > 0, logits, np.nan).astype(np.float32)
    np.testing.assert_allclose(loss(wild, spoilt), loss(logits), rtol=1e-6)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    gradient, of_teacher = gradients(wild, teacher)
    assert np.isfinite(np.asarray(gradient)).all()
    assert not np.asarray(gradient)[mask == 0].any()
    np.testing.assert_allclose(gradients(teacher, teacher)[0], 0.0, atol=1e-6)
    assert not np.asarray(of_teacher).any()
    nothing = distillation_loss(logits, teacher, np.zeros_like(mask), pointwise=1.0, listwise=1.0)
    assert nothing.tolist() == [0.0, 0.0]
