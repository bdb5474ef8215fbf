"""Every implementation of SimTier against its definition in NumPy."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from aif_jax import _native, kernels
from aif_jax.errors import ConfigError, RequestError

reference = importlib.import_module("aif_jax.kernels.simtier")

LEVELS = [
    name
    for name, features in {
        "scalar": (),
        "avx2": ("avx2", "fma", "popcnt"),
        "avx_vnni": ("avx2", "fma", "popcnt", "avxvnni"),
        "avx512": (
            *("avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512vbmi2", "avx512vnni"),
            "avx512vpopcntdq",
        ),
    }.items()
    if all(_native.cpu_features()[feature] for feature in features)
]


def naive(cand, seq, channel, edges, *, channels, kind):
    """The definition, pair by pair: [N, channels, T]."""
    if kind == "simhash":
        equal = np.unpackbits(cand, axis=-1)[:, None] == np.unpackbits(seq, axis=-1)[None]
        score = equal.sum(axis=-1)
    else:
        score = cand.view(np.int8).astype(np.int64) @ seq.view(np.int8).astype(np.int64).T
    tier = (score[..., None] >= edges).sum(axis=-1)
    counts = np.zeros((len(cand), channels, len(edges) + 1), np.int32)
    for n in range(len(cand)):
        for position, c in enumerate(channel):
            if 0 <= c < channels:
                counts[n, c, tier[n, position]] += 1
    return counts


def by_level(level):
    return lambda *arrays, **constants: _native.simtier(*arrays, implementation=level, **constants)


def by_jit(implementation):
    @functools.cache
    def compiled(**constants):
        return jax.jit(lambda *arrays: kernels.simtier(*arrays, implementation=implementation, **constants))

    return lambda *arrays, **constants: np.asarray(compiled(**constants)(*arrays))


def by_vmap(implementation):
    """Each candidate as a batch of its own, of which one axis goes through vmap."""

    @functools.cache
    def compiled(**constants):
        def one(row, *others):
            return kernels.simtier(row[None], *others, implementation=implementation, **constants)[0]

        return jax.jit(jax.vmap(one, (0, None, None, None)))

    return lambda *arrays, **constants: np.asarray(compiled(**constants)(*arrays))


def by_count(count):
    """The reference with one way of counting, whatever platform it is meant for."""

    def run(cand, seq, channel, edges, *, channels, kind):
        @jax.jit
        def counted(cand, seq, channel, edges):
            return count(reference._scores(cand, seq, kind), channel, jnp.sort(edges), channels=channels)

        reached = np.asarray(counted(cand, seq, channel, edges))
        total = np.asarray([(channel == c).sum() for c in range(channels)], np.int32)
        total = np.broadcast_to(total[:, None], (*reached.shape[:-1], 1))
        return -np.diff(np.concatenate([total, reached, np.zeros_like(total)], axis=-1), axis=-1)

    return run


IMPLEMENTATIONS = (
    {level: by_level(level) for level in LEVELS}
    | {
        f"{way.__name__}-{implementation}": way(implementation)
        for way in (by_jit, by_vmap)
        for implementation in ("reference", "native", "auto")
    }
    | {f"reference{count.__name__}": by_count(count) for count in (reference._by_product, reference._by_sum)}
)


def draw(seed):
    """A case of odd sizes: signatures that are near each other or extreme, any edges, any channels."""
    rng = np.random.default_rng(seed)
    kind = ("simhash", "int8")[seed % 2]
    width = int(rng.choice([8, 16, 32, 64] if kind == "simhash" else [4, 12, 32, 48, 64, 128]))
    n, length, channels = (
        int(rng.integers(1, 20)),
        int(rng.choice([1, 31, 33, 64, 130, 257])),
        int(rng.integers(1, 5)),
    )
    seq = rng.integers(0, 256, (length, width), dtype=np.uint8)
    cand = rng.integers(0, 256, (n, width), dtype=np.uint8)
    cand[::3] = seq[rng.integers(0, length, len(cand[::3]))]
    seq[::7] = rng.choice([0, 255, 127, 128])
    cand[::5] = rng.choice([0, 255, 127, 128])
    if n > 1:
        cand[1] = ~seq[0]
    channel = rng.integers(-1, channels + 1, length).astype(np.int32)
    low, high = (0, 8 * width) if kind == "simhash" else (-127 * 128 * width, 128 * 128 * width)
    tiers = int(rng.choice([2, 3, 16, 32]))
    span = rng.choice([high - low + 4, max(2, (high - low) // 8)])
    middle = rng.integers(low, high + 1)
    edges = middle + rng.integers(-span // 2, span // 2 + 1, tiers - 1)
    if seed % 3 == 0:
        edges = np.sort(edges)
    if seed % 5 == 0:
        edges[0], edges[-1] = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    return (cand, seq, channel, edges.astype(np.int32)), {"channels": channels, "kind": kind}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_simtier_implementations_equal_definition(name):
    # Compilation takes most of the time of the compiled ones.
    for seed in range(60 if name in LEVELS else 5):
        arrays, constants = draw(seed)
        counts = IMPLEMENTATIONS[name](*arrays, **constants)
        assert counts.dtype == np.int32
        np.testing.assert_array_equal(
            counts, naive(*arrays, **constants), err_msg=f"seed {seed}, {constants}"
        )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_simtier_without_counted_behaviours_is_zero(name):
    (cand, seq, channel, edges), constants = draw(0)
    counts = IMPLEMENTATIONS[name](cand, seq, np.full_like(channel, -1), edges, **constants)
    assert counts.shape == (len(cand), constants["channels"], len(edges) + 1)
    assert not counts.any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["simhash", "int8"])
def test_simtier_of_long_sequence_does_not_overflow(level, kind):
    length, width = 70_000, 8
    seq = np.zeros((length, width), np.uint8)
    edges = np.asarray([-5, 0, 1, 64, 65], np.int32)
    counts = by_level(level)(seq[:2], seq, np.zeros(length, np.int32), edges, channels=1, kind=kind)
    score = 64 if kind == "simhash" else 0
    expected = np.bincount([(score >= edges).sum()], weights=[length], minlength=6)
    np.testing.assert_array_equal(counts, np.broadcast_to(expected, (2, 1, 6)))


@pytest.mark.parametrize("level", LEVELS)
def test_simtier_of_unaligned_arrays_counts_the_same(level):
    (cand, seq, channel, edges), constants = draw(2)
    shifted = []
    for array in (cand, seq):
        memory = np.empty(array.size + 1, np.uint8)
        view = memory[1:].reshape(array.shape)
        view[:] = array
        shifted.append(view)
    counts = by_level(level)(*shifted, channel, edges, **constants)
    np.testing.assert_array_equal(counts, naive(cand, seq, channel, edges, **constants))


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_simtier_vmap_over_any_operand_equals_loop(implementation):
    rng = np.random.default_rng(3)
    cand = rng.integers(0, 256, (3, 5, 16), dtype=np.uint8)
    seq = rng.integers(0, 256, (3, 41, 16), dtype=np.uint8)
    channel = rng.integers(-1, 2, (3, 41)).astype(np.int32)
    edges = np.sort(rng.integers(40, 90, (3, 4)), axis=1).astype(np.int32)
    constants = {"channels": 2, "kind": "simhash"}

    def run(*arrays):
        return kernels.simtier(*arrays, implementation=implementation, **constants)

    def expected(*arrays):
        return naive(*arrays, **constants)

    def batched(axes=0):
        return jax.jit(jax.vmap(run, axes))

    every = batched()(cand, seq, channel, edges)
    np.testing.assert_array_equal(
        every, [expected(*arrays) for arrays in zip(cand, seq, channel, edges, strict=True)]
    )
    for axes in [(0, None, None, None), (None, 0, None, None), (None, None, 0, None), (None, None, None, 0)]:
        arrays = [x if axis == 0 else x[0] for x, axis in zip((cand, seq, channel, edges), axes, strict=True)]
        rows = [[x[i] if axis == 0 else x for x, axis in zip(arrays, axes, strict=True)] for i in range(3)]
        np.testing.assert_array_equal(batched(axes)(*arrays), [expected(*row) for row in rows])
    inner = jax.vmap(run, (None, 0, 0, None))
    grid = jax.jit(jax.vmap(inner, (0, None, None, 0)))(cand, seq, channel, edges)
    wanted = [
        [expected(c, s, ch, e) for s, ch in zip(seq, channel, strict=True)]
        for c, e in zip(cand, edges, strict=True)
    ]
    np.testing.assert_array_equal(grid, wanted)
    # Batch axes given as such, and a sequence that all batches share.
    np.testing.assert_array_equal(
        jax.jit(run)(cand, seq, channel, edges[0]),
        [expected(c, s, ch, edges[0]) for c, s, ch in zip(cand, seq, channel, strict=True)],
    )
    np.testing.assert_array_equal(
        jax.jit(run)(cand, seq[0], channel[0], edges[0]),
        [expected(c, seq[0], channel[0], edges[0]) for c in cand],
    )


def test_simtier_export_runs_for_any_number_of_candidates():
    n, length = export.symbolic_shape("n, length")
    specs = [
        jax.ShapeDtypeStruct((n, 16), np.uint8),
        jax.ShapeDtypeStruct((length, 16), np.uint8),
        jax.ShapeDtypeStruct((length,), np.int32),
        jax.ShapeDtypeStruct((3,), np.int32),
    ]
    allowed = [export.DisabledSafetyCheck.custom_call(name) for name in kernels.CUSTOM_CALLS]
    rng = np.random.default_rng(4)
    edges = np.asarray([50, 64, 78], np.int32)
    for implementation, checks in (("native", allowed), ("reference", [])):

        def run(*arrays):
            return kernels.simtier(*arrays, channels=1, kind="simhash")

        with kernels.use(implementation):
            exported = export.export(jax.jit(run), disabled_checks=checks)(*specs)
        assert ("aif_simtier" in exported.mlir_module()) == (implementation == "native")
        program = export.deserialize(exported.serialize())
        for sizes in ((1, 1), (19, 40)):
            cand, seq = (rng.integers(0, 256, (size, 16), dtype=np.uint8) for size in sizes)
            channel = np.zeros(len(seq), np.int32)
            expected = naive(cand, seq, channel, edges, channels=1, kind="simhash")
            np.testing.assert_array_equal(program.call(cand, seq, channel, edges), expected)


@pytest.mark.parametrize("kind", ["simhash", "int8"])
def test_simtier_reference_is_integer_products_on_every_platform(kind):
    n, length, tiers = 512, 256, 16
    specs = [
        jax.ShapeDtypeStruct((n, 32), np.uint8),
        jax.ShapeDtypeStruct((length, 32), np.uint8),
        jax.ShapeDtypeStruct((length,), np.int32),
        jax.ShapeDtypeStruct((tiers - 1,), np.int32),
    ]

    @jax.jit
    def run(*arrays):
        return kernels.simtier(*arrays, channels=1, kind=kind, implementation="reference")

    for platform in ("cpu", "cuda", "tpu"):
        text = run.trace(*specs).lower(lowering_platforms=(platform,)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert len(products) == (1 if platform == "cuda" else 2), platform
        for line in products:
            assert re.search(r": \(tensor<[0-9x]+xi8>, tensor<[0-9x]+xi8>\) -> tensor<[0-9x]+xi32>", line), (
                line
            )
        assert "custom_call" not in text
        assert "f32" not in text
    here = run.lower(*specs).compile().memory_analysis()
    # Scores, the flags of a tier or two (versions of XLA differ), and what little else there is.
    assert here.temp_size_in_bytes < n * length * (4 + tiers // 2)


def test_simtier_extreme_scores_are_exact():
    # 1,024 products of (-128)^2: 2^24, which float32 still has; one less would need the last bit.
    width = 1024
    cand = np.full((1, width), 128, np.uint8)
    seq = np.stack([np.full(width, 128, np.uint8), np.full(width, 127, np.uint8)])
    seq = np.concatenate([seq, seq[:1]])
    seq[2, 0] = 129
    edges = np.asarray([-(2**24) + 2**17, 2**24 - 128, 2**24], np.int32)
    constants = {"channels": 1, "kind": "int8"}
    expected = naive(cand, seq, np.zeros(3, np.int32), edges, **constants)
    assert expected[0, 0].tolist() == [0, 1, 1, 1]
    for name, run in IMPLEMENTATIONS.items():
        counts = run(cand, seq, np.zeros(3, np.int32), edges, **constants)
        np.testing.assert_array_equal(counts, expected, err_msg=name)


def test_simtier_passes_no_gradients():
    planes = kernels.hyperplanes(0, 32, 64)
    edges = np.asarray([30, 40], np.int32)

    def loss(content):
        signature = kernels.simhash(content, planes)
        counts = kernels.simtier(
            signature, signature, jnp.zeros(4, jnp.int32), edges, channels=1, kind="simhash"
        )
        return jnp.sum(counts.astype(jnp.float32)) + jnp.sum(content)

    content = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(content), np.ones_like(content))


def test_integer_edges_are_smallest_scores_at_thresholds():
    thresholds = (-0.6, -0.25, 0.0, 0.1, 0.2, 0.3333, 0.5)
    for bits in (64, 256):
        edges = kernels.integer_edges(thresholds, "simhash", bits)
        for edge, threshold in zip(edges.tolist(), thresholds, strict=True):
            assert 2 * edge / bits - 1 >= threshold - 1e-7 > 2 * (edge - 1) / bits - 1
    edges = kernels.integer_edges(thresholds, "int8", 64)
    for edge, threshold in zip(edges.tolist(), thresholds, strict=True):
        assert edge / 127**2 >= threshold - 1e-7 > (edge - 1) / 127**2
    assert edges.dtype == np.int32


def signatures(width):
    return {"cand": np.zeros((2, width), np.uint8), "seq": np.zeros((3, width), np.uint8)}


GOOD = {
    "cand": np.zeros((2, 8), np.uint8),
    "seq": np.zeros((3, 8), np.uint8),
    "channel": np.zeros(3, np.int32),
    "edges": np.zeros(1, np.int32),
    "channels": 1,
    "kind": "simhash",
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cand": np.zeros((2, 8), np.int8)}, "cand: got dtype int8, expected uint8"),
        ({"cand": np.zeros(8, np.uint8)}, "expected at least 2 axes"),
        ({"cand": [[0] * 8]}, "cand: got a list"),
        ({"seq": np.zeros((3, 16), np.uint8)}, "one width"),
        ({"channel": np.zeros(4, np.int32)}, r"channel \(4,\)"),
        (signatures(9), "simhash signature of 9 bytes"),
        (signatures(6) | {"kind": "int8"}, "multiple of 4"),
        ({"edges": np.zeros(32, np.int32)}, "1 to 31 edges"),
        ({"edges": np.zeros((1, 1), np.int32)}, r"edges has shape \(1, 1\)"),
        ({"channels": 0}, "channels is 0"),
        ({"kind": "cosine"}, "'cosine'"),
        ({"implementation": "fast"}, "'fast'"),
        (
            {"cand": np.zeros((4, 2, 8), np.uint8), "seq": np.zeros((5, 3, 8), np.uint8)}
            | {"channel": np.zeros((5, 3), np.int32)},
            "batch axes differ",
        ),
    ],
)
def test_simtier_bad_operands_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        kernels.simtier(**(GOOD | change))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"seq": np.zeros((3, 16), np.uint8)}, RequestError, "they must agree"),
        ({"channel": np.zeros(4, np.int32)}, RequestError, "8 bytes for each behaviour"),
        (signatures(9), RequestError, "of 9 bytes"),
        ({"edges": np.zeros(32, np.int32)}, RequestError, "at most 31"),
        ({"channels": 0}, RequestError, "at least 1"),
        ({"kind": "cosine"}, RequestError, "cosine"),
        ({"implementation": "sse9"}, ConfigError, "possible here: scalar"),
    ],
)
def test_simtier_custom_call_checks_operands(change, error, says):
    with pytest.raises(error, match=says):
        _native.simtier(**({"implementation": "scalar"} | GOOD | change))
