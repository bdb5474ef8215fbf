"""AdamW under a warm-up and cosine schedule, over one vector of all weights.

Rates are operands of the step, so runs that differ in them alone are one program, compiled once where a
compilation cache is on.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aif_jax.training.config import TrainConfig

Rates = Mapping[str, Any]
"""Scalars: ``peak``, ``warmup`` and ``steps`` of the schedule, ``final``, ``weight_decay``,
``embedding_decay``, ``clip_norm``."""


def rates_of(config: TrainConfig, steps: int) -> dict[str, np.float32]:
    """Return the rates of a run as float32.

    A run shorter than twice the warm-up warms up over its first half.

    Args:
        config: rates, decays and clipping.
        steps: length of the whole run, at whose end the schedule ends.
    """
    rates = {
        "peak": config.learning_rate,
        "warmup": min(config.warmup_steps, steps // 2),
        "steps": steps,
        "final": config.final_rate,
        "weight_decay": config.weight_decay,
        "embedding_decay": config.embedding_decay,
        "clip_norm": config.clip_norm or np.inf,
    }
    return {name: np.float32(value) for name, value in rates.items()}


def learning_rate(rates: Rates, step: jax.typing.ArrayLike) -> jax.Array:
    """Return the rate of a step: linear from 0 to the peak, then a cosine to ``final`` of it."""
    step = jnp.asarray(step, jnp.float32)
    peak, warmup, final = rates["peak"], rates["warmup"], rates["final"]
    fallen = jnp.clip((step - warmup) / jnp.maximum(rates["steps"] - warmup, 1.0), 0.0, 1.0)
    fall = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.float32(jnp.pi) * fallen))
    return peak * jnp.where(step < warmup, step / jnp.maximum(warmup, 1.0), fall)


def optimiser(rates: Rates, *, dense: int, embedding: int) -> optax.GradientTransformation:
    """AdamW over a vector of weights ``[P]``.

    Decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101). It leaves biases, scales and the learned
    vectors of absent blocks alone: for those, 0 is not a better prior than another value.

    Args:
        rates: see `rates_of`; traced inside a step.
        dense: number of the first weights, which belong to dense matrices.
        embedding: number of the next weights, which belong to embedding tables.
    """

    def decay(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        position = jax.lax.iota(jnp.int32, params.shape[0])
        rate = jnp.where(position < dense + embedding, rates["embedding_decay"], jnp.float32(0.0))
        rate = jnp.where(position < dense, rates["weight_decay"], rate)
        return updates + rate * params, state

    chain = optax.chain(
        optax.clip_by_global_norm(rates["clip_norm"]),
        optax.scale_by_adam(),
        optax.GradientTransformation(lambda params: optax.EmptyState(), decay),
        optax.scale_by_learning_rate(lambda step: learning_rate(rates, step)),
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # optax raises Python floats to integer counts, which a strict JAX refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
