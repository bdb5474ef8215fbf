"""Latency and goodput against offered load, as a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from load.ways import Engined, Overlapped

_COLOURS = {Engined.name: "#0b6e4f", Overlapped.name: "#e0a458", "sequential": "#5b7c99"}
_FAINT = "#c9d3dc"


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write the picture as PNG and SVG; return the files."""
    mpl.use("Agg")
    style = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
        "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.hashsalt": "aif_jax",
    }  # fmt: skip
    with mpl.rc_context(style):
        figure, (latency, goodput) = plt.subplots(1, 2, figsize=(11, 4.2))
        for curve in results["open_loop"]["curves"]:
            colour, loads = _COLOURS[curve["way"]], curve["loads"]
            offered = [load["offered"] for load in loads]
            latency.plot(
                offered, [load["p50_ms"] for load in loads], color=colour, marker="o", ms=4,
                label=f"{curve['way']}, p50",
            )  # fmt: skip
            latency.plot(
                offered, [load["p99_ms"] for load in loads], color=colour, marker="^", ms=4, linestyle="--",
                label="p99",
            )  # fmt: skip
            goodput.plot(
                offered,
                [load["goodput"] for load in loads],
                color=colour,
                marker="o",
                ms=4,
                label=curve["way"],
            )
            if curve["way"] == Engined.name:
                in_full = [load["in_full"] for load in loads]
                label = "of these with everything (rung 0)"
                goodput.plot(offered, in_full, color=colour, marker="^", ms=4, linestyle="--", label=label)
            for axes in (latency, goodput):
                axes.axvline(curve["saturation"], color=colour, linewidth=0.8, linestyle=":")
        most = max(load["offered"] for curve in results["open_loop"]["curves"] for load in curve["loads"])
        goodput.plot((0, most), (0, most), color=_FAINT, linewidth=1, zorder=0)
        latency.set_yscale("log")
        latency.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        latency.yaxis.set_minor_locator(NullLocator())
        latency.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        latency.set_title("Latency of answers, ms")
        goodput.set_title("Answers in time, a second")
        for axes in (latency, goodput):
            axes.set_xlabel("requests offered a second; dotted: where a way saturates")
            axes.grid(axis="y", color=_FAINT, linewidth=0.6)
            axes.legend(frameon=False, fontsize=9)
        figure.tight_layout()
        written = [folder / f"open_loop.{kind}" for kind in ("png", "svg")]
        for path in written:
            figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)
    return written
