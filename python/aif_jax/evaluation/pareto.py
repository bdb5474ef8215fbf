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
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    if quality is None:
        quality = "frozen_gauc" if summary["frozen_history"] else "gauc"
    figure = Figure(figsize=(7.2 if len(costs) == 1 else 5.2 * len(costs), 4.6), layout="constrained")
    panels = figure.subplots(1, len(costs), squeeze=False)[0]
    drawn: list[tuple[Any, list[str], list[float], list[float]]] = []
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
        label = COSTS[cost]
        if absent := [name for name in summary["variants"] if name not in points]:
            label += f"\nwithout: {', '.join(absent)}"
        if xs and min(xs) > 0 and max(xs) > 8 * min(xs):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.15)  # names stand to the right of their points
        axis.set_xlabel(label)
        axis.set_ylabel(QUALITIES[quality])
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        drawn.append((axis, names, xs, ys))
    panels[0].set_title(f"{summary['data']}, seeds: {summary['seeds']}", loc="left", fontsize=10)
    figure.draw_without_rendering()  # only now it is known where the points lie
    for axis, names, xs, ys in drawn:
        _name(axis, names, xs, ys)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def labels_apart(
    x: Sequence[float],
    y: Sequence[float],
    widths: Sequence[float],
    height: float,
    dots: Sequence[tuple[float, float]] = (),
) -> list[float]:
    """Return where labels go so that none covers another or a dot: down from where they would stand.

    Args:
        x: left edges.
        y: where the middle of each would stand by itself; upwards is more.
        widths: of each.
        height: of all.
        dots: x and y of points that take half of a label's height to all sides.
    """
    found = list(y)
    taken = [(at - height / 2, at + height / 2, middle) for at, middle in dots]
    tight = height * (1.0 - 1e-9)  # one that just fits stays, whatever rounding makes of it
    for i in sorted(range(len(x)), key=lambda i: -y[i]):
        left, right = x[i], x[i] + widths[i]
        beside = [middle for start, end, middle in taken if start < right and left < end]
        while hit := [middle for middle in beside if abs(middle - found[i]) < tight]:
            found[i] = min(hit) - height
        taken.append((left, right, found[i]))
    return found


def _name(axis: Any, names: Sequence[str], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Write the names beside their points, with a line to those that had to make room."""
    if not names:
        return
    size, right, up = 7.0, 6.0, 6.0  # points
    scale = axis.figure.dpi / 72.0
    pixels = (axis.transData.transform(list(zip(xs, ys, strict=True))) / scale).tolist()
    lefts, wanted = [x + right for x, _ in pixels], [y + up for _, y in pixels]
    widths = [0.54 * size * len(name) for name in names]
    heights = labels_apart(lefts, wanted, widths, 1.2 * size, pixels)
    for name, x, y, (_, at), height in zip(names, xs, ys, pixels, heights, strict=True):
        moved = height < at
        axis.annotate(
            name, (x, y), xytext=(right, height - at), textcoords="offset points", fontsize=size, va="center",
            arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.5} if moved else None,
        )  # fmt: skip
