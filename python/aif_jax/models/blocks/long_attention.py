"""Attention over the long sequence in four kinds, as it is defined and as factors of the user alone.

``A(i, u)`` is a weighted sum of the values ``Y_l`` of the behaviours that count (those with content; ``n`` of
them). A candidate without content gets zeros, but for ``mean``, which is the same for all candidates.

- ``linear``: ``A = 1/n Σ_l (m_i·m_l) Y_l = m_i M_u`` with ``M_u = 1/n Σ_l m_l ⊗ Y_l``
- ``sign``: ``A = 1/n Σ_l (s_i·s_l / b) Y_l`` over sign bits ±1 (the LSH attention of AIF, arXiv 2511.12934)
- ``collision``: signatures are cut into groups of bits; ``A`` is the mean over the groups of the mean ``Y_l``
  of the behaviours whose bits in that group equal the candidate's, zero in a group without one (after SDIM,
  arXiv 2205.10249, which normalises by length instead)
- ``mean``: ``A = 1/n Σ_l Y_l``: the control, without any similarity

In the stage ``linear`` is rows of ``M`` that the content embedding multiplies, ``sign`` and ``collision`` are
a table whose rows the bits of the signature choose, and ``mean`` is part of what all candidates share.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.kernels import group_codes
from aif_jax.models.blocks import base
from aif_jax.models.initial import constant
from aif_jax.models.layers import masked_mean, masked_softmax

_LEAST = -(2**31)
"""A rank below that of any behaviour."""

SIGN_BITS = 4
"""Sign bits a table row stands for: tables of 16 rows stay in the L2 cache, tables of 256 do not."""


class LongAttention(base.InteractionBlock):
    """Attention over the long sequence; absent where no behaviour counts."""

    name = "long_attention"

    def _declare(self) -> None:
        config, kernel, absent = self.config, "first.long_attention.*", "first.absent_long_attention"
        self.width = config.value_width
        # What is multiplied out on the user side needs the weight there; a table, when it is expanded.
        self.weights = base.Weights(user=(kernel, absent))
        match config.long_attention:
            case "linear":
                self.behaviour_columns = self.shared("value", "content", "has_content")
                self.row_columns = self.shared("content")
                self.factored = "content"
                self.narrowed = ("content",)
            case "mean":
                self.behaviour_columns = self.shared("value", "has_content")
            case "sign" | "collision":
                self.behaviour_columns = self.shared("value", "has_content", "signature")
                self.row_columns = self.shared("has_content", "signature")
                self.narrowed = ("factor",)
                self.weights = base.Weights(user=(absent,), history=(kernel,))
                signed = config.long_attention == "sign"
                self.form = {"bits": SIGN_BITS if signed else config.collision_bits}

    def state_columns(self, length: Any) -> base.ColumnShapes:
        """Return ``factor`` of the kinds that have a table."""
        config = self.config
        bits, group, d_v = config.signature_bits, config.collision_bits, config.value_width
        shapes = {"sign": (bits, d_v), "collision": (bits // group, 2**group, d_v)}
        shape = shapes.get(config.long_attention)
        return {} if shape is None else {"factor": (shape, base.F4)}

    def input(
        self, model: Any, candidates: base.Candidates, side: base.UserSide
    ) -> tuple[jax.Array, jax.Array]:
        """Return ``A`` ``[B, G, d_v]`` (``mean``: ``[B, 1, d_v]``), and which users have a history."""
        found = self.attention(model, candidates.item, side)
        return found, jnp.any(side.counted, axis=1, keepdims=True)

    def attention(self, model: Any, item: base.Arrays, side: base.UserSide) -> jax.Array:
        """Return the attention ``[B, G, d_v]`` of candidates."""
        long, value, counted = side.long, side.value, side.counted
        match self.config.long_attention:
            case "linear":
                found = linear_attention(item["content"], long["content"], value, counted)
            case "sign":
                found = sign_attention(item["signature"], long["signature"], value, counted)
            case "collision":
                bits = self.config.collision_bits
                found = collision_attention(item["signature"], long["signature"], value, counted, bits)
            case "mean":
                return masked_mean(value, counted)[:, None]
            case "nearest":
                raise AssertionError("the config allows it for ExactLongAttention alone")
        return found * item["has_content"]

    def state(self, model: Any, side: base.UserSide) -> dict[str, jax.Array]:
        """Return ``M``: ``M_u W_l`` ``[B, d_m, h]``, or ``factor``; ``h_u``: the mean, or what is absent."""
        first, long, value, counted = model.first, side.long, side.value, side.counted
        present = jnp.any(counted, axis=1)
        if self.config.long_attention == "mean":
            return {"h_u": first.contribution(self.name, masked_mean(value, counted), present)}
        state = {"h_u": first.instead(self.name, present)}
        match self.config.long_attention:
            case "linear":
                state["M"] = linear_factor(long["content"], value, counted) @ first.weight(self.name)
            case "sign":
                state["factor"] = sign_factor(long["signature"], value, counted)
            case "collision":
                bits = self.config.collision_bits
                state["factor"] = collision_factor(long["signature"], value, counted, bits)
        return state

    def operands(
        self, model: Any, weights: base.Arrays, state: base.Arrays, context: base.Arrays, pair: base.Arrays
    ) -> base.Entries:
        """Return ``table`` ``[groups, 2^bits, h]`` of the kinds that have one."""
        if "factor" not in state:
            return {}
        table = state["factor"].astype(jnp.float32) @ model.first.weight(self.name)
        return {"table": sign_table(table) if self.config.long_attention == "sign" else table}

    def flops(self, length: int) -> tuple[int, int]:
        """Return the operations of one kind.

        For each candidate and each user:

        - ``linear``: ``2 d_m h``; ``2 L d_m d_v + 2 d_m d_v h``
        - ``sign``: ``h b / 4``; ``2 L b d_v + 2 b d_v h + 32 b h``
        - ``collision``: ``h b / bits``; ``(2 L d_v + 2 d_v h) 2^bits b / bits``
        - ``mean``: nothing; ``2 L d_v + 2 d_v h``
        - ``nearest``: ``2 L (b + d_m + d_v)``, as trained; nothing
        """
        config = self.config
        h, d_m, d_v, b = config.hidden, config.content_width, config.value_width, config.signature_bits
        match config.long_attention:
            case "linear":
                return 2 * d_m * h, 2 * d_m * d_v * (length + h)
            case "sign":
                return h * b // SIGN_BITS, 2 * b * d_v * (length + h) + 2 * 2**SIGN_BITS * b * h
            case "collision":
                groups = b // config.collision_bits
                return h * groups, 2 * d_v * (length + h) * groups * 2**config.collision_bits
            case "mean":
                return 0, 2 * d_v * (length + h)
            case "nearest":
                return 2 * length * (b + d_m + d_v), 0


class ExactLongAttention(LongAttention):
    """Softmax attention over content embeddings, what the other kinds approximate.

    ``A = Σ_l softmax_l(sharpness · m_i·m_l) Y_l`` with a learned inverse temperature, over all behaviours
    that count, or with ``nearest`` over those whose signatures are nearest to the candidate's (ETA, arXiv
    2108.04468).
    """

    def _declare(self) -> None:
        super()._declare()
        self.behaviour_columns = self.shared("value", "content", "has_content")
        if self.config.long_attention == "nearest":
            self.behaviour_columns |= self.shared("signature")

    def modules(self, rngs: nnx.Rngs) -> base.Entries:
        """Return ``sharpness``."""
        # Cosines are small; softmax over them starts at a temperature at which it can tell them apart.
        return {"sharpness": constant(8.0)}

    def attention(self, model: Any, item: base.Arrays, side: base.UserSide) -> jax.Array:
        """Return the attention ``[B, G, d_v]`` of candidates."""
        read = side.counted[:, None]
        if self.config.long_attention == "nearest":
            signatures = item["signature"], side.long["signature"]
            read = nearest(*signatures, side.counted, self.config.nearest)
        operands = (item["content"], side.long["content"], side.value, read)
        found = softmax_attention(*operands, model.sharpness[...])
        return found * item["has_content"]


def signs(signature: jax.Array) -> jax.Array:
    """Return sign bits as float32 ±1 ``[..., b]`` of uint8 ``[..., b/8]``."""
    return 2.0 * jnp.unpackbits(signature, axis=-1, bitorder="little").astype(jnp.float32) - 1.0


def _counted(value: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return values with those that do not count zeroed, and the number that does, at least 1."""
    n = jnp.maximum(jnp.sum(counted, axis=-1).astype(jnp.float32), 1.0)
    return value * counted[..., None].astype(value.dtype), n[..., None, None]


