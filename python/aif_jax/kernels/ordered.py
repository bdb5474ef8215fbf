"""A matrix product whose order of sums does not depend on the number of rows."""

import jax
import jax.numpy as jnp


def ordered_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return ``x @ kernel`` for a kernel with few columns, each row summed in pairs.

    A matrix product may split its sums differently for other numbers of rows, so that the last bits of a
    candidate's score depend on its batch. Here the order depends on the row's width alone: halves
    are added to each other until one number is left. (XLA compiles that to vector additions; its own sum over
    the last axis adds number after number, which takes ten times as long.)

    Args:
        x: ``[..., n_in]``.
        kernel: ``[n_in, n_out]``.
    """
    terms = x[..., None, :] * kernel.T
    while (width := terms.shape[-1]) > 1:
        half = width // 2
        added = terms[..., :half] + terms[..., half : 2 * half]
        terms = jnp.concatenate([added, terms[..., 2 * half :]], axis=-1) if width % 2 else added
    return terms[..., 0]
