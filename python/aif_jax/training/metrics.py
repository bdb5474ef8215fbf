"""Ranking metrics in NumPy, exact under ties, and the paired bootstrap that says whether a difference is one.

Arrays are one value an impression, ``[I]``: `labels` are 0 or 1, `scores` are any finite numbers of which
only the order counts (`log_loss` apart, which wants logits), `users` are integers that name the user.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from aif_jax.errors import DataError

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in which the positive scores higher.

    A tie counts one half: ``AUC = (sum of the positives' ranks - P (P + 1) / 2) / (P N)``, where equal scores
    share their mean rank (Mann and Whitney 1947).

    Args:
        labels: 0 or 1, ``[I]``.
        scores: ``[I]``, finite.

    Returns:
        A number in [0, 1]; NaN when one of the classes is empty, for which AUC has no meaning.

    Raises:
        DataError: the shapes differ, a label is neither 0 nor 1, or a score is not finite.
    """
    labels, scores = _checked(labels, scores)
    result = user_aucs(np.zeros(labels.shape, np.int64), labels, scores)
    return float(result.aucs[0]) if result.aucs.size else float("nan")


@dataclasses.dataclass(frozen=True)
class UserAucs:
    """AUC of each user who has both classes.

    Attributes:
        users: the users' numbers, ascending, ``[U]``.
        aucs: float64 ``[U]``.
        impressions: how many impressions each has, int64 ``[U]``.
        pairs: how many pairs of a positive and a negative each has, int64 ``[U]``: AUC is a share of them.
    """

    users: Integers
    aucs: Floats
    impressions: Integers
    pairs: Integers


