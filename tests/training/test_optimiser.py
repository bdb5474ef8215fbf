import jax.numpy as jnp
import numpy as np
import optax

from aif_jax.training.config import TrainConfig
from aif_jax.training.optimiser import optimiser, schedule


def test_schedule_warms_up_and_falls_to_final_rate():
    config = TrainConfig(learning_rate=0.1, warmup_steps=10, final_rate=0.2)
    rate = schedule(config, 110)
    np.testing.assert_allclose(rate(0), 0.0)
    np.testing.assert_allclose(rate(5), 0.05)
    np.testing.assert_allclose(rate(10), 0.1)
    half = 0.1 * (0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * 0.5)))
    np.testing.assert_allclose(rate(60), half, rtol=1e-6)
    np.testing.assert_allclose(rate(110), 0.02, rtol=1e-6)


def test_schedule_shorter_than_warmup_reaches_peak():
    rate = schedule(TrainConfig(learning_rate=0.1, warmup_steps=1000), 10)
    np.testing.assert_allclose(max(float(rate(step)) for step in range(10)), 0.1)


def test_optimiser_decays_matrices_and_tables_only():
    # With no gradient only decay moves the weights, by rate * decay.
    config = TrainConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, embedding_decay=0.2)
    transform = optimiser(config, 100, dense=3, embedding=2)
    params = jnp.ones(7)
    updates, _ = transform.update(jnp.zeros(7), transform.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved, [0.95] * 3 + [0.98] * 2 + [1.0] * 2, rtol=1e-6)


def test_optimiser_step_ignores_size_of_clipped_gradient():
    config = TrainConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=1.0)
    transform = optimiser(config, 100, dense=2, embedding=0)
    for scale in (1.0, 1e6):
        gradient = jnp.array([3.0, -4.0]) * scale
        updates, _ = transform.update(gradient, transform.init(jnp.zeros(2)), jnp.zeros(2))
        np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=1e-4)
