"""Out-of-core, resumable build of a snapshot from a catalogue."""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
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
from typing import Any, Self

import numpy as np

from aif_jax import _native
from aif_jax.bundle import Bundle
from aif_jax.checks import typed
from aif_jax.errors import AifError, ConfigError, ItemIndexError, WriteError
from aif_jax.features import EncodeReport
from aif_jax.files import (
    close_unflushed,
    foreign_names,
    make_directory,
    read_file,
    real_path,
    refusals,
    write_atomic,
)
from aif_jax.inputs import read_ids
from aif_jax.nearline.change_log import Position
from aif_jax.nearline.merging import checked_records
from aif_jax.nearline.records import read_records, take
from aif_jax.nearline.row_file import RowFileWriter, joined_names, open_partial, split_names
from aif_jax.nearline.row_program import RowProgram, batches
from aif_jax.nearline.table import RowTable, collision
from aif_jax.nearline.update_source import described, own_error
from aif_jax.strict_json import shortened
from aif_jax.types import ItemRecords

_SYNC_S = 2.0
"""Seconds after which computed rows are synced to the disk, and count as done."""

_FILES = ("rows", "keys", "names", "state.json")
"""Files of the folder of a build."""

_NAMED = 20
"""Bad items that a report names with their reasons, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """Progress of a build.

    Attributes:
        rows: rows that are done, those of an earlier attempt included.
        bad: items that were left out.
        rate: rows a second of this attempt.
        total: items of the catalogue, if given.
        eta_s: seconds that are left at this rate, if ``total`` was given.
    """

    rows: int
    bad: int
    rate: float
    total: int | None
    eta_s: float | None


@dataclasses.dataclass(kw_only=True)
class BuildReport:
    """Result of a build.

    Attributes:
        rows: rows of the snapshot.
        resumed: of these, rows that an earlier attempt had computed.
        bad: items that were left out, by the error's name; ``Twice`` for repeated items.
        named: the first of them: id and reason.
        seconds: duration of this attempt.
        encoding: counts of values that encoding did not recognise, in this attempt.
    """

    rows: int = 0
    resumed: int = 0
    bad: Counter[str] = dataclasses.field(default_factory=Counter)
    named: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    encoding: EncodeReport = dataclasses.field(default_factory=EncodeReport)

    def leave_out(self, item: Any, reason: str, error: str) -> None:
        """Count an item that is left out."""
        self.bad[error] += 1
        if len(self.named) < _NAMED:
            self.named.append((item, reason))


@typed
def build_snapshot(
    table_type: type[RowTable],
    bundle: Bundle,
    catalogue: Iterable[ItemRecords],
    path: str | Path,
    *,
    total: int | None = None,
    max_bad_share: float = 0.01,
    position: Position | None = None,
    resume: bool = True,
    progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """Compute the rows of a catalogue, batch by batch, straight into a snapshot file.

    Memory holds the keys and a few batches. Rows of a killed build are in ``PATH.building`` and are not
    computed again; the catalogue is then read again from its beginning and must give the same items. The file
    has the same bytes however often the build was interrupted.

    Args:
        table_type: `ItemIndex` or `BehaviourTable`.
        bundle: the model.
        catalogue: items, some thousands at a time, `Upsert` included. It is read in a thread.
        path: the snapshot file.
        total: number of items of the catalogue, for ``progress``.
        max_bad_share: share of items that may be bad. These are left out and counted; more are an error.
        position: position in a stream of updates, taken before the catalogue was read; kept in the snapshot's
            notes.
        resume: continue a killed build; otherwise start over.
        progress: called after every batch.

    Returns:
        A report; `RowTable.open` opens the file.

    Raises:
        ConfigError: the content was centred already, see `ContentSpace`; the rows so far are kept.
        ItemIndexError: too many items are bad, two string ids have the same hash, the interrupted build was
            of another bundle version or another catalogue or was cut short since, another build writes
            there, or the file cannot be written. What was there is as it was, and the rows so far are kept.
        RequestError: a batch is no `ItemRecords`, or has a column of another length than its ids.
    """
    with _Building(table_type, bundle, Path(path), resume) as building:
        return building.run(catalogue, total, max_bad_share, position, progress)


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
    """A build under way: a folder with its rows, keys and names, and the valid number of each."""

    def __init__(self, table_type: type[RowTable], bundle: Bundle, path: Path, resume: bool):
        # The folder must be on the file system of the file, wherever a symbolic link leads.
        self._table_type, self._path = table_type, real_path(path)
        self._program = RowProgram(bundle, table_type.stage)
        self._folder = self._path.with_name(f"{self._path.name}.building")
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as failed:
            failed.callback(self._open.close)
            self._begin(table_type, bundle, path, resume)
            failed.pop_all()

    def _begin(self, table_type: type[RowTable], bundle: Bundle, path: Path, resume: bool) -> None:
        with self._writes():
            make_directory(self._folder)
            self._lock()
        if foreign := [each for each in foreign_names(self._folder, _FILES) if ".partial-" not in each]:
            raise ItemIndexError(
                f"{self._folder}: holds {', '.join(foreign[:3])}, which is no part of a build, so nothing is "
                "written there; move that, or choose another path."
            )
        if not resume:
            for name in os.listdir(self._folder):
                (self._folder / name).unlink()
        self._state: dict[str, Any] = {
            "version": bundle.version, "kind": table_type.kind, "batches": 0, "rows": 0, "names": 0,
            "strings": None, "digest": "", "bad": {}, "named": [],
        }  # fmt: skip
        self._read_state()
        rows = self._state["rows"]
        named = [(item, reason) for item, reason in self._state["named"]]
        self._report = BuildReport(rows=rows, resumed=rows, bad=Counter(self._state["bad"]), named=named)
        about = {"kind": table_type.kind, "version": bundle.version, "columns": table_type.columns_of(bundle)}
        self._rows = self._open.enter_context(
            RowFileWriter(path, **about, partial=self._folder / "rows", rows=rows)
        )
        with self._writes():
            self._keys = _Appended(self._folder / "keys", 8 * rows)
            self._open.callback(self._keys.close)
            self._names = _Appended(self._folder / "names", self._state["names"])
            self._open.callback(self._names.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _lock(self) -> None:
        """Lock the folder until the end.

        Raises:
            ItemIndexError: another build has.
        """
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        self._open.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ItemIndexError(
                f"{self._folder}: another build writes there; wait for it, or choose another path."
            ) from error
        except OSError:  # no locks here
            return

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """Turn what the disk refuses in a block into an `ItemIndexError`."""
        try:
            with refusals(self._folder):
                yield
        except WriteError as error:
            raise ItemIndexError(f"{error} The rows so far are kept.") from error

    def run(
        self,
        catalogue: Iterable[ItemRecords],
        total: int | None,
        max_bad_share: float,
        position: Position | None,
        progress: Callable[[BuildProgress], None] | None,
    ) -> BuildReport:
        began_s = synced_s = time.perf_counter()
        report = self._report
        for batch in self._ahead(catalogue, max_bad_share):
            self._write(batch)
            self._check_share(max_bad_share, 1000)
            now_s = time.perf_counter()
            if now_s - synced_s > _SYNC_S:
                self._sync()
                synced_s = now_s
            if progress is not None:
                progress(self._progress(total, now_s - began_s))
        self._finish(max_bad_share, position)
        report.seconds = time.perf_counter() - began_s
        return report

    def _progress(self, total: int | None, elapsed_s: float) -> BuildProgress:
        rows, bad = self._report.rows, self._report.bad.total()
        rate = (rows - self._report.resumed) / max(elapsed_s, 1e-9)
        eta_s = None if total is None or not rate else max(total - rows - bad, 0) / rate
        return BuildProgress(rows=rows, bad=bad, rate=rate, total=total, eta_s=eta_s)

    # -- reading ----------------------------------------------------------------------------------

    def _ahead(self, catalogue: Iterable[ItemRecords], max_bad_share: float) -> Iterator[_Batch]:
        """Yield the batches that are not done; the next is encoded in a thread while one is computed."""
        batches_in = map(checked_records, catalogue)
        self._skip(batches_in)
        digest = self._state["digest"]

        def encode_next() -> _Batch | None:
            nonlocal digest
            records = next(batches_in, None)
            if records is None:
                return None
            records = read_records(records)
            digest = _chained(digest, records)
            return self._encode(records, digest, max(int(max_bad_share * len(records.ids)), 100))

        with concurrent.futures.ThreadPoolExecutor(1, "aif-catalogue") as reader:
            ahead = reader.submit(encode_next)
            while (batch := ahead.result()) is not None:
                ahead = reader.submit(encode_next)
                yield batch

    def _skip(self, batches_in: Iterator[ItemRecords]) -> None:
        """Read the batches that are done already, and check that they are the same.

        Raises:
            ItemIndexError: they are not.
        """
        digest = ""
        for records in itertools.islice(batches_in, self._state["batches"]):
            digest = _chained(digest, read_records(records))
        if digest != self._state["digest"]:
            raise ItemIndexError(
                f"{self._folder}: the first {self._state['batches']:,} batches of the catalogue are not "
                "those that were built before; pass resume=False to start over."
            )

    def _encode(self, records: ItemRecords, digest: str, most: int) -> _Batch:
        """Encode a batch; one that cannot be encoded is halved until the bad items are found.

        Raises:
            ItemIndexError: there are more bad ones than ``most``.
        """
        batch = _Batch(digest, [], [], [], [], EncodeReport())

        def encode(places: np.ndarray) -> None:
            some = records if len(places) == len(records.ids) else take(records, places)
            report = EncodeReport()
            try:
                ids = read_ids(some.ids)
                features = self._program.encode(some.columns, len(places), report)
                content = self._program.content(some.content, len(places))
                extra = self._table_type.extra_of(some)
            except ConfigError:  # no item is bad: the catalogue is of another content space
                raise
            except Exception as error:
                if len(places) > 1:
                    middle = len(places) // 2
                    encode(places[:middle])
                    encode(places[middle:])
                    return
                item = _plain(some.ids[0])
                batch.bad.append((item, own_error(error, f"item {shortened(repr(item))}")))
                if len(batch.bad) > most:
                    raise ItemIndexError(
                        f"{self._path}: more than {most:,} of {len(records.ids):,} items are bad, "
                        f"{item!r} for one: {described(error)} The rows so far are kept: correct the "
                        "catalogue, or raise max_bad_share."
                    ) from error
                return
            if any(map(len, batch.keys)) and ids.strings != bool(batch.names):
                raise ItemIndexError("ids: got integers and strings; use one kind throughout.")
            batch.keys.append(ids.keys)
            if ids.strings:
                batch.names.extend(map(str, ids.given.tolist()))
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
            with self._writes():
                for keys in batch.keys:
                    self._keys.append(keys.astype("<u8").tobytes())
                if strings:
                    self._names.append(joined_names(batch.names))
        for item, error in batch.bad:
            self._report.leave_out(item, str(error), type(error).__name__)
        self._report.rows += count
        self._report.encoding.add(batch.report)
        self._state["batches"] += 1
        self._state["digest"] = batch.digest

    def _write_rows(
        self, rows: Callable[[], dict[str, np.ndarray]], added: dict[str, np.ndarray], n: int
    ) -> None:
        self._rows.write_rows(rows() | added, n)

    def _check_share(self, max_bad_share: float, least: int) -> None:
        """Check the share of bad items, once there are enough of all.

        Raises:
            ItemIndexError: it is too large.
        """
        bad = self._report.bad.total()
        seen = bad + self._report.rows
        if seen >= least and bad > max_bad_share * seen:
            raise ItemIndexError(
                f"{self._path}: {bad:,} of {seen:,} items are bad, expected at most {max_bad_share:.1%} "
                f"(max_bad_share): {dict(self._report.bad)}; the first: {self._report.named[:3]}. "
                "The rows so far are kept: correct the catalogue, or raise max_bad_share."
            )

    def _sync(self) -> None:
        """Sync all files, then write the state: the number of rows and names that are valid."""
        self._rows.sync()
        with self._writes():
            self._keys.sync()
            self._names.sync()
        report = self._report
        self._state |= {
            "rows": report.rows,
            "names": self._names.bytes,
            "bad": report.bad,
            "named": report.named,
        }
        with self._writes():
            write_atomic(self._folder / "state.json", json.dumps(self._state))

    def _read_state(self) -> None:
        path = self._folder / "state.json"
        if not path.exists() or not (self._folder / "rows").exists():
            return  # without rows, what a build left that had finished
        try:
            found = json.loads(read_file(path))
            if not isinstance(found, dict) or found.keys() != self._state.keys():
                raise ValueError("its fields are others")
        except (OSError, ValueError) as error:
            raise ItemIndexError(
                f"{path}: cannot be read as the state of a build ({error}); pass resume=False to start over."
            ) from error
        for name in ("version", "kind"):
            if found[name] != self._state[name]:
                raise ItemIndexError(
                    f"{self._folder}: was left by a build of {name} {found[name]}, this one is of "
                    f"{self._state[name]}; pass resume=False to start over."
                )
        self._state = found

    def _finish(self, max_bad_share: float, position: Position | None) -> None:
        keys = np.frombuffer(self._keys.read(), "<u8")
        names = split_names(self._names.read()) if self._state["strings"] else None
        first = _native.distinct(np.ascontiguousarray(keys))
        if first is not None:
            self._leave_out_repeats(keys, names, first)
            self._rows.keep(first)
            keys = keys[first]
            names = None if names is None else [names[place] for place in first.tolist()]
            self._report.rows = len(keys)
        self._check_share(max_bad_share, 1)
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
            self._report.leave_out(item, "is repeated; the first row is kept", "Twice")


class _Appended:
    """A file that is appended to, cut to its valid bytes when it is opened; see `open_partial`."""

    def __init__(self, path: Path, size: int):
        self._path = path
        self._stream = open_partial(path, size)
        self.bytes = size

    def append(self, content: bytes) -> None:
        self._stream.write(content)
        self.bytes += len(content)

    def read(self) -> bytes:
        self._stream.flush()
        return read_file(self._path)

    def sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        close_unflushed(self._stream)


def _chained(digest: str, records: ItemRecords) -> str:
    """Return the digest of a batch of ids and of all before."""
    ids: Any = records.ids
    plain = isinstance(ids, np.ndarray) and ids.dtype != object
    raw = ids.tobytes() if plain else repr(list(ids)).encode()
    return hashlib.blake2b(digest.encode() + raw, digest_size=16).hexdigest()


def _plain(item: Any) -> Any:
    return item.item() if isinstance(item, np.generic) else item
