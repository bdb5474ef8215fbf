"""Warm start: first weights of a run from an earlier model, matched by name and by the keys of their rows.

A model before its first step scores every input as the earlier one does: a value that is new to a vocabulary
starts as the vector that the earlier model has for values it does not know, a feature or block that is new
starts without influence where it adds to what was there, and quantities keep the earlier mean and deviation.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.features import GROUPS, ContentSpace, Feature, Group, Numeric, Schema, Vocabulary
from aif_jax.features.encoders import FIRST, UNKNOWN
from aif_jax.inputs.tokens import Tokens
from aif_jax.models.baselines import Model
from aif_jax.models.blocks.base import Labels
from aif_jax.models.embedder import embedded_labels
from aif_jax.models.item import statistics_labels
from aif_jax.models.store import digest_of_model, load_model, set_weights, weights_of
from aif_jax.shown import shown

_FREE = frozenset({
    "architecture", "blocks", "heads", "score", "short_length", "long_length", "sim_slots", "block_dropout",
    "item_id_dropout", "item_statistics", "seed",
})  # fmt: skip
"""Fields of a model's config in which it may differ from the earlier one; the others shape its weights, or
say what a weight means."""
_READERS: dict[str, Group] = {
    "item.mlp.layer_0.kernel": "item",
    "item.as_token.kernel": "item",
    "item.as_value.kernel": "item",
    "item.as_event.kernel": "item",
    "user.profile.kernel": "user",
    "train_only.linear.kernel": "train_only",
}
"""Weights that no block has, whose first axis is the embedded features of a group, one after the other."""
_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Weights that a run took over from an earlier model, counted.

    Attributes:
        digest: of the earlier model: its config, schema and weights.
        kept: rows of each embedding table that keep their vectors, by table, such as ``item.genres``.
        grown: rows that are new, by table; those without any are left out.
        dropped: rows that the training part no longer has, by table; the same.
        fresh: features, behaviour types, heads and blocks that the earlier model lacks.
        left: those that only the earlier model has.
    """

    digest: str
    kept: Mapping[str, int]
    grown: Mapping[str, int]
    dropped: Mapping[str, int]
    fresh: tuple[str, ...]
    left: tuple[str, ...]

    def summary(self) -> str:
        """Return the counts in one line."""
        line = f"{sum(self.kept.values()):,} rows of {len(self.kept)} tables kept"
        for counts, words in ((self.grown, "new"), (self.dropped, "dropped")):
            named = [f"{table} {count:,}" for table, count in counts.items()]
            line += f", {sum(counts.values()):,} {words}" + (f" ({_some(named)})" if named else "")
        for names, words in ((self.fresh, "fresh"), (self.left, "left out")):
            line += f"; {words}: {_some(names)}" if names else ""
        return line


