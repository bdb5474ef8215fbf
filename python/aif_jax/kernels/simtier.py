"""SimTier: a histogram of the similarities between a candidate and a behaviour sequence.

Leading axes written ``...`` are batch axes; they must be equal among operands, or absent.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.config import TierScale
from aif_jax.errors import ConfigError
from aif_jax.kernels import ffi
from aif_jax.kernels.checks import batch_axes, expect_array
from aif_jax.kernels.choice import Implementation, dispatch

SignatureKind = Literal["simhash", "int8"]

MAX_EDGES = 31
INT8_SCALE = 127
"""An ``int8`` signature stores a component ``x`` of a unit vector as ``round(127 x)``."""

_COLUMNS = 4
"""Columns of the product that counts come in multiples of this."""


def simtier(
    cand: jax.Array,
    seq: jax.Array,
    channel: jax.Array,
    edges: jax.Array,
    *,
    channels: int,
    kind: SignatureKind,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Count, for each candidate and channel, the behaviours in each tier of similarity.

    The score of a pair is an integer: for ``simhash`` the number of equal bits of the two signatures, for
    ``int8`` the dot product of the bytes read as int8. Its tier is the number of edges that it reaches,
    ``sum_t(score >= edges[t])``.

    After *SimTier* in Sheng et al., "Enhancing Taobao Display Advertising with Multimodal Representations"
    (arXiv 2407.19467), with one histogram per channel (behaviour type).

    Nothing is differentiable here; gradients do not flow.

    Args:
        cand: signatures of the candidates, uint8 ``[..., N, sb]``.
        seq: signatures of the sequence, uint8 ``[..., L, sb]``.
        channel: channel of each behaviour, int32 ``[..., L]``; outside ``0 .. channels-1``, -1 by
            convention, the behaviour is not counted.
        edges: score thresholds, int32 ``[T-1]``, 1 to 31 of them; see `integer_edges`.
        channels: number of channels, at least 1.
        kind: ``"simhash"`` (``sb`` = 8, 16, 32 or 64) or ``"int8"`` (``sb`` a multiple of 4, to 1024).
        implementation: see `aif_jax.kernels.use`. All implementations return the same integers.

    Returns:
        Counts, int32 ``[..., N, channels, T]``.

    Raises:
        ConfigError: a shape, dtype, kind or number of channels is not as above.
    """
    expect_array("cand", cand, np.uint8, 2)
    expect_array("seq", seq, np.uint8, 2)
    expect_array("channel", channel, np.int32, 1)
    expect_array("edges", edges, np.int32, 1)
    width = cand.shape[-1]
    if seq.shape[-1] != width:
        raise ConfigError(
            f"simtier: cand {cand.shape} and seq {seq.shape} must have signatures of one width (last axis)."
        )
    if seq.shape[:-1] != channel.shape:
        raise ConfigError(
            f"simtier: channel {channel.shape} must be [..., L] of seq [..., L, sb], {seq.shape}."
        )
    if edges.ndim != 1 or not 1 <= edges.shape[0] <= MAX_EDGES:
        raise ConfigError(f"simtier: edges has shape {edges.shape}, expected [T-1], 1 to {MAX_EDGES} edges.")
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ConfigError(f"simtier: channels is {channels!r}, expected a whole number of at least 1.")
    _check_width(kind, width)
    lead = batch_axes("simtier", {"cand": cand.shape[:-2], "seq": seq.shape[:-2]})
    cand, seq, channel, edges = (jax.lax.stop_gradient(x) for x in (cand, seq, channel, edges))

    def native(cand: jax.Array, seq: jax.Array, channel: jax.Array, edges: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct((*lead, cand.shape[-2], channels, edges.shape[0] + 1), jnp.int32)
        axes = [x.reshape((1,) * (len(lead) + n - x.ndim) + x.shape) for x, n in
                ((cand, 2), (seq, 2), (channel, 1), (edges, 1))]  # fmt: skip
        return ffi.call("aif_simtier", result, *axes, channels=channels, kind=kind)

    def reference(cand: jax.Array, seq: jax.Array, channel: jax.Array, edges: jax.Array) -> jax.Array:
        return _reference(cand, seq, channel, edges, channels=channels, kind=kind)

    return dispatch(implementation, native, reference, cand, seq, channel, edges)


def tier_features(counts: jax.Array, lengths: jax.Array, scale: TierScale) -> jax.Array:
    """Return counts as features of bounded size: ``[..., channels * T]`` in [0, 1].

    Args:
        counts: int32 ``[..., channels, T]``.
        lengths: float32, broadcastable to ``[..., channels]``; a channel without behaviours gives zeros.
        scale: ``share``: count / length; ``log1p``: log(1 + count) / log(1 + length).
    """
    known = counts.astype(jnp.float32)
    if scale == "log1p":
        known, lengths = jnp.log1p(known), jnp.log1p(lengths)
    features = known * jnp.where(lengths > 0, 1.0 / jnp.maximum(lengths, 0.5), 0.0)[..., None]
    return features.reshape(*features.shape[:-2], features.shape[-2] * features.shape[-1])


def integer_edges(tier_edges: Sequence[float], kind: SignatureKind, size: int) -> np.ndarray:
    """Return the cosine thresholds as integer scores.

    A ``simhash`` score, the number of equal bits of ``b``, is read as the similarity ``2 score / b - 1``; an
    ``int8`` score as ``score / 127²``. A pair reaches a threshold ``s`` if its similarity is at least ``s``,
    so thresholds are rounded up.

    Args:
        tier_edges: ascending thresholds in (-1, 1), ``[T-1]``.
        kind: kind of signature.
        size: bits of a ``simhash`` signature, or width of an ``int8`` one.

    Returns:
        Ascending scores, int32 ``[T-1]``; neighbours may be equal where thresholds are finer than the bits,
        and the tier between them is then empty.

    Raises:
        ConfigError: the kind is unknown or the size does not fit it.
    """
    _check_width(kind, size // 8 if kind == "simhash" and size % 8 == 0 else size)
    exact = [s * INT8_SCALE**2 if kind == "int8" else (1.0 + s) * size / 2.0 for s in tier_edges]
    # A threshold that is a score but for rounding, such as (1 + 0.2) * 5, is that score.
    return np.asarray([math.ceil(x - 1e-6) for x in exact], np.int32)


def _check_width(kind: str, width: int) -> None:
    if kind == "simhash":
        if width not in (8, 16, 32, 64):
            raise ConfigError(
                f"simtier: a simhash signature of {width} bytes; expected 8, 16, 32 or 64 (64 to 512 bits)."
            )
    elif kind == "int8":
        # Up to 1024, a score is below 2^24: exact, however a kernel accumulates it.
        if width % 4 or not 4 <= width <= 1024:
            raise ConfigError(
                f"simtier: an int8 signature of {width} bytes; expected a multiple of 4 from 4 to 1024."
            )
    else:
        raise ConfigError(f"simtier: kind is {kind!r}, expected 'simhash' or 'int8'.")


def _reference(
    cand: jax.Array, seq: jax.Array, channel: jax.Array, edges: jax.Array, channels: int, kind: SignatureKind
) -> jax.Array:
    scores = _scores(cand, seq, kind)
    # Sorted, so that neighbours may be subtracted; the tier of a score does not depend on their order.
    edges = jnp.sort(edges)
    by_product, by_sum = (functools.partial(count, channels=channels) for count in (_by_product, _by_sum))
    reached = jax.lax.platform_dependent(scores, channel, edges, cuda=by_sum, rocm=by_sum, default=by_product)
    total = jnp.sum(_member(channel, channels), axis=-2, dtype=jnp.int32)[..., None, :, None]
    reached = jnp.concatenate([jnp.broadcast_to(total, (*reached.shape[:-1], 1)), reached], axis=-1)
    return reached - jnp.concatenate([reached[..., 1:], jnp.zeros_like(reached[..., :1])], axis=-1)


# Both count, for each candidate, channel and edge, the behaviours of that channel whose score reaches that
# edge: scores int32 [..., N, L], channel [..., L], edges [T-1] -> int32 [..., N, channels, T-1]. They compile
# to different programs; neither must keep N x L x T flags. The comments about GPUs and TPUs come from the
# programs that XLA compiles for an H100 and a TPU v5e, and were not timed on either.


def _by_product(scores: jax.Array, channel: jax.Array, edges: jax.Array, *, channels: int) -> jax.Array:
    """One edge at a time, as a product of N x L flags with the channels: for matrix units, and for CPUs."""
    # A product with a single column is compiled as a sum over a row, at several times the cost.
    member = _member(channel, channels, columns=-(-channels // _COLUMNS) * _COLUMNS).astype(jnp.int8)

    def reached(edge: jax.Array) -> jax.Array:
        flags = (scores >= edge).astype(jnp.int8)
        return jnp.einsum("...nl,...lc->...nc", flags, member, preferred_element_type=jnp.int32)

    return jnp.moveaxis(jax.lax.map(reached, edges), 0, -1)[..., :channels, :]


def _by_sum(scores: jax.Array, channel: jax.Array, edges: jax.Array, *, channels: int) -> jax.Array:
    """All edges at once, as one sum over L: a single kernel on a GPU, where each step of a loop is a launch.

    The compiler decides whether the flags are materialised. XLA fuses them into the sum for CUDA; for CPU and
    TPU it keeps them.
    """
    member = jnp.swapaxes(_member(channel, channels), -1, -2)
    flags = scores[..., :, None, None, :] >= edges[:, None]
    return jnp.sum(flags & member[..., None, :, None, :], axis=-1, dtype=jnp.int32)


def _member(channel: jax.Array, channels: int, columns: int | None = None) -> jax.Array:
    """Return a mask of each behaviour's channel, bool ``[..., L, columns]``, false past the channels."""
    numbers = np.arange(channels if columns is None else columns, dtype=np.int32)
    return (channel[..., None] == numbers) & (numbers < channels)


def _scores(cand: jax.Array, seq: jax.Array, kind: SignatureKind) -> jax.Array:
    """Exact scores, int32 ``[..., N, L]``: a product of int8, which no matmul precision rounds."""
    read = _plus_minus_one if kind == "simhash" else _as_int8
    product = jnp.einsum("...nb,...lb->...nl", read(cand), read(seq), preferred_element_type=jnp.int32)
    if kind == "int8":
        return product
    return (product + np.int32(8 * cand.shape[-1])) >> np.int32(1)  # equal bits minus unequal ones, to equal


def _plus_minus_one(packed: jax.Array) -> jax.Array:
    bits = jnp.unpackbits(packed, axis=-1, bitorder="little").astype(jnp.int8)
    return bits * np.int8(2) - np.int8(1)


def _as_int8(packed: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(packed, jnp.int8)