def linear_attention(
    content: jax.Array, behaviour_content: jax.Array, value: jax.Array, counted: jax.Array
) -> jax.Array:
    """Return ``linear`` attention ``[B, G, d_v]``.

    Args:
        content: candidates' ``[B, G, d_m]``.
        behaviour_content: ``[B, L, d_m]``.
        value: ``[B, L, d_v]``.
        counted: bool ``[B, L]``.
    """
    value, n = _counted(value, counted)
    return jnp.einsum("bgm,blm->bgl", content, behaviour_content) @ value / n


def linear_factor(behaviour_content: jax.Array, value: jax.Array, counted: jax.Array) -> jax.Array:
    """Return ``M_u`` ``[B, d_m, d_v]``: `linear_attention` is ``content @ M_u``."""
    value, n = _counted(value, counted)
    return jnp.einsum("blm,blv->bmv", behaviour_content, value) / n


def softmax_attention(
    content: jax.Array,
    behaviour_content: jax.Array,
    value: jax.Array,
    read: jax.Array,
    sharpness: jax.Array,
) -> jax.Array:
    """Return ``Σ_l softmax_l(sharpness · m_i·m_l) Y_l`` ``[B, G, d_v]``, what the kinds above approximate.

    Arguments as of `linear_attention`; ``read`` is bool ``[B, G or 1, L]``, the behaviours that each
    candidate attends to, and ``sharpness`` a scalar, the inverse of a temperature.
    """
    logits = sharpness * jnp.einsum("bgm,blm->bgl", content, behaviour_content)
    return masked_softmax(logits, read) @ value


