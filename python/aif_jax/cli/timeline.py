"""A request's timeline in the terminal: one bar for each span."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from aif_jax.cli.demo_result import Span
from aif_jax.serving import Report

WIDTH = 60
COLOURS = {"retrieval": "magenta", "user": "cyan", "stage": "red", "other": "white"}


def spans_of(report: Report) -> list[Span]:
    """Turn a report's spans into bars, in milliseconds since the request came in."""
    origin = min(span.start_s for span in report.spans)
    kinds = {"retrieval": "retrieval", "user": "user"}
    return [
        Span(
            span.name,
            kinds.get(span.lane, "stage"),
            (span.start_s - origin) * 1e3,
            (span.end_s - origin) * 1e3,
        )
        for span in sorted(report.spans, key=lambda span: span.start_s)
    ]


def print_timeline(
    title: str, timeline: Report | Sequence[Span], *, console: Console, until_ms: float = 0.0
) -> None:
    """Print bars under a title.

    Args:
        title: what the timeline shows.
        timeline: a report, or spans.
        console: where to.
        until_ms: end of the axis, so that two timelines can share one; the last end by default.
    """
    spans = spans_of(timeline) if isinstance(timeline, Report) else list(timeline)
    end_ms = max(until_ms, *(span.end_ms for span in spans), 1e-6)
    console.print(f"[bold]{title}[/]")
    for span in spans:
        left = round(span.start_ms / end_ms * WIDTH)
        length = max(1, round((span.end_ms - span.start_ms) / end_ms * WIDTH))
        line = Text(f"  {span.name:18}")
        line.append(" " * left + "█" * length, style=COLOURS[span.kind])
        line.append(f" {span.end_ms - span.start_ms:.2f} ms", style="dim")
        console.print(line, soft_wrap=True)
