"""Predictions of a trained model on one part of a data set, and their metrics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from aif_jax.checks import typed
from aif_jax.data import Dataset, RequestBatcher, RequestSource
from aif_jax.data.splits import split_number
from aif_jax.errors import TrainingError
from aif_jax.features.score import score_of
from aif_jax.models import OwnModel, add_signatures
from aif_jax.models.item import STATISTICS
from aif_jax.training import metrics
from aif_jax.training.candidates import CandidateLists
from aif_jax.training.feed import Batch, for_device, long_buckets
from aif_jax.training.item_statistics import folds_of, item_statistics
from aif_jax.uninterrupted import uninterrupted


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadMetrics:
    """Metrics of one head over the impressions whose label is known.

    Attributes:
        auc: see `aif_jax.training.metrics.auc`.
        gauc: see `aif_jax.training.metrics.gauc`.
        log_loss: in nats.
        impressions: how many there were.
        users: how many users had both classes.
    """

    auc: float
    gauc: float
    log_loss: float
    impressions: int
    users: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics of one model on one part of the data.

    Attributes:
        split: which part.
        heads: by head, the main one first.
        hit_rate: HR@K of the main head by K; empty if it was not asked for.
        hit_lists: how many candidate lists it is over.
    """

    split: str
    heads: Mapping[str, HeadMetrics]
    hit_rate: Mapping[int, float] = dataclasses.field(default_factory=dict)
    hit_lists: int = 0

    @property
    def main(self) -> HeadMetrics:
        """Metrics of the main head."""
        return next(iter(self.heads.values()))

    @property
    def auc(self) -> float:
        """AUC of the main head."""
        return self.main.auc

    @property
    def gauc(self) -> float:
        """GAUC of the main head."""
        return self.main.gauc

    @property
    def log_loss(self) -> float:
        """Log loss of the main head, in nats."""
        return self.main.log_loss

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; `from_json` reads it back."""
        values = dataclasses.asdict(self)
        return {**values, "hit_rate": {str(k): rate for k, rate in self.hit_rate.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json` output."""
        return cls(
            split=values["split"],
            heads={head: HeadMetrics(**found) for head, found in values["heads"].items()},
            hit_rate={int(k): rate for k, rate in values["hit_rate"].items()},
            hit_lists=values["hit_lists"],
        )


def head_metrics(dataset: Dataset, split: str, head: str, logits: np.ndarray) -> HeadMetrics:
    """Metrics of one head from a logit for every impression.

    Args:
        dataset: holds the labels.
        split: which part.
        head: name of the label.
        logits: ``[impressions]`` over the whole data set; only those of the part are read.
    """
    rows = dataset.impressions
    known = (rows.split == split_number(split)) & (np.asarray(rows.label_mask[head]) > 0)
    labels, scores, users = rows.labels[head][known], np.asarray(logits, np.float64)[known], rows.user[known]
    return HeadMetrics(
        auc=metrics.auc(labels, scores),
        gauc=metrics.gauc(users, labels, scores),
        log_loss=metrics.log_loss(labels, scores),
        impressions=int(known.sum()),
        users=int(metrics.user_aucs(users, labels, scores).users.size),
    )


