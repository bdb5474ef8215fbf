"""docs/nearline.md: its examples run, one after the other, and leave what the page says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from aif_jax.bundle import Bundle
from aif_jax.integrations.redis import write_update
from aif_jax.integrations.redis_stream import position_of
from aif_jax.nearline import Archive, BehaviourTable, Upsert
from support.redis_server import serve
from support.served import World

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nearline.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def catalogue(world: World, where: Path) -> None:
    where.mkdir()
    content = [row if row.any() else None for row in world.content]
    columns = {name: list(column) for name, column in world.columns.items()}
    pq.write_table(pa.table({"id": world.ids, **columns, "content": content}), where / "all.parquet")


def test_nearline_page_examples_run(
    bundle: Bundle, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    catalogue(world, tmp_path / "catalogue")
    build, keep, replicate, follow = EXAMPLES
    ids, content = world.ids[:1], world.content[:1]
    columns = {**{name: column[:1] for name, column in world.columns.items()}, "price": [99.0]}
    names: dict[str, Any] = {"bundle": bundle, "ids": ids, "columns": columns, "content": content}

    exec(build, names)
    assert (names["report"].rows, len(names["index"])) == (len(world.ids), len(world.ids))
    before = names["index"].gather(ids)[0]["h"]

    lines = keep.splitlines()
    every_other_time = next(line for line in lines if "every other time" in line)
    exec("\n".join(line for line in lines if line != every_other_time), names)
    names["archive"].close()
    names["archive"] = Archive("items/")
    exec(every_other_time, names)
    kept = names["index"]
    changed = kept.gather(ids)[0]["h"]
    assert not np.array_equal(changed, before)

    exec(replicate, names)
    names["replica"].close()
    np.testing.assert_array_equal(names["index"].gather(ids)[0]["h"], changed)

    items, behaviours = names["archive"], Archive("behaviours/")
    behaviours.start(BehaviourTable.open(bundle, "behaviours.aifrows"))
    with serve(tmp_path) as (port, _), redis.Redis(port=port) as client, items, behaviours:
        names |= {"client": client, "items_archive": items, "behaviours_archive": behaviours}
        last = write_update(client, "items", Upsert(ids, {**columns, "price": [3.0]}, content))
        waiting = "    while follower.stats()['upserted'] < 2: time.sleep(0.01)\n"
        exec("import time\n" + follow.replace("    ...\n", waiting), names)
        assert items.position == behaviours.position == position_of(last)
        assert not np.array_equal(kept.gather(ids)[0]["h"], changed)
