"""Request traces from public logs, for `hit_rate`: who was served, and what was shown, in order of time.

    python bench/native/traces.py kuairand:PATH movielens-100k:PATH --out OUT

writes three traces of each set, one key a line, with a request for every row of the log, as if each were
served by itself: ``NAME-users.txt`` (whose state is needed), ``NAME-states.txt`` (the same if features are
revised every night, so that the state of one day is of no use on the next) and ``NAME-items.txt``.

MovieLens 1M in the layout ``ordered`` has the order of each user's ratings and no times. With
``--last-times``, a csv file of ``user_id,last_ts`` in seconds, a user's ratings are placed before that moment
at even distances; then only the order within a user and the time of the last rating are the log's.
"""

import argparse
from pathlib import Path

import numpy as np

from aif_jax.data import Dataset, load

GAP_S = 32.0
"""Seconds between ratings where the log does not say: the mean within sittings of MovieLens 100K (32.1)."""

SITTING_S = 1800
"""A longer pause ends a sitting."""

DAYS = {"seconds": 86_400, "position": 86_400, "milliseconds": 86_400_000}
"""A day in the unit of a set's times, by the first word of its note on them."""


def times_of(data: Dataset, last_times: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the time of each event, and whether the event has one."""
    events = data.events
    known = np.ones(len(events), bool)
    for column in data.impressions.context.values():
        # Where the log lacks the context of a row, it lacks its time.
        known &= ~np.ma.getmaskarray(column)
    if not data.notes["time"].startswith("position"):
        return events.time, known
    if last_times is None:
        raise SystemExit(f"{data.name}: this layout has no times; give --last-times FILE.")
    ids, last = np.loadtxt(last_times, np.int64, delimiter=",", skiprows=1).T
    after = np.repeat(events.offsets[1:], np.diff(events.offsets)) - 1 - np.arange(len(events))
    by_user = dict(zip(ids.tolist(), last.tolist(), strict=True))
    ends = np.array([by_user[user] for user in data.users["ids"].tolist()])
    return ends[events.user] - GAP_S * after, known


def mean_gap_s(data: Dataset) -> float:
    """Return the mean pause between ratings of one sitting, for times in seconds."""
    gaps = np.diff(data.events.time)[np.diff(data.events.user) == 0]
    return float(gaps[gaps <= SITTING_S].mean())


def main() -> None:
    """Write the traces that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET:PATH", help="as for `aif_jax.data.load`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the traces")
    parser.add_argument(
        "--last-times", type=Path, help="csv of user_id,last_ts for MovieLens 1M without times"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for spec in given.sets:
        data = load(spec)
        time, known = times_of(data, given.last_times)
        order = np.argsort(time[known], kind="stable")
        users = data.users["ids"][data.events.user[known][order]]
        items = data.items["ids"][data.events.item[known][order]]
        day = np.sort(time[known]) // DAYS[data.notes["time"].split()[0].strip(";")]
        states = users * 100_000 + day.astype(np.int64)
        for kind, keys in (("users", users), ("states", states), ("items", items)):
            path = given.out / f"{data.name}-{kind}.txt"
            np.savetxt(path, keys, "%d")
            print(f"{path}: {len(keys):,} requests, {len(np.unique(keys)):,} keys")
        if data.name == "movielens-100k":
            print(f"mean pause within sittings: {mean_gap_s(data):.1f} s")


if __name__ == "__main__":
    main()
