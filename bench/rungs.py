"""Measure what each rung of the deadline ladder costs in quality; models are those of `aif train`.

python bench/rungs.py movielens-1m:PATH=RUN kuairand:PATH=RUN

RUN is the OUT of `aif train` on that data.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import numpy as np

from aif_jax.data import load
from aif_jax.models.store import load_model
from aif_jax.training import RungQuality, compare_rungs

_WORDS = ("full", "without the long sequence", "user prior", "item prior")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "pairs", nargs="+", metavar="DATA=RUN", help="data set and the OUT of `aif train` on it"
    )
    parser.add_argument("--users", type=int, default=500, help="requests that are ranked, one a user")
    parser.add_argument("--candidates", type=int, default=4096, help="candidates of a request at most")
    parser.add_argument("--lists", type=int, default=1000, help="candidate lists for the hit rate")
    parser.add_argument("--k", type=int, default=500, help="results that a request keeps")
    parser.add_argument("--record", type=Path, help="file to write to, instead of standard output")
    options = parser.parse_args()
    parts = ["# What each rung of the deadline ladder costs in quality", ""]
    for pair in options.pairs:
        data, _, run = pair.rpartition("=")
        if not data:
            parser.error(f"got {pair!r}, expected DATA=RUN, such as kuairand:data/kuairand=runs/kuairand")
        dataset = load(data)
        model, _ = load_model(Path(run) / "model")
        found = compare_rungs(
            model,
            dataset,
            users=options.users,
            candidates=options.candidates,
            k=options.k,
            lists=options.lists,
        )
        parts += [report(dataset.name, list(found.values()), options.k), ""]
    parts += [
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"jax {importlib.metadata.version('jax')}."
    ]
    text = "\n".join(parts) + "\n"
    if options.record is None:
        sys.stdout.write(text)
    else:
        options.record.write_text(text, encoding="utf-8")


def report(name: str, found: list[RungQuality], k: int) -> str:
    """Return the table of one data set."""
    counts, first = found[0].candidates, next(iter(found[0].heads.values()))
    head, lists = next(iter(found[0].heads)), found[0].hit_lists
    lines = [
        f"## {name}",
        "",
        f"Head `{head}`, {first.impressions:,} impressions of the test part; {len(counts)} requests of "
        f"different users with {np.mean(counts):,.0f} candidates in the mean; {lists} candidate lists.",
        "",
        f"Overlap of the best {k} and rank correlation (Spearman) of a request's scores are with rung 0, "
        "mean (worst).",
        "",
        f"| rung | AUC | GAUC | GAUC minus rung 0, 95 % interval | HR@10 | HR@50 | overlap at {k} "
        "| rank correlation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        metrics, apart = one.heads[head], one.gauc_difference
        lines.append(
            f"| {one.rung} {_WORDS[one.rung]} | {metrics.auc:.4f} | {metrics.gauc:.4f} "
            f"| {apart.difference:+.4f} ({apart.low:+.4f} to {apart.high:+.4f}) "
            f"| {one.hit_rate[10]:.4f} | {one.hit_rate[50]:.4f} "
            f"| {one.overlap.mean():.3f} ({one.overlap.min():.3f}) "
            f"| {one.correlation.mean():.3f} ({one.correlation.min():.3f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
