"""Measure what histories tell of the order of a user's impressions, with a learner that is not the model.

python bench/history_signal.py --data kuairand:PATH [--seeds 3] [--record FILE]

Boosted trees (scikit-learn) learn the main label from counted features, in four steps: what is known of the
item; plus the user's profile and the context; plus how often the user's history is positive; plus how the
history matches the item. What the last step adds in GAUC is what a history says of this item against that
one: a model that gains nothing from histories where it adds nothing misses nothing that counting would find.
Histories end as the models see them: at the request in training, at the user's first row of the test part.
Needs scikit-learn (``pip install 'aif_jax[bench]'``).
"""

import argparse
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from aif_jax.data import TEST, Dataset, load
from aif_jax.evaluation import Estimate, PairedBootstrap
from aif_jax.training import REFIT, preset
from aif_jax.training.metrics import UserAucs, auc, user_aucs
from counted_features import Known, features, training_rows
from stage.environment import environment

STEPS = ("the item", "and user and context", "and rates of the history", "and matches with the history")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What trees reach that know so much.

    Attributes:
        step: one of `STEPS`.
        features: how many they see.
        auc: on the test part, mean over the seeds.
        gauc: likewise, with frozen histories.
        gain: of GAUC over the step before; ``None`` of the first.
    """

    step: str
    features: int
    auc: float
    gauc: float
    gain: Estimate | None


def measure(dataset: Dataset, head: str, *, seeds: int, most: int) -> tuple[list[Measured], int, int]:
    """Learn, score the test part, and return each step and how many rows trained and tested."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    dataset = dataset.with_frozen_histories("test")
    known, impressions = Known.of(dataset), dataset.impressions
    rows, ends = training_rows(dataset, head, most)
    tested = np.flatnonzero((impressions.split == TEST) & (np.asarray(impressions.label_mask[head]) > 0))
    inputs, sizes = features(known, head, rows, ends)
    test_inputs, _ = features(known, head, tested, impressions.history_end[tested])
    labels, answers = impressions.labels[head][rows], impressions.labels[head][tested]
    by_user: dict[str, list[UserAucs]] = {step: [] for step in STEPS}
    of_all: dict[str, list[float]] = {step: [] for step in STEPS}
    for (step, size), seed in itertools.product(zip(STEPS, sizes, strict=True), range(seeds)):
        trees = HistGradientBoostingClassifier(
            learning_rate=0.05,
            max_iter=200,
            min_samples_leaf=100,
            l2_regularization=10.0,
            max_features=0.5,
            early_stopping=False,  # pyright: ignore[reportArgumentType] "auto" or a bool
            random_state=seed,
        ).fit(inputs[:, :size], labels)
        scores = trees.predict_proba(test_inputs[:, :size])[:, 1]
        by_user[step].append(user_aucs(impressions.user[tested], answers, scores))
        of_all[step].append(auc(answers, scores))
    weights = by_user[STEPS[0]][0].impressions
    aucs = {step: [run.aucs for run in runs] for step, runs in by_user.items()}
    bootstrap = PairedBootstrap.of_gauc(weights, aucs)
    found = [
        Measured(
            step,
            size,
            float(np.mean(of_all[step])),
            float(np.mean([np.average(run.aucs, weights=weights) for run in by_user[step]])),
            bootstrap.difference(step, before) if before is not None else None,
        )
        for step, before, size in zip(STEPS, (None, *STEPS), sizes, strict=False)
    ]
    return found, len(rows), len(tested)


def page(spec: str, *, seeds: int, most: int) -> str:
    """Measure and return the record."""
    dataset = load(spec)
    if dataset.name in REFIT:
        dataset = dataset.with_validation_in_training()
    head = preset(dataset.name)[0].heads[0]
    steps, trained, tested = measure(dataset, head, seeds=seeds, most=most)
    machine = environment()
    lines = [
        f"# What histories tell by counting, {dataset.name}",
        "",
        f"By `python bench/history_signal.py --data {dataset.name}:PATH` on {machine['cpu']}, cores: "
        f"{machine['cores']}, commit {machine['commit']}, {machine['date'][:10]}. Boosted trees on "
        f"{trained:,} training rows, tested on {tested:,} with frozen histories, head `{head}`, {seeds} "
        "seeds; differences to the step before, with the standard error of a bootstrap over users and seeds "
        "in pairs.",
        "",
        "| trees know of | features | AUC | GAUC, frozen | difference |",
        "|---|---|---|---|---|",
    ]
    for step in steps:
        gain = "" if step.gain is None else f"{step.gain.value:+.4f} ± {step.gain.standard_error:.4f}"
        lines.append(f"| {step.step} | {step.features} | {step.auc:.4f} | {step.gauc:.4f} | {gain} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the record, and write it if a file is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=200_000, help="training rows at most")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    text = page(given.data, seeds=given.seeds, most=given.most)
    print(text)
    if given.record is not None:
        given.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
