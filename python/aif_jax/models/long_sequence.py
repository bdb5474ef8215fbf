"""Attention over the long sequence in four kinds, as it is defined and as factors of the user alone.

``A(i, u)`` is a weighted sum of the values ``Y_l`` of the behaviours that count (those with content; ``n`` of
them). A candidate without content gets zeros, but for ``mean``, which is the same for all candidates.

- ``linear``: ``A = 1/n Σ_l (m_i·m_l) Y_l = m_i M_u`` with ``M_u = 1/n Σ_l m_l ⊗ Y_l``
- ``sign``: ``A = 1/n Σ_l (s_i·s_l / b) Y_l`` over sign bits ±1 (the LSH attention of AIF, arXiv 2511.12934)
- ``collision``: signatures are cut into groups of bits; ``A`` is the mean over the groups of the mean ``Y_l``
  of the behaviours whose bits in that group equal the candidate's, zero in a group without one (after SDIM,
  arXiv 2205.10249, which normalises by length instead)
- ``mean``: ``A = 1/n Σ_l Y_l``, what attention is worth less without: the control
"""

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.kernels import group_codes
from aif_jax.models.initial import constant
from aif_jax.models.layers import masked_mean, masked_softmax

SIGN_BITS = 4
"""Sign bits a table row stands for: tables of 16 rows stay in the L2 cache, tables of 256 do not."""


class BehaviourValues(nnx.Module):
    """``Y = y_item * gate[type] + bias[type]``: what a behaviour says depends on its kind."""

    def __init__(self, types: int, width: int) -> None:
        self.gate = constant(1.0, (types, width))
        self.bias = constant(0.0, (types, width))

    def __call__(self, value: jax.Array, kind: jax.Array) -> jax.Array:
        """Return ``Y`` ``[..., d_v]``, zeros where ``kind`` (int32 ``[...]``) is -1."""
        gate, bias = self.gate[...], self.bias[...]
        chosen = jax.nn.one_hot(kind, gate.shape[0])
        # A copy of both for each history, so that their gradient is a product in each history and a sum over
        # them: one product over all behaviours would transpose what flows back, [B * L, d_v], twice.
        both = jnp.broadcast_to(
            jnp.concatenate([gate, bias], axis=-1), (*kind.shape[:-1], gate.shape[0], 2 * gate.shape[1])
        )
        gates, biases = jnp.split(chosen @ both, 2, axis=-1)
        return value * gates + biases


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


def mean_attention(value: jax.Array, counted: jax.Array) -> jax.Array:
    """Return ``mean`` attention ``[B, d_v]``, zeros where nothing counts; arguments of `linear_attention`."""
    return masked_mean(value, counted)


def softmax_attention(
    content: jax.Array,
    behaviour_content: jax.Array,
    value: jax.Array,
    counted: jax.Array,
    sharpness: jax.Array,
) -> jax.Array:
    """Return ``Σ_l softmax_l(sharpness · m_i·m_l) Y_l`` ``[B, G, d_v]``, what the kinds above approximate.

    Arguments as of `linear_attention`; ``sharpness`` is a scalar, the inverse of a temperature.
    """
    logits = sharpness * jnp.einsum("bgm,blm->bgl", content, behaviour_content)
    return masked_softmax(logits, counted[:, None]) @ value


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
