"""Trains variants with several seeds on one data set, keeps what each predicts, and can be resumed."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.data.splits import split_number
from aif_jax.errors import ConfigError
from aif_jax.evaluation.retention import retention
from aif_jax.evaluation.variants import Variant
from aif_jax.training import (
    REFIT,
    CandidateLists,
    Evaluator,
    Metrics,
    TrainConfig,
    candidate_lists,
    floors,
    preset,
    train,
)

RANKER = Variant(
    "ranker", "exact with a seed of its own: it judges what a pre-ranker keeps", {"architecture": "exact"}
)
RANKER_SEED = 10_007
SPLIT = "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One variant trained with one seed.

    Attributes:
        variant: its name.
        seed: of weights, order, dropout and negatives.
        metrics: on the test part.
        frozen: the same with histories that end where the user's test rows begin, see
            `aif_jax.data.Dataset.with_frozen_histories`.
        retention: see `aif_jax.evaluation.retention`; empty for the ranker.
        parameters: number of trained weights.
        steps: of training.
        examples_per_s: impressions a second of training.
    """

    variant: str
    seed: int
    metrics: Metrics
    frozen: Metrics
    retention: dict[str, Any]
    parameters: int
    steps: int
    examples_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; `from_json` reads it back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "metrics": self.metrics.to_json(), "frozen": self.frozen.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Build from `to_json` output."""
        read = {name: Metrics.from_json(values[name]) for name in ("metrics", "frozen")}
        return cls(**{**values, **read})


class Study:
    """One data set, some variants, some seeds: a row for each pair of them.

    A row that was finished is kept in a folder of its own and never trained again; one that was interrupted
    goes on from its last checkpoint.

    Args:
        dataset: one that has a preset.
        folder: where everything is kept.
        variants: what is compared.
        seeds: how often each is trained.
        epochs: instead of the preset's.
        lists: candidate lists for hit rate and retention.
        candidates: in each of them.
        changes: fields of `ModelConfig` that differ from the preset in all variants.
        progress: show a progress bar for each row.

    Raises:
        ConfigError: there is no preset for this data set, or the folder holds another study.
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        variants: Sequence[Variant],
        *,
        seeds: int = 5,
        epochs: int | None = None,
        lists: int = 1000,
        candidates: int = 1000,
        changes: dict[str, Any] | None = None,
        progress: bool = True,
    ):
        if seeds < 1 or lists < 1 or candidates < 2:
            raise ConfigError(
                f"seeds, lists, candidates: got {seeds}, {lists} and {candidates}, expected at least 1, 1 "
                "and 2."
            )
        self.variants, self.seeds, self.folder = tuple(variants), seeds, Path(folder)
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ConfigError(f"variants: got {names}, expected each name once; rows are kept by name.")
        model, training = preset(dataset.name)
        self._model = model.replace(**(changes or {}))
        self._training = training if epochs is None else training.replace(epochs=epochs)
        self.dataset = dataset.with_validation_in_training() if dataset.name in REFIT else dataset
        self._progress = progress
        self._sizes = (lists, candidates)
        self._drawn: CandidateLists | None = None
        self._judged: np.ndarray | None = None
        self._open()

    # -- rows -------------------------------------------------------------------------------------

    def run(self, on_row: Callable[[Row, int, int], None] | None = None) -> list[Row]:
        """Train what is missing, and return all rows, variant by variant.

        Args:
            on_row: called with each row as it is there, its number from 1 on, and how many there will be.
        """
        pairs = [(variant, seed) for seed in range(self.seeds) for variant in self.variants]
        rows: dict[tuple[str, int], Row] = {}
        for number, (variant, seed) in enumerate(pairs, 1):
            rows[variant.name, seed] = row = self.row(variant, seed)
            if on_row is not None:
                on_row(row, number, len(pairs))
        return [rows[variant.name, seed] for variant in self.variants for seed in range(self.seeds)]

    def row(self, variant: Variant, seed: int) -> Row:
        """Return one row, from disk if it is there."""
        folder = self._row_folder(variant, seed)
        if not (folder / "row.json").exists():
            self._train(variant, seed, folder)
        return Row.from_json(json.loads((folder / "row.json").read_text(encoding="utf-8")))

    def logits(self, variant: Variant, seed: int, *, frozen: bool = False) -> np.ndarray:
        """Return a row's logits of the main head for the impressions of the test part, float32 ``[I]``."""
        name = "frozen.npy" if frozen else "logits.npy"
        return np.load(self._row_folder(variant, seed) / name)

    def known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which impressions of the test part have a known label, and the users and labels of these."""
        rows = self.dataset.impressions
        part = rows.split == split_number(SPLIT)
        known = (np.asarray(rows.label_mask[self.head]) > 0)[part]
        return known, rows.user[part][known], rows.labels[self.head][part][known]

    @property
    def model(self) -> ModelConfig:
        """The config of ``aif``, which variants differ from."""
        return self._model

    @property
    def head(self) -> str:
        """The main head, of which the table tells."""
        return self._model.heads[0]

    def floors(self) -> dict[str, Metrics]:
        """Return what is had without learning."""
        return floors(self.dataset, SPLIT, heads=(self.head,))

    # -- inside -----------------------------------------------------------------------------------

    def _row_folder(self, variant: Variant, seed: int) -> Path:
        return self.folder / "rows" / f"{variant.name}-{seed}"

    def _train(self, variant: Variant, seed: int, folder: Path) -> None:
        lists = self._lists()
        judged = None if variant is RANKER else self._ranker()
        checkpoints = folder / "checkpoints"
        config = self._training.replace(seed=seed, checkpoint_dir=str(checkpoints))
        dataset = variant.dataset(self.dataset, seed)
        result = train(variant.config(self._model), dataset, config, progress=self._progress)
        evaluator = Evaluator(dataset, result.model, SPLIT)
        logits = evaluator.predict(result.model)
        still = Evaluator(dataset.with_frozen_histories(SPLIT), result.model, SPLIT)
        frozen = still.predict(result.model)
        scores = evaluator.score_lists(result.model, lists)
        row = Row(
            variant=variant.name,
            seed=seed,
            metrics=evaluator.measure(logits, scores),
            frozen=still.measure(frozen),
            retention={} if judged is None else retention(judged, scores).to_json(),
            parameters=result.parameters,
            steps=result.steps,
            examples_per_s=result.examples_per_s,
        )
        part = self.dataset.impressions.split == split_number(SPLIT)
        _save(folder / "logits.npy", logits[part, 0])
        _save(folder / "frozen.npy", frozen[part, 0])
        _save(folder / "lists.npy", scores.astype(np.float32))
        # Last, and in one piece: a row is there if this is.
        _write(folder / "row.json", row.to_json())
        shutil.rmtree(checkpoints, ignore_errors=True)

    def _lists(self) -> CandidateLists:
        if self._drawn is None:
            lists, candidates = self._sizes
            self._drawn = candidate_lists(
                self.dataset, SPLIT, self.head, lists=lists, unseen=candidates - 1, seed=RANKER_SEED
            )
        return self._drawn

    def _ranker(self) -> np.ndarray:
        """Return the frozen ranker's scores of the candidate lists; train it if it is not there."""
        if self._judged is None:
            self.row(RANKER, RANKER_SEED)
            judged: np.ndarray = np.load(self._row_folder(RANKER, RANKER_SEED) / "lists.npy")
            self._judged = judged
        return self._judged

    def _open(self) -> None:
        """Make the folder, or check that what it holds goes with these settings."""
        mine = {
            "data": self.dataset.name,
            "impressions": _digest(self.dataset),
            "model": self._model.to_json(),
            "training": _identity(self._training),
            "lists": list(self._sizes),
        }
        mine = json.loads(json.dumps(mine))
        path = self.folder / "study.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, mine)
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if differing := sorted(name for name in mine if mine[name] != theirs.get(name)):
            raise ConfigError(
                f"{self.folder} holds a study that differs in {', '.join(differing)}; rows of both could not "
                "be compared. Choose another folder, or remove this one."
            )


def _identity(config: TrainConfig) -> dict[str, Any]:
    return config.replace(seed=0, checkpoint_dir="", checkpoint_interval=0).to_json()


def _digest(dataset: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    rows = dataset.impressions
    for column in (rows.user, rows.item, rows.split, *(rows.labels[head] for head in sorted(rows.labels))):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(values, indent=1), encoding="utf-8")
    os.replace(beside, path)
