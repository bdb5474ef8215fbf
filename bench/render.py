"""Pages of results: Markdown for a record, one HTML page for a report, pictures by matplotlib."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markdown_it import MarkdownIt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

COLOURS = {"ours": "#0b6e4f", "rival": "#5b7c99", "by hand": "#e0a458", "weaker": "#c9d3dc"}
_STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.hashsalt": "aif_jax",
}  # fmt: skip
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["html.j2"])
)

Held = Mapping[str, Any]
"""A result as JSON, see `results.Result`."""


# -- pages ----------------------------------------------------------------------------------------


def markdown(result: Held, picture: Any = None) -> str:
    """Return a result as Markdown; ``picture`` returns the address of a plot, if there are pictures."""
    return (
        _TEMPLATES.get_template("page.md.j2")
        .render(result=result, where=where(result["environment"]), table_of=table_of, picture=picture)
        .strip()
        + "\n"
    )


def html(
    results: Sequence[tuple[Held, Path]], failed: Mapping[str, str] = {}, absent: Sequence[str] = ()
) -> str:
    """Return one page, without anything outside of it, of results, each with a folder for its pictures.

    ``failed`` says by name of a part of the run how it failed; ``absent`` parts are not in this run.
    """
    reader = MarkdownIt("commonmark").enable("table")
    reader.validateLink = lambda _: True  # its own rule refuses pictures that lie in the page

    def body(result: Held, folder: Path) -> str:
        pictures(result, folder)

        def inline(plot: Held) -> str:
            drawn = (folder / f"{plot['name']}.svg").read_bytes()
            return f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"

        return reader.render(markdown(result, inline))

    pages = [{"title": result["title"], "body": body(result, folder)} for result, folder in results]
    return _TEMPLATES.get_template("page.html.j2").render(pages=pages, failed=failed, absent=absent)


def where(at: Held) -> str:
    """Return in words where and on what something was measured."""
    words = [f"{at['cpu']}, {at['cores']} cores"]
    if "memory_gb" in at:
        words[0] += f", {at['memory_gb']} GB, {at['system']}"
    versions = {"device": "device", "jax": "jax", "numpy": "NumPy", "python": "Python"}
    words += [f"{name} {at[key]}" for key, name in versions.items() if key in at]
    if "commit" in at:
        words.append(f"commit {at['commit']}{' with changes' if at['changed_since_commit'] else ''}")
    if "load_1_min_at_end" in at:
        words.append(f"load before and after {at['load_1_min']} and {at['load_1_min_at_end']}")
    return "; ".join(words)


def table_of(section: Held) -> dict[str, Any]:
    """Return head and rows of a section's table; empty columns are left out."""
    rows, units = section["rows"], {row["unit"] for row in section["rows"]}
    unit = units.pop() if len(units) == 1 else None
    value = section["value"] + (f", {unit}" if unit and unit != "ratio" else "")
    also = list(dict.fromkeys(name for row in rows for name in row["also"]))
    head = ["", value, section["ratio"], *also, "note"]
    lines = [
        [
            row["name"], _spread(row, "" if unit is not None else row["unit"]), number(row["ratio"]),
            *(number(row["also"].get(name)) for name in also), row["note"],
        ]
        for row in rows
    ]  # fmt: skip
    kept = [place for place in range(len(head)) if place == 0 or any(line[place] for line in lines)]
    return {
        "head": [head[place] for place in kept],
        "rows": [[line[place].replace("|", "\\|") for place in kept] for line in lines],
    }


def _spread(row: Held, unit: str) -> str:
    if row["value"] is None:
        return ""
    text = f"{number(row['value'])} {unit if unit != 'ratio' else ''}".strip()
    return f"{text} ({' to '.join(map(number, row['quartiles']))})" if row["quartiles"] else text


def number(value: float | str | None) -> str:
    """Return a figure with three significant digits and thousands apart; words as they are."""
    if value is None or isinstance(value, str):
        return value or ""
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# -- pictures -------------------------------------------------------------------------------------


def pictures(result: Held, folder: Path) -> list[Path]:
    """Draw the plots of a result as SVG and PNG into a folder; return the files."""
    mpl.use("Agg")
    written = []
    with mpl.rc_context(_STYLE):
        for section in result["sections"]:
            for plot in section["plots"]:
                figure = draw(plot, section["rows"])
                for kind in ("png", "svg"):
                    written.append(folder / f"{plot['name']}.{kind}")
                    date = {"metadata": {"Date": None}} if kind == "svg" else {}
                    figure.savefig(written[-1], dpi=150, bbox_inches="tight", **date)
                plt.close(figure)
    return written


def draw(plot: Held, rows: Sequence[Held]) -> Any:
    """Return the figure of a plot.

    A plot has ``name`` (of its files), ``title``, ``kind``, ``x`` and ``y`` (labels), ``log`` (axes) and

    - of kind ``bars``: nothing else; it draws the values of the section's rows, in the colours of ``kinds``;
    - of kind ``lines`` and ``points``: ``series``, each with ``name``, ``kind`` (see `COLOURS`), ``x``,
      ``y``, ``dashed``, and ``labels`` of single points; ``spans`` are shaded, ``[from, to]`` on the x axis.
    """
    if plot["kind"] == "bars":
        figure, axes = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.2))
        _bars(axes, rows, plot.get("kinds", {}))
    else:
        figure, axes = plt.subplots(figsize=(9, 3.8))
        for low, high in plot.get("spans", ()):
            axes.axvspan(low, high, color="#f3d9b1", linewidth=0, zorder=0)
        for series in plot["series"]:
            points = plot["kind"] == "points" or "labels" in series
            axes.plot(
                series["x"], series["y"], color=COLOURS[series["kind"]], label=series["name"],
                marker="." if points else "o", ms=2.5 if points else 4,
                linestyle="" if points else "--" if series.get("dashed") else "-",
            )  # fmt: skip
            for x, y, label in zip(series["x"], series["y"], series.get("labels", ()), strict=False):
                axes.annotate(label, (x, y), (4, 4), textcoords="offset points", fontsize=8)
        axes.grid(axis="y", color=COLOURS["weaker"], linewidth=0.6)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
        axes.set_ylabel(plot["y"])
    axes.set_xlabel(plot["x"])
    axes.set_title(plot["title"])
    for which in plot.get("log", ""):
        axis = axes.xaxis if which == "x" else axes.yaxis
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    return figure


def _bars(axes: Axes, rows: Sequence[Held], kinds: Mapping[str, str]) -> None:
    """Draw the slowest at the bottom; a black line spans the quartiles."""
    shown = sorted((row for row in rows if row["value"] is not None), key=lambda row: -row["value"])
    for place, row in enumerate(shown):
        value, (low, high) = row["value"], row["quartiles"] or (row["value"], row["value"])
        axes.barh(place, value, color=COLOURS[kinds.get(row["name"], "rival")], height=0.66)
        axes.plot((low, high), (place, place), color="black", linewidth=1.2)
        label = f"{number(value)} {row['unit']}" + (f", {number(row['ratio'])} times" if row["ratio"] else "")
        axes.text(max(value, high) * 1.05, place, label, va="center", fontsize=9)
    axes.set_yticks(range(len(shown)), [row["name"] for row in shown])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(shown[-1]["value"] / 1.8, max(shown[0]["value"], 1e-9) * 4)
