"""`aif evaluate`: variants of the model beside each other, as JSON, as a table and as a picture."""

import datetime
import importlib.metadata
import json
from pathlib import Path

from rich.console import Console

from aif_jax.cli.training import read_fields
from aif_jax.config import ModelConfig
from aif_jax.data import load
from aif_jax.errors import ConfigError
from aif_jax.evaluation.plot import gauc_plot
from aif_jax.evaluation.study import Row, Study
from aif_jax.evaluation.table import markdown, summarise
from aif_jax.evaluation.variants import chosen
from aif_jax.machine import cores, cpu_model


def run_evaluation(
    data: str,
    out: Path,
    *,
    variants: str,
    seeds: int,
    epochs: int | None,
    config: Path | None,
    lists: int,
    console: Console,
) -> None:
    """Train what is missing and write ``table.json``, ``table.md`` and ``gauc.svg`` to OUT.

    Raises:
        ConfigError: a variant or a field is unknown, or OUT holds another study.
    """
    changes = {} if config is None else read_fields(config)
    if unknown := sorted(changes.keys() - ModelConfig().to_json().keys()):
        raise ConfigError(f"{config}: {unknown} are no ModelConfig fields.")
    study = Study(load(data), out, chosen(variants), seeds=seeds, epochs=epochs, lists=lists, changes=changes)

    def told(row: Row, number: int, total: int) -> None:
        survivors = row.retention["survivors"]["10@100"]
        console.print(
            f"{number:3} of {total}  {row.variant:20} seed {row.seed}  GAUC {row.metrics.gauc:.4f}  "
            f"AUC {row.metrics.auc:.4f}  10 of 100 {survivors:.3f}  {row.examples_per_s:,.0f} examples/s",
            highlight=False,
        )

    rows = study.run(told)
    summary = summarise(study, rows)
    where = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cores": cores(),
        "jax": importlib.metadata.version("jax"),
        "aif_jax": importlib.metadata.version("aif_jax"),
    }
    (out / "table.json").write_text(json.dumps({**summary, "where": where}, indent=1), encoding="utf-8")
    text = markdown(summary)
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "gauc.svg").write_text(gauc_plot(summary), encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"table  {out / 'table.md'}, {out / 'table.json'}\nplot   {out / 'gauc.svg'}")
