"""Streams of good and malformed entries by every source, and what a dictionary says of them.

As a program it follows such a stream until it is killed; see test_poisoned_streams.py. Called with the
bundle, a folder, and JSON of the kind of source, the seed, the number of entries and their end.
"""

import contextlib
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aif_jax.bundle import Bundle
from aif_jax.integrations.parquet import ParquetUpdates
from aif_jax.integrations.redis import encode_update
from aif_jax.integrations.redis_stream import RedisStream, position_of
from aif_jax.nearline import (
    Archive,
    Delete,
    Delivery,
    Follower,
    ItemIndex,
    IterableUpdates,
    UpdateSource,
    Upsert,
)
from aif_jax.nearline.change_log import Position
from support.killed_writer import CATALOGUE, ITEMS, PRICES, upsert

ALWAYS = int(CATALOGUE[0][-1])
"""An item that is in the table from the beginning, so that its ids are integers."""

SOURCES = ("memory", "redis", "parquet")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


MALFORMED_OBJECTS: Sequence[Callable[[], Any]] = (
    lambda: "nonsense",
    lambda: None,
    lambda: Delete([-1]),
    lambda: Delete(None),
    lambda: Delete(3),
    lambda: Delete(["a"] * 2 + [1]).ids,
    lambda: Upsert([5, 6], {"price": [1.0]}),
    lambda: Upsert([5], {"colour": ["red"]}),
    lambda: Upsert(object(), {}),
    lambda: Upsert([5], {"price": [10**400]}),
    lambda: Upsert([5], {"price": [2.0]}, rankable=np.array([2])),
    lambda: Upsert(["text"], {}),
    lambda: Upsert([5], 5),  # type: ignore[arg-type]
    lambda: Upsert([5], {5: [1]}),  # type: ignore[dict-item]
    lambda: Upsert([5], {}, np.full((1, 8), 3.0)),
    lambda: Unprintable(),
)

MALFORMED_FIELDS: Sequence[dict[Any, Any]] = (
    {b"\xff\xfe": "x"},
    {"update": b"\xff\x00{"},
    {"update": "[" * 20_000},
    {"update": '{"version": 1, "upsert": {"ids": [' + "9" * 5000 + "]}}"},
    {"update": '{"version": 1, "upsert": {"ids": [1], "columns": {"price": [1' + "0" * 400 + "]}}}"},
    {"update": '{"version": 1, "delete": {"ids": [-1]}}'},
    {"update": '{"version": 1, "delete": {"ids": ["\\ud800"]}}'},
    {"update": '{"version": 1, "upsert": {"ids": [1, 2], "columns": {"price": [1.0]}}}'},
    {"update": '{"version": 1, "upsert": {"ids": [[1]], "columns": {}}}'},
    {"update": '{"version": 1, "upsert": {"ids": [1], "columns": {"colour": ["red"]}}}'},
    {"update": "{}", "more": ""},
)


