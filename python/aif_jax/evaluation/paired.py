"""Paired bootstrap over users, and over seeds where models were trained with several."""

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Generic, Self, TypeVar

import numpy as np

from aif_jax.checks import typed
from aif_jax.errors import DataError

Key = TypeVar("Key", bound=Hashable)

_CHUNK = 50
"""Draws of users that are held at a time."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its error.

    Attributes:
        value: over the real users, mean over the seeds.
        standard_error: standard deviation over the resamples; NaN where there is none.
        low: 2.5 % quantile of the resamples.
        high: 97.5 % quantile of the resamples.
    """

    value: float
    standard_error: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Lost:
    """The share of one model's gain that another one loses.

    Attributes:
        gain: of the best model over the baseline.
        share: (best - other) / gain; ``None`` if the gain is under four of its standard errors: then a share
            of it says nothing.
        upper: 95 % quantile of the resampled shares; ``None`` likewise.
    """

    gain: Estimate
    share: float | None
    upper: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Ratio:
    """A sum over users divided by another: means over impressions or lists, and GAUC.

    Attributes:
        numerator: float64 ``[U]``.
        denominator: float64 ``[U]``, 0 for users who do not count.
    """

    numerator: np.ndarray
    denominator: np.ndarray

    @classmethod
    def of_mean(cls, users: np.ndarray, values: np.ndarray, size: int) -> Self:
        """Return the mean of values ``[I]`` of users ``[I]``, numbers below ``size``."""
        return cls(
            np.bincount(users, weights=values, minlength=size),
            np.bincount(users, minlength=size).astype(np.float64),
        )


