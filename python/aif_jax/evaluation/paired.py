"""Differences between models trained with several seeds each, by a bootstrap over users and seeds."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from aif_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and how sure it is.

    Attributes:
        value: over the real users, mean over the seeds.
        standard_error: standard deviation over the resamples.
        low: 2.5 % quantile of the resamples.
        high: 97.5 % quantile of the resamples.
    """

    value: float
    standard_error: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Lost:
    """The share of one model's gain that another one loses.

    Attributes:
        gain: GAUC of the best model minus that of the baseline.
        share: (best - other) / gain; ``None`` if the gain is under four of its standard errors: then a share
            of it says nothing.
        upper: 95 % quantile of the resampled shares; ``None`` likewise.
    """

    gain: Estimate
    share: float | None
    upper: float | None


class PairedBootstrap:
    """Resamples users and seeds, for several models the same in each draw.

    Drawing from n seeds gives their mean (n - 1) / n of the variance that it has, so what a draw of seeds
    moves is stretched by the root of n / (n - 1). One seed says nothing of that: then the errors are those
    of users only.

    Args:
        weights: impressions of each user who has both classes, ``[U]``.
        aucs: by model, the AUC of each of these users, ``[U]`` a seed; all models have as many seeds.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        DataError: models have different numbers of seeds, the users differ, or there are fewer than two.
    """

    def __init__(
        self,
        weights: np.ndarray,
        aucs: Mapping[str, Sequence[np.ndarray]],
        *,
        resamples: int = 1000,
        seed: int = 0,
    ):
        numbers = {name: len(runs) for name, runs in aucs.items()}
        if len(set(numbers.values())) != 1 or not next(iter(numbers.values())):
            raise DataError(
                f"paired bootstrap: got seeds {numbers}, expected the same number for each model."
            )
        seeds = next(iter(numbers.values()))
        if sizes := sorted({run.size for runs in aucs.values() for run in runs} - {weights.size}):
            raise DataError(
                f"paired bootstrap: got AUCs of {sizes} users, expected those of the {weights.size} with "
                "a weight."
            )
        if weights.size < 2:
            raise DataError(f"paired bootstrap: {weights.size} users have both classes, expected at least 2.")
        weights = weights.astype(np.float64)
        stacked = {name: np.stack(list(runs)) for name, runs in aucs.items()}
        rng = np.random.default_rng(seed)
        n = weights.size
        draws = {name: np.empty(resamples) for name in aucs}
        stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
        for draw in range(resamples):
            times = np.bincount(rng.integers(0, n, n), minlength=n) * weights
            runs = rng.integers(0, seeds, seeds)
            for name, found in stacked.items():
                each = found @ times / times.sum()
                draws[name][draw] = each.mean() + stretch * (each[runs].mean() - each.mean())
        self._draws = draws
        self._values = {name: float((a @ weights).mean() / weights.sum()) for name, a in stacked.items()}

    def difference(self, a: str, b: str) -> Estimate:
        """Return GAUC of a model minus that of another."""
        return _estimate(self._values[a] - self._values[b], self._draws[a] - self._draws[b])

    def lost(self, model: str, best: str, baseline: str) -> Lost:
        """Return the share of what ``best`` gains over ``baseline`` that ``model`` loses against ``best``."""
        gain = self.difference(best, baseline)
        if gain.value < 4 * gain.standard_error or gain.value <= 0:
            return Lost(gain, None, None)
        gains = self._draws[best] - self._draws[baseline]
        losses = self._draws[best] - self._draws[model]
        # A draw without a gain loses all of it, which keeps the quantile on the safe side.
        shares = np.where(gains > 0, losses / np.where(gains > 0, gains, 1.0), np.inf)
        share = (self._values[best] - self._values[model]) / gain.value
        return Lost(gain, share, float(np.quantile(shares, 0.95)))


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(draws.std(ddof=1)), float(low), float(high))