def nearest(signature: jax.Array, behaviour_signature: jax.Array, counted: jax.Array, k: int) -> jax.Array:
    """Return which ``k`` behaviours have the nearest signatures to each candidate's, bool ``[B, G, L]``.

    Nearest by Hamming distance; of those at one distance the most recent first. All that count, if they are
    fewer.

    Args:
        signature: candidates' sign bits, uint8 ``[B, G, b/8]``.
        behaviour_signature: uint8 ``[B, L, b/8]``, most recent first.
        counted: bool ``[B, L]``.
        k: at least 1.
    """
    length = counted.shape[1]
    alike = jnp.einsum("bgs,bls->bgl", signs(signature), signs(behaviour_signature)).astype(jnp.int32)
    # Different for each behaviour, so that as many as k are at least the k-th largest.
    place = jnp.arange(length, dtype=jnp.int32)[None, None]
    rank = jnp.where(counted[:, None], alike * length - place, _LEAST)
    worst = jax.lax.top_k(rank, min(k, length))[0][..., -1:]
    return (rank >= worst) & counted[:, None]


def sign_attention(
    signature: jax.Array, behaviour_signature: jax.Array, value: jax.Array, counted: jax.Array
) -> jax.Array:
    """Return ``sign`` attention ``[B, G, d_v]`` of signatures uint8 ``[B, G, b/8]`` and ``[B, L, b/8]``."""
    value, n = _counted(value, counted)
    own, theirs = signs(signature), signs(behaviour_signature)
    return jnp.einsum("bgs,bls->bgl", own, theirs) / own.shape[-1] @ value / n


def sign_factor(behaviour_signature: jax.Array, value: jax.Array, counted: jax.Array) -> jax.Array:
    """Return ``M_u`` ``[B, b, d_v]``: `sign_attention` is ``signs(signature) @ M_u``."""
    value, n = _counted(value, counted)
    theirs = signs(behaviour_signature)
    return jnp.einsum("bls,blv->bsv", theirs, value) / (n * theirs.shape[-1])


def sign_table(factor: jax.Array) -> jax.Array:
    """Return the table ``[b / 4, 16, k]`` whose rows, summed by code, are ``signs @ factor`` ``[b, k]``."""
    codes = jnp.arange(2**SIGN_BITS, dtype=jnp.int32)[:, None]
    pattern = 2.0 * ((codes >> jnp.arange(SIGN_BITS, dtype=jnp.int32)) & 1).astype(jnp.float32) - 1.0
    groups = factor.reshape(-1, SIGN_BITS, factor.shape[-1])
    return jnp.einsum("vj,gjk->gvk", pattern, groups)


def collision_attention(
    signature: jax.Array, behaviour_signature: jax.Array, value: jax.Array, counted: jax.Array, bits: int
) -> jax.Array:
    """Return ``collision`` attention ``[B, G, d_v]``, see the module; ``bits`` a group."""
    own = jnp.moveaxis(group_codes(signature, bits=bits), -1, 0)
    theirs = jnp.moveaxis(group_codes(behaviour_signature, bits=bits), -1, 0)

    def add_group(weights: jax.Array, codes: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        same = ((codes[0][:, :, None] == codes[1][:, None, :]) & counted[:, None]).astype(jnp.float32)
        return weights + same / jnp.maximum(jnp.sum(same, axis=-1, keepdims=True), 1.0), None

    # Group by group, so that nothing of size [B, G, L, groups] exists.
    start = jnp.zeros((*own.shape[1:], theirs.shape[-1]), jnp.float32)
    weights, _ = jax.lax.scan(add_group, start, (own, theirs))
    return weights @ value / own.shape[0]


def collision_factor(
    behaviour_signature: jax.Array, value: jax.Array, counted: jax.Array, bits: int
) -> jax.Array:
    """Return ``[B, groups, 2^bits, d_v]``, rows that `collision_attention` sums by the candidate's codes."""
    theirs = jnp.moveaxis(group_codes(behaviour_signature, bits=bits), -1, 0)

    def one_group(codes: jax.Array) -> jax.Array:
        member = jax.nn.one_hot(codes, 2**bits) * counted[..., None].astype(jnp.float32)
        count = jnp.maximum(jnp.sum(member, axis=1), 1.0)
        return jnp.einsum("blc,blv->bcv", member, value) / count[..., None]

    return jnp.moveaxis(jax.lax.map(one_group, theirs), 0, 1) / theirs.shape[0]
