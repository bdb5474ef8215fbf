import os
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from aif_jax.data import load, movielens_1m, movielens_100k
from aif_jax.errors import DataError, MissingExtraError

# Invented: (user, film, rating, time). Film 50 has a single rating; two pairs of ratings share a second.
RATED = (10, 20, 30, 40, 60, 70, 80, 90, 11, 12)
TIMES = (100, 100, 300, 200, 400, 500, 600, 600, 800, 900)
RATINGS = [
    *((1, film, rating, time) for film, rating, time in zip(RATED, (5, 4, 3, 2, 1) * 2, TIMES, strict=True)),
    *((user, film, 2 if film == 70 else 4, 1000 * user + film) for user in (2, 3, 4, 5) for film in RATED),
    (3, 50, 1, 1),
]
FILMS = sorted({film for _, film, _, _ in RATINGS} | {99})


def write_1m(folder: Path, *, ordered: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    films = "".join(f"{film}::Café {film} ({1900 + film % 90})::Drama|War\n" for film in FILMS)
    (folder / "movies.dat").write_bytes(films.encode("latin-1"))
    (folder / "users.dat").write_text(
        "".join(f"{u}::{'MF'[u % 2]}::{25 + u % 2}::{u}::00000\n" for u in range(1, 7))
    )
    if ordered:
        rows = sorted(RATINGS, key=lambda row: (row[0], row[3]))
        position = {user: [row for row in rows if row[0] == user and row[1] != 50] for user in range(1, 6)}
        order = [-1 if row[1] == 50 else position[row[0]].index(row) for row in rows]
        columns = {
            name: np.array([row[i] for row in rows], np.int16)
            for i, name in enumerate(("user_id", "movie_id", "rating"))
        }
        pyarrow.parquet.write_table(
            pyarrow.table({**columns, "order": np.array(order, np.int16)}), folder / "ratings_ordered.parquet"
        )
    else:
        (folder / "ratings.dat").write_text("".join(f"{u}::{f}::{r}::{t}\n" for u, f, r, t in RATINGS))
    return folder


def write_100k(folder: Path, *, atomic: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    ratings = "".join(f"{u}\t{f}\t{r}\t{t}\n" for u, f, r, t in RATINGS)
    if atomic:
        (folder / "ml-100k.inter").write_text(
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + ratings
        )
        (folder / "ml-100k.user").write_text(
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
            + "".join(f"{u}\t{20 + u}\t{'MF'[u % 2]}\twriter\t00000\n" for u in range(1, 7))
        )
        (folder / "ml-100k.item").write_text(
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            + "".join(f"{film}\tCafé {film}\t{1900 + film % 90}\tDrama War\n" for film in FILMS),
            encoding="utf-8",
        )
    else:
        flags = "0|0|0|0|0|0|0|0|1|0|0|0|0|0|0|0|0|1|0"
        (folder / "u.data").write_text(ratings)
        (folder / "u.user").write_text(
            "".join(f"{u}|{20 + u}|{'MF'[u % 2]}|writer|00000\n" for u in range(1, 7))
        )
        films = "".join(
            f"{f}|Café {f} ({1900 + f % 90})|01-Jan-{1900 + f % 90}||http://x|{flags}\n" for f in FILMS
        )
        (folder / "u.item").write_bytes(films.encode("latin-1"))
    return folder


LAYOUTS = {
    "1m archive": lambda path: movielens_1m(write_1m(path), content_width=2),
    "1m ordered": lambda path: movielens_1m(write_1m(path, ordered=True), content_width=2),
    "100k archive": lambda path: movielens_100k(write_100k(path), content_width=2),
    "100k atomic": lambda path: movielens_100k(write_100k(path, atomic=True), content_width=2),
}


@pytest.fixture(params=LAYOUTS)
def dataset(request, tmp_path):
    return LAYOUTS[request.param](tmp_path / "set")


def test_movielens_ratings_are_ordered_by_time_in_every_layout(dataset):
    rows = dataset.impressions
    films = dataset.items["ids"][rows.item[rows.user == 0]]
    # In time: 100, 100, 200, 300, ...
    assert films.tolist() == [10, 20, 40, 30, 60, 70, 80, 90, 11, 12]
    rating_of = {film: rating for user, film, rating, _ in RATINGS if user == 1}
    assert rows.labels["liked"][rows.user == 0].tolist() == [float(rating_of[film] >= 4) for film in films]
    types = [dataset.schema.behaviour_types[t] for t in dataset.events.type[:10]]
    name = {1: "disliked", 2: "disliked", 3: "neutral", 4: "liked", 5: "liked"}
    assert types == [name[rating_of[film]] for film in films]
    assert rows.split[rows.user == 0].tolist() == [0] * 8 + [1, 2]


def test_movielens_features_are_encoded_in_every_layout(dataset):
    assert dataset.users["ids"].tolist() == [1, 2, 3, 4, 5, 6]
    assert dataset.users["gender"].tolist() == ["F", "M"] * 3
    assert dataset.items["ids"].tolist() == FILMS
    schema = dataset.fit_schema()
    catalogue = dataset.catalogue(schema)
    drama, war = (schema.feature("item", "genres").encoder.values.index(g) + 2 for g in ("Drama", "War"))
    assert catalogue["genres"][0].tolist() == [drama, war, 0, 0, 0, 0]
    assert dataset.items["year"].tolist() == [1900 + film % 90 for film in FILMS]
    # Film 99 was never rated.
    assert catalogue["movie_id"][-1] == 1
    assert catalogue["has_content"][-1] == 0
    assert "redistribution" in dataset.notes["terms"]


def test_movielens_simultaneous_ratings_are_not_in_history(tmp_path):
    timed = movielens_1m(write_1m(tmp_path), content_width=2)
    assert timed.impressions.history_end[:10].tolist() == [0, 0, 2, 3, 4, 5, 6, 6, 8, 9]
    placed = movielens_1m(write_1m(tmp_path / "ordered", ordered=True), content_width=2)
    assert placed.impressions.history_end[:10].tolist() == list(range(10))


def test_movielens_new_users_test_users_with_latest_last_rating(tmp_path):
    timed = load(f"movielens-1m-new-users:{write_1m(tmp_path / 'timed')}", content_width=2)
    write_1m(tmp_path / "placed", ordered=True)
    with pytest.raises(DataError, match=r"lacks user_last_ts\.csv"):
        load(f"movielens-1m-new-users:{tmp_path / 'placed'}")
    times = tmp_path / "placed" / "user_last_ts.csv"
    times.write_text("user_id,last_ts\n1,900\n2,2090\n3,3090\n4,4090\n5,5090\n")
    with pytest.raises(DataError, match=r"user_last_ts\.csv: has no row of user 6"):
        load(f"movielens-1m-new-users:{tmp_path / 'placed'}")
    for time in ("", "2000-04-26"):
        times.write_text("user_id,last_ts\n1,900\n" + "".join(f"{u},{time}\n" for u in range(2, 7)))
        with pytest.raises(DataError, match=r"user_last_ts\.csv: expected whole numbers"):
            load(f"movielens-1m-new-users:{tmp_path / 'placed'}")
    times.write_text("user_id,last_ts\n1,900\n2,2090\n3,3090\n4,4090\n5,5090\n6,1\n")
    placed = load(f"movielens-1m-new-users:{tmp_path / 'placed'}", content_width=2)
    for dataset in (timed, placed):
        assert dataset.name == "movielens-1m-new-users"
        rows = dataset.impressions
        assert set(rows.user[rows.split == 2]) == {4}, "the index of user 5, who rated last"
        assert set(rows.user[rows.split == 0]) == {0, 1, 2, 3}
        assert (rows.history_end[rows.split == 2] - dataset.events.offsets[4]).tolist() == list(range(10))
    # User 1 rates last of all: another user tests.
    times.write_text(times.read_text().replace("1,900", "1,9000"))
    again = load(f"movielens-1m-new-users:{tmp_path / 'placed'}", content_width=2).impressions
    assert set(again.user[again.split == 2]) == {0}


def test_movielens_1m_rarely_rated_films_are_dropped_and_counted(tmp_path):
    for ordered in (False, True):
        dataset = movielens_1m(write_1m(tmp_path / str(ordered), ordered=ordered), content_width=2)
        assert len(dataset.impressions) == len(RATINGS) - 1
        assert dataset.notes["dropped_rows"] == 1
    assert len(movielens_100k(write_100k(tmp_path / "100k"), content_width=2).impressions) == len(RATINGS)


def test_movielens_training_ignores_later_ratings_and_labels(tmp_path):
    before = movielens_1m(write_1m(tmp_path), content_width=2)
    text = (tmp_path / "ratings.dat").read_text()
    # Another rating in a training row, and the films of the validation and the test row exchanged.
    changed = text.replace("1::10::5::100\n", "1::10::1::100\n").replace("1::12::1::900\n", "1::11::1::900\n")
    changed = changed.replace("1::11::2::800\n", "1::12::2::800\n")
    assert changed.count("\n") == text.count("\n")
    assert changed != text
    (tmp_path / "ratings.dat").write_text(changed)
    after = movielens_1m(tmp_path, content_width=2)
    np.testing.assert_array_equal(before.content.vectors, after.content.vectors)
    assert before.fit_schema() == after.fit_schema()


def test_movielens_missing_file_raises_with_address(tmp_path):
    write_1m(tmp_path)
    (tmp_path / "users.dat").unlink()
    with pytest.raises(
        DataError,
        match=r"lacks users\.dat; expected the files ratings\.dat, movies\.dat, users\.dat.*ml-1m\.zip",
    ):
        load(f"movielens-1m:{tmp_path}")
    with pytest.raises(DataError, match=r"not a folder.*ml-100k\.zip.*no commercial use"):
        load(f"movielens-100k:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ratings.dat", "1::10::5\n", "expected 4 a line"),
        ("ratings.dat", "1::10::five::100\n", "five"),
        ("ratings.dat", "1::10::9::100\n", "ratings of 1 to 5"),
        ("ratings.dat", "77::10::5::100\n" * 5, "user 77"),
        ("movies.dat", "1::Film\n", r"movies\.dat:1: got 2 fields, expected 3"),
        ("users.dat", "1::F::young::1::00000\n", "whole number.*young"),
        ("users.dat", "2::F::1::1::0\n1::F::1::1::0\n", "ascending order"),
    ],
)
def test_movielens_broken_file_raises_with_name(tmp_path, file, text, message):
    write_1m(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        movielens_1m(tmp_path)


def test_movielens_without_pyarrow_names_extra(tmp_path, monkeypatch):
    write_1m(tmp_path, ordered=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"reading \S+ needs pyarrow.*'aif_jax\[train\]'"):
        movielens_1m(tmp_path)


if "AIF_JAX_DATA" in os.environ:
    # Only where the real sets are at hand: AIF_JAX_DATA names a folder with ml-1m, ml-100k and kuairand.
    REAL = Path(os.environ["AIF_JAX_DATA"])

    def test_movielens_real_1m_has_published_size_and_floor():
        dataset = load(f"movielens-1m:{REAL / 'ml-1m'}", content_width=8)
        rows, liked = dataset.impressions, dataset.impressions.labels["liked"]
        assert np.bincount(rows.split).tolist() == [799_721, 99_676, 100_214]
        train, test = rows.split == 0, rows.split == 2
        shown = np.bincount(rows.item[train], minlength=dataset.n_items)
        won = np.bincount(rows.item[train], liked[train], minlength=dataset.n_items)
        mean = (won + 20 * liked[train].mean()) / (shown + 20)
        score = mean[rows.item[test]]
        assert auc(liked[test] > 0, score) == pytest.approx(0.7457, abs=5e-5)
        users = [
            (auc(label, mine), len(label))
            for label, mine in by_user(rows.user[test], liked[test] > 0, score)
            if label.any() and not label.all()
        ]
        assert len(users) == 4926
        values, weights = zip(*users, strict=True)
        assert np.average(values, weights=weights) == pytest.approx(0.7109, abs=5e-5)

    def test_movielens_real_100k_is_complete():
        dataset = load(f"movielens-100k:{REAL / 'ml-100k'}", content_width=8)
        assert len(dataset.impressions) == 100_000
        assert (dataset.n_users, dataset.n_items) == (943, 1682)

    def auc(label, score):
        positive, negative = np.sort(score[label]), np.sort(score[~label])
        below = sum(np.searchsorted(negative, positive, side=side).sum() for side in ("left", "right"))
        return below / 2 / len(positive) / len(negative)

    def by_user(user, *columns):
        order = np.argsort(user, kind="stable")
        bounds = np.flatnonzero(np.diff(user[order])) + 1
        return zip(*(np.split(column[order], bounds) for column in columns), strict=True)
