"""Figures that a document quotes stand in the record that it names: `make lint` checks docs/benchmarks.md.

A paragraph that links to records may hold only figures of these records, rounded or not; a table or a list
that links to none, those of the paragraph before it, or after it. What `make demo` prints anyone can see, so
a table below it needs none.
"""

import re
from pathlib import Path

RECORD = re.compile(r"\]\(((?:\.\./)?bench/records/[^)#]+\.md)")
LINK = re.compile(r"\[[^\]]*\]\([^)]*\)|`[^`]*`")
MEASURED = re.compile(r"(?<![\w.])(\d[\d,]*\.\d+|\d[\d,]*(?= (?:ms|%|times|bytes|GB|requests a second)\b))")
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?")
PRINTED = "`make demo"


def unrecorded(document: Path) -> list[str]:
    """Return one line for each figure of a document that no record beside it holds."""
    blocks = [block for block in re.split(r"\n\s*\n", document.read_text(encoding="utf-8")) if block.strip()]
    found = []
    for place, block in enumerate(blocks):
        table = block.lstrip().startswith("|")
        before, after = "".join(blocks[place - 1 : place]), "".join(blocks[place + 1 : place + 2])
        if table and PRINTED in before:
            continue
        near = RECORD.findall(block)
        if table or block.lstrip().startswith("- "):
            near = near or RECORD.findall(before) or RECORD.findall(after)
        records = sorted(set(near))
        if not records:
            if table:
                found.append(
                    f"{document.name}: no record is named beside the table {block.splitlines()[0]!r}"
                )
            continue
        known = _numbers("\n".join((document.parent / name).read_text(encoding="utf-8") for name in records))
        figures = (NUMBER if table else MEASURED).findall(LINK.sub("", block))
        found += [
            f"{document.name}: {figure} stands in none of {', '.join(records)}"
            for figure in dict.fromkeys(figures)
            if not _holds(known, figure)
        ]
    return found


def _numbers(text: str) -> list[float]:
    found = []
    for number in NUMBER.findall(text):
        value = float(number.replace(",", ""))
        # A share may be quoted in per cent, and the other way round.
        found += [value, value * 100, value / 100]
    return found


def _holds(known: list[float], figure: str) -> bool:
    decimals = len(figure.partition(".")[2])
    value, half = float(figure.replace(",", "")), 0.5 * 10.0**-decimals
    return any(abs(number - value) <= half * 1.0001 for number in known)
