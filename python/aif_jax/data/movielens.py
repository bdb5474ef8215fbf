"""MovieLens: films rated by people; the label of a rating is whether it is 4 or 5 stars, liked.

Per user the first 80 % of the ratings train, the next 10 % validate, the last 10 % test. A past rating is a
behaviour: ``disliked`` (1, 2), ``neutral`` (3) or ``liked`` (4, 5). The set has no requests: the ratings of
a user in one split stand for one.

``movielens-1m-new-users`` cuts the same ratings by user instead, in order of each one's last: the first eight
tenths of the users train, the next validates, the last tests. The training part does not know the last two;
all their ratings are scored, those of their first request without a history.

Where ratings have times, those of one second are not in each other's history. The layout ``ordered`` has only
positions, so there each rating is in the history of the next one.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.checks import typed
from aif_jax.data.dataset import Dataset
from aif_jax.data.files import PUBLIC_SETS, dense, read_integers, read_separated, read_table
from aif_jax.data.splits import by_column, split_by_last_time, split_by_position
from aif_jax.errors import DataError
from aif_jax.features import Categorical, MultiValued, Numeric, Ragged, Schema

BEHAVIOURS = ("disliked", "neutral", "liked")
_TYPE_OF_RATING = np.array([-1, 0, 0, 1, 2, 2])
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_MIN_RATINGS = 5
"""Films of 1M with fewer are dropped."""
_YEAR = re.compile(r"(\d{4})(?:-\w+)?\)?\s*$")


@typed
def movielens_1m(path: str | Path, *, content_width: int = 64, new_users: bool = False) -> Dataset:
    """Load MovieLens 1M from a folder.

    Args:
        path: folder with ``ratings.dat, movies.dat, users.dat`` as in the public archive; or with
            ``ratings_ordered.parquet`` (user_id, movie_id, rating, order; order -1 = unknown, dropped) in
            place of the ratings.
        content_width: width of the content embedding.
        new_users: cut by user instead of within each, see the module; ratings without times need
            ``user_last_ts.csv`` (user_id, last_ts) for that.

    Films with fewer than five ratings are dropped with their ratings: published sequences of this set leave
    them out, and so both layouts keep the same rows.

    Raises:
        DataError: files are missing or broken; the message names their address.
    """
    name = "movielens-1m-new-users" if new_users else "movielens-1m"
    layout, path = PUBLIC_SETS[name].detect(Path(path))
    if layout == "archive":
        ratings = read_integers(path / "ratings.dat", "::", 4)
        _, film, counts = np.unique(ratings[:, 1], return_inverse=True, return_counts=True)
        keep = counts[film] >= _MIN_RATINGS
    else:
        table = read_table(path / "ratings_ordered.parquet", ("user_id", "movie_id", "rating", "order"))
        ratings = np.stack([column.astype(np.int64) for column in table.values()], axis=1)
        keep = ratings[:, 3] >= 0
    films = read_separated(path / "movies.dat", "::", 3, encoding="latin-1")
    people = read_separated(path / "users.dat", "::", 5, encoding="latin-1")
    users = {
        "ids": _integers(path / "users.dat", people, 0),
        "gender": _strings(people, 1),
        "age": _integers(path / "users.dat", people, 2),
        "occupation": _integers(path / "users.dat", people, 3),
    }
    items = {
        "ids": _integers(path / "movies.dat", films, 0),
        "year": _years([film[1] for film in films]),
        "genres": _lists([film[2].split("|") for film in films]),
    }
    schema = _schema(
        user=(Categorical(name="gender"), Categorical(name="age"), Categorical(name="occupation")), genres=6
    )
    return _build(
        name, schema, users, items, ratings, keep, content_width,
        by_position=layout == "ordered",
        last_time=_last_times(path, layout, users["ids"], ratings) if new_users else None,
    )  # fmt: skip


def _last_times(path: Path, layout: str, ids: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """Return the time of each user's last rating, int64 ``[n_users]``; 0 without one."""
    user_id, time = ratings[:, 0], ratings[:, 3]
    if layout == "ordered":
        file = path / "user_last_ts.csv"
        table = read_table(file, ("user_id", "last_ts"))
        if not all(np.issubdtype(column.dtype, np.integer) for column in table.values()):
            raise DataError(f"{file}: expected whole numbers in every row of user_id and last_ts (seconds).")
        user_id, time = (column.astype(np.int64) for column in table.values())
        if lacking := np.setdiff1d(ids, user_id)[:3].tolist():
            raise DataError(
                f"{file}: has no row of user {lacking[0]}; expected one for everyone in users.dat."
            )
    last = np.zeros(len(ids), np.int64)
    np.maximum.at(last, dense(ids, user_id, "user"), time)
    return last


