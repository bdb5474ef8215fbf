"""Row computation with Ray Data, for a catalogue that is too large for one process."""

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError, DataError, VersionMismatchError
from aif_jax.extras import needs
from aif_jax.inputs import read_ids
from aif_jax.nearline import ItemIndex, RowTable, Upsert
from aif_jax.nearline.records import take
from aif_jax.nearline.store import ColumnSpecs
from aif_jax.nearline.update_source import described
from aif_jax.strict_json import shortened, text_of

_ID, _ROW, _REPORT = "id", "row", "report"


@dataclass(frozen=True)
class BuiltRows:
    """Rows for ``ItemIndex.from_rows(bundle, built.ids, built.rows)``, or `BehaviourTable`'s.

    Attributes:
        ids: uint64 ``[n]``, or strings (dtype object), in no particular order.
        rows: every column of the table by name, ``[n, ...]``.
        encoding: counts of values that encoding did not recognise, by kind and feature.
    """

    ids: np.ndarray
    rows: dict[str, np.ndarray]
    encoding: dict[str, dict[str, int]]


def build_with_ray(
    bundle: Bundle,
    dataset: Any,
    *,
    table: type[RowTable] = ItemIndex,
    id_column: str = "id",
    content_column: str | None = None,
    rankable_column: str | None = None,
    workers: int = 2,
    batch_rows: int = 4096,
    **options: Any,
) -> BuiltRows:
    """Compute the rows of a catalogue on the actors of a Ray cluster.

    Each actor loads the bundle once. The rows then come to the calling process, which needs memory for two
    copies of them. Without a ``ray.init`` of yours, Ray starts on this machine, with forks that JAX warns
    of: better to start it before, or to join a running cluster.

    Args:
        bundle: the model. Actors load it from ``bundle.path``, which every node must be able to read.
        dataset: a ``ray.data.Dataset`` with a row for each item: its id, and raw item features; columns that
            the schema does not name are refused, so ``select_columns`` first.
        table: `ItemIndex` or `BehaviourTable`.
        id_column: name of the column of ids, integers or strings.
        content_column: name of the column of content embeddings, one float list or tensor ``[d_m]`` for each
            item, null for none; ``None`` if no item has any.
        rankable_column: name of the column, bool, that says whether an item may be a candidate; ``None`` for
            all. Only for `ItemIndex`.
        workers: actors, at most.
        batch_rows: items that an actor gets at a time.
        **options: of ``Dataset.map_batches``, such as ``num_cpus`` (1 for each actor by default) and
            ``num_gpus``.

    Raises:
        MissingExtraError: ray is not installed.
        ConfigError: a number is under 1.
        DataError: the dataset is not one of Ray Data.
        ray.exceptions.RayError: an actor failed. The text names its error: one of `ItemIndex.build`, a
            DataError that names a bad item or a missing column, a VersionMismatchError if a node has another
            bundle at ``bundle.path``. An id that is repeated in several batches is refused by `from_rows`.
            Ray keeps the actors of a failed run for as long as the error is referenced.
    """
    if workers < 1 or batch_rows < 1:
        raise ConfigError(f"workers and batch_rows: got {workers} and {batch_rows}, expected at least 1.")
    needs("ray.data", what="build_with_ray")
    data = importlib.import_module("ray.data")
    if not isinstance(dataset, data.Dataset):
        raise DataError(
            f"dataset: got a {type(dataset).__name__}, expected a ray.data.Dataset; ray.data.read_parquet, "
            "from_pandas, from_items and others make one."
        )
    built = dataset.map_batches(
        _Worker,
        fn_constructor_kwargs={
            "table": table,
            "path": bundle.path.resolve(),
            "version": bundle.version,
            "names": {"id": id_column, "content": content_column, "rankable": rankable_column},
        },
        batch_size=batch_rows,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(min_size=1, max_size=workers),
        **{"num_cpus": 1, **options},
    )
    parts = list(built.iter_batches(batch_size=None, batch_format="numpy"))
    return _join(parts, table(bundle).store.columns)


class _Worker:
    """An actor: computes the rows of batches, and returns each row packed into bytes.

    They are packed because Arrow has neither bfloat16 nor columns of zero width.
    """

    def __init__(
        self, table: type[RowTable], path: Path, version: str, names: Mapping[str, str | None]
    ) -> None:
        self._bundle = Bundle.load(path)
        if self._bundle.version != version:
            raise VersionMismatchError(
                f"{path}: a node has bundle version {self._bundle.version} there, the caller has {version}; "
                "give all nodes the same files."
            )
        self._table = table
        self._names = names

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = dict(batch)
        given: dict[str, Any] = {}
        for role, name in self._names.items():
            if name is None:
                continue
            if name not in columns:
                raise DataError(f"{role}_column: got {name!r}, but the columns are {sorted(batch)}.")
            given[role] = columns.pop(name)
        ids, content = given.pop("id"), given.pop("content", None)
        ids = read_ids(ids)
        try:
            built = self._table.build(self._bundle, ids, columns, content, **given)
        except Exception as error:
            self._name_row(Upsert(ids.given, columns, content, given.get("rankable")))
            raise error
        rows, _ = built.gather(ids.keys)
        report = np.full(len(ids.keys), "", object)
        report[:1] = json.dumps(built.encoding.as_dict())
        return {
            _ID: ids.given.astype(object) if ids.strings else ids.keys,
            _ROW: np.concatenate([_bytes(rows[name]) for name in built.store.columns], axis=1),
            _REPORT: report,
        }

    def _name_row(self, records: Upsert) -> None:
        """Raise a `DataError` that names the first row of a batch that is bad by itself, if one is."""
        table = self._table(self._bundle)
        for row, item in enumerate(records.ids):
            try:
                table.check(take(records, np.array([row])))
            except Exception as error:
                raise DataError(
                    f"item {shortened(text_of(item))}, row {row} of its batch: {described(error)}"
                ) from error


def _bytes(column: np.ndarray) -> np.ndarray:
    """View ``[n, ...]`` as uint8 ``[n, bytes of a row]``."""
    n = len(column)
    if column.size == 0:
        return np.zeros((n, 0), np.uint8)
    return np.ascontiguousarray(column).reshape(n, -1).view(np.uint8)


def _join(parts: list[Mapping[str, np.ndarray]], columns: ColumnSpecs) -> BuiltRows:
    """Unpack the rows that the actors returned."""
    n = sum(len(part[_ID]) for part in parts)
    ids = np.concatenate([part[_ID] for part in parts]) if n else np.zeros(0, np.uint64)
    rows = {name: np.empty((n, *shape), dtype) for name, (dtype, shape) in columns.items()}
    encoding: dict[str, Counter[str]] = {}
    start = 0
    for part in parts:
        packed, position = part[_ROW], 0
        stop = start + len(packed)
        for name, (dtype, shape) in columns.items():
            width = dtype.itemsize * int(np.prod(shape))
            if width:
                piece = np.ascontiguousarray(packed[:, position : position + width])
                rows[name][start:stop] = piece.view(dtype).reshape(-1, *shape)
            position += width
        start = stop
        for text in filter(None, part[_REPORT]):
            for kind, counts in json.loads(text).items():
                encoding.setdefault(kind, Counter()).update(counts)
    return BuiltRows(ids, rows, {kind: dict(counts) for kind, counts in encoding.items()})
