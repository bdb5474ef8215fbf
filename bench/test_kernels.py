"""Kernels by themselves, in Rust and as they are defined in JAX; both give the same to the bit."""

import jax
import numpy as np
import pytest

from aif_jax import kernels
from aif_jax.kernels import integer_edges, simtier, table_sum, top_k

IMPLEMENTATIONS = ("native", "reference")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    if request.param == "native":
        assert kernels.implementations()["native"], kernels.implementations()["reason"]
    return request.param


def timed(benchmark, operator, operands, implementation):
    """Check a compiled operator against its definition, and time it."""
    program, definition = (
        jax.jit(lambda *given, which=which: operator(*given, implementation=which))
        for which in (implementation, "reference")
    )
    found, expected = program(*operands), definition(*operands)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    benchmark(lambda: jax.block_until_ready(program(*operands)))


def test_simtier_of_candidates_and_history(benchmark, sizes, implementation):
    n, length, bits = sizes.workload.candidates, sizes.workload.long_length, 256
    benchmark.group = f"SimTier, {n:,} x {length:,} signatures of {bits} bits, 16 tiers"
    rng = np.random.default_rng(0)
    edges = integer_edges(tuple(np.linspace(-0.9, 0.9, 15)), "simhash", bits)
    operands = (
        rng.integers(0, 256, (n, bits // 8), dtype=np.uint8),
        rng.integers(0, 256, (length, bits // 8), dtype=np.uint8),
        np.zeros(length, np.int32),
    )

    def operator(cand, seq, channel, implementation):
        return simtier(cand, seq, channel, edges, channels=1, kind="simhash", implementation=implementation)

    timed(benchmark, operator, operands, implementation)


def test_table_sum_over_signatures(benchmark, sizes, implementation):
    n, hidden, bits, group = sizes.workload.candidates, sizes.workload.config.hidden, 256, 4
    benchmark.group = f"table sum, {n:,} signatures of {bits} bits in groups of {group}, rows of {hidden}"
    rng = np.random.default_rng(0)
    operands = (
        rng.normal(size=(bits // group, 2**group, hidden)).astype(np.float32),
        rng.integers(0, 256, (n, bits // 8), dtype=np.uint8),
    )

    def operator(table, sig, implementation):
        return table_sum(table, sig, bits=group, implementation=implementation)

    timed(benchmark, operator, operands, implementation)


def test_top_k_of_scores(benchmark, sizes, implementation):
    n, k = sizes.workload.candidates, sizes.workload.k
    benchmark.group = f"the best {k} of {n:,} scores"
    scores = np.random.default_rng(0).normal(size=n).astype(np.float32)

    def operator(scores, implementation):
        return top_k(scores, k, implementation=implementation)

    timed(benchmark, operator, (scores,), implementation)