@typed
def movielens_100k(path: str | Path, *, content_width: int = 64) -> Dataset:
    """Load MovieLens 100K from a folder.

    Args:
        path: folder with ``u.data, u.user, u.item`` as in the public archive, or with
            ``ml-100k.inter, ml-100k.user, ml-100k.item`` (tab-separated with a typed header).
        content_width: width of the content embedding.

    Raises:
        DataError: files are missing or broken; the message names their address.
    """
    layout, path = PUBLIC_SETS["movielens-100k"].detect(Path(path))
    if layout == "archive":
        ratings = read_integers(path / "u.data", "\t", 4)
        people = read_separated(path / "u.user", "|", 5, encoding="latin-1")
        films = read_separated(path / "u.item", "|", 5 + len(_GENRES_100K), encoding="latin-1")
        years = _years([film[2] for film in films])
        genres = [
            [g for g, flag in zip(_GENRES_100K, film[5:], strict=True) if flag == "1"] for film in films
        ]
        people_file, films_file = path / "u.user", path / "u.item"
    else:
        ratings = read_integers(path / "ml-100k.inter", "\t", 4, header=True)
        people = read_separated(path / "ml-100k.user", "\t", 5, encoding="utf-8", header=True)
        films = read_separated(path / "ml-100k.item", "\t", 4, encoding="utf-8", header=True)
        years = _years([film[2] for film in films])
        genres = [film[3].split() for film in films]
        people_file, films_file = path / "ml-100k.user", path / "ml-100k.item"
    users = {
        "ids": _integers(people_file, people, 0),
        "gender": _strings(people, 2),
        "age": _integers(people_file, people, 1),
        "occupation": _strings(people, 3),
    }
    items = {"ids": _integers(films_file, films, 0), "year": years, "genres": _lists(genres)}
    schema = _schema(
        user=(Categorical(name="gender"), Numeric(name="age"), Categorical(name="occupation")), genres=6
    )
    keep = np.ones(len(ratings), bool)
    return _build("movielens-100k", schema, users, items, ratings, keep, content_width, by_position=False)


def _schema(*, user: tuple[Any, ...], genres: int) -> Schema:
    return Schema(
        user=user,
        item=(
            Categorical(name="movie_id"),
            Categorical(name="year"),
            MultiValued(name="genres", max_values=genres),
        ),
        behaviour_types=BEHAVIOURS,
        category="genres",
        item_id="movie_id",
    )


def _build(
    name: str,
    schema: Schema,
    users: dict[str, Any],
    items: dict[str, Any],
    ratings: np.ndarray,
    keep: np.ndarray,
    content_width: int,
    *,
    by_position: bool,
    last_time: np.ndarray | None = None,
) -> Dataset:
    """Build the set.

    Args:
        name: of the set.
        schema: of its features.
        users: raw columns with ``ids``, ascending.
        items: the same.
        ratings: int64 ``[E, 4]``: id of the user, id of the film, stars, and time or position.
        keep: bool ``[E]``, ratings that are not dropped.
        content_width: width of the content embedding.
        by_position: the last column is the position within the user, not a time.
        last_time: int ``[n_users]`` to split by user; ``None`` splits within each.
    """
    rating = ratings[:, 2]
    if len(rating) == 0 or rating.min() < 1 or rating.max() > 5:
        raise DataError(f"{name}: expected ratings of 1 to 5, got {len(rating)} of them, some outside.")
    for label, columns in (("users", users), ("items", items)):
        if np.any(np.diff(columns["ids"]) <= 0):
            raise DataError(f"{name}: the {label} are not in ascending order of id, each once.")
    user_id, item_id, rating, time = ratings[keep].T
    user = dense(users["ids"], user_id, "user")
    dense(items["ids"], item_id, "film")
    order = np.lexsort((time, user))
    user, user_id, item_id, rating, time = (
        column[order] for column in (user, user_id, item_id, rating, time)
    )
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users["ids"])))])
    part = split_by_position(offsets) if last_time is None else split_by_last_time(last_time)[user]
    source = PUBLIC_SETS[name]
    dataset = Dataset.from_impressions(
        {
            "user_id": user_id,
            "movie_id": item_id,
            "time": time,
            "liked": rating >= 4,
            "behaviour": _TYPE_OF_RATING[rating],
            "part": part,
            "request": user.astype(np.int64) * 3 + part,
        },
        user="user_id",
        item="movie_id",
        time="time",
        time_unit="step" if by_position else "s",
        label="liked",
        type="behaviour",
        request="request",
        users={"user_id": users["ids"], **users},
        items={"movie_id": items["ids"], **items},
        repeats="keep",
        split=by_column("part"),
        schema=schema,
        content_width=content_width,
        name=name,
    )
    notes = {
        "terms": source.terms,
        "cite": source.cite,
        "dropped_rows": int(np.count_nonzero(~keep)),
        "time": "position within the user" if by_position else "seconds",
    }
    return dataclasses.replace(dataset, notes={**dataset.notes, **notes})


def _integers(path: Path, rows: list[list[str]], field: int) -> np.ndarray:
    try:
        return np.array([int(row[field]) for row in rows], np.int64)
    except ValueError as error:
        raise DataError(f"{path}: field {field + 1} should be a whole number: {error}") from error


def _strings(rows: list[list[str]], field: int) -> np.ndarray:
    return np.array([row[field] for row in rows], dtype=object)


def _years(texts: list[str]) -> np.ndarray:
    """Return the year at the end of a title, a date or a field of its own; ``None`` where there is none."""
    found = [_YEAR.search(text) for text in texts]
    return np.array([int(match.group(1)) if match else None for match in found], dtype=object)


def _lists(rows: list[list[str]]) -> Ragged:
    lengths = [len(row) for row in rows]
    values = np.array([value for row in rows for value in row], dtype=object)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
