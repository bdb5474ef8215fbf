"""Generations of the soak: bundle, right scores, archives that another process keeps, replicas of them here.

Run as a program it is that process: `generations.py prepare FOLDER NUMBER`, or `follow FOLDER ARCHIVES PORT`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from aif_jax.bundle import Bundle
from aif_jax.errors import ArchiveError, ItemIndexError
from aif_jax.integrations.redis import stream_end
from aif_jax.integrations.redis_stream import RedisStream, position_of
from aif_jax.nearline import Archive, Follower, ItemIndex, Replica, Tables, read_dead_letters
from aif_jax.nearline.archive import recover
from aif_jax.nearline.change_log import Position
from soak.truth import DELETED, RANKABLE, Truth
from soak.world import KINDS, items, prepare

STREAM = "items"
CHECKPOINT_BYTES = 1_000_000
OPENS_WITHIN_S = 300.0
ROOM_BYTES = 1_000_000
"""A disk with less is full."""


def connect(port: int) -> redis.Redis:
    return redis.Redis(port=port, socket_timeout=10, retry=Retry(NoBackoff(), 0))


def append(path: Path, **line: Any) -> None:
    """Append a line of JSON to a file, which stays there whatever happens to the process."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=float) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class SteppingClock:
    """`time.time` of this process, which steps by up to an hour, back and forth."""

    def __init__(self) -> None:
        self.offset_s, real = 0.0, time.time
        time.time = lambda: real() + self.offset_s

    def step(self) -> float:
        self.offset_s = random.uniform(-3600, 3600)
        return self.offset_s


