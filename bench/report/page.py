"""The report: from a folder of results to one page that a stranger can read."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import figures, suites
from report.markup import from_markdown, inline_svg, table

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1d2733;max-width:68rem;margin:2rem auto;padding:0 1.2rem}
h1{margin-bottom:.2rem}h2{margin-top:3rem;border-top:1px solid #dde3e9;padding-top:1.2rem}
h4{margin:1.4rem 0 .3rem}
table{border-collapse:collapse;font-size:.86rem;margin:.6rem 0;width:100%}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #e6ebf0;vertical-align:top}
td:first-child{min-width:11rem}
.suite td:first-child,.suite th:first-child{width:24rem}.suite td:nth-child(-n+4){width:7rem}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}svg{width:100%;height:auto;max-width:100%}
svg.bar{width:9rem;height:.6rem}
.about{color:#55636f;font-size:.86rem}.out{background:#fdf3e1;padding:.6rem 1rem}
.yes{color:#0b6e4f;font-weight:600}.no{color:#a3361b;font-weight:600}details{margin:.6rem 0}
summary{cursor:pointer;color:#2a5d84}code{background:#f1f4f7;padding:0 .2rem}nav a{margin-right:1rem}
"""

QUICK = '<p class="out"><b>A quick run: it checks answers, its times mean nothing.</b></p>'

LEAD = (
    "A pre-ranker scores the thousands of items that retrieval found for one request. Here the part that "
    "depends on the user alone runs <i>while</i> retrieval runs, the part that depends on the item alone was "
    "computed beforehand, and what is left, the <i>real-time stage</i>, is one compiled call. Every figure "
    "below was measured on the machine named here, after the answers of all that is compared were checked. "
    "N is the number of candidates of a request, L the length of the user's history, b the bits of a "
    "signature, h the width of the first layer."
)

Held = Mapping[str, Any]


class Results:
    """Results of programs in a folder: ``NAME/results.json`` with pictures and a page beside it.

    Args:
        folder: of ``make bench``.
        bars: a ``bars.json``, which need not exist.
    """

    def __init__(self, folder: Path, bars: Path):
        self.folder = folder
        names = ("stage", "overlap", "open_loop", "publish", "item_index", "faults")
        self.programs: dict[str, Held] = {
            name: self._read(folder / name / "results.json")
            for name in names
            if (folder / name / "results.json").exists()
        }
        suites_file = folder / "suites.json"
        self.suites: Held | None = self._read(suites_file) if suites_file.exists() else None
        self.bars: Held | None = self._read(bars) if bars.exists() else None

    @staticmethod
    def _read(file: Path) -> Held:
        return json.loads(file.read_text(encoding="utf-8"))

    def picture(self, program: str, name: str) -> str:
        """Return a picture that a program drew, or nothing."""
        file = self.folder / program / f"{name}.svg"
        return f"<figure>{inline_svg(file)}</figure>" if file.exists() else ""


