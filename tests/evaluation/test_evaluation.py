"""`evaluate_model`: every figure against its definition, computed another way."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from aif_jax.bundle import Bundle
from aif_jax.data import TEST, TRAIN, Dataset
from aif_jax.errors import ConfigError, DataError
from aif_jax.evaluation import Estimate, Evaluation, evaluate_model
from aif_jax.models.baselines import Model
from aif_jax.training import Evaluator, candidate_lists, predict
from aif_jax.training.floors import floors
from aif_jax.training.metrics import gauc, hit_rate_at_k, reciprocal_ranks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def same(a: Mapping[str, Estimate], b: Mapping[str, Estimate]) -> bool:
    """Return whether estimates agree but for the order of sums."""
    pairs = [(dataclasses.astuple(a[name]), dataclasses.astuple(b[name])) for name in a]
    return a.keys() == b.keys() and all(
        x == pytest.approx(y, rel=1e-9, abs=1e-12, nan_ok=True) for x, y in pairs
    )


def known(dataset: Dataset, head: str) -> np.ndarray:
    rows = dataset.impressions
    return np.flatnonzero((rows.split == TEST) & (rows.label_mask[head] > 0))


def test_metrics_of_each_head_equal_scikit_learns(
    dataset: Dataset, model: Model, evaluation: Evaluation
) -> None:
    logits = predict(model, dataset).astype(np.float64)
    assert list(evaluation.heads) == ["ctr", "like"]
    for place, (head, found) in enumerate(evaluation.heads.items()):
        rows = known(dataset, head)
        labels, mine = dataset.impressions.labels[head][rows], logits[rows, place]
        users = dataset.impressions.user[rows]
        assert (found.impressions, found.users) == (rows.size, np.unique(users).size)
        assert found.positive == pytest.approx(labels.mean())
        assert found.metrics["auc"].value == pytest.approx(roc_auc_score(labels, mine))
        assert found.metrics["gauc"].value == pytest.approx(gauc(users, labels, mine))
        probability = 1 / (1 + np.exp(-mine))
        assert found.metrics["log_loss"].value == pytest.approx(log_loss(labels, probability))
        lists = candidate_lists(dataset, "test", head, lists=60, unseen=39)
        scores = Evaluator(dataset, model, "test").score_lists(model, lists)
        assert found.lists == len(lists)
        kept = np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].min() - 1)
        for k in (5, 10):
            hits = hit_rate_at_k(scores, k, lists.positives)
            assert found.metrics[f"hr@{k}"].value == pytest.approx(hits)
            want = ndcg_score(lists.positives, kept, k=k)
            assert found.metrics[f"ndcg@{k}"].value == pytest.approx(want, abs=1e-6)
        requests = dataset.impressions.request[rows]
        assert found.metrics["gauc_by_request"].value == pytest.approx(gauc(requests, labels, mine))
        assert found.metrics["mrr"].value == pytest.approx(reciprocal_ranks(scores, lists.positives).mean())
        for metric in ("auc", "gauc", "gauc_by_request", "log_loss", "mrr", "hr@5", "ndcg@10"):
            estimate = found.metrics[metric]
            assert 0 < estimate.standard_error < 0.2
            assert estimate.low <= estimate.value <= estimate.high


def test_bins_hold_all_impressions_and_give_the_calibration_error(
    dataset: Dataset, evaluation: Evaluation
) -> None:
    for found in evaluation.heads.values():
        counts = np.array([each.impressions for each in found.bins])
        gaps = np.array([abs(each.predicted - each.observed.value) for each in found.bins])
        assert counts.sum() == found.impressions
        assert found.metrics["calibration_error"].value == pytest.approx(gaps @ counts / counts.sum())
        mean = sum(each.observed.value * each.impressions for each in found.bins) / found.impressions
        assert mean == pytest.approx(found.positive)


def test_floors_are_those_of_training_and_chance_is_half(dataset: Dataset, evaluation: Evaluation) -> None:
    want = floors(dataset, "test")
    for head, found in evaluation.heads.items():
        for name, metrics in want.items():
            mine = found.references[name].metrics
            assert mine["auc"].value == pytest.approx(metrics.heads[head].auc)
            assert mine["gauc"].value == pytest.approx(metrics.heads[head].gauc)
            assert mine["log_loss"].value == pytest.approx(metrics.heads[head].log_loss)
            gap = found.references[name].difference["auc"]
            assert gap.value == pytest.approx(found.metrics["auc"].value - metrics.heads[head].auc)
        chance = found.references["random"].metrics
        assert chance["auc"].value == chance["gauc"].value == 0.5
        assert chance["hr@10"].value == pytest.approx(10 / found.candidates, rel=0.02)
        assert "log_loss" not in found.references["popularity"].metrics
        rows, every = known(dataset, head), dataset.impressions
        shown = np.bincount(every.item[every.split == TRAIN], minlength=dataset.n_items)[every.item[rows]]
        popular = found.references["popularity"].metrics["auc"].value
        assert popular == pytest.approx(roc_auc_score(every.labels[head][rows], shown))


def test_other_model_is_measured_on_the_same_impressions_and_lists(
    dataset: Dataset, model: Model, other: Model, evaluation: Evaluation
) -> None:
    alone = evaluate_model(other, dataset, lists=60, candidates=40, k=(5, 10), resamples=120)
    for head, found in evaluation.heads.items():
        theirs = found.references["against"]
        assert theirs.kind == "model"
        assert same(theirs.metrics, alone.heads[head].metrics)
        for mine, bin_ in zip(theirs.bins, alone.heads[head].bins, strict=True):
            assert (mine.impressions, mine.predicted) == (bin_.impressions, pytest.approx(bin_.predicted))
            assert same({"observed": mine.observed}, {"observed": bin_.observed})
        for metric, gap in theirs.difference.items():
            want = found.metrics[metric].value - theirs.metrics[metric].value
            assert gap.value == pytest.approx(want)
            assert gap.standard_error > 0
    lists = candidate_lists(dataset, "test", "ctr", lists=60, unseen=39)
    a, b = (Evaluator(dataset, each, "test").score_lists(each, lists) for each in (model, other))
    agreement = evaluation.heads["ctr"].references["against"].agreement
    want = np.mean(
        [spearmanr(x[np.isfinite(x)], y[np.isfinite(x)]).statistic for x, y in zip(a, b, strict=True)]
    )
    assert agreement["rank correlation"].value == pytest.approx(want)
    shared = [
        len(set(np.argsort(-x, kind="stable")[:5]) & set(np.argsort(-y, kind="stable")[:5])) / 5
        for x, y in zip(a, b, strict=True)
    ]
    assert agreement["overlap@5"].value == pytest.approx(np.mean(shared))


def test_several_models_are_each_compared_as_if_alone(
    dataset: Dataset, model: Model, other: Model, evaluation: Evaluation
) -> None:
    options: dict[str, Any] = {"slices": ["category"], "lists": 60, "candidates": 40, "k": (5, 10)}
    both = evaluate_model(model, dataset, against={"same": model, "other": other}, resamples=120, **options)
    assert list(both.against) == ["same", "other"]
    for head, found in both.heads.items():
        alone = evaluation.heads[head].references["against"]
        for part in ("metrics", "difference", "agreement"):
            assert same(getattr(found.references["other"], part), getattr(alone, part))
        assert {each.value for each in found.references["same"].difference.values()} == {0.0}
        assert {each.value for each in found.references["same"].agreement.values()} == {1.0}
        for mine, theirs in zip(found.slices, evaluation.heads[head].slices, strict=True):
            assert same(mine.difference["other"], theirs.difference["against"])


def test_same_model_against_itself_differs_by_nothing(dataset: Dataset, model: Model) -> None:
    found = evaluate_model(
        model, dataset, against=model, heads=["ctr"], lists=20, candidates=20, resamples=30
    )
    theirs = found.heads["ctr"].references["against"]
    assert all(gap.value == gap.standard_error == 0 for gap in theirs.difference.values())
    assert {each.value for each in theirs.agreement.values()} == {1.0}


def test_bundle_is_evaluated_folded_and_its_calibration_shows(
    dataset: Dataset, model: Model, bundle: Bundle
) -> None:
    found = evaluate_model(bundle, dataset, against=model, heads=["ctr"], lists=0, resamples=30)
    assert (found.model["form"], found.against["against"]["form"]) == ("folded", "unfolded")
    head = found.heads["ctr"]
    gaps = head.references["against"].difference
    assert gaps["auc"].value == pytest.approx(0, abs=1e-4)
    assert abs(gaps["log_loss"].value) > 1e-3
    assert not any("@" in metric for metric in head.metrics)


def test_slices_are_measured_as_if_they_were_all_there_is(
    dataset: Dataset, model: Model, evaluation: Evaluation
) -> None:
    logits = predict(model, dataset).astype(np.float64)
    found, rows = evaluation.heads["ctr"], known(dataset, "ctr")
    every = dataset.impressions
    part = next(each for each in found.slices if each.dimension == "item category")
    category = np.asarray(dataset.items["category"]).astype(str)
    mine = rows[category[every.item[rows]] == part.name]
    labels, users = every.labels["ctr"][mine], every.user[mine]
    assert (part.impressions, part.users) == (mine.size, np.unique(users).size)
    assert part.metrics["auc"].value == pytest.approx(roc_auc_score(labels, logits[mine, 0]))
    assert part.metrics["gauc"].value == pytest.approx(gauc(users, labels, logits[mine, 0]))
    assert set(part.difference) > {"against"}
    assert part.difference["against"]["gauc"].standard_error > 0
    by_length = [each for each in found.slices if each.dimension == "history length"]
    assert sum(each.impressions for each in by_length) == found.impressions


def test_frozen_histories_hide_the_part_from_itself(dataset: Dataset, model: Model) -> None:
    rows = dataset.impressions
    split = np.where(rows.user % 8 == 1, TEST, rows.split).astype(np.int8)  # users of several test requests
    several = dataclasses.replace(dataset, impressions=dataclasses.replace(rows, split=split))
    still = several.with_frozen_histories("test")
    want = evaluate_model(model, still, heads=["ctr"], lists=0, resamples=20)
    got = evaluate_model(model, several, heads=["ctr"], lists=0, resamples=20, frozen_histories=True)
    assert same(got.heads["ctr"].metrics, want.heads["ctr"].metrics)
    plain = evaluate_model(model, several, heads=["ctr"], lists=0, resamples=20)
    assert not same(got.heads["ctr"].metrics, plain.heads["ctr"].metrics)
    assert got.data["frozen_histories"]


def test_heads_without_labels_may_be_left_out(dataset: Dataset, model: Model) -> None:
    rows = dataset.impressions
    only = dataclasses.replace(
        rows, labels={"ctr": rows.labels["ctr"]}, label_mask={"ctr": rows.label_mask["ctr"]}
    )
    fewer = dataclasses.replace(dataset, impressions=only)
    with pytest.raises(DataError, match=r"no label for head like .*only for ctr.*--head"):
        evaluate_model(model, fewer)
    found = evaluate_model(model, fewer, heads=["ctr"], lists=0, resamples=20)
    assert list(found.heads) == ["ctr"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"heads": ["moon"]}, DataError, "has no head moon, expected some of ctr, like"),
        ({"split": "tomorrow"}, DataError, "got 'tomorrow', expected 'train'"),
        ({"slices": ["moon"]}, DataError, "no column 'moon'"),
        ({"candidates": 1}, ConfigError, "candidates"),
        ({"k": ()}, ConfigError, "expected at least"),
        ({"resamples": 1}, ConfigError, "resamples"),
        ({"against": {"model": None}}, ConfigError, r"against: got \{'model': None\}, expected"),
    ],
)
def test_bad_options_are_refused_by_name(
    dataset: Dataset, model: Model, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evaluate_model(model, dataset, **{"lists": 0, "resamples": 20, **options})


def test_other_model_of_the_evaluated_ones_name_is_refused(dataset: Dataset, model: Model) -> None:
    with pytest.raises(ConfigError, match="'model' names what is evaluated"):
        evaluate_model(model, dataset, lists=0, resamples=20, against={"model": model})


def test_labels_of_one_class_are_refused(dataset: Dataset, model: Model) -> None:
    rows = dataset.impressions
    labels = {**rows.labels, "like": np.where(rows.split == TEST, 0.0, rows.labels["like"])}
    none = dataclasses.replace(dataset, impressions=dataclasses.replace(rows, labels=labels))
    with pytest.raises(DataError, match="labels of head 'like' in the test part, 0 of them positive"):
        evaluate_model(model, none)


def test_json_holds_plain_numbers_and_the_page_names_every_key(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.write(tmp_path / "evaluation.json")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found == evaluation.to_json() == Evaluation.from_json(found).to_json()
    with pytest.raises(DataError, match="got format 0, expected 2"):
        Evaluation.from_json({**found, "format": 0})
    head = found["heads"]["ctr"]
    assert head["metrics"]["calibration_error"]["standard_error"] is None
    assert head["metrics"]["auc"]["value"] == evaluation.heads["ctr"].metrics["auc"].value
    named = set(re.findall(r"`([a-z_]+)`", PAGE.read_text(encoding="utf-8")))
    reference, part = head["references"]["against"], head["slices"][0]
    for level in (
        found,
        found["model"],
        found["data"],
        found["settings"],
        found["made"],
        head,
        reference,
        part,
    ):
        assert level.keys() <= named
    assert head["bins"][0].keys() | head["metrics"]["auc"].keys() <= named
