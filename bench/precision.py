"""Measure what reduced precision costs in quality and print it as Markdown; models are those of `aif train`.

python bench/precision.py movielens-1m:PATH=RUN kuairand:PATH=RUN

RUN is the OUT of `aif train` on that data.
"""

import argparse
from pathlib import Path

import numpy as np

from aif_jax.data import load
from aif_jax.models.store import load_model
from aif_jax.training import PrecisionQuality, compare_precisions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "pairs", nargs="+", metavar="DATA=RUN", help="data set and the OUT of `aif train` on it"
    )
    parser.add_argument("--users", type=int, default=500, help="requests that are ranked, one a user")
    parser.add_argument("--candidates", type=int, default=4096, help="candidates of a request at most")
    parser.add_argument("--k", type=int, default=500, help="results that a request keeps")
    options = parser.parse_args()
    for number, pair in enumerate(options.pairs):
        data, _, run = pair.rpartition("=")
        if not data:
            parser.error(f"got {pair!r}, expected DATA=RUN, such as kuairand:data/kuairand=runs/kuairand")
        dataset = load(data)
        model, _ = load_model(Path(run) / "model")
        found = compare_precisions(
            model, dataset, users=options.users, candidates=options.candidates, k=options.k
        )
        print(("\n" if number else "") + report(dataset.name, list(found.values()), options.k))


def report(name: str, found: list[PrecisionQuality], k: int) -> str:
    """Return the tables of one data set."""
    counts = found[0].candidates
    first = found[0].heads[next(iter(found[0].heads))]
    head = [
        f"## {name}",
        "",
        f"{len(counts)} requests of different users with {counts.min():,} to {counts.max():,} candidates "
        f"each, {np.mean(counts):,.0f} in the mean; {first.impressions:,} impressions of the test part.",
        "",
        f"Beside float32: rank correlation (Spearman) of a request's scores; overlap of the best {k}; error",
        "(root mean square) of the main head's logits over their standard deviation. Each: mean (worst).",
        "",
        f"| precision | bytes: row | user state | rank correlation | overlap at {k} | error of logits |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {one.precision} | {one.row_bytes:,} | {one.state_bytes:,} "
        f"| {one.correlation.mean():.6f} ({one.correlation.min():.6f}) "
        f"| {one.overlap.mean():.4f} ({one.overlap.min():.3f}) "
        f"| {one.logit_error.mean():.2e} ({one.logit_error.max():.2e}) |"
        for one in found
    ]
    quality = [
        "",
        "| precision | head | AUC | GAUC | log loss | GAUC minus float32, 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        for place, (label, metrics) in enumerate(one.heads.items()):
            apart = one.gauc_difference
            shown = f"{apart.difference:+.6f} ({apart.low:+.6f} to {apart.high:+.6f})" if place == 0 else ""
            quality.append(
                f"| {one.precision} | {label} | {metrics.auc:.5f} | {metrics.gauc:.5f} "
                f"| {metrics.log_loss:.5f} | {shown} |"
            )
    return "\n".join([*head, *rows, *quality])


if __name__ == "__main__":
    main()
