"""Kernels by themselves, in Rust and as they are defined in JAX; both give the same to the bit."""

import jax
import numpy as np
import pytest

from aif_jax import kernels
from aif_jax.kernels import integer_edges, simtier, table_sum, top_k


def simtier_of_candidates_and_history(rng, of):
    bits, edges = 256, integer_edges(tuple(np.linspace(-0.9, 0.9, 15)), "simhash", 256)
    cand, seq = (
        rng.integers(0, 256, (size, bits // 8), dtype=np.uint8) for size in (of.candidates, of.long_length)
    )
    name = f"SimTier, {of.candidates:,} x {of.long_length:,} signatures of {bits} bits, 16 tiers"
    operands = cand, seq, np.zeros(of.long_length, np.int32)
    return name, simtier, operands, {"edges": edges, "channels": 1, "kind": "simhash"}


def table_sum_over_signatures(rng, of):
    bits, group, hidden = 256, 4, of.config.hidden
    table = rng.normal(size=(bits // group, 2**group, hidden)).astype(np.float32)
    signatures = rng.integers(0, 256, (of.candidates, bits // 8), dtype=np.uint8)
    name = f"table sum, {of.candidates:,} signatures of {bits} bits in groups of {group}, rows of {hidden}"
    return name, table_sum, (table, signatures), {"bits": group}


def top_k_of_scores(rng, of):
    scores = rng.normal(size=of.candidates).astype(np.float32)
    return f"the best {of.k} of {of.candidates:,} scores", top_k, (scores,), {"k": of.k}


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize(
    "made", [simtier_of_candidates_and_history, table_sum_over_signatures, top_k_of_scores]
)
def test_kernel(benchmark, sizes, made, implementation):
    if implementation == "native":
        assert kernels.implementations()["native"], kernels.implementations()["reason"]
    benchmark.group, kernel, operands, options = made(np.random.default_rng(0), sizes.workload)
    program, definition = (
        jax.jit(lambda *given, which=which: kernel(*given, **options, implementation=which))
        for which in (implementation, "reference")
    )
    jax.tree.map(np.testing.assert_array_equal, program(*operands), definition(*operands))
    benchmark(lambda: jax.block_until_ready(program(*operands)))
