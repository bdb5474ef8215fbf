"""The weights of a folded model: names, shapes, which program reads which, and the model around them."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from flax import nnx

from aif_jax.errors import ConfigError
from aif_jax.models.baselines import Model, model_shapes
from aif_jax.models.folded_shapes import FoldedShapes
from aif_jax.models.served import Program
from aif_jax.models.signature import planes_of
from aif_jax.types import Columns

_ALWAYS: dict[Program, tuple[str, ...]] = {
    "behaviour": ("item.embed.*", "item.statistics", "item.as_token.*", "item.as_value.*", "item.as_event.*"),
    "item": ("item.embed.*", "item.statistics", "item.mlp.*", "first.item.*"),
    "user": ("user.*", "values.*", "project.*", "first.user.*"),
    "stage": ("heads.*", "bias", "train_only.absent", "calibration.*"),
}
"""The weights that each program reads whatever the blocks, as patterns over their names."""

_PLANES = "signature.planes"


class FoldedWeights:
    """The weights of the folded form of one config and schema.

    Args:
        shapes: of a config that folds, and its schema.
        model: of that config and schema, for the shapes of its weights; by default one is traced for them.

    Attributes:
        expected: shape and dtype of every weight that a program reads, by name, sorted.
    """

    def __init__(self, shapes: FoldedShapes, model: Model | None = None) -> None:
        config, schema = shapes.config, shapes.schema
        self._shapes = shapes
        if model is None:
            model = model_shapes(config, schema)
        self._graph, state = nnx.split(model)
        named, self._tree = jax.tree_util.tree_flatten_with_path(state)
        # Of a model with values too: what a program does not read must not be computed with.
        self._leaves = {path_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in named}
        every = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in self._leaves.items()}
        for name, array in {**constants(shapes), **calibration_weights(config.heads, {})}.items():
            every[name] = (array.shape, array.dtype)
        self._names = {program: self._reads(program, every) for program in _ALWAYS}
        read = {name for names in self._names.values() for name in names}
        self.expected = {name: every[name] for name in sorted(read)}

    def names(self, program: Program) -> list[str]:
        """Return the names of the weights that one program reads, sorted."""
        return list(self._names[program])

    def model(self, weights: Columns) -> Model:
        """Return the modules around some of the weights.

        A program gets only the weights that it reads; the others stay shapes, which nothing can compute with.
        """
        leaves = [weights.get(name, leaf) for name, leaf in self._leaves.items()]
        return nnx.merge(self._graph, jax.tree.unflatten(self._tree, leaves))

    def check(self, weights: Mapping[str, np.ndarray]) -> None:
        """Check names, shapes and dtypes.

        Raises:
            ConfigError: a weight is missing, unknown, or of another shape or dtype.
        """
        missing, unknown = self.expected.keys() - weights.keys(), weights.keys() - self.expected.keys()
        if missing or unknown:
            raise ConfigError(
                f"weights: missing {sorted(missing)}, unknown {sorted(unknown)}; the names must be "
                "those that fold(model).weights has for this config and schema."
            )
        for name, (shape, dtype) in self.expected.items():
            array = weights[name]
            if (array.shape, array.dtype) != (shape, dtype):
                raise ConfigError(
                    f"weights: {name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}; "
                    "were they made for another config or schema?"
                )

    def _reads(self, program: Program, every: Mapping[str, Any]) -> list[str]:
        reads = [block.weights for block in self._shapes.blocks]
        user = (*_ALWAYS["user"], *(name for block in reads for name in block.user))
        stage = (*_ALWAYS["stage"], *(name for block in reads for name in block.stage))
        patterns = {
            "behaviour": _ALWAYS["behaviour"],
            # Its prior takes the whole model, but for what needs a history.
            "item": (*_ALWAYS["item"], *(name for block in reads for name in block.item), *user, *stage),
            "user": user,
            "stage": (*stage, *(name for block in reads for name in block.history)),
        }[program]
        columns = {"behaviour": self._shapes.behaviour_columns, "item": self._shapes.item_columns}
        if "signature" in columns.get(program, ()):
            patterns = (*patterns, _PLANES)
        return sorted(name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns))


def constants(shapes: FoldedShapes) -> dict[str, np.ndarray]:
    """Return the arrays that belong to a model and are not trained: hyperplanes and those of blocks."""
    planes = planes_of(shapes.config)
    arrays = {} if planes is None else {_PLANES: planes}
    for block in shapes.blocks:
        arrays |= block.constants
    return arrays


def calibration_weights(
    heads: Sequence[str], calibration: Mapping[str, tuple[float, float]]
) -> dict[str, np.ndarray]:
    """Return the calibration as arrays ``[n_heads]``; heads that are not named keep their logit.

    Raises:
        ConfigError: a name is not a head.
    """
    if unknown := sorted(set(calibration) - set(heads)):
        raise ConfigError(f"calibration: {unknown} are not heads; name some of {list(heads)}.")
    pairs = np.asarray([calibration.get(head, (1.0, 0.0)) for head in heads], np.float32)
    return {"calibration.scale": pairs[:, 0].copy(), "calibration.offset": pairs[:, 1].copy()}


def path_name(path: tuple[Any, ...]) -> str:
    """Return the dotted name of an array in a module's state."""
    # The last part of the path is the variable's own attribute, which is not part of the name.
    return ".".join(str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey))