class Earlier:
    """An earlier model, to start another from.

    Args:
        init: a model, anything with one as ``model`` (`aif_jax.training.TrainResult`), or the folder of one
            that was saved.

    Raises:
        ConfigError: it is none of these.
        BundleError: the folder holds no saved model.
    """

    def __init__(self, init: Any) -> None:
        model = load_model(Path(init))[0] if isinstance(init, (str, Path)) else getattr(init, "model", init)
        if not isinstance(model, Model):
            raise ConfigError(
                f"init: got a {type(init).__name__} ({shown(init)}), expected a trained model, the result of "
                "train, or the folder of a saved model."
            )
        self._model, self._weights = model, weights_of(model)

    def schema_for(self, schema: Schema) -> Schema:
        """Return a fitted schema with the mean and deviation that quantities have in the earlier one."""
        changes: dict[str, Any] = {}
        for group in GROUPS:
            known = _by_name(self._model.schema, group)
            changes[group] = tuple(
                dataclasses.replace(feature, mean=old.mean, std=old.std)
                if isinstance(old := known.get(feature.name), Numeric) and _alike(feature, old)
                else feature
                for feature in schema.features(group)
            )
        return dataclasses.replace(schema, **changes)

    def space_for(self, space: ContentSpace | None) -> ContentSpace:
        """Return the content space of a run: the earlier one, in which the weights read content.

        Args:
            space: of the run's data; ``None`` for data without content.

        Raises:
            ConfigError: content of the data cannot be read in it.
        """
        earlier = self._model.content_space
        same = space is not None and space.kind == earlier.kind
        if space is None or (same and (space.kind != "derived" or space.digest == earlier.digest)):
            return earlier
        raise ConfigError(
            f"init: the earlier model reads {earlier}, but the data set has {space}; "
            + (
                "each derivation has axes of its own: turn today's to yesterday's by data.with_content_like."
                if same
                else "give the data set content of the same kind, or train without init."
            )
        )

    def start(self, model: Model) -> WarmStart:
        """Put the first weights into a model.

        Args:
            model: with initial weights and a schema from `schema_for`.

        Raises:
            ConfigError: the configs differ in a field that shapes weights, or says what they mean.
        """
        _check_configs(model.config, self._model.config)
        matches = _Matches(model, self._model)
        weights = {
            name: matches.moved(name, first, self._weights) for name, first in weights_of(model).items()
        }
        set_weights(model, weights, "init")
        names = [set(_names(each)) for each in (model, self._model)]
        both = names[0] & names[1] - matches.changed
        return WarmStart(
            digest=digest_of_model(self._model),
            kept=matches.kept,
            grown=matches.grown,
            dropped=matches.dropped,
            fresh=tuple(sorted(names[0] - both)),
            left=tuple(sorted(names[1] - both)),
        )


