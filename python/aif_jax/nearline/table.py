"""Rows that one of a bundle's programs computed: what the item index and the behaviour table share."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.errors import AifError, ItemIndexError, VersionMismatchError
from aif_jax.features import EncodeReport, item_keys, pad_to
from aif_jax.nearline.rows import Snapshot, read_snapshot, write_snapshot
from aif_jax.nearline.store import ColumnSpecs, RowStore
from aif_jax.nearline.updates import Delete, FollowReport, Update, Upsert
from aif_jax.types import named_dtype

Progress = Callable[[int, int], None]
"""Called with the number of rows done and the number of all rows."""

Listener = Callable[[np.ndarray], None]
"""Called with keys, uint64 ``[n]``, whose rows were just written or deleted."""

_BATCH = 256
"""Rows that one call of the program computes, however few are wanted: XLA adds in another order for another
number of rows, and a row must have the same bits whoever computes it, and in whatever company."""

_CHUNK = 65536


class RowTable:
    """Rows by item id, in memory, of one bundle version. Read from any thread while others write.

    Subclasses say which program computes the rows (``stage``), what a snapshot calls them (``kind``) and
    which columns the table adds to the program's.
    """

    kind: ClassVar[str]
    stage: ClassVar[Literal["item", "behaviour"]]
    keeps_deleted: ClassVar[bool]

    def __init__(self, bundle: Bundle, *, expected_rows: int = 0):
        self.bundle = bundle
        self.encoding = EncodeReport()
        """What encoding raw features had to leave out, over the table's life."""
        columns = {
            operand.path: (named_dtype(operand.dtype), tuple(int(size) for size in operand.shape[1:]))
            for operand in bundle.signature(self.stage).outputs
        }
        self.store = RowStore({**columns, **self._extra_columns()}, initial_keys=expected_rows)
        self._names: dict[int, str] | None = None
        self._writing = threading.RLock()
        self._listeners: tuple[Listener, ...] = ()

    # -- building ---------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        bundle: Bundle,
        ids: Any,
        columns: Mapping[str, Any],
        content: np.ndarray | None = None,
        *,
        progress: Progress | None = None,
        **extra: Any,
    ) -> Self:
        """Compute the rows of a catalogue.

        Args:
            bundle: the model.
            ids: item ids, ``[n]``: non-negative integers, or strings.
            columns: raw item features by name, each with n rows; an absent one counts as missing.
            content: content embeddings, float ``[n, d_m]``, centred as in training, of unit length; rows of
                zeros or NaN for items without content; ``None`` if no item has any.
            progress: called after every batch.
            **extra: see the subclass.

        Raises:
            ItemIndexError: an id stands in the catalogue twice, two string ids have the same hash, or the
                content is not as above.
            SchemaError: a column does not fit the schema.
            RequestError: ids are neither integers nor strings.
        """
        table = cls(bundle, expected_rows=len(ids))
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
            ItemIndexError: an id stands there twice, two string ids have the same hash, or a column is
                missing.
            LayoutError: a column has the wrong shape or dtype.
        """
        table = cls(bundle, expected_rows=len(ids))
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

    def upsert(
        self, ids: Any, columns: Mapping[str, Any], content: np.ndarray | None = None, **extra: Any
    ) -> int:
        """Compute and store the rows of items that are new or have changed; see `build` for the arguments.

        Readers see either the old or the new row of an item, never parts of both.

        Returns:
            The number of rows stored.
        """
        return self._store(ids, columns, content, None, extra)

    def add(
        self, ids: Any, columns: Mapping[str, Any], content: np.ndarray | None = None, **extra: Any
    ) -> int:
        """Compute and store the rows of items that have none; see `build` for the arguments.

        An item that has a row by then keeps it, so that what was read elsewhere a while ago does not replace
        what an `upsert` wrote meanwhile.

        Returns:
            The number of rows stored.
        """
        return self._store(ids, columns, content, None, extra, only_new=True)

    def warm(self) -> None:
        """Compile the program that computes rows, so that no `upsert` has to."""
        width = self.bundle.config.content_width
        self._run(self.bundle.schema.encode("item", {}, 1), checked_content(None, 1, width))

    def delete(self, ids: Any) -> int:
        """Remove items; gathers that start afterwards do not find them.

        Returns:
            How many of them were there.
        """
        keys = item_keys(ids)
        with self._writing:
            removed = self.store.cache.delete(np.ascontiguousarray(keys))
            if self._names is not None:
                for key in keys.tolist():
                    self._names.pop(key, None)
            self._tell(keys)
        return removed

    def follow(
        self, stream: Iterable[Update], *, on_error: Callable[[Update, AifError], None] | None = None
    ) -> FollowReport:
        """Apply a stream of updates in its order, in the calling thread, until the stream ends.

        Args:
            stream: any iterable; it may block between updates.
            on_error: called with an update that cannot be applied and the reason, which is then counted and
                passed over; without it the error is raised.

        Returns:
            What was done.
        """
        report = FollowReport()
        for update in stream:
            try:
                if isinstance(update, Upsert):
                    report.upserted += self._apply(update)
                elif isinstance(update, Delete):
                    removed = 0 if self.keeps_deleted else self.delete(update.ids)
                    report.deleted += removed
                    report.ignored += len(update.ids) - removed
                else:
                    raise ItemIndexError(f"stream: got a {type(update).__name__}, expected Upsert or Delete.")
            except AifError as error:
                if on_error is None:
                    raise
                report.failed[type(error).__name__] += 1
                on_error(update, error)
        return report

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a copy of the table follow it: call ``listener`` after every write and deletion of rows.

        It is called in the thread that writes, with the keys alone: what to copy is the row that the table
        has when it looks. Other writers wait meanwhile, readers do not; it must not write to the table.
        What it raises reaches the writer, after all listeners were called; the table has changed
        nevertheless.

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

    def __contains__(self, item: object) -> bool:
        return bool(self.store.cache.contains(item_keys([item]))[0])

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
        """Compute the row ``[1, ...]`` of an item of which nothing is known."""
        encoded = self.bundle.schema.encode("item", {}, 1)
        return self._run(encoded, checked_content(None, 1, self.bundle.config.content_width))

    def stats(self) -> dict[str, Any]:
        """Return row counts, memory and what encoding left out."""
        return {
            "rows": len(self), "version": self.version, "encoding": self.encoding.as_dict(),
            **self.store.cache.memory_usage(),
        }  # fmt: skip

    # -- snapshots --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a snapshot; the previous one at ``path`` stays usable until the new one is complete.

        Writers wait meanwhile, readers do not. Needs memory for one copy of the rows.

        Args:
            path: the file; parent directories that do not exist are made.

        Raises:
            ItemIndexError: no file can be made there.
        """
        with self._writing:
            keys = np.sort(self.store.cache.keys())
            columns, _ = self.store.gather(keys)
            names = None if self._names is None else [self._names[key] for key in keys.tolist()]
        write_snapshot(
            Path(path),
            Snapshot(kind=self.kind, version=self.version, keys=keys, columns=columns, names=names),
        )

    @classmethod
    def open(cls, bundle: Bundle, path: str | Path) -> Self:
        """Read a snapshot that the same version of the bundle's programs computed.

        Raises:
            ItemIndexError: the file is missing, cut short, altered or of another kind.
            VersionMismatchError: another bundle version computed the rows.
        """
        snapshot = read_snapshot(Path(path), kind=cls.kind)
        if snapshot.version != bundle.version:
            raise VersionMismatchError(
                f"{path}: holds rows of bundle version {snapshot.version}, but the bundle at {bundle.path} "
                "is "
                f"version {bundle.version}; build the rows again with this bundle, or load the other one."
            )
        table = cls(bundle, expected_rows=len(snapshot.keys))
        for start in range(0, len(snapshot.keys), _CHUNK):
            part = slice(start, start + _CHUNK)
            table.store.upsert(
                np.ascontiguousarray(snapshot.keys[part]),
                {name: np.ascontiguousarray(column[part]) for name, column in snapshot.columns.items()},
            )
        if snapshot.names is not None:
            table._names = dict(zip(snapshot.keys.tolist(), snapshot.names, strict=True))
        return table

    # -- what subclasses change -------------------------------------------------------------------

    def _extra_columns(self) -> ColumnSpecs:
        """Columns of the table that no program computes."""
        return {}

    def _extra_values(self, n: int, extra: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Values ``[n, ...]`` of the extra columns, from the keyword arguments of `build`."""
        if extra:
            raise TypeError(f"unexpected arguments {sorted(extra)}")
        return {}

    def _apply(self, update: Upsert) -> int:
        return self.upsert(update.ids, update.columns, update.content)

    # -- inside -----------------------------------------------------------------------------------

    def _store(
        self,
        ids: Any,
        columns: Mapping[str, Any],
        content: np.ndarray | None,
        progress: Progress | None,
        extra: Mapping[str, Any],
        *,
        only_new: bool = False,
    ) -> int:
        n, stored = len(ids), 0
        content = checked_content(content, n, self.bundle.config.content_width)
        values = self._extra_values(n, extra)
        with self._writing:
            encoded = self.bundle.schema.encode("item", columns, n, report=self.encoding)
            keys = self._register(ids)
            for part in batches(n):
                rows = self._run({name: array[part] for name, array in encoded.items()}, content[part])
                rows |= {name: value[part] for name, value in values.items()}
                chosen = keys[part]
                if only_new and (there := self.store.cache.contains(chosen)).any():
                    chosen = chosen[~there]
                    rows = {name: column[~there] for name, column in rows.items()}
                self._write(chosen, rows)
                stored += len(chosen)
                if progress is not None:
                    progress(part.stop, n)
        return stored

    def _write(self, keys: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Store rows and tell who listens; the caller holds `_writing`."""
        try:
            self.store.upsert(keys, rows)
        finally:  # a batch that fails half-way has written some of its rows
            self._tell(keys)

    def _tell(self, keys: np.ndarray) -> None:
        errors: list[Exception] = []
        for listener in self._listeners:
            try:
                listener(keys)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _run(self, encoded: Mapping[str, np.ndarray], content: np.ndarray) -> dict[str, np.ndarray]:
        n = len(content)
        inputs = {f"item/{name}": pad_to(array, _BATCH) for name, array in encoded.items()}
        inputs["item/content"] = pad_to(content, _BATCH)
        inputs["item/has_content"] = pad_to(
            np.any(content != 0, axis=1, keepdims=True).astype(np.float32), _BATCH
        )
        outputs = self.bundle.call(self.stage, m=_BATCH)(inputs)
        return {name: np.ascontiguousarray(np.asarray(array)[:n]) for name, array in outputs.items()}

    def _register(self, ids: Any) -> np.ndarray:
        """Return the keys of ids, refusing ids that stand there twice and strings that hash alike."""
        if not isinstance(ids, np.ndarray):
            ids = list(ids)
        keys = item_keys(ids)
        strings = len(keys) > 0 and isinstance(ids[0], str)
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if len(same):
            first, second = ids[order[same[0]]], ids[order[same[0] + 1]]
            if first == second:
                raise ItemIndexError(f"ids: {first!r} stands there twice; give each item one row.")
            raise _collision(first, second, int(keys[order[same[0]]]))
        if len(self) and len(keys) and strings != (self._names is not None):
            here, given = ("integers", "strings") if strings else ("strings", "integers")
            raise ItemIndexError(
                f"ids: got {given}, but the table's ids are {here}; use one kind throughout."
            )
        if strings:
            names = {} if self._names is None else self._names
            for key, name in zip(keys.tolist(), ids, strict=True):
                if (there := names.get(key)) is not None and there != name:
                    raise _collision(there, name, key)
            names.update(zip(keys.tolist(), map(str, ids), strict=True))
            self._names = names
        elif len(keys):
            self._names = None  # of an empty table, whose ids were strings once
        return keys


def batches(n: int) -> Iterator[slice]:
    """Cut n rows into the batches for which the program is compiled."""
    for start in range(0, n, _BATCH):
        yield slice(start, min(start + _BATCH, n))


def checked_content(content: np.ndarray | None, n: int, width: int) -> np.ndarray:
    """Return content embeddings as float32 ``[n, width]``, zeros where there is none.

    Raises:
        ItemIndexError: the shape is wrong, or a row is neither zero, NaN nor of unit length.
    """
    if content is None:
        return np.zeros((n, width), np.float32)
    rows = np.array(content, np.float32)
    if rows.shape != (n, width):
        raise ItemIndexError(
            f"content: got shape {rows.shape}, expected ({n}, {width}): one embedding of the model's "
            "content_width "
            "for each id."
        )
    rows[np.isnan(rows).any(axis=1)] = 0.0
    length = np.linalg.norm(rows, axis=1)
    wrong = np.flatnonzero((length != 0) & ~(np.abs(length - 1.0) < 1e-2))
    if len(wrong):
        raise ItemIndexError(
            f"content: row {wrong[0]} has length {length[wrong[0]]:.4g}, expected 1 (or 0 for none); "
            "subtract the mean "
            "of the training catalogue from the embeddings and divide each by its length."
        )
    return rows


def _collision(first: object, second: object, key: int) -> ItemIndexError:
    return ItemIndexError(
        f"ids: {first!r} and {second!r} have the same 64-bit hash {key}; rename one of them, or give integer "
        "ids."
    )
