import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aif_jax.training.config import TrainConfig
from aif_jax.training.optimiser import learning_rate, optimiser, rates_of

STEPS = np.arange(120, dtype=np.int32)


def schedule(config: TrainConfig, steps: int) -> np.ndarray:
    return np.asarray(jax.jit(learning_rate)(rates_of(config, steps), STEPS))


@pytest.mark.parametrize(("warmup", "steps"), [(10, 110), (0, 100), (1000, 30), (1, 1)])
def test_schedule_is_that_of_optax(warmup, steps):
    rate = schedule(TrainConfig(learning_rate=0.1, warmup_steps=warmup, final_rate=0.2), steps)
    warmup = min(warmup, steps // 2)
    fall = optax.cosine_decay_schedule(0.1, max(steps - warmup, 1), alpha=0.2)
    linear = optax.linear_schedule(0.0, 0.1, max(warmup, 1))
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(jax.vmap(optax.join_schedules([linear, fall], [warmup])))(STEPS)
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


def test_schedule_shorter_than_warmup_reaches_peak():
    rate = schedule(TrainConfig(learning_rate=0.1, warmup_steps=1000), 10)
    np.testing.assert_allclose(rate[:10].max(), 0.1)


def updates_of(config, params, gradient, **sizes):
    transform = optimiser(rates_of(config, 100), **sizes)
    return jax.jit(lambda g, p: transform.update(g, transform.init(p), p)[0])(gradient, params)


def test_optimiser_decays_matrices_and_tables_only():
    # With no gradient only decay moves the weights, by rate * decay.
    config = TrainConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, embedding_decay=0.2)
    updates = updates_of(config, np.ones(7, np.float32), np.zeros(7, np.float32), dense=3, embedding=2)
    np.testing.assert_allclose(1.0 + np.asarray(updates), [0.95] * 3 + [0.98] * 2 + [1.0] * 2, rtol=1e-6)


def test_optimiser_step_ignores_size_of_clipped_gradient():
    config = TrainConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=1.0)
    for scale in (1.0, 1e6):
        gradient = np.array([3.0, -4.0], np.float32) * scale
        updates = updates_of(config, np.zeros(2, np.float32), gradient, dense=2, embedding=0)
        np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize("clip_norm", [0.0, 1e6, 0.5])
def test_optimiser_moves_as_adamw_of_optax(clip_norm):
    config = TrainConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.3, clip_norm=clip_norm)
    rng = np.random.default_rng(0)
    params, gradients = rng.normal(size=4).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    mine = optimiser(rates_of(config, 100), dense=4, embedding=0)
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    rate = optax.cosine_decay_schedule(0.1, 100, alpha=config.final_rate)
    theirs = optax.chain(*clip, optax.adamw(rate, weight_decay=0.3))

    def moved(transform):
        with jax.numpy_dtype_promotion("standard"):
            now, state = jnp.asarray(params), transform.init(params)
            for gradient in gradients:
                updates, state = transform.update(gradient, state, now)
                now = now + updates
            return now

    np.testing.assert_allclose(
        jax.jit(moved, static_argnums=0)(mine), jax.jit(moved, static_argnums=0)(theirs), rtol=1e-5
    )
