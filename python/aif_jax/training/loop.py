"""The training loop, the same for every architecture."""

import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.checks import typed
from aif_jax.config import ModelConfig
from aif_jax.data import TRAIN, VALIDATION, Dataset, fit_width
from aif_jax.data.digests import (
    digest_of_arrays,
    digest_of_columns,
    digest_of_histories,
    digest_of_labels,
)
from aif_jax.errors import ConfigError, TrainingError
from aif_jax.features import ContentSpace, Schema
from aif_jax.models import OwnModel, build_model
from aif_jax.models.own_model import OwnConfig
from aif_jax.models.store import set_weights, weights_of
from aif_jax.training.checkpoints import CheckpointStore
from aif_jax.training.config import FEWEST_STEPS, TrainConfig
from aif_jax.training.encoding import CountedDataset, Encoding, summary_of
from aif_jax.training.evaluate import Evaluator, Metrics, device_catalogue
from aif_jax.training.feed import TrainingBatches, for_device, iterate
from aif_jax.training.identity import differing
from aif_jax.training.item_statistics import folds_of, item_statistics
from aif_jax.training.parameters import Parameters
from aif_jax.training.progress import Reporter
from aif_jax.training.step import LOG_Q, Step, TrainState
from aif_jax.training.warm_start import Earlier, WarmStart
from aif_jax.uninterrupted import uninterrupted

