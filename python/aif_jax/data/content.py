"""Content embeddings of a data set: given by the user, or derived from the pairs (user, item) of training.

Given ones are raw, of any width; a `ContentSpace` that is fitted on the items of the training part makes of
them what the model reads. No label, no rating and no event of a later part can change derived ones, by
construction.

All of the training part enters, so a training row's own pair and later training pairs do too, with any label.
That reveals no labels: among training rows, the cosine of the item with the mean of the history has AUC 0.513
on MovieLens-1M and 0.540 on KuaiRand, and 0.516 and 0.547 with embeddings from other users. It does separate
pairs of the training part from sampled ones (`TrainConfig.negatives`), a little better than those of another
part: AUC 0.848 against 0.836 with embeddings from other users, and 0.852 against 0.840; on the test part
0.781 against 0.778, and 0.833 against 0.830. So where a data set samples its negatives (`from_events`),
training reads embeddings that were derived from other users: `out_of_fold`.

An item that few users met has no embedding: it would be little else than the taste of those users. In a
made-up shop where nine training items in ten have one user, the same AUC was 0.976 on the training part and
0.718 on the test part; with items of five users and more it is 0.766 and 0.706. Those items also teach a
model what no embedding means, before new items come.

Method: the 0/1 matrix of users and items, divided by the square roots of both degrees, less the component of
popularity alone (the square roots of the degrees); truncated SVD; an item's row is scaled by the square roots
of the singular values, centred over the items that have one, and brought to unit length.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.checks import typed
from aif_jax.data.tables import SortedIds, arrow_column, code_ids
from aif_jax.errors import ConfigError, DataError
from aif_jax.features import ContentSpace
from aif_jax.inputs import read_content

CONTENT_WIDTH = 64
"""Width of content embeddings by default."""

MIN_USERS = 5
"""Users who must have met an item in the training part before an embedding is derived for it."""

FOLDS = 4
"""Groups of users, in each of which training reads embeddings that were derived from the others."""

_FLAT = 1e-9


@dataclasses.dataclass(frozen=True)
class Content:
    """Frozen content embeddings of items.

    Attributes:
        vectors: float32 ``[n_items, w]``, unit-norm rows, zeros without content.
        has: bool ``[n_items]``.
        space: in which they live; by default `ContentSpace.declared`.
        raw: float32 ``[n_items, space.raw_width]``, NaN without content, of which a fitted space made the
            vectors.
        folds: what training reads in place of it, users in row ``u`` fold ``u % len(folds)``; empty if it
            reads this. See `out_of_fold`.
    """

    vectors: np.ndarray
    has: np.ndarray
    space: ContentSpace = None  # type: ignore[assignment]  # of the vectors' width
    raw: np.ndarray | None = None
    folds: tuple["Content", ...] = ()

    def __post_init__(self) -> None:
        if self.space is None and self.vectors.ndim == 2:
            object.__setattr__(self, "space", ContentSpace.declared(max(self.vectors.shape[1], 1)))

    def read_in(self, space: ContentSpace) -> "Content":
        """Return the content as a model of a content space reads it.

        Raises:
            ConfigError: the model's space was fitted on raw embeddings, and there are none here; or these are
                raw, and the model's content was derived from a log.
        """
        if space.kind == "fitted":
            if space == self.space:
                return self
            if self.raw is None:
                raise ConfigError(
                    f"content: the model reads {space}, but the data set has {self.space}; load the data set "
                    "with content=, the raw embeddings of its items."
                )
            vectors, has = space.apply(self.raw)
            return Content(vectors, has, space, self.raw)
        if space.kind == "derived" and self.space.kind == "fitted":
            raise ConfigError(
                f"content: the model reads {space}, but the data set has {self.space}; load the data set "
                "without content=, or train on it."
            )
        return fit_width(self, space.width)


def read_given(
    given: Any, items: SortedIds, columns: dict[str, Any]
) -> tuple[ContentSpace | None, np.ndarray, int]:
    """Read the argument ``content`` of `Dataset.from_events`.

    Args:
        given: the argument.
        items: ids of the data set.
        columns: of its items; a column that holds the embeddings is taken out.

    Returns:
        A space that was fitted elsewhere, raw embeddings float32 ``[n_items, w]``, NaN where there is none,
        and how many were given for ids that are not among the items.

    Raises:
        DataError: it is none of the forms, an id is repeated, or no item has an embedding.
    """
    space: ContentSpace | None = None
    if isinstance(given, (tuple, list)) and given and isinstance(given[0], ContentSpace):
        space, given = given[0], given[1] if len(given) == 2 else tuple(given[1:])
    elif isinstance(given, ContentSpace):
        space, given = given, given.source
        if given is None:
            raise DataError(
                f"content: got {space} alone, which was not fitted in this process and so has no vectors at "
                "hand; give content=(space, ids, vectors)."
            )
    if isinstance(given, str):
        if given not in columns:
            raise DataError(
                f"content: got the column {given!r}, but the columns of items are "
                f"{str(sorted(columns))[:150]}; give one of them, or (ids, vectors)."
            )
        raw, strangers = (
            read_content(columns.pop(given), len(items), None, f"items: column {given!r}", error=DataError),
            0,
        )
    else:
        if isinstance(given, Mapping):
            given = list(given), list(given.values())
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise DataError(
                f"content: got a {type(given).__name__}, expected (ids, vectors), a mapping from id to "
                "vector, the name of a column of items, or a ContentSpace alone or before these."
            )
        ids, vectors = given
        raw, strangers = _placed(ids, vectors, items)
    if raw is None or not (np.nan_to_num(raw) != 0).any():
        raise DataError(
            f"content: none of the {len(items):,} items has an embedding; are the ids those of the log, such "
            f"as {str(items.values[:3].to_pylist())[:80]}?"
        )
    return space, raw, strangers


def _placed(ids: Any, vectors: Any, items: SortedIds) -> tuple[np.ndarray | None, int]:
    """Put embeddings in the order of the items; return them and the number of those of other ids."""
    coded = code_ids(arrow_column(ids, "content: ids"), "content: ids")
    n = len(coded.codes)
    found = read_content(vectors, n, None, "content", error=DataError)
    counts = np.bincount(coded.codes[coded.codes >= 0], minlength=len(coded.values))
    if (counts > 1).any():
        twice = coded.values[int(counts.argmax())].as_py()
        raise DataError(
            f"content: the id {twice!r} is given {counts.max()} times; give each item one vector."
        )
    if found is None or not n or coded.strings != items.strings:
        return None, n
    rows = items.rows(coded)
    raw = np.full((len(items), found.shape[1]), np.nan, np.float32)
    raw[rows[rows >= 0]] = found[rows >= 0]
    return raw, int(np.count_nonzero(rows < 0))


def given_content(
    given: Any, items: SortedIds, columns: dict[str, Any], trained: np.ndarray, width: int | None
) -> tuple[Content, str]:
    """Return the content of a data set that the user gives, and a remark for its reader.

    Args:
        given: see `read_given`.
        items: ids of the data set.
        columns: see `read_given`.
        trained: bool ``[n_items]``, items of the training part, on which the space is fitted.
        width: of the space; ``None`` for that of a given one, or 64.

    Raises:
        DataError: see `read_given`; or no item of the training part has an embedding.
        ConfigError: the space was fitted elsewhere to another width, or on embeddings of another kind.
    """
    space, raw, strangers = read_given(given, items, columns)
    if space is None:
        space = ContentSpace.fit(
            items.plain()[trained], raw[trained], width=CONTENT_WIDTH if width is None else width
        )
    elif width not in (None, space.width):
        raise ConfigError(
            f"content_width: got {width} beside {space}; leave content_width out, or fit the space with "
            f"width={width}."
        )
    vectors, has = space.apply(raw)
    remark = f"{space}; {len(items) - np.count_nonzero(has):,} of {len(items):,} items have none"
    if strangers:
        remark += f"; {strangers:,} embeddings are of no item"
    space = dataclasses.replace(space, source=None)
    return Content(vectors, has, space, raw if space.kind == "fitted" else None), remark


@typed
def collaborative_content(
    user: np.ndarray,
    item: np.ndarray,
    *,
    n_users: int,
    n_items: int,
    width: int,
    min_users: int = MIN_USERS,
) -> Content:
    """Derive content embeddings from pairs of users and items.

    Args:
        user: int ``[P]``, user of each training event, in any order; a pair that repeats counts once.
        item: int ``[P]``, item of each.
        n_users: number of users.
        n_items: number of items.
        width: ``d_m``, width of the embedding. A matrix of lower rank leaves the last columns zero.
        min_users: users that an item needs.

    Returns:
        Unit-norm rows for items that enough users met, zeros for the others; components in falling order of
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
    matrix.sum_duplicates()
    matrix.data[:] = 1.0  # a pair that repeats was summed
    log = np.concatenate([[min_users], matrix.indptr, matrix.indices]).astype(np.int64)
    digest = hashlib.blake2b(log.tobytes(), digest_size=16).hexdigest()
    space = ContentSpace(kind="derived", width=width, digest=digest)
    by_item = np.asarray(matrix.sum(axis=0)).ravel()
    has = by_item >= max(min_users, 1)
    matrix, by_item = matrix[:, has], by_item[has]
    by_user = np.asarray(matrix.sum(axis=1)).ravel()
    matrix, by_user = matrix[by_user > 0], by_user[by_user > 0]
    if not has.any():
        return Content(np.zeros((n_items, width), np.float32), has, space)
    matrix = scipy.sparse.diags(by_user**-0.5) @ matrix @ scipy.sparse.diags(by_item**-0.5)
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
    return _centred(vectors, has, space)


