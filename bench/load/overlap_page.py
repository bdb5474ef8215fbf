"""What was measured of the overlap, as a page of tables."""

from typing import Any

from bars.lines import BARS
from load.tables import table, where

_COSTS = ("request", "retrieval", "user side", "stage")


def page(results: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    environment, plan = results["environment"], results["plan"]
    measured = results["overlap"]
    worst = max(measured["cells"], key=lambda cell: cell["overhead"]["p50"])
    reached = worst["overhead"]["p50"]
    bar = BARS["overlap_sleeps"]
    sections = [
        f"# Overlap, {environment['date'][:10]}",
        where(environment),
        f"What a request takes beyond max(retrieval, user side) + stage. {plan['items']:,} items, "
        f"{plan['candidates']:,} candidates, history of {plan['long_length']:,}, the best {plan['k']}; one "
        "request at a time, every round in every way, in an order drawn anew. Retrieval and user side are "
        "the request's own, as they ran in it; the stage is measured by itself, called directly after a "
        "sleep as long as retrieval, in the same rounds. Every answer is checked against the definition "
        "(1e-4).",
        *(() if plan["meaningful"] else ("**A quick run: it checks answers, its times mean nothing.**",)),
        f"Bar at p50: {bar.needed} ms, reach for {bar.reach}: **{bar.outcome(reached)}** ({reached:.3f} ms, "
        f"the worst: {worst['name']}).",
        "## Milliseconds beyond the parts",
        table(
            ("request", "p50", "p99", "p99.9", "p50, its own stage", "p50, all parts alone", "samples"),
            [
                (
                    cell["name"],
                    *(f"{cell['overhead'][q]:.3f}" for q in ("p50", "p99", "p99_9")),
                    f"{cell['overhead_own_stage']['p50']:.3f}",
                    f"{cell['overhead_parts_alone']['p50']:.3f}",
                    str(cell["samples"]),
                )
                for cell in measured["cells"]
            ],
        ),
        "With its own stage: as long as the stage took in that request. All parts alone: retrieval's own "
        "median, user side and stage called directly.",
        "## Where it goes, medians in milliseconds",
        table(
            (
                "request", "total", "retrieval", "user side", "stage", "call to retrieval",
                "last part to stage", "candidates checked", "stage to return",
            ),
            [
                (
                    cell["name"],
                    *(
                        f"{cell['medians'][name]:.3f}"
                        for name in (
                            "total", "retrieval", "user_side", "stage", "before", "after", "prepare", "back",
                        )
                    ),
                )
                for cell in measured["cells"]
            ],
        ),
        "By themselves: user side "
        f"{measured['user_side_alone']['p50']:.2f}; stage "
        + ", ".join(
            f"{stage['p50']:.2f} after {stage['after_idle_ms']:g} ms of sleep"
            for stage in measured["stage_alone"]
        )
        + ".",
        "## Retrieval that computes, in core-milliseconds",
        table(
            (
                "retrieval", "request", "its parts: retrieval", "user side", "stage", "beyond (quartiles)",
                "of wall time",
            ),
            [
                (
                    f"{cost['ms']:g} ms in Python",
                    *(f"{cost['core_ms'][part]:.2f}" for part in _COSTS),
                    f"{cost['beyond']['p50']:.2f} ({cost['beyond']['p25']:.2f} to "
                    f"{cost['beyond']['p75']:.2f})",
                    f"{cost['wall_ms']['request']:.2f}",
                )
                for cost in results["core_cost"]
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"
