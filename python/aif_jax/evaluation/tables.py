"""A short table of an evaluation: chance, floors, other models and the model, and what it gains over them."""

import io
import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aif_jax.evaluation.evaluation import CHANCE, Evaluation, HeadEvaluation
from aif_jax.evaluation.paired import Estimate

WIDTH = 110
"""Columns of a report at most."""
NAMES = {
    "auc": "AUC", "gauc": "GAUC", "gauc_by_request": "GAUC by\nrequest", "hr@10": "HR@10", "hr@50": "HR@50",
    "ndcg@10": "NDCG@10", "mrr": "MRR", "log_loss": "log\nloss", "calibration_error": "ECE",
}  # fmt: skip
"""Metrics of a report in their order, as a table heads them; others are their names in capitals."""
_COMPARED = ("auc", "gauc", "hr@10", "mrr")


def summary(evaluation: Evaluation) -> list[Table]:
    """Return two tables a head: metrics of everything, and paired differences."""
    found = []
    for name, head in evaluation.heads.items():
        found += [_metrics(evaluation, name, head), _differences(evaluation, head)]
    return found


def as_text(*tables: Table) -> str:
    """Return tables as plain text of at most 110 columns."""
    out = io.StringIO()
    # A notebook would show the tables itself, and leave the text empty.
    console = Console(file=out, width=WIDTH, color_system=None, force_jupyter=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def best_floor(head: HeadEvaluation) -> str:
    """Return the name of the best floor by GAUC; by AUC where no user has both classes."""
    measure = "gauc" if math.isfinite(head.metrics["gauc"].value) else "auc"
    floors = {n: each.metrics[measure].value for n, each in head.references.items() if each.kind == "floor"}
    return max((name for name in floors if name != CHANCE), key=lambda name: floors[name])


def _metrics(evaluation: Evaluation, name: str, head: HeadEvaluation) -> Table:
    lists = f"; {head.lists:,} lists of {head.candidates:.0f} candidates" if head.lists else ""
    table = Table(
        title=f"{name} in the {evaluation.data['split']} part: {head.impressions:,} impressions of "
        f"{head.users:,} users, {head.positive:.1%} positive{lists}",
        title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1),
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    shown = {metric: words for metric, words in NAMES.items() if metric in head.metrics}
    for words in shown.values():
        table.add_column(words, justify="right")
    rows = {"chance": head.references[CHANCE]}
    rows |= {key: each for key, each in head.references.items() if each.kind == "floor" and key != CHANCE}
    rows |= {key: head.references[key] for key in evaluation.against}
    for key, each in rows.items():
        table.add_row(key, *(_figure(each.metrics.get(metric)) for metric in shown))
    own = (_figure(head.metrics[metric]) for metric in shown)
    table.add_row(evaluation.model["name"], *own, style="bold")
    return table


def _differences(evaluation: Evaluation, head: HeadEvaluation) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column(f"{evaluation.model['name']} minus (last: best floor)", no_wrap=True)
    shown = [metric for metric in _COMPARED if metric in head.metrics]
    for metric in shown:
        table.add_column(NAMES[metric], justify="right", no_wrap=True)
    for key in [*evaluation.against, best_floor(head)]:
        table.add_row(key, *(_signed(head.references[key].difference.get(metric)) for metric in shown))
    return table


def _figure(found: Estimate | None) -> str:
    return "-" if found is None or not math.isfinite(found.value) else f"{found.value:.4f}"


def _signed(found: Estimate | None) -> str:
    if found is None or not math.isfinite(found.value):
        return "-"
    error = f" ±{found.standard_error:.4f}" if math.isfinite(found.standard_error) else ""
    return f"{found.value:+.4f}{error}"
