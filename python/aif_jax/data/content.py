"""Content embeddings for sets that have none, derived from the pairs (user, item) of the training part.

No label, no rating and no event of a later part can change them, by construction.

All of the training part enters, so a training row's own pair and later training pairs do too, with any label.
That reveals no labels: among training rows, the cosine of the item with the mean of the history has AUC 0.513
on MovieLens-1M and 0.540 on KuaiRand, and 0.516 and 0.547 with embeddings from other users. It does separate
pairs of the training part from sampled ones (`TrainConfig.negatives`), a little better than those of another
part: AUC 0.848 against 0.836 with embeddings from other users, and 0.852 against 0.840; on the test part
0.781 against 0.778, and 0.833 against 0.830.

Method: the 0/1 matrix of users and items, divided by the square roots of both degrees, less the component of
popularity alone (the square roots of the degrees); truncated SVD; an item's row is scaled by the square roots
of the singular values, centred over the items that have one, and brought to unit length.
"""

import dataclasses

import numpy as np

from aif_jax.errors import DataError

_FLAT = 1e-9


@dataclasses.dataclass(frozen=True)
class Content:
    """Frozen content embeddings of items.

    Attributes:
        vectors: float32 ``[n_items, w]``, unit-norm rows, zeros without content.
        has: bool ``[n_items]``.
    """

    vectors: np.ndarray
    has: np.ndarray


def collaborative_content(
    user: np.ndarray, item: np.ndarray, *, n_users: int, n_items: int, width: int
) -> Content:
    """Derive content embeddings from pairs of users and items.

    Args:
        user: int ``[P]``, user of each training event, in any order; a pair that repeats counts once.
        item: int ``[P]``, item of each.
        n_users: number of users.
        n_items: number of items.
        width: ``d_m``, width of the embedding. A matrix of lower rank leaves the last columns zero.

    Returns:
        Unit-norm rows for items with training events, zeros for the others; components in falling order of
        importance, so that a narrower embedding is a prefix (see `fit_width`).

    Raises:
        DataError: width below 1, or no events.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    if width < 1:
        raise DataError(f"content width: got {width}, expected at least 1.")
    if not len(user):
        raise DataError("content: got no training events, so no item can be embedded.")
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(user)), (np.asarray(user), np.asarray(item))), shape=(n_users, n_items)
    )
    matrix.data[:] = 1.0  # a pair that repeats was summed
    by_user = np.asarray(matrix.sum(axis=1)).ravel()
    by_item = np.asarray(matrix.sum(axis=0)).ravel()
    has, rows = by_item > 0, by_user > 0
    by_user, by_item = by_user[by_user > 0], by_item[has]
    matrix = scipy.sparse.diags(by_user**-0.5) @ matrix[rows][:, has] @ scipy.sparse.diags(by_item**-0.5)
    # The component of popularity is known beforehand: singular value 1, the roots of the degrees. It is
    # subtracted, not cut off after sorting, because groups of items without a common user have value 1 too.
    left_root, right_root = np.sqrt(by_user / by_user.sum()), np.sqrt(by_item / by_item.sum())

    if float(matrix.multiply(matrix).sum()) - 1.0 < _FLAT:
        # Every user met every item: only popularity is left, and ARPACK fails on that.
        values, right = np.zeros(0), np.zeros((0, matrix.shape[1]))
    elif width >= min(matrix.shape):
        _, values, right = np.linalg.svd(
            matrix.toarray() - np.outer(left_root, right_root), full_matrices=False
        )
    else:
        operator = scipy.sparse.linalg.aslinearoperator
        deflated = operator(matrix) - operator(left_root[:, None]) @ operator(right_root[None, :])
        # A fixed start makes ARPACK's answer the same in every run; it returns the smallest first.
        start = np.random.default_rng(0).normal(size=min(matrix.shape))
        _, values, right = scipy.sparse.linalg.svds(deflated, k=width, v0=start)
        assert right is not None
        order = np.argsort(-values, kind="stable")
        values, right = values[order], right[order]
    values, right = values[:width], right[:width]
    values = np.where(values > 1e-6, values, 0.0)
    # A singular vector's sign is arbitrary: fix it by its largest entry.
    peak = np.abs(right).argmax(axis=1, keepdims=True) if len(right) else np.zeros((0, 1), int)
    right = right * np.where(np.take_along_axis(right, peak, axis=1) < 0, -1.0, 1.0)

    vectors = np.zeros((n_items, width))
    vectors[has, : len(values)] = right.T * np.sqrt(values)
    return _centred(vectors, has)


def fit_width(content: Content, width: int) -> Content:
    """Cut content embeddings to their first columns, of unit length again, as a narrower derivation gives.

    Args:
        content: embeddings ``[n, w]``.
        width: the new width, at most w.

    Raises:
        DataError: the embeddings are narrower than that.
    """
    available = content.vectors.shape[1]
    if width == available:
        return content
    if not 1 <= width <= available:
        raise DataError(
            f"content width: got {width}, but the data set was loaded with {available}; "
            f"load it with content_width={width}."
        )
    return _of_unit_length(content.vectors[:, :width].astype(np.float64), content.has)


def turned(content: Content, places: np.ndarray, earlier: np.ndarray) -> Content:
    """Turn content embeddings towards earlier ones of some of the items, by the best orthogonal map.

    That is the orthogonal Procrustes problem (Schönemann, Psychometrika 1966). Cosines stay as they are.

    Args:
        content: embeddings ``[n, w]``.
        places: int ``[m]``, items that had one earlier.
        earlier: float ``[m, w]``, what it was.
    """
    import scipy.linalg

    turn, _ = scipy.linalg.orthogonal_procrustes(content.vectors[places].astype(np.float64), earlier)
    return _of_unit_length(content.vectors @ turn, content.has)


def centred_unit_rows(vectors: np.ndarray, has: np.ndarray) -> Content:
    """Centre embeddings over the items that have one and bring each to unit length; zeros for the others.

    Args:
        vectors: float ``[n, w]``.
        has: bool ``[n]``.
    """
    return _centred(np.where(has[:, None], vectors, 0.0).astype(np.float64), has)


def _centred(vectors: np.ndarray, has: np.ndarray) -> Content:
    vectors = vectors.copy()
    if has.any():
        vectors[has] -= vectors[has].mean(axis=0)
    return _of_unit_length(vectors, has)


def _of_unit_length(vectors: np.ndarray, has: np.ndarray) -> Content:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    # An item at the mean has no direction, so no content to compare.
    directed = has & (length[:, 0] > _FLAT)
    vectors = np.where(directed[:, None], vectors / np.maximum(length, _FLAT), 0.0)
    return Content(vectors=vectors.astype(np.float32), has=directed)
