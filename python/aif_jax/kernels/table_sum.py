"""Sum of the table rows that a signature's groups of bits select: folded long-sequence attention.

Leading axes written ``...`` are batch axes; they must be equal among operands, or absent.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.errors import ConfigError
from aif_jax.kernels import ffi
from aif_jax.kernels.checks import batch_axes, expect_array
from aif_jax.kernels.choice import Implementation, dispatch


def table_sum(
    table: jax.Array, sig: jax.Array, *, bits: int, implementation: Implementation = "auto"
) -> jax.Array:
    """Return ``sum_g table[g, code_g(sig)]`` for each candidate.

    The code of group ``g`` is made of bits ``g·bits .. g·bits + bits-1`` of the signature, bit 0 being the
    lowest of byte 0: with 8 bits a group it is byte ``g``; with 4, group 0 is the low half of byte 0.

    Rows are added in the order of the groups, so a candidate's sum is the same in any batch.
    Differentiable in ``table``, forwards and (by the reference) in reverse.

    Args:
        table: rows by group and code, float32 or bfloat16 ``[..., g, 2**bits, h]``; added up in float32.
        sig: signatures, uint8 ``[..., N, sb]`` with ``8 sb = g·bits``.
        bits: bits a group: 2, 4 or 8.
        implementation: see `aif_jax.kernels.use`. All implementations return the same floats.

    Returns:
        float32 ``[..., N, h]``.

    Raises:
        ConfigError: a shape, dtype or number of bits is not as above.
    """
    half = getattr(table, "dtype", None) == jnp.bfloat16
    expect_array("table", table, jnp.bfloat16 if half else np.float32, 3)
    expect_array("sig", sig, np.uint8, 2)
    if bits not in (2, 4, 8):
        raise ConfigError(f"table_sum: bits is {bits!r}, expected 2, 4 or 8.")
    groups = sig.shape[-1] * 8 // bits
    if table.shape[-3:-1] != (groups, 2**bits):
        raise ConfigError(
            f"table_sum: table has shape {table.shape}, expected [..., {groups}, {2**bits}, h] "
            f"for signatures {sig.shape} in groups of {bits} bits."
        )
    lead = batch_axes("table_sum", {"table": table.shape[:-3], "sig": sig.shape[:-2]})
    sig = jax.lax.stop_gradient(sig)

    def native(table: jax.Array, sig: jax.Array) -> jax.Array:
        result = jax.ShapeDtypeStruct((*lead, sig.shape[-2], table.shape[-1]), jnp.float32)
        axes = [x.reshape((1,) * (len(lead) + n - x.ndim) + x.shape) for x, n in ((table, 3), (sig, 2))]
        return ffi.call("aif_table_sum", result, *axes, bits=bits)

    def reference(table: jax.Array, sig: jax.Array) -> jax.Array:
        return _reference(table, sig, bits=bits)

    @jax.custom_jvp
    def run(table: jax.Array, sig: jax.Array) -> jax.Array:
        return dispatch(implementation, native, reference, table, sig)

    @run.defjvp
    def _(
        primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, Any]
    ) -> tuple[jax.Array, jax.Array]:
        # Linear in the table; the reference can be transposed, a custom call cannot. Through `jvp` and not
        # by calling it on the tangent: jax 0.8 transposes a scan only if its carry is a tangent too.
        _, tangent = jax.jvp(lambda table: reference(table, primals[1]), primals[:1], tangents[:1])
        return run(*primals), tangent

    return run(table, sig)


def group_codes(sig: jax.Array, *, bits: int) -> jax.Array:
    """Return the codes of a signature's groups, int32 ``[..., 8 sb / bits]``, in the order of `table_sum`.

    Args:
        sig: signatures, uint8 ``[..., sb]``.
        bits: bits a group: 2, 4 or 8.
    """
    shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)
    codes = (sig[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*sig.shape[:-1], sig.shape[-1] * (8 // bits)).astype(jnp.int32)


def _reference(table: jax.Array, sig: jax.Array, *, bits: int) -> jax.Array:
    lead = table.shape[:-3] or sig.shape[:-2]
    if lead:
        axes = tuple(0 if x.ndim > n else None for x, n in ((table, 3), (sig, 2)))
        return jax.vmap(lambda t, s: _reference(t, s, bits=bits), in_axes=axes)(table, sig)
    codes = group_codes(sig, bits=bits)

    # Group by group, so that N x h floats are held and not N x g x h, in the one order of addition.
    def add(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows, code = group
        return total + jnp.take(rows, code, axis=0, mode="clip").astype(jnp.float32), None

    start = jnp.zeros((sig.shape[-2], table.shape[-1]), jnp.float32)
    return jax.lax.scan(add, start, (table, codes.T))[0]