class PooledAuc:
    """AUC over the impressions of all users together, each counted as often as its user.

    Args:
        users: numbers below ``U``, ``[I]``.
        labels: 0 or 1, ``[I]``.
        scores: ``[I]``, finite; ties count one half.
    """

    def __init__(self, users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        self._users, self._positive = users[order], labels[order] > 0.5
        self._ties = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def __call__(self, times: np.ndarray) -> float:
        """Return the AUC for numbers of times ``[U]`` that each user counts; NaN with one class only."""
        weights = times[self._users]
        positive = np.add.reduceat(np.where(self._positive, weights, 0.0), self._ties)
        negative = np.add.reduceat(np.where(self._positive, 0.0, weights), self._ties)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        return float(positive @ below / pairs) if pairs else float("nan")


Statistic = Ratio | PooledAuc


class PairedBootstrap(Generic[Key]):
    """Resamples users and seeds, for all statistics the same in each draw.

    Users, not impressions, are drawn with replacement, because the impressions of one user are not
    independent; both sides of a difference are measured on the same draw, so what makes a user hard for both
    cancels.

    Drawing from n seeds gives their mean (n - 1) / n of the variance that it has, so what a draw of seeds
    moves is stretched by the root of n / (n - 1). One seed says nothing of that: then the errors are those
    of users only.

    Args:
        users: how many there are, ``U``.
        statistics: by any key, one for each seed; all have as many seeds.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        DataError: statistics have different numbers of seeds or other users, there are fewer than two users
            or resamples.
    """

    @typed
    def __init__(
        self,
        users: int,
        statistics: Mapping[Key, Sequence[Statistic]],
        *,
        resamples: int = 1000,
        seed: int = 0,
    ):
        numbers = {key: len(runs) for key, runs in statistics.items()}
        if len(set(numbers.values())) != 1 or not next(iter(numbers.values())):
            raise DataError(f"paired bootstrap: got seeds {numbers}, expected the same number for each.")
        if users < 2 or resamples < 2:
            raise DataError(
                f"paired bootstrap: got {users} users and {resamples} resamples, expected at least 2 of each."
            )
        self._keys = {key: place for place, key in enumerate(statistics)}
        every = [run for runs in statistics.values() for run in runs]
        shape = (len(self._keys), next(iter(numbers.values())))
        ratios = {place: run for place, run in enumerate(every) if isinstance(run, Ratio)}
        if sizes := {run.numerator.size for run in ratios.values()} - {users}:
            raise DataError(f"paired bootstrap: got statistics of {sorted(sizes)} users, expected {users}.")
        above = np.stack([run.numerator for run in ratios.values()], axis=1) if ratios else None
        below = np.stack([run.denominator for run in ratios.values()], axis=1) if ratios else None

        def measured(times: np.ndarray) -> np.ndarray:
            """Return every statistic for counts of users ``[D, U]``, float64 ``[D, keys, seeds]``."""
            found = np.empty((len(times), len(every)))
            if above is not None and below is not None:
                with np.errstate(invalid="ignore", divide="ignore"):
                    found[:, list(ratios)] = (times @ above) / (times @ below)
            for place, run in enumerate(every):
                if isinstance(run, PooledAuc):
                    found[:, place] = [run(each) for each in times]
            return found.reshape(len(times), *shape)

        self._values = measured(np.ones((1, users)))[0].mean(axis=1)
        stretch = np.sqrt(shape[1] / (shape[1] - 1)) if shape[1] > 1 else 1.0
        draws = []
        for times, runs in _drawn(users, shape[1], resamples, seed):
            each = measured(times)
            mean = each.mean(axis=2)
            of_seeds = np.take_along_axis(each, runs[:, None, :], axis=2).mean(axis=2)
            draws.append(mean + stretch * (of_seeds - mean))
        self._draws = np.concatenate(draws)

    @classmethod
    def of_gauc(
        cls, weights: np.ndarray, aucs: Mapping[Key, Sequence[np.ndarray]], **options: int
    ) -> "PairedBootstrap[Key]":
        """Resample GAUC.

        Args:
            weights: impressions of each user who has both classes, ``[U]``.
            aucs: the AUC of each of these users, ``[U]`` a seed, by any key.
            **options: ``resamples`` and ``seed``.

        Raises:
            DataError: as the class.
        """
        weights = np.asarray(weights, np.float64)
        if sizes := {run.size for runs in aucs.values() for run in runs} - {weights.size}:
            raise DataError(
                f"paired bootstrap: got AUCs of {sorted(sizes)} users, expected those of the {weights.size} "
                "with a weight."
            )
        statistics = {key: [Ratio(run * weights, weights) for run in runs] for key, runs in aucs.items()}
        return cls(weights.size, statistics, **options)

    def estimate(self, key: Key) -> Estimate:
        """Return a statistic and its error."""
        place = self._keys[key]
        return _estimate(self._values[place], self._draws[:, place])

    def difference(self, a: Key, b: Key) -> Estimate:
        """Return a statistic minus another, and the error of that."""
        first, second = self._keys[a], self._keys[b]
        return _estimate(
            self._values[first] - self._values[second], self._draws[:, first] - self._draws[:, second]
        )

    def lost(self, model: Key, best: Key, baseline: Key) -> Lost:
        """Return the share of what ``best`` gains over ``baseline`` that ``model`` loses against ``best``."""
        gain = self.difference(best, baseline)
        if gain.value < 4 * gain.standard_error or gain.value <= 0:
            return Lost(gain, None, None)
        model_, best_, baseline_ = (self._keys[key] for key in (model, best, baseline))
        gains = self._draws[:, best_] - self._draws[:, baseline_]
        losses = self._draws[:, best_] - self._draws[:, model_]
        # A draw without a gain loses all of it, which keeps the quantile on the safe side.
        shares = np.where(gains > 0, losses / np.where(gains > 0, gains, 1.0), np.inf)
        share = float((self._values[best_] - self._values[model_]) / gain.value)
        return Lost(gain, share, float(np.quantile(shares, 0.95)))


def _drawn(users: int, seeds: int, resamples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield draws in chunks: how often each user counts, float64 ``[D, U]``, and seeds, int64 ``[D, S]``."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        times, runs = np.empty((size, users)), np.empty((size, seeds), np.int64)
        for place in range(size):
            times[place] = np.bincount(rng.integers(0, users, users), minlength=users)
            runs[place] = rng.integers(0, seeds, seeds)
        yield times, runs


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    drawn = draws[np.isfinite(draws)]  # a draw may hold nobody who counts
    if drawn.size < 2:
        return Estimate(float(value))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(value), float(drawn.std(ddof=1)), float(low), float(high))
