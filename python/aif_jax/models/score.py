"""The score expression: what orders the candidates, such as ``ctr * bid``."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.features import Numeric, Schema

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}

_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "min": (2, jnp.minimum),
    "max": (2, jnp.maximum),
    "log": (1, jnp.log),
    "exp": (1, jnp.exp),
}


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
        self.heads = heads
        if twice := sorted(set(heads) & {f"logit_{head}" for head in heads}):
            raise ConfigError(f"score: {twice[0]!r} would be a head and another's logit; rename the head.")
        if clash := sorted(set(pair) & {*heads, *(f"logit_{head}" for head in heads), *_FUNCTIONS}):
            pair = tuple(name for name in pair if name not in clash)
        self._clash = clash
        self._pair = pair
        try:
            self._tree = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"score: {expression!r} is not an expression: {error}.") from error
        used: set[str] = set()
        self._check(self._tree, used)
        self.raw = tuple(sorted(used & set(pair)))
        if not used - set(pair):
            raise ConfigError(
                f"score: {expression!r} uses no head, so the model would have no say; "
                f"heads are {list(heads)}."
            )

    def __call__(self, logits: jax.Array, raw: Mapping[str, jax.Array]) -> jax.Array:
        """Return the score ``[...]``.

        Args:
            logits: ``[..., n_heads]``.
            raw: for each name in `raw` its values, float32 ``[...]``.
        """
        names = {name: raw[name] for name in self.raw}
        for number, head in enumerate(self.heads):
            names[head] = jax.nn.sigmoid(logits[..., number])
            names[f"logit_{head}"] = logits[..., number]
        return jnp.broadcast_to(self._evaluate(self._tree, names), logits.shape[:-1])

    def _check(self, node: ast.expr, used: set[str]) -> None:
        match node:
            case ast.Constant(value=value) if type(value) in (int, float):
                return
            case ast.Name(id=name):
                self._check_name(name)
                used.add(name)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self._check(operand, used)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                self._check(left, used)
                self._check(right, used)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                n = _FUNCTIONS[name][0]
                if len(args) != n:
                    raise ConfigError(
                        f"score: {name} in {self.expression!r} got {len(args)} values, expected {n}."
                    )
                for arg in args:
                    self._check(arg, used)
            case _:
                raise ConfigError(
                    f"score: {ast.unparse(node)!r} in {self.expression!r} is not allowed; use numbers, "
                    f"names, + - * / **, brackets, and {', '.join(sorted(_FUNCTIONS))}."
                )

    def _check_name(self, name: str) -> None:
        known = [*self.heads, *(f"logit_{head}" for head in self.heads), *self._pair]
        if name in self._clash and name not in known:
            raise ConfigError(f"score: pair feature {name!r} has the name of a function; rename the feature.")
        if name in self._clash:
            raise ConfigError(
                f"score: {name!r} in {self.expression!r} is a head and a pair feature; rename the feature."
            )
        if name not in known:
            raise ConfigError(
                f"score: {name!r} in {self.expression!r} is no head and no numeric pair feature; "
                f"known are {', '.join(known)}."
            )

    def _evaluate(self, node: ast.expr, names: Mapping[str, jax.Array]) -> jax.Array:
        match node:
            case ast.Constant(value=value):
                return jnp.float32(value)  # type: ignore[arg-type]
            case ast.Name(id=name):
                return names[name]
            case ast.UnaryOp(op=op, operand=operand):
                value = self._evaluate(operand, names)
                return -value if isinstance(op, ast.USub) else value
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](self._evaluate(left, names), self._evaluate(right, names))
            case ast.Call(func=ast.Name(id=name), args=args):
                return _FUNCTIONS[name][1](*(self._evaluate(arg, names) for arg in args))
        raise AssertionError(f"checked expression holds {node!r}")


def score_of(config: ModelConfig, schema: Schema) -> Score:
    """Return the score expression of a config over a schema's numeric pair features.

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
