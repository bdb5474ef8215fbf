"""The teacher of models that are distilled or shown what a ranker puts last: never the model that judges."""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation.facts_file import read_facts, write_facts
from aif_jax.evaluation.row import LATER
from aif_jax.evaluation.variants import Variant
from aif_jax.training import TrainConfig, bottom_items, predict, train
from aif_jax.training.identity import differing

TEACHER = Variant(
    "teacher",
    "aif with wider layers and int8 signatures",
    {"hidden": 128, "head_layers": (64,), "signature": "int8"},
)
"""Not `exact`, which judges what a pre-ranker keeps: a model taught by the judge's kin would keep what the
judge likes for being alike. Of what is left `cold` and `two_tower` know less than the pupil does. This one
reads long histories as `aif` does, by finer similarities and with more weights."""

TEACHER_SEED = 20_011


class Lessons(TypedDict, total=False):
    """Keywords of `aif_jax.training.train`."""

    teacher: np.ndarray
    bottom: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """What a trained model says to those that learn from it.

    Attributes:
        logits: float16 ``[impressions, heads]``: of the training part, NaN elsewhere.
        bottom: int32 ``[n_users, P]``: what it puts last for each, see `aif_jax.training.bottom_items`.
    """

    logits: np.ndarray
    bottom: np.ndarray

    def lessons(self, config: TrainConfig) -> Lessons:
        """Return what of it a training wants."""
        wanted = Lessons()
        if config.distils:
            wanted["teacher"] = self.logits
        if config.negative_bottom:
            wanted["bottom"] = self.bottom
        return wanted

    @property
    def digest(self) -> str:
        """By what a row knows its teacher."""
        both = self.logits.tobytes() + self.bottom.tobytes()
        return hashlib.blake2b(both, digest_size=16).hexdigest()


def teacher_of(
    dataset: Dataset,
    preset: ModelConfig,
    training: TrainConfig,
    path: Path,
    *,
    identity: Mapping[str, Any],
    progress: bool = True,
) -> Teacher:
    """Return the teacher of a data set: read, if it was kept, or else trained and kept.

    Its logits of the training part are of rows that it was trained on, so surer than it is of others.

    Args:
        dataset: whose training part is taught.
        preset: the config of ``aif``.
        training: how it is trained, whatever its seed.
        path: of the file where it is kept; checkpoints stand in a folder beside it until it is done.
        identity: what makes the data another one, see `aif_jax.evaluation.row`.
        progress: show a progress bar.

    Raises:
        ConfigError: the file holds the teacher of another study.
        DataError: the file is broken.
    """
    model, config = TEACHER.config(preset), TEACHER.trained(training).replace(seed=TEACHER_SEED)
    mine = {**identity, "model": model.to_json(), "training": config.to_json()}
    if path.exists():
        theirs, arrays = read_facts(path)
        if differ := differing(mine, theirs, later=LATER):
            raise ConfigError(
                f"{path} holds a teacher that differs in {', '.join(differ)}; choose another folder, or "
                "remove it and one is trained."
            )
        return Teacher(**arrays)
    checkpoints = path.parent / "checkpoints" / f"{TEACHER.name}-{TEACHER_SEED}"
    result = train(model, dataset, config.replace(checkpoint_dir=str(checkpoints)), progress=progress)
    teacher = Teacher(
        logits=predict(result.model, dataset, "train", buckets=config.long_buckets).astype(np.float16),
        bottom=bottom_items(result.model, dataset, seed=TEACHER_SEED, buckets=config.long_buckets),
    )
    write_facts(path, mine, dataclasses.asdict(teacher))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return teacher
