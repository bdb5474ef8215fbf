import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.errors import ConfigError
from aif_jax.models.user import BehaviourValues
from aif_jax.training.parameters import Parameters, non_finite


class Toy(nnx.Module):
    def __init__(self, dtype=jnp.float32):
        self.scale = nnx.Param(jnp.float32(2.0))
        self.table_genre = nnx.Param(jnp.arange(6, dtype=dtype).reshape(3, 2))
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))

    def __call__(self, row):
        return self.layer(self.table_genre[...][row]) * self.scale[...]


def test_parameters_split_and_merge_restores_model():
    model = Toy()
    parameters = Parameters(model)
    assert set(parameters.initial) == {"scale", "table_genre", "layer.kernel", "layer.bias"}
    vector = parameters.join(parameters.initial)
    assert vector.shape == (1 + 6 + 6 + 3,)
    again = parameters.split(vector)
    for name, value in parameters.initial.items():
        np.testing.assert_array_equal(again[name], value)
    np.testing.assert_array_equal(parameters.merge(again)(1), model(1))
    doubled = parameters.merge({**again, "scale": jnp.float32(4.0)})
    np.testing.assert_allclose(doubled(1), 2 * model(1))


def test_parameters_vector_is_ordered_by_kind():
    parameters = Parameters(Toy())
    assert (parameters.dense, parameters.embedding) == (6, 6)
    marked = parameters.split(jnp.arange(16.0))
    np.testing.assert_array_equal(np.sort(marked["layer.kernel"].ravel()), np.arange(6))
    np.testing.assert_array_equal(np.sort(marked["table_genre"].ravel()), np.arange(6, 12))


def test_parameters_unnamed_restores_vector_of_other_order(monkeypatch):
    before = Parameters(Toy())
    tree = {"params": jnp.arange(16.0), "moments": (jnp.arange(16.0) * 2, jnp.int32(7))}
    named = before.named(tree)
    assert named.keys() == {"params", "moments.0", "moments.1"}
    np.testing.assert_array_equal(
        named["params"]["layer.kernel"], before.split(tree["params"])["layer.kernel"]
    )
    monkeypatch.setattr("aif_jax.training.parameters._kind", lambda name, axes: axes)
    after = Parameters(Toy())
    kernels = [order.split(tree["params"])["layer.kernel"].tolist() for order in (before, after)]
    assert kernels[0] != kernels[1]
    again = after.unnamed(named, {"params": jnp.zeros(16), "moments": (jnp.zeros(16), jnp.int32(0))})
    assert again["moments"][1] == 7
    for old, new in ((tree["params"], again["params"]), (tree["moments"][0], again["moments"][0])):
        for name, value in before.split(old).items():
            np.testing.assert_array_equal(after.split(new)[name], value)


def test_parameters_behaviour_type_biases_are_not_matrices():
    class Types(nnx.Module):
        def __init__(self):
            self.values = BehaviourValues(3, 4)
            self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))

    parameters = Parameters(Types())
    assert (parameters.dense, parameters.embedding) == (6, 0)
    marked = parameters.split(jnp.arange(6.0 + 3 + 12 + 12))
    assert min(float(marked[f"values.{name}"].min()) for name in ("gate", "bias")) >= 6


def test_parameters_other_dtype_raises_with_name():
    with pytest.raises(ConfigError, match="table_genre is bfloat16"):
        Parameters(Toy(jnp.bfloat16))


def test_non_finite_returns_names_and_counts():
    tree = {"a": np.array([1.0, np.nan, np.inf], np.float32), "b": np.array([1, 2]), "c": {"d": np.zeros(2)}}
    assert non_finite(tree) == ["a (2 of 3 values)"]
