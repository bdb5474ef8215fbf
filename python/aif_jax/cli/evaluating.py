"""`aif evaluate`: variants of the model beside each other, as JSON, as a table and as a picture."""

import json
from functools import partial
from pathlib import Path

from rich.console import Console

from aif_jax.cli.fields import load_for, read_fields
from aif_jax.errors import ConfigError
from aif_jax.evaluation.cost import Cost, measure_costs
from aif_jax.evaluation.cost_file import read_costs, write_costs
from aif_jax.evaluation.curves import curve as curve_of
from aif_jax.evaluation.pareto import COSTS, pareto_plot
from aif_jax.evaluation.plot import gauc_plot
from aif_jax.evaluation.row import Row
from aif_jax.evaluation.search import settings_variants
from aif_jax.evaluation.study import Study
from aif_jax.evaluation.table import markdown, summarise
from aif_jax.evaluation.variants import chosen
from aif_jax.evaluation.where import in_words, where
from aif_jax.evaluation.whole_file import write_whole
from aif_jax.training import can_sample, preset


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
    rows: Path | None = None,
    curve: str | None = None,
    search: str | None = None,
    cost: bool = False,
    judge: str = "impressions",
) -> None:
    """Train what is missing and write ``table.json``, ``table.md`` and ``gauc.svg`` to OUT.

    Args:
        data: data set, as `aif_jax.data.load` takes it.
        out: OUT.
        variants: names separated by commas, or ``all``; not read if there is a ``curve`` or a ``search``.
        seeds: trainings of each.
        epochs: instead of the preset's.
        config: JSON file of `ModelConfig` fields that differ from the preset in all rows.
        lists: candidate lists for retention.
        console: where to print.
        rows: folder of finished rows, instead of OUT/rows: those of this study are taken as they are, new
            ones come to them.
        curve: one of `aif_jax.evaluation.curves.CURVES`; names of files begin with ``curve-NAME-`` then.
        search: settings of training to compare on the validation part, the test part taken out: see
            `aif_jax.evaluation.search.settings_variants`. Names of files begin with ``search-`` then, and
            what is kept stands under OUT/search.
        cost: measure what serving costs, of all anew, since times of two runs do not compare. It is kept in
            ``cost.json``; with costs there is a picture of quality against cost, ``pareto.svg``.
        judge: which ranker judges what is kept, one of `aif_jax.evaluation.judges.JUDGES`.

    Raises:
        ConfigError: a variant, a curve, a setting, a judge or a field is unknown, both a curve and a search
            are wanted, or a row, or costs, that are there are of another study.
        DataError: the file of a row, or that of costs, is broken.
    """
    changes = read_fields(config)
    if curve is not None and search is not None:
        raise ConfigError(f"got curve {curve!r} and search {search!r}, expected one of them at most.")
    dataset = load_for(data, changes)
    model, training = preset(dataset.name)
    model = model.replace(**changes)
    if curve is not None:
        compared, prefix = curve_of(curve, model, dataset), f"curve-{curve}-"
    elif search is not None:
        training = training if epochs is None else training.replace(epochs=epochs)
        compared, prefix = settings_variants(search, model, training, dataset), "search-"
    else:
        compared, prefix = chosen(variants, sampled=can_sample(dataset.schema, model)), ""
    study = Study(
        dataset,
        out if search is None else out / "search",
        compared,
        seeds=seeds,
        split="test" if search is None else "validation",
        rows=rows,
        epochs=epochs,
        lists=lists,
        changes=changes,
        judge=judge,
    )

    def told(row: Row, number: int, total: int, kept: bool) -> None:
        survivors = row.retention["survivors"]["10@100"]
        how = f"kept, of {in_words(row.made)}" if kept else f"{row.examples_per_s:,.0f} examples/s"
        console.print(
            f"{number:3} of {total}  {row.variant:20} seed {row.seed}  GAUC {row.metrics.gauc:.4f}  "
            f"AUC {row.metrics.auc:.4f}  10 of 100 {survivors:.3f}  {how}",
            highlight=False,
        )

    out.mkdir(parents=True, exist_ok=True)
    found = study.run(told)
    costs = _costs(study, out / f"{prefix}cost.json", measure=cost, console=console)
    summary = summarise(study, found, costs)
    text = markdown(summary)
    files = {
        f"{prefix}table.md": text,
        f"{prefix}table.json": json.dumps({**summary, "where": where()}, indent=1),
        f"{prefix}gauc.svg": gauc_plot(summary),
    }
    if costs:
        panels = ("request_ms",) if curve is None else tuple(COSTS)
        files[f"{prefix}pareto.svg"] = pareto_plot(summary, costs=panels)
    for name, content in files.items():
        write_whole(out / name, content.encode())
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print("\n".join(f"wrote  {out / name}" for name in files), highlight=False)


def _costs(study: Study, path: Path, *, measure: bool, console: Console) -> dict[str, Cost]:
    """Return what serving costs: measured now, or before, or not at all."""
    if measure:
        told = partial(console.print, highlight=False)
        costs = measure_costs(study.dataset, study.model, study.variants, step=told)
        write_costs(path, study, costs)
        return costs
    return read_costs(path, study)
