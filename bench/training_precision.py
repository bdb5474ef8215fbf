"""Measure whether mixed precision would pay in training here: products of a step in float32 and bfloat16.

python bench/training_precision.py [--record FILE]

The inputs are float32, as weights and what flows back are; a bfloat16 product rounds both and sums in
float32. Both take turns, so a busy machine slows both.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stage.environment import environment

ROUNDS = 40

PRODUCTS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "item layer": ("im,mh->ih", (4096, 128), (128, 64)),
    "its gradient": ("im,ih->mh", (4096, 128), (4096, 64)),
    "first layer": ("bgm,mh->bgh", (64, 16, 256), (256, 64)),
    "self-attention": ("bsd,btd->bst", (64, 50, 32), (64, 50, 32)),
    "similarity to the long sequence": ("bgm,blm->bgl", (64, 16, 64), (64, 1000, 64)),
    "long attention": ("bgl,blv->bgv", (64, 16, 1000), (64, 1000, 32)),
}
"""Of a step of 64 requests with 16 candidates: an einsum, and the shapes of its operands.

The catalogue has 4,096 items, whose layers are computed for all of them."""


def product(einsum: str, kind: jnp.dtype) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the compiled product of two float32 arrays, rounded to a dtype before and summed in float32."""

    @jax.jit
    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(einsum, left.astype(kind), right.astype(kind), preferred_element_type=jnp.float32)

    return multiply


def measured(einsum: str, left: jax.Array, right: jax.Array, rounds: int) -> tuple[float, float, float]:
    """Return milliseconds of float32 and of bfloat16, and the largest difference of their results.

    The difference is over the root mean square of the float32 result.
    """
    calls = [product(einsum, kind) for kind in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))]
    exact, rounded = (np.asarray(call(left, right)) for call in calls)
    order, times = random.Random(0), (list[float](), list[float]())
    for _ in range(rounds):
        for which in order.sample(range(2), 2):
            began = time.perf_counter()
            jax.block_until_ready(calls[which](left, right))
            times[which].append((time.perf_counter() - began) * 1e3)
    error = np.abs(exact - rounded).max() / np.sqrt(np.mean(exact**2))
    return statistics.median(times[0]), statistics.median(times[1]), float(error)


def page(rounds: int) -> str:
    """Measure all products and return the record."""
    rng = np.random.default_rng(0)
    machine = environment()
    lines = [
        "# Products of a training step in float32 and bfloat16",
        "",
        f"By `python bench/training_precision.py` on {machine['cpu']}, cores: {machine['cores']}, "
        f"jax {machine['jax']}, commit {machine['commit']}, {machine['date'][:10]}.",
        "",
        f"Medians of {rounds} turns. Over 1 means that bfloat16 takes longer. The error is the largest, over "
        "the root mean square of the float32 product.",
        "",
        "| product | float32, ms | bfloat16, ms | bfloat16 / float32 | error |",
        "|---|---|---|---|---|",
    ]
    for name, (einsum, *shapes) in PRODUCTS.items():
        operands = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
        plain, rounded, error = measured(einsum, *operands, rounds)
        lines.append(
            f"| {name}, `{einsum}`, {shapes[0]} and {shapes[1]} | {plain:.2f} | {rounded:.2f} "
            f"| {rounded / plain:.2f} | {error:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path, help="write the page to this file")
    options = parser.parse_args()
    text = page(ROUNDS)
    print(text)
    if options.record is not None:
        options.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
