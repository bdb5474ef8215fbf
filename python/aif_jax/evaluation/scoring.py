"""Scorers: a trained model in its unfolded form, or a bundle in the form that serves."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.checks import typed
from aif_jax.config import ModelConfig, Precision
from aif_jax.data import Dataset
from aif_jax.errors import AifError, ConfigError, DataError
from aif_jax.evaluation.exported import ExportedPrograms, at_rung, config_of, reads_content
from aif_jax.features import ContentSpace, Schema
from aif_jax.features.schema import GROUPS
from aif_jax.models import Folded, OwnModel
from aif_jax.models.baselines import Model
from aif_jax.models.own_model import OwnConfig
from aif_jax.models.store import CONFIG, load_model
from aif_jax.training import CandidateLists, Evaluator

Arrays = dict[str, jax.Array]
Batch = dict[str, Any]

BUCKETS = (64, 256)
"""Lengths to which shorter long sequences are padded, so that they do not pay for long ones."""

RUNGS = (0, 1, 2, 3)
"""Of the deadline ladder: everything, without the long sequence, user prior, item prior."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Predictions of one scorer on one part of a data set.

    Attributes:
        logits: float32 ``[impressions, heads]``, NaN for impressions of other parts.
        lists: float32 ``[R, C]`` for each group of candidate lists, ``-inf`` where there is no candidate.
    """

    logits: np.ndarray
    lists: Mapping[str, np.ndarray]


class Scorer:
    """A model to evaluate: as it was trained, or as a bundle serves it.

    Args:
        source: a trained model, which is evaluated unfolded; or a bundle. Of one of our models, the weights,
            calibration, precision and score expression are evaluated in the folded form; of any other, the
            bundle's programs.
        name: for reports; by default the architecture.
        rung: of the deadline ladder, 0 to 3: what requests go without, see `aif_jax.serving`. Bundles only.

    Raises:
        ConfigError: ``rung`` is not one of 0 to 3, not 0 for a model, or none that the bundle's model has.

    Attributes:
        config: of the model.
        schema: of the model, fitted.
        form: ``unfolded``, ``folded`` or ``exported``.
        name: for reports.
    """

    def __init__(self, source: Model | OwnModel | Bundle, *, name: str = "", rung: int = 0) -> None:
        if rung not in RUNGS:
            raise ConfigError(f"rung: got {rung}, expected one of {', '.join(map(str, RUNGS))}.")
        self.schema: Schema = source.schema
        self._source, self._rung, self._version, self.form = source, rung, "", "unfolded"
        self.config: ModelConfig | OwnConfig
        if isinstance(source, Bundle):
            self.form, self._version = "folded" if source.ours else "exported", source.version
            self.config = source.config if source.ours else config_of(source)
            if rung not in source.spec.rungs:
                raise ConfigError(
                    f"rung: got {rung}, but the bundle at {source.path} answers on rungs "
                    f"{', '.join(map(str, source.spec.rungs))} only; evaluate one of these, or export the "
                    f"model with rungs={(*source.spec.rungs, rung)}."
                )
        else:
            self.config = source.config
            if rung:
                raise ConfigError(
                    f"rung: got {rung} for a trained model, expected 0; rungs are of what serves: export it "
                    "with `aif export` and evaluate the bundle."
                )
        self.name = name or self.config.architecture

    @property
    def content_width(self) -> int:
        """Width of the content embeddings that the model reads; 0 if it is known to read none."""
        source = self._source
        reads = not isinstance(source, Bundle) or source.ours or reads_content(source)
        return self.config.content_width if reads else 0

    def about(self) -> dict[str, Any]:
        """Return what is evaluated, JSON-serialisable; keys as in `Evaluation`."""
        bundle = self._source if isinstance(self._source, Bundle) else None
        return {
            "name": self.name,
            "kind": "run" if bundle is None else "bundle",
            "form": self.form,
            "architecture": self.config.architecture,
            "score": self.config.score,
            "precision": "float32" if bundle is None else bundle.precision,
            "rung": self._rung,
            "version": self._version,
        }

    def predict(self, dataset: Dataset, split: str, lists: Mapping[str, CandidateLists]) -> Scores:
        """Predict the impressions of a part, and score candidate lists by what an engine orders by.

        Args:
            dataset: that fits the schema, see `check_fit`, with a label for every head of the model.
            split: ``train``, ``validation`` or ``test``.
            lists: by any name.

        Raises:
            DataError: the part is empty.
            TrainingError: a logit is not finite.
        """
        model, catalogue = self._source, {} if isinstance(self._source, Bundle) else None
        evaluator = Evaluator(
            dataset, self if isinstance(model, Bundle) else model, split, buckets=BUCKETS, catalogue=catalogue
        )
        if not isinstance(model, Bundle):
            return Scores(
                logits=evaluator.predict(model),
                lists={name: evaluator.score_lists(model, each) for name, each in lists.items()},
            )
        served = self._programs(model, dataset)
        return Scores(
            logits=evaluator.collect(served.logits),
            lists={name: evaluator.collect_lists(served.scores, self, each) for name, each in lists.items()},
        )

    def _programs(self, bundle: Bundle, dataset: Dataset) -> "FoldedPrograms | ExportedPrograms":
        if not bundle.ours:
            return ExportedPrograms(bundle, dataset, rung=self._rung)
        weights = {name: np.asarray(array) for name, array in bundle.weights.items()}
        folded = Folded(bundle.config, bundle.schema, weights, cast("Precision", bundle.precision))
        return FoldedPrograms(folded, dataset, rung=self._rung, content_space=bundle.content_space)


Evaluable: TypeAlias = Model | OwnModel | Bundle | Scorer


@typed
def open_scorer(path: str | Path, *, rung: int = 0) -> Scorer:
    """Open what `aif train` or `aif export` wrote.

    Args:
        path: OUT of `aif train`, its folder ``model``, or a bundle.
        rung: as of `Scorer`.

    Raises:
        AifError: there is nothing at the path, or neither a model nor a bundle.
        BundleError: a file is broken.
        ConfigError: as of `Scorer`.
    """
    path = Path(path)
    if (path / "manifest.json").exists():
        return Scorer(Bundle.load(path), name=path.name, rung=rung)
    for folder, name in (
        (path, path.parent.name if path.name == "model" else path.name),
        (path / "model", path.name),
    ):
        if (folder / CONFIG).exists():
            return Scorer(load_model(folder)[0], name=name, rung=rung)
    what = "nothing is there" if not path.exists() else "neither a trained model nor a bundle"
    raise AifError(
        f"{path}: {what}; expected OUT of `aif train` (with model/{CONFIG}) or OUT of `aif export` "
        "(with manifest.json)."
    )


def check_fit(schema: Schema, dataset: Dataset, name: str) -> None:
    """Refuse a data set whose columns and behaviour types are not those of a model.

    Args:
        schema: of the model.
        dataset: to evaluate on.
        name: of the model, for the message.

    Raises:
        DataError: features are absent from the data set, or behaviour types differ.
    """
    rows = dataset.impressions
    columns = {"user": dataset.users, "item": dataset.items}
    absent = [
        f"{group} {feature.name}"
        for group in GROUPS
        if group != "train_only"  # which no prediction reads
        for feature in schema.features(group)
        if feature.name not in (columns[group] if group in columns else getattr(rows, group))
    ]
    if absent:
        raise DataError(
            f"{dataset.name} has no columns for features of {name}: {', '.join(absent)}; evaluate it on data "
            "with the columns that it was trained on."
        )
    if schema.behaviour_types != dataset.schema.behaviour_types:
        raise DataError(
            f"{dataset.name} has behaviour types {', '.join(dataset.schema.behaviour_types)}, {name} was "
            f"trained with {', '.join(schema.behaviour_types)}; evaluate it on data with the same types."
        )


class FoldedPrograms:
    """The four folded programs over a whole catalogue, as functions of batches (`aif_jax.data.batching`).

    Args:
        folded: the model.
        dataset: that fits its schema.
        rung: of the deadline ladder, 0 to 3.
        content_space: of the model; by default that of the data set.
    """

    def __init__(
        self,
        folded: Folded,
        dataset: Dataset,
        *,
        rung: int = 0,
        content_space: ContentSpace | None = None,
    ) -> None:
        self._folded, self._rung = folded, rung
        catalogue = dataset.catalogue(
            folded.schema, content_width=folded.config.content_width, content_space=content_space
        )
        items = {name: catalogue[name] for name in folded.item_inputs_spec(1)}
        with jax.default_matmul_precision("highest"):
            self._behaviours = jax.jit(folded.behaviour)(folded.weights_of("behaviour"), items)
            self._rows = jax.jit(folded.item)(folded.weights_of("item"), items)
        # `jnp.asarray` compiles a program for each shape.
        self._weights = jax.device_put({**folded.weights_of("user"), **folded.weights_of("stage")})

    def logits(self, batch: Batch) -> jax.Array:
        """Return logits ``[B, G, heads]`` of impressions; each is scored in a context of its own."""
        return self._scored(batch, together=not self._folded.schema.context)[1]

    def scores(self, batch: Batch) -> np.ndarray:
        """Return the scores ``[B, C]`` of requests, each of one context.

        Those of the main head alone where the score expression reads pair features, which unseen items lack.
        """
        score, logits = self._scored(batch, together=True)
        return np.asarray(logits[..., 0] if self._folded.score.raw else score)

    def _scored(self, batch: Batch, *, together: bool) -> tuple[jax.Array, jax.Array]:
        batch = at_rung(batch, self._rung)
        with jax.default_matmul_precision("highest"):
            return _score(self._folded, together, self._weights, self._behaviours, self._rows, batch)


@partial(jax.jit, static_argnums=(0, 1))
def _score(
    folded: Folded, together: bool, weights: Arrays, behaviours: Arrays, rows: Arrays, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Return scores ``[B, G]`` and logits ``[B, G, heads]``; a request's candidates together or alone."""
    short = _take(behaviours, folded.short_spec(1), batch["short_item"])
    columns = {name: leaf for name, leaf in folded.long_spec(1, 1).items() if name != "gap"}
    long = _take(behaviours, columns, batch["long_item"])
    if folded.config.reads_gaps:
        long = {**long, "gap": batch["long_gap"]}
    states = folded.user(
        {name: weights[name] for name in folded.weights_of("user")},
        batch["user"], short, batch["short_type"], long, batch["long_type"],
    )  # fmt: skip
    stage = {name: weights[name] for name in folded.weights_of("stage")}
    raw = {f"raw_{name}": jnp.zeros(batch["item"].shape, jnp.float32) for name in folded.score.raw}

    def request(
        state: Arrays, items: jax.Array, context: Arrays, pair: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        if together:
            context = {name: values[0] for name, values in context.items()}
            return folded.stage_scores(stage, state, _take(rows, rows, items), items >= 0, context, pair)
        return jax.vmap(partial(alone, state))(items, context, pair)

    def alone(state: Arrays, item: jax.Array, context: Arrays, pair: Arrays) -> tuple[jax.Array, jax.Array]:
        pair = {name: values[None] for name, values in pair.items()}
        columns = _take(rows, rows, item[None])
        score, logits = folded.stage_scores(stage, state, columns, item[None] >= 0, context, pair)
        return score[0], logits[0]

    return jax.vmap(request)(states, batch["item"], batch["context"], {**batch["pair"], **raw})


def _take(columns: Mapping[str, jax.Array], names: Mapping[str, object], items: jax.Array) -> Arrays:
    return {name: jnp.take(columns[name], items, axis=0, mode="clip") for name in names}