class Evaluator:
    """Predicts one part of the data, again and again, with the same few shapes.

    Args:
        dataset: holds the part.
        model: any model of the data's schema; later ones must have the same config.
        split: ``train``, ``validation`` or ``test``.
        group: candidates a request.
        batch_size: requests a step.
        buckets: lengths of long sequences; empty as in `aif_jax.training.feed.long_buckets`.
        catalogue: with signatures, on the device; ``None`` makes it.
    """

    @typed
    def __init__(
        self,
        dataset: Dataset,
        model: Any,
        split: str,
        *,
        group: int = 16,
        batch_size: int = 64,
        buckets: Sequence[int] = (),
        catalogue: Mapping[str, Any] | None = None,
    ) -> None:
        self.dataset, self.split = dataset, split
        config = model.config
        self._heads: tuple[str, ...] = config.heads
        self._catalogue = device_catalogue(dataset, model) if catalogue is None else catalogue
        lengths = long_buckets(config, buckets)
        source = RequestSource(
            dataset,
            model.schema,
            split,
            group=group,
            short_length=config.short_length,
            long_length=lengths[-1],
            heads=config.heads,
            sequence_step=int(config.has("encoder")),
            gaps=config.reads_gaps,
        )
        self._batcher = RequestBatcher(source, batch_size=batch_size, long_buckets=lengths, shuffle=False)

    def predict(self, model: Any, *, without: str = "") -> np.ndarray:
        """Return logits float32 ``[impressions, heads]``, NaN for impressions of other parts.

        Args:
            model: trained.
            without: one of `aif_jax.models.Aif.droppable` that every request goes without, as in training
                under dropout; empty for none.

        Raises:
            TrainingError: a logit is not finite.
        """
        graph, state = nnx.split(model)

        def forward(batch: Batch) -> jax.Array:
            rows = len(batch["item"])
            keep = {name: np.full(rows, name != without) for name in model.droppable} if without else None
            return _forward(graph, state, batch, self._catalogue, keep)

        return self.collect(forward)

    def collect(self, forward: Callable[[Batch], jax.Array]) -> np.ndarray:
        """Return the logits that a function from batches to ``[B, G, heads]`` gives; see `predict`.

        Raises:
            TrainingError: a logit is not finite.
        """
        logits = np.full((len(self.dataset.impressions), len(self._heads)), np.nan, np.float32)
        waiting: list[tuple[np.ndarray, jax.Array]] = []
        for batch in self._batcher.epoch(0):
            waiting.append((batch["impression"], uninterrupted(partial(forward, for_device(batch)))))
            if len(waiting) > 4:  # enough to keep the device busy, without holding every batch
                _scatter(logits, *waiting.pop(0))
        for rows, found in waiting:
            _scatter(logits, rows, found)
        part = logits[self.dataset.impressions.split == split_number(self.split)]
        if not np.isfinite(part).all():
            bad = int((~np.isfinite(part)).any(axis=1).sum())
            raise TrainingError(
                f"{bad} of {len(part)} impressions of split {self.split!r} have a logit that is not finite; "
                "look for NaN in their features, or train with a lower learning_rate."
            )
        return logits

    def evaluate(self, model: Any, lists: CandidateLists | None = None) -> Metrics:
        """Predict and measure; with HR@10 and HR@50 if candidate lists are given."""
        scores = None if lists is None else self.score_lists(model, lists)
        return self.measure(self.predict(model), scores, None if lists is None else lists.positives)

    def measure(
        self, logits: np.ndarray, lists: np.ndarray | None = None, positives: np.ndarray | None = None
    ) -> Metrics:
        """Measure what was predicted.

        Args:
            logits: from `predict`.
            lists: from `score_lists`; ``None`` leaves HR@K out.
            positives: which of the lists' candidates are; by default the first.
        """
        heads = {
            head: head_metrics(self.dataset, self.split, head, logits[:, i])
            for i, head in enumerate(self._heads)
        }
        if lists is None:
            return Metrics(split=self.split, heads=heads)
        rates = {k: metrics.hit_rate_at_k(lists, k, positives) for k in (10, 50)}
        return Metrics(split=self.split, heads=heads, hit_rate=rates, hit_lists=len(lists))

    def score_lists(
        self, model: Any, lists: CandidateLists, *, main_head: bool = False, batch_size: int = 32
    ) -> np.ndarray:
        """Return the scores by which an engine would order candidate lists, float32 ``[R, C]``.

        That is the model's score expression; its main head's logit, which orders alike, where that head is
        the whole expression, and also where it reads pair features: nobody knows those of unseen items.

        Args:
            model: trained.
            lists: of candidates; what there is not gets ``-inf``.
            main_head: the main head's logit whatever the expression.
            batch_size: lists a step.
        """
        graph, state = nnx.split(model)
        score = score_of(model.config, model.schema)
        plain = main_head or bool(score.raw) or score.expression.strip() == self._heads[0]

        def forward(batch: Batch) -> np.ndarray:
            logits = np.asarray(_forward(graph, state, batch, self._catalogue))
            return logits[..., 0] if plain else score.in_numpy(logits, {})[0]

        return self.collect_lists(forward, model, lists, batch_size=batch_size)

    def collect_lists(
        self,
        forward: Callable[[Batch], np.ndarray],
        model: Any,
        lists: CandidateLists,
        *,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Return the scores that a function from batches to ``[B, C]`` gives; see `score_lists`.

        Args:
            forward: of a batch of lists, see `CandidateLists.batch`.
            model: whose schema and config say what is in a batch.
            lists: of candidates; what there is not gets ``-inf``.
            batch_size: lists a step.
        """
        buckets = self._batcher.long_buckets
        lengths = np.minimum(lists.history_lengths(self.dataset), buckets[-1])
        bucket = np.searchsorted(buckets, lengths)
        scores = np.full(lists.items.shape, -np.inf, np.float32)
        for place, length in enumerate(buckets):
            members = np.flatnonzero(bucket == place)
            for start in range(0, members.size, batch_size):
                rows = members[start : start + batch_size]
                padded = np.pad(rows, (0, batch_size - rows.size), mode="edge")
                config = model.config
                batch = lists.batch(
                    self.dataset, model.schema, padded, config.short_length, length, gaps=config.reads_gaps
                )
                found = uninterrupted(partial(forward, batch))
                scores[rows] = np.where(lists.items[rows] >= 0, found[: rows.size], -np.inf)
        return scores


@typed
def predict(model: Any, dataset: Dataset, split: str = "test", **options: Any) -> np.ndarray:
    """Predict every impression of one part.

    Args:
        model: trained.
        dataset: of the schema that the model was trained with.
        split: ``train``, ``validation`` or ``test``.
        **options: ``group``, ``batch_size``, ``buckets`` of `Evaluator`.

    Returns:
        Logits float32 ``[impressions, heads]``, NaN for impressions of other parts.

    Raises:
        TrainingError: a logit is not finite.
        DataError: the part is empty.
    """
    return Evaluator(dataset, model, split, **options).predict(model)


@typed
def evaluate(
    model: Any,
    dataset: Dataset,
    split: str = "test",
    *,
    lists: CandidateLists | None = None,
    **options: Any,
) -> Metrics:
    """Measure a model on one part: AUC, GAUC and log loss of each head, HR@K of the main one.

    Nobody knows pair features of items that were not shown, so in candidate lists they are missing for
    all, the positive included.

    Args:
        model: trained.
        dataset: of the schema that the model was trained with.
        split: ``train``, ``validation`` or ``test``.
        lists: from `aif_jax.training.candidates.candidate_lists`; ``None`` leaves HR@K out.
        **options: ``group``, ``batch_size``, ``buckets`` of `Evaluator`.

    Raises:
        TrainingError: a logit is not finite.
        DataError: the part is empty.
    """
    return Evaluator(dataset, model, split, **options).evaluate(model, lists)


def device_catalogue(dataset: Dataset, model: Any, *, folds: bool = False) -> dict[str, jax.Array]:
    """Return the encoded catalogue with signatures on the device: an operand of every step, sent once.

    Args:
        dataset: has the items.
        model: of its schema.
        folds: whether the catalogues as users of each fold read them stand there, one behind the other.
    """
    schema, space, content = model.schema, model.content_space, dataset.content
    n_folds = folds_of(dataset, model.config) if folds else 0
    tables = None
    if n_folds and model.config.item_statistics and model.item.statistics is not None:
        tables = item_statistics(dataset, schema, model.config.heads, folds=n_folds)
    parts = []
    for fold in range(n_folds) if n_folds else [None]:
        of_content = fold if content is not None and content.folds else None
        width = model.config.content_width if content is None else None
        parts.append(dataset.catalogue(schema, content_width=width, content_space=space, fold=of_content))
        if tables is not None:
            parts[-1][STATISTICS] = tables[fold][parts[-1][schema.item_id]]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not isinstance(model, OwnModel):
        columns = add_signatures(model.config, columns)
    return jax.device_put(columns)  # `jnp.asarray` compiles a program for each shape


@partial(jax.jit, static_argnums=0)
def _forward(
    graph: nnx.GraphDef, state: nnx.State, batch: Mapping[str, Any], catalogue: Any, keep: Any = None
) -> jax.Array:
    # One function of the module: models of one config share its compiled programs.
    model: Any = nnx.merge(graph, state)
    return model(batch, catalogue, train=False, **({} if keep is None else {"keep": keep}))


def _scatter(logits: np.ndarray, rows: np.ndarray, found: jax.Array) -> None:
    real = rows >= 0
    logits[rows[real]] = np.asarray(found)[real]
