"""Every implementation of the table sum against its definition in NumPy."""

import functools

import jax
import numpy as np
import pytest

from aif_jax import _native, kernels
from aif_jax.errors import ConfigError, RequestError

LEVELS = [
    name
    for name, feature in (
        ("scalar", None),
        ("avx2", "avx2"),
        ("avx_vnni", "avxvnni"),
        ("avx512", "avx512vnni"),
    )
    if feature is None or _native.cpu_features()[feature]
]


def naive(table, sig, bits):
    """The definition, bit by bit, rows added in the order of the groups: [N, h]."""
    ones = np.unpackbits(sig, axis=-1, bitorder="little").reshape(len(sig), -1, bits)
    codes = (ones * 2 ** np.arange(bits)).sum(axis=-1)
    total = np.zeros((len(sig), table.shape[-1]), np.float32)
    for group in range(codes.shape[1]):
        total += table[group, codes[:, group]]
    return total


def by_level(level):
    return lambda table, sig, bits: _native.table_sum(table, sig, bits=bits, implementation=level)


def by_jit(implementation):
    def run(table, sig, bits):
        return jax.jit(lambda t, s: kernels.table_sum(t, s, bits=bits, implementation=implementation))(
            table, sig
        )

    return run


def by_vmap(implementation):
    def run(table, sig, bits):
        def one(row):
            return kernels.table_sum(table, row[None], bits=bits, implementation=implementation)[0]

        return jax.jit(jax.vmap(one))(sig)

    return run


IMPLEMENTATIONS = {level: by_level(level) for level in LEVELS} | {
    f"{way.__name__}-{implementation}": way(implementation)
    for way in (by_jit, by_vmap)
    for implementation in ("reference", "native", "auto")
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_table_sum_implementations_agree(name, bits):
    rng = np.random.default_rng(bits)
    sizes = [(1, 1, 1), (7, 3, 70), (33, 2, 5), (5, 8, 64), (3, 32, 128)]
    # Compilation takes most of the time of the compiled ones.
    for n, signature_bytes, width in sizes if name in LEVELS else sizes[:3]:
        table = rng.normal(size=(8 * signature_bytes // bits, 2**bits, width)).astype(np.float32)
        sig = rng.integers(0, 256, (n, signature_bytes), dtype=np.uint8)
        np.testing.assert_array_equal(IMPLEMENTATIONS[name](table, sig, bits), naive(table, sig, bits))


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_table_sum_of_batch_axes_equals_vmap(implementation):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(3, 4, 16, 6)).astype(np.float32)
    sig = rng.integers(0, 256, (3, 5, 2), dtype=np.uint8)

    @jax.jit
    def run(table, sig):
        return kernels.table_sum(table, sig, bits=4, implementation=implementation)

    each = [naive(t, s, 4) for t, s in zip(table, sig, strict=True)]
    np.testing.assert_array_equal(run(table, sig), each)
    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(table, sig), each)
    np.testing.assert_array_equal(run(table[0], sig), [naive(table[0], s, 4) for s in sig])
    np.testing.assert_array_equal(run(table, sig[0]), [naive(t, sig[0], 4) for t in table])
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(table, sig),
        [[naive(t, s, 4) for s in sig] for t in table],
    )


@pytest.mark.parametrize("implementation", ["auto", "native", "reference"])
def test_table_sum_gradient_counts_selected_rows(implementation):
    rng = np.random.default_rng(2)
    sig = rng.integers(0, 256, (50, 2), dtype=np.uint8)
    table = rng.normal(size=(8, 4, 3)).astype(np.float32)
    gradient = jax.jit(
        jax.grad(lambda t: kernels.table_sum(t, sig, bits=2, implementation=implementation).sum())
    )(table)
    codes = np.asarray(jax.jit(functools.partial(kernels.group_codes, bits=2))(sig))
    selected = np.stack([np.bincount(codes[:, group], minlength=4) for group in range(8)])
    np.testing.assert_array_equal(gradient, np.broadcast_to(selected[..., None], table.shape))


def test_table_sum_does_not_depend_on_batch():
    rng = np.random.default_rng(3)
    table = rng.normal(size=(64, 16, 128)).astype(np.float32)
    sig = rng.integers(0, 256, (4096, 32), dtype=np.uint8)
    together = np.asarray(kernels.table_sum(table, sig, bits=4))
    for n in (1, 2, 3, 7, 33, 4095):
        np.testing.assert_array_equal(kernels.table_sum(table, sig[-n:], bits=4), together[-n:])


@pytest.mark.parametrize(
    ("table", "sig", "bits", "says"),
    [
        ((4, 16, 2), (3, 2), 3, "bits is 3"),
        ((3, 16, 2), (3, 2), 4, r"expected \[..., 4, 16, h\]"),
        ((4, 4, 2), (3, 2), 4, r"expected \[..., 4, 16, h\]"),
        ((16, 2), (3, 2), 4, "at least 3 axes"),
        ((2, 4, 16, 2), (5, 3, 2), 4, "batch axes differ"),
    ],
)
def test_table_sum_bad_operands_are_refused(table, sig, bits, says):
    with pytest.raises(ConfigError, match=says):
        kernels.table_sum(np.zeros(table, np.float32), np.zeros(sig, np.uint8), bits=bits)


def test_table_sum_custom_call_checks_operands():
    table, sig = np.zeros((3, 16, 2), np.float32), np.zeros((3, 2), np.uint8)
    with pytest.raises(RequestError, match=r"\[4, 16, 2\] floats"):
        _native.table_sum(table, sig, bits=4, implementation="scalar")
    with pytest.raises(RequestError, match="bits is 5"):
        _native.table_sum(table, sig, bits=5, implementation="scalar")


@pytest.mark.parametrize("implementation", ["reference", "native"])
@pytest.mark.parametrize(("bits", "width"), [(2, 5), (4, 64), (8, 130)])
def test_table_sum_of_bfloat16_adds_in_float32(implementation, bits, width):
    rng = np.random.default_rng(bits)
    table = rng.normal(size=(8 * 8 // bits, 2**bits, width)).astype(jax.numpy.bfloat16)
    sig = rng.integers(0, 256, (33, 8), dtype=np.uint8)
    sums = by_jit(implementation)(table, sig, bits)
    assert sums.dtype == np.float32
    np.testing.assert_array_equal(sums, naive(table.astype(np.float32), sig, bits))
