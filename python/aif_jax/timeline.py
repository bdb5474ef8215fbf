"""The timeline of one request: the pieces of its time as bars, in text, in a terminal and in a notebook.

It takes plain values only. A bar whose name begins with ``wait`` is drawn hollow: nothing of the request ran.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # a server that draws nothing does not import rich
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

WIDTH = 60
"""Columns of the bars in text, unless the terminal is too narrow for them."""

_MIN_NAMES = 22
"""Columns of the names: enough for most, so that timelines one below the other share their axis."""
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_LANES = ("retrieval", "user", "request")
_STYLES = {"retrieval": "magenta", "user": "cyan", "request": "red"}
# Readable on white and on black: a fragment in a notebook cannot know the background.
_COLOURS = {"retrieval": "#7a6fb0", "user": "#0f8a84", "request": "#cf5b42"}
_OTHER_STYLE, _OTHER_COLOUR = "white", "#8a939d"

_SVG_WIDTH, _ROW, _BAR, _TITLE, _AXIS = 760, 21, 12, 30, 26
_CHARACTER, _LONGEST_NAME, _LABEL = 6.6, 32, 78
"""Width of a character of a name; characters of a name that are shown; room for a duration beside a bar."""
# Notebooks have styles of their own for tables, which only an element's own style overrides.
_CELL = "text-align:left;vertical-align:top;border:0;padding:1px 14px 1px 0;font-size:13px;background:none;"


class Bar(NamedTuple):
    """One piece of a request's time.

    Attributes:
        name: of the work.
        lane: ``retrieval``, ``user`` (the user side) or ``request`` (the caller's thread).
        start_ms: start, in milliseconds since the request came in.
        end_ms: end, likewise.
    """

    name: str
    lane: str
    start_ms: float
    end_ms: float

    @property
    def length_ms(self) -> float:
        """Duration; 0 for a bar that ends before it starts."""
        return max(0.0, self.end_ms - self.start_ms)

    @property
    def hollow(self) -> bool:
        """True for a wait."""
        return self.name.startswith("wait")


class TimedSpan(Protocol):
    """A named piece of time on any clock, in seconds."""

    @property
    def name(self) -> str:
        """Name of the work."""
        ...

    @property
    def lane(self) -> str:
        """Lane, see `Bar`."""
        ...

    @property
    def start_s(self) -> float:
        """Start."""
        ...

    @property
    def end_s(self) -> float:
        """End."""
        ...


def bars_of(spans: Iterable[TimedSpan]) -> list[Bar]:
    """Return spans as bars, in order of their start, in milliseconds since the first of them."""
    ordered = sorted(spans, key=lambda span: span.start_s)
    return [
        Bar(span.name, span.lane, *((at - ordered[0].start_s) * 1e3 for at in (span.start_s, span.end_s)))
        for span in ordered
    ]


def as_text(bars: Sequence[Bar], width: int = WIDTH, until_ms: float = 0.0) -> str:
    """Return bars as plain text, a line each.

    Args:
        bars: the bars to draw.
        width: columns that the longest possible bar takes.
        until_ms: end of the axis, so that two timelines can share one; the last end by default.

    >>> print(as_text([Bar("retrieval", "retrieval", 0, 8), Bar("user program", "user", 1, 5)], width=16))
    retrieval              ████████████████ 8.00 ms
    user program             ████████ 4.00 ms
    """
    return "\n".join(f"{name} {bar} {label}" for name, bar, label in _lines(bars, width, until_ms))


def as_rich(bars: Sequence[Bar], *, title: str = "", until_ms: float = 0.0) -> "Coloured":
    """Return bars for a terminal: like `as_text`, in colours, under a title, as wide as the console allows.

    Args:
        bars: the bars to draw.
        title: heading.
        until_ms: see `as_text`.
    """
    return Coloured(tuple(bars), title, until_ms)


@dataclasses.dataclass(frozen=True, slots=True)
class Coloured:
    """Renderable of `as_rich`, for ``rich`` to print."""

    bars: tuple[Bar, ...]
    title: str
    until_ms: float

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Text]":
        """Yield a line for the title and for each bar."""
        from rich.text import Text

        if self.title:
            yield Text(self.title, style="bold")
        around = max((len(f"  {name}  {label}") for name, _, label in _lines(self.bars, 1, 0.0)), default=0)
        width = max(8, min(WIDTH, options.max_width - around))
        for bar, (name, drawn, label) in zip(self.bars, _lines(self.bars, width, self.until_ms), strict=True):
            line = Text(f"  {name} ", no_wrap=True, overflow="crop")
            line.append(drawn, style=_STYLES.get(bar.lane, _OTHER_STYLE))
            line.append(f" {label}", style="dim")
            yield line


def as_html(title: str, bars: Sequence[Bar], rows: Mapping[str, str]) -> str:
    """Return an HTML fragment for a notebook: a title, the bars over time, and facts in a table below.

    It needs no script, no style sheet and nothing from elsewhere, and takes the colour of its text from the
    page, light or dark.

    Args:
        title: heading.
        bars: the bars to draw.
        rows: facts by name.
    """
    facts = [
        f'<td style="{_CELL}opacity:.65">{html.escape(name)}</td>'
        f'<td style="{_CELL}padding-right:32px;font-variant-numeric:tabular-nums">{html.escape(value)}</td>'
        for name, value in rows.items()
    ]
    # In two columns, read downwards, where one would be longer than the picture above it.
    half = len(facts) if len(facts) <= 5 else math.ceil(len(facts) / 2)
    lines = ("".join(facts[start::half]) for start in range(half))
    table = "".join(f'<tr style="background:none;border:0">{line}</tr>' for line in lines)
    return (
        f'<div style="max-width:{_SVG_WIDTH}px;font:13px/1.5 system-ui,sans-serif">'
        + as_svg({title: bars})
        + (
            f'<table style="border-collapse:collapse;border:0;margin:4px 0 0;color:inherit">{table}</table>'
            if rows
            else ""
        )
        + "</div>"
    )


def as_svg(timelines: Mapping[str, Sequence[Bar]], *, standalone: bool = False) -> str:
    """Return one or more timelines over one axis as SVG, with the hidden time of the user side marked.

    Args:
        timelines: bars by title.
        standalone: for a file of its own: text is dark or light as the viewer prefers, instead of having the
            colour of the page around it.
    """
    every = [bar for bars in timelines.values() for bar in bars]
    names = min(max((len(bar.name) for bar in every), default=0), _LONGEST_NAME)
    plot = _Plot(left=names * _CHARACTER + 18, end_ms=max((bar.end_ms for bar in every), default=0.0))
    y, parts = 0.0, []
    for title, bars in timelines.items():
        parts.append(
            f'<text x="0" y="{y + 19:g}" font-size="14" font-weight="600">{html.escape(title)}</text>'
        )
        y += _TITLE
        drawn, height = _timeline(bars, plot, y)
        parts.append(drawn)
        y += height
    if every:
        parts.insert(0, _axis(plot, y))
        y += _AXIS
    scheme = (
        "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
        if standalone
        else ""
    )
    label = html.escape("; ".join(timelines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SVG_WIDTH} {y:g}" role="img" '
        f'aria-label="{label}" font-family="system-ui,sans-serif" font-size="12" fill="currentColor" '
        f'style="width:100%;max-width:{_SVG_WIDTH}px;height:auto;display:block">'
        f"{scheme}{''.join(parts)}</svg>"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Plot:
    """Horizontal positions of times in a picture: ``left`` is 0 ms."""

    left: float
    end_ms: float

    @property
    def right(self) -> float:
        return _SVG_WIDTH - _LABEL

    def x(self, at_ms: float) -> float:
        return self.left + at_ms / max(self.end_ms, 1e-6) * (self.right - self.left)


def _timeline(bars: Sequence[Bar], plot: _Plot, top: float) -> tuple[str, float]:
    """Return one timeline's bars, lane by lane, and the height that they take."""
    hidden, y = _hidden(bars), top
    back, front = [], []
    for lane in (*_LANES, None):
        inside = [bar for bar in bars if bar.lane == lane or (lane is None and bar.lane not in _LANES)]
        if not inside:
            continue
        shown = [_row(bar, plot, y + 2 + row * _ROW) for row, bar in enumerate(inside)]
        height = len(inside) * _ROW + 4
        if lane == "user" and hidden is not None:
            start, end = plot.x(hidden[0]), plot.x(hidden[1])
            back.append(_rect(start, top, end - start, y + height + _ROW - top, _COLOURS["user"], 0.2))
            shown.append(_label_of_hidden(hidden, plot, y + height))
            height += _ROW
        back.append(_rect(plot.left, y, plot.right - plot.left, height, "currentColor", 0.05))
        front += shown
        y += height + 3
    return "".join((*back, *front)), y + 8 - top


def _row(bar: Bar, plot: _Plot, y: float) -> str:
    """Return one bar with its name and its duration; its times are shown under the pointer."""
    middle = y + _ROW / 2
    start, end = plot.x(bar.start_ms), plot.x(bar.start_ms + bar.length_ms)
    length = max(end - start, 1.5)
    colour = _COLOURS.get(bar.lane, _OTHER_COLOUR)
    look = f'fill="{colour}"'
    if bar.hollow:
        look = f'fill="{colour}" fill-opacity=".15" stroke="{colour}" stroke-dasharray="3 2"'
    name = bar.name if len(bar.name) <= _LONGEST_NAME else f"{bar.name[: _LONGEST_NAME - 1]}…"
    times = f"{bar.name}: {bar.start_ms:.2f} to {bar.end_ms:.2f} ms"
    return (
        f"<g><title>{html.escape(times)}</title>"
        f'<text x="{plot.left - 10:.1f}" y="{middle + 4:g}" text-anchor="end">{html.escape(name)}</text>'
        f'<rect x="{start:.1f}" y="{middle - _BAR / 2:g}" width="{length:.1f}" height="{_BAR}" rx="2" '
        f"{look}/>"
        f'<text x="{start + length + 6:.1f}" y="{middle + 4:g}" font-size="11" fill-opacity=".7">'
        f"{bar.length_ms:.2f} ms</text></g>"
    )


def _label_of_hidden(hidden: tuple[float, float], plot: _Plot, y: float) -> str:
    """Return the text with the hidden time of the user side."""
    start, end = plot.x(hidden[0]), plot.x(hidden[1])
    text = f"{hidden[1] - hidden[0]:.2f} ms of the user side hidden behind retrieval"
    fits = start + len(text) * _CHARACTER < plot.right
    where = f'x="{start + 4:.1f}"' if fits else f'x="{end - 4:.1f}" text-anchor="end"'
    return f'<text {where} y="{y + 13:g}" font-weight="600">{text}</text>'


def _axis(plot: _Plot, bottom: float) -> str:
    """Return the axis below everything, with lines upwards."""
    parts = []
    for number, at_ms in enumerate(_ticks(plot.end_ms)):
        x = plot.x(at_ms)
        unit = " ms" if number == 0 else ""
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TITLE}" x2="{x:.1f}" y2="{bottom:g}" stroke="currentColor" '
            f'stroke-opacity=".15"/><text x="{x:.1f}" y="{bottom + 16:g}" text-anchor="middle" '
            f'font-size="11" fill-opacity=".7">{at_ms:g}{unit}</text>'
        )
    return "".join(parts)