def user_aucs(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> UserAucs:
    """AUC within each user. Users with one class only are left out.

    Args:
        users: integers, ``[I]``, in any order.
        labels: 0 or 1, ``[I]``.
        scores: ``[I]``, finite.

    Raises:
        DataError: as `auc`.
    """
    labels, scores = _checked(labels, scores)
    users = np.asarray(users)
    if users.shape != labels.shape:
        raise DataError(f"users: got shape {users.shape}, expected {labels.shape}, one for every label.")
    names, codes = np.unique(users, return_inverse=True)
    order = np.lexsort((scores, codes))
    codes, ordered_scores, positive = codes[order], scores[order], labels[order] == 1
    starts_user = np.ones(codes.shape, bool)
    starts_user[1:] = codes[1:] != codes[:-1]
    starts_tie = starts_user.copy()
    starts_tie[1:] |= ordered_scores[1:] != ordered_scores[:-1]

    first = np.flatnonzero(starts_user)
    tie_start = np.flatnonzero(starts_tie)
    tie_end = np.append(tie_start[1:], codes.size)
    # 0-based positions start..end-1 within the whole array share the mean of their ranks within the user
    tie = np.cumsum(starts_tie) - 1
    rank = (0.5 * (tie_start + tie_end + 1))[tie] - np.repeat(first, np.diff(np.append(first, codes.size)))

    impressions = np.bincount(codes, minlength=names.size)
    positives = np.bincount(codes, weights=positive, minlength=names.size)
    rank_sums = np.bincount(codes, weights=np.where(positive, rank, 0.0), minlength=names.size)
    negatives = impressions - positives
    both = (positives > 0) & (negatives > 0)
    positives, negatives = positives[both], negatives[both]
    aucs = (rank_sums[both] - positives * (positives + 1) / 2) / (positives * negatives)
    return UserAucs(names[both], aucs, impressions[both], (positives * negatives).astype(np.int64))


def gauc(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    """Group AUC: the users' own AUCs, averaged with their impressions as weights.

    ``GAUC = sum_u I_u AUC_u / sum_u I_u`` over the users who have both classes (Zhou et al.,
    arXiv 1706.06978, section 5.2).

    Returns:
        A number in [0, 1]; NaN when no user has both classes.

    Raises:
        DataError: as `auc`.
    """
    per_user = user_aucs(users, labels, scores)
    if not per_user.aucs.size:
        return float("nan")
    return float(np.average(per_user.aucs, weights=per_user.impressions))


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy in nats, ``mean(log(1 + exp(z)) - y z)``.

    Args:
        labels: 0 or 1, ``[I]``.
        logits: log odds ``z``, ``[I]``, finite.

    Returns:
        The mean; NaN when there are no impressions.

    Raises:
        DataError: as `auc`.
    """
    labels, logits = _checked(labels, logits)
    if not labels.size:
        return float("nan")
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def hit_rate_at_k(scores: np.ndarray, k: int, positives: np.ndarray | None = None) -> float:
    """HR@K: the share of candidate lists in which the positive is among the first ``k``.

    A positive that ties with others is equally likely at each of the places they share, so a model that
    scores everything equally gets ``k / C`` and not 1. Of a list with several positives the share of them
    counts.

    Args:
        scores: ``[R, C]``: ``R`` lists of ``C`` candidates; ``-inf`` marks padding, which no positive may be.
        k: at least 1.
        positives: bool ``[R, C]``, at least one in every list; by default column 0.

    Returns:
        A number in [0, 1]; NaN when there are no lists.

    Raises:
        DataError: `scores` is not a matrix, is NaN somewhere, ``positives`` have another shape or a list has
            none, one of them is not finite, or ``k`` is under 1.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise DataError(f"hit_rate_at_k: got scores of shape {scores.shape}, expected [lists, candidates].")
    if k < 1:
        raise DataError(f"hit_rate_at_k: got k={k}, expected at least 1.")
    if positives is None:
        positives = np.zeros(scores.shape, bool)
        positives[:, 0] = True
    if positives.shape != scores.shape or not positives.any(axis=1).all():
        raise DataError(
            f"hit_rate_at_k: got positives of shape {positives.shape}, expected {scores.shape} like scores, "
            "with at least one in every list."
        )
    if np.isnan(scores).any() or not np.isfinite(scores[positives]).all():
        raise DataError("hit_rate_at_k: a score is NaN or a positive is not finite.")
    if not scores.shape[0]:
        return float("nan")
    lists, _ = np.nonzero(positives)
    mine = scores[positives][:, None]
    above = np.sum(scores[lists] > mine, axis=1)
    tied = np.sum(scores[lists] == mine, axis=1)
    # a positive is equally likely at each of the places above .. above + tied - 1
    hits = np.clip((k - above) / tied, 0.0, 1.0)
    return float(np.mean(np.bincount(lists, weights=hits) / positives.sum(axis=1)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal scores sharing their mean rank.

    Args:
        a: scores, ``[N]``, finite.
        b: other scores of the same things, ``[N]``, finite.

    Returns:
        A number in [-1, 1]; NaN when all of ``a`` or all of ``b`` are equal, or there are none.

    Raises:
        DataError: the shapes differ, or a score is not finite.
    """
    a, b = _paired(a, b)
    middle = (a.size + 1) / 2  # the mean of ranks, shared ones included
    first, second = _mean_ranks(a) - middle, _mean_ranks(b) - middle
    length = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / length if length > 0 else float("nan")


def top_k_overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Return what share of the best ``k`` by one score is among the best ``k`` by another.

    Among equal scores the earlier is the better, as for the engine. Of fewer than ``k`` all are the best.

    Args:
        a: scores, ``[N]``, finite.
        b: other scores of the same things, ``[N]``, finite.
        k: at least 1.

    Raises:
        DataError: the shapes differ, there are none, a score is not finite, or ``k`` is under 1.
    """
    a, b = _paired(a, b)
    if k < 1 or not a.size:
        raise DataError(f"top_k_overlap: got k={k} of {a.size} scores, expected at least 1 of each.")
    first, second = (np.argsort(-scores, kind="stable")[:k] for scores in (a, b))
    return np.intersect1d(first, second).size / first.size


@dataclasses.dataclass(frozen=True)
class GaucDifference:
    """GAUC of A minus GAUC of B on the same impressions, and how sure it is.

    Attributes:
        difference: over the real users.
        standard_error: standard deviation of the difference over the resamples.
        low: 2.5 % quantile of the resampled differences.
        high: 97.5 % quantile of the resampled differences.
        users: how many users with both classes were resampled.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    users: int


def gauc_difference(
    users: np.ndarray,
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> GaucDifference:
    """Paired bootstrap over users for the difference of two GAUCs.

    Users, not impressions, are drawn with replacement, because the impressions of one user are not
    independent; both models are scored on the same draw, so what makes a user hard for both cancels.

    Args:
        users: integers, ``[I]``.
        labels: 0 or 1, ``[I]``.
        scores_a: of model A, ``[I]``.
        scores_b: of model B, ``[I]``.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        DataError: as `auc`, or fewer than two users have both classes.
    """
    a, b = user_aucs(users, labels, scores_a), user_aucs(users, labels, scores_b)
    count = a.users.size
    if count < 2:
        raise DataError(f"gauc_difference: {count} users have both classes; a bootstrap needs at least 2.")
    if resamples < 2:
        raise DataError(f"gauc_difference: got resamples={resamples}, expected at least 2.")
    weights = a.impressions.astype(np.float64)
    weighted = weights * (a.aucs - b.aucs)
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for i in range(resamples):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        draws[i] = (times @ weighted) / (times @ weights)
    low, high = np.quantile(draws, [0.025, 0.975])
    return GaucDifference(
        difference=float(weighted.sum() / weights.sum()),
        standard_error=float(draws.std(ddof=1)),
        low=float(low),
        high=float(high),
        users=int(count),
    )


def _paired(a: np.ndarray, b: np.ndarray) -> tuple[Floats, Floats]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(
            f"got scores of shapes {a.shape} and {b.shape}, expected one axis of the same length."
        )
    if bad := int(np.count_nonzero(~np.isfinite(a)) + np.count_nonzero(~np.isfinite(b))):
        raise DataError(f"scores: {bad} of {a.size + b.size} are not finite.")
    return a, b


def _mean_ranks(scores: np.ndarray) -> Floats:
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[Floats, Floats]:
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise DataError(
            f"got labels of shape {labels.shape} and scores of shape {scores.shape}, "
            "expected one axis of the same length."
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise DataError("labels: expected only 0 and 1; threshold graded labels first.")
    if not np.isfinite(scores).all():
        raise DataError(f"scores: {int((~np.isfinite(scores)).sum())} of {scores.size} are not finite.")
    return labels, scores
