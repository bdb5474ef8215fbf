"""The result of `fit`: models, measurements and reasons, on disk and as a report."""

import dataclasses
import hashlib
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load, save

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.checks import typed, well_formed
from aif_jax.config import ModelConfig, Precision
from aif_jax.data import Dataset
from aif_jax.errors import BundleError, ConfigError
from aif_jax.evaluation import Evaluation
from aif_jax.evaluation.blocks import cost_of_blocks, table_of_blocks, worth_of_blocks
from aif_jax.evaluation.tables import WIDTH, as_text, summary
from aif_jax.features import ContentSpace, Schema
from aif_jax.files import foreign_names, make_directory, read_file, write_atomic
from aif_jax.integrations.towers import Towers
from aif_jax.models.aif import Aif
from aif_jax.models.baselines import Model
from aif_jax.models.store import load_model, save_model
from aif_jax.strict_json import shortened
from aif_jax.training import TrainConfig, TrainResult
from aif_jax.training.choosing import Choice
from aif_jax.types import ItemRecords

CHECKPOINTS = "checkpoints"
_RUN = "run.json"
_CONTENT = "content.safetensors"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run:
    """Models that `fit` trained, and what it measured.

    Attributes:
        data: name of the data set.
        results: of training, by architecture: the baselines, then the model itself.
        evaluations: by part of the data: the model beside baselines and floors.
        choice: sizes and settings, with the reasons for them.
        seconds: spent on the training of each model, validation included.
        budget_s: seconds that were given for all of them; ``None`` for no limit.
        warnings: of the data set.
        findings: the verdict; where the model is not above all else, why, and what to change.
        content: keys of the items, uint64 ``[n]``, and their content embeddings ``[n, w]``, if these were
            derived from the log; the next day's are turned to them, see
            `aif_jax.data.Dataset.with_content_like`.
    """

    data: str
    results: Mapping[str, TrainResult]
    evaluations: Mapping[str, Evaluation]
    choice: Choice
    seconds: Mapping[str, float]
    budget_s: float | None
    warnings: tuple[str, ...]
    findings: tuple[str, ...]
    content: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def model(self) -> Model:
        """The trained model."""
        return list(self.results.values())[-1].model

    @property
    def schema(self) -> Schema:
        """The schema, fitted on the training part."""
        return self.model.schema

    @property
    def content_space(self) -> ContentSpace:
        """The space of the content embeddings that the model reads."""
        return self.model.content_space

    def towers(self, items: ItemRecords | Dataset) -> Towers:
        """Return what computes vectors of users and items for retrieval, by the run's two-tower model.

        Args:
            items: the catalogue, which the histories of users are read with.

        Raises:
            ConfigError: the run has no such model.
        """
        if "two_tower" not in self.results:
            raise ConfigError(
                f"towers: the run has {', '.join(self.results)}, expected a two_tower; fit with "
                "baselines=('cold', 'two_tower')."
            )
        return Towers(self.results["two_tower"].model, items)

    def report(self, *, blocks: Dataset | None = None) -> str:
        """Return quality beside baselines, floors and chance, what was chosen and why, time and warnings.

        Where the model is not above all of them by more than the error, it says why and what to change.

        Args:
            blocks: the data set, to add what each block of the model brings and costs; takes a prediction and
                two compilations a block. See `aif_jax.evaluation.blocks`.

        Raises:
            ConfigError: with ``blocks``, the model was trained without ``block_dropout``.
        """
        ((part, evaluation),) = self.evaluations.items()
        parts = [f"{self.model.config.architecture} on {self.data}", as_text(*summary(evaluation))]
        if "test" not in self.evaluations:
            parts.append(
                "There is no test part. These are figures of the validation part, on which the best epoch "
                "was chosen: they are a little too good."
            )
        if blocks is not None:
            worth = worth_of_blocks(self.model, blocks, part, next(iter(evaluation.heads)))
            assert isinstance(self.model, Aif)
            parts.append(as_text(table_of_blocks(worth, cost_of_blocks(self.model))))
        for title, lines in (
            ("Verdict", self.findings), ("Chosen", self.choice.reasons),
            ("Started from an earlier model", self._starts()),
            ("Time", self._times()), ("Warnings", self.warnings),
        ):  # fmt: skip
            if lines:
                parts.append("\n".join([f"{title}:", *map(_item, lines)]))
        return "\n\n".join(parts)

    @typed
    def save(self, path: str | Path) -> None:
        """Save the run in a folder: models, measurements, reasons. `load` reads it, and so do the commands.

        Args:
            path: the folder; a run that is there is replaced.

        Raises:
            BundleError: the folder holds something else, a weight is not finite, or it cannot be written.
            WriteError: the disk refuses.
        """
        path = Path(path)
        check_place(path)
        make_directory(path)
        digests, last = {}, list(self.results)[-1]
        for name, result in self.results.items():
            folder = path / _folder(name, last)
            figures = {} if result.metrics is None else result.metrics.to_json()
            notes = {"data": self.data, "seed": self.choice.training.seed, "steps": result.steps}
            save_model(result.model, folder, metrics=figures, notes=notes)
            digests[name] = _digest(folder)
        description = {
            "format": _FORMAT,
            "data": self.data,
            "results": {name: result.to_json() for name, result in self.results.items()},
            "evaluations": {part: each.to_json() for part, each in self.evaluations.items()},
            "choice": {
                "model": self.choice.model.to_json(), "training": self.choice.training.to_json(),
                "reasons": self.choice.reasons,
            },
            "seconds": dict(self.seconds),
            "budget_s": self.budget_s,
            "warnings": self.warnings,
            "findings": self.findings,
            "weights": digests,
            "content": None,
        }  # fmt: skip
        if self.content is not None:
            kept = save({"keys": self.content[0], "vectors": self.content[1]})
            write_atomic(path / _CONTENT, kept)
            description["content"] = hashlib.sha256(kept).hexdigest()
        write_atomic(path / _RUN, json.dumps(description, indent=1), begins=b"{")

    @classmethod
    @typed
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            BundleError: nothing of the kind is there, or a file is missing, broken or of another run.
        """
        path = Path(path)
        try:
            values = json.loads(read_file(path / _RUN))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{path}: not a run ({shortened(str(error))}); expected {_RUN} as Run.save writes it."
            ) from error
        found = values.get("format") if isinstance(values, dict) else values
        if found != _FORMAT:
            raise BundleError(f"{path}: format {shortened(repr(found))}, this release reads {_FORMAT}.")
        with well_formed(path / _RUN, BundleError, "fit again, or copy the run again"):
            results, last = {}, list(values["results"])[-1]
            for name, kept in values["results"].items():
                folder = path / _folder(name, last)
                model, _ = load_model(folder)
                if _digest(folder) != values["weights"][name]:
                    raise BundleError(
                        f"{folder}: has other weights than {path / _RUN} describes, as after a save that was "
                        "broken off; save the run again, or fit again."
                    )
                results[name] = TrainResult.from_json(kept, model)
            chosen = values["choice"]
            return cls(
                data=values["data"],
                results=results,
                evaluations={
                    part: Evaluation.from_json(found) for part, found in values["evaluations"].items()
                },
                choice=Choice(
                    model=ModelConfig.from_json(chosen["model"]),
                    training=TrainConfig.from_json(chosen["training"]),
                    reasons=tuple(chosen["reasons"]),
                ),
                seconds=values["seconds"],
                budget_s=values["budget_s"],
                warnings=tuple(values["warnings"]),
                findings=tuple(values["findings"]),
                content=None if values["content"] is None else _content(path, values["content"]),
            )  # fmt: skip

    @staticmethod
    def is_at(path: Path) -> bool:
        """Return whether a run was saved in a folder."""
        return (path / _RUN).is_file()

    @typed
    def export(
        self,
        path: str | Path,
        *,
        k_max: int = 500,
        precision: Precision = "float32",
        score: str | None = None,
        overwrite: bool = False,
    ) -> Bundle:
        """Export the model as a bundle, with its measurements; see `aif_jax.export_bundle`.

        Args:
            path: the directory to write.
            k_max: the most results that a request will be able to ask for.
            precision: ``float32``, ``bfloat16`` or ``int8``, of item rows and user states.
            score: another score expression than the model's.
            overwrite: replace a bundle that is there.

        Raises:
            ConfigError: see `aif_jax.export_bundle`.
            BundleError: see `aif_jax.export_bundle`.
        """
        heads = next(iter(self.evaluations.values())).heads
        figures = {
            head: {name: each.value for name, each in found.metrics.items()} for head, found in heads.items()
        }
        return export_bundle(
            self.model, path, k_max=k_max, precision=precision, score=score, overwrite=overwrite,
            metrics={next(iter(self.evaluations)): figures}, notes={"data": self.data},
        )  # fmt: skip

    def __repr__(self) -> str:
        part, evaluation = next(iter(self.evaluations.items()))
        found = next(iter(evaluation.heads.values())).metrics
        return (
            f"Run({self.model.config.architecture} on {self.data}, {part} AUC {found['auc'].value:.4f}, GAUC "
            f"{found['gauc'].value:.4f}; run.report() tells more)"
        )

    def _starts(self) -> list[str]:
        started = {
            name: each.warm_start for name, each in self.results.items() if each.warm_start is not None
        }
        return [f"{name}: {warm.summary()}" for name, warm in started.items()]

    def _times(self) -> list[str]:
        spent = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in self.seconds.items())
        if self.budget_s is None:
            return [f"training took {spent}; no limit was given"]
        share = self.budget_s / len(self.results)
        total = sum(self.seconds.values())
        lines = [
            f"training took {spent} of {self.budget_s:,.0f} s: {share:,.0f} s for each, and what one "
            "leaves is for the next"
        ]
        if total > self.budget_s:
            lines.append(
                f"that is {total - self.budget_s:,.0f} s over: the step under way and validation ended"
            )
        return lines


def check_place(path: Path) -> None:
    """Raise `BundleError` if a folder holds something that is no part of a run."""
    ours = (_RUN, f"{CHECKPOINTS}/", _CONTENT, "model/", "baselines/")
    foreign = [name for name in foreign_names(path, ()) if not name.startswith(ours)] if path.is_dir() else []
    if foreign:
        raise BundleError(
            f"{path}: holds {', '.join(foreign[:3])}, which is no part of a run, so none is saved there; "
            "choose another folder."
        )


def _folder(name: str, main: str) -> str:
    return "model" if name == main else f"baselines/{name}"


def _item(line: str) -> str:
    return textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  ")


def _content(path: Path, digest: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        kept = read_file(path / _CONTENT)
    except OSError as error:
        raise BundleError(f"{path / _CONTENT}: cannot be read ({error}); save the run again.") from error
    if hashlib.sha256(kept).hexdigest() != digest:
        raise BundleError(f"{path / _CONTENT}: is of another run than {path / _RUN}; save the run again.")
    arrays = load(kept)
    return arrays["keys"], arrays["vectors"]


def _digest(folder: Path) -> str:
    files = sorted(each for each in folder.iterdir() if each.is_file())
    return hashlib.sha256(b"".join(read_file(each) for each in files)).hexdigest()
