"""Picture of an evaluation: reliability, metrics beside floors, and slices, with their errors."""

import io
import math
from typing import Any

from aif_jax.checks import typed
from aif_jax.evaluation.evaluation import AGAINST, Evaluation, HeadEvaluation, Reference, SliceEvaluation
from aif_jax.evaluation.paired import Estimate
from aif_jax.extras import needs

MODEL, OTHER, FLOOR, GRID = "#0b7a75", "#b8860b", "#7b8794", "#dfe4ea"
SHOWN = {"auc": "AUC", "gauc": "GAUC", "ndcg@10": "NDCG@10"}
"""Metrics that stand beside those of the floors."""

LEAST_USERS = 10
"""Users with a positive and a negative that a slice must have to be drawn; the others are in the JSON."""

_ROW, _LEAST = 0.235, 6.6  # inches: of a slice, and of a head


@typed
def picture(evaluation: Evaluation, *, format: str = "svg") -> bytes:
    """Return a picture, a band for each head.

    Left: predicted against observed probabilities; the metrics beside those of the floors and of the other
    model. Right: GAUC in the slices. Bars are 95 % intervals of a bootstrap over users.

    Args:
        evaluation: of `evaluate_model`.
        format: ``svg`` or ``png``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    needs("matplotlib", what="picture")
    from matplotlib.figure import Figure

    heights = [max(_LEAST, _ROW * _lines(head) + 1.6) for head in evaluation.heads.values()]
    figure = Figure(figsize=(13, sum(heights) + 0.7), layout="constrained", facecolor="white", dpi=110)
    figure.get_layout_engine().set(hspace=0.04, w_pad=0.1)  # type: ignore[union-attr]
    against = "".join(f", against {_name(other)}" for other in evaluation.against.values())
    frozen = ", frozen histories" if evaluation.data["frozen_histories"] else ""
    figure.suptitle(
        f"{_name(evaluation.model)}{against}\n"
        f"{evaluation.data['name']}, {evaluation.data['split']} part{frozen}",
        fontsize=12, x=0.01, ha="left",
    )  # fmt: skip
    bands = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for band, (name, head) in zip(bands, evaluation.heads.items(), strict=True):
        band.suptitle(
            f"head {name}: {head.impressions:,} impressions of {head.users:,} users, "
            f"{head.positive:.1%} positive",
            fontsize=11, x=0.01, ha="left", color="#333333",
        )  # fmt: skip
        left, right = band.subfigures(1, 2, width_ratios=(1.0, 1.0))
        above, below = left.subfigures(2, 1, height_ratios=(1.25, 1.0))
        _reliability(above.subplots(), head)
        _metrics(below, head)
        _slices(right.subplots(), head)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def _name(about: Any) -> str:
    rung = f", rung {about['rung']}" if about["rung"] else ""
    precision = "" if about["precision"] == "float32" else f", {about['precision']}"
    return f"{about['name']} ({about['architecture']}, {about['form']}{precision}{rung})"


def _label(name: str, reference: Reference, floor: str = "") -> str:
    return "other model" if name == AGAINST else name if reference.kind == "model" else floor + name


def _reliability(axis: Any, head: HeadEvaluation) -> None:
    others = [(_label(name, r), r.bins, OTHER) for name, r in head.references.items() if r.bins]
    most = 0.0
    for label, bins, colour in [*others, ("model", head.bins, MODEL)]:
        xs, ys = [each.predicted for each in bins], [each.observed.value for each in bins]
        errors = [_sides(each.observed) for each in bins]
        axis.errorbar(
            xs, ys, yerr=list(zip(*errors, strict=True)), fmt="o-", color=colour, markersize=4.5,
            linewidth=1.1, elinewidth=1.0, label=label,
        )  # fmt: skip
        most = max([most, *xs, *(y + up for y, (_, up) in zip(ys, errors, strict=True))])
    most = min(1.0, most * 1.06)
    axis.plot([0, most], [0, most], color="#555555", linewidth=0.9, linestyle=(0, (4, 3)), label="calibrated")
    axis.set_xlim(0, most)
    axis.set_ylim(0, most)
    axis.set_xlabel("mean predicted probability of a bin")
    axis.set_ylabel("share of positives")
    error = head.metrics["calibration_error"].value
    axis.set_title(
        f"Calibration: expected error (ECE) {error:.4f}, in {len(head.bins)} bins of about "
        f"{head.impressions // len(head.bins):,} impressions",
        loc="left", fontsize=10,
    )  # fmt: skip
    axis.legend(frameon=False, loc="upper left", fontsize=8.5)
    _plain(axis, "both")


def _metrics(band: Any, head: HeadEvaluation) -> None:
    shown = {key: label for key, label in SHOWN.items() if key in head.metrics}
    rows = [("model", head.metrics, MODEL)]
    rows += [
        (
            _label(name, each),
            each.metrics,
            OTHER if each.kind == "model" else FLOOR,
        )
        for name, each in sorted(head.references.items(), key=lambda pair: pair[1].kind == "floor")
    ]
    axes = band.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, (key, label) in zip(axes, shown.items(), strict=True):
        for place, (_, metrics, colour) in enumerate(rows):
            found = metrics[key]
            low, up = _sides(found)
            axis.errorbar(
                found.value, place, xerr=[[low], [up]], fmt="o", color=colour, markersize=5, elinewidth=1.8
            )
            axis.annotate(
                f"{found.value:.4f}", (found.value, place), xytext=(0, 5), textcoords="offset points",
                ha="center", fontsize=7.5, color=colour,
            )  # fmt: skip
        axis.set_title(label, loc="left", fontsize=10)
        axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.75)
        axis.margins(x=0.22)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        _plain(axis, "x")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)


def _drawn(head: HeadEvaluation) -> list[SliceEvaluation]:
    """Return the slices of enough users for an interval of their GAUC."""
    return [each for each in head.slices if each.users_with_both >= LEAST_USERS]


def _lines(head: HeadEvaluation) -> int:
    return len(_drawn(head)) + len({each.dimension for each in _drawn(head)})


def _slices(axis: Any, head: HeadEvaluation) -> None:
    """Draw GAUC of the model in each slice, and where the best floor and the other model stand."""
    names: list[str] = []
    heads: list[int] = []
    dimension, drawn = "", set()
    for each in _drawn(head):
        if each.dimension != dimension:
            dimension = each.dimension
            heads.append(len(names))
            names.append(dimension)
        place, found = len(names), each.metrics["gauc"]
        names.append(f"{each.name}   ({each.impressions:,})")
        for name, difference in each.difference.items():
            kind = head.references[name].kind
            label = _label(name, head.references[name], "floor: ")
            gap = difference["gauc"].value
            axis.plot(
                found.value - gap, place, marker="D" if kind == "model" else "|", linestyle="",
                color=OTHER if kind == "model" else FLOOR, markersize=4 if kind == "model" else 9,
                markeredgewidth=1.6, label=label if label not in drawn else None,
            )  # fmt: skip
            drawn.add(label)
        low, up = _sides(found)
        axis.errorbar(
            found.value, place, xerr=[[low], [up]], fmt="o", color=MODEL, markersize=5, elinewidth=1.8,
            label="model" if "model" not in drawn else None,
        )  # fmt: skip
        drawn.add("model")
    whole = head.metrics["gauc"].value
    axis.axvline(whole, color=MODEL, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axis.set_yticks(range(len(names)), names)
    for place in heads:
        axis.get_yticklabels()[place].set_fontweight("bold")
    axis.set_ylim(len(names) - 0.4, -0.8)
    axis.set_xlabel("GAUC; dashed: the whole part; in brackets: impressions")
    axis.set_title("GAUC by slice", loc="left", fontsize=10, pad=24)
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, fontsize=8.5)
    axis.tick_params(axis="y", length=0, labelsize=8.5)
    _plain(axis, "x")
    axis.spines["left"].set_visible(False)


def _sides(found: Estimate) -> tuple[float, float]:
    """Return the lengths of the two sides of an interval; 0 without one."""
    if not math.isfinite(found.low):
        return 0.0, 0.0
    return max(found.value - found.low, 0.0), max(found.high - found.value, 0.0)


def _plain(axis: Any, grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
