"""Deep encoder of the long sequence: causal transformer layers, and the match of an item with their output.

The layers read behaviours in order of time; each place sees itself and those before it, or the last
``encoder_reach`` of them (a sliding window, as in Longformer, arXiv 2004.05150): then ``n`` layers reach
``n`` times as far, and cost grows with the history's length in place of its square. The output at the
newest behaviour is the user's expectation ``u`` ``[w]``. An item as a candidate has the same vector ``v_i``
``[w]`` as in a history, and the input of the first layer is ``[v_i * u, v_i·u / √w]``. Both are linear in
``v_i``, so in the folded form the block is rows of ``M`` that the item column ``event`` multiplies: depth
costs nothing after retrieval.

In training one pass over a user's events gives the expectation before each of them (SASRec, Kang and McAuley,
arXiv 1808.09781). Positions are rotary (Su et al., arXiv 2104.09864), so only distances between places count,
and an output does not depend on how much padding is before it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from aif_jax.features.gaps import GAP_STEPS
from aif_jax.models.blocks.base import (
    F4,
    Arrays,
    Candidates,
    Entries,
    InteractionBlock,
    Labels,
    UserSide,
    Weights,
)
from aif_jax.models.initial import linear, normal

_KEPT = "event_kept"
_SLOWEST = 10_000.0
"""The slowest pair of a head turns by one radian in so many places."""


class Expectation(NamedTuple):
    """Outputs of the encoder for a batch.

    Attributes:
        vector: ``u`` of each request ``[B, w]``.
        present: bool ``[B]``, which requests have a behaviour.
        places: outputs at all places of the batch's windows ``[U, L, w]``; ``None`` without windows.
        kept: see `SequenceEncoder.extended`; ``None`` where nothing is to be kept.
    """

    vector: jax.Array
    present: jax.Array
    places: jax.Array | None = None
    kept: jax.Array | None = None


class EncoderLayer(nnx.Module):
    """Causal self-attention, then a gated MLP; each is added to its input, and reads it normalised."""

    def __init__(self, width: int, heads: int, reach: int = 0, *, rngs: nnx.Rngs) -> None:
        self.heads, self.reach = heads, reach
        self.attention_norm, self.mlp_norm = nnx.RMSNorm(width, rngs=rngs), nnx.RMSNorm(width, rngs=rngs)
        self.query = linear(width, width, use_bias=False, rngs=rngs)
        self.key_value = linear(width, 2 * width, use_bias=False, rngs=rngs)
        self.attended = linear(width, width, use_bias=False, rngs=rngs)
        self.gated = linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.out = linear(2 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, asked: jax.Array | None) -> jax.Array:
        """Return the layer's output ``[B, L, w]``, or at some places alone ``[B, P, w]``.

        Args:
            x: ``[B, L, w]``.
            mask: bool ``[B, L]``, which places hold a behaviour.
            asked: int32 ``[B, P]``, the places that are needed; ``None`` for all.
        """
        b, length, width = x.shape
        read, seen = self.attention_norm(x), mask[:, None, None, :]
        place, heads = jnp.arange(length)[None], (self.heads, width // self.heads)
        if asked is None:
            asking, from_place = read, place
        else:
            asking, x = (jnp.take_along_axis(each, asked[..., None], axis=1) for each in (read, x))
            from_place = asked
            seen &= (place[:, None] <= asked[..., None])[:, None]
        query = rotated(self.query(asking).reshape(b, -1, *heads), from_place)
        key, value = (half.reshape(b, length, *heads) for half in jnp.split(self.key_value(read), 2, axis=-1))
        key = rotated(key, place)
        if asked is None and 0 < self.reach < length:
            found = near_attention(query, key, value, mask, self.reach)
        else:
            if asked is not None and self.reach:
                seen &= (place[:, None] > asked[..., None] - self.reach)[:, None]
            found = jax.nn.dot_product_attention(query, key, value, mask=seen, is_causal=asked is None)
        x = x + self.attended(found.reshape(b, -1, width))
        straight, gate = jnp.split(self.gated(self.mlp_norm(x)), 2, axis=-1)
        return x + self.out(straight * jax.nn.silu(gate))


class SequenceEncoder(nnx.Module):
    """Layers over behaviours, oldest first.

    Args:
        width: ``w``.
        heads: of the attention.
        layers: number of layers, at least 1.
        types: number of behaviour types.
        gaps: whether they read the time between behaviours.
        reach: places that each place sees, itself included; 0 for all before it.
        rngs: random keys of the initial weights.

    Attributes:
        rematerialise: compute each layer again for its gradient instead of keeping what it computed.
    """

    rematerialise = False

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        types: int,
        gaps: bool = False,
        reach: int = 0,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.depth, self.reach = layers, reach
        self.types = normal((types, width), width**-0.5, rngs=rngs)
        self.gaps = normal((GAP_STEPS, width), width**-0.5, rngs=rngs) if gaps else None
        for number in range(layers):
            setattr(self, f"layer_{number}", EncoderLayer(width, heads, reach, rngs=rngs))
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.out = linear(width, width, rngs=rngs)

    def __call__(
        self, event: jax.Array, kind: jax.Array, gap: jax.Array | None = None, *, last: bool = False
    ) -> jax.Array:
        """Return the output at each place ``[B, L, w]``, or at the newest behaviour alone ``[B, 1, w]``.

        Args:
            event: vectors of the behaviours' items ``[B, L, w]``.
            kind: int32 ``[B, L]``, their types, -1 where there is no behaviour, or one of an item without a
                row.
            gap: int32 ``[B, L]``, see `aif_jax.features.gaps.gap_steps`; that of the oldest is not read: its
                predecessor may be beyond the history.
            last: whether the newest behaviour alone is needed.
        """
        newest = _newest(kind) if last else None
        x, layers = self._read(event, kind, gap), self._layers()
        mask, far = kind >= 0, self.depth * self.reach
        if newest is not None and far:
            # The output at the newest place depends on no others. Exported programs do not know the length.
            near = newest - far + 1 + jnp.arange(far)[None]
            x = jnp.take_along_axis(x, jnp.maximum(near, 0)[..., None], axis=1)
            mask = jnp.take_along_axis(mask, jnp.maximum(near, 0), axis=1) & (near >= 0)
            newest = jnp.full_like(newest, far - 1)
        # The last layer alone may be asked for one place alone.
        whole, rest = (layers[:-1], layers[-1:]) if last else (layers, [])
        if self.rematerialise and whole:
            x = _rematerialised(whole, x, mask)
        else:
            rest = layers
        for layer in rest:
            x = layer(x, mask, newest if layer is layers[-1] else None)
        return self.out(self.norm(x))

    def extended(
        self, event: jax.Array, kind: jax.Array, gap: jax.Array | None, kept: jax.Array, asked: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the output at the newest behaviour ``[B, 1, w]``, computing no more than the last places.

        Args:
            event, kind, gap: as of `__call__`.
            kept: inputs of the layers after the first ``[B, L, layers - 1, w]``, as this function returned
                them for the same behaviours; those of the last ``P`` places are not read.
            asked: int32 ``[P]``, the last ``P`` places of a history, ascending.

        Returns:
            The output; and ``kept`` with those of the last ``P`` places.
        """
        x, layers = self._read(event, kind, gap), self._layers()
        places, old = jnp.broadcast_to(asked, (kind.shape[0], asked.shape[0])), kind.shape[1] - asked.shape[0]
        inputs: list[jax.Array] = []
        for number, layer in enumerate(layers[:-1]):
            x = jnp.concatenate([kept[:, :old, number], layer(x, kind >= 0, places)], axis=1)
            inputs.append(x)
        return self.out(self.norm(layers[-1](x, kind >= 0, _newest(kind)))), jnp.stack(inputs, axis=2)

    def _layers(self) -> list[EncoderLayer]:
        return [getattr(self, f"layer_{number}") for number in range(self.depth)]

    def _read(self, event: jax.Array, kind: jax.Array, gap: jax.Array | None) -> jax.Array:
        """Return the input of the first layer ``[B, L, w]``."""
        x = event + jax.nn.one_hot(kind, self.types[...].shape[0]) @ self.types[...]
        if self.gaps is None or gap is None:
            return x
        oldest = jnp.arange(kind.shape[1])[None] == jnp.argmax(kind >= 0, axis=1, keepdims=True)
        return x + jax.nn.one_hot(jnp.where(oldest, 0, gap), GAP_STEPS) @ self.gaps[...]


