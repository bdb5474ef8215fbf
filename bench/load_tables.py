"""Time and peak memory of loading ten million events, beside what pandas takes to read and group them.

    python bench/load_tables.py [--events 10000000]

Each way runs in a process of its own, because peak memory is one figure of a process. The events are made up:
users and items by Zipf, thirty days, three types; written as Parquet.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WAYS = (
    "pandas read_parquet",
    "pandas groupby",
    "pandas sort by user and time",
    "from_events",
)


def write_events(path: Path, events: int) -> None:
    random = np.random.default_rng(0)
    users = np.where(
        random.random(events) < 0.5,
        random.integers(0, events // 10, events),
        random.integers(0, events // 100, events),
    )
    items = np.minimum((random.pareto(1.0, events) * 50).astype(np.int64), 199_999)
    times = 1_760_000_000_000 + random.integers(0, 30 * 86_400_000, events)
    kinds = pa.DictionaryArray.from_arrays(
        random.choice(3, events, p=[0.9, 0.07, 0.03]).astype(np.int8), ["click", "cart", "buy"]
    )
    table = {
        "user": users * 7,
        "item": items,
        "time": pa.array(times, pa.timestamp("ms", "UTC")),
        "type": kinds,
    }
    pq.write_table(pa.table(table), path)


def run(way: str, path: str) -> dict[str, float]:
    """Load in one way; return seconds of wall and CPU time, and the peak of memory in GB."""
    if way.startswith("pandas"):
        import pandas as pd
    else:
        from aif_jax.data import Dataset
    started, cpu = time.perf_counter(), time.process_time()
    if way.startswith("pandas"):
        log = pd.read_parquet(path)
        if way.endswith("groupby"):
            log.groupby("user")["item"].count()
        elif way.endswith("time"):
            log.sort_values(["user", "time"])
    else:
        Dataset.from_events(path, user="user", item="item", time="time", type="type")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu, "peak_gb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--way")
    parser.add_argument("--path")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(run(given.way, given.path)))
        return
    print("| way | seconds | CPU seconds | peak memory, GB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "events.parquet")
        write_events(Path(path), given.events)
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--path", path]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"| {way} | {found['wall_s']:.1f} | {found['cpu_s']:.1f} | {found['peak_gb']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
