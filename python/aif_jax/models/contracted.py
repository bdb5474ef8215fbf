"""A model of the contract in the form that is served: its weights by name, its functions as programs."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from aif_jax import _native
from aif_jax.checks import whole
from aif_jax.config import PRECISIONS, PRIOR, ModelSpec, Precision
from aif_jax.errors import ConfigError
from aif_jax.features import Schema
from aif_jax.features.score import score_of
from aif_jax.kernels import FOUND, RANKABLE, gather_rows
from aif_jax.models.blocks.base import F4, I4, ColumnShapes
from aif_jax.models.contract import PreRanker
from aif_jax.models.folded_weights import calibration_weights, path_name
from aif_jax.models.precision import quantised
from aif_jax.models.served import (
    Arrays,
    Program,
    ServedModel,
    Size,
    Spec,
    padded,
    rows_to_pad,
    spec_of,
    zeros_of,
)
from aif_jax.shown import shown
from aif_jax.types import Columns

Function: TypeAlias = Literal["behaviour", "item", "user", "interact"]
Precisions: TypeAlias = Precision | Mapping[str, Precision]

_STORED = ("float32", "bfloat16", "float16", "int8", "uint8", "int32", "uint32")
"""Dtypes that a row or a state can have."""

_RESERVED = (PRIOR, "rankable")
"""Names of columns that rows have besides those of the model."""

_SCALE = "_scale"

_INPUTS: dict[Function, tuple[str, ...]] = {
    "behaviour": ("features",),
    "item": ("features",),
    "user": ("features", "short", "short_type", "long", "long_type"),
    "interact": ("state", "context", "rows", "pair"),
}
"""Names of a function's inputs, for messages."""


