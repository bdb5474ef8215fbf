"""Golden vectors: inputs and expected outputs of every stage, by which a loaded program proves itself.

The expected outputs come from the reference implementation at export. A program on another machine may round
differently, so floats agree within a tolerance, a few bits of a signature may flip, and candidates may
change places where their scores are that close.

Columns of reduced precision were rounded after that, to steps that may be coarser than the tolerance: a value
near the middle between two steps lands on either. So each value may be one step further away, but the mean
difference may not: rounding moves a value by a whole step with the probability (difference / step), which
leaves the mean what it was. A fault that moves many values by less than a step moves the mean.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from aif_jax import _native
from aif_jax.config import REDUCED_COLUMNS
from aif_jax.features import Numeric, Schema
from aif_jax.features.gaps import GAP_STEPS
from aif_jax.features.schema import Group
from aif_jax.kernels import FOUND, RANKABLE, handle_operand

RELATIVE = 1e-4
"""Allowed difference of floats, relative to the largest magnitude of the expected array (at least 1)."""

FLIPPED_BITS = 0.01
"""Allowed share of different bits in uint8 arrays: a projection near zero may land on either side of it."""

_STRAY_STEPS = 2
"""Whole steps that the sum of differences may hold besides: in a small array one step is much of the mean."""


def difference(stage: str, expected: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> str | None:
    """Compare the outputs of one stage; return the difference in words, or ``None``."""
    if expected.keys() != given.keys():
        return f"outputs are {sorted(given)}, expected {sorted(expected)}"
    given = {path: np.asarray(array) for path, array in given.items()}
    for path, want in expected.items():
        got = given[path]
        if (want.shape, want.dtype) != (got.shape, got.dtype):
            return f"{path} is {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}"
    if stage == "stage":
        return _ranking_difference(expected, given)
    # Scales of our own rows share a column, in this order; those of other models have one each.
    shared = [name for name in REDUCED_COLUMNS if name in expected and expected[name].dtype == np.int8]
    shared = shared if "scale" in expected else []
    for path, want in expected.items():
        own = f"{path}_scale"
        if path in shared or (want.dtype == np.int8 and own in expected):
            place = shared.index(path) if path in shared else 0
            name = "scale" if path in shared else own
            scales = (columns[name][:, place : place + 1] for columns in (expected, given))
            flat = (values.reshape(len(values), -1) for values in (want, given[path]))
            found = _quantised_difference(path, (next(flat), next(flat)), *scales)
        else:
            found = _array_difference(path, want, given[path])
        if found:
            return found
    return None


class CachedRows:
    """The stage's golden inputs as its native program takes them: rows in a cache instead of operands.

    Args:
        given: inputs of the portable program, by path.

    Attributes:
        inputs: inputs of the native program, by path.
        status: expected status of each id, uint8 ``[N]``. Of the rows that are not valid, half are in the
            cache and not rankable, the others are missing.
    """

    def __init__(self, given: Mapping[str, np.ndarray]):
        # In the order of an item index: a program that reads whole rows is made for it.
        rows = sorted(name for name in given if name.startswith("rows/") and given[name].size)
        columns = {name.removeprefix("rows/"): given[name] for name in rows}
        valid = given["valid"]
        there = valid | (np.arange(len(valid)) % 2 == 0)
        self.status = np.where(valid, FOUND | RANKABLE, np.where(there, FOUND, 0)).astype(np.uint8)
        columns["rankable"] = valid[:, None].astype(np.uint8)
        layout = [(name, array.dtype.name, array.shape[1:]) for name, array in columns.items()]
        self._cache = _native.EmbeddingCache(_native.RowLayout(layout))
        keys = np.arange(len(valid), dtype=np.uint64) + np.uint64(2**40)
        self._cache.upsert(keys[there], {n: np.ascontiguousarray(a[there]) for n, a in columns.items()})
        kept = {name: array for name, array in given.items() if name.split("/")[0] not in ("rows", "valid")}
        self.inputs = kept | {
            "index": handle_operand(self._cache),
            "missing": np.zeros(2, np.uint32),
            "ids": keys.view(np.uint32).reshape(-1, 2),
            "count": np.asarray(len(keys), np.int32),
        }


def _quantised_difference(
    path: str, values: tuple[np.ndarray, np.ndarray], scale: np.ndarray, given_scale: np.ndarray
) -> str | None:
    """Compare two int8 arrays by their values under their scales ``[M, 1]``."""
    with np.errstate(invalid="ignore"):  # 0 * inf, in rows that are not finite
        want, got = values[0] * scale, values[1] * given_scale
    return _float_difference(path, want, got, step=np.maximum(scale, given_scale))


def _array_difference(path: str, want: np.ndarray, got: np.ndarray) -> str | None:
    if want.dtype == np.uint8:
        flipped = float(np.unpackbits(np.bitwise_xor(want, got, dtype=np.uint8)).mean()) if want.size else 0.0
        return f"{path}: {flipped:.1%} of its bits differ" if flipped > FLIPPED_BITS else None
    if want.dtype == ml_dtypes.bfloat16:
        want, got = want.astype(np.float32), got.astype(np.float32)
        return _float_difference(path, want, got, step=_bfloat16_step(want, got))
    if want.dtype.kind == "f":
        return _float_difference(path, want, got, step=0.0)
    wrong = int(np.count_nonzero(want != got))
    return f"{path}: {wrong} of {want.size} values differ" if wrong else None


def _bfloat16_step(want: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Return the distance of neighbouring numbers of bfloat16, where the larger of two values is."""
    largest = np.where(np.isfinite(want) & np.isfinite(got), np.maximum(np.abs(want), np.abs(got)), 0.0)
    # largest = fraction * 2^exponent with a fraction in [0.5, 1), of which bfloat16 has 8 bits
    _, exponent = np.frexp(largest)
    return np.where(largest > 0, np.ldexp(np.float32(1.0), exponent - 8), np.float32(0.0))


