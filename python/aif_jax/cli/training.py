"""`aif train`: what a config describes, fitted, reported and saved."""

from pathlib import Path
from typing import Any

from rich.console import Console

import aif_jax
from aif_jax.config import ModelConfig
from aif_jax.data import Dataset, Described, describe
from aif_jax.errors import ConfigError
from aif_jax.training import REFIT, TrainConfig


def run_training(
    source: str,
    out: Path,
    *,
    architecture: str | None,
    epochs: int | None,
    seed: int | None,
    budget: str | None,
    stage_ms: float | None,
    resume: bool,
    console: Console,
) -> None:
    """Fit, report on the test part, and save.

    A config with ``[model]`` and without ``[fit]`` describes one model, and so does a built-in set: it is
    trained alone, without a time limit. Of all others, `aif_jax.fit` chooses what is not given.

    Args:
        source: a config, or a built-in set, as `aif_jax.data.describe` takes it.
        out: OUT.
        architecture: in place of the config's, for one model.
        epochs: the same.
        seed: of weights, order and dropout, in place of the config's.
        budget: time for all models that `fit` trains, in place of the config's.
        stage_ms: milliseconds after retrieval that the model may take, in place of the config's.
        resume: continue from the newest checkpoint in OUT.
        console: where to print.

    Raises:
        ConfigError: a key of the config is unknown or invalid, or OUT holds checkpoints and resume is off.
    """
    described = describe(source)
    checkpoints = out / "checkpoints"
    begun = checkpoints.exists() and any(checkpoints.iterdir())
    if (begun or aif_jax.Run.is_at(out)) and not resume:
        raise ConfigError(
            f"{out} holds an earlier run; resume or replace it with --resume, or choose another --out."
        )
    chosen = "fit" in described.parts or "model" not in described.parts
    if chosen and (architecture or epochs):
        raise ConfigError(
            f"--architecture and --epochs: {source} leaves both to fit; give it [model] and [training]."
        )
    if budget and not chosen:
        raise ConfigError(f"--budget: {source} describes one model; give it [fit], or give --epochs.")
    train_config = described.settings("training", TrainConfig)
    dataset = described.dataset()
    console.print(dataset.summary, markup=False, highlight=False, soft_wrap=True)
    given: dict[str, Any] = {}
    if chosen:
        asked = {"seed": seed, "budget": budget}
        given = described.arguments("fit", aif_jax.fit) | {n: v for n, v in asked.items() if v is not None}
    else:
        seed = train_config.seed if seed is None else seed
        train_config = train_config.replace(seed=seed, epochs=epochs or train_config.epochs)
        given = {"training": train_config, "baselines": (), "budget": None, "seed": seed}
        if dataset.name in REFIT:
            dataset = dataset.with_validation_in_training()
    if "model" in described.parts:
        model = _model(described, dataset)
        given["model"] = model.replace(architecture=architecture) if architecture else model
    if stage_ms is not None:
        given["stage_ms"] = stage_ms
    if chosen and "training" in described.parts:
        given["training"] = train_config
    run = aif_jax.fit(dataset, **given, out=out)
    console.print(run.report(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"run in {out}")


def _model(described: Described, dataset: Dataset) -> ModelConfig:
    """Return the model of a config; its heads are those of the data unless it names some."""
    base = None if "heads" in described.parts["model"] else ModelConfig(heads=dataset.heads)
    return described.settings("model", ModelConfig, base)
