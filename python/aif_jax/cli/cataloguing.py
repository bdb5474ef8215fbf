"""`aif index build --catalogue`: the tables of Parquet files, a batch at a time in memory."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from aif_jax.bundle import Bundle
from aif_jax.cli.building import BEHAVIOURS, ITEMS
from aif_jax.integrations.parquet import catalogue_batches, catalogue_rows
from aif_jax.nearline import BehaviourTable, BuildProgress, BuildReport, ItemIndex, build_snapshot
from aif_jax.progress import progress_bar


def run_catalogue_build(
    bundle_path: Path, catalogue: Path, out: Path, *, most_bad: float, console: Console
) -> None:
    """Build the item index and the behaviour table of a catalogue; a killed run is resumed.

    Raises:
        DataError: there are no such files, or not in the format of `aif_jax.integrations.parquet`.
        ItemIndexError: too many items are bad, or the files of the killed run belong to another build.
    """
    bundle = Bundle.load(bundle_path)
    total = catalogue_rows(catalogue)
    with progress_bar("{task.fields[rate]}", console=console) as bar:
        for table, name in ((ItemIndex, ITEMS), (BehaviourTable, BEHAVIOURS)):
            title = table.kind.replace("_", " ")
            task = bar.add_task(title, total=total, rate="")
            report = build_snapshot(
                table, bundle, catalogue_batches(catalogue), out / name,
                total=total, max_bad_share=most_bad, progress=_shown(bar, task),
            )  # fmt: skip
            console.print(f"{title}: {_summary(report)}, in {out / name}", highlight=False)
    console.print(f"version {bundle.version[:12]}", highlight=False)


def _shown(bar: Progress, task: TaskID) -> Callable[[BuildProgress], None]:
    def show(step: BuildProgress) -> None:
        bar.update(task, completed=step.rows + step.bad, rate=f"{step.rate:,.0f} items/s")

    return show


def _summary(report: BuildReport) -> str:
    summary = f"{report.rows:,} rows in {report.seconds:.1f} s"
    if report.resumed:
        summary += f", {report.resumed:,} of them by an earlier run"
    if report.bad:
        first, reason = report.named[0]
        summary += (
            f"; {report.bad.total():,} items set aside ({dict(report.bad)}), the first {first!r}: {reason}"
        )
    return summary
