"""Count of the package's functions that one plain `Engine.rank` runs: the length of the road for a reader.

    python tests/structure/count_calls.py [--max-functions N] [--max-files N] [--show]

It serves a small untrained model and counts Python functions in the thread that ranks. The request has
candidates from `retrieve`, integer ids, no deadline and a user whose state is not cached. It prints one line
of JSON, and exits 1 if a limit is exceeded, after a list of all functions by file.
"""

import argparse
import collections
import functools
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import aif_jax as aif
from aif_jax.data import fit_width, load
from aif_jax.models import build_model
from aif_jax.serving import EngineConfig, Shapes

Calls = collections.Counter[tuple[str, str]]
"""Calls by file, relative to the package, and qualified name."""

_ELSEWHERE = "(elsewhere)"


def make_engine(folder: Path) -> tuple[aif.Engine, list[str]]:
    """Return an engine with a small model in a folder, and the ids of its users."""
    data = load("synthetic:small")
    config = aif.ModelConfig(heads=("ctr",), blocks=("long_attention", "profile_item"), long_length=256)
    model = build_model(config, data.fit_schema())
    bundle = aif.export_bundle(model, folder / "bundle", k_max=50)
    columns = {name: column for name, column in data.items.items() if name != "ids"}
    assert data.content is not None, "the synthetic data has content"
    content = fit_width(data.content, bundle.config.content_width).vectors
    tables = aif.build_tables(bundle, aif.ItemRecords(data.items["ids"], columns, content))
    users = {str(data.users["ids"][n]): data.user_record(n) for n in range(60)}
    retrieved = data.items["ids"][:200]
    sizes = EngineConfig(shapes=Shapes(candidates=(208,), histories=(256,), users=()))
    engine = aif.Engine(bundle, tables, users=users.get, retrieve=lambda request: retrieved, config=sizes)
    return engine, list(users)


def count_calls(function: Callable[[], object]) -> Calls:
    """Return the calls of Python functions that a function makes in this thread."""
    package = Path(aif.__file__).parent
    calls: Calls = collections.Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            file = Path(frame.f_code.co_filename)
            inside = file.is_relative_to(package)
            name = str(file.relative_to(package)) if inside else _ELSEWHERE
            calls[name, frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def main() -> int:
    """Count, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--max-functions", type=int, default=sys.maxsize, help="of the package")
    parser.add_argument("--max-files", type=int, default=sys.maxsize, help="that these functions stand in")
    parser.add_argument(
        "--show",
        action="store_true",
        help="list the functions in any case, in the order of their first calls",
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        engine, users = make_engine(Path(folder))
        with engine:
            for user in users[:50]:  # what only the first requests do is over then
                engine.rank(user, k=20)
            calls = count_calls(functools.partial(engine.rank, users[55], k=20))
    own = {place: count for place, count in calls.items() if place[0] != _ELSEWHERE}
    files = {file for file, _ in own}
    exceeded = [
        f"{count} {what}, expected at most {limit}"
        for count, limit, what in (
            (len(own), arguments.max_functions, "functions"),
            (len(files), arguments.max_files, "files"),
        )
        if count > limit
    ]
    if exceeded or arguments.show:
        for (file, name), count in own.items():  # in the order of their first calls
            print(f"{count:4} {file}  {name}")
    report = {
        "calls_of_ours": sum(own.values()),
        "functions_of_ours": len(own),
        "files_of_ours": len(files),
        "serving_files": sum(file.startswith("serving/") for file in files),
        "calls_in_all": calls.total(),
    }
    print(json.dumps(report))
    if exceeded:
        print(f"A plain Engine.rank runs {' and '.join(exceeded)}; the list above names them.")
    return int(bool(exceeded))


if __name__ == "__main__":
    sys.exit(main())
