"""Timelines: bars stand where the times are, in text, terminal, SVG and HTML."""

import io
import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

import pytest
from rich.console import Console

from aif_jax.timeline import WIDTH, Bar, as_html, as_rich, as_svg, as_text, bars_of

BARS = [
    Bar("retrieval", "retrieval", 0.0, 8.0),
    Bar("user fetch", "user", 0.5, 2.0),
    Bar("user program", "user", 2.0, 6.0),
    Bar("real-time stage", "request", 8.0, 10.0),
]


SHAPES = "█▉▊▋▌▍▎▏▐░"


class Timed(NamedTuple):
    name: str
    lane: str
    start_s: float
    end_s: float


def columns(line: str) -> tuple[int, int]:
    """Return in which columns the bar of a line begins and ends."""
    places = [place for place, character in enumerate(line) if character in SHAPES]
    return places[0], places[-1] + 1


def printed(bars: list[Bar], width: int, **more: object) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(as_rich(bars, **more))  # type: ignore[arg-type]
    return console.export_text().splitlines()


def svg_of(fragment: str) -> ET.Element:
    found = re.search(r"<svg.*</svg>", fragment, re.DOTALL)
    assert found is not None
    return ET.fromstring(found[0])


def texts(svg: ET.Element) -> list[str]:
    return [element.text or "" for element in svg.iter() if element.tag.endswith("}text")]


def boxes(svg: ET.Element) -> list[tuple[str, float, float]]:
    """Return tooltip, left and right end of every bar."""
    found = []
    for group in svg.iter():
        if group.tag.endswith("}g"):
            title, _, box, _ = group
            x = float(box.attrib["x"])
            found.append((title.text or "", x, x + float(box.attrib["width"])))
    return found


def test_bars_of_spans_are_in_order_and_begin_at_zero() -> None:
    bars = bars_of([Timed("stage", "request", 7.010, 7.012), Timed("retrieval", "retrieval", 7.0, 7.010)])
    assert [(bar.name, bar.lane) for bar in bars] == [("retrieval", "retrieval"), ("stage", "request")]
    assert [bar.start_ms for bar in bars] == pytest.approx([0.0, 10.0])
    assert [bar.length_ms for bar in bars] == pytest.approx([10.0, 2.0])
    assert bars_of([]) == []


@pytest.mark.parametrize("width", [1, 7, 40, 60, 200])
def test_as_text_lines_are_aligned(width: int) -> None:
    bars = [*BARS, Bar("another request's user program", "user", 1.0, 3.0)]
    lines = as_text(bars, width).splitlines()
    left = len("another request's user program") + 1
    assert len(lines) == len(bars)
    for line, bar in zip(lines, bars, strict=True):
        assert line.startswith(bar.name)
        assert line.endswith(f" {bar.length_ms:.2f} ms")
        first, last = columns(line)
        assert first - left == pytest.approx(bar.start_ms / 10.0 * width, abs=1.0)
        assert last - left == pytest.approx(bar.end_ms / 10.0 * width, abs=1.0)
        assert left <= first < last <= left + width


def test_as_text_shows_parts_of_a_column() -> None:
    (line,) = as_text([Bar("x", "user", 5.0, 12.5)], 2, until_ms=20.0).splitlines()
    assert line.endswith(" ▐▎ 7.50 ms")


def test_timeline_wait_is_drawn_hollow() -> None:
    text = as_text([Bar("user program", "user", 0, 4), Bar("wait for the user side", "request", 2, 4)], 8)
    assert text.splitlines()[1].endswith("     ░░░░ 2.00 ms")
    assert 'stroke-dasharray="3 2"' in as_svg({"x": [Bar("wait for item rows", "request", 0, 4)]})
    assert 'stroke-dasharray="3 2"' not in as_svg({"x": BARS})


@pytest.mark.parametrize("at_ms", [0.0, 3.0, 10.0])
@pytest.mark.parametrize("name", ["gather rows", "wait for item rows"])
def test_timeline_bar_without_length_is_visible(at_ms: float, name: str) -> None:
    bars = [*BARS, Bar(name, "request", at_ms, at_ms)]
    line = as_text(bars).splitlines()[-1]
    first, last = columns(line)
    assert last == first + 1
    assert last <= 23 + WIDTH
    assert line.endswith("0.00 ms")
    assert [right - left > 1 for _, left, right in boxes(svg_of(as_html("t", bars, {})))] == [True] * 5


def test_timeline_request_that_took_no_time_is_drawn() -> None:
    bars = [Bar("retrieval", "retrieval", 0.0, 0.0), Bar("user fetch", "user", 0.0, 0.0)]
    assert [columns(line) for line in as_text(bars).splitlines()] == [(23, 24)] * 2
    assert len(boxes(svg_of(as_svg({"x": bars})))) == 2


def test_timeline_bar_ending_before_start_has_no_length() -> None:
    bars = [*BARS, Bar("skewed", "request", 5.0, 4.0)]
    assert as_text(bars).splitlines()[-1].endswith(" 0.00 ms")
    assert len(boxes(svg_of(as_svg({"x": bars})))) == 5


def test_timeline_without_bars_is_empty() -> None:
    assert as_text([]) == ""
    assert printed([], 80) == []
    assert printed([], 80, title="none") == ["none"]
    fragment = as_html("user 3", [], {"ids": "none"})
    assert texts(svg_of(fragment)) == ["user 3"]
    assert "none" in fragment
    assert svg_of(as_svg({})) is not None


