"""`fit`: sizes chosen from the data, a model and its baselines trained, all measured on one part."""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from aif_jax.checks import check, choice, is_real, number, typed
from aif_jax.config import Architecture, ModelConfig
from aif_jax.data import TEST, VALIDATION, Dataset
from aif_jax.data.content import Content
from aif_jax.data.moments import duration
from aif_jax.errors import ConfigError, DataError
from aif_jax.evaluation import evaluate_model
from aif_jax.evaluation.evaluation import labelled
from aif_jax.files import make_directory, read_file, write_atomic
from aif_jax.fitting.findings import findings
from aif_jax.fitting.run import CHECKPOINTS, Run, check_place
from aif_jax.fitting.stage_budget import model_within
from aif_jax.training import TrainConfig, TrainResult, train
from aif_jax.training.choosing import Choice, choose

_RESAMPLES = 200
"""Of the bootstrap: they tell a standard error to about 5 %."""

_WITHIN = "within.json"


@typed
def fit(
    data: Dataset,
    *,
    budget: str | float | None = "10m",
    stage_ms: float | None = None,
    model: ModelConfig | None = None,
    training: TrainConfig | None = None,
    baselines: Sequence[str] = ("cold",),
    init: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Run:
    """Train a model on a data set by settings that are chosen from it, and measure it beside baselines.

    Sizes, lengths and epochs are those of `aif_jax.training.choose`. The baselines are trained first, by the
    same settings but for the architecture. All models are measured on the test part, or without one on the
    validation part, beside floors that need no learning.

    Args:
        data: with a training part, and a validation or test part.
        budget: time for the training of all models: text such as ``"10m"`` or ``"2h"``, seconds, or ``None``
            for no limit. Each model has an equal share of what the ones before it left; one that is not done
            then is ended early, which the report says. Choosing and measuring come on top.
        stage_ms: milliseconds that scoring 4,096 candidates may take on this machine after retrieval. The
            richest variant of the model that keeps it is trained, see `model_within`, and not also as a
            baseline.
        model: in place of the chosen sizes.
        training: in place of the chosen settings of the run.
        baselines: architectures to train beside it: ``cold``, ``exact``, ``two_tower``, which has the
            in-batch softmax, so that `Run.towers` gives vectors for retrieval.
        init: an earlier run (or its path, or a model) whose weights to begin from, see
            `aif_jax.training.train`; baselines begin from those of the same run.
        out: folder in which to save the run, see `Run.save`. With it a fit that was killed goes on from its
            last checkpoint when it is called again.
        seed: of the chosen training, of candidate lists and of the bootstrap; a given ``training`` has its
            own.
        progress: show progress bars.

    Raises:
        ConfigError: an argument is out of bounds or does not fit the data, or no model keeps ``stage_ms``.
        DataError: the main label is of one class in the training part or in the part that measures, or there
            is no such part.
        TrainingError: training diverged, or its validation part has one class only.
        BundleError: the folder ``out`` holds something else.

    >>> from aif_jax import ModelConfig
    >>> from aif_jax.data import load
    >>> from aif_jax.training import TrainConfig
    >>> small = ModelConfig(blocks=("profile_item",), width=8, hidden=8, item_layers=(8,), head_layers=(8,))
    >>> brief = TrainConfig(max_steps=5)
    >>> run = fit(load("synthetic:small"), model=small, training=brief, baselines=(), progress=False)
    >>> print(run)
    Run(aif on synthetic, test AUC 0..., GAUC 0...; run.report() tells more)
    """
    seconds = _seconds(budget)
    _check_arguments(model, baselines)
    if out is not None:
        check_place(Path(out))
    picked = _picked(data, None if seconds is None else seconds / (1 + len(baselines)), model, training, seed)
    main = picked.model.architecture
    check("baselines", tuple(baselines), main not in baselines, f"none of the model's own kind, {main!r}")
    part, heads = _measured(data, picked.model.heads)
    if stage_ms is not None:
        picked = _within(picked, data, stage_ms, out, progress)
        main = picked.model.architecture
        baselines = [name for name in baselines if name != main]
    if isinstance(init, (str, Path)) and Run.is_at(Path(init)):
        init = Run.load(init)
    if isinstance(init, Run) and init.content is not None and _derived(data) is not None:
        data = data.with_content_like(*init.content, init.content_space)

    results: dict[str, TrainResult] = {}
    spent: dict[str, float] = {}
    names = [*baselines, main]
    for place, name in enumerate(names):
        settings = picked.training
        if seconds is not None and not settings.max_seconds:
            share = (seconds - sum(spent.values())) / (len(names) - place)
            settings = settings.replace(max_seconds=max(share, 1.0))
        if folder := settings.checkpoint_dir or (out and str(Path(out) / CHECKPOINTS)):
            settings = settings.replace(checkpoint_dir=str(Path(folder) / name))
        begun = time.perf_counter()
        if name == "two_tower" and not settings.softmax_weight:
            # The sigmoid loss orders what is shown, the in-batch softmax all items, which retrieval needs.
            settings = settings.replace(softmax_weight=1.0)
        config = picked.model.replace(architecture=name)
        if name != main and not config.has("encoder"):
            settings = settings.replace(next_weight=0.0)
        results[name] = train(
            config, data, settings, progress=progress,
            init=_init_of(init, name, name == main),
        )  # fmt: skip
        spent[name] = time.perf_counter() - begun
    evaluation = evaluate_model(
        results[main].model, data, part,
        against={name: results[name].model for name in baselines},
        heads=heads, resamples=_RESAMPLES, seed=seed,
    )  # fmt: skip
    run = Run(
        data=data.name,
        results=results,
        evaluations={part: evaluation},
        choice=picked,
        seconds=spent,
        budget_s=seconds,
        warnings=data.warnings,
        findings=findings(data, evaluation, results),
        content=None if (content := _derived(data)) is None else (data.item_keys(), content.vectors),
    )
    if out is not None:
        run.save(out)
        shutil.rmtree(Path(out) / CHECKPOINTS, ignore_errors=True)
    return run


def _seconds(budget: str | float | None) -> float | None:
    """Return a budget in seconds."""
    if budget is None:
        return None
    found: Any = duration(budget, "s", "budget") if isinstance(budget, str) else budget
    if not is_real(found) or not math.isfinite(found):
        raise ConfigError(
            f"budget: got {budget!r}, expected a time such as '10m' or '2h', a number of seconds, or None."
        )
    number("budget", found, "seconds")
    return float(found)


def _check_arguments(model: Any, baselines: Any) -> None:
    for name in baselines:
        choice("baselines", name, get_args(Architecture))
    check("baselines", tuple(baselines), len(set(baselines)) == len(baselines), "different architectures")


def _picked(
    data: Dataset, budget_s: float | None, model: ModelConfig | None, training: TrainConfig | None, seed: int
) -> Choice:
    """Return what `choose` chooses, with what was given in its place."""
    if model is not None and training is not None:
        return Choice(model=model, training=training, reasons=("model and training were given",))
    found = choose(data, budget_s)
    found = dataclasses.replace(found, training=found.training.replace(seed=seed))
    if model is not None:
        return dataclasses.replace(
            found, model=model, reasons=(*found.reasons, "the model was given instead")
        )
    if training is not None:
        reasons = (*found.reasons, "the training was given instead")
        return dataclasses.replace(found, training=training, reasons=reasons)
    return found


def _within(picked: Choice, data: Dataset, stage_ms: float, out: str | Path | None, progress: bool) -> Choice:
    """Return a choice with the variant of its model that keeps a time after retrieval.

    It stands beside the checkpoints, so that a fit that was killed goes on with the same model, whatever the
    machine would measure then.
    """
    asked = {"model": picked.model.to_json(), "stage_ms": stage_ms}
    path = None if out is None else Path(out) / CHECKPOINTS / _WITHIN
    if path is not None and path.exists():
        kept = json.loads(read_file(path))
        if kept["asked"] == json.loads(json.dumps(asked)):
            reasons = (*picked.reasons, *kept["reasons"])
            return dataclasses.replace(picked, model=ModelConfig.from_json(kept["model"]), reasons=reasons)
    found = model_within(picked.model, data.fit_schema(), stage_ms, progress=progress)
    if path is not None:
        make_directory(path.parent)
        kept = {"asked": asked, "model": found.model.to_json(), "reasons": found.reasons}
        write_atomic(path, json.dumps(kept), begins=b"{")
    return dataclasses.replace(picked, model=found.model, reasons=(*picked.reasons, *found.reasons))


def _measured(data: Dataset, heads: Sequence[str]) -> tuple[str, list[str]]:
    """Return the part that measures, and the heads that it can measure, before anything is trained."""
    if missing := [head for head in heads if head not in data.heads]:
        raise ConfigError(f"heads: {data.name} has the labels {data.heads}, but not {missing}.")
    split = data.impressions.split
    part = "test" if (split == TEST).any() else "validation"
    if not ((split == TEST) | (split == VALIDATION)).any():
        raise DataError(
            f"{data.name}: neither a test nor a validation part, so nothing could be measured; hold rows out "
            "with split=by_time(validation=0.1, test=0.1), or call aif_jax.training.train."
        )
    for each in ("train", part):
        rows, _ = labelled(data, each, heads[0])
    if np.unique(data.impressions.user[rows]).size < 2:
        raise DataError(
            f"{data.name}: the {part} part is of one user, which tells nothing of others; hold out more."
        )
    return part, [heads[0], *(head for head in heads[1:] if _has_both(data, part, head))]


def _has_both(data: Dataset, part: str, head: str) -> bool:
    try:
        return all(labelled(data, each, head) for each in ("train", part))
    except DataError:
        return False  # `Dataset.warnings` names it


def _derived(data: Dataset) -> Content | None:
    """Return the content embeddings of a data set that were derived from its log."""
    content = data.content
    return content if content is not None and content.space.kind == "derived" else None


def _init_of(init: Any, name: str, main: bool) -> Any:
    """Return the weights that a model begins from: an earlier run has some for each of its models."""
    if isinstance(init, Run):
        return init.results[name].model if name in init.results else None
    return init if main else None