class _Matches:
    """Positions in the weights of an earlier model for those of another."""

    def __init__(self, mine: Model, theirs: Model) -> None:
        self.kept: dict[str, int] = {}
        self.grown: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self.changed: set[str] = set()
        self._rows: dict[str, np.ndarray] = {}
        for group in GROUPS:
            known = _by_name(theirs.schema, group)
            for feature in mine.schema.features(group):
                old = known.get(feature.name)
                if old is None:
                    continue
                if not _alike(feature, old):
                    self.changed.add(f"{group}.{feature.name}")
                elif not isinstance(feature, Numeric):
                    self._match_rows(f"{group}.{feature.name}", feature, old)
        self._mine, self._theirs = _labels(mine), _labels(theirs)
        self._adding = {*_READERS, *_ADDED}
        if hasattr(theirs, "first"):  # a first layer without any input would be dead
            self._adding |= {f"first.{block.name}.kernel" for block in mine.inputs}
            self._adding |= {name for block in mine.blocks for name in block.labels()}

    def _match_rows(self, table: str, feature: Any, old: Any) -> None:
        rows = np.arange(feature.size)
        if isinstance(feature.encoder, Vocabulary):
            rows[FIRST:] = old.encoder.encode(_tokens(feature.encoder.values))
        new = int(np.count_nonzero(rows[FIRST:] == UNKNOWN))
        self._rows[table] = rows
        self.kept[table] = feature.size - new
        if new:
            self.grown[table] = new
        if gone := old.size - self.kept[table]:
            self.dropped[table] = gone

    def moved(self, name: str, first: np.ndarray, earlier: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return a weight with what the earlier model has of it, and its first values elsewhere."""
        path, is_table, table = name.rpartition(".table_")
        if is_table:
            feature = f"{path.removesuffix('.embed').removeprefix('first.embed_')}.{table}"
            return earlier[name][self._rows[feature]] if name in earlier and feature in self._rows else first
        if name == "item.statistics":
            return first  # a run counts its own
        adds = name in self._adding
        if name not in earlier:
            # Columns that only new blocks read: their weights are zero, and with these too would never move.
            return np.zeros_like(first) if adds and not name.startswith("item.as_") else first
        result, source = first.copy(), earlier[name]
        to, where = [], []
        for axis, size in enumerate(first.shape):
            mine, theirs = (
                each[name].get(axis) if name in each else None for each in (self._mine, self._theirs)
            )
            if mine is None or theirs is None:
                places = np.arange(size)
            else:
                position = {label: at for at, label in enumerate(theirs) if label[0] not in self.changed}
                places = np.array([position.get(label, -1) for label in mine], np.int64)
            to.append(np.flatnonzero(places >= 0))
            where.append(places[places >= 0])
            if adds and axis == 0:
                result[places < 0] = 0.0
        result[np.ix_(*to)] = source[np.ix_(*where)]
        return result


_ADDED = ("user.out.layer_0.kernel", "user.positions")
"""Weights of which new rows add something to what was there; like those that read features, and blocks."""


def _labels(model: Model) -> dict[str, Labels]:
    """Return labels of positions along axes of weights, whose meaning the position alone does not tell."""
    config, schema = model.config, model.schema
    types, heads = (
        [(f"type {name}",) for name in schema.behaviour_types],
        [(f"head {h}",) for h in config.heads],
    )

    def spread(names: Sequence[tuple[str, ...]], n: int) -> list[tuple[str, ...]]:
        return [(*name, str(place)) for name in names for place in range(n)]

    found: dict[str, Labels] = {
        "user.types": {0: types},
        "values.gate": {0: types},
        "values.bias": {0: types},
        "user.positions": {0: spread([("position",)], config.short_length)},
        "user.out.layer_0.kernel": {
            0: spread([("profile",), *((part.name,) for part in model.user.parts)], config.width)
        },
        "heads.out.kernel": {1: heads},
        "heads.out.bias": {0: heads},
        "train_only.absent": {0: heads},
        "project.kernel": {1: [(*head, str(place)) for place in range(config.width) for head in heads]},
        "project.bias": {0: [(*head, str(place)) for place in range(config.width) for head in heads]},
        "bias": {0: heads},
    }
    for name, group in _READERS.items():
        rows = embedded_labels(group, schema.features(group), config.embedding_width)
        if group == "item":
            rows += [*spread([("content",)], config.content_width + 1), *statistics_labels(config, schema)]
        found[name] = {0: rows}
    found["train_only.linear.kernel"][1] = heads
    for block in model.blocks:
        found |= block.labels()
    return found


def _names(model: Model) -> list[str]:
    schema = model.schema
    features = [f"{group}.{feature.name}" for group in GROUPS for feature in schema.features(group)]
    types = [f"type {name}" for name in schema.behaviour_types]
    heads = [f"head {name}" for name in model.config.heads]
    return [*features, *types, *heads, *(f"block {block.name}" for block in model.blocks)]


def _by_name(schema: Schema, group: Any) -> dict[str, Feature]:
    return {feature.name: feature for feature in schema.features(group)}


def _alike(feature: Feature, old: Feature) -> bool:
    """Return whether a value has the same meaning in both, as far as they know it."""
    if type(feature) is not type(old):
        return False
    if isinstance(feature, Numeric) or isinstance(old, Numeric):
        return feature.transform == old.transform  # type: ignore[union-attr]
    mine, theirs = feature.encoder, old.encoder
    if isinstance(mine, Vocabulary) and isinstance(theirs, Vocabulary):
        kinds = {type(value) for encoder in (mine, theirs) for value in (encoder.values or ())[:1]}
        return len(kinds) < 2
    return mine == theirs


def _tokens(values: Any) -> Tokens:
    if values and isinstance(values[0], str):
        return Tokens(None, list(values), None)
    return Tokens(np.array(values, np.int64), None, None)


def _check_configs(mine: ModelConfig, theirs: ModelConfig) -> None:
    new, old = mine.to_json(), theirs.to_json()
    if not (mine.has("encoder") and theirs.has("encoder")):
        new = {name: value for name, value in new.items() if not name.startswith("encoder_")}
    if wrong := [name for name in new if name not in _FREE and new[name] != old[name]]:
        differences = ", ".join(f"{name} is {old[name]} there and {new[name]} here" for name in wrong)
        raise ConfigError(
            f"init: {differences}; weights of one do not fit the other. Give the model config the earlier "
            "values, or train without init."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
