"""Training of a model of the contract: it learns, resumes, is measured, and serves what it was trained to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.errors import ConfigError, TrainingError
from aif_jax.features import Numeric
from aif_jax.models import OwnModel
from aif_jax.models.contracted import Contracted
from aif_jax.models.store import weights_of
from aif_jax.training import TrainConfig, evaluate, train
from aif_jax.training.evaluate import device_catalogue
from aif_jax.training.feed import TrainingBatches, for_device

LENGTH = 8


class MeanPool(nnx.Module):
    """A profile and the mean of the history, times the candidate's vector; with dropout."""

    def __init__(self, schema, rngs):
        size = {f.name: f.size for f in (*schema.user, *schema.item) if not isinstance(f, Numeric)}
        self.ids = nnx.Embed(size["item_id"], 8, rngs=rngs)
        self.segment = nnx.Embed(size["segment"], 8, rngs=rngs)
        self.content = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.pair = nnx.Linear(2, 1, rngs=rngs)

    def item(self, features):
        return {"vector": self.ids(features["item_id"]) + self.content(features["content"])}

    def behaviour(self, features):
        return self.item(features)

    def user(self, features, histories):
        long = histories["long"]
        mask = long["mask"][..., None].astype(jnp.float32)
        mean = (long["vector"] * mask).sum(1) / jnp.maximum(mask.sum(1), 1.0)
        return {"vector": self.dropout(self.segment(features["segment"]) + mean)}

    def interact(self, state, context, rows, pair):
        return {"ctr": rows["vector"] @ state["vector"] + self.pair(pair["retrieval_score"])[:, 0]}


@pytest.fixture(scope="module")
def schema(dataset):
    return dataset.fit_schema()


@pytest.fixture(scope="module")
def own(dataset, schema):
    return OwnModel(
        MeanPool(schema, nnx.Rngs(0)),
        schema,
        heads=("ctr",),
        long_length=LENGTH,
        content_space=dataset.content_space,
    )


@pytest.fixture(scope="module")
def settings():
    return TrainConfig(batch_size=32, group=8, learning_rate=0.02, warmup_steps=2, epochs=2, patience=0)


@pytest.fixture(scope="module")
def trained(own, dataset, settings):
    return train(own, dataset, settings, progress=False)


def test_train_own_model_lowers_its_loss_and_is_measured(own, trained, dataset):
    first, last = trained.history[0], trained.history[-1]
    assert last.loss < first.loss
    assert trained.metrics.auc > evaluate(own, dataset, "validation").auc + 0.02
    assert trained.metrics.auc == pytest.approx(evaluate(trained.model, dataset, "validation").auc)
    assert isinstance(trained.model.model, MeanPool)


def test_train_own_model_changes_every_weight_and_leaves_the_given_model(own, trained):
    before, after = weights_of(own), weights_of(trained.model)
    assert before.keys() == after.keys()
    assert all(np.abs(after[name] - before[name]).max() > 0 for name in before)


def test_own_model_in_training_draws_dropout_by_step_and_else_not_at_all(own, dataset, schema, settings):
    batch = for_device(TrainingBatches(dataset, schema, own.config, settings)[0])
    catalogue = device_catalogue(dataset, own)
    graph, state = nnx.split(own)

    @jax.jit
    def logits(key):
        return nnx.merge(graph, state)(batch, catalogue, train=True, rngs=nnx.Rngs(key))

    one, same, other = (np.asarray(logits(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    plain = own(batch, catalogue)
    np.testing.assert_array_equal(plain, own(batch, catalogue))
    assert np.abs(one - plain).max() > 1e-3


def test_own_model_logits_equal_those_of_its_served_functions(trained, dataset, schema, settings):
    """Through the programs that `export` writes: rows and states apart, histories padded."""
    own = trained.model
    batches = TrainingBatches(dataset, schema, own.config, settings)
    batch, catalogue = for_device(batches[0]), device_catalogue(dataset, own)
    served = Contracted(own.model.eval() or own.model, schema, long_length=LENGTH, content_width=8)
    weights = served.weights
    rows, behaviours = served.item(weights, catalogue), served.behaviour(weights, catalogue)
    item = batch["long_item"]
    long = {
        name: np.asarray(column)[np.maximum(item, 0)] * (item >= 0)[..., None]
        for name, column in behaviours.items()
    }
    none = np.zeros((len(item), 0))
    states = served.user(weights, batch["user"], none, none, long, batch["long_type"])
    want = np.asarray(own(batch, catalogue))
    for place in range(0, len(item), 5):
        there = batch["item"][place] >= 0
        chosen = np.maximum(batch["item"][place], 0)
        got = served.interact(
            weights,
            {name: leaf[place] for name, leaf in states.items()},
            {name: leaf[place, 0] for name, leaf in batch["context"].items()},
            {name: np.asarray(column)[chosen] for name, column in rows.items()},
            {name: leaf[place] for name, leaf in batch["pair"].items()},
        )
        np.testing.assert_allclose(np.asarray(got)[there], want[place][there], rtol=1e-5, atol=1e-6)


def test_train_own_model_resumed_reaches_the_weights_of_an_unbroken_run(own, dataset, settings, tmp_path):
    short = settings.replace(epochs=1, max_steps=6)
    kept = short.replace(checkpoint_dir=str(tmp_path / "kept"), checkpoint_interval=2)

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(own, dataset, kept, progress=False, on_step=stop)
    resumed = weights_of(train(own, dataset, kept, progress=False).model)
    for name, weight in weights_of(train(own, dataset, short, progress=False).model).items():
        np.testing.assert_array_equal(resumed[name], weight, err_msg=name)
    other = OwnModel(
        MeanPool(own.schema, nnx.Rngs(7)), own.schema, heads=("ctr",), long_length=LENGTH,
        content_space=own.content_space,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"another run: training\.initial weights differ"):
        train(other, dataset, kept, progress=False)


class Normed(MeanPool):
    """The same with a batch norm."""

    def __init__(self, schema, rngs):
        super().__init__(schema, rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)


def test_own_model_that_cannot_train_is_refused_with_advice(own, dataset, schema, settings):
    with pytest.raises(ConfigError, match=r"Linear: has no method item, user, interact"):
        OwnModel(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), schema, heads=("ctr",))
    with pytest.raises(ConfigError, match=r"Normed: keeps running statistics .* use nnx.LayerNorm"):
        OwnModel(Normed(schema, nnx.Rngs(0)), schema, heads=("ctr",))
    with pytest.raises(ConfigError, match=r"init: got one for MeanPool, .* leave init out"):
        train(own, dataset, settings, init=own, progress=False)
    other = OwnModel(
        own.model, schema, heads=("ctr", "like"), long_length=LENGTH, content_space=own.content_space
    )
    with pytest.raises(ConfigError, match=r"MeanPool.interact: returned logits of \['ctr'\], .*\['like'\]"):
        evaluate(other, dataset, "validation")
