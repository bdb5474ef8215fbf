"""Programs of a bundle over a whole catalogue: how a model is scored whose functions are not here."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Program
from aif_jax.data import Dataset
from aif_jax.features.score import score_of
from aif_jax.models.own_model import OwnConfig

Arrays = Mapping[str, Any]
Batch = dict[str, Any]

_SURE = 1 - 2**-24
"""The largest probability whose log odds are finite in float32."""


def config_of(bundle: Bundle) -> OwnConfig:
    """Return what batches need to know of the model in a bundle, which may be any."""
    spec = bundle.spec
    paths = {operand.path for operand in bundle.signature("user").inputs}
    return OwnConfig(
        name=spec.name, heads=spec.heads, score=spec.score, short_length=max(spec.short_length, 1),
        long_length=spec.long_length, content_width=spec.content_width, precision=spec.precision,
        rungs=spec.rungs, reads_gaps="long/gap" in paths,
    )  # fmt: skip


class ExportedPrograms:
    """The four portable programs over a whole catalogue, as functions of batches (`aif_jax.data.batching`).

    The stage gives probabilities, of which logits are made: those beyond 16.6 are that.

    Args:
        bundle: of any model; one with native programs is loaded again with portable ones.
        dataset: that fits its schema.
        rung: of the deadline ladder, one of the model's.

    Raises:
        BundleError: the portable programs cannot be proven.
    """

    def __init__(self, bundle: Bundle, dataset: Dataset, *, rung: int = 0) -> None:
        if bundle.kind != "portable":
            bundle = Bundle.load(bundle.path, prefer="portable")
        self._bundle, self._rung = bundle, rung
        self._raw = score_of(bundle.spec, bundle.schema).raw
        if reads_content(bundle):
            catalogue = dataset.catalogue(bundle.schema, content_space=bundle.content_space)
        else:
            none = np.zeros((dataset.n_items, 1), np.float32)
            catalogue = {**dataset.encode(bundle.schema, "item"), "content": none, "has_content": none}
        items = {f"item/{name}": column for name, column in catalogue.items()}
        # Weights and tables are operands: as constants they would be compiled anew for each batch shape.
        self._weights = dict(bundle.weights)
        self._behaviours, self._rows = (
            jax.jit(partial(_run, bundle.program(stage)))(self._weights, items)
            for stage in ("behaviour", "item")
        )
        self._scored = jax.jit(self._score, static_argnames="together")

    def logits(self, batch: Batch) -> jax.Array:
        """Return logits ``[B, G, heads]`` of impressions, each in its own context."""
        real = np.asarray(batch["item"]) >= 0
        together = all(
            np.array_equal(leaf[real], np.broadcast_to(leaf[:, :1], leaf.shape)[real])
            for leaf in map(np.asarray, batch["context"].values())
        )
        return self._scored(self._weights, self._behaviours, self._rows, batch, together=together)[1]

    def scores(self, batch: Batch) -> np.ndarray:
        """Return the scores ``[B, C]`` of requests, each of one context.

        Those of the main head alone where the score expression reads pair features, which unseen items lack.
        """
        score, logits = self._scored(self._weights, self._behaviours, self._rows, batch, together=True)
        return np.asarray(logits[..., 0] if self._raw else score)

    def _score(
        self, weights: Arrays, behaviours: Arrays, rows: Arrays, batch: Batch, *, together: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Return scores ``[B, G]`` and logits ``[B, G, heads]``."""
        batch = at_rung(batch, self._rung)
        given = {f"user/{name}": leaf for name, leaf in batch["user"].items()}
        for which in ("short", "long"):
            types = given[f"{which}_type"] = jnp.asarray(batch[f"{which}_type"])
            columns = {name: behaviours[name][jnp.maximum(batch[f"{which}_item"], 0)] for name in behaviours}
            if which == "long" and "long_gap" in batch:
                columns["gap"] = batch["long_gap"]
            for name, leaf in columns.items():
                there = (types >= 0).reshape(*types.shape, *[1] * (leaf.ndim - 2))
                given[f"{which}/{name}"] = jnp.where(there, leaf, 0)
        states = _run(self._bundle.program("user"), weights, given)

        # The stage ranks the candidates of one request, and tells of the best k_max: so many at a time.
        users, width = batch["item"].shape
        most = min(self._bundle.k_max, width) if together else 1
        pieces, size = -(-width // most), -(-self._bundle.k_max // 16) * 16

        def cut(leaf: Any, fill: int = 0) -> jax.Array:
            """Return ``[B * pieces, most, ...]`` of ``[B, G, ...]``."""
            rest = [(0, 0)] * (leaf.ndim - 2)
            leaf = jnp.pad(leaf, [(0, 0), (0, pieces * most - width), *rest], constant_values=fill)
            return leaf.reshape(users * pieces, most, *leaf.shape[2:])

        def filled(leaf: jax.Array, fill: int = 0) -> jax.Array:
            rest = [(0, 0)] * (leaf.ndim - 1)
            return jnp.pad(leaf, [(0, size - most), *rest], constant_values=fill)

        def of_piece(piece: Any) -> tuple[jax.Array, jax.Array]:
            owner, items, context, pair = piece
            items = filled(items, -1)
            leaves = {
                **{f"state/{name}": leaf[owner][None] for name, leaf in states.items()},
                **{f"rows/{name}": leaf[jnp.maximum(items, 0)] for name, leaf in rows.items()},
                **{f"context/{name}": leaf for name, leaf in context.items()},
                **{f"pair/{name}": filled(leaf) for name, leaf in pair.items()},
                **{f"pair/raw_{name}": jnp.zeros(size, jnp.float32) for name in self._raw},
                "valid": items >= 0,
            }
            found = _run(self._bundle.program("stage"), weights, leaves)
            order, heads = found["order"], jnp.minimum(found["heads"], _SURE)
            logits = jnp.log(jnp.maximum(heads, jnp.finfo(jnp.float32).tiny)) - jnp.log1p(-heads)
            score = jnp.zeros(size, jnp.float32).at[order].set(found["score"])
            return score[:most], jnp.zeros((size, heads.shape[1])).at[order].set(logits)[:most]

        context = {name: cut(leaf)[:, 0] for name, leaf in batch["context"].items()}
        pair = {name: cut(leaf) for name, leaf in batch["pair"].items()}
        owners = jnp.repeat(jnp.arange(users), pieces)
        score, logits = jax.lax.map(of_piece, (owners, cut(batch["item"], -1), context, pair))
        return (
            score.reshape(users, -1)[:, :width],
            logits.reshape(users, pieces * most, -1)[:, :width],
        )


def at_rung(batch: Batch, rung: int) -> Batch:
    """Return requests without what a rung goes without: long sequence, user, context and pair features."""
    hidden: Sequence[str] = ["long_type"] * (rung >= 1) + ["short_type"] * (rung >= 2)
    missing = ["user"] * (rung >= 2) + ["context", "pair"] * (rung >= 3)
    return {
        **batch,
        **{name: jnp.full_like(batch[name], -1) for name in hidden},
        # Missing is zero in features of every kind.
        **{group: {n: jnp.zeros_like(x) for n, x in batch[group].items()} for group in missing},
    }


def reads_content(bundle: Bundle) -> bool:
    """Return whether the model in a bundle reads content: one that reads none is described as of width 1."""
    return bundle.spec.content_width > 1


def _run(program: Program, weights: Arrays, leaves: Arrays) -> dict[str, jax.Array]:
    """Run a program inside a traced function: operands by path, its outputs by path."""
    signature = program.signature
    outputs = program.exported.call(
        tuple(weights[name] for name in signature.weights),
        tuple(jnp.asarray(leaves[operand.path]) for operand in signature.inputs),
    )
    return {operand.path: leaf for operand, leaf in zip(signature.outputs, outputs, strict=True)}