_LAG = 8
"""Steps in flight before the host reads a loss: reading it at once would make the device wait."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """Results of one epoch.

    Attributes:
        number: from 0.
        step: steps made by its end, since the start of the run.
        loss: mean training loss.
        seconds: wall time of its training, compilation included, evaluation not.
        validation: metrics at its end; ``None`` if the data has no validation part.
        best: whether it was the best so far. The returned weights are those of the last such epoch.
    """

    number: int
    step: int
    loss: float
    seconds: float
    validation: Metrics | None
    best: bool

    def summary(self) -> str:
        """Return the results in one line."""
        line = f"epoch {self.number}, loss {self.loss:.4f}"
        if self.validation is not None:
            line += f", validation AUC {self.validation.auc:.4f}, GAUC {self.validation.gauc:.4f}"
        return f"{line}, {self.seconds:.1f} s" + (" (best)" if self.best else "")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; `from_json` reads it back."""
        metrics = None if self.validation is None else self.validation.to_json()
        return {**dataclasses.asdict(self), "validation": metrics}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json` output."""
        metrics = values["validation"]
        return cls(**{**values, "validation": None if metrics is None else Metrics.from_json(metrics)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A trained model and the record of its training.

    Attributes:
        model: with the weights of the best epoch.
        schema: fitted on the training part.
        history: by epoch.
        metrics: validation metrics of the best epoch; ``None`` if the data has no validation part.
        steps: number of steps made, a resumed run's earlier ones included.
        examples_per_s: impressions a second of training, compilation left out; of this process alone.
        compile_s: seconds spent tracing and compiling steps.
        parameters: number of trained weights.
        ended: ``epochs``: all that were asked for (or `TrainConfig.max_steps`); ``patience``; or ``seconds``.
        encoding: counts of values of the training part, all users and all items that encoding left out or
            did not recognise, by group, by reason as in `aif_jax.features.EncodeReport`, and by feature.
        warm_start: what was taken over from an earlier model; ``None`` if the run began from scratch.
    """

    model: Any
    schema: Schema
    history: tuple[Epoch, ...]
    metrics: Metrics | None
    steps: int
    examples_per_s: float
    compile_s: float
    parameters: int
    ended: str
    encoding: Encoding
    warm_start: WarmStart | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all but model and schema, JSON-serialisable; `from_json` reads it back."""
        fields = [field.name for field in dataclasses.fields(self)]
        values = {name: getattr(self, name) for name in fields if name not in ("model", "schema", "metrics")}
        warm = None if self.warm_start is None else dataclasses.asdict(self.warm_start)
        return {**values, "history": [epoch.to_json() for epoch in self.history], "warm_start": warm}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], model: Any) -> Self:
        """Build from `to_json` output and the model."""
        history = tuple(Epoch.from_json(epoch) for epoch in values["history"])
        best = [epoch.validation for epoch in history if epoch.best][-1]
        kept: Mapping[str, Any] = values["warm_start"] or {}
        names: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
        warm = WarmStart(**names) if names else None
        made = {"history": history, "metrics": best, "model": model, "schema": model.schema}
        return cls(**{**values, **made, "warm_start": warm})


@typed
def train(
    model_config: ModelConfig | OwnModel,
    dataset: Dataset,
    train_config: TrainConfig | None = None,
    *,
    teacher: np.ndarray | None = None,
    bottom: np.ndarray | None = None,
    init: Any = None,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train a model on the training part of a data set.

    The validation part is scored after each epoch. The weights of the epoch with the best GAUC of the main
    head are returned (the best AUC, where no user has both classes), and `TrainConfig.patience` epochs
    without a better one end the run. With a `checkpoint_dir` the run is saved, and resumes from its last
    checkpoint when called again with the same model, data and config, to the same weights as an unbroken run.

    Args:
        model_config: architecture and sizes; its heads must be labels of the data set. Or an
            `aif_jax.models.OwnModel`, which trains from the weights that it has.
        dataset: see `aif_jax.data`.
        train_config: settings of the run; the defaults if ``None``.
        teacher: logits ``[impressions, heads]`` of a trained model for distillation, in the order of
            ``model_config.heads``, as `aif_jax.training.evaluate.predict` returns them for ``train``; NaN
            where there is none. The teacher was trained on these rows, so it is surer of them than of others.
        bottom: items that a trained ranker puts last for each user, int ``[n_users, P]``, -1 for none,
            such as the lowest of a pool by `Evaluator.score_lists`; for `TrainConfig.negative_bottom`.
        init: earlier model to start from, see `aif_jax.training.warm_start`: a `TrainResult`, anything else
            with a ``model``, a model, or the folder of a saved one. The data may have other users, items,
            features and heads than the earlier one's; sizes must be the same.
        progress: show a progress bar.
        on_step: called with the number of steps made after each of them, and after its checkpoint.

    Raises:
        ConfigError: the configs fit neither each other nor the data set.
        TrainingError: a loss or gradient is not finite, which names the step and what caused it; the labels
            of the validation part are of one class, so that its AUC would be NaN; or the checkpoint directory
            holds another run.
    """
    config = TrainConfig() if train_config is None else train_config
    if isinstance(model_config, OwnModel) and init is not None:
        raise ConfigError(
            f"init: got one for {model_config.config.name}, which trains from the weights that it has; put "
            "the earlier ones into it, and leave init out."
        )
    own = model_config if isinstance(model_config, OwnModel) else None
    described = model_config.config if isinstance(model_config, OwnModel) else model_config
    with Reporter(progress, f"{described.architecture} on {dataset.name}") as reporter:
        return _Run(described, own, dataset, config, reporter, on_step, teacher, bottom, init).go()


class _Run:
    def __init__(
        self,
        model_config: ModelConfig | OwnConfig,
        own: OwnModel | None,
        dataset: Dataset,
        config: TrainConfig,
        reporter: Reporter,
        on_step: Callable[[int], None] | None,
        teacher: np.ndarray | None,
        bottom: np.ndarray | None,
        init: Any,
    ) -> None:
        _check(model_config, dataset, config)
        _check_validation(dataset, model_config.heads[0])
        _check_teacher(teacher, config, (len(dataset.impressions), len(model_config.heads)))
        _check_bottom(bottom, config, dataset)
        self.given = {"teacher": teacher, "bottom": bottom}
        self.model_config, self.config, self.reporter, self.on_step = model_config, config, reporter, on_step
        self.dataset = dataset
        self.schema = dataset.fit_schema() if own is None else own.schema
        self.warm_start: WarmStart | None = None
        model: Any = own
        if isinstance(model_config, ModelConfig):
            space = _content_space(dataset, model_config)
            earlier = None if init is None else Earlier(init)
            if earlier is not None:
                self.schema, space = earlier.schema_for(self.schema), earlier.space_for(space)
            model = build_model(model_config, self.schema, seed=config.seed, content_space=space)
            self.warm_start = None if earlier is None else earlier.start(model)
            if model.item.statistics is not None:
                counted = item_statistics(dataset, self.schema, model_config.heads)
                set_weights(model, {**weights_of(model), "item.statistics": counted}, "item statistics")
        self.parameters = Parameters(model)
        counting = CountedDataset.of(dataset)
        self.catalogue = device_catalogue(counting, model)
        self.evaluator = None
        if (dataset.impressions.split == VALIDATION).any():
            self.evaluator = Evaluator(
                dataset,
                model,
                "validation",
                group=config.group,
                batch_size=config.evaluation_batch_size or config.batch_size,
                buckets=config.long_buckets,
                catalogue=self.catalogue,
            )
        if folds_of(dataset, model_config):
            self.catalogue = device_catalogue(dataset, model, folds=True)
        if config.softmax_weight:
            self.catalogue[LOG_Q] = _log_shares(dataset, model_config.heads[0])
        self.batches = TrainingBatches(counting, self.schema, model_config, config, **self.given)
        self.encoding = counting.counts()
        self.per_epoch = self.batches.per_epoch
        self.total = min(len(self.batches), config.max_steps or len(self.batches))
        rate = config.learning_rate * (1.0 if init is None else config.warm_rate)
        paced = config.replace(learning_rate=rate)
        self.step = Step(self.parameters, paced, len(model_config.heads), self.total)
        self.state = self.step.start()
        self.best = jnp.copy(self.state["params"])
        self.history: list[Epoch] = []
        self.waiting: deque[tuple[int, dict[str, Any], jax.Array]] = deque()
        self.compile_s = self.busy_s = self.epoch_s = 0.0
        self.examples = 0
        self.ended = "epochs"

    def go(self) -> TrainResult:
        iterator = iterate(self.batches, self.config.workers)
        if not self.config.checkpoint_dir:
            self._steps(iterator, 0, None)
        else:
            with CheckpointStore(self.config.checkpoint_dir, kept=self.config.checkpoints_kept) as store:
                self._steps(iterator, self._resume(iterator, store), store)
        best = [epoch for epoch in self.history if epoch.best][-1]
        steady = self.busy_s - self.compile_s
        return TrainResult(
            model=self._model(self.best),
            schema=self.schema,
            history=tuple(self.history),
            metrics=best.validation,
            steps=self.history[-1].step,
            examples_per_s=self.examples / steady if steady > 0 else 0.0,
            compile_s=self.compile_s,
            parameters=self.best.size,
            ended=self.ended,
            encoding=self.encoding,
            warm_start=self.warm_start,
        )

    def _steps(self, iterator: Any, done: int, store: CheckpointStore | None) -> None:
        shapes: set[int] = set()
        if left_out := summary_of(self.encoding):
            self.reporter.line(f"encoding the data found {left_out}")
        if self.warm_start is not None:
            self.reporter.line(f"started from an earlier model: {self.warm_start.summary()}")
        self.reporter.start(self.total, done)
        begun = started = time.perf_counter()
        while done < self.total and self._may_go_on():
            batch = next(iterator)
            before = time.perf_counter()
            length = batch["long_item"].shape[1]
            if length in shapes:
                self.state, report = self.step(self.state, for_device(batch), self.catalogue)
            else:  # tracing and compiling happen inside the call, execution after it
                self.state, report = uninterrupted(
                    functools.partial(self.step, self.state, for_device(batch), self.catalogue)
                )
                shapes.add(length)
                self.compile_s += time.perf_counter() - before
            done += 1
            examples = int(np.count_nonzero(batch["impression"] >= 0))
            self.examples += examples
            self.waiting.append((done, batch, report))
            loss = self._read(_LAG)
            self.reporter.advance(examples, loss)
            late = done >= FEWEST_STEPS and 0 < self.config.max_seconds <= time.perf_counter() - begun
            ends = done % self.per_epoch == 0 or done == self.total or late
            if ends:
                self._read(0)
                spent = time.perf_counter() - started
                self.busy_s += spent
                self.epoch_s += spent
                self._end_epoch(done)
                started = time.perf_counter()
            if late and done < self.total:
                self.ended = "seconds"
            interval = self.config.checkpoint_interval
            if store is not None and (done % interval == 0 if interval else ends):
                self._read(0)
                self._save(store, done, iterator)
            if self.on_step is not None:
                self.on_step(done)
        if store is not None and store.latest_step() != done:
            self._save(store, done, iterator)

    def _read(self, allowed: int) -> float | None:
        """Wait until at most `allowed` steps are in flight; stop the run if one of the others failed."""
        loss = None
        while len(self.waiting) > allowed:
            number, batch, report = self.waiting.popleft()
            loss, ok = map(float, np.asarray(report))
            if not ok:
                cause = self.step.explain(self.state, for_device(batch), self.catalogue)
                raise TrainingError(
                    f"step {number} of {self.total} (epoch {(number - 1) // self.per_epoch}): "
                    f"the loss is {loss}; {cause}"
                )
        return loss

    def _end_epoch(self, done: int) -> None:
        number = len(self.history)
        steps = done - (self.history[-1].step if self.history else 0)
        loss = float(self.state["loss_sum"]) / steps
        found = None
        if self.evaluator is not None:
            self.reporter.note("validating")
            found = self.evaluator.evaluate(self._model(self.state["params"]))
        before = [epoch.validation for epoch in self.history if epoch.best and epoch.validation is not None]
        best = found is None or not before or _quality(found) > _quality(before[-1])
        if best:
            # Copied, because the next step reuses the buffers.
            self.best = jnp.copy(self.state["params"])
        self.history.append(
            Epoch(number=number, step=done, loss=loss, seconds=self.epoch_s, validation=found, best=best)
        )
        self.state["loss_sum"] = jnp.zeros((), jnp.float32)
        self.epoch_s = 0.0
        self.reporter.line(self.history[-1].summary())

    def _model(self, vector: jax.Array) -> Any:
        return self.parameters.merge(self.parameters.split(vector))

    def _may_go_on(self) -> bool:
        bests = [epoch.number for epoch in self.history if epoch.best]
        waited = len(self.history) - 1 - bests[-1] if bests else 0
        if 0 < self.config.patience <= waited:
            self.ended = "patience"
        return self.ended == "epochs"

    def _identity(self) -> dict[str, Any]:
        """Return the description of the run that must not change before it resumes."""
        training = self.config.to_json()
        for name in ("checkpoint_dir", "checkpoint_interval", "checkpoints_kept", "max_seconds", "workers"):
            del training[name]
        for name, array in self.given.items():
            if array is not None:
                training[name] = digest_of_arrays(array)
        if self.warm_start is not None:
            training["init"] = self.warm_start.digest
        if isinstance(self.model_config, OwnConfig):  # its weights do not follow from config and seed
            training["initial weights"] = self._initial_digest
        return {
            "model": self.model_config.to_json(),
            "training": training,
            "schema": self.schema.to_json(),
            "data": self._data,
        }

    @functools.cached_property
    def _initial_digest(self) -> str:
        return digest_of_arrays(*map(np.asarray, self.parameters.initial.values()))

    @functools.cached_property
    def _data(self) -> dict[str, str]:
        return {
            "name": self.dataset.name,
            "labels": digest_of_labels(self.dataset),
            "histories": digest_of_histories(self.dataset, self.schema),
            "columns": digest_of_columns(self.dataset, self.schema),
            **({"gaps": digest_of_arrays(self.dataset.gaps)} if self.model_config.reads_gaps else {}),
        }

    def _arrays(self) -> dict[str, Any]:
        state, best = jax.device_get((self.state, self.best))
        return {"state": self.parameters.named(state), "best": self.parameters.split(best)}

    def _save(self, store: CheckpointStore, done: int, iterator: Any) -> None:
        if store.latest_step() == done:
            return
        notes = {
            "identity": self._identity(),
            "history": [epoch.to_json() for epoch in self.history],
            "data": iterator.get_state(),
        }
        store.save(done, self._arrays(), notes)

    def _resume(self, iterator: Any, store: CheckpointStore) -> int:
        notes = store.notes()
        if notes is None:
            return 0
        if changed := differing(self._identity(), notes["identity"]):
            raise TrainingError(
                f"{store.directory} holds another run: {', '.join(changed)} differ. Give the configs and "
                "data that it was started with (where an earlier release made its digests: that release), "
                "or another checkpoint_dir."
            )
        restored = store.restore(self._arrays())
        assert restored is not None
        self.state: TrainState = self.parameters.unnamed(restored.arrays["state"], self.state)
        self.best = self.parameters.join(restored.arrays["best"])
        self.history = [Epoch.from_json(epoch) for epoch in restored.notes["history"]]
        iterator.set_state(restored.notes["data"])
        return restored.step


def _check(model: ModelConfig | OwnConfig, dataset: Dataset, config: TrainConfig) -> None:
    if missing := [head for head in model.heads if head not in dataset.heads]:
        raise ConfigError(f"heads: {dataset.name} has the labels {dataset.heads}, but not {missing}.")
    if config.head_weights and len(config.head_weights) != len(model.heads):
        raise ConfigError(
            f"head_weights: got {len(config.head_weights)} weights for the {len(model.heads)} heads "
            f"{model.heads}."
        )
    if config.softmax_weight and model.architecture != "two_tower":
        raise ConfigError(
            f"softmax_weight: {model.architecture!r} has no vector of a user; it trains 'two_tower' only."
        )
    if config.next_weight and not model.has("encoder"):
        raise ConfigError(
            f"next_weight: got {config.next_weight:g} for a model without the block 'encoder'; give "
            "ModelConfig encoder_layers of at least 1, architecture 'aif' or 'exact' and that block, or "
            "leave next_weight 0."
        )


def _content_space(dataset: Dataset, model: ModelConfig) -> ContentSpace | None:
    """Return the space that the model keeps, ``None`` for data without content.

    Raises:
        ConfigError: the content cannot have the model's content_width.
    """
    return None if dataset.content is None else fit_width(dataset.content, model.content_width).space


def _check_teacher(teacher: np.ndarray | None, config: TrainConfig, shape: tuple[int, int]) -> None:
    if config.distils != (teacher is not None):
        raise ConfigError(
            f"teacher: got {'none' if teacher is None else 'one'} with distillation_weight "
            f"{config.distillation_weight:g} and distillation_list_weight "
            f"{config.distillation_list_weight:g}; give train(..., teacher=logits) and a weight over 0, or "
            "neither."
        )
    if teacher is not None and teacher.shape != shape:
        raise ConfigError(
            f"teacher: got logits of shape {teacher.shape}, expected {shape}: one for every impression and "
            "head."
        )
    if teacher is not None and not np.isfinite(teacher).any():
        raise ConfigError("teacher: no logit is finite; predict the split 'train' with a trained model.")


def _check_bottom(bottom: np.ndarray | None, config: TrainConfig, dataset: Dataset) -> None:
    if bool(config.negative_bottom) != (bottom is not None):
        raise ConfigError(
            f"bottom: got {'none' if bottom is None else 'one'} with negative_bottom "
            f"{config.negative_bottom:g}; give train(..., bottom=items) and a share over 0, or neither."
        )
    if bottom is None:
        return
    if bottom.ndim != 2 or len(bottom) != dataset.n_users or not np.issubdtype(bottom.dtype, np.integer):
        raise ConfigError(
            f"bottom: got {bottom.dtype} of shape {bottom.shape}, expected integers [{dataset.n_users}, P]: "
            "a row for each user."
        )
    low, high = int(bottom.min(initial=-1)), int(bottom.max(initial=-1))
    if low < -1 or not 0 <= high < dataset.n_items:
        raise ConfigError(
            f"bottom: got items from {low} to {high}, expected some of 0 to {dataset.n_items - 1}, and -1 "
            "for none."
        )


def _quality(found: Metrics) -> float:
    return found.auc if math.isnan(found.gauc) else found.gauc


def _check_validation(dataset: Dataset, head: str) -> None:
    """Refuse a validation part on which no epoch could be better than another."""
    rows = dataset.impressions
    known = (rows.split == VALIDATION) & (np.asarray(rows.label_mask[head]) > 0)
    values = np.unique(rows.labels[head][known])
    if len(values) < 2 and (rows.split == VALIDATION).any():
        given = f"all {known.sum():,} known labels are {values[0]:g}" if len(values) else "no label is known"
        raise TrainingError(
            f"{dataset.name}: in the validation part {given} for head {head!r}, so its AUC would be NaN and "
            "no epoch the best. Sampled negatives of a training config are in the training part alone: use "
            "Dataset.from_events, which samples them in every part; or hold out other rows, or none."
        )


def _log_shares(dataset: Dataset, head: str) -> jax.Array:
    """Return the log share of each item among the training positives, one added to each count."""
    rows = dataset.impressions
    positive = (rows.split == TRAIN) & (np.asarray(rows.label_mask[head]) > 0) & (rows.labels[head] > 0.5)
    counts = np.bincount(rows.item[positive], minlength=dataset.n_items) + 1.0
    return jax.device_put(np.log(counts / counts.sum()).astype(np.float32))
