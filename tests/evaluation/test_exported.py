"""A bundle of a model of the contract is evaluated by its programs: as the model itself predicts."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.bundle import Bundle, export
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation import Scorer, evaluate_model, open_scorer
from aif_jax.features import Numeric, Schema
from aif_jax.features.gaps import GAP_STEPS
from aif_jax.models import OwnModel
from aif_jax.training import Evaluator, candidate_lists

LENGTH, WIDTH = 8, 4


class Reader(nnx.Module):
    """Reads everything that a model can be given, the time between behaviours too."""

    def __init__(self, schema: Schema, rngs: nnx.Rngs) -> None:
        features = (*schema.user, *schema.item, *schema.context)
        size = {f.name: f.size for f in features if not isinstance(f, Numeric)}
        names = ("item_id", "segment", "device")
        tables = {name: nnx.Embed(size[name], WIDTH, rngs=rngs) for name in names}
        tables |= {"gap": nnx.Embed(GAP_STEPS, WIDTH, rngs=rngs), "kind": nnx.Embed(4, WIDTH, rngs=rngs)}
        self.tables = nnx.Dict(tables)
        self.content = nnx.Linear(8, WIDTH, rngs=rngs)
        self.pair = nnx.Linear(2, 1, rngs=rngs)

    def item(self, features: Any) -> Any:
        return {"vector": self.tables["item_id"](features["item_id"]) + self.content(features["content"])}

    behaviour = item

    def user(self, features: Any, histories: Any) -> Any:
        long, short = histories["long"], histories["short"]
        x = long["vector"] * (1.0 + self.tables["gap"](long["gap"])) + self.tables["kind"](long["type"])
        mask = long["mask"][..., None].astype(jnp.float32)
        return {
            "tokens": x * mask,
            "own": self.tables["segment"](features["segment"]) + short["vector"][:, 0],
        }

    def interact(self, state: Any, context: Any, rows: Any, pair: Any) -> Any:
        alike = jnp.tanh(rows["vector"] @ state["tokens"].T) @ state["tokens"]
        user = state["own"] + self.tables["device"](context["device"]) + alike
        logit = 0.2 * jnp.sum(rows["vector"] * user, axis=-1) + self.pair(pair["retrieval_score"])[:, 0]
        return {"ctr": logit, "like": -0.5 * logit}


@pytest.fixture(scope="module")
def own(dataset: Dataset) -> OwnModel:
    schema = dataset.fit_schema()
    return OwnModel(
        Reader(schema, nnx.Rngs(0)), schema, heads=("ctr", "like"), long_length=LENGTH, short_length=2,
        content_space=dataset.content_space, gaps=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(own: OwnModel, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(
        own.model, own.schema, tmp_path_factory.mktemp("exported") / "reader", k_max=16, score="like",
        long_length=LENGTH, short_length=2, content_space=dataset.content_space, rungs=(0, 2), gaps=True,
    )  # fmt: skip


def test_scorer_of_another_models_bundle_predicts_as_the_model(
    own: OwnModel, exported: Bundle, dataset: Dataset
) -> None:
    lists = {"ctr": candidate_lists(dataset, "test", "ctr", lists=20, unseen=30)}  # more than k_max
    want, got = (Scorer(each).predict(dataset, "test", lists) for each in (own, exported))
    shown = np.isfinite(want.logits[:, 0])
    assert (np.isfinite(got.logits[:, 0]) == shown).all()
    np.testing.assert_allclose(got.logits[shown], want.logits[shown], rtol=1e-3, atol=1e-4)
    # The model orders by its first head, the bundle by its score.
    np.testing.assert_allclose(
        np.log(got.lists["ctr"]) - np.log1p(-got.lists["ctr"]), -0.5 * want.lists["ctr"], rtol=1e-3, atol=1e-4
    )


def test_scorer_of_rows_in_several_contexts_scores_each_in_its_own(
    own: OwnModel, exported: Bundle, dataset: Dataset
) -> None:
    rng = np.random.default_rng(0)
    rows = dataset.impressions
    rows = dataclasses.replace(
        rows, context={**rows.context, "device": rng.permutation(rows.context["device"])}
    )
    mixed = dataclasses.replace(dataset, impressions=rows)
    got = Scorer(exported).predict(mixed, "test", {}).logits
    shown = np.isfinite(got[:, 0])
    want = Evaluator(mixed, own, "test", group=1).predict(own)
    np.testing.assert_allclose(got[shown], want[shown], rtol=1e-3, atol=1e-4)


def test_scorer_of_another_models_bundle_on_a_rung_knows_no_user(exported: Bundle, dataset: Dataset) -> None:
    scorer = open_scorer(exported.path, rung=2)
    assert (scorer.form, scorer.about()["rung"], scorer.content_width) == ("exported", 2, 8)
    full, less = (each.predict(dataset, "test", {}).logits for each in (Scorer(exported), scorer))
    shown = np.isfinite(full[:, 0])
    assert not np.allclose(full[shown], less[shown], rtol=1e-2)
    with pytest.raises(
        ConfigError, match=r"got 1, but the bundle .* answers on rungs 0, 2 only.*\(0, 2, 1\)"
    ):
        Scorer(exported, rung=1)


def test_evaluate_another_models_bundle_measures_all_beside_floors_and_models(
    own: OwnModel, exported: Bundle, dataset: Dataset
) -> None:
    found = evaluate_model(
        exported, dataset, against=own, heads=["ctr"], lists=20, candidates=30, k=(5,), resamples=10
    )
    head = found.heads["ctr"]
    assert {"auc", "gauc", "log_loss", "calibration_error", "mrr", "hr@5", "ndcg@5"} <= head.metrics.keys()
    assert {"item mean", "popularity", "random", "against"} <= head.references.keys()
    for metric in ("auc", "gauc", "log_loss"):
        assert head.references["against"].difference[metric].value == pytest.approx(0, abs=1e-4)
