"""The score expression, by which candidates are ordered, such as ``ctr * bid``."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.config import ModelConfig, ModelSpec
from aif_jax.errors import ConfigError
from aif_jax.features.kinds import Numeric
from aif_jax.features.schema import Schema
from aif_jax.strict_json import shortened

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}

_FUNCTIONS: dict[str, tuple[int, str]] = {
    "min": (2, "minimum"), "max": (2, "maximum"), "log": (1, "log"), "exp": (1, "exp"),
}  # fmt: skip
"""Functions by name: their number of arguments, and their name in NumPy and JAX."""

_MAX_DEPTH = 100
_MAX_NUMBER = float(np.finfo(np.float32).max)


class Score:
    """A compiled score expression: numbers, names, ``+ - * / **``, ``min max log exp`` and brackets.

    A head's name is its probability, ``logit_<head>`` its logit; a numeric pair feature's name is its raw
    value, 0 where it is missing.

    Args:
        expression: for example ``"ctr * bid"``.
        heads: names of the model's heads.
        pair: names of the numeric pair features.

    Raises:
        ConfigError: the expression is not one, uses a name or an operation that does not exist, or no head.

    Attributes:
        raw: the pair features that the expression uses, sorted.
    """

    def __init__(self, expression: str, heads: tuple[str, ...], pair: tuple[str, ...] = ()) -> None:
        self.expression = expression
        self._given = shortened(repr(expression))
        self.heads = heads
        if twice := sorted(set(heads) & {f"logit_{head}" for head in heads}):
            raise ConfigError(f"score: {twice[0]!r} would be a head and another's logit; rename the head.")
        if clash := sorted(set(pair) & {*heads, *(f"logit_{head}" for head in heads), *_FUNCTIONS}):
            pair = tuple(name for name in pair if name not in clash)
        self._clash = clash
        self._pair = pair
        try:
            self._tree = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = shortened(str(error)) or type(error).__name__
            raise ConfigError(f"score: {self._given} is not an expression: {why}.") from error
        used: set[str] = set()
        self._check(self._tree, used, 0)
        self.raw = tuple(sorted(used & set(pair)))
        if not used - set(pair):
            raise ConfigError(
                f"score: {self._given} uses no head, so that the model would have no effect; "
                f"heads are {list(heads)}."
            )

    def __call__(self, logits: jax.Array, raw: Mapping[str, jax.Array]) -> jax.Array:
        """Return the score ``[...]``.

        Args:
            logits: ``[..., n_heads]``.
            raw: for each name in `raw` its values, float32 ``[...]``.
        """
        score = self._evaluate(self._tree, self._names(logits, jax.nn.sigmoid(logits), raw), jnp)
        return jnp.broadcast_to(score, logits.shape[:-1])

    def in_numpy(self, logits: np.ndarray, raw: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the score float32 ``[...]`` and the probabilities ``[..., n_heads]``, without any program.

        Args:
            logits: float32 ``[..., n_heads]``.
            raw: for each name in `raw` its values, float32 ``[...]``.
        """
        probability = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * logits)
        with np.errstate(all="ignore"):  # the caller leaves out what is not finite, as after a program
            score = self._evaluate(self._tree, self._names(logits, probability, raw), np)
        return np.broadcast_to(np.asarray(score, np.float32), logits.shape[:-1]), probability

    def _names(self, logits: Any, probability: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
        names = {name: raw[name] for name in self.raw}
        for number, head in enumerate(self.heads):
            names[head] = probability[..., number]
            names[f"logit_{head}"] = logits[..., number]
        return names

    def _check(self, node: ast.expr, used: set[str], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ConfigError(
                f"score: {self._given} is nested more than {_MAX_DEPTH} deep; expected a short formula."
            )
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if value > _MAX_NUMBER:
                    raise ConfigError(
                        f"score: {self._given} holds a number over {_MAX_NUMBER:.4g}, the largest of float32."
                    )
            case ast.Name(id=name):
                self._check_name(name)
                used.add(name)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self._check(operand, used, depth + 1)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                self._check(left, used, depth + 1)
                self._check(right, used, depth + 1)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                n = _FUNCTIONS[name][0]
                if len(args) != n:
                    raise ConfigError(f"score: {name} in {self._given} got {len(args)} values, expected {n}.")
                for arg in args:
                    self._check(arg, used, depth + 1)
            case _:
                part = shortened(repr(ast.get_source_segment(self.expression.strip(), node)))
                raise ConfigError(
                    f"score: {part} in {self._given} is not allowed; use numbers, names, + - * / **, "
                    f"brackets, and {', '.join(sorted(_FUNCTIONS))}."
                )

    def _check_name(self, name: str) -> None:
        known = [*self.heads, *(f"logit_{head}" for head in self.heads), *self._pair]
        if name in self._clash and name not in known:
            raise ConfigError(f"score: pair feature {name!r} has the name of a function; rename the feature.")
        if name in self._clash:
            raise ConfigError(
                f"score: {name!r} in {self._given} is a head and a pair feature; rename the feature."
            )
        if name not in known:
            raise ConfigError(
                f"score: {shortened(repr(name))} in {self._given} is no head and no numeric pair feature; "
                f"known are {', '.join(known)}."
            )

    def _evaluate(self, node: ast.expr, names: Mapping[str, Any], library: Any) -> Any:
        """Evaluate by the functions of a library: ``numpy`` or ``jax.numpy``."""
        match node:
            case ast.Constant(value=value):
                return library.float32(value)
            case ast.Name(id=name):
                return names[name]
            case ast.UnaryOp(op=op, operand=operand):
                value = self._evaluate(operand, names, library)
                return -value if isinstance(op, ast.USub) else value
            case ast.BinOp(left=left, op=op, right=right):
                sides = (self._evaluate(side, names, library) for side in (left, right))
                return _OPERATORS[type(op)](*sides)
            case ast.Call(func=ast.Name(id=name), args=args):
                function = getattr(library, _FUNCTIONS[name][1])
                return function(*(self._evaluate(arg, names, library) for arg in args))
        raise AssertionError(f"checked expression holds {node!r}")


def score_of(config: ModelConfig | ModelSpec, schema: Schema) -> Score:
    """Return the score expression of a model over a schema's numeric pair features.

    Raises:
        ConfigError: the expression does not fit heads and schema.
    """
    numeric = tuple(feature.name for feature in schema.pair if isinstance(feature, Numeric))
    score = Score(config.score, config.heads, numeric)
    names = {feature.name for feature in schema.pair}
    if twice := [name for name in score.raw if f"raw_{name}" in names]:
        raise ConfigError(
            f"score: the raw values of {twice[0]!r} travel as 'raw_{twice[0]}', which is another pair "
            "feature; rename that one."
        )
    return score


def best_first(scores: np.ndarray, k: int) -> np.ndarray:
    """Return positions ``[k]`` of the best scores ``[N]``, best first, equal ones in order."""
    if k == 0:
        return np.zeros(0, np.intp)
    if k < len(scores):
        last = np.partition(scores, len(scores) - k)[len(scores) - k]
        better, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
        near = np.sort(np.concatenate((better, equal[: k - len(better)])))
    else:
        near = np.arange(len(scores))
    return near[np.argsort(-scores[near], kind="stable")]
