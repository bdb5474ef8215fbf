"""The page and the picture of what requests notice of publishes."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from bars.lines import BARS
from load.tables import table, where


def page(results: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    found, plan = results["publish"], results["plan"]
    rows = [
        [name, str(times["requests"]), *(f"{times[q]:.1f}" for q in ("p50", "p99", "p99.9", "max"))]
        for name, times in found["phases"].items()
    ]
    users = found["users"]
    by = f"by {users} users in turns, whose states are cached" if users else "every one by a new user"
    ratio = found["phases"]["during"]["p99"] / found["phases"]["before"]["p99"]
    took = [swap["end_s"] - swap["start_s"] for swap in found["swaps"]]
    warmed = sum(swap["warmed"] for swap in found["swaps"])
    sentences = [
        f"{plan['items']:,} items, {plan['candidates']:,} candidates, history of {plan['long_length']:,}, "
        f"the best {plan['k']}. {found['rate']:g} requests a second for {found['seconds']:g} s, Poisson, "
        f"{by}; retrieval is a coroutine that sleeps 10 ms.",
        f"{found['published']} publishes in the middle third, of two bundles with tables of their own in "
        f"turns, each with 4 golden requests and up to {found['warm']} states computed ahead ({warmed} in "
        f"all); one took {min(took):.2f} to {max(took):.2f} s. Programs were compiled before: the bundles "
        "share an architecture.",
    ]
    promise = BARS["publish_p99"]
    bar = (
        f"Bar: p99 during a publish at most {promise.needed} times that before, reach for {promise.reach}: "
        f"**{ratio:.2f}, {promise.outcome(ratio)}**. Failed or mixed answers: {len(found['faults'])} of "
        f"{len(found['done'])}; each was compared, bit by bit, with that of an engine that serves its "
        "version only."
    )
    lines = [
        f"# Publishes under load, {results['environment']['date'][:10]}",
        "",
        where(results["environment"]),
        "",
        " ".join(sentences),
        "",
        bar,
        "",
        "Milliseconds from when a request was due:",
        "",
        table(["requests", "number", "p50", "p99", "p99.9", "max"], rows),
        "",
    ]
    return "\n".join(lines)


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write the picture as PNG and SVG; return the files."""
    mpl.use("Agg")
    found = results["publish"]
    versions = sorted({version for _, _, version in found["done"]})
    style = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
        "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.hashsalt": "aif_jax",
    }  # fmt: skip
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(11, 3.8))
        for swap in found["swaps"]:
            axes.axvspan(swap["start_s"], swap["end_s"], color="#f3d9b1", linewidth=0, zorder=0)
        for version, colour in zip(versions, ("#0b6e4f", "#5b7c99"), strict=False):
            points = np.array([(due, ms) for due, ms, by in found["done"] if by == version])
            axes.plot(*points.T, ".", ms=2.5, color=colour, label=f"answered by {version[:8]}")
        axes.set_ylim(0)
        axes.set_xlabel("seconds; shaded while a publish is under way")
        axes.set_title("Latency of requests, ms")
        axes.legend(frameon=False, fontsize=9, markerscale=4)
        figure.tight_layout()
        files = [folder / "publish.png", folder / "publish.svg"]
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)
    return files
