"""A study: variants trained with several seeds on one data set, a row for each, kept in files and resumed."""

import dataclasses
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.data import TEST, TRAIN, Dataset
from aif_jax.data.digests import digest_of_arrays, digest_of_columns, digest_of_histories, digest_of_labels
from aif_jax.errors import ConfigError, DataError
from aif_jax.files import make_directory, write_atomic
from aif_jax.training import (
    REFIT,
    WHOLE_REQUESTS,
    CandidateLists,
    Evaluator,
    Metrics,
    candidate_lists,
    preset,
    train,
)
from aif_jax.training.identity import differing
from aif_jax.training.metrics import auc, user_aucs
from results import environment
from studies.retention import retention
from studies.variants import VARIANTS, Variant

JUDGE_SEED = 10_007
JUDGES = ("exact", "exact_shown")
"""The frozen rankers that may judge: one that learnt from impressions, one that knows what is shown too."""

CANDIDATES = 1000  # in each list
COLD = 10
"""Training impressions up to which an item counts as cold."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One variant trained with one seed. No id and no logit of an impression is in it.

    Attributes:
        facts: JSON-serialisable, see `Study._train`; ``judge`` is the digest of the scores that judged.
        arrays: of each user with both classes, without ids: impressions ``weights``, AUCs ``growing`` and
            ``frozen``; among cold items ``cold_weights`` and ``cold``. Of a judge also ``scores``.
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    def write(self, path: Path) -> None:
        members = {"facts": np.frombuffer(json.dumps(dict(self.facts)).encode(), np.uint8), **self.arrays}
        make_directory(path.parent)
        stream = io.BytesIO()
        np.savez_compressed(stream, **members)  # type: ignore[arg-type]
        write_atomic(path, stream.getvalue())

    @classmethod
    def read(cls, path: Path) -> "Row":
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            return cls(facts=json.loads(arrays.pop("facts").tobytes()), arrays=arrays)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: cannot be read as a row ({error}); remove it and train again."
            ) from error


class Study:
    """Rows of some variants and seeds; a row that is in ``folder/rows`` is never trained again.

    Retention is measured over a number of ``lists``; ``changes`` are fields of `ModelConfig` that differ from
    the data set's preset in all variants.

    Raises:
        ConfigError: there is no preset for this data set, no such judge, or a row is of another study.
        DataError: the file of a row is broken.
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
        changes: Mapping[str, Any] | None = None,
        judge: str = "exact",
    ) -> None:
        if judge not in JUDGES or seeds < 1 or lists < 1:
            raise ConfigError(
                f"judge, seeds, lists: got {judge!r}, {seeds} and {lists}, expected one of "
                f"{', '.join(JUDGES)}, and at least 1."
            )
        self.folder, self.variants, self.seeds = Path(folder), tuple(variants), seeds
        model, training = preset(dataset.name)
        self.model = model.replace(**(changes or {}))
        self._training = training if epochs is None else training.replace(epochs=epochs)
        self.dataset = dataset.with_validation_in_training() if dataset.name in REFIT else dataset
        self.head = self.model.heads[0]
        self._pairs = [(variant, seed) for seed in range(seeds) for variant in variants]
        self.judge = dataclasses.replace(VARIANTS[judge], name=f"ranker_{judge}")
        whole = dataset.name in WHOLE_REQUESTS
        self.lists: CandidateLists = candidate_lists(
            self.dataset, "test", self.head, lists=lists, unseen=CANDIDATES - (not whole), seed=JUDGE_SEED,
            whole_requests=whole,
        )  # fmt: skip
        rows, schema = self.dataset.impressions, self.dataset.fit_schema()
        self.known = np.flatnonzero((rows.split == TEST) & (np.asarray(rows.label_mask[self.head]) > 0))
        trained = np.bincount(rows.item[rows.split == TRAIN], minlength=self.dataset.n_items)
        self.cold = trained[rows.item[self.known]] <= COLD
        assert self.lists.positives is not None
        self._data = {
            "data": dataset.name,
            "impressions": digest_of_labels(self.dataset),
            "inputs": digest_of_histories(self.dataset, schema),
            "columns": digest_of_columns(self.dataset, schema),
            "lists": digest_of_arrays(self.lists.rows, self.lists.items, self.lists.positives),
            "judge": judge,
        }
        for variant, seed in [(self.judge, JUDGE_SEED), *self._pairs]:
            self._kept(variant, seed)

    def run(self, on_row: Callable[[str, Row, bool], None] = lambda *_: None) -> dict[str, list[Row]]:
        """Train what is missing, and return the rows of each variant by seed.

        ``on_row`` is called with the name of each row, the row, and whether it was there before.
        """
        found: dict[str, list[Row]] = {variant.name: [] for variant in self.variants}
        for variant, seed in self._pairs:
            kept = self._kept(variant, seed)
            found[variant.name].append(kept or self._train(variant, seed))
            on_row(f"{variant.name}-{seed}", found[variant.name][-1], kept is not None)
        return found

    def _identity(self, variant: Variant) -> dict[str, Any]:
        shared = self._training.replace(**variant.training).replace(
            seed=0, checkpoint_dir="", checkpoint_interval=0
        )
        return {**self._data, "model": variant.config(self.model).to_json(), "training": shared.to_json()}

    def _path(self, variant: Variant, seed: int) -> Path:
        return self.folder / "rows" / f"{variant.name}-{seed}.npz"

    def _kept(self, variant: Variant, seed: int) -> Row | None:
        path = self._path(variant, seed)
        if not path.exists():
            return None
        row = Row.read(path)
        if differ := differing(self._identity(variant), row.facts["identity"]):
            raise ConfigError(
                f"{path} is of a study that differs in {', '.join(differ)}; choose another folder."
            )
        return row

    def _train(self, variant: Variant, seed: int) -> Row:
        ranker = self.judge, JUDGE_SEED
        judge = None if variant is self.judge else self._kept(*ranker) or self._train(*ranker)
        checkpoints = self.folder / "checkpoints" / f"{variant.name}-{seed}"
        config = self._training.replace(**variant.training).replace(
            seed=seed, checkpoint_dir=str(checkpoints)
        )
        dataset = variant.data(self.dataset, seed)
        result = train(variant.config(self.model), dataset, config, progress=True)
        evaluator, still = (
            Evaluator(each, result.model, "test", buckets=config.long_buckets)
            for each in (dataset, dataset.with_frozen_histories("test"))
        )
        logits, frozen = evaluator.predict(result.model), still.predict(result.model)
        plain = judge is None and variant.name == "ranker_exact"
        scores = evaluator.score_lists(result.model, self.lists, main_head=plain)
        if judge is None and not plain:  # logits of s / (1 + s), which orders as the score s does
            with np.errstate(divide="ignore", invalid="ignore"):
                scores = np.where(np.isfinite(scores), np.log(scores), -np.inf).astype(np.float32)
        kept = self.lists.positives
        assert kept is not None
        judged_by = scores if judge is None else judge.arrays["scores"]
        weights, growing = self._by_user(logits)
        cold_weights, cold = self._by_user(frozen, self.cold)
        labels = self.dataset.impressions.labels[self.head][self.known]
        row = Row(
            facts={
                "identity": self._identity(variant),
                "made": where(),
                "metrics": evaluator.measure(logits, scores, kept).to_json(),
                "frozen": still.measure(frozen).to_json(),
                "cold_auc": auc(labels[self.cold], frozen[self.known, 0][self.cold]),
                "retention": retention(judged_by, scores, kept),
                "judge": digest_of_arrays(judged_by),
                "parameters": result.parameters,
                "steps": result.steps,
                "examples_per_s": result.examples_per_s,
            },
            arrays={
                "weights": weights, "growing": growing, "frozen": self._by_user(frozen)[1],
                "cold_weights": cold_weights, "cold": cold, **({"scores": scores} if judge is None else {}),
            },
        )  # fmt: skip
        row.write(self._path(variant, seed))
        shutil.rmtree(checkpoints, ignore_errors=True)
        return row

    def _by_user(self, logits: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return impressions and AUC of each user with both classes."""
        known = self.known if rows is None else self.known[rows]
        impressions = self.dataset.impressions
        found = user_aucs(impressions.user[known], impressions.labels[self.head][known], logits[known, 0])
        return found.impressions, found.aucs


def where() -> dict[str, Any]:
    return {name: environment()[name] for name in ("date", "cpu", "cores", "jax", "aif_jax")}


def metrics_of(row: Row, kind: str = "metrics") -> Metrics:
    return Metrics.from_json(row.facts[kind])
