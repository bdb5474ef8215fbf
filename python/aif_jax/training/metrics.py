"""Metrics in NumPy: order of impressions, order of candidate lists, and calibration; exact under ties.

Arrays are one value an impression, ``[I]``: `labels` are 0 or 1, `scores` are any finite numbers of which
only the order counts (`log_loss` apart, which wants logits), `users` are integers that name the user, or the
request for metrics by request.
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
    """HR@K: the mean of `hits_at_k` over the lists; NaN when there are none.

    Raises:
        DataError: as `hits_at_k`.
    """
    hits = hits_at_k(scores, k, positives)
    return float(hits.mean()) if hits.size else float("nan")


def hits_at_k(scores: np.ndarray, k: int, positives: np.ndarray | None = None) -> np.ndarray:
    """Return the share of each list's positives that are among its first ``k``, float64 ``[R]``.

    A positive that ties with others is equally likely at each of the places they share, so a model that
    scores everything equally gets ``k / C`` and not 1.

    Args:
        scores: ``[R, C]``: ``R`` lists of ``C`` candidates; ``-inf`` marks padding, which no positive may be.
        k: at least 1.
        positives: bool ``[R, C]``, at least one in every list; by default column 0.

    Raises:
        DataError: `scores` is not a matrix, is NaN somewhere, ``positives`` have another shape or a list has
            none, one of them is not finite, or ``k`` is under 1.
    """
    lists, above, tied, counts = _places(scores, k, positives)
    # a positive is equally likely at each of the places above .. above + tied - 1
    hits = np.clip((k - above) / tied, 0.0, 1.0)
    return np.bincount(lists, weights=hits, minlength=counts.size) / counts


def ndcg_at_k(scores: np.ndarray, k: int, positives: np.ndarray | None = None) -> np.ndarray:
    """Return NDCG@K of each list, float64 ``[R]``: positives gain 1, discounted by ``1 / log2(place + 1)``.

    Candidates that tie share the mean of the discounts of their places, as in McSherry and Najork (2008).

    Args:
        scores: as for `hits_at_k`.
        k: at least 1.
        positives: as for `hits_at_k`.

    Raises:
        DataError: as `hits_at_k`.
    """
    lists, above, tied, counts = _places(scores, k, positives)
    discounts = 1.0 / np.log2(np.arange(k) + 2.0)
    total = np.r_[0.0, np.cumsum(discounts)]  # of the first n places
    gains = (total[np.minimum(above + tied, k)] - total[np.minimum(above, k)]) / tied
    ideal = total[np.minimum(counts, k)]
    return np.bincount(lists, weights=gains, minlength=counts.size) / ideal


def reciprocal_ranks(scores: np.ndarray, positives: np.ndarray | None = None) -> np.ndarray:
    """Return ``1 / place`` of the first positive of each list, float64 ``[R]``; MRR is their mean.

    Candidates that tie stand in random order: the result is the mean over all orders. With ``a`` candidates
    above the best positives, which are ``p`` of ``t`` that tie, none of the first ``j`` of these is positive
    with probability ``prod_i (t - i + 1 - p) / (t - i + 1)``, ``i`` from 1 to ``j``.

    Args:
        scores: as for `hits_at_k`.
        positives: as for `hits_at_k`.

    Raises:
        DataError: as `hits_at_k`.
    """
    lists, above, tied, counts = _places(scores, 1, positives)
    starts = np.searchsorted(lists, np.arange(counts.size))
    best = np.minimum.reduceat(above, starts) if lists.size else above
    first = above == best[lists]
    alike, ties = (np.bincount(lists[first], weights=w, minlength=counts.size) for w in (None, tied[first]))
    ties = (ties / np.maximum(alike, 1))[:, None]
    places = np.arange(1, int(ties.max(initial=0)) + 1)
    left = ties - places + 1  # candidates of the tie that no earlier place has
    none_yet = np.cumprod(np.clip(left - alike[:, None], 0, None) / np.maximum(left, 1), axis=1)
    share = -np.diff(none_yet, axis=1, prepend=1.0)
    return (share / (best[:, None] + places)).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Predicted probabilities against what happened, in bins of about equally many impressions.

    Attributes:
        bin: int64 ``[I]``, the bin of each impression, from the lowest probability on.
        counts: int64 ``[B]``, impressions of each bin, at least 1.
        predicted: float64 ``[B]``, mean probability.
        observed: float64 ``[B]``, share of positives.
        error: expected calibration error: the mean of ``|predicted - observed|``, weighted by ``counts``
            (Naeini et al. 2015); NaN without impressions.
    """

    bin: Integers
    counts: Integers
    predicted: Floats
    observed: Floats
    error: float


def calibration(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> Calibration:
    """Compare probabilities with labels.

    Args:
        labels: 0 or 1, ``[I]``.
        probabilities: in [0, 1], ``[I]``.
        bins: how many, cut at quantiles of the probabilities; equal probabilities share a bin, so there may
            be fewer.

    Raises:
        DataError: as `auc`, a probability is outside of [0, 1], or ``bins`` is under 1.
    """
    labels, probabilities = _checked(labels, probabilities)
    if bins < 1 or (probabilities.size and not 0 <= probabilities.min() <= probabilities.max() <= 1):
        raise DataError(
            f"calibration: got {bins} bins and probabilities from {probabilities.min(initial=np.inf):g} to "
            f"{probabilities.max(initial=-np.inf):g}, expected at least 1 bin and probabilities in [0, 1]."
        )
    if not labels.size:
        nothing = np.zeros(0)
        return Calibration(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing, float("nan"))
    edges = np.percentile(probabilities, 100.0 * np.linspace(0.0, 1.0, bins + 1)[1:-1])
    _, place = np.unique(np.searchsorted(edges, probabilities), return_inverse=True)
    counts = np.bincount(place)
    predicted = np.bincount(place, weights=probabilities) / counts
    observed = np.bincount(place, weights=labels) / counts
    error = float(np.average(np.abs(predicted - observed), weights=counts))
    return Calibration(place, counts, predicted, observed, error)


def _places(
    scores: np.ndarray, k: int, positives: np.ndarray | None
) -> tuple[Integers, Integers, Integers, Integers]:
    """Return of each positive the list, how many score higher and the same; and positives by list."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise DataError(f"got scores of shape {scores.shape}, expected [lists, candidates].")
    if k < 1:
        raise DataError(f"got k={k}, expected at least 1.")
    if positives is None:
        positives = np.zeros(scores.shape, bool)
        positives[:, 0] = True
    if positives.shape != scores.shape or not positives.any(axis=1).all():
        raise DataError(
            f"got positives of shape {positives.shape}, expected {scores.shape} like scores, "
            "with at least one in every list."
        )
    if np.isnan(scores).any() or not np.isfinite(scores[positives]).all():
        raise DataError("candidate lists: a score is NaN or a positive is not finite.")
    lists, _ = np.nonzero(positives)
    mine = scores[positives][:, None]
    above = np.sum(scores[lists] > mine, axis=1)
    tied = np.sum(scores[lists] == mine, axis=1)
    return lists, above, tied, positives.sum(axis=1)


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
