"""Small logs in the layouts of the public sets, as rows that a test can change and load again."""

import csv
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet

from aif_jax.data import Dataset, kuairand, movielens_1m, movielens_100k
from support.kuairand import LOG_COLUMNS, VIDEO_COLUMNS, log_row, user_row

Row = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Log:
    """Rows in the order of the data set that they become: by user, then by time.

    Attributes:
        rows: user, item, and what follows in the source.
        load: writes rows into a folder and loads it.
        flipped: a row with the other label, and with it the other behaviour.
    """

    rows: list[Row]
    load: Callable[[list[Row]], Dataset]
    flipped: Callable[[Row], Row]

    def elsewhere(self, row: Row) -> Row:
        """Return a row of another item that the log holds."""
        items = sorted({other[1] for other in self.rows})
        return row[0], items[(items.index(row[1]) + 1) % len(items)], *row[2:]


def _liked(row: Row) -> Row:
    user, film, rating, time = row
    return user, film, 6 - rating if rating != 3 else 5, time


def _viewed(row: Row) -> Row:
    *same, click, view, like = row
    return *same, 1 - click, 1 - view, 1 - like


def invented_films(folder: Path) -> Log:
    """Return 12 users with 20 ratings each of 25 films, in the layout of MovieLens 100K."""
    random = np.random.default_rng(0)
    rows = [
        (user, int(film), int(random.integers(1, 6)), 100 * user + place)
        for user in range(1, 13)
        for place, film in enumerate(random.choice(np.arange(1, 26), 20, replace=False))
    ]
    flags = "|".join("0" * 19)
    (folder / "u.user").write_text("".join(f"{u}|{20 + u}|M|writer|00000\n" for u in range(1, 13)))
    (folder / "u.item").write_text("".join(f"{f}|F ({1970 + f})|||x|{flags}\n" for f in range(1, 26)))

    def load(changed: list[Row]) -> Dataset:
        (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in changed))
        return movielens_100k(folder, content_width=6)

    return Log(rows, load, _liked)


def invented_videos(folder: Path) -> Log:
    """Return 10 users who are shown 18 of 20 videos in three weeks, in the layout of KuaiRand's archive."""
    random = np.random.default_rng(1)
    days = (*range(20220410, 20220431), *range(20220501, 20220509))
    rows = []
    for user in range(1, 11):
        dates = np.sort(random.choice(days, 18))
        for place, (date, video) in enumerate(zip(dates, random.permutation(20)[:18], strict=True)):
            time = int(date - 20220000) * 1000 + place
            tab, click, view, like = random.integers(0, 2, 4).tolist()
            rows.append((user, int(video) + 1, int(date), 100 * place, time, tab, click, view, like))
    users = [user_row(user) for user in range(1, 11)]
    videos = [
        dict(zip(VIDEO_COLUMNS, (v, v % 4, "AD", "2022-04-09", "Web", 0, 9.0, 1, 1, v % 3, 1.0, f"{v % 5},9"),
                 strict=True))
        for v in range(1, 21)
    ]  # fmt: skip
    return _videos(folder, rows, users, videos)


def _videos(folder: Path, rows: list[Row], users: list[dict], videos: list[dict]) -> Log:
    data = folder / "data"
    data.mkdir()
    _write_csv(data / "user_features_pure.csv", list(users[0]), users)
    _write_csv(data / "video_features_basic_pure.csv", list(videos[0]), videos)

    def load(changed: list[Row]) -> Dataset:
        for days, early in (("4_08_to_4_21", True), ("4_22_to_5_08", False)):
            part = [log_row(row) for row in changed if (row[2] <= 20220421) == early]
            _write_csv(data / f"log_standard_{days}_pure.csv", list(LOG_COLUMNS), part)
        return kuairand(folder, content_width=6)

    return Log(rows, load, _viewed)


def real_films(folder: Path) -> Log:
    """Return the ratings of 40 users of MovieLens 1M."""
    source = _real("ml-1m")
    for name in ("movies.dat", "users.dat"):
        shutil.copy(source / name, folder / name)
    table = pyarrow.parquet.read_table(source / "ratings_ordered.parquet").to_pydict()
    names = ("user_id", "movie_id", "rating", "order")
    rows = sorted(
        (row for row in zip(*(table[name] for name in names), strict=True) if row[0] <= 40 and row[3] >= 0),
        key=lambda row: (row[0], row[3]),
    )

    def load(changed: list[Row]) -> Dataset:
        columns = {name: np.array([row[i] for row in changed], np.int64) for i, name in enumerate(names)}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "ratings_ordered.parquet")
        return movielens_1m(folder, content_width=6)

    return Log(rows, load, _liked)


def real_videos(folder: Path) -> Log:
    """Return the impressions of 150 users of KuaiRand from 25 April on, in the layout of the archive."""
    source = _real("kuairand")
    names = (
        "user_id", "video_id", "date", "hourmin", "time_ms", "tab", "is_click", "long_view", "is_like"
    )  # fmt: skip
    parts = [pyarrow.parquet.read_table(file).to_pydict() for file in sorted(source.glob("impressions_*"))]
    rows = [row for part in parts for row in zip(*(part[name] for name in names), strict=True)]
    chosen = set(sorted({row[0] for row in rows})[:150])
    rows = sorted((row for row in rows if row[0] in chosen), key=lambda row: (row[0], row[4]))
    users = pyarrow.parquet.read_table(source / "user_features.parquet").to_pylist()
    videos = pyarrow.parquet.read_table(source / "video_features_basic.parquet").to_pylist()
    shown = {row[1] for row in rows}
    users = [user for user in users if user["user_id"] in chosen]
    return _videos(folder, rows, users, [video for video in videos if video["video_id"] in shown])


def _real(name: str) -> Path:
    return Path(os.environ["AIF_JAX_DATA"]) / name


def _write_csv(path: Path, names: list[str], rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
