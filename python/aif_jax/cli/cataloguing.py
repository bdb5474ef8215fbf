"""`aif index build --catalogue`: from Parquet files to what the engine loads, a batch at a time in memory."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from aif_jax.bundle import Bundle
from aif_jax.cli.building import BEHAVIOURS, ITEMS
from aif_jax.integrations.parquet import catalogue_batches, catalogue_rows
from aif_jax.nearline import BehaviourTable, BuildProgress, BuildReport, ItemIndex, build_snapshot


def run_catalogue_build(
    bundle_path: Path, catalogue: Path, out: Path, *, most_bad: float, console: Console
) -> None:
    """Build the item index and the behaviour table of a catalogue, going on with what a killed run left.

    Raises:
        DataError: there are no such files, or they are not as `aif_jax.integrations.parquet` says.
        ItemIndexError: too many items are bad, or what was left is of something else.
    """
    bundle = Bundle.load(bundle_path)
    total = catalogue_rows(catalogue)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        for kind, name in ((ItemIndex, ITEMS), (BehaviourTable, BEHAVIOURS)):
            what = kind.kind.replace("_", " ")
            task = bar.add_task(what, total=total, rate="")
            report = build_snapshot(
                kind, bundle, catalogue_batches(catalogue), out / name,
                total=total, most_bad=most_bad, progress=_shown(bar, task),
            )  # fmt: skip
            console.print(f"{what}: {_said(report)}, in {out / name}", highlight=False)
    console.print(f"version {bundle.version[:12]}", highlight=False)


def _shown(bar: Progress, task: TaskID) -> Callable[[BuildProgress], None]:
    def show(step: BuildProgress) -> None:
        bar.update(task, completed=step.rows + step.bad, rate=f"{step.rate:,.0f} items/s")

    return show


def _said(report: BuildReport) -> str:
    said = f"{report.rows:,} rows in {report.seconds:.1f} s"
    if report.resumed:
        said += f", {report.resumed:,} of them left by a run before"
    if report.bad:
        first, reason = report.named[0]
        said += (
            f"; {report.bad.total():,} items set aside ({dict(report.bad)}), the first {first!r}: {reason}"
        )
    return said
