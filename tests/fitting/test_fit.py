"""`fit`: what it trains and measures, what it begins from, and what it refuses before it trains."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import SPLITS, TEST, Dataset
from aif_jax.errors import AifError, BundleError, ConfigError, DataError
from aif_jax.evaluation import Evaluation, evaluate_model
from aif_jax.fitting import Run, fit
from aif_jax.models.store import weights_of
from aif_jax.training import TrainConfig, TrainResult
from aif_jax.training.choosing import Choice
from support.fitted import BRIEF, SMALL


def with_parts(data: Dataset, split: np.ndarray) -> Dataset:
    rows = dataclasses.replace(data.impressions, split=split.astype(np.int8))
    return dataclasses.replace(data, impressions=rows)


def with_label(data: Dataset, value: float, part: str) -> Dataset:
    rows = data.impressions
    labels = {
        head: np.where(rows.split == SPLITS[part], value, label).astype(np.float32)
        for head, label in rows.labels.items()
    }
    return dataclasses.replace(data, impressions=dataclasses.replace(rows, labels=labels))


def test_fit_measures_as_evaluate_model_does(data: Dataset, run: Run) -> None:
    assert list(run.results) == ["cold", "aif"]
    cold = run.results["cold"].model
    assert (cold.config.architecture, run.model.config) == ("cold", SMALL)
    want = evaluate_model(run.model, data, against={"cold": cold}, resamples=200)
    assert list(run.evaluations) == ["test"]
    assert run.evaluations["test"].to_json()["heads"] == want.to_json()["heads"]
    assert list(want.heads) == ["click", "order"]


def test_fit_asks_choose_for_each_models_share_of_the_budget(
    data: Dataset, trained: list[dict[str, Any]], measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float | None] = []

    def choose(given: Dataset, budget_s: float | None) -> Choice:
        asked.append(budget_s)
        return Choice(model=SMALL, training=BRIEF, reasons=("rows are few",))

    monkeypatch.setattr("aif_jax.fitting.fit_models.choose", choose)
    run = fit(data, budget="1m", seed=3, progress=False)
    assert asked == [30.0]
    first, second = (each["config"].max_seconds for each in trained)
    assert first == 30.0 < second <= 60.0, "the second has what the first left"
    assert (run.choice.training.seed, run.choice.reasons) == (3, ("rows are few",))
    assert "rows are few" in run.report()
    assert "of 60 s: 30 s for each" in run.report()


def test_fit_without_test_part_measures_validation_and_says_so(
    data: Dataset, trained: list[dict[str, Any]]
) -> None:
    split = data.impressions.split
    found = fit(
        with_parts(data, np.where(split == TEST, SPLITS["train"], split)),
        model=SMALL, training=BRIEF, baselines=(), progress=False,
    )  # fmt: skip
    assert list(found.evaluations) == ["validation"]
    assert "There is no test part" in found.report()


def test_fit_begins_every_model_from_the_earlier_runs(
    data: Dataset, run: Run, folder: Path, trained: list[dict[str, Any]], measured: None
) -> None:
    for init in (run, folder, run.model):
        fit(data, init=init, model=SMALL, training=BRIEF, progress=False)
    given = [each["init"] for each in trained]
    cold = run.results["cold"].model
    assert given[:2] == [cold, run.model]
    for model, want in zip(given[2:4], (cold, run.model), strict=True):
        mine, theirs = weights_of(model), weights_of(want)
        assert all((mine[key] == theirs[key]).all() for key in theirs)
    assert given[4:] == [None, run.model], "a model is one for the model itself"


def test_fit_teaches_the_next_item_to_models_with_an_encoder_alone(
    data: Dataset, trained: list[dict[str, Any]], measured: None
) -> None:
    deep = SMALL.replace(blocks=(*SMALL.blocks, "encoder"), encoder_layers=1, encoder_width=8)
    fit(data, model=deep, training=BRIEF.replace(next_weight=1.0), progress=False)
    assert [each["config"].next_weight for each in trained] == [0.0, 1.0]


@pytest.mark.thorough
def test_fit_that_was_broken_off_goes_on_from_its_checkpoints(
    data: Dataset, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def made(*_: Any, **__: Any) -> Evaluation:
        return run.evaluations["test"]

    out = tmp_path / "run"
    options: dict[str, Any] = {"model": SMALL, "training": BRIEF, "baselines": (), "progress": False}
    monkeypatch.setattr("aif_jax.fitting.fit_models.evaluate_model", broken)
    with pytest.raises(KeyboardInterrupt):
        fit(data, out=out, **options)
    monkeypatch.setattr("aif_jax.fitting.fit_models.evaluate_model", made)
    again = fit(data, out=out, **options)
    assert again.results["aif"].examples_per_s == 0.0, "not a step was made again"
    assert again.results["aif"].history == Run.load(out).results["aif"].history
    assert sorted(each.name for each in out.iterdir()) == ["content.safetensors", "model", "run.json"], (
        "no checkpoints"
    )
    mine, theirs = weights_of(again.model), weights_of(run.model)
    assert all((mine[name] == theirs[name]).all() for name in theirs), "as if alone and unbroken"


def test_fit_leaves_out_heads_that_the_part_cannot_measure(
    data: Dataset, trained: list[dict[str, Any]]
) -> None:
    rows = data.impressions
    labels = {
        **rows.labels,
        "order": np.where(rows.split == TEST, 0, rows.labels["order"]).astype(np.float32),
    }
    found = fit(
        dataclasses.replace(data, impressions=dataclasses.replace(rows, labels=labels)),
        model=SMALL, training=BRIEF, baselines=(), progress=False,
    )  # fmt: skip
    assert list(found.evaluations["test"].heads) == ["click"]
    assert "'order' has one class in the test part" in found.report()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budget": "soon"}, ConfigError, "got 'soon', expected a time such as '10m'"),
        ({"budget": -1}, ConfigError, "more than 0 seconds"),
        ({"budget": float("nan")}, ConfigError, "budget: got nan, expected a string or a finite number"),
        ({"baselines": "cold"}, ConfigError, "baselines: got 'cold', expected a list"),
        ({"baselines": ["warm"]}, ConfigError, "got 'warm', expected one of 'aif'"),
        ({"baselines": ["aif"]}, ConfigError, "none of the model's own kind, 'aif'"),
        ({"baselines": ["cold", "cold"]}, ConfigError, "different architectures"),
        ({"model": SMALL.replace(heads=("moon",), score="moon")}, ConfigError, "but not \\['moon'\\]"),
    ],
)
def test_fit_with_bad_argument_names_it_before_training(
    data: Dataset, options: dict[str, Any], error: type[AifError], words: str, untrained: None
) -> None:
    with pytest.raises(error, match=words):
        fit(data, **{"model": SMALL, "training": BRIEF, **options})


def test_fit_of_a_table_says_how_to_make_a_data_set() -> None:
    with pytest.raises(
        ConfigError, match=r"got \{'user': \[1\]\}, expected a Dataset, which Dataset\.from_events makes"
    ):
        fit({"user": [1]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: with_label(data, 1, "test"), "in the test part, .* positive; expected both classes"),
        (lambda data: with_label(data, 0, "train"), "in the train part, 0 of them positive"),
        (lambda data: with_parts(data, np.zeros(len(data.impressions))), "neither a test nor a validation"),
        (
            lambda data: with_parts(data, np.where(data.impressions.user == 5, 2, 0)),
            "of one user, which tells nothing of others",
        ),
    ],
)
def test_fit_that_nothing_could_measure_raises_before_training(
    data: Dataset, change: Any, words: str, untrained: None
) -> None:
    with pytest.raises(DataError, match=words):
        fit(change(data), model=SMALL, training=BRIEF)


def test_fit_into_a_folder_of_something_else_raises_before_training(
    data: Dataset, tmp_path: Path, untrained: None
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match=r"holds thesis\.txt, which is no part of a run"):
        fit(data, model=SMALL, training=BRIEF, out=tmp_path)


@pytest.fixture
def trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Results of the run in place of training again, and what training was asked for."""
    asked: list[dict[str, Any]] = []

    def again(model: ModelConfig, data: Dataset, config: TrainConfig, **options: Any) -> TrainResult:
        asked.append({"config": config, "init": options.get("init")})
        return run.results[model.architecture]

    monkeypatch.setattr("aif_jax.fitting.fit_models.train", again)
    return asked


@pytest.fixture
def measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its evaluation in place of evaluating again."""

    def again(*_: Any, **__: Any) -> Evaluation:
        return run.evaluations["test"]

    monkeypatch.setattr("aif_jax.fitting.fit_models.evaluate_model", again)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("training began")

    monkeypatch.setattr("aif_jax.fitting.fit_models.train", refuse)
