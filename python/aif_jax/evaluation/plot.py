"""The table of a study as a picture: what each variant is worth beside the model, with its paired error."""

import io
from typing import Any


def gauc_plot(summary: dict[str, Any]) -> str:
    """Return an SVG: the difference of GAUC of each variant to the model, 95 % intervals, best on top."""
    from matplotlib.figure import Figure

    found = {
        name: variant["gauc_against"]
        for name, variant in summary["variants"].items()
        if variant["gauc_against"] is not None
    }
    names = sorted(found, key=lambda name: found[name]["value"])
    figure = Figure(figsize=(7.2, 1.1 + 0.32 * len(names)), layout="constrained")
    axis = figure.add_subplot()
    for place, name in enumerate(names):
        gap = found[name]
        colour = "#2a7f62" if gap["low"] > 0 else "#b5483a" if gap["high"] < 0 else "#777777"
        axis.plot([gap["low"], gap["high"]], [place, place], color=colour, linewidth=2.2)
        axis.plot(gap["value"], place, "o", color=colour, markersize=6)
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel(f"GAUC minus that of {summary['against']} (95 % of resampled users and seeds)")
    axis.set_title(f"{summary['data']}, {summary['seeds']} seeds", loc="left", fontsize=10)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
