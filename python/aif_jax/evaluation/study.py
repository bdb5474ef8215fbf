"""Trains variants with several seeds on one data set, keeps what the table needs, and can be resumed."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.data.digests import (
    digest_of_arrays,
    digest_of_columns,
    digest_of_histories,
    digest_of_labels,
)
from aif_jax.data.splits import split_number
from aif_jax.errors import ConfigError
from aif_jax.evaluation.judges import JUDGE_SEED, judge_of, judged
from aif_jax.evaluation.labelled import Labelled
from aif_jax.evaluation.retention import retention
from aif_jax.evaluation.row import LATER, Row
from aif_jax.evaluation.row_store import RowStore
from aif_jax.evaluation.teaching import Lessons, Teacher, teacher_of
from aif_jax.evaluation.variants import Variant
from aif_jax.evaluation.where import where
from aif_jax.training import (
    REFIT,
    WHOLE_REQUESTS,
    CandidateLists,
    Evaluator,
    Metrics,
    TrainConfig,
    candidate_lists,
    floors,
    preset,
    train,
)
from aif_jax.training.identity import differing


class Study:
    """One data set, some variants, some seeds: a row for each pair of them.

    A row that was finished is kept and never trained again, wherever it was made; one that was interrupted
    goes on from its last checkpoint.

    Args:
        dataset: one that has a preset, or any, with ``settings``.
        folder: where rows are kept, checkpoints, and the teacher of distilled variants.
        variants: what is compared.
        seeds: how often each is trained.
        split: the part on which they are compared: ``test``, or ``validation``, for choices that must not
            know the test part; it is taken out of the data set before anything else is done then. Of the
            epochs the best on the validation part counts, so that those are chosen along.
        rows: where rows are kept instead of ``folder/rows``, see `aif_jax.evaluation.row_store`: those that
            are there count as trained here, and new ones come to them. The ranker's is one of them: copied
            rows need it, or new ones would be judged by another ranker.
        settings: the model of ``aif`` and how it is trained, instead of the data set's preset; of your own
            logs, for which there is none.
        refit: train on the validation part too before the test, with epochs that were chosen without it;
            for logs split by date. By default as `aif_jax.training.REFIT` has it.
        epochs: instead of the preset's.
        lists: candidate lists for hit rate and retention.
        candidates: in each of them: one positive and items that the user never saw, or, with
            ``whole_requests``, as many unseen items beside what was shown.
        whole_requests: lists of what was shown in a request, as `aif_jax.training.candidate_lists` has it.
            By default as `aif_jax.training.WHOLE_REQUESTS` has it.
        changes: fields of `ModelConfig` that differ from the preset, or ``settings``, in all variants.
        judge: which ranker judges what is kept, one of `aif_jax.evaluation.judges.JUDGES`.
        progress: show a progress bar for each row.

    Raises:
        ConfigError: there is no preset for this data set and no settings, no such judge, or a row that is
            wanted is there from another study.
        DataError: the file of a row is broken.
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        variants: Sequence[Variant],
        *,
        seeds: int = 5,
        split: Literal["test", "validation"] = "test",
        rows: Path | None = None,
        settings: tuple[ModelConfig, TrainConfig] | None = None,
        refit: bool | None = None,
        epochs: int | None = None,
        lists: int = 1000,
        candidates: int = 1000,
        whole_requests: bool | None = None,
        changes: dict[str, Any] | None = None,
        judge: str = "impressions",
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
        model, training = preset(dataset.name) if settings is None else settings
        self._model = model.replace(**(changes or {}))
        self._training = training if epochs is None else training.replace(epochs=epochs)
        self.split = split
        if split == "validation":
            self.dataset = dataset.without_test()
        else:
            refits = dataset.name in REFIT if refit is None else refit
            self.dataset = dataset.with_validation_in_training() if refits else dataset
        self._progress = progress
        self._whole_requests = dataset.name in WHOLE_REQUESTS if whole_requests is None else whole_requests
        self._list_count, self._list_size = lists, candidates
        self._drawn: CandidateLists | None = None
        self.judge, self._ranker = judge, judge_of(judge)
        self._judge: Row | None = None
        self._taught: Teacher | None = None
        self._lists = ""
        schema = self.dataset.fit_schema()
        self._data = {
            "data": self.dataset.name,
            "impressions": digest_of_labels(self.dataset),
            "inputs": digest_of_histories(self.dataset, schema),
            "columns": digest_of_columns(self.dataset, schema),
        }
        self.labelled = Labelled.of(self.dataset, self.split, self.head)
        nothing = np.zeros(len(self.labelled.known))
        self._users = (self.labelled.pairs(nothing), self.labelled.cold_pairs(nothing))
        self.store = RowStore(self.folder / "rows" if rows is None else rows)
        self._check()

    # -- rows -------------------------------------------------------------------------------------

    def run(self, on_row: Callable[[Row, int, int, bool], None] | None = None) -> list[Row]:
        """Train what is missing, and return all rows, variant by variant.

        Args:
            on_row: called with each row as it is there, its number from 1 on, how many there will be, and
                whether it was there before.
        """
        rows: dict[tuple[str, int], Row] = {}
        for number, (variant, seed) in enumerate(self._pairs(), 1):
            kept = self._kept(variant, seed)
            rows[variant.name, seed] = row = kept or self._train(variant, seed)
            if on_row is not None:
                on_row(row, number, len(self._pairs()), kept is not None)
        return [rows[variant.name, seed] for variant in self.variants for seed in range(self.seeds)]

    def row(self, variant: Variant, seed: int) -> Row:
        """Return one row, trained if it is not there.

        Raises:
            ConfigError: it is there from another study.
        """
        return self._kept(variant, seed) or self._train(variant, seed)

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
        return floors(self.dataset, self.split, heads=(self.head,))

    @property
    def unseen(self) -> int:
        """How many items that the user never saw are in each candidate list."""
        return self._list_size if self._whole_requests else self._list_size - 1

    @property
    def shown(self) -> float:
        """How many items that the user was shown are in the mean candidate list."""
        if not self._whole_requests:
            return 1.0
        return float((self.candidates().items[:, : -self.unseen] >= 0).sum(axis=1).mean())

    def candidates(self) -> CandidateLists:
        """Return the candidate lists; drawn by seed, so the same whoever asks."""
        if self._drawn is None:
            self._drawn = candidate_lists(
                self.dataset, self.split, self.head, lists=self._list_count, unseen=self.unseen,
                seed=JUDGE_SEED, whole_requests=self._whole_requests,
            )  # fmt: skip
        return self._drawn

    def ranker(self) -> Row:
        """Return the frozen ranker's row; train it if it is not there."""
        if self._judge is None:
            file = f"{self._ranker.name}-{JUDGE_SEED}.npz"
            kept = self._kept(self._ranker, JUDGE_SEED)
            if kept is None and (others := [row.name for row in self.store if row.judge]):
                raise ConfigError(
                    f"{self.store.folder} holds rows ({', '.join(others[:3])}, ...) but not {file}, "
                    "the ranker that judged them, and another one would judge otherwise. Copy it from where "
                    "they were made, or choose another folder for rows."
                )
            self._judge = kept or self._train(self._ranker, JUDGE_SEED)
        return self._judge

    # -- inside -----------------------------------------------------------------------------------

    def _pairs(self) -> list[tuple[Variant, int]]:
        return [(variant, seed) for seed in range(self.seeds) for variant in self.variants]

    def _train(self, variant: Variant, seed: int) -> Row:
        judge = None if variant is self._ranker else self.ranker()
        lists, positives = self.candidates(), self.candidates().positives
        assert positives is not None
        checkpoints = self.folder / "checkpoints" / f"{variant.name}-{seed}"
        config = variant.trained(self._training).replace(seed=seed, checkpoint_dir=str(checkpoints))
        dataset = variant.dataset(self.dataset, seed)
        teacher = self._teacher() if config.taught else None
        lessons = Lessons() if teacher is None else teacher.lessons(config)
        result = train(variant.config(self._model), dataset, config, **lessons, progress=self._progress)
        evaluator = Evaluator(dataset, result.model, self.split, buckets=config.long_buckets)
        frozen_histories = dataset.with_frozen_histories(self.split)
        still = Evaluator(frozen_histories, result.model, self.split, buckets=config.long_buckets)
        logits, frozen = evaluator.predict(result.model), still.predict(result.model)
        scores = (
            judged(variant, evaluator, result.model, lists)
            if judge is None
            else evaluator.score_lists(result.model, lists)
        )
        part = self.dataset.impressions.split == split_number(self.split)
        growing_main, frozen_main = logits[part, 0], frozen[part, 0]
        row = Row(
            variant=variant.name,
            seed=seed,
            identity=self._identity(variant),
            made=where(),
            metrics=evaluator.measure(logits, scores, positives),
            frozen=still.measure(frozen),
            growing_pairs=self.labelled.pairs(growing_main),
            frozen_pairs=self.labelled.pairs(frozen_main),
            cold_pairs=self.labelled.cold_pairs(frozen_main),
            cold_auc=self.labelled.cold_auc(frozen_main),
            retention={} if judge is None else retention(_scores(judge), scores, positives).to_json(),
            judge="" if judge is None else digest_of_arrays(_scores(judge)),
            teacher="" if teacher is None else teacher.digest,
            parameters=result.parameters,
            steps=result.steps,
            examples_per_s=result.examples_per_s,
            scores=scores if judge is None else None,
        )
        self.store.put(row)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return row

    def _teacher(self) -> Teacher:
        """Return what distilled variants learn from; train it if it is not there."""
        if self._taught is None:
            self._taught = teacher_of(
                self.dataset, self._model, self._training, self.folder / "teacher.npz",
                identity=self._data, progress=self._progress,
            )  # fmt: skip
        return self._taught

    def _kept(self, variant: Variant, seed: int) -> Row | None:
        """Return a row that is there already, and belongs here."""
        row = self.store.get(variant.name, seed)
        if row is None:
            return None
        differ = differing(self._identity(variant), row.identity, later=LATER)
        for part, mine, theirs in zip(
            ("users", "cold items"), self._users, (row.growing_pairs, row.cold_pairs), strict=True
        ):
            if not mine.same_users(theirs):
                differ.append(part)
        if differ:
            raise ConfigError(
                f"{self.store.folder}: row {row.name} is of a study that differs in {', '.join(differ)}; "
                "rows of both could not be compared. Choose another folder, or remove that row."
            )
        return row

    def _check(self) -> None:
        """Refuse rows of other studies before anything is trained."""
        wanted = [self._kept(variant, seed) for variant, seed in [(self._ranker, JUDGE_SEED), *self._pairs()]]
        judges: dict[str, list[str]] = {}
        for row in filter(None, wanted):
            judge = row.judge if row.scores is None else digest_of_arrays(row.scores)
            judges.setdefault(judge, []).append(row.name)
        if len(judges) > 1:
            groups = "; ".join(", ".join(names) for names in judges.values())
            raise ConfigError(
                f"{self.store.folder}: these rows were judged by different rankers, so that their retention "
                f"could not be compared: {groups}. Keep those of one ranker, and remove the others."
            )

    def _identity(self, variant: Variant) -> dict[str, Any]:
        """Return what a row of a variant must share with this study to stand in its table."""
        return {
            **self._data,
            "lists": [self._list_count, self._list_size, *["request"] * self._whole_requests],
            "drawn": self._digest_of_lists(),
            **({} if self.judge == "impressions" else {"judge": self.judge}),
            "model": variant.config(self._model).to_json(),
            "training": _shared(variant.trained(self._training)),
        }

    def _digest_of_lists(self) -> str:
        if not self._lists:
            drawn = self.candidates()
            assert drawn.positives is not None
            self._lists = digest_of_arrays(drawn.rows, drawn.items, drawn.positives)
        return self._lists


def _scores(ranker: Row) -> np.ndarray:
    assert ranker.scores is not None
    return ranker.scores


def _shared(config: TrainConfig) -> dict[str, Any]:
    """Return what all rows of a variant share of how they are trained."""
    return config.replace(seed=0, checkpoint_dir="", checkpoint_interval=0).to_json()
