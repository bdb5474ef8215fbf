"""A self-check of this build on this CPU: each native kernel against its definition, on random input."""

from collections.abc import Callable

import jax
import numpy as np

from aif_jax import _native
from aif_jax.kernels import ffi
from aif_jax.kernels.choice import use
from aif_jax.kernels.gather_rows import gather_rows, handle_operand
from aif_jax.kernels.interaction import Form, Operands, Tiers, cached_interaction, interaction
from aif_jax.kernels.simtier import SignatureKind, simtier
from aif_jax.kernels.table_sum import table_sum
from aif_jax.kernels.top_k import top_k


def self_check(seed: int = 0) -> dict[str, str]:
    """Run every kernel natively and compare the result with its reference.

    Sizes are odd, so that the kernels' loops over whole vectors and over remainders both run. Compiles a few
    small programs.

    Args:
        seed: of the input.

    Returns:
        By kernel an empty string if they agree, otherwise the error.

    Raises:
        ConfigError: the native kernels are not registered.
    """
    ffi.require()
    checks: dict[str, Callable[[np.random.Generator], None]] = {
        "simtier (simhash)": lambda rng: _simtier(rng, "simhash"),
        "simtier (int8)": lambda rng: _simtier(rng, "int8"),
        "table_sum": _table_sum,
        "gather_rows": _gather_rows,
        "interaction": _interaction,
        "top_k": _top_k,
    }
    return {name: _complaint(check, seed) for name, check in checks.items()}


def _complaint(check: Callable[[np.random.Generator], None], seed: int) -> str:
    try:
        check(np.random.default_rng(seed))
    except AssertionError as error:
        return "differs from its definition: " + " ".join(str(error).split())[:300]
    except Exception as error:  # any failure of a kernel is a finding
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def _simtier(rng: np.random.Generator, kind: SignatureKind) -> None:
    cand, seq = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in (37, 131))
    channel = rng.integers(-1, 3, 131, dtype=np.int32)
    edges = np.asarray([118, 128, 138] if kind == "simhash" else [-20_000, 0, 20_000], np.int32)
    native, reference = (
        simtier(cand, seq, channel, edges, channels=3, kind=kind, implementation=which)  # type: ignore[arg-type]
        for which in ("native", "reference")
    )
    np.testing.assert_array_equal(native, reference)


def _table_sum(rng: np.random.Generator) -> None:
    table = rng.normal(size=(16, 16, 37)).astype(np.float32)
    sig = rng.integers(0, 256, (29, 8), dtype=np.uint8)
    native, reference = (
        table_sum(table, sig, bits=4, implementation=which)  # type: ignore[arg-type]
        for which in ("native", "reference")
    )
    np.testing.assert_array_equal(native, reference)


def _gather_rows(rng: np.random.Generator) -> None:
    cache = _native.EmbeddingCache(_native.RowLayout([("vector", "float32", (19,)), ("code", "uint8", (3,))]))
    keys = rng.integers(2**40, 2**62, 41, dtype=np.uint64)
    rows = {
        "vector": rng.normal(size=(41, 19)).astype(np.float32),
        "code": rng.integers(0, 256, (41, 3), dtype=np.uint8),
    }
    cache.upsert(keys, rows)
    asked = np.concatenate([keys[::-1], keys[:5] + np.uint64(1)])
    expected, there = cache.gather(asked)
    gathered, found = gather_rows(
        handle_operand(cache),  # type: ignore[arg-type]
        asked.view(np.uint32).reshape(-1, 2),  # type: ignore[arg-type]
        cache.layout,
    )
    jax.block_until_ready(gathered)
    np.testing.assert_array_equal(found, there)
    np.testing.assert_array_equal(there, [True] * 41 + [False] * 5)
    for name, column in expected.items():
        np.testing.assert_array_equal(gathered[name], column)
    np.testing.assert_array_equal(expected["vector"][:41], rows["vector"][::-1])


def _interaction(rng: np.random.Generator) -> None:
    def floats(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    n, hidden, edges = 53, 20, np.asarray([118, 128, 138], np.int32)
    rows = {
        "h": floats(n, hidden),
        "e": floats(n, 9),
        "has_content": rng.integers(0, 2, (n, 1)).astype(np.float32),
        "signature": rng.integers(0, 256, (n, 32), dtype=np.uint8),
    }
    layout = [(name, column.dtype.name, column.shape[1:]) for name, column in rows.items()]
    cache = _native.EmbeddingCache(_native.RowLayout(layout))
    keys = rng.integers(2**40, 2**62, n, dtype=np.uint64)
    cache.upsert(keys, rows)
    sequence, channel = rng.integers(0, 256, (131, 32), dtype=np.uint8), np.zeros(131, np.int32)
    operands = Operands(
        shared=floats(hidden),  # type: ignore[arg-type]
        factors=floats(9, hidden),  # type: ignore[arg-type]
        tiers=Tiers(sequence, channel, np.full(1, 131, np.float32), edges, floats(4, hidden)),  # type: ignore[arg-type]
        layers=((floats(hidden, 7), floats(7)), (floats(7, 1), floats(1))),  # type: ignore[arg-type]
    )
    form = Form(factored=("e",))
    count, none = np.asarray(n, np.int32), np.zeros(2, np.uint32)
    ids = keys.view(np.uint32).reshape(n, 2)
    logits, status = cached_interaction(handle_operand(cache), none, ids, count, operands, form)  # type: ignore[arg-type]
    jax.block_until_ready(logits)
    np.testing.assert_array_equal(status, np.full(n, 3))
    with use("reference"), jax.default_matmul_precision("highest"):
        expected = np.asarray(interaction(rows, operands, form))  # type: ignore[arg-type]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def _top_k(rng: np.random.Generator) -> None:
    scores = rng.integers(-9, 9, 301).astype(np.float32)
    native, reference = (
        top_k(scores, 53, implementation=which)  # type: ignore[arg-type]
        for which in ("native", "reference")
    )
    for found, expected in zip(native, reference, strict=True):
        np.testing.assert_array_equal(found, expected)
