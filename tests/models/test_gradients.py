"""Training: every parameter has a gradient; what is hidden has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.config import BLOCKS
from aif_jax.errors import ConfigError
from aif_jax.features import Categorical, Schema
from aif_jax.features.encoders import UNKNOWN
from aif_jax.models import add_signatures, build_model
from support.model_cases import (
    logits_of,
    make_batch,
    make_catalogue,
    make_schema,
    quick_jit,
    random_model,
    shape_of,
    small_config,
    zero_model,
)


def gradients(config, schema, rng, keys=6):
    """The largest absolute gradient of each element over a few training steps, by parameter name."""
    model = random_model(rng, config, schema)
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    batch = make_batch(rng, config, schema, batch=6)
    graph, state = nnx.split(model)

    @quick_jit
    def step(state, batch, catalogue, key):
        def loss(state):
            return jnp.sum(jnp.sin(nnx.merge(graph, state)(batch, catalogue, train=True, rngs=key)))

        return jax.grad(loss)(state)

    largest = {}
    for seed in range(keys):
        flat = jax.tree_util.tree_leaves_with_path(step(state, batch, catalogue, jax.random.key(seed)))
        for path, leaf in flat:
            assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
            name = jax.tree_util.keystr(path)
            largest[name] = np.maximum(largest.get(name, 0.0), np.abs(leaf))
    return largest


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.thorough),
        pytest.param({"long_attention": "sign"}, marks=pytest.mark.thorough),
        {"long_attention": "collision", "heads": ("ctr", "cvr"), "encoder_gaps": True},
        pytest.param({"long_attention": "mean"}, marks=pytest.mark.thorough),
        pytest.param({"architecture": "exact"}, marks=pytest.mark.thorough),
        pytest.param({"architecture": "exact", "long_attention": "nearest"}, marks=pytest.mark.thorough),
        {"architecture": "cold"},
        {"architecture": "two_tower", "heads": ("ctr", "cvr")},
    ],
)
def test_training_step_gives_every_parameter_a_gradient(changes):
    config = small_config(**changes, block_dropout=0.3)
    found = gradients(config, make_schema(), np.random.default_rng(0))
    dead = [name for name, values in found.items() if not values.any()]
    assert not dead
    assert all(any(block in name for name in found) for block in BLOCKS if config.has(block))


def test_item_id_dropout_trains_only_the_unknown_row():
    config = small_config(architecture="cold", blocks=(), item_id_dropout=0.999999, block_dropout=0.0)
    found = gradients(config, make_schema(), np.random.default_rng(0), keys=1)
    table = next(values for name, values in found.items() if "table_item" in name)
    assert table[UNKNOWN].any()  # what a cold item's id is at serving
    assert not np.delete(table, UNKNOWN, axis=0).any()


def test_encoding_an_unseen_item_gives_the_unknown_id():
    schema = Schema(item=(Categorical(name="item"),), behaviour_types=("click",), item_id="item")
    fitted = schema.fit(item={"item": np.array([5, 6, 7])})
    assert fitted.encode("item", {"item": np.array([6, 8])}, 2)["item"].tolist() == [3, UNKNOWN]


def test_block_dropout_of_all_blocks_leaves_the_item_alone():
    rng = np.random.default_rng(1)
    schema = make_schema()
    config = small_config(block_dropout=0.999999, item_id_dropout=0.0)
    model = random_model(rng, config, schema)
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    graph, state = nnx.split(model)
    run = quick_jit(lambda s, b, c, key: nnx.merge(graph, s)(b, c, train=True, rngs=key))
    one, other = (make_batch(rng, config, schema) for _ in range(2))
    other["item"] = one["item"]
    for name in (
        "short_item",
        "short_type",
        "long_item",
        "long_type",
        "user",
        "context",
        "pair",
        "train_only",
    ):
        assert not all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(one[name]), jax.tree.leaves(other[name]), strict=True)
        )
    key = jax.random.key(0)
    np.testing.assert_array_equal(run(state, one, catalogue, key), run(state, other, catalogue, key))


def test_train_only_features_at_serving_equal_missing_ones():
    rng = np.random.default_rng(2)
    config, schema = (
        small_config(architecture="cold", blocks=(), block_dropout=0.0, item_id_dropout=0.0),
        make_schema(),
    )
    model = random_model(rng, config, schema)
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    batch = make_batch(rng, config, schema)
    serve = logits_of(config, schema)
    without = {name: values for name, values in batch.items() if name != "train_only"}
    want = serve(model, without, catalogue)
    graph, state = nnx.split(model)
    trained = np.asarray(
        quick_jit(lambda s, b, c: nnx.merge(graph, s)(b, c, train=True))(state, batch, catalogue)
    )
    there = batch["train_only"]["position"][..., 1] > 0
    assert (trained[there] != want[there]).all()
    np.testing.assert_allclose(trained[~there], want[~there], rtol=1e-6)


def test_logits_of_large_and_small_catalogues_are_equal():
    # With fewer items than behaviours the behaviours are computed once per item and not once per behaviour.
    rng = np.random.default_rng(3)
    config, schema = small_config(), make_schema()
    model = random_model(rng, config, schema)
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    batch = make_batch(rng, config, schema)
    run = logits_of(config, schema)
    repeated = {name: np.concatenate([values] * 10) for name, values in catalogue.items()}
    assert len(catalogue["content"]) < batch["long_item"].size < len(repeated["content"])
    np.testing.assert_allclose(
        run(model, batch, repeated), run(model, batch, catalogue), rtol=1e-4, atol=1e-5
    )


def test_two_tower_vectors_give_products_equal_to_logits():
    rng = np.random.default_rng(4)
    config, schema = small_config(architecture="two_tower"), make_schema(train_only=False)
    model = random_model(rng, config, schema)
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    batch = make_batch(rng, config, schema)
    users, items = quick_jit(lambda: (model.user_vector(batch, catalogue), model.item_vector(catalogue)))()
    products = np.einsum("bd,bgd->bg", users, np.asarray(items)[batch["item"]])
    logits = logits_of(config, schema)(model, batch, catalogue)[..., 0]
    np.testing.assert_allclose(products + np.asarray(model.bias[...])[0], logits, rtol=1e-4, atol=1e-5)


def test_build_model_with_equal_seeds_gives_equal_weights():
    config, schema = small_config(), make_schema()
    one, same, other = (nnx.split(build_model(config, schema, seed=seed))[1] for seed in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, same))
    assert not jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_model_with_wrong_input_raises_with_advice():
    schema = make_schema()
    config = small_config()
    model = zero_model(config, schema)
    with pytest.raises(ConfigError, match="needs rngs="):
        model(
            {"user": {}, "short_type": [[-1]], "long_type": [[-1]], "item": [[0]]},
            _empty(config, schema),
            train=True,
        )
    with pytest.raises(ConfigError, match="not fitted"):
        build_model(config, Schema(item=(Categorical(name="item"),), behaviour_types=("click",)))
    with pytest.raises(ConfigError, match="content_width is 32, but the catalogue's content is"):
        add_signatures(config, {"content": np.zeros((3, 16), np.float32)})
    with pytest.raises(ConfigError, match="uses no head"):
        shape_of(config.replace(score="bid"), schema)
    batch = make_batch(np.random.default_rng(0), config, schema)
    batch["short_type"] = batch["short_item"] = np.zeros((4, config.short_length + 1), np.int32)
    with pytest.raises(ConfigError, match="short_length is 5; cut it"):
        logits_of(config, schema)(model, batch, _empty(config, schema))


def _empty(config, schema):
    return add_signatures(config, make_catalogue(np.random.default_rng(0), config, schema))
