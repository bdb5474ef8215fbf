"""What precision of item rows and user states costs: one model served in each, on a data set's test part.

Everything is computed by the four folded programs, from item features to scores, as an engine would.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from aif_jax.config import PRECISIONS, Precision
from aif_jax.data import Dataset
from aif_jax.models import Folded, fold
from aif_jax.models.baselines import Model
from aif_jax.training.as_served import AsServed, Rankings, user_requests
from aif_jax.training.evaluate import Evaluator, HeadMetrics, head_metrics
from aif_jax.training.metrics import GaucDifference, gauc_difference, rank_correlation, top_k_overlap


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionQuality:
    """One model in one precision.

    Attributes:
        precision: which.
        row_bytes: of one item row's columns.
        state_bytes: of one user state, for the model's longest history.
        heads: metrics of each head over the test part, the main one first.
        gauc_difference: GAUC of the main head minus that in float32, with a paired bootstrap over users.
        candidates: int ``[U]``, how many each user's request had.
        correlation: ``[U]``, Spearman's of the scores of each request with those in float32.
        overlap: ``[U]``, share of the best ``k`` in float32 among the best ``k``.
        logit_error: ``[U]``, root mean square of the main head's difference in logits from float32, over
            the standard deviation of the request's logits.
    """

    precision: Precision
    row_bytes: int
    state_bytes: int
    heads: Mapping[str, HeadMetrics]
    gauc_difference: GaucDifference
    candidates: np.ndarray
    correlation: np.ndarray
    overlap: np.ndarray
    logit_error: np.ndarray


def compare_precisions(
    model: Model,
    dataset: Dataset,
    *,
    users: int = 500,
    candidates: int = 4096,
    k: int = 500,
    seed: int = 0,
    precisions: Sequence[Precision] = PRECISIONS,
) -> dict[Precision, PrecisionQuality]:
    """Measure a model in several precisions against itself in float32.

    Args:
        model: trained, of any architecture that folds.
        dataset: of the schema that the model was trained with; its test part is used.
        users: requests for rankings, each the first of the test part of another user.
        candidates: items of each request at most: all that are not in the user's history then, or so many
            drawn from them. Their pair features are missing.
        k: how many results a request would keep.
        seed: of the draws.
        precisions: which to measure.

    Raises:
        ConfigError: the architecture does not fold.
        DataError: the data set has no test part.
        TrainingError: a logit is not finite.
    """
    lists = user_requests(dataset, users, candidates, seed)
    evaluator = Evaluator(dataset, model, "test")
    plain = AsServed(fold(model), dataset)
    baseline = evaluator.collect(plain.logits), plain.rankings(lists)
    measured: dict[Precision, PrecisionQuality] = {}
    for precision in precisions:
        served = AsServed(fold(model, precision=precision), dataset)
        logits, rankings = (
            baseline if precision == "float32" else (evaluator.collect(served.logits), served.rankings(lists))
        )
        measured[precision] = _quality(served.folded, dataset, logits, rankings, baseline, k)
    return measured


def _quality(
    folded: Folded,
    dataset: Dataset,
    logits: np.ndarray,
    rankings: Rankings,
    baseline: tuple[np.ndarray, Rankings],
    k: int,
) -> PrecisionQuality:
    config, rows = folded.config, dataset.impressions
    known = np.isfinite(logits[:, 0]) & (np.asarray(rows.label_mask[config.heads[0]]) > 0)
    pairs = list(zip(rankings, baseline[1], strict=True))
    return PrecisionQuality(
        precision=folded.precision,
        row_bytes=_bytes(folded.item_spec(1)),
        state_bytes=_bytes(folded.state_spec(config.long_length)),
        heads={
            head: head_metrics(dataset, "test", head, logits[:, place])
            for place, head in enumerate(config.heads)
        },
        gauc_difference=gauc_difference(
            rows.user[known],
            rows.labels[config.heads[0]][known],
            logits[known, 0],
            baseline[0][known, 0],
        ),
        candidates=np.array([len(score) for score, _ in rankings]),
        correlation=np.array([rank_correlation(mine[0], theirs[0]) for mine, theirs in pairs]),
        overlap=np.array([top_k_overlap(mine[0], theirs[0], k) for mine, theirs in pairs]),
        logit_error=np.array(
            [np.sqrt(np.mean((mine[1] - theirs[1]) ** 2)) / np.std(theirs[1]) for mine, theirs in pairs]
        ),
    )


def _bytes(spec: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in spec.values())