def test_timeline_two_requests_share_an_axis() -> None:
    short, long = [Bar("a", "user", 0.0, 5.0)], [Bar("b", "request", 0.0, 10.0)]
    halves = [columns(text)[1] - columns(text)[0] for text in (as_text(short, 40, 10.0), as_text(long, 40))]
    assert halves == [20, 40]
    (_, left, middle), (_, other_left, right) = boxes(svg_of(as_svg({"one": short, "two": long})))
    assert left == other_left
    assert (middle - left) * 2 == pytest.approx(right - left, abs=0.2)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_as_rich_any_width_shows_whole_lines(width: int) -> None:
    title, *lines = printed(BARS, width, title="this request")
    assert title == "this request"
    assert len(lines) == len(BARS)
    assert all(len(line) <= width and line.rstrip().endswith(" ms") for line in lines)
    longest = max(columns(line)[1] - 25 for line in lines)
    assert longest == min(WIDTH, width - 25 - len(" 8.00 ms"))


def test_as_rich_lanes_have_colours() -> None:
    console = Console(
        width=100, file=io.StringIO(), force_terminal=True, color_system="standard", record=True
    )
    console.print(as_rich([*BARS, Bar("compaction", "elsewhere", 0.0, 1.0)]))
    assert {"[35m", "[36m", "[31m", "[37m"} <= set(re.findall(r"\[3\dm", console.export_text(styles=True)))


def test_as_html_fragment_is_self_contained_and_complete() -> None:
    rows = {"candidates": "2,048", "rung": "0"}
    fragment = as_html("user 17", BARS, rows)
    assert fragment.startswith("<div")
    assert not re.search(r"<script|<style|<link|<img|url\(|href|\son\w+=", fragment)
    shown = texts(svg_of(fragment))
    assert {"user 17", *(bar.name for bar in BARS)} <= set(shown)
    assert "5.50 ms of the user side hidden behind retrieval" in shown
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", fragment)
    assert cells == ["candidates", "2,048", "rung", "0"]
    ET.fromstring(fragment)  # well-formed throughout


def test_as_html_facts_stand_in_two_columns_read_downwards() -> None:
    fragment = as_html("t", BARS, {str(number): "" for number in range(7)})
    names = [re.findall(r">(\d)</td>", line) for line in re.findall(r"<tr.*?</tr>", fragment)]
    assert names == [["0", "4"], ["1", "5"], ["2", "6"], ["3"]]


def test_as_html_foreign_text_is_escaped() -> None:
    nasty = "<script>alert(\"1\")</script> & 'co'"
    fragment = as_html(nasty, [Bar(nasty, "request", 0.0, 1.0), Bar("ok", nasty, 0.0, 1.0)], {nasty: nasty})
    assert "<script" not in fragment
    ET.fromstring(fragment)
    svg = svg_of(fragment)
    assert nasty in texts(svg)
    assert boxes(svg)[0][0] == f"{nasty}: 0.00 to 1.00 ms"
    assert nasty in [cell.text for cell in ET.fromstring(fragment).iter("td")]


def test_as_svg_long_name_is_cut_and_whole_in_tooltip() -> None:
    name = "a name much longer than any that an engine gives to a piece of its work"
    svg = svg_of(as_svg({"x": [Bar(name, "user", 0.0, 1.0)]}))
    assert name not in texts(svg)
    assert any(text.endswith("…") for text in texts(svg))
    assert boxes(svg)[0][0].startswith(name)


def test_as_svg_hidden_time_is_user_side_during_retrieval() -> None:
    late = [Bar("retrieval", "retrieval", 0.0, 5.0), Bar("user program", "user", 1.0, 7.0)]
    after = [Bar("retrieval", "retrieval", 0.0, 5.0), Bar("features", "user", 5.0, 7.0)]
    said = "4.00 ms of the user side hidden behind retrieval"
    assert said in texts(svg_of(as_svg({"x": late})))
    for bars in (after, late[:1], late[1:]):
        assert "hidden" not in as_svg({"x": bars})


def test_as_svg_lanes_are_apart_and_in_one_order() -> None:
    svg = svg_of(as_svg({"x": [BARS[3], BARS[2], BARS[0], Bar("other", "elsewhere", 0.0, 1.0)]}))
    assert [tip.split(":")[0] for tip, *_ in boxes(svg)] == [
        "retrieval", "user program", "real-time stage", "other",
    ]  # fmt: skip


@pytest.mark.parametrize("end_ms", [0.003, 0.9, 1.0, 7.3, 80.0, 12345.6])
def test_as_svg_axis_has_round_times(end_ms: float) -> None:
    svg = svg_of(as_svg({"x": [Bar("bar", "user", 0.0, end_ms)]}))
    shown = [element.text or "" for element in svg.iter() if element.get("text-anchor") == "middle"]
    assert [text for text in shown if text.endswith(" ms")] == ["0 ms"]
    ticks = [float(text.removesuffix(" ms")) for text in shown]
    assert 5 <= len(ticks) <= 9
    assert end_ms - ticks[1] < ticks[-1] <= end_ms * 1.0001
    assert ticks == pytest.approx([number * ticks[1] for number in range(len(ticks))])
    assert f"{ticks[1]:e}"[0] in "125"


def test_as_svg_own_file_follows_viewers_colours() -> None:
    assert "prefers-color-scheme" in as_svg({"x": BARS}, standalone=True)
    assert "<style" not in as_svg({"x": BARS})
    assert 'fill="currentColor"' in as_svg({"x": BARS})
