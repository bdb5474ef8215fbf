"""Pictures that no program draws by itself: distributions of latency, and the memory of an item."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from load.ways import Engined, Overlapped

STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.hashsalt": "aif_jax",
}  # fmt: skip
_COLOURS = {Engined.name: "#0b6e4f", Overlapped.name: "#e0a458", "sequential": "#5b7c99"}
_PARTS = {"payload": "#0b6e4f", "padding": "#c9d3dc", "table": "#e0a458"}
_WORDS = {"payload": "its values", "padding": "alignment", "table": "table of keys"}
HALF = 0.5


def latencies(open_loop: dict[str, Any], file: Path) -> Path:
    """Draw which share of requests is answered within a time, at about half of what each way can serve."""
    mpl.use("Agg")
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 3.8))
        for curve in open_loop["curves"]:
            load = min(curve["loads"], key=lambda load: abs(load["share"] - HALF))
            shares, ms = zip(*load["latency_ms"], strict=True)
            label = f"{curve['way']}, {load['offered']:.0f} requests a second"
            axes.plot(ms, [100 * share for share in shares], color=_COLOURS[curve["way"]], label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, 101)
        axes.set_xlabel("milliseconds from when a request was due, logarithmic")
        axes.set_title("Requests answered within a time, %")
        axes.grid(color="#c9d3dc", linewidth=0.6)
        # Below: curves may be anywhere.
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return file


def memory(held: list[dict[str, Any]], file: Path) -> Path:
    """Draw the bytes that the index takes for an item, by precision."""
    mpl.use("Agg")
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 0.5 * len(held) + 1.3))
        for place, one in enumerate(reversed(held)):
            left = 0.0
            for part, colour in _PARTS.items():
                axes.barh(
                    place, one[part], left=left, color=colour, height=0.6,
                    label=_WORDS[part] if place == 0 else None,
                )  # fmt: skip
                left += one[part]
            gigabytes = one["total"] * 1e6 / 1e9
            text = f"  {one['total']:.0f} bytes: {gigabytes:.2f} GB for a million items"
            axes.text(left, place, text, va="center", fontsize=9)
        axes.set_yticks(range(len(held)), [one["precision"] for one in reversed(held)])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.5 * max(one["total"] for one in held))
        axes.set_xlabel("bytes")
        axes.set_title(f"Memory of an item, in an index of {held[0]['items']:,} items")
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.4, -0.35), ncols=3)
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return file