class Contracted(ServedModel):
    """The served form of an object with the functions of `PreRanker`.

    Args:
        model: the object.
        schema: its fitted schema.
        heads: names of the logits; ``None`` where ``interact`` returns them by name.
        score: the score expression; empty for the first head.
        short_length: behaviours of the sequence ``short``; 0 for none.
        long_length: behaviours of the sequence ``long``; 0 for none.
        content_width: ``d_m``; 0 if the model reads no content.
        precision: of the rows' float32 columns, or of those that it names.
        rungs: see `ModelSpec`.
        calibration: ``(scale, offset)`` of heads' logits.
        gaps: whether the sequence ``long`` has the time between behaviours.

    Raises:
        ConfigError: a function is absent, cannot be traced, or returns something else than the contract says;
            or an argument is out of its range.
    """

    def __init__(
        self,
        model: Any,
        schema: Schema,
        *,
        heads: tuple[str, ...] | None = None,
        score: str = "",
        short_length: int = 0,
        long_length: int = 0,
        content_width: int = 0,
        precision: Precisions = "float32",
        rungs: tuple[int, ...] = (0,),
        calibration: Mapping[str, tuple[float, float]] | None = None,
        gaps: bool = False,
    ) -> None:
        whole("long_length", long_length, 0)
        whole("short_length", short_length, 0)
        if gaps and not long_length:
            raise ConfigError("gaps: got True, but they are of the sequence long; give a long_length.")
        self.schema = schema
        self._gaps = gaps
        self.source: Mapping[str, Any] = {}
        self.kept_columns: ColumnShapes = {}
        self._model = model
        self._lengths = {"short": short_length, "long": long_length}
        self._reads_content = content_width > 0
        self._calibration: tuple[np.ndarray, np.ndarray] | None = None
        self._tree, self.weights, self._places, self._leaves = _split(model)
        name = type(model).__name__
        # The functions are traced before the heads are known.
        self.spec = ModelSpec(
            name=name, heads=heads or ("unknown",), score="", short_length=short_length,
            long_length=max(long_length, short_length, 1), content_width=max(content_width, 1),
            rungs=tuple(sorted(rungs)), blocks=tuple(getattr(model, "blocks", ())),
        )  # fmt: skip
        (m,) = export.symbolic_shape("m")
        self.behaviour_columns = self._columns("behaviour", m)
        self._rows = self._columns("item", m)
        self._precisions = _precisions(self._rows, precision)
        self.item_columns = self._narrowed_columns()
        b, length = export.symbolic_shape("b, l")
        self._check_state(b, length)
        n, length = export.symbolic_shape("n, l")
        heads = self._heads(n, length, heads)
        self.spec = self.spec.replace(heads=heads, score=score or heads[0], precision=_in_words(precision))
        self.score = score_of(self.spec, schema)
        if calibration:
            scale, offset = calibration_weights(heads, calibration).values()
            self._calibration = scale, offset
        if 3 in self.spec.rungs:
            self.item_columns[PRIOR] = ((len(heads),), F4)
        self._reads = {each: self._read_by(each) for each in ("behaviour", "item", "user", "stage")}

    def weights_of(self, program: Program) -> dict[str, np.ndarray]:
        """Return the weights that one program reads, by name, sorted."""
        return {name: self.weights[name] for name in self._reads[program]}

    def histories_spec(self, b: Size, length: Size) -> dict[str, Any]:
        """Return what the user program reads of histories."""
        sizes = {"short": self._lengths["short"], "long": length if self._lengths["long"] else 0}
        spec: dict[str, Any] = {}
        for name, size in sizes.items():
            if size != 0:
                gap: ColumnShapes = {"gap": ((), I4)} if self._gaps and name == "long" else {}
                spec[name] = spec_of({**self.behaviour_columns, **gap}, b, size)
                spec[f"{name}_type"] = self.types_spec(b, size)
        return spec

    def state_spec(self, length: Size) -> Spec:
        """Return one user's state for a long sequence of length ``L``, without a leading axis."""
        state = self._traced("user", self.user, *self._user_inputs(1, length))
        return {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in state.items()}

    def behaviour(self, weights: Columns, item_inputs: Columns) -> dict[str, jax.Array]:
        """Return behaviour rows ``[M, ...]``; of a model without ``behaviour``, only a mark."""
        model = self._with(weights)
        if getattr(model, "behaviour", None) is None:
            # The table still knows which items exist, and a row needs a column.
            return {"has_content": jnp.asarray(item_inputs["has_content"])}
        return self._named("behaviour", model.behaviour(self._item_features(item_inputs)))

    def item(self, weights: Columns, item_inputs: Columns) -> dict[str, jax.Array]:
        """Return item rows ``[M, ...]`` in their precisions, with ``prior`` if the spec has rung 3."""
        rows = self._item(weights, item_inputs)
        stored: dict[str, jax.Array] = {}
        for name, values in rows.items():
            precision = self._precisions.get(name, "float32")
            if precision == "int8":
                flat, scale = quantised(values.reshape(values.shape[0], -1))
                stored |= {name: flat.reshape(values.shape), name + _SCALE: scale}
            else:
                stored[name] = values.astype(jnp.bfloat16) if precision == "bfloat16" else values
        if 3 in self.spec.rungs:
            nobody = {name: zeros_of(spec_of(self.behaviour_columns, 1, 1)) for name in ("short", "long")}
            nobody["long"]["gap"] = jnp.zeros((1, 1), jnp.int32)
            none = jnp.full((1, 1), -1, jnp.int32)
            user = zeros_of(self.user_inputs_spec(1))
            state = self.user(weights, user, nobody["short"], none, nobody["long"], none)
            state = {name: leaf[0] for name, leaf in state.items()}
            m = next(iter(rows.values())).shape[0]
            context, pair = zeros_of(self.context_spec()), zeros_of(spec_of(self.schema.spec("pair"), m))
            stored[PRIOR] = self._logits(self._with(weights), state, context, rows, pair)
        return stored

    def user(
        self,
        weights: Columns,
        user_inputs: Columns,
        short: Columns,
        short_type: Any,
        long: Columns,
        long_type: Any,
    ) -> dict[str, jax.Array]:
        """Return user states ``[B, ...]``."""
        histories: dict[str, Any] = {}
        for name, columns, types in (("short", short, short_type), ("long", long, long_type)):
            if self._lengths[name]:
                types = jnp.asarray(types)
                mask = types >= 0
                histories[name] = {**_arrays(columns), "type": jnp.maximum(types, 0), "mask": mask}
                if name == "long" and self._gaps:  # the record has one for items that the table lacks too
                    histories[name]["gap"] = jnp.where(mask, histories[name]["gap"], 0)
        return self._named("user", self._with(weights).user(_arrays(user_inputs), histories))

    def interact(
        self, weights: Columns, state: Columns, context: Columns, rows: Columns, pair: Columns
    ) -> jax.Array:
        """Return the logits ``[N, n_heads]`` of candidates whose rows are given."""
        widened = {name: self._widened(name, rows) for name in self._rows}
        given = {name: values for name, values in pair.items() if name in self.schema.names("pair")}
        return self._logits(
            self._with(weights), _arrays(state), _arrays(context), _arrays(widened), _arrays(given)
        )

    def cached_interact(
        self, weights: Columns, state: Columns, context: Columns, cached: Columns, pair: Columns
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits and status of candidates whose rows are read where they lie, by `gather_rows`."""
        index, missing, ids, count = (jnp.asarray(cached[n]) for n in ("index", "missing", "ids", "count"))
        n = ids.shape[0]
        padding = rows_to_pad(n)
        ids = padded({"ids": ids}, padding)["ids"]
        layout = self._layout()
        rows, found = gather_rows(index, ids, layout)
        found &= jnp.arange(ids.shape[0]) < count
        # The row under key 0 stands in for missing ones, if there is such a cache.
        default, there = gather_rows(missing, jnp.zeros((1, 2), jnp.uint32), layout)
        absent = ~found & (jnp.arange(ids.shape[0]) < count) & there
        rows = {
            name: jnp.where(absent.reshape(-1, *[1] * (values.ndim - 1)), default[name], values)
            for name, values in rows.items()
        }
        rankable = (found | absent) & (rows.pop("rankable")[:, 0] != 0)
        status = jnp.where(found, np.uint8(FOUND), np.uint8(0)) | jnp.where(
            rankable, np.uint8(RANKABLE), np.uint8(0)
        )
        logits = self.interact(weights, state, context, rows, padded(_arrays(pair), padding))
        return logits[:n], status[:n]

    # -- the model's functions --------------------------------------------------------------------

    def _with(self, weights: Columns) -> Any:
        """Return the model around some of its weights; the others are the values that it has."""
        leaves = list(self._leaves)
        for name, place in self._places.items():
            leaves[place] = jnp.asarray(weights[name]) if name in weights else self.weights[name]
        return self._tree(leaves)

    def _item_features(self, item_inputs: Columns) -> dict[str, jax.Array]:
        names = self.schema.names("item") | ({"content", "has_content"} if self._reads_content else set())
        return {name: jnp.asarray(values) for name, values in item_inputs.items() if name in names}

    def _item(self, weights: Columns, item_inputs: Columns) -> dict[str, jax.Array]:
        return self._named("item", self._with(weights).item(self._item_features(item_inputs)))

    def _logits(self, model: Any, state: Arrays, context: Arrays, rows: Arrays, pair: Arrays) -> jax.Array:
        logits = model.interact(state, context, rows, pair)
        if isinstance(logits, Mapping):
            logits = jnp.stack([jnp.asarray(logits[head], jnp.float32) for head in self.spec.heads], axis=-1)
        logits = jnp.asarray(logits, jnp.float32)
        if self._calibration is None:
            return logits
        scale, offset = self._calibration
        return logits * scale + offset

    def _named(self, function: Function, columns: Any) -> dict[str, jax.Array]:
        if not isinstance(columns, Mapping) or not columns or not all(isinstance(n, str) for n in columns):
            raise ConfigError(
                f"{self.spec.name}.{function}: returned {shown(columns)}, expected a dictionary of arrays by "
                "column, with at least one."
            )
        return {name: jnp.asarray(columns[name]) for name in sorted(columns)}

    def _widened(self, name: str, rows: Columns) -> Any:
        values, precision = jnp.asarray(rows[name]), self._precisions.get(name, "float32")
        if precision == "float32":
            return values
        wide = values.astype(jnp.float32)
        if precision == "int8":
            wide *= jnp.asarray(rows[name + _SCALE]).reshape(-1, *[1] * (values.ndim - 1))
        return wide

    def _layout(self) -> _native.RowLayout:
        """Return the layout of the rows of an item index."""
        columns = {**dict(sorted(self.item_columns.items())), "rankable": ((1,), np.dtype(np.uint8))}
        return _native.RowLayout([(name, dtype.name, shape) for name, (shape, dtype) in columns.items()])

    # -- shapes, read by tracing ------------------------------------------------------------------

    def _traced(self, name: Function, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return the shapes that a function returns for those of its inputs.

        Raises:
            ConfigError: it cannot be traced.
        """
        try:
            with jax.enable_x64(False):
                return jax.eval_shape(function, self.weights, *inputs)
        except ConfigError:
            raise
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "").rstrip(".")[:200]
            given = _brief(_INPUTS[name], inputs)
            raise ConfigError(
                f"{self.spec.name}.{name}: cannot be traced: {type(error).__name__}: {reason}. It gets "
                f"{given}; expected a pure function of jax.numpy for any number of rows: take sizes from "
                "shapes, and use no value of an array in Python."
            ) from error

    def _columns(self, function: Literal["behaviour", "item"], m: Size) -> ColumnShapes:
        rows = self.behaviour if function == "behaviour" else self._item
        columns: ColumnShapes = {}
        for name, leaf in self._traced(function, rows, self.item_inputs_spec(m)).items():
            where = f"{self.spec.name}.{function}: column {name!r}"
            if not leaf.ndim or leaf.shape[0] != m:
                raise ConfigError(f"{where} has shape {leaf.shape}, expected [M, ...] with M = {m} items.")
            if not all(isinstance(size, int) and size > 0 for size in leaf.shape[1:]):
                raise ConfigError(f"{where} has shape {leaf.shape}, expected fixed sizes after the first.")
            self._check_dtype(where, leaf)
            reserved = _RESERVED if function == "item" else ("type", "mask", "gap")
            if name in reserved or not name.isidentifier():
                raise ConfigError(
                    f"{where}: expected an identifier other than {', '.join(reserved)}; rename it."
                )
            columns[name] = (tuple(leaf.shape[1:]), np.dtype(leaf.dtype))
        return columns

    def _user_inputs(self, b: Size, length: Size) -> tuple[Any, ...]:
        histories = self.histories_spec(b, length)
        parts = (histories.get(name) for name in ("short", "short_type", "long", "long_type"))
        return (self.user_inputs_spec(b), *(part if part is not None else {} for part in parts))

    def _check_state(self, b: Size, length: Size) -> None:
        for name, leaf in self._traced("user", self.user, *self._user_inputs(b, length)).items():
            where = f"{self.spec.name}.user: column {name!r}"
            if not leaf.ndim or leaf.shape[0] != b:
                raise ConfigError(f"{where} has shape {leaf.shape}, expected [B, ...] with B = {b} users.")
            if not all(isinstance(size, int) or size == length for size in leaf.shape[1:]):
                raise ConfigError(
                    f"{where} has shape {leaf.shape}, expected sizes that are fixed, or the length {length} "
                    "of the long sequence."
                )
            self._check_dtype(where, leaf)

    def _check_dtype(self, where: str, leaf: Any) -> None:
        if np.dtype(leaf.dtype).name not in _STORED:
            raise ConfigError(
                f"{where} is of dtype {leaf.dtype}, expected one of {', '.join(_STORED)}; convert it, for "
                "example by .astype(jnp.float32)."
            )

    def _heads(self, n: Size, length: Size, given: tuple[str, ...] | None) -> tuple[str, ...]:
        """Check what ``interact`` returns; return the names of its heads."""

        def interact(weights: Any, state: Any, context: Any, rows: Any, pair: Any) -> Any:
            return self._with(weights).interact(state, context, rows, pair)

        rows = spec_of(self._rows, n)
        pair = spec_of(self.schema.spec("pair"), n)
        logits = self._traced("interact", interact, self.state_spec(length), self.context_spec(), rows, pair)
        where = f"{self.spec.name}.interact"
        if isinstance(logits, Mapping):
            heads = tuple(logits) if given is None else given
            if set(heads) != set(logits):
                raise ConfigError(
                    f"{where}: returned the heads {sorted(logits)}, but heads={list(heads)} were given; name "
                    "those, or leave heads out."
                )
            wrong = {head: leaf for head, leaf in logits.items() if leaf.shape != (n,)}
            for head, leaf in wrong.items():
                raise ConfigError(
                    f"{where}: head {head!r} has shape {leaf.shape}, expected [N] with N = {n}."
                )
            return heads
        if given is None:
            raise ConfigError(f"{where}: returned {shown(logits)}; name its heads: heads=('click',).")
        if getattr(logits, "shape", None) != (n, len(given)):
            raise ConfigError(
                f"{where}: returned {shown(logits)}, expected logits by head, or an array [N, {len(given)}] "
                f"with N = {n}."
            )
        return given

    def _narrowed_columns(self) -> ColumnShapes:
        columns: ColumnShapes = {}
        for name, (shape, dtype) in self._rows.items():
            precision = self._precisions.get(name, "float32")
            columns[name] = (shape, dtype if precision == "float32" else np.dtype(jnp.dtype(precision)))
            if precision == "int8":
                columns[name + _SCALE] = ((1,), F4)
        return columns

    def _read_by(self, program: Program) -> list[str]:
        """Return the names of the weights that a program reads, as its trace says."""
        m, length = 2, self._lengths["long"] or 1
        state = self.state_spec(length)
        inputs: dict[Program, tuple[Any, ...]] = {
            "behaviour": (self.item_inputs_spec(m),),
            "item": (self.item_inputs_spec(m),),
            "user": self._user_inputs(1, length),
            "stage": (state, self.context_spec(), self.rows_spec(m), self.pair_spec(m)),
        }
        function = {
            "behaviour": self.behaviour, "item": self.item, "user": self.user, "stage": self.interact,
        }[program]  # fmt: skip
        with jax.enable_x64(False):
            jaxpr = jax.make_jaxpr(function)(self.weights, *inputs[program]).jaxpr
        live = {var for var in jaxpr.outvars if not hasattr(var, "val")}
        for equation in reversed(jaxpr.eqns):
            if live & set(equation.outvars):
                live |= {var for var in equation.invars if not hasattr(var, "val")}
        # Dictionaries are flattened in the order of their keys.
        return [name for name, var in zip(sorted(self.weights), jaxpr.invars, strict=False) if var in live]