def _ticks(end_ms: float) -> list[float]:
    """Return round times from 0 on, four to nine of them."""
    if not 0.0 < end_ms < math.inf:
        return [0.0]
    rough = end_ms / 8
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(step * unit for step in (1, 2, 5, 10) if step * unit >= rough)
    return [round(number * step, 12) for number in range(math.floor(end_ms / step * (1 + 1e-9)) + 1)]


def _rect(x: float, y: float, width: float, height: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" '
        f'fill="{colour}" fill-opacity="{opacity:g}"/>'
    )


def _hidden(bars: Sequence[Bar]) -> tuple[float, float] | None:
    """Return start and end of the user side's overlap with retrieval; ``None`` if they never overlap."""
    user, retrieval = ([bar for bar in bars if bar.lane == lane] for lane in ("user", "retrieval"))
    if not user or not retrieval:
        return None
    start = max(min(bar.start_ms for bar in side) for side in (user, retrieval))
    end = min(max(bar.end_ms for bar in side) for side in (user, retrieval))
    return (start, end) if start < end else None


def _lines(bars: Sequence[Bar], width: int, until_ms: float) -> list[tuple[str, str, str]]:
    """Return each bar's name, all of one length, its drawing, and its duration."""
    names = max((_MIN_NAMES, *(len(bar.name) for bar in bars)))
    end_ms = max((until_ms, 1e-6, *(bar.end_ms for bar in bars)))
    return [(f"{bar.name:{names}}", _cells(bar, width, end_ms), f"{bar.length_ms:.2f} ms") for bar in bars]


def _cells(bar: Bar, width: int, end_ms: float) -> str:
    """Draw a bar with the eighths of a cell that Unicode has; it starts at a whole or a half one."""
    whole = 8 * width
    first = min(max(0, round(bar.start_ms / end_ms * whole)), whole - 1)
    last = min(max(first + 1, round((bar.start_ms + bar.length_ms) / end_ms * whole)), whole)
    before, into = divmod(first, 8)
    if bar.hollow:
        return " " * before + "░" * (math.ceil(last / 8) - before)
    head = "▐" if into >= 4 else ""
    cells, rest = divmod(max(0, last - 8 * (before + len(head))), 8)
    return " " * before + head + "█" * cells + _EIGHTHS[rest]
