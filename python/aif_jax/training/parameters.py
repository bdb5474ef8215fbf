"""Weights of a model by name, and as one vector.

The optimiser works on the vector: a few long loops instead of a few for each of sixty arrays, which halves
the size of the compiled program.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aif_jax.errors import ConfigError

Params = dict[str, jax.Array]
"""The trained weights by path, such as ``"item.mlp.layer_0.kernel"``."""


class Parameters:
    """Splits a model into named weights and merges them again.

    In the vector dense matrices come first, then embedding tables, then the rest (biases, scales, learned
    vectors of absent blocks), because decay treats the three differently.

    Args:
        model: any NNX module; its weights are its `nnx.Param` variables, all float32.

    Attributes:
        initial: the model's own weights by name.
        dense: number of elements of the vector that belong to dense matrices.
        embedding: number of elements after those that belong to embedding tables.

    Raises:
        ConfigError: a weight is not float32.
    """

    def __init__(self, model: nnx.Module) -> None:
        self._graph, state, self._rest = nnx.split(model, nnx.Param, ...)
        self._tree = jax.tree.structure(state)
        self.initial: Params = named_leaves(state)
        for name, value in self.initial.items():
            if value.dtype != jnp.float32:
                raise ConfigError(f"parameter {name} is {value.dtype}; training wants float32 throughout.")
        self._order = sorted(self.initial, key=lambda name: _kind(name, self.initial[name].ndim))
        sizes = {name: self.initial[name].size for name in self._order}
        self._bounds = list(itertools.accumulate(sizes.values(), initial=0))
        self._shapes = {name: self.initial[name].shape for name in self._order}
        kinds = {name: _kind(name, len(shape)) for name, shape in self._shapes.items()}
        self.dense = sum(sizes[name] for name, kind in kinds.items() if kind == 0)
        self.embedding = sum(sizes[name] for name, kind in kinds.items() if kind == 1)
        # One program each, where operations alone would be one for each shape.
        self._join = jax.jit(self._joined, inline=True)
        self._split = jax.jit(self._parts, inline=True)

    def join(self, params: Mapping[str, Any]) -> jax.Array:
        """Return all weights, or their gradients, as one vector ``[P]``."""
        return self._join({name: params[name] for name in self._order})

    def _joined(self, params: Mapping[str, Any]) -> jax.Array:
        return jnp.concatenate([jnp.ravel(params[name]) for name in self._order])

    def split(self, vector: Any) -> Params:
        """Return the weights of a vector ``[P]`` by name."""
        parts = self._split(vector)
        return {name: parts[name] for name in self._order}

    def _parts(self, vector: jax.Array) -> Params:
        return {
            name: vector[start:end].reshape(self._shapes[name])
            for name, (start, end) in zip(self._order, itertools.pairwise(self._bounds), strict=True)
        }

    def named(self, tree: Any) -> dict[str, Any]:
        """Return the arrays of a tree by path; a vector ``[P]`` as a dictionary of weights by name.

        Files hold this form: they do not hold the order of the weights in a vector, and another release may
        choose another order.
        """
        return {
            path: self.split(leaf) if np.shape(leaf) == (self._bounds[-1],) else leaf
            for path, leaf in named_leaves(tree).items()
        }

    def unnamed(self, arrays: Mapping[str, Any], like: Any) -> Any:
        """Return a tree of the structure of ``like`` from the result of `named`."""
        found = [arrays[path] for path in named_leaves(like)]
        leaves = [self.join(leaf) if isinstance(leaf, Mapping) else jnp.asarray(leaf) for leaf in found]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def merge(self, params: Mapping[str, Any]) -> nnx.Module:
        """Return the model with these weights."""
        state = jax.tree.unflatten(self._tree, [params[name] for name in self.initial])
        return nnx.merge(self._graph, state, self._rest)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by path, in the order in which `jax.tree.leaves` gives them."""
    paths = [
        ([_key(entry) for entry in path], leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    # An NNX variable adds a last entry of its own, always the same.
    return {".".join(path[:-1] if path[-1:] == ["value"] else path): leaf for path, leaf in paths}


def non_finite(tree: Any) -> list[str]:
    """Return the arrays of a tree that hold NaN or infinity, as ``"user.age (3 of 64 values)"``."""
    found = []
    for name, leaf in named_leaves(tree).items():
        values = np.asarray(leaf)
        if jnp.issubdtype(values.dtype, jnp.floating):
            bad = int(np.count_nonzero(~np.isfinite(values)))
            if bad:
                found.append(f"{name} ({bad} of {values.size} values)")
    return found


def _kind(name: str, axes: int) -> int:
    # The values of behaviours have a bias and a scale for each type: two axes, but not a matrix. Statistics
    # of items are counted, not learned.
    if name.endswith((".bias", ".gate", ".statistics")):
        return 2
    if "embed" in name or "table" in name:
        return 1
    return 0 if axes >= 2 else 2


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
