"""AdamW under a warm-up and cosine schedule, over one vector of all weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from aif_jax.training.config import TrainConfig


def schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear from 0 to the peak, then a cosine to `final_rate` of it.

    A run shorter than twice the warm-up warms up over its first half.
    """
    warmup = min(config.warmup_steps, steps // 2)
    peak = config.learning_rate
    fall = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=config.final_rate)
    if not warmup:
        return fall
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])


def optimiser(config: TrainConfig, steps: int, *, dense: int, embedding: int) -> optax.GradientTransformation:
    """AdamW over a vector of weights ``[P]``.

    Decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101). It leaves biases, scales and the learned
    vectors of absent blocks alone: for those, 0 is not a better prior than another value.

    Args:
        config: rates, decays and clipping.
        steps: length of the whole run, at whose end the schedule ends.
        dense: number of the first weights, which belong to dense matrices.
        embedding: number of the next weights, which belong to embedding tables.
    """

    def decay(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        position = jax.lax.iota(jnp.int32, params.shape[0])
        rate = jnp.where(position < dense + embedding, config.embedding_decay, 0.0)
        rate = jnp.where(position < dense, config.weight_decay, rate)
        return updates + rate * params, state

    chain = optax.chain(
        *([optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []),
        optax.scale_by_adam(),
        optax.GradientTransformation(lambda params: optax.EmptyState(), decay),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # optax raises Python floats to integer counts, which a strict JAX refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
