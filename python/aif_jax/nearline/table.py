"""Row table: the common base of item index and behaviour table, rows that a bundle's program computed."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.checks import typed
from aif_jax.errors import ItemIndexError, VersionMismatchError
from aif_jax.features import EncodeReport
from aif_jax.inputs import Ids, read_ids
from aif_jax.nearline.change_log import ChangeLog, Deleted, Rows
from aif_jax.nearline.mapped_file import MappedFile
from aif_jax.nearline.row_file import ROWS_AT, RowFileWriter, open_row_file
from aif_jax.nearline.row_program import RowProgram, batches
from aif_jax.nearline.store import ColumnSpecs, RowStore
from aif_jax.nearline.updates import Update, Upsert
from aif_jax.processes import OfOneProcess
from aif_jax.shown import shown
from aif_jax.types import ItemRecords

Progress = Callable[[int, int], None]
"""Called with the number of rows done and the number of all rows."""

Listener = Callable[[np.ndarray], None]
"""Called with keys, uint64 ``[n]``, whose rows were just written or deleted."""

_CHUNK = 65536
_ATTEMPTS = 3
"""Attempts to open a file that is replaced meanwhile."""


class RowTable(
    OfOneProcess,
    guards=(
        "upsert", "add", "apply", "warm", "delete", "subscribe", "__len__", "__contains__", "ids", "gather",
        "default_row", "stats", "save", "write_snapshot", "log_to", "pause", "replay", "check",
    ),
):  # fmt: skip
    """Rows by item id, in memory, of one bundle version. Read from any thread while others write.

    Subclasses name the program that computes the rows (``stage``) and the kind of rows in a snapshot
    (``kind``), and add columns of their own.
    """

    kind: ClassVar[str]
    stage: ClassVar[Literal["item", "behaviour"]]
    keeps_deleted: ClassVar[bool]
    unpickled = "save it, and open the file in the other process: save(path), open(bundle, path)."

    @typed
    def __init__(self, bundle: Bundle, *, expected_rows: int = 0):
        super().__init__()
        bundle.check_process()
        self.bundle = bundle
        self.encoding = EncodeReport()
        """Counts of values that encoding did not recognise, over the table's life."""
        self._program = RowProgram(bundle, self.stage)
        self.store = RowStore(self.columns_of(bundle), initial_keys=expected_rows)
        self._names: dict[int, str] | None = None
        self.strings: bool | None = None
        """True if the ids are strings; ``None`` until there are some."""
        self._writing = threading.RLock()
        self._listeners: tuple[Listener, ...] = ()
        self._log: ChangeLog | None = None
        self._sync_each = True
        self._file: MappedFile | None = None

    # -- building ---------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        bundle: Bundle,
        ids: Any,
        columns: Any,
        content: Any = None,
        *,
        progress: Progress | None = None,
        **extra: Any,
    ) -> Self:
        """Compute the rows of a catalogue.

        Args:
            bundle: the model.
            ids: item ids, ``[n]``: non-negative integers, or strings; array, list, series or Arrow array.
            columns: raw item features by name, each with n rows, or a frame or Arrow table of them; an absent
                one counts as missing. Rows belong together by position, whatever the index of a series says.
            content: raw content embeddings as the bundle's `ContentSpace` takes them, float ``[n, w]`` or a
                column of lists; rows of zeros, NaN or null for items without content; ``None`` if no item has
                any.
            progress: called after every batch.
            **extra: see the subclass.

        Raises:
            ItemIndexError: an id is repeated in the catalogue, two string ids have the same hash, or the
                content is not as above.
            ConfigError: the content was centred already, see `ContentSpace`.
            SchemaError: a column does not fit the schema.
            RequestError: ids are neither integers nor strings.
        """
        ids = read_ids(ids)
        table = cls(bundle, expected_rows=len(ids.keys))
        table._store(ids, columns, content, progress, extra)
        return table

    @classmethod
    def from_rows(cls, bundle: Bundle, ids: Any, rows: Mapping[str, np.ndarray]) -> Self:
        """Make a table of rows that were computed elsewhere, by the same version of the same program.

        Args:
            bundle: the model that computed the rows.
            ids: item ids, ``[n]``.
            rows: every column of the table by name, ``[n, ...]``.

        Raises:
            ItemIndexError: an id is repeated, two string ids have the same hash, or a column is missing.
            LayoutError: a column has the wrong shape or dtype.
        """
        ids = read_ids(ids)
        table = cls(bundle, expected_rows=len(ids.keys))
        if table.store.columns.keys() != rows.keys():
            expected = table.store.columns.keys()
            lacking, unknown = sorted(expected - rows.keys()), sorted(rows.keys() - expected)
            given = f"lack the columns {lacking}" if lacking else f"have the unknown columns {unknown}"
            raise ItemIndexError(
                f"rows: {given}, expected {sorted(expected)}; "
                f"compute them with the bundle's {cls.stage!r} program."
            )
        keys = table._register(ids)
        table.store.upsert(keys, {name: np.ascontiguousarray(column) for name, column in rows.items()})
        return table

    def upsert(self, ids: Any, columns: Any, content: Any = None, **extra: Any) -> int:
        """Compute and store the rows of items that are new or have changed; see `build` for the arguments.

        Readers see either the old or the new row of an item, never parts of both.

        Returns:
            The number of rows stored.
        """
        return self._store(read_ids(ids), columns, content, None, extra)

    def add(self, ids: Any, columns: Any, content: Any = None, **extra: Any) -> int:
        """Compute and store the rows of items that have none; see `build` for the arguments.

        An item that has a row by then keeps it, so that features that were read earlier do not replace a row
        that an `upsert` has written since.

        Returns:
            The number of rows stored.
        """
        return self._store(read_ids(ids), columns, content, None, extra, only_new=True)

    def warm(self) -> None:
        """Compile the program that computes rows, so that no `upsert` has to."""
        self._program.run(self._program.encode({}, 1), self._program.content(None, 1))

    def delete(self, ids: Any) -> int:
        """Remove items; gathers that start afterwards do not find them.

        Returns:
            The number of them that had a row.
        """
        keys = read_ids(ids, ordered=False).keys
        with self._writing:
            if self._log is not None:
                self._log.deleted(keys)
            removed = self._remove(keys)
            self._sync()
        return removed

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` after every write and deletion of rows, for a copy that follows the table.

        It is called in the thread that writes, with the keys alone, and reads the rows from the table. Other
        writers wait for it, readers do not; it must not write to the table. An error that it raises reaches
        the writer, after all listeners were called; the table has changed nevertheless.

        Returns:
            A function that ends the subscription.
        """
        with self._writing:
            self._listeners += (listener,)

        def unsubscribe() -> None:
            with self._writing:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

        return unsubscribe

    # -- reading ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.store.cache)

    def __repr__(self) -> str:
        # Tracebacks show a table whose construction failed, too.
        if (store := getattr(self, "store", None)) is None:
            return f"{type(self).__name__}(without rows)"
        if self.forked:
            return f"{type(self).__name__}(of another process)"
        rows, size = counted(len(self), "row"), store.cache.layout.row_bytes
        return f"{type(self).__name__}({rows} of {size:,} bytes, bundle {self.version[:8]})"

    def __contains__(self, item: object) -> bool:
        return bool(self.store.cache.contains(read_ids([item]).keys)[0])

    @property
    def version(self) -> str:
        """Version of the bundle that computed the rows."""
        return self.bundle.version

    def ids(self) -> np.ndarray:
        """Return the ids of all rows, in no particular order: uint64, or strings (dtype object)."""
        keys = self.store.cache.keys()
        if self._names is None:
            return keys
        with self._writing:
            return np.array([self._names[key] for key in keys.tolist() if key in self._names], object)

    def gather(
        self, keys: np.ndarray, out: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Copy rows out.

        Args:
            keys: uint64 ``[n]``, from `item_keys`.
            out: C-contiguous arrays to write to, one for each column of the layout; ``None`` for new ones.

        Returns:
            Columns ``[n, ...]``, zeros where there is no row, and which rows were found, bool ``[n]``.
        """
        return self.store.gather(keys, out)

    def default_row(self) -> dict[str, np.ndarray]:
        """Compute the row ``[1, ...]`` of an unknown item."""
        return self._program.run(self._program.encode({}, 1), self._program.content(None, 1))

    def stats(self) -> dict[str, Any]:
        """Return row counts, memory, counts of values that encoding did not recognise, and `overwritten`."""
        return {
            "rows": len(self), "version": self.version, "encoding": self.encoding.as_dict(),
            "overwritten": self.overwritten(), **self.store.cache.memory_usage(),
        }  # fmt: skip

    # -- snapshots --------------------------------------------------------------------------------

    def overwritten(self) -> str | None:
        """Return in words how the mapped file of the rows was written to; ``None`` if it was not.

        Cheap, and an error in the log the first time; see `MappedFile.overwritten`.
        """
        return None if self._file is None else self._file.overwritten()

    def check_file(self) -> None:
        """Check that nobody has written to the mapped file of the rows, if there is one.

        Raises:
            ItemIndexError: somebody has, so that rows may be wrong.
        """
        if self._file is not None:
            self._file.check()

    @typed
    def save(self, path: str | Path) -> None:
        """Write a snapshot; the previous one at ``path`` stays usable until the new one is complete.

        Neither readers nor writers wait for the disk. Changes that are made meanwhile are not in it.

        Args:
            path: the file; parent directories that do not exist are made.

        Raises:
            ItemIndexError: what is there is no snapshot; the disk refuses; the new file cannot be read back;
                or this table's own file was written to (`check_file`). What was there is as it was.
        """
        self.write_snapshot(Path(path), lambda: {})

    def write_snapshot(self, path: Path, at_moment: Callable[[], Mapping[str, Any]]) -> None:
        """Write a snapshot, see `save`; ``at_moment`` is called at its moment, while nobody can write.

        Args:
            path: the file.
            at_moment: returns notes to keep with the rows, JSON.
        """
        self.check_file()  # rows that somebody spoilt must not get new checksums
        keys, names, notes = np.empty(0, np.uint64), None, {}

        def taken(found: np.ndarray) -> None:
            nonlocal keys, names, notes
            keys, notes = found, at_moment()
            if self._names is not None:
                names = [self._names[key] for key in found.tolist()]
            lock.close()

        about = {"kind": self.kind, "version": self.version, "columns": self.store.columns}
        with RowFileWriter(path, **about) as file, contextlib.ExitStack() as lock:
            lock.enter_context(self._writing)
            checksums = file.write_table(self.store.cache, taken)
            file.finish(keys, checksums, names, notes)

    @classmethod
    @typed
    def open(
        cls,
        bundle: Bundle,
        path: str | Path,
        *,
        verify: bool = True,
        mapped: bool = True,
        prefault: bool = False,
    ) -> Self:
        """Open a snapshot that the same version of the bundle's programs computed.

        Args:
            bundle: the model.
            path: the file.
            verify: read all rows once, and compare their checksums. Without it a row that the disk has
                altered is served.
            mapped: serve the rows from the mapped file, whose pages processes share; changes stay in this
                process. The file must not be written to meanwhile (it may be replaced or deleted); see
                `check_file`. Otherwise they are copied into memory of this process, on huge pages.
            prefault: map all pages of the file at once.

        Raises:
            ItemIndexError: the file is missing, cut short, altered or of another kind.
            VersionMismatchError: another bundle version computed the rows.
        """
        for _ in range(_ATTEMPTS):
            table, file = cls._opened(bundle, Path(path), verify, mapped, prefault)
            # The rows were mapped by the path, which leads to the file with these keys as long as it has it.
            if not mapped or file.has_name():
                return table
        raise ItemIndexError(
            f"{path}: is replaced faster than it can be opened; open it when that has ended."
        )

    @classmethod
    def _opened(
        cls, bundle: Bundle, path: Path, verify: bool, mapped: bool, prefault: bool
    ) -> tuple[Self, MappedFile]:
        file = open_row_file(path, kind=cls.kind, verify=verify)
        if file.version != bundle.version:
            raise VersionMismatchError(
                f"{path}: holds rows of bundle version {file.version}, but the bundle at {bundle.path} is "
                f"version {bundle.version}; build the rows again with this bundle, or load the other one."
            )
        table = cls(bundle, expected_rows=0 if mapped else len(file.keys))
        if file.columns != table.store.columns:
            raise ItemIndexError(
                f"{path}: its rows have the columns {_described(file.columns)}, expected "
                f"{_described(table.store.columns)}; build the rows again with this bundle."
            )
        if mapped:
            table.store = RowStore.over_file(file.columns, file.path, ROWS_AT, file.keys, prefault=prefault)
            table._file = file.file
        else:
            columns = {name: file.column(name) for name in file.columns}
            for start in range(0, len(file.keys), _CHUNK):
                part = slice(start, start + _CHUNK)
                chunk = {name: np.ascontiguousarray(column[part]) for name, column in columns.items()}
                table.store.upsert(file.keys[part], chunk)
        table._named(file.keys, file.names)
        return table, file.file

    # -- changes on disk --------------------------------------------------------------------------

    def log_to(self, log: ChangeLog | None) -> None:
        """Append every change to a log before it is made. The caller holds `pause`, or is the only user."""
        self._log = log

    @contextlib.contextmanager
    def pause(self, *, sync: bool = True) -> Iterator[None]:
        """Keep other threads from changing rows; this one may.

        Args:
            sync: wait after each change until the disk has it, as usual; otherwise the caller syncs.
        """
        with self._writing:
            before, self._sync_each = self._sync_each, sync
            try:
                yield
            finally:
                self._sync_each = before

    def replay(self, change: Rows | Deleted) -> None:
        """Apply a change that is in the log of this table already."""
        with self._writing:
            if isinstance(change, Deleted):
                self._remove(change.keys)
                return
            self._named(change.keys, change.names)
            try:
                self.store.upsert(change.keys, change.columns)
            finally:
                self._notify(change.keys)

    # -- for subclasses ---------------------------------------------------------------------------

    @classmethod
    def columns_of(cls, bundle: Bundle) -> ColumnSpecs:
        """Return dtype and shape within one row of every column that a table of a bundle has."""
        return {**RowProgram(bundle, cls.stage).columns, **cls._extra_columns()}

    @classmethod
    def _extra_columns(cls) -> ColumnSpecs:
        """Return the columns of the table that no program computes."""
        return {}

    @classmethod
    def extra_of(cls, records: ItemRecords) -> dict[str, np.ndarray]:
        """Return the columns ``[n, ...]`` of items that no program computes."""
        return cls._extra_values(len(records.ids), {})

    @classmethod
    def _extra_values(cls, n: int, extra: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the values ``[n, ...]`` of the extra columns, from the keyword arguments of `build`."""
        if extra:
            raise TypeError(f"unexpected arguments {sorted(extra)}")
        return {}

    def apply(self, update: Upsert) -> int:
        """Compute and store the rows of an update; return their number. See `upsert`."""
        return self.upsert(update.ids, update.columns, update.content)

    def check(self, update: Update) -> None:
        """Raise the error of an update that cannot be read; compute and store nothing."""
        n = len(read_ids(update.ids, ordered=isinstance(update, Upsert)).keys)
        if isinstance(update, Upsert):
            self._program.content(update.content, n)
            self.extra_of(update)
            self._program.encode(update.columns, n)

    # -- inside -----------------------------------------------------------------------------------

    def _store(
        self,
        ids: Ids,
        columns: Any,
        content: Any,
        progress: Progress | None,
        extra: Mapping[str, Any],
        *,
        only_new: bool = False,
    ) -> int:
        n, stored = len(ids.keys), 0
        content = self._program.content(content, n)
        values = self._extra_values(n, extra)
        with self._writing:
            encoded = self._program.encode(columns, n, self.encoding)
            keys = self._register(ids)
            for part in batches(n):
                rows = self._program.run({n: array[part] for n, array in encoded.items()}, content[part])
                rows |= {name: value[part] for name, value in values.items()}
                chosen = keys[part]
                if only_new and (there := self.store.cache.contains(chosen)).any():
                    chosen = chosen[~there]
                    rows = {name: column[~there] for name, column in rows.items()}
                self._write(chosen, rows)
                stored += len(chosen)
                if progress is not None:
                    progress(part.stop, n)
            self._sync()
        return stored

    def _write(self, keys: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Store rows and notify listeners; the caller holds `_writing`."""
        if self._log is not None:
            names = self._names
            self._log.rows(keys, rows, None if names is None else [names[key] for key in keys.tolist()])
        try:
            self.store.upsert(keys, rows)
        finally:  # a batch that fails half-way has written some of its rows
            self._notify(keys)

    def _sync(self) -> None:
        if self._log is not None and self._sync_each:
            self._log.sync()

    def _remove(self, keys: np.ndarray) -> int:
        removed = self.store.cache.delete(np.ascontiguousarray(keys))
        if self._names is not None:
            for key in keys.tolist():
                self._names.pop(key, None)
        self._notify(keys)
        return removed

    def _named(self, keys: np.ndarray, names: Sequence[str] | None) -> None:
        """Keep the string ids of keys; ``None`` where ids are integers."""
        if names is not None:
            self._names = {} if self._names is None else self._names
            self._names.update(zip(keys.tolist(), names, strict=True))
        elif len(keys):
            self._names = None
        if len(keys):
            self.strings = names is not None

    def _notify(self, keys: np.ndarray) -> None:
        errors: list[Exception] = []
        for listener in self._listeners:
            try:
                listener(keys)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _register(self, read: Ids) -> np.ndarray:
        """Return the keys of ids; repeated ids and strings with the same hash are refused."""
        ids, keys, strings = read.given, read.keys, read.strings
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if len(same):
            first, second = ids[order[same[0]]], ids[order[same[0] + 1]]
            if first == second:
                raise ItemIndexError(
                    f"ids: {shown(first)} is given twice, in rows {order[same[0]]} and {order[same[0] + 1]}; "
                    "give each item one row."
                )
            raise collision(first, second, int(keys[order[same[0]]]))
        if len(self) and len(keys) and strings != (self._names is not None):
            here, given = ("integers", "strings") if strings else ("strings", "integers")
            raise ItemIndexError(
                f"ids: got {given}, but the table's ids are {here}; use one kind throughout."
            )
        if strings:
            names = {} if self._names is None else self._names
            for key, name in zip(keys.tolist(), ids, strict=True):
                if (there := names.get(key)) is not None and there != name:
                    raise collision(there, name, key)
        # An empty table may have had string ids and get integers now.
        self._named(keys, [str(name) for name in ids] if strings else None)
        return keys


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 row`` and ``1,500 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _described(columns: ColumnSpecs) -> str:
    return ", ".join(f"{name} {dtype.name}{list(shape)}" for name, (dtype, shape) in columns.items())


def collision(first: object, second: object, key: int) -> ItemIndexError:
    """Return the error of two string ids with the same key."""
    return ItemIndexError(
        f"ids: {first!r} and {second!r} have the same 64-bit hash {key}; rename one of them, or give integer "
        "ids."
    )
