"""What a model makes of each user's impressions, in whole numbers: small to keep, and exact."""

import dataclasses
from typing import Self

import numpy as np

from aif_jax.training.metrics import user_aucs


@dataclasses.dataclass(frozen=True, eq=False)
class UserPairs:
    """How many pairs of a positive and a negative each user has, and how many of them are in order.

    Users are those with both classes, by their number, which is not kept. All arrays are ``[U]`` integers.

    Attributes:
        impressions: of the user: the weight in GAUC.
        pairs: of the user, at least 1.
        halves: 2 for each pair whose positive has the higher score, 1 for each that has the same.
    """

    impressions: np.ndarray
    pairs: np.ndarray
    halves: np.ndarray

    @classmethod
    def of(cls, users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Self:
        """Count the pairs of one model.

        Args:
            users: integers, ``[I]``.
            labels: 0 or 1, ``[I]``.
            scores: ``[I]``, finite.

        Raises:
            DataError: as `aif_jax.training.metrics.user_aucs`.
        """
        found = user_aucs(users, labels, scores)
        return cls(found.impressions, found.pairs, np.rint(2 * found.aucs * found.pairs).astype(np.int64))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def aucs(self) -> np.ndarray:
        """float64 ``[U]``: to the bit what `aif_jax.training.metrics.user_aucs` gives."""
        return self.halves / 2 / self.pairs

    @property
    def gauc(self) -> float:
        """To the bit what `aif_jax.training.metrics.gauc` gives; NaN without users."""
        return float(np.average(self.aucs, weights=self.impressions)) if len(self) else float("nan")

    def same_users(self, other: "UserPairs") -> bool:
        """Return whether both are of users with the same impressions and pairs."""
        mine, theirs = (self.impressions, self.pairs), (other.impressions, other.pairs)
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
