"""Pieces of HTML: pictures in the page itself, tables, and the pages of tables that programs write."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

_FIGURE = 40
"""Longer texts are no figures, also if they begin with one."""

_IDS = re.compile(r'(\bid="|url\(#|href="#)')


def inline_svg(file: Path) -> str:
    """Return a picture as an element, its names its own: several pictures of matplotlib share names."""
    text = file.read_text(encoding="utf-8")
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Without a fixed size it fills its column.
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    return _IDS.sub(rf"\g<1>{file.stem}-", body)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: frozenset[int] = frozenset()) -> str:
    """Return a table of texts; columns in ``raw`` hold HTML already, and figures are never broken."""
    lines = [
        "<table><thead><tr>",
        *(f"<th>{html.escape(cell)}</th>" for cell in head),
        "</tr></thead><tbody>",
    ]
    for row in rows:
        lines.append("<tr>")
        for place, cell in enumerate(row):
            figure = len(cell) < _FIGURE and re.match(r"^[-+≥≤<>=]*\s?[\d.,]+", cell)
            kind = ' class="n"' if figure else ""
            lines.append(f"<td{kind}>{cell if place in raw else html.escape(cell)}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


def from_markdown(text: str) -> str:
    """Return what our own pages use of Markdown: headings, paragraphs with bold words and code, tables."""
    found = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("#"):
            heading, _, rest = block.partition("\n")
            level = min(6, 3 + len(heading) - len(heading.lstrip("#")))
            found.append(f"<h{level}>{html.escape(heading.lstrip('# '))}</h{level}>")
            block = rest
        if block.startswith("|"):
            lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            found.append(table(lines[0], lines[2:]))
        elif block.strip():
            words = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(block))
            words = re.sub(r"`(.+?)`", r"<code>\1</code>", words)
            found.append(f"<p>{words}</p>")
    return "\n".join(found)


def bar(share: float, *, ours: bool) -> str:
    """Return a bar as long as a share of the widest."""
    width = max(1.0, 100 * share)
    colour = "#0b6e4f" if ours else "#5b7c99"
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.1f}" height="8" fill="{colour}"/></svg>'
    )