def _float_difference(
    path: str, want: np.ndarray, got: np.ndarray, *, step: np.ndarray | float
) -> str | None:
    """Compare floats that were rounded to multiples of ``step``, broadcastable to them; 0 for not at all."""
    if not want.size:
        return None
    if not np.array_equal(np.isfinite(want), np.isfinite(got)):
        return f"{path}: is not finite in other places than expected"
    finite = np.isfinite(want)
    tolerance = RELATIVE * max(1.0, float(np.abs(want[finite]).max(initial=0.0)))
    steps = np.broadcast_to(step, want.shape)[finite]
    apart = np.abs(want[finite] - got[finite])
    if (apart > tolerance + steps).any():
        worst = int(np.argmax(apart - steps))
        return f"{path}: differs by {apart[worst]:.3g}, more than {tolerance + steps[worst]:.3g}"
    stray = _STRAY_STEPS * float(steps.max(initial=0.0))
    if steps.any() and float(apart.sum()) > tolerance * apart.size + stray:
        return f"{path}: differs by {apart.mean():.3g} in the mean, more than {tolerance:.3g}"
    return None


def _ranking_difference(expected: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> str | None:
    """Compare rankings: the sorted scores, and each candidate's heads where both rankings hold it."""
    for path in expected.keys() - {"order", "heads"}:
        if path == "status" and not np.array_equal(expected[path], given[path]):
            return "status: other candidates have a row, or may be ranked, than expected"
        if found := _array_difference(path, expected[path], given[path]):
            return found
    # The last entries, with a score of -inf, are not candidates, and their heads are not read.
    ranked = np.isfinite(expected["score"])
    want_at = {int(candidate): place for place, candidate in enumerate(expected["order"]) if ranked[place]}
    pairs = [(want_at[int(c)], p) for p, c in enumerate(given["order"]) if int(c) in want_at]
    if len(pairs) < 0.9 * len(want_at):
        return f"order: holds {len(pairs)} of the {len(want_at)} expected candidates"
    want, got = map(list, zip(*pairs, strict=True))
    for path in ("score", "heads"):
        if found := _array_difference(path, expected[path][want], given[path][got]):
            return found
    return None


def sample_group(
    schema: Schema, group: Group, lead: tuple[int, ...], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw encoded features ``[*lead, ...]``: known, unknown and missing values alike."""
    sampled: dict[str, np.ndarray] = {}
    for feature in schema.features(group):
        shape = (*lead, *feature.shape)
        if isinstance(feature, Numeric):
            present = rng.random((*lead, 1)) < 0.8
            values = np.stack([rng.normal(size=lead), np.ones(lead)], axis=-1)
            sampled[feature.name] = np.asarray(values * present, np.float32)
            continue
        codes = rng.integers(0, feature.size, shape).astype(np.int32)
        if feature.shape:
            # Values are filled from the left.
            length = rng.integers(0, feature.shape[0] + 1, (*lead, 1))
            codes *= np.arange(feature.shape[0]) < length
        sampled[feature.name] = np.asarray(codes, np.int32)
    return sampled


def sample_items(
    schema: Schema, content_width: int, m: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw the inputs of the item and behaviour programs for m items, some without content."""
    content = rng.normal(size=(m, content_width))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    has_content = rng.random((m, 1)) < 0.9
    return {
        **sample_group(schema, "item", (m,), rng),
        "content": (content * has_content).astype(np.float32),
        "has_content": has_content.astype(np.float32),
    }


def sample_sequence(
    behaviours: Mapping[str, np.ndarray], spec: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw the columns ``[B, L, ...]`` of histories, of some behaviour rows, and of gaps if they are read."""
    shape, number = next(iter(spec.values())).shape[:2], len(next(iter(behaviours.values())))
    chosen = rng.integers(0, number, shape)
    sequence = {name: behaviours[name][chosen] for name in spec if name != "gap"}
    if "gap" in spec:
        sequence["gap"] = rng.integers(0, GAP_STEPS, shape).astype(np.int32)
    return sequence


def sample_types(schema: Schema, length: int, rng: np.random.Generator) -> np.ndarray:
    """Draw behaviour types int32 ``[1, length]``, the last third padding."""
    types = rng.integers(0, len(schema.behaviour_types), (1, length)).astype(np.int32)
    types[:, length - length // 3 :] = -1
    return types
