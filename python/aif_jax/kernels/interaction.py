"""The interaction module for one request: item rows to logits, first layer, SimTier and heads in one pass.

With the row of a candidate ``i`` holding ``h_i``, the factored columns ``x_i`` (``e``, ``bridge``,
``content``, ``event``), its signature ``s_i`` and its categories,

    H      = shared + h_i + x_i · factors + slot_weights(category_i) · slots + Σ_g table[g, s_i[g]]
             + tiers(s_i) · tier_weights + pair_i · pair_weights
    logits = layers(relu(H))

where tiers and table count for items with content only. `interaction` computes it from rows on any platform
and is the definition; `cached_interaction` reads the rows by id from an `EmbeddingCache`, on a CPU, by a Rust
kernel that takes a block of candidates from ids to logits while it stays in the first levels of cache.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.config import TierScale
from aif_jax.errors import ConfigError
from aif_jax.kernels import ffi
from aif_jax.kernels.checks import expect_array
from aif_jax.kernels.ordered import ordered_product
from aif_jax.kernels.simtier import SignatureKind, simtier, tier_features
from aif_jax.kernels.slots import FIRST_CATEGORY, slot_weights
from aif_jax.kernels.table_sum import table_sum

FOUND, RANKABLE = 1, 2
"""Bits of a candidate's status: it has a row; it may be ranked, and its logits are valid."""


class Tiers(NamedTuple):
    """SimTier of one user.

    Attributes:
        sequence: signatures of the behaviours, uint8 ``[L, signature_bytes]``.
        channel: int32 ``[L]``, as of `simtier`.
        lengths: float32 ``[channels]``, number of behaviours in each channel.
        edges: int32 ``[T-1]``.
        weights: float32 ``[channels * T, h]``.
    """

    sequence: jax.Array
    channel: jax.Array
    lengths: jax.Array
    edges: jax.Array
    weights: jax.Array


class Slots(NamedTuple):
    """SIM-hard of one user: ``category`` int32 ``[C_max]``, ``rows`` ``[C_max, h]``."""

    category: jax.Array
    rows: jax.Array


class Operands(NamedTuple):
    """Operands that the candidates of one request share, and their pair features; ``None`` for absent blocks.

    Attributes:
        shared: float32 ``[h]``.
        factors: ``[sum of the factored columns' widths, h]``. For the native kernel these, the slots' rows
            and the table may be bfloat16; rows that are not float32 then meet them as bfloat16.
        slots: pooled sub-sequences by category.
        table: ``[groups, 2**bits, h]``, see `table_sum`.
        tiers: SimTier.
        pair: float32 ``[N, p]``.
        pair_weights: float32 ``[p, h]``.
        layers: weights ``[n, m]`` and bias ``[m]`` of the layers after the first, the last one to the logits;
            without any, the first layer's sums are the logits.
    """

    shared: jax.Array
    factors: jax.Array | None = None
    slots: Slots | None = None
    table: jax.Array | None = None
    tiers: Tiers | None = None
    pair: jax.Array | None = None
    pair_weights: jax.Array | None = None
    layers: tuple[tuple[jax.Array, jax.Array], ...] = ()


@dataclasses.dataclass(frozen=True)
class Form:
    """Constants of a program.

    Attributes:
        factored: the row columns that ``factors`` multiply, in their order.
        kind: kind of the signatures.
        scale: scaling of SimTier counts to features.
        bits: bits of a group of the table.
    """

    factored: tuple[str, ...] = ()
    kind: SignatureKind = "simhash"
    scale: TierScale = "share"
    bits: int = 4


def interaction(rows: Mapping[str, jax.Array], operands: Operands, form: Form) -> jax.Array:
    """Return the logits of candidates whose rows are given, ``[N, n_logits]``.

    Args:
        rows: item rows by column, ``[N, ...]``: those of ``h`` (if there is one), ``form.factored``,
            ``has_content``, ``signature`` and ``category`` that the operands call for; floats as float32.
        operands: operands that the candidates share.
        form: constants of the program.
    """
    total = operands.shared + rows["h"] if "h" in rows else operands.shared
    left = [rows[name] for name in form.factored]
    right = [] if operands.factors is None else [operands.factors]
    if operands.slots is not None:
        left.append(slot_weights(rows["category"], operands.slots.category))
        right.append(operands.slots.rows)
    if left:
        x, weights = jnp.concatenate(left, axis=1), jnp.concatenate(right, axis=0)
        total += x @ weights if operands.layers else ordered_product(x, weights)
    if (tiers := operands.tiers) is not None:
        channels = tiers.lengths.shape[0]
        counts = simtier(
            rows["signature"], tiers.sequence, tiers.channel, tiers.edges, channels=channels, kind=form.kind
        )
        features = tier_features(counts, tiers.lengths, form.scale)
        total += (features * rows["has_content"]) @ tiers.weights
    if operands.table is not None:
        total += table_sum(operands.table, rows["signature"], bits=form.bits) * rows["has_content"]
    if operands.pair is not None and operands.pair_weights is not None:
        total += operands.pair @ operands.pair_weights
    for number, (weights, bias) in enumerate(operands.layers, start=1):
        product = ordered_product if number == len(operands.layers) else jnp.matmul
        total = product(jax.nn.relu(total), weights) + bias
    return total


