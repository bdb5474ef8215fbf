"""A writer that is killed at any moment loses no update and applies none twice, while a replica in another
process follows it: `AIF_KILLS=50 AIF_UPDATES=10000` kills more often."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import ItemIndex, Replica
from aif_jax.nearline.archive import recover
from support.killed_writer import CATALOGUE, ITEMS, UPDATES, changes, rows_by_price
from support.processes import shared_compilations

KILLS = int(os.environ.get("AIF_KILLS", "1"))
AT_A_TIME = 30


@pytest.mark.thorough
def test_archive_of_killed_writer_loses_no_update(bundle: Bundle, tmp_path: Path) -> None:
    said, expected = changes(), rows_by_price(bundle)
    ids = [CATALOGUE[0][row : row + 1] for row in range(ITEMS)]
    rng = random.Random(int(os.environ.get("AIF_SEED", "1")))
    kills, acknowledged, snapshots = 0, 0, set[int]()

    def check(exact: bool) -> int:
        table, opened = recover(
            ItemIndex, bundle, tmp_path / "items", verify=True, mapped=True, prefault=False
        )
        assert not opened.refused
        snapshots.add(opened.snapshot)
        position = 0 if opened.position is None else int(opened.position[0])
        assert position >= acknowledged, "an update that was acknowledged is lost"
        look(table, position, exact)
        return position

    def look(table: ItemIndex, position: int, exact: bool) -> None:
        state = dict(said[:position])
        # Of the updates behind the position, the first may have been made and not yet been confirmed.
        open_to = set() if exact else {row for row, _ in said[position : position + AT_A_TIME]}
        for row in set(range(ITEMS)) - open_to:
            columns, found = table.gather(ids[row])
            price = state.get(row)
            assert found[0] == (price is not None)
            assert price is None or columns["h"].tobytes() == expected[row, price]

    replica = Replica(tmp_path / "items")
    replicated: ItemIndex | None = None
    while True:
        command = [sys.executable, "-m", "support.killed_writer", str(bundle.path), str(tmp_path / "items")]
        path = os.pathsep.join(["tests", *sys.path])
        environment = {**os.environ, **shared_compilations(), "PYTHONPATH": path}
        with subprocess.Popen(
            [*command, str(kills)], stdout=subprocess.PIPE, text=True, env=environment
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            if replicated is None:
                replicated = replica.open(ItemIndex, bundle)
                replica.start(interval_s=0.001)
            left = rng.randint(1, max(2, 2 * UPDATES // AT_A_TIME // (KILLS + 1)))
            for line in writer.stdout:
                acknowledged = int(line)
                left -= 1
                if kills < KILLS and left <= 0:
                    time.sleep(rng.random() * 0.02)
                    writer.kill()
                    break
            acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        if writer.returncode == 0:
            break
        kills += 1
        check(exact=False)
    assert (kills, check(exact=True), acknowledged) == (KILLS, UPDATES, UPDATES)
    replica.close()
    replica.poll()
    stats = replica.stats()
    assert (stats["position"], stats["behind_bytes"], stats["failure"]) == ((UPDATES,), 0, None)
    assert replicated is not None
    look(replicated, UPDATES, exact=True)
    print(f"{kills} kills, 0 of {UPDATES:,} updates lost, {len(snapshots)} snapshots opened, 0 refused")
