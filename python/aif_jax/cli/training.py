"""`aif train`: a model of one architecture on one data set, saved with its metrics."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aif_jax.cli.fields import load_for, read_fields
from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.files import write_atomic
from aif_jax.models.store import save_model
from aif_jax.training import REFIT, evaluate, floors, preset, train
from aif_jax.training.evaluate import Metrics


def run_training(
    data: str,
    out: Path,
    *,
    architecture: str,
    config: Path | None,
    epochs: int | None,
    seed: int,
    resume: bool,
    console: Console,
) -> None:
    """Train, evaluate on the test part, and save.

    Raises:
        ConfigError: a field of the config is unknown or invalid, or OUT holds checkpoints and resume is off.
    """
    fields = read_fields(config)
    dataset = load_for(data, fields)
    model_config, train_config = preset(dataset.name, architecture)
    model_config = ModelConfig.from_json({**model_config.to_json(), **fields})
    checkpoints = out / "checkpoints"
    if checkpoints.exists() and any(checkpoints.iterdir()) and not resume:
        raise ConfigError(
            f"{checkpoints} holds an earlier run; resume it with --resume, or choose another --out."
        )
    train_config = train_config.replace(checkpoint_dir=str(checkpoints), seed=seed)
    if epochs is not None:
        train_config = train_config.replace(epochs=epochs)
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
    console.print(metrics_table({**rows, architecture: metrics}))
    console.print(
        f"model in {out / 'model'}, {result.steps} steps at {result.examples_per_s:,.0f} examples/s"
    )


def metrics_table(rows: dict[str, Metrics]) -> Table:
    """Return quality figures of the main head as a table."""
    table = Table("on the test part", "AUC", "GAUC", "log loss")
    for name, metrics in rows.items():
        table.add_row(name, f"{metrics.auc:.4f}", f"{metrics.gauc:.4f}", f"{metrics.log_loss:.4f}")
    return table
