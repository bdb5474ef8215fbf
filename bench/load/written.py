"""Results into files."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stage.environment import environment


def write(
    given: argparse.Namespace,
    results: dict[str, Any],
    page: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], list[Path]] | None = None,
) -> Path:
    """Write results, page and pictures where the arguments say, print the page, and return the folder."""
    results["environment"]["load_1_min_at_end"] = environment()["load_1_min"]
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "results.json", out / "page.md"]
    written[0].write_text(json.dumps(results, indent=1) + "\n")
    text = page(results)
    for path in (written[1], given.record):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if given.record is not None:
        written.append(given.record)
    if draw is not None:
        written += draw(results, out)
    print(text)
    print("Written:", *written, sep="\n  ")
    return out