@dataclasses.dataclass
class Stream:
    """A stream that entries are added to, and what it means.

    Attributes:
        folder: where its files are, and the archive.
        kind: one of `SOURCES`.
        seed: of the entries.
        redis: client of the server of its entries.
    """

    folder: Path
    kind: str
    seed: int
    redis: Any = None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.prices: dict[int, int] = {}
        self.bad: set[Position] = set()
        self.end: Position = ()
        self._updates: list[Any] = []
        self._count = 0
        (self.folder / "changes").mkdir(parents=True, exist_ok=True)

    def add(self, n: int) -> None:
        """Add entries, a third of them malformed and a tenth of them in one of two items."""
        for _ in range(n):
            self._count += 1
            row, price, chance = self.rng.randrange(ITEMS), self.rng.randrange(PRICES), self.rng.random()
            if chance < 0.3:
                update, partly = self.rng.choice(MALFORMED_OBJECTS)(), False
            elif chance < 0.4:
                good, bad = upsert(row, price), upsert((row + 1) % ITEMS, price)
                bad = dataclasses.replace(bad, content=np.full((1, 8), 3.0, np.float32))
                update, partly = _both(*self.rng.choice([(good, bad), (bad, good)])), True
            elif chance < 0.55:
                update, partly = Delete(CATALOGUE[0][row : row + 1]), False
            else:
                update, partly = upsert(row, price), False
            if chance >= 0.55 or partly:
                self.prices[row] = price
            elif chance >= 0.4:
                self.prices.pop(row, None)
            self.end = getattr(self, f"_add_to_{self.kind}")(update, chance < 0.3)
            if chance < 0.4:
                self.bad.add(self.end)

    def source(self, limit: int) -> UpdateSource:
        """Return a source of the entries, as a process has that begins to follow."""
        if self.kind == "memory":
            return Careless(self._updates, limit, self.seed)
        if self.kind == "redis":
            return RedisStream(self.redis, "items", "mine", limit=limit)
        return ParquetUpdates(self.folder / "changes", endless=False, rows=limit + 1)

    def follow(self, bundle: Bundle, limit: int, **options: Any) -> Iterator[Archive]:
        """Follow to the end of the entries."""
        with Archive(self.folder / "archive") as archive:
            if any(archive.directory.glob("*.rows")):
                archive.open(ItemIndex, bundle)
            else:
                archive.start(ItemIndex.build(bundle, [ALWAYS], {}))
            yield archive
            source = Ending(self.source(limit), archive, self.end)
            Follower(source, [archive], pause_s=0, **options).run()
            yield archive

    def _add_to_memory(self, update: Any, malformed: bool) -> Position:
        self._updates.append(update)
        return (self._count,)

    def _add_to_redis(self, update: Any, malformed: bool) -> Position:
        fields = self.rng.choice(MALFORMED_FIELDS) if malformed else {"update": encode_update(update, "test")}
        return position_of(self.redis.xadd("items", fields).decode())

    def _add_to_parquet(self, update: Any, malformed: bool) -> Position:
        name = f"{self._count:06}.parquet"
        path = self.folder / "changes" / name
        if malformed:
            _write_malformed(path, self.rng)
            return (name, 1 << 62)
        deleted = isinstance(update, Delete)
        columns = {} if deleted else {**update.columns, "content": list(update.content)}
        columns = {column: list(values) for column, values in columns.items()}
        pq.write_table(pa.table({"id": update.ids, **columns, "deleted": [deleted] * len(update.ids)}), path)
        return (name, len(update.ids))


class Careless(IterableUpdates):
    """A source of memory that now and then raises, answers nonsense, repeats, or adds what is no delivery."""

    def __init__(self, updates: Sequence[Any], limit: int, seed: int):
        super().__init__(updates, limit=limit)
        self._rng = random.Random(seed)

    def read(self, after: Position | None, wait_s: float) -> Any:
        chance = self._rng.random()
        if chance < 0.05:
            raise Unprintable
        if chance < 0.1:
            return self._rng.choice([5, "text", {1: 2}, object()])
        found = super().read(after, wait_s)
        if found is None or chance > 0.4:
            return found
        odd = Delivery(None, Delete([1]))  # type: ignore[arg-type]
        backwards = [Delivery((0,), Delete([1])), Delivery(("x",), Delete([1])), *found[:1]]
        return [self._rng.choice([None, odd, 7]), *found, *backwards]


class Ending:
    """A source that ends where the archive has reached a position."""

    def __init__(self, source: UpdateSource, archive: Archive, end: Position):
        self._source, self._archive, self._end = source, archive, end
        self.acknowledge = source.acknowledge

    def read(self, after: Position | None, wait_s: float) -> Any:
        if self._archive.position is not None and self._archive.position >= self._end:
            return None
        return self._source.read(after, wait_s)


def _both(first: Upsert, second: Upsert) -> Upsert:
    assert first.content is not None
    assert second.content is not None
    return Upsert(
        np.concatenate([first.ids, second.ids]),
        {name: [*column, *second.columns[name]] for name, column in first.columns.items()},
        np.concatenate([first.content, second.content]),
    )


def _write_malformed(path: Path, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(rng.randbytes(rng.randrange(300)))
    elif kind == 1:
        pq.write_table(pa.table({"item": [1]}), path)
    elif kind == 2:
        pq.write_table(pa.table({"id": [ALWAYS], "deleted": ["false"]}), path)
    else:
        pq.write_table(pa.table({"id": [1], "price": [1.0]}), path)
        path.write_bytes(path.read_bytes()[:-30])


if __name__ == "__main__":
    bundle = Bundle.load(sys.argv[1])
    about = json.loads(sys.argv[3])
    stream = Stream(Path(sys.argv[2]), about["kind"], about["seed"])
    if about["kind"] == "memory":
        stream.add(about["entries"])
    stream.end = tuple(about["end"])
    with contextlib.ExitStack() as stack:
        if about["kind"] == "redis":
            from support.redis_server import connect

            stream.redis = stack.enter_context(connect(about["port"]))
        for _ in stream.follow(bundle, 7, checkpoint_bytes=20_000):
            print("ready", flush=True)
