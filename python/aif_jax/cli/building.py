"""`aif export` and `aif index build`: the bundle and the tables of a trained model."""

from pathlib import Path
from typing import cast

from rich.console import Console

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.config import Precision
from aif_jax.data import Dataset, describe
from aif_jax.files import make_directory
from aif_jax.models.store import load_model
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.progress import progress_bar

ITEMS, BEHAVIOURS = "items.aifrows", "behaviours.aifrows"
"""Names of the two files that `aif index build` writes."""


def run_export(model: Path, out: Path, *, precision: str, score: str | None = None, console: Console) -> None:
    """Export a saved model and print which programs the bundle loads.

    Raises:
        ConfigError: there is no such precision, or ``score`` is not an expression of heads and pair features.
    """
    trained, description = load_model(model / "model" if (model / "model").is_dir() else model)
    with console.status("exporting: two programs for each of four stages"):
        bundle = export_bundle(
            trained,
            out,
            precision=cast(Precision, precision),  # checked there
            score=score,
            metrics=description["metrics"],
            notes=description["notes"],
        )
    console.print(bundle.explain(), markup=False)


def run_index_build(bundle_path: Path, data: str, out: Path, *, console: Console) -> None:
    """Build and save the item index and the behaviour table of a data set's catalogue."""
    bundle = Bundle.load(bundle_path)
    tables = tables_of(bundle, describe(data).dataset(bundle.spec.content_width), console=console)
    make_directory(out)
    tables.items.save(out / ITEMS)
    tables.behaviours.save(out / BEHAVIOURS)
    console.print(
        f"{len(tables.items):,} items in {out / ITEMS} and {out / BEHAVIOURS}, version {bundle.version[:12]}"
    )


def tables_of(bundle: Bundle, dataset: Dataset, *, console: Console) -> Tables:
    """Run the item and the behaviour program over every item of a data set, with a progress bar."""
    records = dataset.item_records(bundle.spec.content_width)
    catalogue = (records.ids, records.columns, records.content)
    with progress_bar(console=console) as bar:
        total = 2 * dataset.n_items
        task = bar.add_task("item rows", total=total)

        def first(done: int, _: int) -> None:
            bar.update(task, completed=done)

        def second(done: int, _: int) -> None:
            bar.update(task, completed=dataset.n_items + done, description="behaviour rows")

        index = ItemIndex.build(bundle, *catalogue, progress=first)
        table = BehaviourTable.build(bundle, *catalogue, progress=second)
    return Tables(index, table)
