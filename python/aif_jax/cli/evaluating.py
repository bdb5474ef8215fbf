"""`aif evaluate`: a trained model or a bundle on a data set, as a table, as JSON and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aif_jax.data import describe
from aif_jax.evaluation import (
    Estimate,
    Evaluation,
    HeadEvaluation,
    Reference,
    evaluate_model,
    open_scorer,
    picture,
)
from aif_jax.evaluation.tables import NAMES
from aif_jax.files import make_directory, write_atomic
from aif_jax.training import REFIT

_SLICED = ("auc", "gauc", "log_loss", "calibration_error")


def run_evaluation(
    path: Path,
    data: str,
    out: Path | None,
    *,
    against: Path | None,
    split: str,
    heads: Sequence[str],
    slices: Sequence[str],
    frozen_histories: bool,
    lists: int,
    candidates: int,
    rung: int,
    resamples: int,
    seed: int,
    console: Console,
) -> Evaluation:
    """Evaluate, print, and write ``evaluation.json`` and ``evaluation.svg`` to OUT.

    Args:
        path: OUT of `aif train`, which is evaluated unfolded, or a bundle, as it serves.
        data: data set, as `aif_jax.data.load` takes it.
        out: OUT; ``runs/evaluation-NAME`` by default.
        against: another of these, evaluated on the same impressions and lists.
        split: ``train``, ``validation`` or ``test``.
        heads: which; all of the model's if empty.
        slices: names of columns to cut by.
        frozen_histories: see `evaluate_model`.
        lists: candidate lists.
        candidates: in each.
        rung: of the deadline ladder, for a bundle.
        resamples: of the bootstrap.
        seed: of lists and bootstrap.
        console: where to print.

    Raises:
        AifError: a path is neither a model nor a bundle.
        ConfigError: a count or a rung is out of bounds.
        DataError: the data set does not fit.
    """
    scorer = open_scorer(path, rung=rung)
    other = None if against is None else open_scorer(against)
    width = max(each.content_width for each in (scorer, other) if each is not None)
    dataset = describe(data).dataset(width)
    if split == "test" and dataset.name in REFIT:
        dataset = dataset.with_validation_in_training()  # as `aif train` trained
    if split == "validation" and dataset.name in REFIT:
        console.print(f"`aif train` trains on the validation part of {dataset.name} too", style="yellow")
    form = "the unfolded model" if scorer.form == "unfolded" else f"{scorer.form}, as it serves"
    console.print(f"[bold]{scorer.name}[/] on the {split} part of {dataset.name}: {form}", highlight=False)
    found = evaluate_model(
        scorer, dataset, split,
        against=other, heads=heads, slices=slices, frozen_histories=frozen_histories, lists=lists,
        candidates=candidates, resamples=resamples, seed=seed,
    )  # fmt: skip
    for name, head in found.heads.items():
        console.print()
        for table in tables(name, head, "" if other is None else other.name):
            console.print(table)
    out = Path("runs") / f"evaluation-{scorer.name}" if out is None else out
    make_directory(out)
    found.write(out / "evaluation.json")
    write_atomic(out / "evaluation.svg", picture(found), begins=b"<")
    console.print(f"\nwrote  {out / 'evaluation.json'}\nwrote  {out / 'evaluation.svg'}", highlight=False)
    return found


def tables(name: str, head: HeadEvaluation, other: str) -> list[Table]:
    """Return the metrics beside the references, and the slices, for the terminal.

    Args:
        name: of the head.
        head: what was measured.
        other: name of the other model; empty without one.
    """
    names = {key: other if each.kind == "model" else f"floor: {key}" for key, each in head.references.items()}
    whole = Table(
        f"head {name}", *(NAMES.get(metric, metric.upper()) for metric in head.metrics),
        title=f"{head.impressions:,} impressions of {head.users:,} users, {head.positive:.1%} positive; "
        f"{head.lists:,} lists of {head.candidates:.0f} candidates",
        caption="± standard error over users; in brackets: the model minus that, with the paired error",
        title_justify="left", caption_justify="left", show_lines=True,
    )  # fmt: skip
    whole.add_row("model", *map(_figure, head.metrics.values()), style="bold")
    for key, each in head.references.items():
        whole.add_row(names[key], *(_beside(each, metric) for metric in head.metrics))
    compared = list(head.slices[0].difference) if head.slices else []
    cut = Table(
        "slice",
        "impressions",
        "users",
        *(NAMES[metric] for metric in _SLICED),
        *(f"GAUC minus {names[key]}" for key in compared),
    )
    for part, before in zip(head.slices, [None, *head.slices], strict=False):
        if before is None or before.dimension != part.dimension:
            cut.add_section()
            cut.add_row(part.dimension, style="bold")
        cut.add_row(
            f"  {part.name}", f"{part.impressions:,}", f"{part.users:,}",
            *(_figure(part.metrics.get(metric), " ") for metric in _SLICED),
            *(_signed(part.difference[key].get("gauc"), " ") for key in compared),
        )  # fmt: skip
    agreement = Table(f"agreement with {other}", "mean over lists")
    for each in head.references.values():
        for what, value in each.agreement.items():
            agreement.add_row(what, _figure(value, " "))
    return [whole, cut, *([agreement] if agreement.row_count else [])]


def _beside(reference: Reference, metric: str) -> str:
    if metric not in reference.metrics:
        return "-"
    gap = _signed(reference.difference.get(metric))
    return f"{reference.metrics[metric].value:.4f}" + (f"\n({gap})" if gap else "")


def _figure(found: Estimate | None, between: str = "\n") -> str:
    if found is None or not math.isfinite(found.value):
        return "-"
    return f"{found.value:.4f}{_error(found, between)}"


def _signed(found: Estimate | None, between: str = "\n") -> str:
    if found is None or not math.isfinite(found.value):
        return ""
    return f"{found.value:+.4f}{_error(found, between)}"


def _error(found: Estimate, between: str) -> str:
    return f"{between}± {found.standard_error:.4f}" if math.isfinite(found.standard_error) else ""
