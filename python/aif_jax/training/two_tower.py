"""A two-tower model for retrieval, trained on the data of a pre-ranker."""

from typing import Any

from aif_jax.checks import typed
from aif_jax.config import ModelConfig
from aif_jax.data import TRAIN, Dataset
from aif_jax.training.config import TrainConfig
from aif_jax.training.loop import TrainResult, train


@typed
def two_tower(
    data: Dataset,
    model: ModelConfig | None = None,
    training: TrainConfig | None = None,
    *,
    init: Any = None,
    progress: bool = True,
) -> TrainResult:
    """Train a two-tower model; its `model` is what `aif_jax.nearline.Towers` takes.

    Args:
        data: of the pre-ranker.
        model: the pre-ranker's config, of which widths, lengths and main head are taken; by default a
            `ModelConfig` of the data's main head.
        training: settings of the run; by default one epoch. Without a ``softmax_weight`` it is 1: the
            sigmoid loss alone orders what is shown, the in-batch softmax all items (Yi et al., RecSys 2019);
            `bench/records` has the measurement.
        init: earlier result to start from, see `aif_jax.training.train`.
        progress: show a progress bar.
    """
    if model is None:
        content = {} if data.content is None else {"content_width": data.content.vectors.shape[1]}
        model = ModelConfig(heads=data.heads[:1], **content)
    config = model.replace(architecture="two_tower", heads=model.heads[:1], score=model.heads[0])
    training = (TrainConfig() if training is None else training).replace(next_weight=0.0)
    training = apart(data, training)
    if not training.softmax_weight:
        training = training.replace(softmax_weight=1.0)
    if training.head_weights:
        training = training.replace(head_weights=training.head_weights[:1])
    return train(config, data, training, init=init, progress=progress)


def apart(data: Dataset, training: TrainConfig) -> TrainConfig:
    """Return settings without visits, and with as many more requests a step as these held together.

    The softmax takes one positive of each request, and none is to be lost to a neighbour.
    """
    if not training.visit:
        return training
    together, alone = (len(data.requests(TRAIN, training.group, visit)) for visit in (training.visit, 0))
    return training.replace(visit=0, batch_size=round(training.batch_size * alone / max(together, 1)))
