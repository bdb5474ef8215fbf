"""Measure how the weight of the head for what is shown trades what a user came for against a ranker's best.

python bench/shown_weight.py --data kuairand:PATH --rows DIR [--record FILE]

Trains ``aif_shown`` once, and orders candidate lists by ``main * exp(weight * logit_shown)``: the weight is
part of the score expression, so no training depends on it (``aif export --score``). DIR holds the rows of a
study of the data set (``aif evaluate --rows DIR``): its frozen ranker judges, and is trained
if it is not there.
"""

import argparse
from pathlib import Path

import numpy as np

from aif_jax.data import SHOWN, load
from aif_jax.evaluation.retention import retention
from aif_jax.evaluation.study import Study
from aif_jax.evaluation.variants import VARIANTS
from aif_jax.training import Evaluator, preset, train
from stage.environment import environment

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)


def page(spec: str, rows: Path) -> str:
    """Train, order and judge; return the record."""
    variant = VARIANTS["aif_shown"]
    study = Study(load(spec), rows, [variant], seeds=1, rows=rows)
    judge, drawn = study.ranker(), study.candidates()
    assert judge.scores is not None
    assert drawn.positives is not None
    model, training = preset(study.dataset.name)
    labelled = variant.dataset(study.dataset, 0)
    result = train(variant.config(model), labelled, variant.trained(training))
    evaluator = Evaluator(labelled, result.model, "test", buckets=training.long_buckets)
    main = evaluator.score_lists(result.model, drawn, main_head=True).astype(np.float64)
    likely = -np.logaddexp(0.0, -main)  # logarithms, as is all that follows: products become sums
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.log(evaluator.score_lists(result.model, drawn).astype(np.float64))
        shown = np.where(np.isfinite(main), both - likely, 0.0)
    machine = environment()
    lines = [
        f"# The weight of what is shown, {study.dataset.name}",
        "",
        f"By `python bench/shown_weight.py --data {study.dataset.name}:PATH --rows DIR` on {machine['cpu']}, "
        f"cores: {machine['cores']}, jax {machine['jax']}, commit {machine['commit']}, "
        f"{machine['date'][:10]}. One training.",
        "",
        f"Order of {len(drawn):,} lists of what was shown and {study.unseen:,} items that the user never saw "
        f"by `{model.heads[0]} * exp(weight * logit_{SHOWN})`; columns as in the table of `aif evaluate`.",
        "",
        "| weight | 10 of 100 | 20 of 200 | 50 of 200 | positive in 50 | positive in 100 | positive in 200 "
        "| NDCG@10 |",
        "|---" * 8 + "|",
    ]
    for weight in WEIGHTS:
        scores = np.where(np.isfinite(main), likely + weight * shown, -np.inf)
        kept = retention(judge.scores, scores, drawn.positives)
        cells = [*kept.survivors.values(), *kept.positives.values(), kept.ndcg]
        lines.append(f"| {weight:g} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the record, and write it if a file is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    text = page(given.data, given.rows)
    print(text)
    if given.record is not None:
        given.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