def page(results: Results, environment: Held, failed: Mapping[str, str]) -> str:
    """Return the report.

    Args:
        results: what there is.
        environment: where it was measured, see `stage.environment`.
        failed: by name of a part of the run, how it failed.
    """
    sections = {
        "Bars": _bars(results),
        "The stage beside what people would use instead": _stage(results),
        "Growth": _shown(
            results, "stage", "growth",
            "How time grows with the size of a request, of the model and of the catalogue.",
        ),
        "Roofline of the stage": _shown(
            results, "stage", "roofline",
            "The floor is what the stage's arithmetic and memory traffic would take at the rates that this "
            "machine reached in the same run; each part was also timed by itself.",
        ),
        "Latency": _latency(results),
        "Throughput against offered load": _shown(
            results, "open_loop", "open_loop",
            "Requests arrive at random times whether or not those before them were answered, every one by a "
            "user who is new. An answer counts as in time within three times the way's own unloaded latency.",
        ),
        "What a request takes beyond its parts": _overlap(results),
        "Publishing another model under load": _shown(
            results, "publish", "publish",
            "Each point is a request; every answer was compared, bit by bit, with that of an engine that "
            "serves its version only.",
        ),
        "The life of an item index": _item_index(results),
        "Memory": _memory(results),
        "Suites": _suites(results),
        "All tables": _tables(results),
    }  # fmt: skip
    rows = [(name.replace("_", " "), str(value)) for name, value in environment.items()]
    told = "".join(f"<li>{html.escape(f'{name}: {reason}')}</li>" for name, reason in failed.items())
    date, commit = str(environment["date"])[:10], environment["commit"]
    anchors = {title: f"s{number}" for number, title in enumerate(sections)}
    return "\n".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>aif_jax: benchmarks</title>',
            f"<style>{STYLE}</style><h1>aif_jax: benchmarks</h1>",
            f'<p class="about">{html.escape(str(environment["cpu"]))}, {environment["cores"]} cores, '
            f"{environment['memory_gb']} GB; {date}; commit {commit}"
            f"{' with changes' if environment['changed_since_commit'] else ''}</p>",
            f"<p>{LEAD}</p>",
            f'<div class="out">These parts of the run failed:<ul>{told}</ul></div>' if told else "",
            "<nav>" + " ".join(f'<a href="#{anchors[t]}">{t}</a>' for t in sections) + "</nav>",
            *(f'<h2 id="{anchors[title]}">{title}</h2>{body}' for title, body in sections.items()),
            "<h2>Machine and versions</h2>" + table(("", ""), rows),
            "</html>\n",
        )
    )


def _left_out(command: str) -> str:
    return f'<p class="out">Not in this run: <code>{command}</code> measures it.</p>'


def _about(held: Held) -> str:
    where = held["environment"]
    changed = " with changes" if where["changed_since_commit"] else ""
    busy = f"load of the machine {where['load_1_min']} before and {where['load_1_min_at_end']} after"
    quick = "" if held["plan"]["meaningful"] else " <b>Quick: its times mean nothing.</b>"
    measured = f"Measured {where['date'][:10]}, commit {where['commit']}{changed}; {busy}."
    return f'<p class="about">{measured}{quick}</p>'


def _shown(results: Results, program: str, picture: str, words: str) -> str:
    drawn = results.picture(program, picture)
    if not drawn:
        return _left_out("make bench")
    return f"<p>{words}</p>{_about(results.programs[program])}{drawn}"


def _bars(results: Results) -> str:
    if results.bars is None:
        return _left_out("make bars")
    rows, how, where = [], [], ""
    for bar in results.bars.values():
        where = f"{bar['date'][:10]}, {bar['where']}"
        unit, sign = (" ms" if bar["unit"] == "ms" else ""), "≤" if bar["better"] == "lower" else "≥"
        wanted = (f"{sign} {bar['needed']:g}{unit}", f"{sign} {bar['reach']:g}{unit}")
        if bar["value"] is None:
            why = next(why for why in ("failed", "inconclusive", "not_measured") if why in bar)
            rows.append((bar["what"], "", *wanted, f"<span>{why.replace('_', ' ')}</span>"))
            how.append((bar["what"], bar[why]))
            continue
        low, high = bar["spread"]
        verdict = "yes" if bar["holds"] else "no"
        rows.append(
            (
                bar["what"], f"{bar['value']:.3g}{unit} ({low:.3g} to {high:.3g})", *wanted,
                f'<span class="{verdict}">{verdict}</span>',
            )
        )  # fmt: skip
        how.append((bar["what"], bar["how"]))
    quick = "" if all(bar["meaningful"] for bar in results.bars.values()) else QUICK
    return (
        "<p>What the design promises, each measured as a ratio within one run of <code>make bars</code>.</p>"
        f'{quick}<p class="about">{html.escape(where)}</p>'
        + table(("what", "measured (quartiles)", "needed", "hoped for", "holds"), rows, raw=frozenset({4}))
        + f"<details><summary>How each was measured</summary>{table(('', ''), how)}</details>"
    )


