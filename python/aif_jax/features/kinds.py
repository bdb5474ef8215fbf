"""The three kinds of features, each with its encoding as an array."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from aif_jax import _native
from aif_jax.checks import check_types
from aif_jax.errors import SchemaError
from aif_jax.features.encoders import UNKNOWN, Encoder, Vocabulary, encoder_from_json, from_kind
from aif_jax.features.report import EncodeReport
from aif_jax.inputs import read_numbers
from aif_jax.inputs.tokens import Tokens, ragged, tokens
from aif_jax.shown import shown
from aif_jax.strict_json import shortened

_MOST_VALUES = 1 << 16
"""Most values of a row: 256 KiB of it, and 256 GB of a million items."""


def _check(feature: Any) -> None:
    check_types(feature, SchemaError, about="feature: ")
    if not feature.name.isidentifier():
        given = shortened(repr(feature.name))
        raise SchemaError(f"feature {given}: expected a name of letters, digits and underscores.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Coded:
    """A feature of values from an embedding table, int32 codes: 0 missing, 1 unknown, 2 and up known."""

    name: str
    encoder: Encoder = dataclasses.field(default_factory=Vocabulary)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def fitted(self) -> bool:
        """True if `encode` can run."""
        return self.encoder.fitted

    @property
    def size(self) -> int:
        """Rows of the feature's embedding table."""
        return self.encoder.size

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the encoded array."""
        return np.dtype(np.int32)

    def _codes(self, flat: Tokens) -> np.ndarray:
        try:
            return self.encoder.encode(flat)
        except SchemaError as error:
            raise SchemaError(f"feature {self.name!r}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical(_Coded):
    """One value a row: encoded int32 ``[n]``; 0 missing, 1 unknown, 2 and up known.

    >>> town = Categorical(name="town").fit(["York", "Bath", "York", None])
    >>> town.encode(["York", "Hull", None], 3, EncodeReport())
    array([3, 1, 0], dtype=int32)
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded value."""
        return ()

    def fit(self, column: Any) -> "Categorical":
        """Return the feature with its encoder fitted on a column of training data."""
        return dataclasses.replace(self, encoder=self.encoder.fit(tokens(self.name, column)))

    def encode(self, column: Any, n: int, report: EncodeReport) -> np.ndarray:
        """Encode a column ``[n]``, see the class."""
        flat = tokens(self.name, column)
        if len(flat) != n:
            raise SchemaError(f"feature {self.name!r}: got {len(flat)} values, expected {n}.")
        codes = self._codes(flat)
        report.unknown[self.name] += _count(codes == UNKNOWN)
        if flat.missing is not None:
            report.missing[self.name] += _count(flat.missing)
        return codes

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {"kind": "categorical", "name": self.name, "encoder": self.encoder.to_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiValued(_Coded):
    """Several values a row: encoded int32 ``[n, max_values]``, filled from the left; 0 pads, 1 unknown.

    Values beyond ``max_values`` are dropped and counted as overflow.

    >>> genres = MultiValued(name="genres", max_values=2, encoder=Vocabulary(values=("comedy", "drama")))
    >>> genres.encode([["drama"], [], ["noir", "comedy", "drama"]], 3, EncodeReport()).tolist()
    [[3, 0], [0, 0], [1, 2]]
    """

    max_values: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_values <= _MOST_VALUES:
            raise SchemaError(
                f"feature {self.name!r}: max_values is {shown(self.max_values)}, expected at least 1 and at "
                f"most {_MOST_VALUES:,}: every row takes four bytes for each."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row's encoded values."""
        return (self.max_values,)

    def fit(self, column: Any) -> "MultiValued":
        """Return the feature with its encoder fitted on a column of training data."""
        return dataclasses.replace(self, encoder=self.encoder.fit(ragged(self.name, column, None)[0]))

    def encode(self, column: Any, n: int, report: EncodeReport) -> np.ndarray:
        """Encode a column of n lists (see `aif_jax.features.Ragged`), see the class."""
        flat, row = ragged(self.name, column, n)
        codes = self._codes(flat)
        if flat.missing is not None:
            codes, row = codes[~flat.missing], row[~flat.missing]
        report.unknown[self.name] += _count(codes == UNKNOWN)
        counts = np.bincount(row, minlength=n)
        report.missing[self.name] += _count(counts == 0)
        position = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        fits = position < self.max_values
        report.overflow[self.name] += len(fits) - _count(fits)
        encoded = np.zeros((n, self.max_values), np.int32)
        encoded[row[fits], position[fits]] = codes[fits]
        return encoded

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {
            "kind": "multi_valued",
            "name": self.name,
            "max_values": self.max_values,
            "encoder": self.encoder.to_json(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numeric:
    """A quantity: encoded float32 ``[n, 2]`` = (standardised value, 1); missing = (0, 0).

    Attributes:
        name: the feature.
        transform: ``identity``, or ``log1p`` for heavy tails: ``sign(x) log(1 + |x|)``, before standardising.
        clip: bound of the standardised value on both sides; what was cut is counted.
        mean: mean of the transformed training values; ``None`` until `fit`.
        std: their standard deviation (1 where all are equal); ``None`` until `fit`.

    >>> age = Numeric(name="age").fit([20, 30, 40])
    >>> age.mean
    30.0
    >>> age.encode([30, None], 2, EncodeReport()).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """

    name: str
    transform: Literal["identity", "log1p"] = "identity"
    clip: float = 10.0
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        _check(self)
        if self.transform not in ("identity", "log1p"):
            raise SchemaError(
                f"feature {self.name!r}: transform {self.transform!r} is not 'identity' or 'log1p'."
            )
        if (self.mean is None) != (self.std is None):
            raise SchemaError(f"feature {self.name!r}: give both mean and std, or neither.")
        if not self.clip > 0 or (self.std is not None and not self.std > 0):
            raise SchemaError(
                f"feature {self.name!r}: clip and std must be positive, got {self.clip}, {self.std}."
            )

    @property
    def fitted(self) -> bool:
        """True if `encode` can run."""
        return self.mean is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded value: the value and whether it is present."""
        return (2,)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the encoded array."""
        return np.dtype(np.float32)

    def raw(self, column: Any, n: int | None = None) -> np.ndarray:
        """Read a column as float64 ``[n]``, NaN where missing.

        Args:
            column: ``[n]``, see `aif_jax.inputs.read_numbers`.
            n: rows expected; ``None`` for any number.

        Raises:
            SchemaError: not numbers, or not ``[n]``.
        """
        return read_numbers(column, f"feature {self.name!r}", n)

    def _numbers(self, column: Any, n: int) -> np.ndarray:
        """Read a column as float32 or float64 ``[n]``, contiguous."""
        if type(column) is np.ndarray and column.dtype == np.float32 and column.shape == (n,):
            flags = column.flags
            if flags.c_contiguous and flags.aligned:
                return column  # every one of its values is a float64 too
        return self.raw(column, n)

    def fit(self, column: Any) -> "Numeric":
        """Return the feature with mean and std of a column of training data; a fitted one returns itself."""
        if self.mean is not None:
            return self
        values = self.raw(column)
        values = self._transformed(values[np.isfinite(values)])
        if not len(values):
            return dataclasses.replace(self, mean=0.0, std=1.0)
        std = float(values.std())
        return dataclasses.replace(self, mean=float(values.mean()), std=std if std > 1e-12 else 1.0)

    def encode(self, column: Any, n: int, report: EncodeReport) -> np.ndarray:
        """Encode a column ``[n]``, see the class."""
        if self.mean is None or self.std is None:
            raise SchemaError(
                f"feature {self.name!r} is not fitted yet; call Schema.fit, or give mean and std."
            )
        encoded, missing, infinite, clipped = _native.standardise(
            self._numbers(column, n), self.mean, self.std, self.clip, self.transform == "log1p"
        )
        # Most columns are complete, and a request waits for this one.
        if missing or infinite or clipped:
            report.missing[self.name] += missing
            report.non_finite[self.name] += infinite
            report.clipped[self.name] += clipped
        return encoded

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {"kind": "numeric", **dataclasses.asdict(self)}

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        return np.sign(values) * np.log1p(np.abs(values)) if self.transform == "log1p" else values


Feature: TypeAlias = Categorical | MultiValued | Numeric


def feature_from_json(values: Mapping[str, Any]) -> Feature:
    """Read a feature's ``to_json`` back.

    Raises:
        SchemaError: the kind is unknown or the fields do not fit.
    """

    def coded(make: Callable[..., Feature]) -> Callable[..., Feature]:
        def made(*, encoder: Any = None, **fields: Any) -> Feature:
            encoder = Vocabulary() if encoder is None else encoder_from_json(encoder)
            return make(encoder=encoder, **fields)

        return made

    makers = {"categorical": coded(Categorical), "multi_valued": coded(MultiValued), "numeric": Numeric}
    return from_kind("feature", values, makers)


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))