def out_of_fold(
    content: Content, user: np.ndarray, item: np.ndarray, *, n_users: int, n_items: int
) -> Content:
    """Return derived content embeddings with those that training reads: for each user from other users only.

    Where negatives are sampled, few users have met theirs, and all users theirs among the positives: an
    embedding that was derived from a training row tells it from them, and no later row. On a made-up shop
    the AUC of `aif` was 0.907 so, and 0.920 without content. The embeddings of the folds are turned to lie as
    those of all.

    Args:
        content: from `collaborative_content` of these pairs.
        user: see there.
        item: see there.
        n_users: see there.
        n_items: see there.
    """
    width, folds = content.vectors.shape[1], []
    for fold in range(FOLDS):
        kept = np.asarray(user) % FOLDS != fold
        if not kept.any():
            return content
        one = collaborative_content(user[kept], item[kept], n_users=n_users, n_items=n_items, width=width)
        both = np.flatnonzero(one.has & content.has)
        folds.append(turned(one, both, content.vectors[both].astype(np.float64), content.space))
    return dataclasses.replace(content, folds=tuple(folds))


@typed
def fit_width(content: Content, width: int) -> Content:
    """Return derived content embeddings as a narrower derivation gives them: the first columns, normalised.

    Args:
        content: embeddings ``[n, w]``.
        width: ``d_m`` of the model; at most w for derived ones, w for others, whose columns are in no order.

    Raises:
        ConfigError: the embeddings have another width, and cannot be cut to that one.
    """
    available, kind = content.vectors.shape[1], content.space.kind
    if width == available:
        return content
    if kind == "derived" and 1 <= width < available:
        space = dataclasses.replace(content.space, width=width)
        cut = _of_unit_length(content.vectors[:, :width].astype(np.float64), content.has, space)
        return dataclasses.replace(cut, folds=tuple(fit_width(each, width) for each in content.folds))
    raise ConfigError(
        f"content_width: got {width}, but the data set has {content.space}; give the model "
        f"content_width={available}, or "
        + {
            "derived": f"load the data set with content_width={width}.",
            "fitted": f"give raw embeddings and content_width={width} to Dataset.from_events, or fit the "
            f"space with width={width}: columns are never cut off.",
            "given": "project the embeddings: ContentSpace.fit(ids, raw, width=...) does it; their columns "
            "are in no known order, so none are cut off.",
        }[kind]
    )