class Generation:
    """One generation and the process that follows the stream for it.

    Args:
        number: seed of its weights.
        folder: where bundle, right scores and notes of the process are.
        archives: where its archives are, on the disk that fills up.
        port: of the redis-server.
    """

    def __init__(self, number: int, folder: Path, archives: Path, port: int):
        self.number, self.folder, self.archives, self._port = number, folder, archives, port
        self.process: subprocess.Popen[bytes] | None = None
        self.tables: Tables | None = None
        self._replicas: list[Replica] = []
        folder.mkdir(parents=True)

    def prepare(self) -> None:
        """Export the bundle in a process of its own."""
        self._begin("prepare", str(self.number)).wait()
        self.bundle, right = Bundle.load(self.folder / "bundle"), np.load(self.folder / "right.npz")
        self.scores, self.hashes = right["scores"], [right[kind.kind] for kind in KINDS]

    def take_catalogue(self, truth: Truth, client: redis.Redis) -> None:
        """Take the stream's position, then the catalogue."""
        entry, now = stream_end(client, STREAM), np.array([states[-1][1:] for states in truth.items])
        self.since: Position = position_of(entry)
        np.savez(self.folder / "catalogue.npz", versions=now[:, 0], flags=now[:, 1], entry=entry)

    def start(self) -> None:
        """Start the process that follows, again if it has ended."""
        self.process = self._begin("follow", str(self.archives), str(self._port))

    def _begin(self, job: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self.folder / "process.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, __file__, job, str(self.folder), *arguments], stdout=log, stderr=log
            )

    def open(self) -> Tables:
        """Open replicas of the archives, once they are there, and follow them."""
        end, tables = time.monotonic() + OPENS_WITHIN_S, list[Any]()
        while len(tables) < len(KINDS):
            kind = KINDS[len(tables)]
            replica = Replica(self.archives / kind.kind)
            try:
                tables.append(replica.open(kind, self.bundle))
            except (ItemIndexError, FileNotFoundError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
                continue
            replica.start()
            self._replicas.append(replica)
        self.tables = Tables(*tables)
        return self.tables

    @property
    def position(self) -> Position:
        """The position that both tables have reached here."""
        return min((replica.position or self.since for replica in self._replicas), default=self.since)

    def end(self, how: int) -> str:
        """End the process by a signal; return what it wrote if it ended by itself."""
        assert self.process is not None
        self.process.send_signal(how)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        # It may be asked to end before it can be asked.
        return "" if code in (0, -how) else f"ended with {code}: {self.output()}"

    def output(self) -> str:
        return (self.folder / "process.log").read_text(errors="replace")[-1500:]

    def told(self, name: str) -> Any:
        """Return what the process told last of one of its counts; ``None`` before the first time."""
        lines = read_lines(self.folder / "status.jsonl")
        return lines[-1][name] if lines else None

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()

    def faults(self, truth: Truth) -> list[str]:
        """Return what differs between the replicas and what was said."""
        found = []
        for replica, table, hashes in zip(self._replicas, self.tables or (), self.hashes, strict=True):
            if failure := replica.stats()["failure"]:
                found.append(f"replica of {table.kind}: {failure}")
            if rows := truth.differing(table, hashes, replica.position or self.since):
                found.append(f"replica of {table.kind}: {len(rows)} rows of no state, such as {rows[:3]}")
        return found

    def faults_on_disk(self, truth: Truth, reached: Position | None = None) -> list[str]:
        """Recover the archives, which nobody writes now; return what differs from what was said.

        Args:
            truth: what was said.
            reached: the position that they must have; ``None`` for the last that the process told.
        """
        told, found = self.told("position") or [None] * len(KINDS), []
        for kind, hashes, last in zip(KINDS, self.hashes, told, strict=True):
            if last is None and not any((self.archives / kind.kind).glob("*.rows")):
                continue
            table, opened = recover(
                kind, self.bundle, self.archives / kind.kind, verify=True, mapped=True, prefault=False
            )
            wanted, position = reached or tuple(last or self.since), opened.position or self.since
            if position < wanted or opened.refused:
                found.append(
                    f"archive of {kind.kind}: at {position}, {wanted} was confirmed; refused {opened.refused}"
                )
            if rows := truth.differing(table, hashes, position):
                found.append(f"archive of {kind.kind}: {len(rows)} rows of no state, such as {rows[:3]}")
            letters = {
                one.position
                for one in read_dead_letters(self.archives / kind.kind)
                if (one.position or position) <= position
            }
            with truth.lock:
                wrong = letters ^ {one for one in truth.malformed if self.since < one <= position}
            if wrong:
                found.append(f"dead letters of {kind.kind}: {len(wrong)} too many or few: {[*wrong][:3]}")
        return found


# -- the process ----------------------------------------------------------------------------------


def _archive(kind: Any, bundle: Bundle, directory: Path, folder: Path) -> Archive:
    """Return the archive of a table, begun from the catalogue if there is none, once the disk has room."""
    while True:
        archive = Archive(directory)
        try:
            if any(directory.glob("*.rows")):
                archive.open(kind, bundle)
            else:
                archive.start(*_catalogue(kind, bundle, folder))
            return archive
        except ArchiveError:
            archive.close()
            if shutil.disk_usage(directory).free > ROOM_BYTES:
                raise
            time.sleep(1.0)


def _catalogue(kind: Any, bundle: Bundle, folder: Path) -> tuple[Any, Position]:
    """Return a table of the catalogue, and the position in the stream that it has."""
    catalogue, source = np.load(folder / "catalogue.npz"), np.load(folder / "right.npz")
    flags = catalogue["flags"]
    rows = np.flatnonzero(flags != DELETED) if kind is ItemIndex else np.arange(len(flags))
    found = items(source, rows, catalogue["versions"][rows])
    rankable = {"rankable": flags[rows] == RANKABLE} if kind is ItemIndex else {}
    table = kind.build(bundle, found.ids, found.columns, found.content, **rankable)
    return table, position_of(str(catalogue["entry"]))


def _follow(folder: Path, directory: Path, port: int) -> None:
    """Follow the stream until SIGTERM, and note how far once a second."""
    clock, parent, bundle = SteppingClock(), os.getppid(), Bundle.load(folder / "bundle")
    archives = [_archive(kind, bundle, directory / kind.kind, folder) for kind in KINDS]
    source = RedisStream(connect(port), STREAM, f"follower-{folder.name}")
    follower = Follower(source, archives, max_bad_share=None, pause_s=0.2, checkpoint_bytes=CHECKPOINT_BYTES)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=follower.close).start())

    def note() -> None:
        append(folder / "status.jsonl", pid=os.getpid(), **follower.stats())

    def watch() -> None:
        while os.getppid() == parent:
            note()
            if random.random() < 0.03:
                clock.step()
            time.sleep(1.0)
        os._exit(1)  # the soak was killed

    threading.Thread(target=watch, daemon=True).start()
    follower.run()
    note()
    for archive in archives:
        archive.close()


if __name__ == "__main__":
    job, folder, argument, *port = sys.argv[1:]
    if job == "prepare":
        prepare(Path(folder), int(argument))
    else:
        _follow(Path(folder), Path(argument), int(port[0]))
