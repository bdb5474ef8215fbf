"""Evaluation of a model or a bundle: metrics with errors, calibration, slices, floors, another model."""

import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from aif_jax.checks import typed
from aif_jax.data import Dataset
from aif_jax.data.splits import split_number
from aif_jax.errors import ConfigError, DataError
from aif_jax.evaluation.paired import Estimate, PairedBootstrap, PooledAuc, Ratio, Statistic
from aif_jax.evaluation.scoring import Evaluable, Scorer, Scores, check_fit
from aif_jax.evaluation.slices import Slice, slices_of
from aif_jax.files import write_atomic
from aif_jax.machine import cores, cpu_model
from aif_jax.training import WHOLE_REQUESTS, CandidateLists, candidate_lists
from aif_jax.training.floors import LabelCounts
from aif_jax.training.metrics import (
    Calibration,
    auc,
    calibration,
    hits_at_k,
    ndcg_at_k,
    reciprocal_ranks,
    user_aucs,
)

FORMAT = 2
_ORDER = ("auc", "gauc", "gauc_by_request", "log_loss", "calibration_error")
SUBJECT = "model"
"""The key of what is evaluated, among floors and other models."""
AGAINST = "against"
"""The key of another model that was given without a name."""
CHANCE = "random"
"""The floor that scores all alike: with ties in random order, its figures are what chance reaches."""

Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        impressions: how many.
        predicted: mean probability.
        observed: share of positives, with the error of a bootstrap over users.
    """

    impressions: int
    predicted: float
    observed: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Comparison of the model: a floor or another model.

    Attributes:
        kind: ``floor`` or ``model``.
        metrics: as of `HeadEvaluation`; log loss and calibration only of what predicts probabilities.
        difference: metric of the evaluated model minus that of this one, with the paired error.
        bins: reliability of another model; empty for floors.
        agreement: of another model: mean rank correlation (Spearman) of the scores of a candidate list, and
            ``overlap@K``, the share of its best K that are among the evaluated model's; empty for floors.
    """

    kind: str
    metrics: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    bins: Sequence[Bin] = ()
    agreement: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceEvaluation:
    """Metrics within a slice.

    Attributes:
        dimension: what the part is cut by.
        name: which of its slices.
        impressions: of known label.
        users: of those impressions.
        users_with_both: users with a positive and a negative among them, over whom GAUC is.
        metrics: ``auc`` (without an error), ``gauc``, ``log_loss`` and ``calibration_error`` of the model.
        difference: by reference (the best floor by GAUC, the other model): those of ``gauc`` and
            ``log_loss``.
    """

    dimension: str
    name: str
    impressions: int
    users: int
    users_with_both: int
    metrics: Mapping[str, Estimate]
    difference: Mapping[str, Mapping[str, Estimate]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadEvaluation:
    """One head.

    Attributes:
        impressions: of known label.
        users: of those impressions.
        users_with_both: users with a positive and a negative, over whom GAUC is.
        positive: share of positives.
        lists: candidate lists for ``mrr``, ``hr@K`` and ``ndcg@K``.
        candidates: in the mean list.
        metrics: ``auc``, ``gauc``, ``gauc_by_request`` (where a request has both classes), ``log_loss``,
            ``calibration_error`` (without an error), ``mrr``, ``hr@K`` and ``ndcg@K``, by name.
        bins: reliability: predicted against observed, from the lowest probability on.
        slices: see `aif_jax.evaluation.slices`.
        references: floors, and other models, by name; the floor `CHANCE` is what chance reaches on the same
            impressions and lists.
    """

    impressions: int
    users: int
    users_with_both: int
    positive: float
    lists: int
    candidates: float
    metrics: Mapping[str, Estimate]
    bins: Sequence[Bin]
    slices: Sequence[SliceEvaluation]
    references: Mapping[str, Reference]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate_model`. ``docs/evaluation.md`` describes its JSON form.

    Attributes:
        model: what was evaluated: ``name``, ``kind`` (``run`` or ``bundle``), ``form`` (of
            `Scorer`), ``architecture``, ``score``, ``precision``, ``rung`` and ``version`` (of a bundle).
        against: the same of each other model, by name.
        data: ``name``, ``split``, ``frozen_histories``.
        settings: ``lists``, ``candidates``, ``whole_requests``, ``bins``, ``resamples``, ``seed``.
        made: ``date``, ``cpu``, ``cores``, and versions of ``jax`` and ``aif_jax``.
        heads: by head, the main one first.
    """

    model: Mapping[str, Any]
    against: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    made: Mapping[str, Any]
    heads: Mapping[str, HeadEvaluation]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; what is not a number there is ``None``."""
        return {"format": FORMAT, **_plain(dataclasses.asdict(self))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Evaluation":
        """Build from `to_json` output.

        Raises:
            DataError: it is of another format.
        """
        if values.get("format") != FORMAT:
            raise DataError(f"evaluation: got format {values.get('format')!r}, expected {FORMAT}.")
        kept = {name: values[name] for name in ("model", "against", "data", "settings", "made")}
        return cls(**kept, heads={name: _head_from(head) for name, head in values["heads"].items()})

    def write(self, path: Path) -> None:
        """Write `to_json` to a file.

        Raises:
            WriteError: the disk refuses, or there is a file that is no JSON object; it is as it was.
        """
        write_atomic(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", begins=b"{")


@typed
def evaluate_model(
    model: Evaluable,
    dataset: Dataset,
    split: str = "test",
    *,
    against: Evaluable | Mapping[str, Evaluable] | None = None,
    heads: Sequence[str] = (),
    slices: Sequence[str] = (),
    frozen_histories: bool = False,
    lists: int = 1000,
    candidates: int = 200,
    k: Sequence[int] = (10, 50),
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a model on one part of a data set, against floors and, if there are any, other models.

    Errors are of a bootstrap over users; those of differences are paired: both sides on the same users.

    Args:
        model: a trained model (unfolded), a bundle (as it serves), or a `Scorer` of either.
        dataset: with the columns that the model was trained on, and a training part, from which floors are
            counted.
        split: ``train``, ``validation`` or ``test``.
        against: another model with the same heads, which is called `AGAINST`; or several by name.
        heads: which to evaluate; all of the model's if empty.
        slices: names of categorical columns to cut by, besides history length, item popularity and new users.
        frozen_histories: end histories where a user's rows of the part begin, see
            `aif_jax.data.Dataset.with_frozen_histories`.
        lists: candidate lists for ``mrr``, ``hr@K`` and ``ndcg@K``, ordered by the score expression as an
            engine orders; 0 leaves these metrics out.
        candidates: in each list: one positive and items that the user never met; for data sets of
            `aif_jax.training.WHOLE_REQUESTS`, all that was shown in a request and so many others.
        k: the places that count.
        bins: of the reliability diagram and of the expected calibration error, of about equally many
            impressions each.
        resamples: of the bootstrap.
        seed: of candidate lists and bootstrap.

    Raises:
        ConfigError: a count is out of bounds.
        DataError: the data set does not fit the model, a head has no label or only one class there, a slice
            is unknown, or the part is empty.
        TrainingError: a logit is not finite.
    """
    if lists < 0 or candidates < 2 or min(k, default=0) < 1 or resamples < 2:
        raise ConfigError(
            f"lists, candidates, k, resamples: got {lists}, {candidates}, {tuple(k)} and {resamples}, "
            "expected at least 0, 2, 1 and 2."
        )
    others = against if isinstance(against, Mapping) else {} if against is None else {AGAINST: against}
    if SUBJECT in others:
        raise ConfigError(f"against: {SUBJECT!r} names what is evaluated; give the other model another name.")
    scorers = {SUBJECT: _scorer(model)} | {name: _scorer(other) for name, other in others.items()}
    wanted = tuple(heads) or scorers[SUBJECT].config.heads
    for scorer in scorers.values():
        check_fit(scorer.schema, dataset, scorer.name)
        _check_heads(wanted, scorer, dataset)
    if frozen_histories:
        dataset = dataset.with_frozen_histories(split)
    measured = {head: _Head(dataset, split, head, k=tuple(k), bins=bins) for head in wanted}
    drawn = {head: _lists(dataset, split, head, lists, candidates, seed) for head in wanted if lists}
    scores = {
        name: scorer.predict(_with_labels(dataset, scorer.config.heads), split, drawn)
        for name, scorer in scorers.items()
    }
    return Evaluation(
        model=scorers[SUBJECT].about(),
        against={name: scorer.about() for name, scorer in scorers.items() if name != SUBJECT},
        data={"name": dataset.name, "split": split, "frozen_histories": frozen_histories},
        settings={
            "lists": lists, "candidates": candidates, "whole_requests": dataset.name in WHOLE_REQUESTS,
            "bins": bins, "resamples": resamples, "seed": seed,
        },
        made={
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "cpu": cpu_model(),
            "cores": cores(),
            "jax": importlib.metadata.version("jax"),
            "aif_jax": importlib.metadata.version("aif_jax"),
        },
        heads={
            head: each.evaluated(
                {name: (scorers[name], scores[name]) for name in scorers}, drawn.get(head),
                features=slices, resamples=resamples, seed=seed,
            )
            for head, each in measured.items()
        },
    )  # fmt: skip


def labelled(dataset: Dataset, split: str, head: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the impressions of a part with a known label, int64 ``[I]``, and their labels, float64 ``[I]``.

    Raises:
        DataError: the labels are of one class, or there are none: most metrics would be NaN.
    """
    every = dataset.impressions
    part = every.split == split_number(split)
    rows = np.flatnonzero(part & (np.asarray(every.label_mask[head]) > 0))
    labels = np.asarray(every.labels[head], np.float64)[rows]
    if not 0 < labels.sum() < labels.size:
        raise DataError(
            f"{dataset.name}: {labels.size:,} known labels of head {head!r} in the {split} part, "
            f"{int(labels.sum()):,} of them positive; expected both classes. Leave the head out, or "
            "evaluate another part."
        )
    return rows, labels


@dataclasses.dataclass(frozen=True, eq=False)
class _Predicted:
    """Scores of one model or floor for the impressions and lists of one head.

    Attributes:
        scores: float64 ``[I]``, of which the order counts.
        logits: float64 ``[I]``, log odds; ``None`` of what predicts no probabilities.
        lists: float32 ``[R, C]``; ``None`` without lists.
    """

    scores: np.ndarray
    logits: np.ndarray | None
    lists: np.ndarray | None


class _Head:
    """The known impressions and the candidate lists of one head, and what is measured on them."""

    def __init__(self, dataset: Dataset, split: str, head: str, *, k: tuple[int, ...], bins: int) -> None:
        self.dataset, self.head, self.k, self.bins = dataset, head, k, bins
        self.rows, self.labels = labelled(dataset, split, head)
        self.names, self.users = np.unique(dataset.impressions.user[self.rows], return_inverse=True)
        self.drawn: CandidateLists | None = None
        self.of_lists = np.zeros(0, np.int64)

    def evaluated(
        self,
        models: Mapping[str, tuple[Scorer, Scores]],
        lists: CandidateLists | None,
        *,
        features: Sequence[str],
        resamples: int,
        seed: int,
    ) -> HeadEvaluation:
        """Measure everything."""
        if lists is not None:
            users = self.dataset.impressions.user[lists.rows]
            self.drawn, self.of_lists = lists, np.searchsorted(self.names, users)
        predicted = {
            name: self._of_model(scorer.config.heads.index(self.head), found)
            for name, (scorer, found) in models.items()
        }
        every = {**predicted, **self._floors()}
        size = self.names.size
        statistics: dict[Key, list[Statistic]] = {}
        for name, each in every.items():
            for metric, statistic in self._statistics(each).items():
                statistics[name, metric] = [statistic]
        reliability: dict[str, Calibration] = {}
        for name, each in predicted.items():
            assert each.logits is not None
            found = reliability[name] = calibration(self.labels, expit(each.logits), self.bins)
            for place in range(found.counts.size):
                mine = found.bin == place
                statistics["bin", name, str(place)] = [
                    Ratio.of_mean(self.users[mine], self.labels[mine], size)
                ]
        gaucs = {name: _value(statistics[name, "gauc"][0]) for name in every if name not in predicted}
        best_floor = max(gaucs, key=lambda name: gaucs[name])
        compared = [*predicted, best_floor]
        slices = slices_of(self.dataset, self.rows, features)
        for place, part in enumerate(slices):
            for name in compared:
                for metric, statistic in self._within(every[name], part).items():
                    statistics["slice", str(place), name, metric] = [statistic]
        for name in list(predicted)[1:]:
            agreed = self._agreement(predicted[SUBJECT].lists, predicted[name].lists)
            statistics |= {("agreement", name, what): [statistic] for what, statistic in agreed.items()}
        paired = PairedBootstrap(size, statistics, resamples=resamples, seed=seed)

        def metrics(name: str) -> dict[str, Estimate]:
            found = {key[1]: paired.estimate(key) for key in statistics if key[0] == name and len(key) == 2}
            logits = every[name].logits
            if logits is not None:
                error = calibration(self.labels, expit(logits), self.bins).error
                found["calibration_error"] = Estimate(error)
            return {metric: found[metric] for metric in sorted(found, key=_place)}

        def reliable(name: str) -> list[Bin]:
            found = reliability[name]
            return [
                Bin(
                    impressions=int(count),
                    predicted=float(mean),
                    observed=paired.estimate(("bin", name, str(place))),
                )
                for place, (count, mean) in enumerate(zip(found.counts, found.predicted, strict=True))
            ]

        def differences(name: str, *start: str) -> dict[str, Estimate]:
            return {
                key[-1]: paired.difference((*start, SUBJECT, key[-1]), key)
                for key in statistics
                if key[:-1] == (*start, name) and (*start, SUBJECT, key[-1]) in statistics
            }

        references = {
            name: Reference(
                kind="model" if name in predicted else "floor",
                metrics=metrics(name),
                difference=differences(name),
                bins=reliable(name) if name in predicted else (),
                agreement={
                    key[2]: paired.estimate(key) for key in statistics if key[:2] == ("agreement", name)
                },
            )
            for name in every
            if name != SUBJECT
        }  # fmt: skip
        return HeadEvaluation(
            impressions=self.rows.size,
            users=size,
            users_with_both=_both(self.users, self.labels, size),
            positive=float(self.labels.mean()),
            lists=0 if self.drawn is None else len(self.drawn),
            candidates=0.0 if self.drawn is None else float((self.drawn.items >= 0).sum(axis=1).mean()),
            metrics=metrics(SUBJECT),
            bins=reliable(SUBJECT),
            references=references,
            slices=[
                SliceEvaluation(
                    dimension=part.dimension,
                    name=part.name,
                    impressions=int(part.rows.sum()),
                    users=np.unique(self.users[part.rows]).size,
                    users_with_both=_both(self.users[part.rows], self.labels[part.rows], size),
                    metrics={
                        **self._unresampled(predicted[SUBJECT], part),
                        **{
                            metric: paired.estimate(key)
                            for metric in ("gauc", "log_loss")
                            if (key := ("slice", str(place), SUBJECT, metric)) in statistics
                        },
                    },
                    difference={
                        name: differences(name, "slice", str(place)) for name in compared if name != SUBJECT
                    },
                )
                for place, part in enumerate(slices)
            ],
        )

    # -- predictions ------------------------------------------------------------------------------

    def _of_model(self, column: int, found: Scores) -> _Predicted:
        logits = np.asarray(found.logits[self.rows, column], np.float64)
        return _Predicted(logits, logits, None if self.drawn is None else found.lists[self.head])

    def _floors(self) -> dict[str, _Predicted]:
        """Return the floors: order by chance, by popularity, and by the counts of `LabelCounts`."""
        counts, every = LabelCounts(self.dataset, self.head), self.dataset.impressions
        users, items = every.user[self.rows], every.item[self.rows]
        of_lists: dict[str, np.ndarray] = {}
        if (drawn := self.drawn) is not None:
            shape, there = drawn.items.shape, drawn.items.ravel() >= 0
            rows = np.repeat(drawn.rows, shape[1])[there]
            listed = drawn.items.ravel()[there], every.user[rows]
            scored = counts.scores(listed[1], listed[0], every.history_end[rows]) | {
                "random": np.zeros(len(listed[0])), "popularity": counts.shown[listed[0]],
            }  # fmt: skip
            for name, values in scored.items():
                of_lists[name] = np.full(shape, -np.inf)
                of_lists[name].ravel()[there] = values
        chance = np.full(items.size, math.log(counts.rate / (1 - counts.rate)))
        popularity = counts.shown[items].astype(np.float64)
        found = {
            "random": _Predicted(chance, chance, of_lists.get("random")),
            "popularity": _Predicted(popularity, None, of_lists.get("popularity")),
        }
        for name, score in counts.scores(users, items, every.history_end[self.rows]).items():
            logits = np.log(score) - np.log1p(-score)
            found[name] = _Predicted(score, logits, of_lists.get(name))
        return found

    # -- statistics -------------------------------------------------------------------------------

    def _statistics(self, given: _Predicted) -> dict[str, Statistic]:
        size = self.names.size
        found: dict[str, Statistic] = {"auc": PooledAuc(self.users, self.labels, given.scores)}
        found |= _ratios(self.users, self.labels, given.scores, given.logits, size)
        if (by_request := self._by_request(given.scores)).denominator.any():
            found["gauc_by_request"] = by_request
        if given.lists is not None and self.drawn is not None:
            ranks = reciprocal_ranks(given.lists, self.drawn.positives)
            found["mrr"] = Ratio.of_mean(self.of_lists, ranks, size)
            measures = {"hr": hits_at_k, "ndcg": ndcg_at_k}
            for (name, measure), k in itertools.product(measures.items(), self.k):
                values = measure(given.lists, k, self.drawn.positives)
                found[f"{name}@{k}"] = Ratio.of_mean(self.of_lists, values, size)
        return found

    def _by_request(self, scores: np.ndarray) -> Ratio:
        """Return GAUC over requests in place of users, as sums over users."""
        found = user_aucs(self.dataset.impressions.request[self.rows], self.labels, scores)
        _, first = np.unique(self.dataset.impressions.request[self.rows], return_index=True)
        requests = self.dataset.impressions.request[self.rows][first]
        owner = self.users[first][np.searchsorted(requests, found.users)]
        size, weights = self.names.size, found.impressions.astype(np.float64)
        return Ratio(
            np.bincount(owner, weights=found.aucs * weights, minlength=size),
            np.bincount(owner, weights=weights, minlength=size),
        )

    def _within(self, given: _Predicted, part: Slice) -> dict[str, Statistic]:
        mine = part.rows
        logits = None if given.logits is None else given.logits[mine]
        return _ratios(self.users[mine], self.labels[mine], given.scores[mine], logits, self.names.size)

    def _unresampled(self, given: _Predicted, part: Slice) -> dict[str, Estimate]:
        assert given.logits is not None
        labels, logits = self.labels[part.rows], given.logits[part.rows]
        return {
            "auc": Estimate(auc(labels, logits)),
            "calibration_error": Estimate(calibration(labels, expit(logits), self.bins).error),
        }

    def _agreement(self, mine: np.ndarray | None, theirs: np.ndarray | None) -> dict[str, Statistic]:
        if mine is None or theirs is None:
            return {}
        found: dict[str, np.ndarray] = {}
        there = np.isfinite(mine) & np.isfinite(theirs)
        with np.errstate(invalid="ignore", divide="ignore"):
            found["rank correlation"] = np.array(
                [_spearman(a[on], b[on]) for a, b, on in zip(mine, theirs, there, strict=True)]
            )
        for k in self.k:
            first, second = (np.argsort(-each, axis=1, kind="stable")[:, :k] for each in (mine, theirs))
            shared = (first[:, :, None] == second[:, None, :]).any(axis=2)
            found[f"overlap@{k}"] = shared.mean(axis=1)
        kept = {name: np.isfinite(values) for name, values in found.items()}
        return {
            name: Ratio.of_mean(self.of_lists[kept[name]], values[kept[name]], self.names.size)
            for name, values in found.items()
        }


def _ratios(
    users: np.ndarray, labels: np.ndarray, scores: np.ndarray, logits: np.ndarray | None, size: int
) -> dict[str, Statistic]:
    """Return GAUC and, with log odds, log loss, as sums over users."""
    by_user = user_aucs(users, labels, scores)
    weighted, weights = np.zeros(size), np.zeros(size)
    weighted[by_user.users] = by_user.aucs * by_user.impressions
    weights[by_user.users] = by_user.impressions
    found: dict[str, Statistic] = {"gauc": Ratio(weighted, weights)}
    if logits is not None:
        found["log_loss"] = Ratio.of_mean(users, np.logaddexp(0.0, logits) - labels * logits, size)
    return found


def _place(metric: str) -> int:
    """Return where a metric stands: those of impressions first, then those of lists in their order."""
    return _ORDER.index(metric) if metric in _ORDER else len(_ORDER)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant."""
    from scipy.stats import spearmanr  # takes most of the import time of this module

    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.asarray(spearmanr(a, b))[0])


def _value(statistic: Statistic) -> float:
    assert isinstance(statistic, Ratio)
    return float(statistic.numerator.sum() / max(statistic.denominator.sum(), 1e-12))


def _both(users: np.ndarray, labels: np.ndarray, size: int) -> int:
    """Return how many users have a positive and a negative."""
    positives = np.bincount(users, weights=labels, minlength=size)
    return int(np.count_nonzero((positives > 0) & (positives < np.bincount(users, minlength=size))))


def _scorer(given: Evaluable) -> Scorer:
    return given if isinstance(given, Scorer) else Scorer(given)


def _check_heads(heads: Sequence[str], scorer: Scorer, dataset: Dataset) -> None:
    if absent := [head for head in heads if head not in scorer.config.heads]:
        raise DataError(
            f"heads: {scorer.name} has no head {', '.join(absent)}, expected some of "
            f"{', '.join(scorer.config.heads)}."
        )
    if absent := [head for head in heads if head not in dataset.heads]:
        raise DataError(
            f"{dataset.name} has no label for head {', '.join(absent)} of {scorer.name}, only for "
            f"{', '.join(dataset.heads)}; choose the heads to evaluate among these (heads=..., --head)."
        )


def _with_labels(dataset: Dataset, heads: Sequence[str]) -> Dataset:
    """Return the set with unknown labels for heads that it has none for: they are predicted all the same."""
    rows = dataset.impressions
    absent = {head: np.zeros(len(rows), np.float32) for head in heads if head not in rows.labels}
    labels, mask = {**rows.labels, **absent}, {**rows.label_mask, **absent}
    return dataclasses.replace(dataset, impressions=dataclasses.replace(rows, labels=labels, label_mask=mask))


def _lists(dataset: Dataset, split: str, head: str, lists: int, candidates: int, seed: int) -> CandidateLists:
    whole = dataset.name in WHOLE_REQUESTS
    unseen = candidates if whole else candidates - 1
    return candidate_lists(dataset, split, head, lists=lists, unseen=unseen, seed=seed, whole_requests=whole)


def _head_from(values: Mapping[str, Any]) -> HeadEvaluation:
    """Build from JSON."""

    def number(value: float | None) -> float:
        return float("nan") if value is None else value

    def estimates(found: Mapping[str, Any]) -> dict[str, Estimate]:
        return {
            name: Estimate(**{part: number(value) for part, value in each.items()})
            for name, each in found.items()
        }

    def bins(found: Sequence[Mapping[str, Any]]) -> list[Bin]:
        return [Bin(**{**each, **estimates({"observed": each["observed"]})}) for each in found]

    def part(found: Mapping[str, Any]) -> SliceEvaluation:
        difference = {name: estimates(each) for name, each in found["difference"].items()}
        return SliceEvaluation(**{**found, "metrics": estimates(found["metrics"]), "difference": difference})

    def reference(found: Mapping[str, Any]) -> Reference:
        read = {name: estimates(found[name]) for name in ("metrics", "difference", "agreement")}
        return Reference(kind=found["kind"], bins=bins(found["bins"]), **read)

    return HeadEvaluation(
        **{
            **values,
            "metrics": estimates(values["metrics"]),
            "bins": bins(values["bins"]),
            "slices": [part(each) for each in values["slices"]],
            "references": {name: reference(each) for name, each in values["references"].items()},
        }
    )


def _plain(value: Any) -> Any:
    """Return a value without what JSON lacks: NaN becomes ``None``, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
