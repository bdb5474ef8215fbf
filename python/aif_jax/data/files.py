"""Public data sets: their sources and terms, the files of their folders, and readers of these."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.errors import DataError
from aif_jax.extras import needs
from aif_jax.files import read_file
from aif_jax.lookup import find


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A public data set: aif_jax ships no row of it.

    Attributes:
        title: its name.
        address: where people download it.
        terms: what its owners allow, in short; their own text governs.
        cite: what to cite.
        layouts: the groups of files that a folder may hold, by name; one complete group is enough.
    """

    title: str
    address: str
    terms: str
    cite: str
    layouts: dict[str, tuple[str, ...]]

    @property
    def how_to_get(self) -> str:
        """The address of the set and its terms, as sentences."""
        return f"{self.title} is at {self.address} ({self.terms}); unpack it and give the folder."

    def detect(self, path: Path) -> tuple[str, Path]:
        """Find a complete layout in the folder, or in its subfolder ``data``.

        Returns:
            The layout's name, and the folder that holds its files.

        Raises:
            DataError: none is complete; the message names what is missing and the address.
        """
        if not path.is_dir():
            raise DataError(f"got {path}, which is not a folder. {self.how_to_get}")
        lacking = {}
        for folder in (path, path / "data"):
            for name, files in self.layouts.items():
                missing = [file for file in files if not (folder / file).is_file()]
                if not missing:
                    return name, folder
                lacking[folder, name] = missing
        _, closest = min(lacking, key=lambda key: len(lacking[key]) / len(self.layouts[key[1]]))
        missing = min((files for key, files in lacking.items() if key[1] == closest), key=len)
        expected = "; or ".join(", ".join(files) for files in self.layouts.values())
        raise DataError(
            f"got {path}, which lacks {', '.join(missing)}; expected the files {expected}. {self.how_to_get}"
        )


def _movielens_1m(*times: str) -> PublicSet:
    """Return MovieLens 1M; `times` are further files where ratings come without the time."""
    return PublicSet(
        title="MovieLens 1M",
        address="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        terms=_MOVIELENS_TERMS,
        cite=_MOVIELENS_CITE,
        layouts={
            "archive": ("ratings.dat", "movies.dat", "users.dat"),
            "ordered": ("ratings_ordered.parquet", "movies.dat", "users.dat", *times),
        },
    )


_MOVIELENS_TERMS = "research use, acknowledge, no redistribution without permission, no commercial use"
_MOVIELENS_CITE = "Harper and Konstan 2015, doi 10.1145/2827872"

PUBLIC_SETS: dict[str, PublicSet] = {
    "movielens-1m": _movielens_1m(),
    "movielens-1m-new-users": _movielens_1m("user_last_ts.csv"),
    "movielens-100k": PublicSet(
        title="MovieLens 100K",
        address="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        terms=_MOVIELENS_TERMS,
        cite=_MOVIELENS_CITE,
        layouts={
            "archive": ("u.data", "u.user", "u.item"),
            "atomic": ("ml-100k.inter", "ml-100k.user", "ml-100k.item"),
        },
    ),
    "kuairand": PublicSet(
        title="KuaiRand-Pure",
        address="https://kuairand.com (archive https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz)",
        terms="CC BY-SA 4.0",
        cite="Gao et al., CIKM 2022, doi 10.1145/3511808.3557624",
        layouts={
            "archive": (
                "log_standard_4_08_to_4_21_pure.csv",
                "log_standard_4_22_to_5_08_pure.csv",
                "user_features_pure.csv",
                "video_features_basic_pure.csv",
            ),
            "windowed": (
                "history_last50_before_2022-04-25.parquet",
                "history_meta.parquet",
                "impressions_2022-04-25_to_04-30.parquet",
                "impressions_2022-05-01_to_05-08.parquet",
                "user_features.parquet",
                "video_features_basic.parquet",
            ),
        },
    ),
}
"""The public sets that `aif_jax.data.load` reads, by the name it knows them by."""


def read_table(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Read columns of a parquet or csv file with a header.

    Returns:
        By column: an integer array; or a float array with NaN for missing numbers; or an object array of
        strings with ``None`` for missing ones.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: the file cannot be read, or a column is absent.
    """
    needs("pyarrow", what=f"reading {path.name}")
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path, columns=list(columns))
        else:
            options = pyarrow.csv.ConvertOptions(include_columns=list(columns), strings_can_be_null=True)
            table = pyarrow.csv.read_csv(path, convert_options=options)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if absent := [name for name in columns if name not in table.column_names]:
        raise DataError(f"{path}: has columns {table.column_names}, which lack {absent}.")
    result: dict[str, Any] = {}
    for name in columns:
        column = table.column(name)
        if pyarrow.types.is_date(column.type):
            column = column.cast(pyarrow.string())
        if pyarrow.types.is_integer(column.type) and not column.null_count:
            result[name] = column.to_numpy()
        elif pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type):
            result[name] = column.cast(pyarrow.float64()).to_numpy()
        else:
            result[name] = np.array(column.cast(pyarrow.string()).to_pylist(), dtype=object)
    return result


def read_separated(
    path: Path, separator: str, fields: int, *, encoding: str, header: bool = False
) -> list[list[str]]:
    """Read a small text file of separated fields.

    Returns:
        One list of strings a row.

    Raises:
        DataError: a line has another number of fields, or bytes that the encoding does not know.
    """
    try:
        lines = read_file(path).decode(encoding).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as {encoding}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line or (header and number == 1):
            continue
        row = line.split(separator)
        if len(row) != fields:
            raise DataError(
                f"{path}:{number}: got {len(row)} fields, expected {fields} separated by {separator!r}."
            )
        rows.append(row)
    return rows


def read_integers(path: Path, separator: str, fields: int, *, header: bool = False) -> np.ndarray:
    """Read a large text file of integers.

    Returns:
        int64 ``[rows, fields]``.

    Raises:
        DataError: something in it is not an integer, or a line has another number of fields.
    """
    data = read_file(path)
    if header:
        data = data.partition(b"\n")[2]
    data = data.replace(separator.encode(), b" ").replace(b"\r", b"").strip()
    lines = data.count(b"\n") + 1 if data else 0
    try:
        values = np.array(data.split(), dtype=np.int64)
    except ValueError as error:
        raise DataError(
            f"{path}: {error}; expected {fields} integers a line, separated by {separator!r}."
        ) from error
    if len(values) != lines * fields:
        raise DataError(f"{path}: got {len(values)} integers on {lines} lines, expected {fields} a line.")
    return values.reshape(lines, fields)


def dense(ids: np.ndarray, values: np.ndarray, what: str) -> np.ndarray:
    """Return the position of each value among sorted unique ids.

    Raises:
        DataError: a value is not among them.
    """
    position, found = find(ids, values)
    if not found.all():
        raise DataError(f"{what} {values[~found][0]} occurs in the log but is not described in the data set.")
    return position.astype(np.int32)
