"""SimTier in pure XLA in the fastest ways that we found; the rivals get the fastest of them here.

Each way counts, for candidates uint8 ``[N, sb]``, behaviours uint8 ``[L, sb]``, ``counted`` bool ``[L]`` and
ascending edges int32 ``[T-1]`` over the number of equal bits, the counted behaviours in each tier: int32
``[N, T]``. One behaviour type, simhash signatures. Products, and ways that
store the scores of all pairs, were behind on every machine and are left out (`records/2026-11-25-stage.md`).
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.kernels import simtier
from aif_jax.models.signature import edges_of
from stage.timing import Contender, Times, interleaved

Way: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, np.ndarray], jax.Array]


def reference(cand: jax.Array, seq: jax.Array, counted: jax.Array, edges: np.ndarray) -> jax.Array:
    """Return the project's own definition: product of ±1, then for each edge flags times channels."""
    channel = jnp.where(counted, 0, -1).astype(jnp.int32)
    counts = simtier(
        cand, seq, channel, jnp.asarray(edges), channels=1, kind="simhash", implementation="reference"
    )
    return counts[:, 0]


def popcount_by_behaviour(parts: int, size: int, unroll: int = 1) -> Way:
    """Return a loop over behaviours with the counts of a block of candidates as its state.

    No score is ever stored: each behaviour is compared with ``size`` candidates, and their counts go up. The
    candidates are cut into ``parts`` that XLA may run side by side.
    """

    def way(cand: jax.Array, seq: jax.Array, counted: jax.Array, edges: np.ndarray) -> jax.Array:
        limits = jnp.asarray(8 * cand.shape[-1] - edges)[:, None]
        behaviours = (_words(seq), counted)

        def block(own: jax.Array) -> jax.Array:
            words = _words(own).T

            def step(counts: jax.Array, behaviour: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
                theirs, counts_here = behaviour
                different = sum(_different(words[word], theirs[word]) for word in range(len(words)))
                return counts + ((different[None] <= limits) & counts_here).astype(jnp.int32), None

            start = jnp.zeros((len(edges), own.shape[0]), jnp.int32)
            return jax.lax.scan(step, start, behaviours, unroll=unroll)[0]

        done = []
        for part in jnp.split(cand, parts):
            blocks = jax.lax.map(block, _blocks(part, size))
            done.append(jnp.moveaxis(blocks, 0, 1).reshape(len(edges), -1))
        return _tiers(jnp.concatenate(done, axis=1).T, counted)

    return way


ONE_CORE = "popcount, behaviour by behaviour"
"""The way that needs the least work, all of it on one core."""

WAYS: dict[str, Way] = {
    ONE_CORE: popcount_by_behaviour(1, 512),
    "popcount, behaviour by behaviour, in 2 halves": popcount_by_behaviour(2, 512),
    "popcount, 2 behaviours at a time, all candidates": popcount_by_behaviour(1, 8192, unroll=2),
    "popcount, 8 behaviours at a time, all candidates": popcount_by_behaviour(1, 8192, unroll=8),
    "popcount, 2 behaviours at a time, in 2 halves": popcount_by_behaviour(2, 1024, unroll=2),
}


def timed_ways(config: ModelConfig, n: int, length: int, rounds: int) -> Times:
    """Check the ways against the reference on random signatures, and time them in turns."""
    bits, edges = config.signature_bits, edges_of(config)
    rng = np.random.default_rng(0)
    cand, seq = (rng.integers(0, 256, (size, bits // 8), dtype=np.uint8) for size in (n, length))
    near = min(n, length) // 2
    seq[:near, : bits // 16] = cand[:near, : bits // 16]  # so that the upper tiers are not empty
    operands = [jax.device_put(array) for array in (cand, seq, np.ones(length, bool))]
    expected = np.asarray(jax.jit(lambda *given: reference(*given, edges))(*operands))

    def contender(name: str) -> Contender:
        program = jax.jit(lambda *given: WAYS[name](*given, edges))
        np.testing.assert_array_equal(np.asarray(program(*operands)), expected, err_msg=name)
        return Contender(name, lambda _: (np.asarray(program(*operands)), np.empty(0)))

    return interleaved([contender(name) for name in WAYS], rounds)


def _tiers(reached: jax.Array, counted: jax.Array) -> jax.Array:
    total = jnp.broadcast_to(jnp.sum(counted, dtype=jnp.int32), (reached.shape[0], 1))
    at_least = jnp.concatenate([total, reached, jnp.zeros_like(total)], axis=1)
    return at_least[:, :-1] - at_least[:, 1:]


def _blocks(cand: jax.Array, size: int) -> jax.Array:
    size = min(size, len(cand))
    if len(cand) % size:
        size = 16  # candidates come in multiples of 16
    return cand.reshape(-1, size, cand.shape[1])


def _words(packed: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(packed.reshape(len(packed), -1, 4), jnp.uint32)


def _different(own: jax.Array, theirs: jax.Array) -> jax.Array:
    return jax.lax.population_count(own ^ theirs).astype(jnp.int32)
