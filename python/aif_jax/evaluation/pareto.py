"""Quality against cost as a picture: which variants are worth what they cost, and which are beaten."""

import io
from collections.abc import Sequence
from typing import Any

QUALITIES = {
    "frozen_gauc": "GAUC, frozen histories", "gauc": "GAUC", "auc": "AUC", "ndcg": "NDCG@10 of the ranker",
}  # fmt: skip
"""Columns of a summary that may stand on the vertical axis; more is better."""

COSTS = {
    "request_ms": "request, ms (median)",
    "item_bytes": "bytes of an item row",
    "user_bytes": "bytes of a user state",
}
"""Costs that may stand on the horizontal axis; less is better."""


def cost_of(variant: dict[str, Any], name: str) -> float | None:
    """Return one cost of a variant of a summary, the median of times; ``None`` if it was not measured."""
    found = None if variant["cost"] is None else variant["cost"][name]
    return found[1] if isinstance(found, (list, tuple)) else found


def frontier(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Return which points no other beats, in order of cost.

    A point is beaten by one that costs no more and is better, or costs less and is as good.

    Args:
        costs: less is better.
        qualities: more is better.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -qualities[i]))
    kept: list[int] = []
    for i in order:
        if not kept or qualities[i] > qualities[kept[-1]]:
            kept.append(i)
    return kept


def pareto_plot(
    summary: dict[str, Any], *, quality: str | None = None, costs: Sequence[str] = ("request_ms",)
) -> str:
    """Return an SVG, a panel for each cost: the variants, and the line of those that none beats.

    Bars are the standard deviation over the seeds. What was not measured, or does not exist (an item row of
    a model that is not served from rows), is left out of its panel and named below it.

    Args:
        summary: of `aif_jax.evaluation.table.summarise`, with costs.
        quality: one of `QUALITIES`; by default GAUC with frozen histories, where there are any then.
        costs: of `COSTS`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    if quality is None:
        quality = "frozen_gauc" if summary["frozen_history"] else "gauc"
    figure = Figure(figsize=(7.2 if len(costs) == 1 else 5.2 * len(costs), 4.6), layout="constrained")
    panels = figure.subplots(1, len(costs), squeeze=False)[0]
    for axis, cost in zip(panels, costs, strict=True):
        points = {
            name: (found, variant[quality]["mean"], variant[quality]["sd"] or 0.0)
            for name, variant in summary["variants"].items()
            if (found := cost_of(variant, cost)) is not None
        }
        names = list(points)
        xs, ys = [points[name][0] for name in names], [points[name][1] for name in names]
        best = frontier(xs, ys)
        axis.plot(
            [xs[i] for i in best], [ys[i] for i in best],
            color="#2a7f62", linewidth=1.2, drawstyle="steps-post",
        )  # fmt: skip
        for place, name in enumerate(names):
            colour = "#2a7f62" if place in best else "#777777"
            axis.errorbar(xs[place], ys[place], yerr=points[name][2], fmt="o", color=colour, linewidth=1)
            axis.annotate(name, (xs[place], ys[place]), xytext=(5, 4), textcoords="offset points", fontsize=7)
        label = COSTS[cost]
        if absent := [name for name in summary["variants"] if name not in points]:
            label += f"\nwithout: {', '.join(absent)}"
        if xs and min(xs) > 0 and max(xs) > 8 * min(xs):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.15)  # names stand to the right of their points
        axis.set_xlabel(label)
        axis.set_ylabel(QUALITIES[quality])
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    panels[0].set_title(f"{summary['data']}, seeds: {summary['seeds']}", loc="left", fontsize=10)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
