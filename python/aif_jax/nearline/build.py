"""A snapshot of a catalogue that need not fit into memory, and whose building can be broken off and gone on
with."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from aif_jax import _native
from aif_jax.bundle import Bundle
from aif_jax.bundle.files import make_directory
from aif_jax.errors import AifError, ItemIndexError
from aif_jax.features import EncodeReport, item_keys
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.records import take
from aif_jax.nearline.row_file import RowFileWriter, joined_names, split_names
from aif_jax.nearline.row_program import RowProgram, batches
from aif_jax.nearline.table import RowTable, collision
from aif_jax.types import ItemRecords

_SYNC_S = 2.0
"""Seconds after which what was computed is brought to the disk, and counts as done."""

_NAMED = 20
"""Bad items that are kept with their reasons."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        rows: that are done, those of an earlier attempt included.
        bad: items that were set aside.
        rate: rows a second of this attempt.
        total: items of the catalogue, if that was said.
        eta_s: seconds that are left at this rate, if ``total`` was said.
    """

    rows: int
    bad: int
    rate: float
    total: int | None
    eta_s: float | None


@dataclasses.dataclass(kw_only=True)
class BuildReport:
    """What a build came to.

    Attributes:
        rows: in the snapshot.
        resumed: of these, rows that an earlier attempt had computed.
        bad: items that were set aside, by the error's name; ``Twice`` for items that had stood there before.
        named: the first of them: id and reason.
        seconds: of this attempt.
        encoding: what encoding raw features had to leave out, in this attempt.
    """

    rows: int = 0
    resumed: int = 0
    bad: Counter[str] = dataclasses.field(default_factory=Counter)
    named: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    encoding: EncodeReport = dataclasses.field(default_factory=EncodeReport)

    def set_aside(self, item: Any, reason: str, kind: str) -> None:
        """Count an item that is left out."""
        self.bad[kind] += 1
        if len(self.named) < _NAMED:
            self.named.append((item, reason))


def build_snapshot(
    kind: type[RowTable],
    bundle: Bundle,
    catalogue: Iterable[ItemRecords],
    path: str | Path,
    *,
    total: int | None = None,
    most_bad: float = 0.01,
    position: Position | None = None,
    resume: bool = True,
    progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """Compute the rows of a catalogue, batch by batch, straight into a snapshot file.

    Memory holds the keys and a few batches. What a killed build had computed is in ``PATH.building`` and is
    not computed again; the catalogue is then read again from its beginning and must give the same items. Rows
    have the same bits however often it was broken off.

    Args:
        kind: `ItemIndex` or `BehaviourTable`.
        bundle: the model.
        catalogue: items, some thousands at a time; `Upsert` will do. It is read in a thread.
        path: the snapshot file.
        total: how many items there will be, for ``progress``.
        most_bad: the share of items that may be bad. Those are set aside and counted; more are an error.
        position: of a stream of updates, taken before the catalogue was read; kept in the snapshot's notes.
        resume: go on with what a killed build left; otherwise begin anew.
        progress: called after every batch.

    Returns:
        What was done; `RowTable.open` opens the file.

    Raises:
        ItemIndexError: too many items are bad, two string ids have the same hash, what was left is of another
            bundle version or another catalogue, or the file cannot be written.
    """
    with _Building(kind, bundle, Path(path), resume) as building:
        return building.run(catalogue, total, most_bad, position, progress)


@dataclasses.dataclass(frozen=True, slots=True)
class _Batch:
    """A batch of the catalogue, encoded."""

    digest: str
    """Of all ids up to here."""
    keys: list[np.ndarray]
    """Of runs of the items that can be encoded, in their order."""
    names: list[str]
    """Of the same, if ids are strings."""
    encoded: list[tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]]
    """Of runs of these: features, content, and the columns that no program computes."""
    bad: list[tuple[Any, AifError]]
    report: EncodeReport


class _Building:
    """A folder with the rows so far, their keys and names, and how many of each count."""

    def __init__(self, kind: type[RowTable], bundle: Bundle, path: Path, resume: bool):
        self._kind, self._path = kind, path
        self._program = RowProgram(bundle, kind.stage)
        self._folder = path.with_name(f"{path.name}.building")
        if not resume:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._state: dict[str, Any] = {
            "version": bundle.version, "kind": kind.kind, "batches": 0, "rows": 0, "names": 0,
            "strings": None, "digest": "", "bad": {}, "named": [],
        }  # fmt: skip
        self._read_state()
        rows = self._state["rows"]
        named = [(item, reason) for item, reason in self._state["named"]]
        self._report = BuildReport(rows=rows, resumed=rows, bad=Counter(self._state["bad"]), named=named)
        try:
            make_directory(self._folder)
        except OSError as error:
            raise ItemIndexError(
                f"{path}: cannot be written ({error.strerror}: {error.filename}); expected a path under a "
                "directory that can be written to."
            ) from error
        about = {"kind": kind.kind, "version": bundle.version, "columns": kind.columns_of(bundle)}
        self._rows = RowFileWriter(path, **about, partial=self._folder / "rows", rows=rows)
        self._keys = _Appended(self._folder / "keys", 8 * rows)
        self._names = _Appended(self._folder / "names", self._state["names"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.__exit__(kind, error, trace)
        self._keys.close()
        self._names.close()

    def run(
        self,
        catalogue: Iterable[ItemRecords],
        total: int | None,
        most_bad: float,
        position: Position | None,
        progress: Callable[[BuildProgress], None] | None,
    ) -> BuildReport:
        began_s = synced_s = time.perf_counter()
        report = self._report
        for batch in self._ahead(catalogue, most_bad):
            self._write(batch)
            self._check_share(most_bad, 1000)
            now_s = time.perf_counter()
            if now_s - synced_s > _SYNC_S:
                self._sync()
                synced_s = now_s
            if progress is not None:
                progress(self._progress(total, now_s - began_s))
        self._finish(most_bad, position)
        report.seconds = time.perf_counter() - began_s
        return report

    def _progress(self, total: int | None, elapsed_s: float) -> BuildProgress:
        rows, bad = self._report.rows, self._report.bad.total()
        rate = (rows - self._report.resumed) / max(elapsed_s, 1e-9)
        eta_s = None if total is None or not rate else max(total - rows - bad, 0) / rate
        return BuildProgress(rows=rows, bad=bad, rate=rate, total=total, eta_s=eta_s)

    # -- reading ----------------------------------------------------------------------------------

    def _ahead(self, catalogue: Iterable[ItemRecords], most_bad: float) -> Iterator[_Batch]:
        """Yield the batches that are not done, encoded in a thread while the ones before are computed."""
        batches_in = iter(catalogue)
        self._skip(batches_in)
        digest = self._state["digest"]

        def encode_next() -> _Batch | None:
            nonlocal digest
            records = next(batches_in, None)
            if records is None:
                return None
            digest = _chained(digest, records)
            return self._encode(records, digest, max(int(most_bad * len(records.ids)), 100))

        with concurrent.futures.ThreadPoolExecutor(1, "aif-catalogue") as reader:
            ahead = reader.submit(encode_next)
            while (batch := ahead.result()) is not None:
                ahead = reader.submit(encode_next)
                yield batch

    def _skip(self, batches_in: Iterator[ItemRecords]) -> None:
        """Read the batches that were done, and check that they are those.

        Raises:
            ItemIndexError: they are not.
        """
        digest = ""
        for records in itertools.islice(batches_in, self._state["batches"]):
            digest = _chained(digest, records)
        if digest != self._state["digest"]:
            raise ItemIndexError(
                f"{self._folder}: the first {self._state['batches']:,} batches of the catalogue are not "
                "those that were built before; pass resume=False to begin anew."
            )

    def _encode(self, records: ItemRecords, digest: str, most: int) -> _Batch:
        """Encode a batch, halving what cannot be encoded until the bad items are found.

        Raises:
            ItemIndexError: there are more bad ones than ``most``.
        """
        batch = _Batch(digest, [], [], [], [], EncodeReport())

        def encode(places: np.ndarray) -> None:
            some = records if len(places) == len(records.ids) else take(records, places)
            report = EncodeReport()
            try:
                keys = item_keys(some.ids)
                features = self._program.encode(some.columns, len(places), report)
                content = self._program.content(some.content, len(places))
                extra = self._kind.extra_of(some)
            except AifError as error:
                if len(places) > 1:
                    middle = len(places) // 2
                    encode(places[:middle])
                    encode(places[middle:])
                    return
                batch.bad.append((_plain(some.ids[0]), error))
                if len(batch.bad) > most:
                    raise ItemIndexError(
                        f"{self._path}: more than {most:,} of {len(records.ids):,} items are bad, "
                        f"{some.ids[0]!r} for one: {error} What was built so far is kept: mend the "
                        "catalogue, or raise most_bad."
                    ) from error
                return
            batch.keys.append(keys)
            if len(keys) and isinstance(some.ids[0], str):
                batch.names.extend(map(str, some.ids))
            batch.encoded.append((features, content, extra))
            batch.report.add(report)

        encode(np.arange(len(records.ids)))
        return batch

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, batch: _Batch) -> None:
        waiting: Callable[[], None] | None = None
        for features, content, extra in batch.encoded:
            for part in batches(len(content)):
                rows = self._program.start({name: a[part] for name, a in features.items()}, content[part])
                # Rows are written while the next ones are computed.
                if waiting is not None:
                    waiting()
                added = {name: value[part] for name, value in extra.items()}
                waiting = functools.partial(self._write_rows, rows, added, part.stop - part.start)
        if waiting is not None:
            waiting()
        count = sum(len(keys) for keys in batch.keys)
        if count:
            strings = bool(batch.names)
            if self._state["strings"] not in (None, strings):
                raise ItemIndexError("ids: got integers and strings; use one kind throughout.")
            self._state["strings"] = strings
            for keys in batch.keys:
                self._keys.append(keys.astype("<u8").tobytes())
            if strings:
                self._names.append(joined_names(batch.names))
        for item, error in batch.bad:
            self._report.set_aside(item, str(error), type(error).__name__)
        self._report.rows += count
        self._report.encoding.add(batch.report)
        self._state["batches"] += 1
        self._state["digest"] = batch.digest

    def _write_rows(
        self, rows: Callable[[], dict[str, np.ndarray]], added: dict[str, np.ndarray], n: int
    ) -> None:
        self._rows.write_rows(rows() | added, n)

    def _check_share(self, most_bad: float, least: int) -> None:
        """Look at the share of bad items, once there are enough to tell.

        Raises:
            ItemIndexError: it is too large.
        """
        bad = self._report.bad.total()
        seen = bad + self._report.rows
        if seen >= least and bad > most_bad * seen:
            raise ItemIndexError(
                f"{self._path}: {bad:,} of {seen:,} items are bad, expected at most {most_bad:.1%} "
                f"(most_bad): {dict(self._report.bad)}; the first: {self._report.named[:3]}. What was built "
                "so far is kept: mend the catalogue, or raise most_bad."
            )

    def _sync(self) -> None:
        """Bring all to the disk, then the state that says how much of it counts."""
        self._rows.sync()
        self._keys.sync()
        self._names.sync()
        report = self._report
        self._state |= {
            "rows": report.rows,
            "names": self._names.bytes,
            "bad": report.bad,
            "named": report.named,
        }
        beside = self._folder / "state.part"
        with open(beside, "w", encoding="utf-8") as stream:
            json.dump(self._state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, self._folder / "state.json")

    def _read_state(self) -> None:
        path = self._folder / "state.json"
        if not path.exists():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in ("version", "kind"):
            if found[name] != self._state[name]:
                raise ItemIndexError(
                    f"{self._folder}: was left by a build of {name} {found[name]}, this one is of "
                    f"{self._state[name]}; pass resume=False to begin anew."
                )
        self._state = found

    def _finish(self, most_bad: float, position: Position | None) -> None:
        keys = np.frombuffer(self._keys.read(), "<u8")
        names = split_names(self._names.read()) if self._state["strings"] else None
        first = _native.distinct(np.ascontiguousarray(keys))
        if first is not None:
            self._leave_out_repeats(keys, names, first)
            self._rows.keep(first)
            keys = keys[first]
            names = None if names is None else [names[place] for place in first.tolist()]
            self._report.rows = len(keys)
        self._check_share(most_bad, 1)
        notes = {} if position is None else {"position": position}
        self._rows.finish(keys, self._rows.checksums(len(keys)), names, notes)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _leave_out_repeats(self, keys: np.ndarray, names: list[str] | None, first: np.ndarray) -> None:
        where = dict(zip(keys[first].tolist(), first.tolist(), strict=True))
        for place in np.setdiff1d(np.arange(len(keys)), first).tolist():
            key = int(keys[place])
            item: Any = key if names is None else names[place]
            if names is not None and names[where[key]] != item:
                raise collision(names[where[key]], item, key)
            self._report.set_aside(item, "stood there before; the first row stays", "Twice")


class _Appended:
    """A file that grows, of which only so many bytes count."""

    def __init__(self, path: Path, size: int):
        self._path = path
        self._stream = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._stream.truncate(size)
        self._stream.seek(size)
        self.bytes = size

    def append(self, content: bytes) -> None:
        self._stream.write(content)
        self.bytes += len(content)

    def read(self) -> bytes:
        self._stream.flush()
        return self._path.read_bytes()

    def sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def _chained(digest: str, records: ItemRecords) -> str:
    """Return the digest of a batch of ids and of all before."""
    ids: Any = records.ids
    plain = isinstance(ids, np.ndarray) and ids.dtype != object
    raw = ids.tobytes() if plain else repr(list(ids)).encode()
    return hashlib.blake2b(digest.encode() + raw, digest_size=16).hexdigest()


def _plain(item: Any) -> Any:
    return item.item() if isinstance(item, np.generic) else item