def cached_interaction(
    index: jax.Array, missing: jax.Array, ids: jax.Array, count: jax.Array, operands: Operands, form: Form
) -> tuple[jax.Array, jax.Array]:
    """Return the logits of candidates by id, their rows read from an `EmbeddingCache`; on a CPU only.

    Differs from `interaction` by the order of floating-point sums. The order is the same for a candidate in
    any batch: alone, or with others in any order and number.

    Args:
        index: `handle_operand` of the cache of item rows, uint32 ``[2]``. The columns that the operands call
            for are read by name, and may be float32, bfloat16, or int8 with their scales in ``scale``; an
            item whose ``rankable`` is 0 may not be ranked. The caller keeps the cache alive. Zeros, which
            name no cache, go with a ``count`` of 0.
        missing: handle of a cache of the same layout whose row under key 0 replaces missing ones; zeros: none
            does.
        ids: keys as pairs of 32-bit halves, lower half first, uint32 ``[N, 2]``.
        count: int32 scalar: number of ids that are candidates; the rest is padding and costs nothing.
        operands: operands that the candidates share.
        form: constants of the program.

    Returns:
        Logits float32 ``[N, n_logits]``, and uint8 ``[N]``: `FOUND` if the id has a row, plus `RANKABLE` if
        it may be ranked; 0 for padding.

    Raises:
        ConfigError: a shape or dtype is not as above, or the native kernels are not registered.
        jax.errors.JaxRuntimeError: when the program runs, if a cache is gone, or its rows are not what the
            model reads (a `ValueError` where JAX runs a program at once).
    """
    for name, value, dtype in (("index", index, np.uint32), ("missing", missing, np.uint32),
                               ("ids", ids, np.uint32), ("count", count, np.int32)):  # fmt: skip
        expect_array(name, value, dtype, 0)
    if index.shape != (2,) or missing.shape != (2,) or ids.ndim != 2 or ids.shape[1] != 2 or count.ndim:
        raise ConfigError(
            f"cached_interaction: index {index.shape}, missing {missing.shape}, ids {ids.shape} and count "
            f"{count.shape}; expected (2,), (2,), [N, 2] and ()."
        )
    ffi.require()
    n, width = ids.shape[0], operands.shared.shape[0]
    slots = operands.slots or Slots(_none(jnp.int32, 0), _none(jnp.float32, 0, width))
    tiers = operands.tiers or Tiers(
        _none(jnp.uint8, 0, 8), _none(jnp.int32, 0), _none(jnp.float32, 0), _none(jnp.int32, 0),
        _none(jnp.float32, 0, width),
    )  # fmt: skip
    pair = jnp.zeros((n, 0), jnp.float32) if operands.pair is None else operands.pair
    given = [
        index, missing, ids, count, operands.shared,
        _none(jnp.float32, 0, width) if operands.factors is None else operands.factors,
        slots.category, slots.rows, tiers.edges, tiers.sequence, tiers.channel, tiers.lengths, tiers.weights,
        _none(jnp.float32, 0, 1, width) if operands.table is None else operands.table,
        pair,
        _none(jnp.float32, 0, width) if operands.pair_weights is None else operands.pair_weights,
        *(array for layer in operands.layers for array in layer),
    ]  # fmt: skip
    outputs = operands.layers[-1][1].shape[0] if operands.layers else width
    return ffi.call(
        "aif_interaction",
        [jax.ShapeDtypeStruct((n, outputs), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.uint8)],
        *given,
        factored=",".join(form.factored),
        kind=form.kind if operands.tiers is not None else "",
        scale=form.scale,
        bits=form.bits if operands.table is not None else 0,
        first_category=FIRST_CATEGORY,
    )


def _none(dtype: jax.typing.DTypeLike, *shape: int) -> jax.Array:
    return jnp.zeros(shape, dtype)
