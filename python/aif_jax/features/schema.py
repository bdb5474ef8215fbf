"""The schema of a model: its features by group, its behaviour types, its category and its item id."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np

from aif_jax.checks import check_types, typed
from aif_jax.errors import RequestError, SchemaError
from aif_jax.features.inference import infer_category, infer_features
from aif_jax.features.kinds import Categorical, Feature, MultiValued, Numeric, feature_from_json
from aif_jax.features.report import EncodeReport
from aif_jax.features.written import code_of, read_fields, write_fields
from aif_jax.inputs import is_user_id, read_table
from aif_jax.shown import shown
from aif_jax.strict_json import shortened

Group = Literal["user", "item", "context", "pair", "train_only"]
GROUPS: tuple[Group, ...] = ("user", "item", "context", "pair", "train_only")
"""Groups of features, by what they describe. ``train_only`` (such as position) is neutral at serving."""

_VERSION = 1
_T = TypeVar("_T")


class _Groups(dict[Any, _T]):
    """Something of each group; another key is an error of ours."""

    def __missing__(self, group: object) -> NoReturn:
        raise SchemaError(f"group: got {shown(group)}, expected one of {', '.join(GROUPS)}.")


_GROUPS: _Groups[Group] = _Groups({group: group for group in GROUPS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """Features by group, behaviour types, and the features with a special role.

    Attributes:
        user: features of a user's profile.
        item: features of an item.
        behaviour_types: names of the behaviours that a history may hold; a type is its position here.
        context: features of a request (time of day, page).
        pair: features known only for (user, item) at request time (retrieval score, channel).
        train_only: features of an impression that serving does not have (position).
        category: the item feature, categorical or multi-valued, by which
            sub-sequences are looked up; or ``None``.
        item_id: the categorical item feature that is the item's own id (hidden at random in training, so that
            the model can score cold items); or ``None``.

    >>> schema = Schema(
    ...     user=(Categorical(name="town"),),
    ...     item=(Categorical(name="item"), Numeric(name="price")),
    ...     behaviour_types=("click", "buy"),
    ...     item_id="item",
    ... )
    >>> schema = schema.fit(user={"town": ["Bath", "York"]}, item={"item": [7, 8], "price": [1.0, 3.0]})
    >>> schema.encode("item", {"item": [8, 9], "price": [2.0, 3.0]}, 2)["item"]
    array([3, 1], dtype=int32)
    """

    user: tuple[Feature, ...] = ()
    item: tuple[Feature, ...]
    behaviour_types: tuple[str, ...]
    context: tuple[Feature, ...] = ()
    pair: tuple[Feature, ...] = ()
    train_only: tuple[Feature, ...] = ()
    category: str | None = None
    item_id: str | None = None

    def __post_init__(self) -> None:
        check_types(self, SchemaError, about="schema: ")
        for group in GROUPS:
            names = [feature.name for feature in self.features(group)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise SchemaError(f"{group}: features {twice} are named twice; name each once.")
        if not self.item:
            raise SchemaError("item: got no features, expected at least one; the item's id will do.")
        if not self.behaviour_types or len(set(self.behaviour_types)) != len(self.behaviour_types):
            raise SchemaError(
                f"behaviour_types: got {self.behaviour_types}, expected one or more different names; "
                "with a single kind of behaviour, use ('click',)."
            )
        if reserved := {"content", "has_content", "signature"} & {feature.name for feature in self.item}:
            raise SchemaError(
                f"item: {sorted(reserved)} are names of the catalogue's own columns; rename the features."
            )
        if self.category is not None and isinstance(self.feature("item", self.category), Numeric):
            raise SchemaError(
                f"category: {self.category!r} is numeric; expected a categorical or multi-valued feature."
            )
        if self.item_id is not None and not isinstance(self.feature("item", self.item_id), Categorical):
            raise SchemaError(f"item_id: {self.item_id!r} is not a categorical feature.")

    def features(self, group: Group) -> tuple[Feature, ...]:
        """Return the features of a group.

        Raises:
            SchemaError: there is no such group.
        """
        return getattr(self, _GROUPS[group])

    def names(self, group: Group) -> frozenset[str]:
        """Return the names of a group's features."""
        return self._names[group]

    @functools.cached_property
    def _plans(self) -> dict[str, dict[str, tuple[Feature, tuple[int, ...], np.dtype]]]:
        """Features of each group by name, with shape and dtype: a request waits for `encode`."""
        return _Groups(
            {group: {f.name: (f, f.shape, f.dtype) for f in self.features(group)} for group in GROUPS}
        )

    @functools.cached_property
    def _names(self) -> dict[str, frozenset[str]]:
        return _Groups({group: frozenset(f.name for f in self.features(group)) for group in GROUPS})

    def feature(self, group: Group, name: str) -> Feature:
        """Return one feature.

        Raises:
            SchemaError: the group has no feature of this name.
        """
        for feature in self.features(group):
            if feature.name == name:
                return feature
        raise SchemaError(
            f"{group}: no feature {name!r}; there are {[f.name for f in self.features(group)]}."
        )

    @property
    def id_size(self) -> int:
        """Number of encoded item ids, those of missing and unknown ones included; 0 without an item id."""
        feature = self.feature("item", self.item_id) if self.item_id else None
        return feature.size if isinstance(feature, Categorical) else 0

    @property
    def category_feature(self) -> Categorical | MultiValued | None:
        """The feature named by ``category``."""
        feature = None if self.category is None else self.feature("item", self.category)
        return None if isinstance(feature, Numeric) else feature

    @property
    def fitted(self) -> bool:
        """True if every feature can encode."""
        return all(feature.fitted for group in GROUPS for feature in self.features(group))

    def fit(self, **columns: Mapping[str, Any]) -> "Schema":
        """Return the schema with every vocabulary, mean and deviation learnt from training data.

        Args:
            **columns: raw training columns by group: ``fit(user={...}, item={...}, pair={...})``. Features
                that are fitted already keep what they know and need no column.

        Raises:
            SchemaError: an unfitted feature has no column, or a column does not fit its feature.
        """
        if unknown := sorted(set(columns) - set(GROUPS)):
            raise SchemaError(f"fit: got groups {unknown}, expected {', '.join(GROUPS)}.")
        changes: dict[str, Any] = {}
        for group in GROUPS:
            given = read_table(columns.get(group, {}), f"fit: {group}", error=SchemaError)
            fitted = []
            for feature in self.features(group):
                if not feature.fitted and feature.name not in given:
                    raise SchemaError(
                        f"fit: {group} feature {feature.name!r} has no column in {sorted(given)}."
                    )
                fitted.append(feature if feature.fitted else feature.fit(given[feature.name]))
            changes[group] = tuple(fitted)
        return dataclasses.replace(self, **changes)

    def encode(
        self,
        group: Group,
        columns: Any,
        n: int,
        *,
        report: EncodeReport | None = None,
        strict: bool = True,
    ) -> dict[str, np.ndarray]:
        """Encode n rows of a group.

        Args:
            group: which features.
            columns: raw columns by feature name, each with n rows, or a frame or Arrow table of them; an
                absent one counts as missing.
            n: number of rows.
            report: counts are added to it.
            strict: raise for a column that the schema does not name; otherwise count it as ignored.

        Returns:
            One array a feature, ``[n, *feature.shape]`` of ``feature.dtype``, in schema order.

        Raises:
            SchemaError: a column has the wrong kind or length, a feature is not fitted, or (strict) a column
                has no feature.
        """
        report = EncodeReport() if report is None else report
        plan = self._plans[group]
        if type(columns) is not dict:
            columns = read_table(columns, group, error=SchemaError)
        if not columns.keys() <= plan.keys():
            extra = columns.keys() - plan.keys()
            if strict:
                raise SchemaError(
                    f"{group}: columns {sorted(extra)} are not in the schema, whose {group} features are "
                    f"{list(plan)}; leave them out or add features for them."
                )
            report.ignore(extra)
        encoded = {}
        for name, (feature, shape, dtype) in plan.items():
            if name in columns:
                encoded[name] = feature.encode(columns[name], n, report)
            else:
                report.missing[name] = report.missing.get(name, 0) + n
                encoded[name] = np.zeros((n, *shape), dtype)
        return encoded

    def encode_one(
        self,
        group: Group,
        values: Mapping[str, Any],
        *,
        report: EncodeReport | None = None,
        strict: bool = True,
    ) -> dict[str, np.ndarray]:
        """Encode one record: like `encode`, but of scalars (lists if multi-valued) and without an axis n."""
        if not isinstance(values, Mapping):
            raise SchemaError(f"{group}: got {shown(values)}, expected values by feature name.")
        row = self.encode(
            group, {name: [value] for name, value in values.items()}, 1, report=report, strict=strict
        )
        return {name: array[0] for name, array in row.items()}

    def missing(self, group: Group, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return a group without any known value: zeros ``[*shape, *feature.shape]``."""
        return {f.name: np.zeros((*shape, *f.shape), f.dtype) for f in self.features(group)}

    def spec(self, group: Group, shape: tuple[int, ...] = ()) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return shape and dtype of each encoded feature of a group, under leading axes ``shape``."""
        return {f.name: ((*shape, *f.shape), f.dtype) for f in self.features(group)}

    def category_ids(self, encoded: Mapping[str, Any]) -> Any:
        """Return the encoded category of items as int32 ``[..., C]``; C is 0 without a category feature.

        Args:
            encoded: encoded item features ``[...]``, at least the category's (or the first's, without one).
        """
        feature = self.category_feature
        if feature is None:
            first = self.item[0]
            shape = np.shape(encoded[first.name])
            return np.zeros((*shape[: len(shape) - len(first.shape)], 0), np.int32)
        codes = encoded[feature.name]
        return codes[..., None] if isinstance(feature, Categorical) else codes

    @classmethod
    @typed
    def infer(
        cls,
        columns: Mapping[Group, Any],
        *,
        behaviour_types: Sequence[str],
        item_id: str,
        category: str | None = None,
        min_item_count: int = 1,
        remarks: list[str] | None = None,
    ) -> "Schema":
        """Return a schema that fits raw columns; see `aif_jax.features.inference` for the rules.

        Args:
            columns: raw columns by group and name.
            behaviour_types: names of the behaviours.
            item_id: the item column that is the item's own id.
            category: see the class; by default an item feature that is named like one.
            min_item_count: the vocabulary of ids leaves out those seen less often in training.
            remarks: remarks for a reader are added to it, such as columns that were left out.

        Raises:
            SchemaError: a column's name cannot be the name of a feature.

        >>> items = {"item": [7, 8], "genres": [["drama"], ["noir", "drama"]], "price": [4.5, None]}
        >>> schema = Schema.infer({"item": items}, behaviour_types=("click", "buy"), item_id="item")
        >>> print(schema.to_code())
        Schema(
            item=(
                Categorical(name="item"),
                MultiValued(name="genres", max_values=2),
                Numeric(name="price"),
            ),
            behaviour_types=("click", "buy"),
            category="genres",
            item_id="item",
        )
        """
        groups: dict[str, tuple[Feature, ...]] = {}
        for group, given in columns.items():
            own = item_id if group == "item" else None
            given = read_table(given, group, error=SchemaError)
            groups[group], found = infer_features(
                group,
                given,
                item_id=own,
                min_item_count=min_item_count,
                category=category if group == "item" else None,
            )
            if remarks is not None:
                remarks += found
        if category is None:
            category = infer_category(groups["item"], item_id)
        return cls(**groups, behaviour_types=tuple(behaviour_types), category=category, item_id=item_id)  # type: ignore[arg-type]

    def to_code(self) -> str:
        """Return Python code that declares the schema, to be edited and pasted."""
        rest = {"behaviour_types": self.behaviour_types, "category": self.category, "item_id": self.item_id}
        return code_of({group: self.features(group) for group in GROUPS}, rest)

    @typed
    def save(self, path: str | Path) -> None:
        """Write the schema to a file in ``.toml`` or ``.json``, to be edited and read by `load`."""
        write_fields(Path(path), self.to_json())

    @classmethod
    @typed
    def load(cls, path: str | Path) -> "Schema":
        """Read a file that `save` wrote.

        Raises:
            SchemaError: the file cannot be read, or its fields do not fit.
        """
        return cls.from_json(read_fields(Path(path)))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; `from_json` reads it back."""
        groups: dict[str, Any] = {group: [f.to_json() for f in self.features(group)] for group in GROUPS}
        return {
            "version": _VERSION,
            **groups,
            "behaviour_types": list(self.behaviour_types),
            "category": self.category,
            "item_id": self.item_id,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Schema":
        """Build a schema from `to_json` output.

        Raises:
            SchemaError: another version, or fields that do not fit.
        """
        if not isinstance(values, Mapping):
            raise SchemaError(f"schema: got a {type(values).__name__}, expected an object of its fields.")
        fields = dict(values)
        if (version := fields.pop("version", None)) != _VERSION:
            raise SchemaError(
                f"schema version: got {shortened(repr(version))}, this release reads {_VERSION}."
            )
        try:
            for group in GROUPS:
                fields[group] = tuple(feature_from_json(feature) for feature in fields.get(group, ()))
            return cls(**fields)
        except TypeError as error:
            raise SchemaError(f"schema fields do not fit: {shortened(str(error))}.") from error


def check_request(user: Any, context: Any, schema: Schema) -> None:
    """Check the arguments that a request begins with.

    Raises:
        RequestError: ``user`` is not an integer or a string, or the context does not fit the schema.
    """
    if type(user) not in (int, str) and not is_user_id(user):
        raise RequestError(f"user: got {type(user).__name__} {shown(user)}, expected an integer or a string.")
    if context:
        check_context(context, schema)
    elif context is not None and not isinstance(context, Mapping):
        raise RequestError(f"context: got a {type(context).__name__}, expected features by name.")


def check_context(context: Any, schema: Schema) -> None:
    """Check that a context has features of the schema only.

    Raises:
        RequestError: it has others, or is not a mapping.
    """
    if type(context) is not dict and not isinstance(context, Mapping):
        raise RequestError(f"context: got a {type(context).__name__}, expected features by name.")
    known = schema.names("context")
    if not context.keys() <= known:
        unknown = sorted(map(str, context.keys() - known))
        raise RequestError(
            f"context: features {unknown} are not in the schema, whose context features are "
            f"{sorted(known)}; leave them out, or train with a schema that names them."
        )
