"""Content space: the fixed map from raw content embeddings to the unit vectors that a model reads."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
from safetensors.numpy import save

from aif_jax.checks import check, typed, whole
from aif_jax.errors import ConfigError, DataError, ItemIndexError
from aif_jax.inputs import read_content, read_ids

Kind = Literal["fitted", "derived", "given"]

_BLOCK = 256
"""Rows that one product computes, however few are wanted: a row must have the same bits in every batch."""
_ONE_THREAD = 1 << 18
"""Multiplications of a product up to which OpenBLAS keeps to the calling thread."""
_CHUNK = 8192
"""Rows of the fit that are float64 at a time."""
CONTENT_SPACE = "content_space.safetensors"
"""File of the arrays of a fitted space, beside the weights of a model."""

_KEY = "content_space"
_ARRAYS = ("mean", "projection")
_PLAIN = ("name", "items", "digest", "kept", "spread")
_NEAR = 1e-2
"""Distance from 1 at which a length counts as unit length: embeddings are kept in 16 bits too."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ContentSpace:
    """The content embeddings that a model reads, unit vectors of ``d_m`` columns, made of raw ones.

    Three kinds:

    - ``fitted`` by `fit` on raw embeddings of any width: the mean is subtracted, the rest is projected onto
      the directions of the largest variance and divided by its length. Raw embeddings are given everywhere.
    - ``derived`` from who used what in a training log. An item that the log lacks has no content; embeddings
      from elsewhere do not fit.
    - ``given``, see `declared`: the caller centres, projects and normalises embeddings, always in one way.

    It is fitted once, before training, and goes with the data set, the model and the bundle.

    Attributes:
        kind: see above.
        width: ``d_m``, columns of what the model reads.
        mean: float32 ``[w]`` of the raw embeddings, if fitted.
        projection: float32 ``[w, d_m]``, if fitted on more than ``d_m`` columns.
        name: names the source of the embeddings, for readers.
        items: number of items of the fit.
        digest: of their ids, or of the log that the embeddings were derived from.
        kept: share of the variance that the projection keeps.
        spread: variance of the raw embeddings, summed over their columns.
        lengths: smallest and largest length of a raw embedding of the fit.
        source: ids and raw embeddings of the fit, in the process that fitted it; not written.

    >>> ids = [7, 8, 9]
    >>> raw = [[9.0, 8.0, 7.5], [9.0, 8.0, 8.5], [9.5, 8.0, 8.0]]
    >>> space = ContentSpace.fit(ids, raw, width=2)
    >>> space
    ContentSpace(fitted on 3 items, 3 -> 2 columns that keep 100.0 % of the variance)
    >>> rows, has = space.apply([[9.0, 8.0, 7.5], None])
    >>> rows.shape, has.tolist()
    ((2, 2), [True, False])
    """

    kind: Kind
    width: int
    mean: np.ndarray | None = None
    projection: np.ndarray | None = None
    name: str = ""
    items: int = 0
    digest: str = ""
    kept: float = 1.0
    spread: float = 0.0
    lengths: tuple[float, float] = (0.0, 0.0)
    source: tuple[Any, np.ndarray] | None = None

    def __post_init__(self) -> None:
        check("content space: kind", self.kind, self.kind in get_args(Kind), f"one of {get_args(Kind)}")
        whole("content space: width", self.width, 1)
        arrays = self.arrays()
        for array in arrays.values():
            array.flags.writeable = False
        columns = len(self.mean) if self.mean is not None and self.mean.ndim == 1 else -1
        if (
            (self.kind == "fitted") != (self.mean is not None)
            or (columns < 0 and arrays)
            or (self.projection is None and columns not in (-1, self.width))
            or (self.projection is not None and self.projection.shape != (columns, self.width))
            or not all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values())
        ):
            shapes = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
            raise ConfigError(
                f"content space: got {self.kind} of width {self.width} with {shapes}, expected for a fitted "
                "one finite float32 mean [w] and projection [w, width] (or none where w is the width), for "
                "others none; make it by ContentSpace.fit or ContentSpace.declared."
            )

    @classmethod
    @typed
    def fit(cls, ids: Any, vectors: Any, *, width: int = 64, name: str = "") -> Self:
        """Fit the space of raw embeddings: their mean, and their principal axes if they are wider.

        Args:
            ids: items, ``[n]``, each once.
            vectors: their raw embeddings, float ``[n, w]`` or a column of lists; rows of zeros, NaN or null
                for items without one are left out.
            width: ``d_m``; embeddings that are narrower keep their width.
            name: names the source.

        Raises:
            DataError: an id is repeated, a vector is broken, or all of them are equal.
            ConfigError: ``width`` is not a whole number of at least 1.
        """
        whole("width", width, 1)
        keys = read_ids(ids, error=DataError).keys
        if len(np.unique(keys)) != len(keys):
            raise DataError("ids: an id is given twice; give each item one vector.")
        given = read_content(vectors, len(keys), None, "vectors", error=DataError)
        has = np.zeros(len(keys), bool) if given is None else _present(given)
        if given is None or has.sum() < 2:
            raise DataError(
                f"vectors: {has.sum():,} of {len(keys):,} items have one, expected at least two; without "
                "embeddings, leave content out."
            )
        raw = given if has.all() else given[has]
        mean = raw.mean(axis=0, dtype=np.float64)
        products = np.zeros((raw.shape[1], raw.shape[1]))
        shortest, longest = np.inf, 0.0
        for start in range(0, len(raw), _CHUNK):
            some = raw[start : start + _CHUNK].astype(np.float64)
            length = np.linalg.norm(some, axis=1)
            shortest, longest = min(shortest, length.min()), max(longest, length.max())
            some -= mean
            products += some.T @ some
        spread = float(np.trace(products)) / len(raw)
        if not spread > 1e-12 * float(mean @ mean):
            raise DataError(
                f"vectors: those of all {len(raw):,} items are equal, so they tell nothing apart."
            )
        projection, kept = None, 1.0
        if raw.shape[1] > width:
            variance, axes = np.linalg.eigh(products)
            axes = axes[:, ::-1][:, :width]
            # The sign of an axis is arbitrary: fix it by its largest entry.
            peak = np.take_along_axis(axes, np.abs(axes).argmax(axis=0, keepdims=True), axis=0)
            projection = np.ascontiguousarray(axes * np.where(peak < 0, -1.0, 1.0), np.float32)
            kept = float(variance[::-1][:width].sum() / variance.sum())
        return cls(
            kind="fitted",
            width=min(width, raw.shape[1]),
            mean=mean.astype(np.float32),
            projection=projection,
            name=name,
            items=len(raw),
            digest=hashlib.blake2b(np.sort(keys[has]).tobytes(), digest_size=16).hexdigest(),
            kept=kept,
            spread=spread,
            lengths=(float(shortest), float(longest)),
            source=(ids, given),
        )

    @classmethod
    def declared(cls, width: int, *, name: str = "") -> Self:
        """Declare embeddings that already live in the model's space: centred and normalised by the caller.

        Nothing here keeps their mean then: each later one must be made in the same way. Models and bundles
        without a content space, as earlier releases made them, have this.

        Args:
            width: ``d_m``.
            name: names the source.
        """
        return cls(kind="given", width=width, name=name)

    @property
    def raw_width(self) -> int:
        """Columns of the embeddings that `apply` takes."""
        return self.width if self.mean is None else len(self.mean)

    @property
    def telling_rows(self) -> int | None:
        """Number of rows that show together that they are centred already; ``None`` if no number does.

        That the mean of n raw rows is near zero where the fit's is far from it is no chance if the fit's is
        over four standard errors away. A mean below a quarter of the standard deviation does little harm if
        it is subtracted twice.
        """
        offset = 0.0 if self.mean is None else float(self.mean @ self.mean)
        if offset == 0.0 or offset < self.spread / 16:
            return None
        return max(2, math.ceil(16 * self.spread / offset))

    def apply(self, vectors: Any, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings as the model reads them.

        Args:
            vectors: raw ones of the space, float ``[n, raw_width]``, a frame of columns, or a column of
                lists; rows of zeros, NaN or null, or ``None`` for all, have no content.
            n: number of rows; by default their length.

        Returns:
            float32 ``[n, width]``, rows of unit length or zeros; and which have content, bool ``[n]``. An
            embedding at the mean of the fit has no direction, and so no content.

        Raises:
            ItemIndexError: another width, a row that is not finite, or of a length that shows that it is no
                raw embedding of this space.
            ConfigError: the rows were centred elsewhere.
        """
        n = len(vectors) if n is None else n
        given = read_content(vectors, n, None)
        if given is None or not given.size:
            return np.zeros((n, self.width), np.float32), np.zeros(n, bool)
        if given.shape[1] != self.raw_width:
            raise ItemIndexError(
                f"content: got {given.shape[1]} columns, expected {self.raw_width}: {self._expected}"
            )
        has = _present(given)
        if self.mean is None or not has.all():
            given = np.where(has[:, None], given, np.float32(0))
        with np.errstate(over="ignore"):
            length = np.sqrt(np.einsum("ij,ij->i", given, given))
        self._check_lengths(length, has)
        if self.mean is None:
            return given, has
        self._check_mean(given, has)
        return self._mapped(given, has)

    def _check_lengths(self, length: np.ndarray, has: np.ndarray) -> None:
        """Check that rows have the length of the fit's, as far as that is certain."""
        low, high = self.lengths if self.mean is not None else (1.0, 1.0)
        off = np.abs(length - 1.0)
        if abs(low - 1.0) < _NEAR and abs(high - 1.0) < _NEAR:
            wrong, expected = ~(off < _NEAR), "1 (or 0 for none)"
        else:  # a unit row was divided by its length, if no row of the fit was near it
            wrong = ~np.isfinite(length)
            if not low * 0.95 < 1.0 < high * 1.05:
                wrong |= off < 1e-4
            expected = f"{low:.4g} to {high:.4g}, as in the fit"
        if len(places := np.flatnonzero(has & wrong)):
            raise ItemIndexError(
                f"content: row {places[0]} has length {length[places[0]]:.4g}, expected {expected}: "
                f"{self._expected}"
            )

    def _check_mean(self, given: np.ndarray, has: np.ndarray) -> None:
        """Check that rows are not centred already, where there are enough of them to be sure.

        See `telling_rows`.
        """
        assert self.mean is not None
        offset, n = float(self.mean @ self.mean), int(has.sum())
        if self.telling_rows is None or n < self.telling_rows:
            return
        middle = given.sum(axis=0, dtype=np.float64) / n
        if float(middle @ middle) < offset / 16:
            raise ConfigError(
                f"content: the mean of {n:,} rows has length {np.sqrt(middle @ middle):.3g}, that of the raw "
                f"embeddings of the fit {np.sqrt(offset):.3g}, so these are centred already; expected "
                f"{self._expected} If they are raw, their encoder has changed: fit a space, and train anew."
            )

    def _mapped(self, given: np.ndarray, has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, mean = len(given), self.mean
        assert mean is not None
        rows, lengths = np.empty((n, self.width), np.float32), np.empty(n, np.float32)
        block = np.zeros((_BLOCK, self.raw_width), np.float32)
        for start in range(0, n, _BLOCK):
            size = min(_BLOCK, n - start)
            np.subtract(given[start : start + size], mean, out=block[:size])
            made = block if self.projection is None else _product(block, self.projection)
            length = np.sqrt(np.einsum("ij,ij->i", made, made))
            lengths[start : start + size] = length[:size]
            np.divide(made, np.maximum(length, 1e-30)[:, None], out=made)
            rows[start : start + size] = made[:size]
        rounding = 1e-5 * np.sqrt(self.spread) + 1e-6 * float(np.linalg.norm(mean))
        has = has & (lengths > rounding)
        rows[~has] = 0.0
        return rows, has

    @property
    def _expected(self) -> str:
        """Description of the embeddings that fit, for messages."""
        if self.kind == "derived":
            return (
                "this content was derived from the training log, and embeddings from elsewhere do not fit. "
                "Give items that the log lacks none; or train on raw ones, Dataset.from_events(content=...)."
            )
        if self.kind == "given" and self.width == 1:
            return "none, as the model reads no content; leave it out."
        if self.kind == "given":
            return (
                "embeddings less the mean of the training catalogue, of unit length (this model keeps no "
                "mean); or train on raw ones, Dataset.from_events(content=...)."
            )
        return (
            f"raw embeddings, as their encoder gives them; the space centres them, makes {self.raw_width} "
            f"columns {self.width}, and normalises them."
        )

    # -- written ----------------------------------------------------------------------------------

    def write(self, description: dict[str, Any], files: dict[str, bytes]) -> None:
        """Put the space among what is written of a model: numbers in its description, arrays in a file.

        A space that is only declared is not written.
        """
        if self.kind != "given":
            description[_KEY] = self.to_json()
        if arrays := self.arrays():
            files[CONTENT_SPACE] = save(arrays)

    @classmethod
    def read(
        cls, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray], width: int
    ) -> "ContentSpace":
        """Read what `write` wrote.

        Args:
            description: of the model.
            arrays: of the file; none without one.
            width: the model's content_width.

        Raises:
            ConfigError: it does not fit together.
        """
        written = description.get(_KEY)
        space = cls.declared(width) if written is None else cls.from_json(written, arrays)
        return check_width(space, width)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a fitted space by name; none for others."""
        found = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays, JSON-serialisable."""
        left = (*_ARRAYS, "source")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left}
        return {**fields, "lengths": list(self.lengths)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """Build from `to_json` and `arrays`.

        Raises:
            ConfigError: they do not fit each other.
        """
        low, high = values["lengths"]
        fields: dict[str, Any] = {name: type(getattr(cls, name))(values[name]) for name in _PLAIN}
        fields |= {name: np.array(arrays[name]) for name in arrays}
        lengths = float(low), float(high)
        return cls(kind=values["kind"], width=values["width"], lengths=lengths, **fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ContentSpace) or self.to_json() != other.to_json():
            return False
        mine, theirs = self.arrays(), other.arrays()
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[n], theirs[n]) for n in mine)

    def __hash__(self) -> int:
        return hash((self.kind, self.width, self.digest))

    def __repr__(self) -> str:
        name = f"{self.name}, " if self.name else ""
        if self.kind != "fitted":
            return f"ContentSpace({name}{self.kind}, {self.width} columns)"
        columns = f"{self.raw_width} columns"
        if self.projection is not None:
            kept = f"{100 * self.kept:.1f} % of the variance"
            columns = f"{self.raw_width} -> {self.width} columns that keep {kept}"
        return f"ContentSpace({name}fitted on {self.items:,} items, {columns})"


def _product(block: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Multiply in pieces for which BLAS starts no threads: on a busy machine these wait for each other."""
    rows = _BLOCK
    while rows > 1 and rows * projection.size > _ONE_THREAD:
        rows //= 2
    return (block.reshape(-1, rows, block.shape[1]) @ projection).reshape(len(block), -1)


def check_width(space: ContentSpace, width: int) -> ContentSpace:
    """Return a content space that a model of some content_width reads.

    Raises:
        ConfigError: it has another width.
    """
    if space.width != width:
        raise ConfigError(
            f"content_width: got {width}, but the content is of {space}; give the model "
            f"content_width={space.width}."
        )
    return space


def _present(matrix: np.ndarray) -> np.ndarray:
    """Return which rows have content, bool ``[n]``; a row is NaN throughout or nowhere."""
    return np.asarray(matrix.any(axis=1) & ~np.isnan(matrix[:, :1]).any(axis=1))
