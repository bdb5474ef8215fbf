"""The life of an item index: saved, opened, built out of core, and followed by updates beside readers.

`python bench/item_index.py`: five minutes at 1,000,000 items; `--quick` is over sooner and only checks
answers. Writes results and a page into a folder of its own, and the page to `--record` too.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from indexing import building, opening, updating
from indexing.page import page
from load.plan import add_arguments, described, workload
from load.progress import steps
from load.written import write
from stage.environment import environment
from workload import build

RATES = (100.0, 1000.0, 10_000.0)


def main(arguments: list[str] | None = None) -> Path:
    """Measure; return the folder with the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, Path("runs/item-index"))
    parser.set_defaults(items=1_000_000)
    given = parser.parse_args(arguments)
    results: dict[str, Any] = {"environment": environment(), "plan": described(given)}
    with steps(4) as step, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step("the catalogue")
        built = build(workload(given), folder)
        results["row_bytes"] = built.tables.items.store.cache.layout.row_bytes
        step("saving and opening")
        results["opening"] = opening.measure(built, folder, 1 if given.quick else 10)
        step("building out of core")
        items = min(len(built.source.ids), 1000 if given.quick else 100_000)
        results["building"] = building.measure(built, folder, items, 1 if given.quick else 3)
        step("updates beside readers")
        rates = (200.0,) if given.quick else RATES
        results["updating"] = updating.measure(built, folder, rates, 2.0 if given.quick else 8.0)
    return write(given, results, page)


if __name__ == "__main__":
    main()
