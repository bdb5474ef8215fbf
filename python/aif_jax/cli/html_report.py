"""The demo's report: one HTML file with its plots inside it, readable without a network."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.cli.demo_result import DemoResult, percentiles
from aif_jax.files import write_atomic
from aif_jax.timeline import as_svg

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --aif: #0b7a75; --paper: #fbfbf9; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
p.lead { color: var(--soft); margin-top: 0; white-space: pre-line; }
.cards { display: grid; gap: .8rem; margin: 1.6rem 0;
         grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.card { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.3rem; white-space: nowrap; color: var(--aif); }
.card span { color: var(--soft); font-size: .88rem; }
table { border-collapse: collapse; width: 100%; background: #fff; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; font-size: .86rem; }
tr.best td { font-weight: 600; color: var(--aif); }
tr.floor td { color: var(--soft); font-style: italic; }
svg { width: 100%; height: auto; } .note { color: var(--soft); font-size: .9rem; }
"""
AIF, SEQUENTIAL, FLOOR = "#0b7a75", "#b8860b", "#9aa3ad"


def write_report(result: DemoResult, path: Path) -> None:
    """Write `result` as one HTML page.

    Args:
        result: what the demo measured.
        path: the file to write; its folder must exist.
    """
    aif, sequential = percentiles(result.latency["aif"]), percentiles(result.latency["sequential"])
    aif_rest = percentiles(result.after_retrieval["aif"])
    sequential_rest = percentiles(result.after_retrieval["sequential"])
    cards = [
        (
            f"{sequential_rest['p50']:.1f} → {aif_rest['p50']:.1f} ms",
            "median after retrieval, sequential → AIF",
        ),
        (f"{sequential['p50']:.1f} → {aif['p50']:.1f} ms", "median of the whole request"),
        (f"{sequential['p99']:.1f} → {aif['p99']:.1f} ms", "p99 of the whole request"),
        (f"{result.hidden_ms:.1f} ms", "user side hidden behind retrieval (one request)"),
    ]
    body = [
        "<h1>aif_jax: one road, end to end</h1>",
        f'<p class="lead">{html.escape(result.dataset)}</p>',
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{v}</b><span>{c}</span></div>' for v, c in cards)
        + "</div>",
        "<h2>Quality on held-out data</h2>",
        quality_table(result.quality, result.head),
        f'<p class="note">{html.escape(result.quality_note)}</p>',
        quality_plot(result.quality),
        "<h2>Latency of the same requests, side by side</h2>",
        latency_table(
            {
                **result.latency,
                **{f"{way}, after retrieval": values for way, values in result.after_retrieval.items()},
            }
        ),
        f'<p class="note">{html.escape(result.latency_note)}</p>',
        latency_plot(result.latency),
        "<h2>One request in time</h2>",
        '<p class="note">Above, one thing after the other. Below, the user side runs while retrieval runs, '
        "and only the last stage is left when the candidates arrive. The trace beside this page opens in "
        "ui.perfetto.dev.</p>",
        as_svg(result.timelines),
        "<h2>Sizes and machine</h2>",
        _table(["what", "value"], [[k, v] for k, v in result.facts.items()]),
    ]
    write_atomic(
        path,
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>aif_jax demo</title>"
        f"<style>{STYLE}</style>"
        f"<body>{''.join(body)}</body></html>",
        begins=b"<!doctype html>",
    )


def quality_table(rows: Sequence[Mapping[str, Any]], head: str) -> str:
    """Return the quality rows as an HTML table; floors are set apart, the best model stands out."""
    trained = [r["gauc"] for r in rows if not r["floor"]]
    best = max(trained) if trained else None
    cells, classes = [], []
    for row in rows:
        cells.append(
            [
                row["model"],
                *(_figure(row.get(key), 4) for key in ("auc", "gauc", "log_loss", "hr_at_10")),
                row.get("parameters", ""),
            ]
        )
        classes.append("floor" if row["floor"] else "best" if row["gauc"] == best else "")
    return _table(["model", f"AUC ({head})", "GAUC", "log loss", "HR@10", "parameters"], cells, classes)


def latency_table(latency: Mapping[str, Sequence[float]]) -> str:
    """Return the percentiles of each way as an HTML table, in milliseconds."""
    names = ["p50", "p90", "p99", "max"]
    rows = [
        [way, *(f"{percentiles(values)[n]:.2f} ms" for n in names), str(len(values))]
        for way, values in latency.items()
    ]
    return _table(["way", *names, "requests"], rows)


def quality_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return horizontal bars of GAUC as SVG."""
    rows = [r for r in rows if r.get("gauc") is not None and np.isfinite(r["gauc"])]
    figure, axis = _figure_axis(7.2, 0.42 * len(rows) + 0.7)
    colours = [FLOOR if r["floor"] else AIF if r["model"] == "aif" else SEQUENTIAL for r in rows]
    values = [r["gauc"] for r in rows]
    axis.barh(range(len(rows)), values, color=colours, height=0.62)
    axis.set_yticks(range(len(rows)), [r["model"] for r in rows])
    axis.invert_yaxis()
    axis.set_xlim(min([*values, 0.5]) - 0.02, max(values) + 0.03)
    for y, value in enumerate(values):
        axis.text(value + 0.002, y, f"{value:.4f}", va="center", fontsize=9)
    axis.set_xlabel("GAUC (0.5 is a coin)")
    return _svg(figure)


def latency_plot(latency: Mapping[str, Sequence[float]]) -> str:
    """Return the cumulative distribution of latency of each way as SVG."""
    figure, axis = _figure_axis(7.2, 2.9)
    for way, values in latency.items():
        ordered = np.sort(np.asarray(values))
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        colour = AIF if way == "aif" else SEQUENTIAL if way == "sequential" else FLOOR
        axis.step(ordered, share, where="post", label=way, color=colour, linewidth=2)
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("latency of a request, ms")
    axis.set_ylabel("share of requests")
    axis.legend(frameon=False, loc="lower right")
    return _svg(figure)


def _figure_axis(width: float, height: float) -> tuple[Any, Any]:
    # The object interface, not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], classes: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in header)
    lines = []
    for index, row in enumerate(rows):
        css = f' class="{classes[index]}"' if classes and classes[index] else ""
        lines.append(f"<tr{css}>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