def _split(model: Any) -> tuple[Callable[[list[Any]], Any], dict[str, np.ndarray], dict[str, int], list[Any]]:
    """Return a model's parts: the function that joins its leaves, weights by name, their places, all leaves.

    Raises:
        ConfigError: it lacks a function, or holds no tree of arrays, or arrays that no program can take.
    """
    if not isinstance(model, PreRanker) or not all(
        callable(getattr(model, name)) for name in ("item", "user", "interact")
    ):
        absent = [n for n in ("item", "user", "interact") if not callable(getattr(model, n, None))]
        raise ConfigError(
            f"model: got a {type(model).__name__} without {', '.join(absent)}; expected an object with the "
            "functions item, user and interact, see aif_jax.models.contract.PreRanker; plain functions go "
            "into aif_jax.Functions."
        )
    if isinstance(model, nnx.Module):
        graph, state = nnx.split(model)
        named, tree = jax.tree_util.tree_flatten_with_path(state)
        names = [path_name(path) for path, _ in named]

        def join(leaves: list[Any]) -> Any:
            return nnx.merge(graph, jax.tree.unflatten(tree, leaves))
    else:
        named, tree = jax.tree_util.tree_flatten_with_path(model)
        if len(named) == 1 and named[0][1] is model:
            raise ConfigError(
                f"model: {type(model).__name__} is no tree of arrays, so its weights would be constants of "
                "the programs; make it a flax.nnx.Module or an equinox.Module, or give aif_jax.Functions its "
                "parameters."
            )
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named]

        def join(leaves: list[Any]) -> Any:
            return jax.tree.unflatten(tree, leaves)

    leaves = [leaf for _, leaf in named]
    weights, places = {}, {}
    for place, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            continue  # a number or a random key: part of the program
        array = np.asarray(leaf)
        if array.dtype.name not in (*_STORED, "bool"):
            raise ConfigError(
                f"model: parameter {name} is of dtype {array.dtype}, expected float32, or one of "
                f"{', '.join(_STORED[1:])} or bool; convert it."
            )
        weights[name], places[name] = array, place
    return join, dict(sorted(weights.items())), places, leaves


