"""The input of training: epochs of batches behind a grain pipeline, whose position can be saved."""

import threading
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from aif_jax.checks import typed
from aif_jax.config import LONG_BLOCKS, ModelConfig
from aif_jax.data import TRAIN, Dataset, RequestBatcher, RequestSource
from aif_jax.errors import ConfigError
from aif_jax.features import Schema
from aif_jax.models.own_model import OwnConfig
from aif_jax.training.config import TrainConfig
from aif_jax.training.item_statistics import folds_of
from aif_jax.training.user_items import UserItems

Batch = dict[str, Any]
_HOST_ONLY = ("user_index", "impression")


def long_buckets(config: ModelConfig | OwnConfig, chosen: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the lengths to which long sequences are padded; the last is always the model's own.

    Args:
        config: of the model; one without long-sequence blocks reads none, so gets the length 1.
        chosen: ascending; those that are shorter than ``long_length`` count.
    """
    if not any(config.has(block) for block in LONG_BLOCKS):
        return (1,)
    return (*(length for length in chosen if length < config.long_length), config.long_length)


def for_device(batch: Batch) -> Batch:
    """Return the part of a batch that the model reads; the rest stays on the host."""
    return {name: value for name, value in batch.items() if name not in _HOST_ONLY}


class TrainingBatches:
    """Random access to the batches of all epochs in a row, as grain expects of a source.

    Batch ``i`` depends on the data, the config and ``i`` alone.

    Args:
        dataset: trained on its training part.
        schema: fitted.
        model: lengths, heads and blocks.
        config: batch size, group, negatives, seed.
        teacher: logits ``[impressions, heads]`` of a trained model, NaN where it has none; batches then hold
            ``teacher`` and ``teacher_mask`` float32 ``[B, G, heads]``, masked for sampled items.
        bottom: items that a ranker puts last for each user, int ``[n_users, P]``, -1 for none.
    """

    def __init__(
        self,
        dataset: Dataset,
        schema: Schema,
        model: ModelConfig | OwnConfig,
        config: TrainConfig,
        teacher: np.ndarray | None = None,
        bottom: np.ndarray | None = None,
    ) -> None:
        self._teacher = teacher
        self._folds = folds_of(dataset, model)
        self._n_items = dataset.n_items
        buckets = long_buckets(model, config.long_buckets)
        source = RequestSource(
            dataset,
            schema,
            "train",
            group=config.group,
            visit=config.visit,
            short_length=model.short_length,
            long_length=buckets[-1],
            heads=model.heads,
            sequence_step=max(1, buckets[-1] // 2) if model.has("encoder") else 0,
            gaps=model.reads_gaps,
        )
        self._pool = (
            NextPool(dataset.trained_items(), config.next_pool)
            if config.next_weight and model.has("encoder")
            else None
        )
        self.batcher = RequestBatcher(
            source, batch_size=config.batch_size, long_buckets=buckets, seed=config.seed
        )
        self.per_epoch = len(self.batcher)
        self._epochs = config.epochs
        self._seed = config.seed
        self._negatives = Negatives(dataset, schema, model, config, bottom) if config.negatives else None
        self._plans: dict[int, list[tuple[np.ndarray, int, int]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._epochs * self.per_epoch

    def __getitem__(self, index: int) -> Batch:
        """Return batch ``index % per_epoch`` of epoch ``index // per_epoch``."""
        epoch, position = divmod(int(index), self.per_epoch)
        batch = self.batcher.source.batch(*self._plan(epoch)[position])
        rng = np.random.default_rng([self._seed, epoch, position])
        if self._negatives is not None:
            batch = self._negatives.append(batch, rng)
        if self._pool is not None:
            batch["sequence_pool"] = self._pool.draw(batch["sequence_item"], rng)
        if self._teacher is not None:
            rows = batch["impression"]
            logits = np.where((rows >= 0)[..., None], self._teacher[np.maximum(rows, 0)], np.nan)
            known = np.isfinite(logits)
            batch |= {
                "teacher": np.where(known, logits, 0.0).astype(np.float32),
                "teacher_mask": known.astype(np.float32),
            }
        if self._folds:  # whose catalogues stand one behind the other
            fold = (batch["user_index"] % self._folds).astype(np.int32)
            folds: dict[str, np.ndarray] = dict.fromkeys(("item", "short_item", "long_item"), fold)
            if "sequence_row" in batch:
                of_window = np.zeros(len(batch["sequence_item"]), np.int32)
                real = batch["sequence_row"] >= 0
                of_window[batch["sequence_row"][real]] = fold[real]
                folds |= dict.fromkeys(("sequence_item", "sequence_pool"), of_window)
            for name in folds.keys() & batch.keys():
                ahead = folds[name][:, None] * np.int32(self._n_items)
                batch[name] = np.where(batch[name] >= 0, batch[name] + ahead, -1)
        return batch

    def _plan(self, epoch: int) -> list[tuple[np.ndarray, int, int]]:
        with self._lock:
            if epoch not in self._plans:
                # Prefetching reaches at most into the next epoch.
                self._plans = {number: plan for number, plan in self._plans.items() if number >= epoch - 1}
                self._plans[epoch] = self.batcher.plan(epoch)
            return self._plans[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_plans": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def iterate(batches: TrainingBatches, workers: int = 0) -> grain.DatasetIterator:
    """Return an iterator over all batches that prepares a few ahead.

    Its ``get_state()`` is the position after the last batch taken, as plain JSON; ``set_state`` restores it.

    Args:
        batches: the source.
        workers: processes that prepare batches; 0 means one thread of this process.
    """
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    pipeline = grain.MapDataset.source(batches).to_iter_dataset(reading)
    if workers:
        # grain asks absl for a flag in its worker processes, and absl refuses unless flags count as parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        pipeline = pipeline.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(pipeline)


@typed
def can_sample(schema: Schema, model: ModelConfig | OwnConfig) -> bool:
    """Return whether items can be sampled as negatives: not if the model reads pair features."""
    return not (schema.pair and model.has("pair"))


class NextPool:
    """Items that what comes next is held against.

    Args:
        known: bool ``[n_items]``, items that the training part has seen.
        size: ``P``, items to draw for a batch.
    """

    def __init__(self, known: np.ndarray, size: int) -> None:
        self._known, self._size = np.flatnonzero(known), size

    def draw(self, windows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return int32 ``[U, P]``, the same items for each window.

        Args:
            windows: items of the windows int32 ``[U, L]``, -1 where there is none.
            rng: of this batch.
        """
        behaviours = windows[windows >= 0]
        sources = (self._known, behaviours if behaviours.size else self._known)
        sizes = (self._size // 2, self._size - self._size // 2)
        drawn = [source[rng.integers(0, source.size, n)] for source, n in zip(sources, sizes, strict=True)]
        return np.tile(np.concatenate(drawn).astype(np.int32), (len(windows), 1))


class Negatives:
    """Sampled items added to each request with label 0.

    They are drawn from the items that the training part has seen: some from what a ranker puts last for the
    user, some by how often each was shown, the rest uniformly; never one that the request holds or that the
    user has met in the training part, which may well be one that was liked.
    Each has the context and train-only features of a random row of its request, so that neither distinguishes
    it from what was shown; pair features are missing.

    Raises:
        ConfigError: the model reads pair features, whose absence would give the sampled items away; or the
            config names a head that the model lacks.
    """

    def __init__(
        self,
        dataset: Dataset,
        schema: Schema,
        model: ModelConfig | OwnConfig,
        config: TrainConfig,
        bottom: np.ndarray | None = None,
    ) -> None:
        if not can_sample(schema, model):
            raise ConfigError(
                f"negatives={config.negatives}: sampled items have none of the pair features "
                f"{[feature.name for feature in schema.pair]}, and the model would learn that. Switch "
                "the block 'pair' off, or train on impressions alone."
            )
        if wrong := sorted(set(config.negative_heads) - set(model.heads)):
            raise ConfigError(f"negative_heads: {wrong} are not among the model's heads {model.heads}.")
        self._count = config.negatives
        self._popular = config.negative_popularity
        self._from_bottom, self._bottom = config.negative_bottom, bottom
        taught = config.negative_heads or model.heads
        self._weights = np.array(
            [config.negative_weight * (head in taught) for head in model.heads], np.float32
        )
        shown = np.bincount(
            dataset.impressions.item[dataset.impressions.split == TRAIN], minlength=dataset.n_items
        )
        self._shares = np.cumsum(shown) / max(int(shown.sum()), 1)
        self._known = np.flatnonzero(dataset.trained_items())
        self._seen = UserItems.in_training(dataset)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Return int32 items of a shape, by popularity or uniformly."""
        popular = np.searchsorted(self._shares, rng.random(shape), side="right")
        uniform = self._known[rng.integers(0, self._known.size, shape)]
        mixed = np.where(rng.random(shape) < self._popular, popular, uniform)
        return np.minimum(mixed, self._shares.size - 1).astype(np.int32)

    def draw_for(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return int32 ``[B, negatives]`` items for users ``[B]``: a share of what is last for each."""
        size = (users.size, self._count)
        drawn = self.draw(size, rng)
        if self._bottom is None:
            return drawn
        last = self._bottom[np.maximum(users, 0)[:, None], rng.integers(0, self._bottom.shape[1], size)]
        return np.where((rng.random(size) < self._from_bottom) & (last >= 0), last, drawn).astype(np.int32)

    def append(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch with `negatives` more candidates a request, at the end.

        An item that the request holds or the user has met is drawn again; after a few draws it is masked.
        """
        items = batch["item"]
        size, users = (items.shape[0], self._count), batch["user_index"]
        drawn = self.draw_for(users, rng)
        for _ in range(6):
            drawn = np.where(self._met(users, items, drawn), self.draw_for(users, rng), drawn)
        usable = ~self._met(users, items, drawn) & (users >= 0)[:, None]
        shown = np.count_nonzero(batch["impression"] >= 0, axis=1)
        like = rng.integers(0, np.maximum(shown, 1)[:, None], size)
        request = np.arange(size[0])[:, None]
        added = {
            "item": np.where(usable, drawn, -1).astype(np.int32),
            "labels": np.zeros((*size, self._weights.size), np.float32),
            "label_mask": usable[..., None] * self._weights,
            "impression": np.full(size, -1, batch["impression"].dtype),
            "pair": {
                name: np.zeros((*size, *column.shape[2:]), column.dtype)
                for name, column in batch["pair"].items()
            },
        }
        for group in ("context", "train_only"):
            added[group] = {name: column[request, like] for name, column in batch[group].items()}
        return {
            name: _joined(value, added[name]) if name in added else value for name, value in batch.items()
        }

    def _met(self, users: np.ndarray, items: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        held = (drawn[:, :, None] == items[:, None, :]).any(axis=-1)
        return held | self._seen.hold(np.maximum(users, 0)[:, None], drawn)


def _joined(value: Any, added: Any) -> Any:
    if isinstance(value, dict):
        return {name: _joined(column, added[name]) for name, column in value.items()}
    return np.concatenate([value, added], axis=1)