def turned(content: Content, places: np.ndarray, earlier: np.ndarray, space: ContentSpace) -> Content:
    """Turn content embeddings towards earlier ones of some of the items, by the best orthogonal map.

    That is the orthogonal Procrustes problem (Schönemann, Psychometrika 1966). Cosines stay as they are.

    Args:
        content: embeddings ``[n, w]``.
        places: int ``[m]``, items that had one earlier.
        earlier: float ``[m, w]``, what it was.
        space: of the earlier ones.
    """
    import scipy.linalg

    turn, _ = scipy.linalg.orthogonal_procrustes(content.vectors[places].astype(np.float64), earlier)
    each = [_of_unit_length(one.vectors @ turn, one.has, space) for one in (content, *content.folds)]
    return dataclasses.replace(each[0], folds=tuple(each[1:]))


def derived_rows(vectors: np.ndarray, has: np.ndarray) -> Content:
    """Return embeddings of made-up items as derived ones are: by principal axes, centred, of unit length.

    Args:
        vectors: float ``[n, w]``.
        has: bool ``[n]``.
    """
    vectors = np.where(has[:, None], vectors, 0.0).astype(np.float64)
    _, _, axes = np.linalg.svd(vectors[has] - vectors[has].mean(axis=0))
    return _centred(vectors @ axes.T, has, ContentSpace(kind="derived", width=vectors.shape[1]))


def _centred(vectors: np.ndarray, has: np.ndarray, space: ContentSpace) -> Content:
    vectors = vectors.copy()
    if has.any():
        vectors[has] -= vectors[has].mean(axis=0)
    return _of_unit_length(vectors, has, space)


def _of_unit_length(vectors: np.ndarray, has: np.ndarray, space: ContentSpace) -> Content:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    # An item at the mean has no direction, so no content to compare.
    directed = has & (length[:, 0] > _FLAT)
    vectors = np.where(directed[:, None], vectors / np.maximum(length, _FLAT), 0.0)
    return Content(vectors=vectors.astype(np.float32), has=directed, space=space)
