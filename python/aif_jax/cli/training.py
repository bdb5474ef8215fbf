"""`aif train`: what a config describes, fitted or trained, and saved with its metrics."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import aif_jax
from aif_jax.config import ModelConfig
from aif_jax.data import Dataset, Described, describe
from aif_jax.errors import ConfigError
from aif_jax.files import write_atomic
from aif_jax.models.store import save_model
from aif_jax.training import REFIT, TrainConfig, evaluate, floors, train
from aif_jax.training.evaluate import Metrics


def run_training(
    source: str,
    out: Path,
    *,
    architecture: str | None,
    epochs: int | None,
    seed: int | None,
    budget: str | None,
    resume: bool,
    console: Console,
) -> None:
    """Train, evaluate on the test part, and save.

    A config with ``[model]`` and without ``[fit]`` describes one model, and so does a built-in set. Of all
    others, `aif_jax.fit` chooses what is not given.

    Args:
        source: a config, or a built-in set, as `aif_jax.data.describe` takes it.
        out: OUT.
        architecture: in place of the config's, for one model.
        epochs: the same.
        seed: of weights, order and dropout, in place of the config's.
        budget: time for all models that `fit` trains, in place of the config's.
        resume: continue from the newest checkpoint in OUT.
        console: where to print.

    Raises:
        ConfigError: a key of the config is unknown or invalid, or OUT holds checkpoints and resume is off.
    """
    described = describe(source)
    checkpoints = out / "checkpoints"
    if checkpoints.exists() and any(checkpoints.iterdir()) and not resume:
        raise ConfigError(
            f"{checkpoints} holds an earlier run; resume it with --resume, or choose another --out."
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
    if chosen:
        given = {"seed": seed, "budget": budget}
        _fit(described, dataset, out, {n: v for n, v in given.items() if v is not None}, console=console)
        return
    model_config = _model(described, dataset)
    if architecture:
        model_config = model_config.replace(architecture=architecture)
    seed = train_config.seed if seed is None else seed
    train_config = train_config.replace(
        checkpoint_dir=str(checkpoints), seed=seed, epochs=epochs or train_config.epochs
    )
    if dataset.name in REFIT:
        dataset = dataset.with_validation_in_training()
    result = train(model_config, dataset, train_config, progress=True)
    metrics = evaluate(result.model, dataset, "test", buckets=train_config.long_buckets)
    save_model(
        result.model,
        out / "model",
        metrics=metrics.to_json(),
        notes={"data": dataset.name, "seed": seed, "steps": result.steps},
    )
    summary = {"test": metrics.to_json(), "history": [epoch.to_json() for epoch in result.history]}
    write_atomic(out / "metrics.json", json.dumps(summary, indent=1), begins=b"{")
    rows = {f"floor: {name}": found for name, found in floors(dataset, heads=model_config.heads[:1]).items()}
    console.print(metrics_table({**rows, model_config.architecture: metrics}))
    console.print(
        f"model in {out / 'model'}, {result.steps} steps at {result.examples_per_s:,.0f} examples/s"
    )


def _fit(
    described: Described, dataset: Dataset, out: Path, changes: dict[str, Any], *, console: Console
) -> None:
    given = {**described.arguments("fit", aif_jax.fit), **changes, "out": out}
    if "model" in described.parts:
        given["model"] = _model(described, dataset)
    if "training" in described.parts:
        given["training"] = described.settings("training", TrainConfig)
    run = aif_jax.fit(dataset, **given)
    console.print(run.report(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"run in {out}")


def _model(described: Described, dataset: Dataset) -> ModelConfig:
    """Return the model of a config; its heads are those of the data unless it names some."""
    base = None if "heads" in described.parts["model"] else ModelConfig(heads=dataset.heads)
    return described.settings("model", ModelConfig, base)


def metrics_table(rows: dict[str, Metrics]) -> Table:
    """Return quality figures of the main head as a table."""
    table = Table("on the test part", "AUC", "GAUC", "log loss")
    for name, metrics in rows.items():
        table.add_row(name, f"{metrics.auc:.4f}", f"{metrics.gauc:.4f}", f"{metrics.log_loss:.4f}")
    return table
