"""One row of a study: a variant trained with one seed, and all that the table needs of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from aif_jax.evaluation.user_pairs import UserPairs
from aif_jax.evaluation.where import Where
from aif_jax.training import Metrics

LATER = ("inputs", "columns", "drawn")
"""Parts of the identity of a row that were not written down from the beginning."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One variant trained with one seed. No id and no logit of an impression is in it.

    Attributes:
        variant: its name.
        seed: of weights, order, dropout and negatives.
        identity: what a row must share with a study to stand in its table: ``data``; digests of its
            ``impressions``, of ``inputs`` and ``columns`` (see `aif_jax.data.digests`) and of the candidate
            lists that were ``drawn``; ``lists``; ``judge``, unless it is the usual one; and the fields of
            ``model`` and ``training``.
        made: where, see `aif_jax.evaluation.where`.
        metrics: on the part that the study compares on.
        frozen: the same with histories that end where the user's rows of that part begin, see
            `aif_jax.data.Dataset.with_frozen_histories`.
        growing_pairs: of each user, by the logits of ``metrics``.
        frozen_pairs: the same by those of ``frozen``.
        cold_pairs: the same as ``frozen_pairs`` within impressions of cold items.
        cold_auc: with frozen histories, over all impressions of cold items.
        retention: see `aif_jax.evaluation.retention`; empty for the ranker.
        judge: digest of the scores of the ranker that ``retention`` was judged by; empty for the ranker.
        teacher: digest of what the teacher of a distilled model said; empty for others. Rows of one study
            may have teachers that were trained on two machines: what that moves is in the seeds' spread.
        parameters: number of trained weights.
        steps: of training.
        examples_per_s: impressions a second of training.
        scores: of the candidate lists, float32 ``[R, C]``: kept of the ranker, which judges the others by
            them, and ``None`` for all others.
    """

    variant: str
    seed: int
    identity: Mapping[str, Any]
    made: Where
    metrics: Metrics
    frozen: Metrics
    growing_pairs: UserPairs
    frozen_pairs: UserPairs
    cold_pairs: UserPairs
    cold_auc: float
    retention: Mapping[str, Any]
    judge: str
    teacher: str
    parameters: int
    steps: int
    examples_per_s: float
    scores: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Variant and seed: the name of the row's file."""
        return f"{self.variant}-{self.seed}"

    def facts(self) -> dict[str, Any]:
        """Return everything but the arrays, as a JSON-serialisable dictionary."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _ARRAYS}
        return {**values, "metrics": self.metrics.to_json(), "frozen": self.frozen.to_json()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays, integers in as few bytes as hold them."""
        growing, frozen, cold = self.growing_pairs, self.frozen_pairs, self.cold_pairs
        counts = {
            # The users with growing and with frozen histories are the same.
            "impressions": growing.impressions, "pairs": growing.pairs,
            "growing_halves": growing.halves, "frozen_halves": frozen.halves,
            "cold_impressions": cold.impressions, "cold_pairs": cold.pairs, "cold_halves": cold.halves,
        }  # fmt: skip
        small = {n: c.astype(np.min_scalar_type(int(c.max(initial=0)))) for n, c in counts.items()}
        return small if self.scores is None else {**small, "scores": self.scores}

    @classmethod
    def from_parts(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """Build from what `facts` and `arrays` gave.

        Raises:
            KeyError: an array is absent.
            TypeError: a fact is absent or unknown.
        """
        counts = {name: array.astype(np.int64) for name, array in arrays.items() if name != "scores"}
        users = counts["impressions"], counts["pairs"]
        read = {name: Metrics.from_json(facts[name]) for name in ("metrics", "frozen")}
        pairs = {
            "growing_pairs": UserPairs(*users, counts["growing_halves"]),
            "frozen_pairs": UserPairs(*users, counts["frozen_halves"]),
            "cold_pairs": UserPairs(*(counts[f"cold_{n}"] for n in ("impressions", "pairs", "halves"))),
        }
        return cls(**{**facts, **read, **pairs, "scores": arrays.get("scores")})


_ARRAYS = ("growing_pairs", "frozen_pairs", "cold_pairs", "scores")
