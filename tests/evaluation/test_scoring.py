"""Scorers: the folded form agrees with the model, and no rung knows what it goes without."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.data import Dataset
from aif_jax.errors import AifError, BundleError, ConfigError, DataError
from aif_jax.evaluation.scoring import FoldedPrograms, Scorer, at_rung, check_fit, open_scorer
from aif_jax.models import fold
from aif_jax.models.baselines import Model
from aif_jax.models.store import save_model
from aif_jax.training import Evaluator, candidate_lists


@pytest.fixture(scope="module")
def uncalibrated(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In ``float32``, with the model's own score."""
    return export_bundle(model, tmp_path_factory.mktemp("exported") / "uncalibrated", k_max=16)


def test_scorer_of_a_bundle_predicts_what_the_model_does_with_its_calibration(
    dataset: Dataset, model: Model, bundle: Bundle
) -> None:
    lists = {"ctr": candidate_lists(dataset, "test", "ctr", lists=40, unseen=30)}
    plain, served = (Scorer(each).predict(dataset, "test", lists) for each in (model, bundle))
    shown = np.isfinite(plain.logits[:, 0])
    assert (np.isfinite(served.logits[:, 0]) == shown).all()
    mine, theirs = plain.logits[shown], served.logits[shown]
    np.testing.assert_allclose(theirs[:, 0], 1.5 * mine[:, 0] - 0.25, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(theirs[:, 1], mine[:, 1], rtol=1e-4, atol=1e-4)


def test_scorer_of_a_bundle_orders_lists_by_its_score_expression(
    dataset: Dataset, model: Model, bundle: Bundle, uncalibrated: Bundle
) -> None:
    lists = {"ctr": candidate_lists(dataset, "test", "ctr", lists=40, unseen=30)}
    want = Scorer(model).predict(dataset, "test", lists).lists["ctr"]
    got = Scorer(uncalibrated).predict(dataset, "test", lists).lists["ctr"]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    got = Scorer(bundle).predict(dataset, "test", lists).lists["ctr"]
    assert not np.allclose(got, want, rtol=1e-2)
    assert bundle.config.score == Scorer(bundle).about()["score"] == "like"


@pytest.mark.thorough
def test_scorer_in_less_precision_is_near_float32(
    dataset: Dataset, model: Model, uncalibrated: Bundle, tmp_path: Path
) -> None:
    exact = Scorer(uncalibrated).predict(dataset, "test", {})
    shown = np.isfinite(exact.logits[:, 0])
    for precision in ("bfloat16", "int8"):
        scorer = Scorer(export_bundle(model, tmp_path / precision, k_max=16, precision=precision))
        assert scorer.about()["precision"] == precision
        logits = scorer.predict(dataset, "test", {}).logits
        error = np.std((logits - exact.logits)[shown]) / np.std(exact.logits[shown])
        assert 0 < error < 0.05


def test_last_rung_is_the_prior_of_the_item_rows(dataset: Dataset, model: Model, bundle: Bundle) -> None:
    folded = fold(model, calibration={"ctr": (1.5, -0.25)})
    catalogue = dataset.catalogue(folded.schema, content_width=folded.config.content_width)
    items = {name: jnp.asarray(catalogue[name]) for name in folded.item_inputs_spec(1)}
    prior = np.asarray(folded.item(folded.weights_of("item"), items)["prior"])
    logits = Scorer(bundle, rung=3).predict(dataset, "test", {}).logits
    shown = np.isfinite(logits[:, 0])
    np.testing.assert_allclose(logits[shown], prior[dataset.impressions.item[shown]], rtol=1e-4, atol=1e-5)
    full = Evaluator(dataset, folded, "test", catalogue={}).collect(FoldedPrograms(folded, dataset).logits)
    assert not np.allclose(logits[shown], full[shown], rtol=1e-2)


def test_rung_sees_nothing_of_what_it_goes_without(dataset: Dataset, model: Model) -> None:
    lists = candidate_lists(dataset, "test", "ctr", lists=3, unseen=30)
    batch = lists.batch(dataset, model.schema, np.arange(3), 5, 8)
    assert at_rung(batch, 0) == batch
    for rung, groups, types in (
        (1, (), ("long_type",)),
        (2, ("user",), ("long_type", "short_type")),
        (3, ("user", "context", "pair"), ("long_type", "short_type")),
    ):
        seen = at_rung(batch, rung)
        for group in ("user", "context", "pair"):
            for name, values in seen[group].items():
                assert not np.any(values) if group in groups else np.array_equal(values, batch[group][name])
        for name in ("long_type", "short_type"):
            assert (np.asarray(seen[name]) == -1).all() if name in types else seen[name] is batch[name]


def test_rung_of_a_trained_model_is_refused(model: Model, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"got 1 for a trained model.*aif export"):
        Scorer(model, rung=1)
    with pytest.raises(ConfigError, match="got 4, expected one of 0, 1, 2, 3"):
        Scorer(bundle, rung=4)


def test_open_scorer_takes_a_run_its_model_and_a_bundle(model: Model, bundle: Bundle, tmp_path: Path) -> None:
    save_model(model, tmp_path / "mine" / "model", metrics={}, notes={})
    for path in (tmp_path / "mine", tmp_path / "mine" / "model"):
        opened = open_scorer(path)
        assert (opened.name, opened.form, opened.about()["kind"]) == ("mine", "unfolded", "run")
    opened = open_scorer(bundle.path)
    assert (opened.name, opened.form, opened.about()["version"]) == ("small", "folded", bundle.version)


def test_open_scorer_of_anything_else_names_what_it_expects(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(AifError, match="nothing is there; expected OUT of `aif train`"):
        open_scorer(tmp_path / "nowhere")
    with pytest.raises(AifError, match="neither a trained model nor a bundle"):
        open_scorer(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(BundleError, match="not a saved model"):
        open_scorer(tmp_path)


def test_check_fit_names_absent_columns_and_other_behaviour_types(dataset: Dataset, model: Model) -> None:
    check_fit(model.schema, dataset, "mine")
    items = {name: column for name, column in dataset.items.items() if name != "category"}
    with pytest.raises(DataError, match="no columns for features of mine: item category"):
        check_fit(model.schema, dataclasses.replace(dataset, items=items), "mine")
    renamed = tuple(f"{name}s" for name in dataset.schema.behaviour_types)
    schema = dataclasses.replace(dataset.schema, behaviour_types=renamed)
    with pytest.raises(DataError, match="behaviour types"):
        check_fit(model.schema, dataclasses.replace(dataset, schema=schema), "mine")
