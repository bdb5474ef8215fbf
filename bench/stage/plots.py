"""Results as pictures: contenders, growth, and the stage's parts against their floor."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from stage.contenders import HAND_ROLLED, SEQUENTIAL, STAGE, WEAKER

_STAGE, _RIVAL, _FAINT = "#0b6e4f", "#5b7c99", "#c9d3dc"
_PARTS = ("#0b6e4f", "#3d8bb1", "#e0a458", "#a6617c", "#7a7fb0", "#8c8c8c")
_LINES = {STAGE: (_STAGE, "o"), HAND_ROLLED: ("#e0a458", "s"), SEQUENTIAL: (_RIVAL, "^")}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write every picture as PNG and SVG; return the files."""
    mpl.use("Agg")
    style = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
        "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.hashsalt": "aif_jax",
    }  # fmt: skip
    written = []
    with mpl.rc_context(style):
        pictures = {"contenders": _contenders(results)}
        if len(results["cases"]) > 1:
            pictures["growth"] = _growth(results)
        if "parts" in results:
            pictures["roofline"] = _roofline(results)
        for name, figure in pictures.items():
            for kind in ("png", "svg"):
                written.append(folder / f"{name}.{kind}")
                figure.savefig(written[-1], dpi=150, bbox_inches="tight")
            plt.close(figure)
    return written


def _contenders(results: dict[str, Any]) -> Any:
    case = results["cases"][0]
    times = sorted(case["times"].items(), key=lambda pair: -pair[1]["median_ms"])
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(times) + 1.4))
    for place, (name, time) in enumerate(times):
        ours, middle = name.startswith(STAGE), time["median_ms"]
        weaker = name in WEAKER
        axes.barh(place, middle, color=_STAGE if ours else _FAINT if weaker else _RIVAL, height=0.66)
        axes.plot((time["p25_ms"], time["p75_ms"]), (place, place), color="black", linewidth=1.2)
        label = f"{middle:.1f} ms"
        if name != STAGE:
            ratio = case["ratios"][name]["median"]
            label += f", {ratio:.1f} times the stage" if ratio >= 1 else f", {ratio:.2g} of the stage"
        if weaker:
            label += "; another, weaker model"
        axes.text(max(middle, time["p75_ms"]) * 1.05, place, label, va="center", fontsize=9)
    axes.set_yticks(range(len(times)), [name for name, _ in times])
    axes.tick_params(axis="y", length=0)
    _milliseconds(axes, "x")
    low, high = min(t["median_ms"] for _, t in times), max(t["p75_ms"] for _, t in times)
    axes.set_xlim(low / 1.8, high * 4)
    axes.set_xlabel("milliseconds a request, logarithmic; the black line spans the middle half of the rounds")
    k, where = results["plan"]["workload"]["k"], results["environment"]
    axes.set_title(
        f"{case['n']:,} candidates, a history of {case['length']:,}: to the best {k}, after retrieval\n"
        f"{where['cpu']}, {where['cores']} cores"
    )
    return figure


def _growth(results: dict[str, Any]) -> Any:
    cases, (n, length) = results["cases"], results["plan"]["cases"][0]
    config = results["plan"]["workload"]["config"]
    panels = {
        "candidates, N": [(c["n"], c["times"]) for c in cases if c["length"] == length],
        "history, L": [(c["length"], c["times"]) for c in cases if c["n"] == n],
        "signature bits, b": _points(results, "signature_bits"),
        "hidden width, h": _points(results, "hidden"),
        "items of the catalogue": _points(results, "items"),
    }
    panels = {name: sorted(points, key=lambda p: p[0]) for name, points in panels.items() if len(points) > 1}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.2 * rows), sharey=True, squeeze=False
    )
    every = grid.ravel()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, points) in zip(every, panels.items(), strict=False):
        for contender, (colour, marker) in _LINES.items():
            line = [(size, t[contender]) for size, t in points if contender in t]
            if len(line) < 2:
                continue
            sizes = [size for size, _ in line]
            axes.fill_between(
                sizes, [t["p25_ms"] for _, t in line], [t["p75_ms"] for _, t in line], color=colour, alpha=0.2
            )
            axes.plot(
                sizes, [t["median_ms"] for _, t in line], color=colour, marker=marker, label=contender, ms=5
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks([size for size, _ in points], [f"{size:,}" for size, _ in points], fontsize=9)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(name)
        axes.grid(axis="y", color=_FAINT, linewidth=0.6)
        _milliseconds(axes, "y")
    for first in grid[:, 0]:
        first.set_ylabel("milliseconds a request")
    every[0].legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"Growth; unless varied N = {n:,}, L = {length:,}, b = {config['signature_bits']}, "
        f"h = {config['hidden']}; {results['plan']['workload']['items']:,} items in the panels of N and L, "
        f"{results['plan']['growth_items']:,} in the others",
        x=0.01, ha="left", fontsize=11, fontweight="bold",
    )  # fmt: skip
    figure.tight_layout()
    return figure


def _points(results: dict[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
    return [(entry[name], entry["times"]) for entry in results["growth"] if name in entry]


def _roofline(results: dict[str, Any]) -> Any:
    parts, stage = results["parts"]["float32"], results["parts"]["stage"]["median_ms"]
    figure, axes = plt.subplots(figsize=(9, 2.9))
    bars = {
        "floor": [part["floor_ms"] for part in parts],
        "parts by themselves": [part["measured"]["median_ms"] for part in parts],
    }
    for place, values in zip((2, 1), bars.values(), strict=True):
        left = 0.0
        for part, value, colour in zip(parts, values, _PARTS, strict=True):
            label = part["name"] if place == 2 else None
            axes.barh(place, value, left=left, color=colour, height=0.6, label=label)
            left += value
        axes.text(left, place, f"  {left:.2f} ms", va="center", fontsize=9)
    axes.barh(0, stage, color=_FAINT, height=0.6)
    floor = sum(bars["floor"])
    axes.text(stage, 0, f"  {stage:.2f} ms, {stage / floor:.1f} times the floor", va="center", fontsize=9)
    axes.set_yticks((2, 1, 0), [*bars, "the whole stage"])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.35 * max(stage, *(sum(values) for values in bars.values())))
    axes.set_xlabel("milliseconds")
    axes.set_title("The stage in float32 against what this machine could do at best")
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.42, -0.22), ncols=3)
    return figure


def _milliseconds(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
