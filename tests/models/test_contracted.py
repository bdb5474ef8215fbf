"""The contract of a model: what it takes, what it refuses, and by which words."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.bundle.contract_checks import check_contract
from aif_jax.bundle.golden import sample_items
from aif_jax.errors import ConfigError
from aif_jax.models.contract import Functions
from aif_jax.models.contracted import Contracted
from support import contract_models as small
from support.model_cases import quick_jit
from support.served import SCHEMA

GIVEN = {"short_length": small.SHORT, "long_length": small.LONG, "content_width": 8, "score": small.SCORE}


def contracted(model: Any = None, **given: Any) -> Contracted:
    return Contracted(small.mean_pool() if model is None else model, SCHEMA, **{**GIVEN, **given})


class Module(nnx.Module):
    """The same model as a module of Flax."""

    blocks = ("attention", "mlp")

    def __init__(self) -> None:
        self.p = nnx.data(jax.tree.map(lambda leaf: nnx.Param(jnp.asarray(leaf)), small.parameters()))
        self.rngs = nnx.Rngs(0)  # a key, which is no weight

    def item(self, features: Any) -> Any:
        return small.item(self._values(), features)

    def behaviour(self, features: Any) -> Any:
        return small.behaviour(self._values(), features)

    def user(self, features: Any, histories: Any) -> Any:
        return small.user(self._values(), features, histories)

    def interact(self, *given: Any) -> Any:
        return small.interact(self._values(), *given)

    def _values(self) -> Any:
        is_param = lambda leaf: isinstance(leaf, nnx.Param)  # noqa: E731
        return jax.tree.map(lambda leaf: leaf[...] if is_param(leaf) else leaf, self.p, is_leaf=is_param)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
    """The same model as a dataclass that JAX knows as a tree, as modules of equinox are."""

    p: Any

    item = Module.item
    behaviour = Module.behaviour
    user = Module.user
    interact = Module.interact

    def _values(self) -> Any:
        return self.p


@pytest.mark.parametrize("kind", ["functions", "flax", "tree"])
def test_contracted_forms_of_a_model_give_the_same_rows_and_weights(kind: str) -> None:
    model = {"functions": small.mean_pool, "flax": Module, "tree": lambda: Tree(small.parameters())}[kind]()
    served = contracted(model)
    assert {name.split(".", 1)[1] for name in served.weights} >= {"item.id", "layers.0", "hour"}
    assert served.spec.blocks == (("attention", "mlp") if kind == "flax" else ())
    assert served.spec.heads == small.HEADS
    inputs = sample_items(SCHEMA, 8, 64, np.random.default_rng(0))
    rows = quick_jit(served.item)(served.weights_of("item"), inputs)
    expected = quick_jit(small.item)(small.parameters(), inputs)
    np.testing.assert_allclose(rows["vector"], expected["vector"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rows["genres"], expected["genres"])


def test_contracted_programs_read_their_weights_alone() -> None:
    served = contracted(small.mean_pool(parameters={**small.parameters(), "unused": np.zeros(3, np.float32)}))
    short = {
        each: {n.removeprefix("parameters.") for n in served.weights_of(each)}
        for each in ("item", "user", "stage")
    }
    assert short["item"] == {"item.id", "item.price", "item.content"}
    assert short["user"] == {"user.country", "user.kind"}
    assert short["stage"] == {"layers.0", "layers.1", "hour", "pair", "channel"}


def test_contracted_with_item_prior_reads_what_it_needs_of_all() -> None:
    served = contracted(rungs=(0, 3))
    names = {name.removeprefix("parameters.") for name in served.weights_of("item")}
    assert {"item.id", "user.country", "layers.0"} <= names
    items = sample_items(SCHEMA, 8, 64, np.random.default_rng(0))
    rows = quick_jit(served.item)(served.weights_of("item"), items)
    assert rows["prior"].shape == (64, 2)
    scaled = contracted(rungs=(0, 3), calibration={"cvr": (0.5, -1.0)})
    calibrated = quick_jit(scaled.item)(scaled.weights_of("item"), items)["prior"]
    plain = np.asarray(rows["prior"])
    np.testing.assert_allclose(calibrated, plain * [1.0, 0.5] + [0.0, -1.0], rtol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_contracted_columns_in_a_precision_are_close(precision: str) -> None:
    served, exact = contracted(precision={"vector": precision}), contracted()
    inputs = sample_items(SCHEMA, 8, 64, np.random.default_rng(0))
    rows = jax.device_get(quick_jit(served.item)(served.weights_of("item"), inputs))
    assert rows["vector"].dtype == np.dtype(precision)
    expected = jax.device_get(quick_jit(exact.item)(exact.weights_of("item"), inputs))["vector"]
    wide = np.asarray(quick_jit(lambda rows: served._widened("vector", rows))(rows))
    step = np.abs(expected).max(1, keepdims=True) * (1 / 127 if precision == "int8" else 1 / 128)
    assert (np.abs(wide - expected) <= step * 0.51).all()
    assert not np.array_equal(wide, expected)


def changed(name: str, change: Any) -> Functions:
    """The model with a change of what one function returns."""
    function = small.FUNCTIONS[name]
    return small.mean_pool(**{name: lambda *given: change(function(*given), *given)})


def with_column(name: str, column: str, make: Any) -> Functions:
    return changed(name, lambda out, *given: {**out, column: make(out, *given)})


REFUSED: dict[str, tuple[Any, str]] = {
    "no function": (object(), r"got a object without item, user, interact; expected an object with"),
    "no tree": (
        type("Plain", (), {n: lambda self, *given: given for n in ("item", "user", "interact")})(),
        r"Plain is no tree of arrays",
    ),
    "wide parameter": (
        small.mean_pool(parameters={**small.parameters(), "wide": np.zeros(2)}),
        r"parameter parameters\.wide is of dtype float64, expected float32",
    ),
    "no dictionary": (
        changed("item", lambda out, *_: out["vector"]), r"Functions\.item: returned .*expected a dictionary",
    ),
    "rows": (
        with_column("item", "first", lambda out, *_: out["vector"][:1]),
        r"Functions\.item: column 'first' has shape \(1, 8\), expected \[M, ...\]",
    ),
    "dtype": (
        with_column("item", "flag", lambda out, *_: out["vector"] > 0),
        r"Functions\.item: column 'flag' is of dtype bool, expected one of float32",
    ),
    "reserved": (
        with_column("item", "rankable", lambda out, *_: out["genres"]), r"item: column 'rankable': expected",
    ),
    "reserved by histories": (
        with_column("behaviour", "mask", lambda out, *_: out["token"]), r"behaviour: column 'mask': expected",
    ),
    "reserved by times": (
        with_column("behaviour", "gap", lambda out, *_: out["token"]), r"behaviour: column 'gap': expected",
    ),
    "state of another length": (
        with_column("user", "twice", lambda out, *_: jnp.concatenate([out["tokens"]] * 2, axis=1)),
        r"Functions\.user: column 'twice' has shape .*expected sizes that are fixed, or the length l",
    ),
    "branch on a value": (
        changed("user", lambda out, *_: out if out["profile"].sum() > 0 else {}),
        r"Functions\.user: cannot be traced: Tracer\w+Error",
    ),
    "unknown feature": (
        changed("user", lambda out, p, features, _: {**out, "x": features["age"]}),
        r"Functions\.user: cannot be traced: KeyError: 'age'. It gets .*features/country int32",
    ),
    "fixed size": (
        changed("interact", lambda out, *_: {**out, "ctr": out["ctr"] + jnp.zeros(64)}),
        r"Functions\.interact: cannot be traced",
    ),
    "logits of another shape": (
        changed("interact", lambda out, *_: {**out, "ctr": out["ctr"][:, None]}),
        r"interact: head 'ctr' has shape \(n, 1\), expected \[N\]",
    ),
    "logits without names": (
        changed("interact", lambda out, *_: jnp.stack([*out.values()], axis=-1)), r"name its heads: heads=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_contracted_model_that_breaks_the_contract_is_refused(case: str) -> None:
    model, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        contracted(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": ("ctr", "like")}, r"returned the heads \['ctr', 'cvr'\], but heads=\['ctr', 'like'\]"),
        ({"precision": "float8"}, r"precision: got 'float8', expected one of 'float32', 'bfloat16', 'int8'"),
        ({"precision": {"wector": "int8"}}, r"precision: 'wector' is no float32 column of the rows"),
        ({"rungs": (1,)}, r"rungs: got \(1,\), expected 0, and any of"),
        ({"rungs": (0, 1), "short_length": 0}, r"rungs: got 1, .*without a short one"),
        ({"score": "like"}, r"'like' in 'like' is no head"),
        ({"gaps": True, "long_length": 0}, r"gaps: got True, but they are of the sequence long; give"),
        ({"long_length": -1}, r"long_length: got -1, expected"),
        ({"calibration": {"like": (1.0, 0.0)}}, r"calibration: \['like'\] are not heads"),
    ],
)
def test_contracted_bad_arguments_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        contracted(**given)


def test_contracted_array_of_logits_takes_names_of_heads() -> None:
    model = changed("interact", lambda out, *_: jnp.stack([*out.values()], axis=-1))
    assert contracted(model, heads=("a", "b"), score="a * b").spec.heads == ("a", "b")


def test_check_contract_good_model_passes() -> None:
    check_contract(contracted())


def unanswered(_: Any) -> Any:
    raise ConnectionError("no answer")


UNSOUND: dict[str, tuple[Any, str]] = {
    "not finite": (
        with_column("item", "share", lambda out, *_: out["vector"] / out["genres"].astype(jnp.float32)),
        r"Functions\.item: share is not finite",
    ),
    "raises when it is run": (
        with_column("item", "asked", lambda out, *_: jax.pure_callback(unanswered, *[out["vector"]] * 2)),
        r"Functions\.item: cannot be run for \d+ rows: JaxRuntimeError: .*no answer",
    ),
    "random": (
        with_column("item", "noise", lambda out, *_: out["vector"] + float(np.random.rand())),  # noqa: NPY002
        r"Functions\.item: noise differs by .* when it is traced again",
    ),
    "batch statistics": (
        with_column("user", "centred", lambda out, *_: out["profile"] - out["profile"].mean(0)),
        r"Functions\.user: centred differs by .* beside them; .*model\.eval\(\)",
    ),
    "softmax over candidates": (
        changed("interact", lambda out, *_: {**out, "ctr": jax.nn.log_softmax(out["ctr"])}),
        r"Functions\.interact: head 'ctr' differs by .* when other rows stand beside them",
    ),
    "order": (
        with_column("item", "place", lambda out, *_: jnp.cumsum(out["vector"], axis=0)),
        r"Functions\.item: place differs by .* when rows stand in another order",
    ),
    "padding": (
        with_column("user", "profile", lambda out, *_: out["profile"] + out["tokens"].mean(1)),
        r"Functions\.user: head '\w+' differs by .* when a history is padded to another length",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_check_contract_unsound_model_is_refused(case: str) -> None:
    model, message = UNSOUND[case]
    served = contracted(model)
    with pytest.raises(ConfigError, match=message):
        check_contract(served)
