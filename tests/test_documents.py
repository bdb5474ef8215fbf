"""Code blocks of the documents: those of a page run in order, with the names that the page says it has."""

import itertools
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import Tables
from aif_jax.serving import Engine, InMemoryUsers
from support import road
from support.served import ENGINE_CONFIG, World, tables_of

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SERVED = ("your-model", "serving", "publishing", "observing")
"""Pages whose examples need a bundle that serves."""


@pytest.fixture(scope="module")
def names(bundle: Bundle, other_bundle: Bundle, tables: Tables, world: World) -> Iterator[dict[str, Any]]:
    users = InMemoryUsers({"ann": world.record(5), "bob": world.record(6)})

    def retrieve(_: Any) -> Any:
        return world.ids[:30]

    with Engine(bundle, tables, users=users, retrieve=retrieve, config=ENGINE_CONFIG) as engine:
        yield {
            "bundle": bundle, "tables": tables, "users": users, "item_ids": world.ids, "engine": engine,
            "retrieve": retrieve, "new_bundle": other_bundle, "new_tables": tables_of(other_bundle, world)[1],
        }  # fmt: skip


@pytest.mark.parametrize("page", SERVED)
def test_document_code_blocks_run(page: str, names: dict[str, Any]) -> None:
    path = DOCS / f"{page}.md"
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    assert blocks
    given = dict(names)
    for block in blocks:
        exec(compile(block, str(path), "exec"), given)


@pytest.mark.thorough
def test_document_daily_script_keeps_quality_and_rows_of_known_items(tmp_path: Path) -> None:
    script = DOCS / "examples" / "daily.py"
    assert len([line for line in script.read_text(encoding="utf-8").splitlines() if line.strip()]) <= 60
    results = runpy.run_path(str(script))["main"](tmp_path)
    assert [len(result.history) for result in results] == [4, 1, 1]
    gauc = [result.metrics.gauc for result in results]
    assert gauc[0] > 0.8
    assert min(gauc[1:]) > gauc[0] - 0.01
    for before, after in itertools.pairwise(results):
        one, other = (
            dict(zip(result.schema.feature("item", "item").encoder.values, table[2:], strict=True))
            for result in (before, after)
            for table in [np.asarray(result.model.item.embed.table_item[...])]
        )
        assert one.keys() < other.keys()
        moved = np.array([np.linalg.norm(other[item] - one[item]) for item in one])
        apart = np.array([np.linalg.norm(one[item] - one[next(iter(one))]) for item in one])
        assert moved.mean() < 0.5 * apart.mean()


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_getting_started_commands_end_in_an_answer_over_http(tmp_path: Path) -> None:
    lines = road.commands()
    assert len(lines) <= road.MAX_LINES
    assert lines[0].startswith("python3 -m venv")
    assert lines[1].startswith("pip install")
    road.write_log(tmp_path / "log.parquet", users=150, items=100, events=4_000)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    answer = road.walk(tmp_path, lines[2:], {**os.environ, "PATH": path})  # where this is installed already
    assert len(answer["ids"]) == 3
    assert answer["scores"] == sorted(answer["scores"], reverse=True)


def test_document_every_page_with_code_is_run() -> None:
    run = {*SERVED, "errors", "evaluation", "nearline", "your-data"}
    assert {path.stem for path in DOCS.glob("*.md") if BLOCK.search(path.read_text(encoding="utf-8"))} <= run
