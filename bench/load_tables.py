"""Time and peak memory of ten million events: loading, beside what pandas takes to read and group them, and
an epoch of training (eleven minutes of a core).

    python bench/load_tables.py

Each way runs in a process of its own, because peak memory is one figure of a process. The events are made up:
popular users and items, thirty days, three types; written as Parquet. The last lines are of one process that
loads, chooses settings, prepares the rows, trains an epoch and evaluates the validation part.
"""

import dataclasses
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EVENTS = 10_000_000
WAYS = ("read_parquet", "read_parquet and groupby", "read_parquet and sort", "from_events")


def write_events(path: Path) -> None:
    random = np.random.default_rng(0)
    of_all, of_few = (random.integers(0, EVENTS // share, EVENTS) for share in (10, 100))
    kinds = random.choice(3, EVENTS, p=[0.9, 0.07, 0.03]).astype(np.int8)
    times = 1_760_000_000_000 + random.integers(0, 30 * 86_400_000, EVENTS)
    table = {
        "user": 7 * np.where(random.random(EVENTS) < 0.5, of_all, of_few),
        "item": np.minimum((random.pareto(1.0, EVENTS) * 50).astype(np.int64), 199_999),
        "time": pa.array(times, pa.timestamp("ms", "UTC")),
        "type": pa.DictionaryArray.from_arrays(kinds, ["click", "cart", "buy"]),
    }
    pq.write_table(pa.table(table), path)


def run(way: str, path: str) -> str:
    """Load in one way; return seconds, CPU seconds and the peak of memory in GB as cells of a table."""
    import pandas as pd

    from aif_jax.data import Dataset

    started, cpu = time.perf_counter(), time.process_time()
    if way == "from_events":
        Dataset.from_events(path, user="user", item="item", time="time", type="type")
    else:
        log = pd.read_parquet(path)
        if way.endswith("groupby"):
            log.groupby("user")["item"].count()
        elif way.endswith("sort"):
            log.sort_values(["user", "time"])
    seconds, busy = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{seconds:.1f} | {busy:.1f} | {peak:.2f}"


def train_an_epoch(path: str) -> None:
    """Load, choose, prepare and train one epoch; print a line for each part."""
    from aif_jax.data import TRAIN, Dataset
    from aif_jax.training import choose, train

    last = [time.perf_counter(), time.process_time()]

    def done(what: str) -> None:
        seconds, busy = time.perf_counter() - last[0], time.process_time() - last[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {what} | {seconds:.1f} | {busy:.1f} | {peak:.2f} |", flush=True)
        last[:] = time.perf_counter(), time.process_time()

    data = Dataset.from_events(path, user="user", item="item", time="time", type="type")
    done("`from_events`")
    choice = choose(data)
    done("`choose`")
    training = dataclasses.replace(choice.training, epochs=1)
    rows = int(np.count_nonzero(data.impressions.split == TRAIN))
    steps = math.ceil(len(data.requests(TRAIN, training.group, training.visit)) / training.batch_size)
    marks = {
        1: "rows prepared, a step compiled",
        steps: f"the other steps of an epoch of {rows:,} rows, and validation",
    }
    train(
        choice.model, data, training, progress=False,
        on_step=lambda number: done(marks[number]) if number in marks else None,
    )  # fmt: skip


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "train":
        train_an_epoch(sys.argv[2])
        return
    if len(sys.argv) == 3:
        print(run(*sys.argv[1:]))
        return
    print("| way | seconds | CPU seconds | peak memory, GB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        write_events(path)
        for way in WAYS:
            command = [sys.executable, __file__, way, str(path)]
            cells = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            print(f"| {way} | {cells} |", flush=True)
        subprocess.run([sys.executable, __file__, "train", str(path)], check=True)


if __name__ == "__main__":
    main()
