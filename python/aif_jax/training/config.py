"""Validated configuration of one training run. A batch counts requests, each of up to `group` candidates."""

import dataclasses
from typing import ClassVar

from aif_jax.checks import Config, ascending, check, whole
from aif_jax.errors import ConfigError

FEWEST_STEPS = 50
"""Steps that a limit of time leaves: after fewer, a model is noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Settings of one training run.

    Attributes:
        epochs: passes over the training part.
        batch_size: requests a step.
        group: candidates a request; longer requests are split into several.
        visit: put requests of one user together in training, if the histories of their first rows end within
            so many behaviours and an eighth of the history, so that the user side is computed once for them:
            all read the history of the first row. With 1 these are requests of the same history; with 8 a row
            whose history has 64 behaviours may lack the last 7 of them. 0 for none; validation has none.
        learning_rate: peak of the schedule.
        warmup_steps: steps over which the rate rises linearly from 0; then it falls along a cosine to
            `final_rate` of the peak.
        final_rate: share of the peak rate that is left at the last step, in [0, 1].
        warm_rate: share of `learning_rate` that is the peak of a run with an earlier model as ``init``.
        weight_decay: decoupled decay (AdamW) of the matrices of dense layers; never of biases or scales.
        embedding_decay: the same for embedding tables, most rows of which a step does not touch.
        clip_norm: largest global norm of a gradient; 0 switches clipping off.
        patience: epochs without a better validation GAUC after which training stops; 0 never stops early. The
            weights of the best epoch are kept either way.
        max_steps: end after this many steps, and shape the schedule for it; 0 means by epochs.
        max_seconds: end with the step after so many seconds, validation and compilation included, but not
            before step `FEWEST_STEPS`; 0 means by epochs. The schedule is that of all epochs, so that a run
            that is cut short ends with a higher rate.
        long_buckets: lengths to which shorter long sequences are padded, ascending, beside the model's
            `long_length`, which always is one; each costs one compilation. Requests are put into batches with
            others of their bucket. Lengths beyond the model's have no effect.
        head_weights: weight of each head's loss in the sum; empty means 1 each.
        negative_keep_rate: share of the negatives that sampling of the training data kept; shifts the log
            odds in training so that the model serves calibrated probabilities.
        negatives: sampled items added to every request with label 0, none that the user met in training.
        negative_bottom: share of them drawn from what a trained ranker puts last for the user, needs the
            ``bottom`` of `aif_jax.training.train`; users without an entry there get others.
        negative_popularity: share of the others drawn by how often an item occurs in the training part; the
            rest uniform.
        negative_weight: weight of a sampled negative in the loss, against 1 of an impression.
        negative_heads: heads that learn from sampled negatives; empty means all.
        next_weight: weight of the loss by which the encoder learns what follows each behaviour, see
            `aif_jax.training.losses.next_item_loss`; for models with ``encoder_layers`` only.
        next_pool: sampled items that the next one is held against, drawn for each batch: half of them
            uniformly, half by how often they occur in its windows.
        rematerialise: compute the encoder's layers again for their gradients instead of keeping what they
            computed: less memory, more time, the same gradients up to rounding; for long histories.
        softmax_weight: weight of the in-batch softmax beside the sigmoid loss; `two_tower` only.
        softmax_temperature: divides its dot products.
        distillation_weight: weight of the cross-entropy to a teacher's probabilities, see
            `aif_jax.training.losses.distillation_loss`; needs the ``teacher`` of `aif_jax.training.train`.
        distillation_list_weight: the same of the cross-entropy between the softmax of the teacher's logits
            over a request's candidates and that of the model's.
        evaluation_batch_size: requests a step of prediction; 0 means `batch_size`.
        checkpoint_dir: directory of checkpoints; empty means none.
        checkpoint_interval: steps between checkpoints; 0 means at the end of each epoch.
        checkpoints_kept: number of the newest to keep.
        workers: processes that prepare batches; 0 means a thread of this one.
        seed: of weights, order, dropout and sampled negatives.
    """

    _about: ClassVar[str] = "training"

    epochs: int = 1
    batch_size: int = 64
    group: int = 16
    visit: int = 0
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_rate: float = 0.05
    warm_rate: float = 0.25
    weight_decay: float = 1e-4
    embedding_decay: float = 0.0
    clip_norm: float = 5.0
    patience: int = 2
    max_steps: int = 0
    max_seconds: float = 0.0
    long_buckets: tuple[int, ...] = ()
    head_weights: tuple[float, ...] = ()
    negative_keep_rate: float = 1.0
    negatives: int = 0
    negative_bottom: float = 0.0
    negative_popularity: float = 0.5
    negative_weight: float = 1.0
    negative_heads: tuple[str, ...] = ()
    next_weight: float = 0.0
    next_pool: int = 512
    rematerialise: bool = False
    softmax_weight: float = 0.0
    softmax_temperature: float = 0.1
    distillation_weight: float = 0.0
    distillation_list_weight: float = 0.0
    evaluation_batch_size: int = 0
    checkpoint_dir: str = ""
    checkpoint_interval: int = 0
    checkpoints_kept: int = 2
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "group", "checkpoints_kept", "next_pool"):
            whole(name, getattr(self, name), 1)
        for name in (
            "visit", "warmup_steps", "patience", "max_steps", "negatives", "evaluation_batch_size",
            "checkpoint_interval", "workers", "seed",
        ):  # fmt: skip
            whole(name, getattr(self, name), 0)
        for size in self.long_buckets:
            whole("long_buckets", size, 1)
        ascending("long_buckets", self.long_buckets)
        for name in ("learning_rate", "warm_rate", "softmax_temperature"):
            check(name, value := getattr(self, name), value > 0, "a number over 0")
        for name in (
            "weight_decay", "embedding_decay", "clip_norm", "max_seconds", "negative_weight",
            "softmax_weight", "next_weight", "distillation_weight", "distillation_list_weight",
        ):  # fmt: skip
            check(name, value := getattr(self, name), value >= 0, "at least 0")
        for name in ("final_rate", "negative_bottom", "negative_popularity"):
            check(name, value := getattr(self, name), 0 <= value <= 1, "a share in [0, 1]")
        if self.negative_bottom and not self.negatives:
            raise ConfigError(
                f"negative_bottom: got {self.negative_bottom} of no negatives; say how many with negatives."
            )
        rate, weights = self.negative_keep_rate, self.head_weights
        check("negative_keep_rate", rate, 0 < rate <= 1, "one in (0, 1]")
        check("head_weights", weights, all(weight >= 0 for weight in weights), "numbers of at least 0")
        if self.checkpoint_interval and not self.checkpoint_dir:
            raise ConfigError(
                f"checkpoint_interval: got {self.checkpoint_interval} without checkpoint_dir; say where."
            )

    @property
    def distils(self) -> bool:
        """True if the model learns from a teacher."""
        return bool(self.distillation_weight or self.distillation_list_weight)

    @property
    def taught(self) -> bool:
        """True if training needs predictions of another model, or the items that it ranks last."""
        return self.distils or bool(self.negative_bottom)
