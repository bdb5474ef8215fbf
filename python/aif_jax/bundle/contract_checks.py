"""Checks of a model that keeps the contract: its functions on made-up inputs, before it is exported.

Each function must give finite numbers, the same ones twice, and for each row what it gives for that row
beside others; and a history must mean the same whatever length it is padded to.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from aif_jax import kernels
from aif_jax.bundle.golden import RELATIVE, sample_group, sample_items, sample_sequence, sample_types
from aif_jax.errors import AifError, ConfigError
from aif_jax.models.served import ServedModel
from aif_jax.strict_json import shortened

_ROWS = 64
_USERS = 4

Arrays = Mapping[str, Any]
_ALONE = (
    "compute each row by itself: no statistics over a batch, no softmax over candidates; a module with "
    "dropout or batch norm is exported in the mode in which it predicts (model.eval())"
)


def check_contract(model: ServedModel) -> None:
    """Run the functions of a model on made-up inputs.

    Raises:
        ConfigError: a function gives numbers that are not finite, other ones the second time, or for a row
            what depends on the rows beside it or on the padding of a history.
    """
    rng = np.random.default_rng(1)
    schema, name = model.schema, model.spec.name
    order = rng.permutation(_ROWS)
    items = sample_items(schema, model.spec.content_width, _ROWS, rng)
    tables = {}
    for function, program in (("behaviour", model.behaviour), ("item", model.item)):
        weights = model.weights_of(function)  # type: ignore[arg-type]

        def run(given: Arrays, program: Any = program, weights: Any = weights) -> Any:
            return program(weights, given)

        tables[function] = _checked(f"{name}.{function}", run, items, order)

    users = _users(model, tables["behaviour"], rng)
    weights = model.weights_of("user")

    def of_users(given: Mapping[str, Any]) -> Any:
        sequences = (given.get(part) for part in ("short", "short_type", "long", "long_type"))
        return model.user(weights, given["user"], *({} if part is None else part for part in sequences))

    states = _checked(f"{name}.user", of_users, users, np.arange(_USERS)[::-1])
    stage = model.weights_of("stage")
    context = sample_group(schema, "context", (), rng)
    shared = {"rows": tables["item"], "pair": sample_group(schema, "pair", (_ROWS,), rng)}
    one = {column: leaf[0] for column, leaf in states.items()}

    def of_candidates(state: Arrays, given: Mapping[str, Any]) -> dict[str, Any]:
        logits = model.interact(stage, state, context, given["rows"], given["pair"])
        return {f"head {head!r}": logits[:, place] for place, head in enumerate(model.spec.heads)}

    logits = _checked(f"{name}.interact", lambda given: of_candidates(one, given), shared, order)
    # The same history, padded to half the length.
    if "long_type" in users and (half := users["long_type"].shape[1] // 2):
        shorter = {
            part: jax.tree.map(lambda leaf: leaf[:, :half], leaf) if part.startswith("long") else leaf
            for part, leaf in users.items()
        }
        state = {column: leaf[0] for column, leaf in _run(jax.jit(of_users), shorter).items()}
        again = _run(jax.jit(lambda given: of_candidates(state, given)), shared)
        _compare(
            f"{name}.user", logits, again, "a history is padded to another length",
            "leave out behaviours whose mask is false, also where a mean divides by their number",
        )  # fmt: skip


def _users(model: ServedModel, behaviours: Arrays, rng: np.random.Generator) -> dict[str, Any]:
    """Draw users with histories of at most half the longest length."""
    users: dict[str, Any] = {"user": sample_group(model.schema, "user", (_USERS,), rng)}
    for part, spec in model.histories_spec(_USERS, model.spec.long_length).items():
        if part.endswith("_type"):
            length = spec.shape[1]
            types = np.concatenate([sample_types(model.schema, length, rng) for _ in range(_USERS)])
            types[:, (length + 1) // 2 :] = -1
            users[part] = types
            columns = users[part.removesuffix("_type")]
            users[part.removesuffix("_type")] = {
                name: np.where((types >= 0).reshape(*types.shape, *[1] * (leaf.ndim - 2)), leaf, 0)
                for name, leaf in columns.items()
            }
        else:
            users[part] = sample_sequence(behaviours, spec, rng)
    return users


def _checked(where: str, function: Callable[[Any], Any], given: Any, order: np.ndarray) -> dict[str, Any]:
    """Check a function of rows, and return what it gives."""
    compiled = jax.jit(function)
    try:
        first = _run(compiled, given)
    except AifError:
        raise
    except Exception as error:  # memory, a callback that raises: it was traced without a value
        reason = next(reversed(str(error).strip().splitlines()), "")  # behind the trace of a callback
        raise ConfigError(
            f"{where}: cannot be run for {len(order)} rows: {type(error).__name__}: {shortened(reason)}"
        ) from error
    for column, values in first.items():
        if values.dtype.kind not in "iub" and not np.isfinite(values.astype(np.float32)).all():
            raise ConfigError(
                f"{where}: {column} is not finite for made-up inputs, in which values are missing too; "
                "divide by no number that can be zero, and check the parameters."
            )
    # JAX keeps the traces of the functions that it knows.
    again = _run(jax.jit(lambda rows: function(rows)), given)
    _compare(where, first, again, "it is traced again", "use no random numbers and no state in it")
    turned = _run(compiled, jax.tree.map(lambda leaf: leaf[order], given))
    there = {column: values[order] for column, values in first.items()}
    _compare(where, there, turned, "rows stand in another order", _ALONE)
    half = len(order) // 2
    mixed = jax.tree.map(lambda leaf: np.concatenate([leaf[:half], leaf[:1].repeat(half, 0)]), given)
    there = {column: values[:half] for column, values in first.items()}
    part = {column: values[:half] for column, values in _run(compiled, mixed).items()}
    _compare(where, there, part, "other rows stand beside them", _ALONE)
    return first


def _run(function: Callable[[Any], Any], given: Any) -> dict[str, np.ndarray]:
    with jax.enable_x64(False), kernels.use("reference"), jax.default_matmul_precision("highest"):
        return {name: np.asarray(leaf) for name, leaf in function(given).items()}


def _compare(where: str, want: Arrays, got: Arrays, when: str, fix: str) -> None:
    for column, expected in want.items():
        apart = np.abs(expected.astype(np.float64) - got[column].astype(np.float64)).max(initial=0.0)
        size = max(1.0, float(np.abs(expected.astype(np.float64)).max(initial=0.0)))
        # A value of reduced precision may round to the next step.
        step = {"float32": RELATIVE, "float16": 2e-3, "bfloat16": 1e-2}.get(expected.dtype.name, 1.0 / size)
        if apart > step * size:
            raise ConfigError(
                f"{where}: {column} differs by {apart:.3g} when {when}; expected the same numbers; {fix}."
            )
