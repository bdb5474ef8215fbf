"""Latency and goodput against offered load, as a page of tables."""

from typing import Any

from bars.lines import BARS
from load.tables import table, where
from load.ways import Engined

SHED = 0.9


def page(results: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    environment, plan, measured = results["environment"], results["plan"], results["open_loop"]
    saturation, curves = measured["saturation"], measured["curves"]
    ours = next(curve for curve in curves if curve["way"] == Engined.name)
    bar = BARS["saturation"]
    times = saturation["sequential"]["engine_times_p50"]
    kept, in_full = ours["kept_beyond"], ours["in_full_beyond"]
    sections = [
        f"# Open-loop load, {environment['date'][:10]}",
        where(environment),
        f"{plan['items']:,} items, {plan['candidates']:,} candidates, history of {plan['long_length']:,}, "
        f"the best {plan['k']}; every request by a user who is new to the engine. Retrieval is a coroutine "
        f"that sleeps {plan['retrieval_ms']:g} ms. The same model and weights for all; answers are checked "
        "against the definition (1e-4), with exact attention where the way is named sequential, with the "
        "linear attention that the others compute elsewhere. Arrivals are a Poisson process; latency counts "
        "from when a request was due. An answer is in time within "
        f"{plan['unloaded_times']:g} times the way's own unloaded latency; the engine is told that deadline.",
        *(() if plan["meaningful"] else ("**A quick run: it checks answers, its times mean nothing.**",)),
        "## Bars",
        table(
            ("what", "measured", "bar", "reach for", "outcome"),
            [
                (
                    "saturation with cold user states, times sequential", f"{times:.2f}", f"{bar.needed:g}",
                    f"{bar.reach:g}", bar.outcome(times),
                ),
                (
                    "answers in time past saturation, share of the best up to there", f"{kept:.1%}",
                    f"{SHED:.0%}", "", _shed(kept),
                ),
                (
                    "the same of answers on rung 0", f"{in_full:.1%}", f"{SHED:.0%}", "",
                    _shed(in_full),
                ),
            ],
        ),
        "## Saturation",
        f"{plan['callers']} callers that ask again at once, in turns.",
        table(
            ("way", "answers a second", "core-ms each", "engine, times as many (quartiles)", "setting"),
            [
                (
                    name, f"{found['throughput']:.0f}", f"{found['core_ms']:.2f}",
                    f"{found['engine_times_p50']:.2f} ({found['engine_times_p25']:.2f} to "
                    f"{found['engine_times_p75']:.2f})",
                    measured["settings"][name],
                )
                for name, found in saturation.items()
            ],
        ),
        "## Each way by itself and at its limit",
        table(
            (
                "way", "unloaded, ms", "deadline, ms", "answers a second at p99 within it",
                "most in time, a second", "kept past saturation", "most in full", "kept past saturation",
            ),
            [
                (
                    curve["way"], f"{curve['unloaded_ms']:.1f}", f"{curve['deadline_ms']:.1f}",
                    f"{curve['within']:.0f}", f"{curve['peak_goodput']:.0f}",
                    f"{curve['kept_beyond']:.0%}", f"{curve['peak_in_full']:.0f}",
                    f"{curve['in_full_beyond']:.0%}",
                )
                for curve in curves
            ],
        ),
        *(_curve(curve) for curve in curves),
        f"The generator by itself, at {measured['generator']['rate']:.0f} requests a second: "
        f"{measured['generator']['core_ms']:.3f} core-ms a request, retrieval's sleep included; its 99th "
        f"percentile of lateness {measured['generator']['late_p99_ms']:.1f} ms. It runs in the event loop "
        "that serves, as in a web server.",
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _curve(curve: dict[str, Any]) -> str:
    rows = [
        (
            f"{load['share']:.0%}", f"{load['offered']:.0f}", f"{load['throughput']:.0f}",
            f"{load['goodput']:.0f}", f"{load['in_full']:.0f}",
            *(f"{load[name]:.1f}" for name in ("p50_ms", "p99_ms", "p99_9_ms")),
            _counts(load["rungs"]), _counts(load["errors"]), str(load["counted"]),
        )
        for load in curve["loads"]
    ]  # fmt: skip
    head = (
        "of saturation", "offered a second", "answered", "in time", "of these in full",
        "p50 ms", "p99 ms", "p99.9 ms", "answers by rung", "errors", "requests",
    )  # fmt: skip
    told = "".join(f"\n\nUnexpected: {text}" for text in curve["unexpected"])
    return f"### {curve['way']}\n\n{table(head, rows)}{told}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _shed(value: float) -> str:
    return "met" if value >= SHED else "missed"
