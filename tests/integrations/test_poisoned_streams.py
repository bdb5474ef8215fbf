"""Whatever a stream holds, and however often its follower is killed, the table is what a dictionary says."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import ItemIndex, read_dead_letters
from aif_jax.nearline.archive import recover
from support.killed_writer import CATALOGUE, rows_by_price
from support.poisoned import ALWAYS, SOURCES, Stream
from support.processes import shared_compilations
from support.redis_server import connect, serve

SEED = int(os.environ.get("AIF_SEED", "1"))


class Killed(KeyboardInterrupt):
    """The end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[tuple[int, int], bytes]:
    return rows_by_price(bundle)


@contextlib.contextmanager
def stream_of(kind: str, folder: Path, seed: int) -> Any:
    with contextlib.ExitStack() as stack:
        client = port = None
        if kind == "redis":
            port, _ = stack.enter_context(serve(folder))
            client = stack.enter_context(connect(port))
        yield Stream(folder, kind, seed, client), port


def check(stream: Stream, bundle: Bundle, expected: dict[tuple[int, int], bytes]) -> None:
    directory = stream.folder / "archive"
    table, opened = recover(ItemIndex, bundle, directory, verify=True, mapped=True, prefault=False)
    assert (opened.position, opened.refused) == (stream.end, {})
    ids = {int(CATALOGUE[0][row]): (row, price) for row, price in stream.prices.items()}
    assert set(table.ids().tolist()) == {ALWAYS, *ids}
    for item, key in ids.items():
        assert table.gather(CATALOGUE[0][key[0] : key[0] + 1])[0]["h"].tobytes() == expected[key], item
    letters = list(read_dead_letters(directory))
    assert {letter.position for letter in letters if letter.position is not None} == stream.bad
    assert all(letter.reasons[0][2] and letter.raw for letter in letters)


@pytest.mark.parametrize("kind", SOURCES)
def test_follower_of_poisoned_stream_interrupted_anywhere_has_rows_of_dictionary(
    bundle: Bundle,
    expected: dict[tuple[int, int], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    rng = random.Random(SEED)
    kills = 0
    left = [0]

    def mortal(call: Any) -> Any:
        def called(*given: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return call(*given)

        return called

    with stream_of(kind, tmp_path, SEED) as (stream, _):
        for call in ("write", "pwrite", "fsync", "fdatasync", "ftruncate"):
            monkeypatch.setattr(os, call, mortal(getattr(os, call)))
        for _ in range(3):
            stream.add(30)
            done = False
            while not done:
                # From one life to the next it gets further, and the last is long enough.
                left[0] = rng.randrange(1, 60)
                try:
                    for _ in stream.follow(bundle, rng.randrange(1, 12)):
                        pass
                    done = True
                except Killed:
                    kills += 1
            left[0] = 0
            check(stream, bundle, expected)
    assert kills > 3


@pytest.mark.thorough
@pytest.mark.parametrize("kind", SOURCES)
def test_killed_follower_of_poisoned_stream_has_rows_of_dictionary(
    bundle: Bundle, expected: dict[tuple[int, int], bytes], tmp_path: Path, kind: str
) -> None:
    kills, entries = int(os.environ.get("AIF_KILLS", "1")), int(os.environ.get("AIF_UPDATES", "200"))
    rng = random.Random(SEED)
    with stream_of(kind, tmp_path, SEED) as (stream, port):
        stream.add(entries)
        about = {"kind": kind, "seed": SEED, "entries": entries, "end": stream.end, "port": port}
        command = [
            sys.executable,
            "-m",
            "support.poisoned",
            str(bundle.path),
            str(tmp_path),
            json.dumps(about),
        ]
        path = os.pathsep.join(["tests", *sys.path])
        environment = {**os.environ, **shared_compilations(), "PYTHONPATH": path}
        for life in range(kills + 1):
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as follower:
                assert follower.stdout is not None
                assert follower.stdout.readline() == "ready\n"
                if life < kills:
                    time.sleep(rng.random() * 0.3)
                    follower.kill()
                follower.stdout.read()  # to its end, so that it can say that it is done
        assert follower.returncode == 0
        check(stream, bundle, expected)