def _newest(kind: jax.Array) -> jax.Array:
    """Return the last place that holds a behaviour, int32 ``[B, 1]``; 0 without any."""
    places = jnp.arange(kind.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(kind >= 0, places, 0), axis=1, keepdims=True)


def _rematerialised(layers: Sequence[EncoderLayer], x: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the output ``[B, L, w]`` of layers that keep nothing for their gradients but their inputs.

    A loop, because XLA on a CPU computes layers that stand in a row again all at once, and saves nothing.
    """
    graph = nnx.graphdef(layers[0])
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *map(nnx.state, layers))

    def one(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
        return nnx.merge(graph, weights)(x, mask, None), None

    return jax.lax.scan(jax.checkpoint(one, prevent_cse=False), x, stacked)[0]


class Encoder(InteractionBlock):
    """Match of an item with the encoder's expectation; absent without a behaviour."""

    name = "encoder"

    def _declare(self) -> None:
        self.width = self.config.encoder_width + 1
        self.behaviour_columns = self.row_columns = self.shared("event")
        self.factored = "event"
        self.narrowed = ("event",)
        # A bounded reach costs little already, and reads the newest places alone.
        if (deep := self.config.encoder_layers - 1) > 0 and not self.config.encoder_reach:
            self.kept_columns = {_KEPT: ((deep, self.config.encoder_width), F4)}
        self.weights = Weights(item=("item.as_event.*",), user=("first.encoder.*", "first.absent_encoder"))

    def labels(self) -> dict[str, Labels]:
        """Return the behaviour type of the rows of its types."""
        return {"user.encoder.types": {0: [(f"type {name}",) for name in self.schema.behaviour_types]}}

    def user_modules(self, rngs: nnx.Rngs) -> Entries:
        """Return ``encoder``."""
        config, types = self.config, len(self.schema.behaviour_types)
        sizes = (
            config.encoder_width,
            config.encoder_heads,
            config.encoder_layers,
            types,
            config.encoder_gaps,
            config.encoder_reach,
        )
        return {"encoder": SequenceEncoder(*sizes, rngs=rngs)}

    def user(self, model: Any, side: UserSide) -> Expectation:
        """Return the expectations of a batch, from its windows or else from the long sequences."""
        present, encoder = jnp.any(side.long_type >= 0, axis=1), model.user.encoder
        if not side.sequence:
            event, kind = jnp.flip(side.long["event"], axis=1), jnp.flip(side.long_type, axis=1)
            gap = jnp.flip(side.long["gap"], axis=1) if self.config.encoder_gaps else None
            if side.new is None:
                return Expectation(encoder(event, kind, gap, last=True)[:, 0], present)
            kept, asked = jnp.flip(side.long[_KEPT], axis=1), kind.shape[1] - 1 - jnp.flip(side.new)
            vector, kept = encoder.extended(event, kind, gap, kept, asked)
            return Expectation(vector[:, 0], present, kept=jnp.flip(kept, axis=1))
        windows = side.sequence
        places = encoder(windows["event"], windows["type"], windows.get("gap"))
        vector = places[jnp.maximum(windows["row"], 0), jnp.maximum(windows["end"] - 1, 0)]
        return Expectation(vector, present & (windows["end"] > 0), places)

    def input(self, model: Any, candidates: Candidates, side: UserSide) -> tuple[jax.Array, jax.Array]:
        """Return ``[v_i * u, v_i·u / √w]`` ``[B, G, w + 1]``, and which users have a behaviour."""
        expected = side.own[self.name]
        product = model.item.event(candidates.item) * expected.vector[:, None]
        match = jnp.sum(product, axis=-1, keepdims=True) / jnp.sqrt(jnp.float32(product.shape[-1]))
        return jnp.concatenate([product, match], axis=-1), expected.present[:, None]

    def row(self, model: Any, e: jax.Array, items: Arrays) -> dict[str, jax.Array]:
        """Return ``event``: ``v_i`` ``[M, w]``."""
        return {"event": model.item.event(items)}

    def state(self, model: Any, side: UserSide) -> dict[str, jax.Array]:
        """Return ``M``: ``diag(u) (W + 1 w_m / √w)`` ``[B, w, h]``; ``h_u``: what is absent; what is kept.

        ``W`` ``[w, h]`` are the weights of the products, ``w_m`` ``[h]`` those of the match.
        """
        expected, w = side.own[self.name], self.config.encoder_width
        weight = model.first.weight(self.name)
        factor = expected.vector[..., None] * (weight[:w] + weight[w] / jnp.sqrt(jnp.float32(w)))
        return {
            "M": jnp.where(expected.present[:, None, None], factor, 0.0),
            "h_u": model.first.instead(self.name, expected.present),
            **({} if expected.kept is None else {_KEPT: expected.kept}),
        }

    def flops(self, length: int) -> tuple[int, int]:
        """``2 w h`` for each candidate; for each user ``(n - 1) (20 L w² + 4 L S w) + 4 L w² + 4 L w``.

        Of the last of the ``n`` layers only keys and values are needed at all places. ``S`` is ``L``; with a
        reach ``r`` it is ``2 r``, and ``L`` at most ``n r``.
        """
        config, w, reach = self.config, self.config.encoder_width, self.config.encoder_reach
        length = min(length, config.encoder_layers * reach or length)
        seen = min(length, 2 * reach or length)
        layer, last = 20 * length * w**2 + 4 * length * seen * w, 4 * length * w * (w + 1)
        return 2 * w * config.hidden, (config.encoder_layers - 1) * layer + last


def near_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, reach: int
) -> jax.Array:
    """Return causal attention ``[B, L, heads, c]`` in which a place sees ``reach`` places, itself included.

    Places are taken in chunks of ``reach``: the places of one see keys of their own and of the one before it.

    Args:
        query, key, value: ``[B, L, heads, c]``.
        mask: bool ``[B, L]``, which places are seen.
        reach: at least 1.
    """
    b, length, heads, c = query.shape
    chunks = -(-length // reach)
    padding = ((0, 0), (0, chunks * reach - length))

    def chunked(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, padding + ((0, 0),) * (x.ndim - 2))
        return padded.reshape(b * chunks, reach, *x.shape[2:])

    def with_chunk_before(x: jax.Array) -> jax.Array:
        own = chunked(x).reshape(b, chunks, reach, *x.shape[2:])
        before = jnp.pad(own[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (own.ndim - 2))
        return jnp.concatenate([before, own], axis=2).reshape(b * chunks, 2 * reach, *x.shape[2:])

    distance = reach + jnp.arange(reach)[:, None] - jnp.arange(2 * reach)[None]
    seen = (distance >= 0) & (distance < reach) & with_chunk_before(mask)[:, None, :]
    found = jax.nn.dot_product_attention(
        chunked(query), with_chunk_before(key), with_chunk_before(value), mask=seen[:, None]
    )
    return found.reshape(b, chunks * reach, heads, c)[:, :length]


def rotated(x: jax.Array, place: jax.Array) -> jax.Array:
    """Return vectors of heads turned by angles that grow with their place, so that only distances count.

    Args:
        x: ``[B, P, heads, c]``, ``c`` even; numbers ``j`` and ``c / 2 + j`` of a vector are one pair.
        place: int32 ``[B, P]`` or ``[1, P]``.
    """
    half = x.shape[-1] // 2
    rate = _SLOWEST ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (place.astype(jnp.float32)[..., None] * rate)[:, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], axis=-1
    )