def _precisions(rows: ColumnShapes, given: Precisions) -> dict[str, Precision]:
    """Return the precision of each column that has a reduced one.

    Raises:
        ConfigError: there is no such precision or column, or the column is not float32.
    """
    wide = [name for name, (shape, dtype) in rows.items() if dtype == F4 and math.prod(shape) > 1]
    by_column: dict[str, Precision] = dict.fromkeys(wide, given) if isinstance(given, str) else dict(given)
    for name, precision in by_column.items():
        if precision not in PRECISIONS:
            raise ConfigError(
                f"precision: got {shown(precision)}, expected one of {', '.join(map(repr, PRECISIONS))}."
            )
        if name not in rows or rows[name][1] != F4:
            raise ConfigError(
                f"precision: {shown(name)} is no float32 column of the rows; those are "
                f"{[name for name, (_, dtype) in rows.items() if dtype == F4]}."
            )
        if precision == "int8" and name + _SCALE in rows:
            raise ConfigError(
                f"precision: the scale of {name!r} would be {name + _SCALE!r}; rename that column."
            )
    return {name: precision for name, precision in by_column.items() if precision != "float32"}


def _in_words(precision: Precisions) -> str:
    if isinstance(precision, str):
        return precision
    return ", ".join(f"{name} {one}" for name, one in precision.items()) or "float32"


def _arrays(columns: Columns) -> dict[str, jax.Array]:
    return {name: jnp.asarray(values) for name, values in columns.items()}


def _brief(names: tuple[str, ...], inputs: tuple[Any, ...]) -> str:
    """Return the shapes of a function's inputs in at most 200 characters."""
    named, _ = jax.tree_util.tree_flatten_with_path(dict(zip(names, inputs, strict=True)))
    parts = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in named
    ]
    text = ", ".join(parts)
    return text if len(text) <= 200 else text[:197] + "..."
