"""Picture of a study: quality against cost."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

GOOD, PLAIN = "#2a7f62", "#777777"
COSTS = {
    "request_ms": "request, ms (median)", "item_bytes": "bytes of an item row",
    "user_bytes": "bytes of a user state",
}  # fmt: skip


def frontier(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Return the points that no other beats, in order of cost.

    A point is beaten by one that costs no more and is better, or costs less and is as good.
    """
    kept: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -qualities[i])):
        if not kept or qualities[i] > qualities[kept[-1]]:
            kept.append(i)
    return kept


def pareto_plot(summary: Mapping[str, Any]) -> str:
    """Return an SVG, a panel for each cost: GAUC with frozen histories, and the line that none beats.

    Points have numbers, which a list beside the panels names; bars are the standard deviation over seeds.
    What has no such cost (an item row of a model without rows) is not in that panel.
    """
    from matplotlib.figure import Figure

    variants = summary["variants"]
    figure = Figure(figsize=(4.0 * len(COSTS) + 1.8, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(COSTS), sharey=True)
    drawn: list[tuple[Any, list[Any], list[int]]] = []
    for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
        points = []
        for number, each in enumerate(variants.values(), 1):
            found = (each["cost"] or {}).get(cost)
            if found is not None:
                x = found[1] if isinstance(found, (list, tuple)) else found
                points.append((number, x, each["frozen_gauc"]["mean"], each["frozen_gauc"]["sd"] or 0.0))
        xs, ys = [point[1] for point in points], [point[2] for point in points]
        best = frontier(xs, ys)
        axis.plot(
            [xs[i] for i in best], [ys[i] for i in best], color=GOOD, drawstyle="steps-post", linewidth=1.2
        )
        for place, (_, x, y, sd) in enumerate(points):
            axis.errorbar(x, y, yerr=sd, fmt="o", color=GOOD if place in best else PLAIN, linewidth=1)
        drawn.append((axis, points, best))
        if xs and min(xs) > 0 and max(xs) > 8 * min(xs):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:,g}")
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("GAUC, frozen histories")
    axes[0].set_title(f"{summary['data']}, seeds: {summary['seeds']}", loc="left", fontsize=10)
    listed = "\n".join(f"{number:2}  {name}" for number, name in enumerate(variants, 1))
    axes[-1].text(1.04, 1.0, listed, transform=axes[-1].transAxes, va="top", fontsize=8)
    figure.draw_without_rendering()  # only now it is known where the points lie
    for axis, points, best in drawn:
        taken: list[tuple[float, float]] = []
        for place, (number, x, y, _) in enumerate(points):
            at, up = axis.transData.transform((x, y)) * 72 / figure.dpi
            height = up + 5
            while any(abs(at - left) < 11 and abs(height - middle) < 8 for left, middle in taken):
                height -= 8  # numbers that would cover another stand below it
            taken.append((at, height))
            colour = GOOD if place in best else PLAIN
            offset = {"xytext": (5, height - up), "textcoords": "offset points", "va": "center"}
            axis.annotate(f"{number}", (x, y), fontsize=8, color=colour, **offset)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