def _stage(results: Results) -> str:
    from stage.contenders import STAGE, WHAT

    held = results.programs.get("stage")
    if held is None:
        return _left_out("make bench-stage")
    case, where = held["cases"][0], held["environment"]
    rows = [(name, WHAT.get(name, WHAT[STAGE])) for name in case["times"]]
    settings = (
        f"SimTier of the rivals in XLA: {case['xla_simtier']}, the fastest way found; ONNX Runtime "
        f"{where['onnxruntime']} takes {case['onnx_block']} candidates at a time, the fastest of those "
        f"tried; jax {where['jax']}; the stage runs its {case['stage_programs']} programs."
    )
    return (
        "<p>From candidates to the best of them, the user side done beforehand where the name says so and "
        "for this project. All compute the same model with the same weights, but for <i>cold</i> and the "
        "<i>two towers</i>, which are other, weaker models and are shown for what they cost.</p>"
        f"{_about(held)}{results.picture('stage', 'contenders')}<p>{html.escape(settings)}</p>"
        f"<details><summary>What each of them is</summary>{table(('name', 'what it is'), rows)}</details>"
    )


def _latency(results: Results) -> str:
    held = results.programs.get("open_loop")
    if held is None:
        return _left_out("make bench")
    file = figures.latencies(held["open_loop"], results.folder / "latencies.svg")
    return (
        "<p>Whole requests with a retrieval that sleeps, each way under about half of the load at which it "
        f"saturates.</p>{_about(held)}<figure>{inline_svg(file)}</figure>"
    )


def _overlap(results: Results) -> str:
    held = results.programs.get("overlap")
    if held is None:
        return _left_out("make bench")
    rows = [
        (cell["name"], *(f"{cell['overhead'][q]:.2f}" for q in ("p50", "p99", "p99_9")), str(cell["samples"]))
        for cell in held["overlap"]["cells"]
    ]
    head = ("request", "p50, ms", "p99, ms", "p99.9, ms", "requests")
    return (
        "<p>If the user side hides behind retrieval entirely, a request takes max(retrieval, user side) + "
        "stage. These are the milliseconds beyond that, one request at a time. Cold: the user's state was "
        f"not cached.</p>{_about(held)}{table(head, rows)}"
    )


def _memory(results: Results) -> str:
    held = results.programs.get("stage")
    if held is None or "memory" not in held:
        return _left_out("make bench-stage")
    file = figures.memory(held["memory"], results.folder / "memory.svg")
    return (
        "<p>What the item index takes for one item: the values that the stage reads, what aligns rows to "
        f"cache lines, and the table that finds them by id.</p>{_about(held)}"
        f"<figure>{inline_svg(file)}</figure>"
    )


def _item_index(results: Results) -> str:
    held = results.programs.get("item_index")
    if held is None:
        return _left_out("make bench")
    text = (results.folder / "item_index" / "page.md").read_text(encoding="utf-8")
    # The page's own title and machine stand in the report already.
    return _about(held) + from_markdown(text[text.index("\n## ") :])


def _suites(results: Results) -> str:
    if results.suites is None:
        return _left_out("make bench")
    return (
        "<p>Small benchmarks by subject. Each checked its answer, then ran as often as fits into a second; "
        "medians and quartiles of its rounds. Green bars are this project's, blue ones are for comparison."
        f"</p>{suites.section(dict(results.suites))}"
    )


def _tables(results: Results) -> str:
    found = []
    for file in sorted(results.folder.glob("*/page.md")):
        title = file.parent.name.replace("_", " ")
        text = from_markdown(file.read_text(encoding="utf-8"))
        found.append(f"<details><summary>{title}</summary>{text}</details>")
    return "".join(found) or _left_out("make bench")
