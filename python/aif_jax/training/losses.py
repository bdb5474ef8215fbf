"""Training losses in JAX. Masked entries add exactly nothing, whatever their values, NaN included."""

import math

import jax
import jax.numpy as jnp
import optax

from aif_jax.errors import ConfigError

_FAR = -1e30
"""A logit that leaves nothing to its candidate, and stays finite."""


def sigmoid_loss(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, shift: jax.Array | float = 0.0
) -> jax.Array:
    """Binary cross-entropy of each head, averaged over its unmasked entries.

    ``loss_h = sum(mask * CE(logits + shift, labels)) / sum(mask)`` over all axes but the last.

    Args:
        logits: log odds, float32 ``[..., heads]``.
        labels: 0 to 1, float32 ``[..., heads]``; ignored where the mask is 0.
        mask: weights of at least 0, float32 ``[..., heads]``; 0 where padded or unknown.
        shift: added to the logits in training only: the `log_odds_shift` of a sampled training set; a scalar
            or ``[heads]``.

    Returns:
        float32 ``[heads]``, in nats; 0 for a head without any unmasked entry.
    """
    heads = logits.shape[-1]
    logits = (logits + jnp.asarray(shift, logits.dtype)).reshape(-1, heads)
    labels, mask = labels.reshape(-1, heads), mask.reshape(-1, heads)
    # Masked values are replaced before the loss: 0 * NaN is NaN, in the gradient too.
    seen = mask > 0
    entropy = optax.sigmoid_binary_cross_entropy(
        jnp.where(seen, logits, jnp.zeros_like(logits)), jnp.where(seen, labels, jnp.zeros_like(labels))
    )
    total = jnp.sum(mask, axis=0)
    return jnp.sum(mask * entropy, axis=0) / jnp.where(total > 0, total, jnp.ones_like(total))


def distillation_loss(
    logits: jax.Array, teacher: jax.Array, mask: jax.Array, *, pointwise: float, listwise: float
) -> jax.Array:
    """Distance of each head from a teacher's: candidate by candidate, and as an order within each request.

    ``pointwise * mean(CE(logits, sigmoid(teacher))) + listwise * mean over requests of
    CE(softmax(logits), softmax(teacher))``, the softmax over the unmasked candidates of a request. The first
    keeps the level of the probabilities; the second depends on differences alone, so requests with a single
    candidate are left out of it.

    Args:
        logits: of the model, float32 ``[B, G, heads]``.
        teacher: of a trained model, float32 ``[B, G, heads]``; no gradient goes there.
        mask: float32 ``[B, G, heads]``; 0 where the teacher has no logit.
        pointwise: weight of the first.
        listwise: weight of the second.

    Returns:
        float32 ``[heads]``, in nats; 0 for a head without any unmasked entry.
    """
    teacher = jax.lax.stop_gradient(teacher)
    seen = mask > 0
    total = pointwise * sigmoid_loss(logits, jax.nn.sigmoid(teacher), mask)
    wanted = jax.nn.softmax(jnp.where(seen, teacher, _FAR), axis=1)
    found = jax.nn.log_softmax(jnp.where(seen, logits, _FAR), axis=1)
    each = -jnp.sum(jnp.where(seen, wanted * found, 0.0), axis=1)
    several = jnp.sum(seen, axis=1) > 1
    lists = jnp.sum(several, axis=0).astype(logits.dtype)
    mean = jnp.sum(jnp.where(several, each, 0.0), axis=0) / jnp.maximum(lists, jnp.ones_like(lists))
    return total + listwise * mean


def next_item_loss(
    expected: jax.Array, following: jax.Array, pool: jax.Array, usable: jax.Array, mask: jax.Array
) -> jax.Array:
    """Softmax cross-entropy of each place's next item among itself and a pool of sampled items.

    The logit of an item is ``expected . v / sqrt(w)``.

    Args:
        expected: output of the encoder at each place, float32 ``[U, T, w]``.
        following: vector of the item that comes next, float32 ``[U, T, w]``.
        pool: vectors of sampled items, float32 ``[U, P, w]``.
        usable: bool ``[U, T, P]``; False where the sampled item is the next one.
        mask: bool ``[U, T]``; False where nothing follows.

    Returns:
        A float32 scalar in nats, the mean over the mask; 0 for an empty one.
    """
    scale = 1.0 / jnp.sqrt(jnp.float32(expected.shape[-1]))
    right = scale * jnp.sum(expected * following, axis=-1, keepdims=True)
    others = jnp.where(usable, scale * jnp.einsum("utw,upw->utp", expected, pool), _FAR)
    total = jax.nn.logsumexp(jnp.concatenate([right, others], axis=-1), axis=-1)
    lost = jnp.where(mask, total - right[..., 0], 0.0)
    return jnp.sum(lost) / jnp.maximum(jnp.sum(mask), 1).astype(lost.dtype)


def log_odds_shift(keep_rate: float) -> float:
    """Return the log-odds shift of a training set in which only a share of the negatives was kept.

    Keeping negatives at rate ``r`` makes the odds of the training set the true odds over ``r``. Training on
    ``logit - log(r)`` leaves ``logit`` itself calibrated for serving.

    Args:
        keep_rate: the share ``r`` of negatives kept, in (0, 1].

    Returns:
        ``-log(r)``, at least 0.

    Raises:
        ConfigError: the rate is outside (0, 1].
    """
    if not 0.0 < keep_rate <= 1.0:
        raise ConfigError(f"keep_rate: got {keep_rate}, expected a share of negatives in (0, 1].")
    return -math.log(keep_rate)


def in_batch_softmax_loss(
    user_vectors: jax.Array,
    item_vectors: jax.Array,
    items: jax.Array,
    log_q: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
) -> jax.Array:
    """Softmax over the other rows' positives, corrected for how often each is drawn.

    Row ``i``'s logit for row ``j``'s item is ``u_i . v_j / temperature - log q_j``; the loss is the mean of
    ``-log softmax_i(i)`` (Yi et al., "Sampling-bias-corrected neural modeling", RecSys 2019, section 4).
    Another row with the same item is left out, because it is not a negative.

    Args:
        user_vectors: float32 ``[B, d]``.
        item_vectors: the vector of each row's positive, float32 ``[B, d]``.
        items: which item it is, int32 ``[B]``.
        log_q: log of the probability that this item is a batch's positive, float32 ``[B]``.
        mask: 1 where the row has a positive, float32 ``[B]``.
        temperature: divides the dot products, over 0.

    Returns:
        A float32 scalar in nats; 0 when no row has a positive.
    """
    logits = user_vectors @ item_vectors.T / temperature - log_q[None, :]
    own = jnp.eye(items.shape[0], dtype=bool)
    usable = own | ((items[None, :] != items[:, None]) & (mask > 0)[None, :])
    logits = jnp.where(usable, logits, jnp.full_like(logits, -jnp.inf))
    # A masked row's own logit could be anything: 0 keeps its log-softmax and gradient finite.
    logits = jnp.where((own & (mask <= 0)[:, None]), jnp.zeros_like(logits), logits)
    each = -jnp.diagonal(jax.nn.log_softmax(logits, axis=-1))
    total = jnp.sum(mask)
    return jnp.sum(jnp.where(mask > 0, each * mask, jnp.zeros_like(each))) / jnp.maximum(
        total, jnp.ones_like(total)
    )
