"""A bundle, exported or loaded: checked files, weights on the device, one proven program for each stage."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np
from safetensors import SafetensorError

from aif_jax import kernels
from aif_jax.bundle import files, golden
from aif_jax.bundle.compilation_cache import CompilationCache, open_cache
from aif_jax.bundle.files import (
    CONFIG,
    EXTEND,
    GOLDEN,
    KERNEL_ABI,
    KINDS,
    WEIGHTS,
    ProgramKind,
    Stage,
)
from aif_jax.bundle.programs import Call, Program, Signature
from aif_jax.bundle.tensors import load_tensors
from aif_jax.checks import typed, well_formed, whole
from aif_jax.config import ModelConfig, ModelSpec
from aif_jax.errors import AifError, BundleError, ConfigError
from aif_jax.features import ContentSpace, Schema
from aif_jax.features.content_space import CONTENT_SPACE
from aif_jax.processes import OfOneProcess, begin_jax
from aif_jax.uninterrupted import uninterrupted


class Bundle(OfOneProcess, guards=("call", "program")):
    """An exported model. Load one with `Bundle.load`; it is immutable and may be used from any thread.

    Attributes:
        path: the directory it came from.
        version: hash of its contents.
        spec: the model's description: heads, score, lengths, rungs.
        schema: its features.
        content_space: how raw content embeddings become what the model reads; the tables apply it.
        precision: of its item rows, in words: ``float32``, ``bfloat16``, ``int8``, or columns with theirs.
        k_max: the most results that one request can ask for.
        notes: further values of the exporter.
        metrics: the model's quality, as the exporter measured it.
        kind: kind of programs that run: ``native`` (custom calls into the Rust kernels) or ``portable``.
        compilation_cache: cache of compiled programs between processes; ``None`` for none.
    """

    unpickled = "give the other process the path, and load it there: Bundle.load(path)."

    def __init__(
        self,
        *,
        path: Path,
        manifest: Mapping[str, Any],
        description: Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        content_arrays: Mapping[str, np.ndarray],
    ):
        super().__init__()
        begin_jax()
        self.path = path
        self.version: str = manifest["version"]
        self.spec = ModelSpec.from_json(description["model"])
        source = description["source"]
        self._config = ModelConfig.from_json(source) if source else None
        self.schema = Schema.from_json(description["schema"])
        self.content_space = ContentSpace.read(description, content_arrays, self.spec.content_width)
        self.precision = self.spec.precision
        whole("k_max", description["k_max"], 1)
        self.k_max: int = description["k_max"]
        self.notes: Mapping[str, Any] = MappingProxyType(dict(description["notes"]))
        self.metrics: Mapping[str, Any] = MappingProxyType(dict(description["metrics"]))
        self.weights: Mapping[str, jax.Array] = MappingProxyType(
            {name: jax.device_put(array) for name, array in sorted(weights.items())}
        )
        self.kind: ProgramKind = "portable"
        self._manifest = manifest
        self.compilation_cache: CompilationCache | None = None
        self._programs: dict[Stage, Program] = {}
        self._why: list[str] = []

    @classmethod
    @typed
    def load(
        cls,
        path: str | Path,
        *,
        prefer: Literal["auto", "native", "portable"] = "auto",
        compilation_cache: str | Path | None = None,
    ) -> "Bundle":
        """Load a bundle: verify every file, choose programs, and prove them on the golden vectors.

        Args:
            path: the directory that `export_bundle` wrote.
            prefer: ``auto`` takes ``native`` programs if they can run and agree with the golden vectors,
                otherwise ``portable``; the other two take no alternative.
            compilation_cache: a directory in which compiled programs are kept, so that the next process on
                such a machine compiles nothing; made if absent, shared by any bundles and machines. ``None``:
                the one that the environment variable ``AIF_JAX_COMPILATION_CACHE`` names, otherwise none.
                Anyone who may write to it can run code in this process.

        Raises:
            BundleError: a file is missing or broken, or no programs could be proven.
            ConfigError: ``prefer`` is none of the three, or ``compilation_cache`` cannot be a cache.
            ProcessError: the process was forked by one that had loaded a bundle.
        """
        if prefer not in ("auto", *KINDS):
            raise ConfigError(f"prefer: got {prefer!r}, expected 'auto', 'native' or 'portable'.")
        return uninterrupted(lambda: cls._loaded(Path(path), prefer, compilation_cache))

    @classmethod
    def _loaded(cls, path: Path, prefer: str, compilation_cache: str | Path | None) -> "Bundle":
        manifest, contents = files.read_bundle_files(path)
        if missing := [name for name in (CONFIG, WEIGHTS, GOLDEN) if name not in contents]:
            raise BundleError(f"{path}: the manifest lists no {', '.join(missing)}; export the model again.")
        try:
            weights = load_tensors(contents[WEIGHTS])
            vectors = load_tensors(contents[GOLDEN])
            arrays = load_tensors(contents[CONTENT_SPACE]) if CONTENT_SPACE in contents else {}
        except (SafetensorError, ValueError) as error:
            raise BundleError(
                f"{path}: weights, golden vectors or content space cannot be read: {error}."
            ) from error
        with well_formed(path / CONFIG, BundleError, "copy the bundle again, or export it again"):
            description = json.loads(contents[CONFIG])
            given = description["programs"]
            stages = files.stages(extends=EXTEND in given)
            signatures: dict[Stage, dict[str, Signature]] = {
                stage: {kind: Signature.from_json(one) for kind, one in given[stage].items()}
                for stage in stages
            }
            bundle = cls(
                path=path, manifest=manifest, description=description, weights=weights, content_arrays=arrays
            )
        bundle.compilation_cache = open_cache(compilation_cache, kernel_abi=KERNEL_ABI)
        bundle._choose(prefer, signatures, contents, vectors)
        return bundle

    @classmethod
    @typed
    def refresh(cls, path: str | Path) -> "Bundle":
        """Rebuild a bundle's programs with the jax that is installed now, with the same weights.

        Those of our own model are made from its config, also when jax has changed so much that it cannot read
        the old ones. Those of another model are read and written anew, so it is done while the installed jax
        still reads them: JAX promises that for half a year. The version changes, so item index and behaviour
        table must be built again.

        Returns:
            The bundle, loaded anew.

        Raises:
            BundleError: the bundle cannot be read, or the programs of a model that is not ours cannot; or the
                new one is not proven or cannot be written: the old one is as it was.
        """
        from aif_jax.bundle.writing import refresh_bundle

        return refresh_bundle(Path(path), cls.load).named(path)

    def named(self, path: str | Path) -> "Bundle":
        """Return itself, now that its directory, which was loaded before, has its name."""
        self.path = Path(path)
        return self

    @property
    def ours(self) -> bool:
        """True if it holds one of our models, which has a `config`."""
        return self._config is not None

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model, which is one of ours.

        Raises:
            ConfigError: it is not.
        """
        if self._config is None:
            raise ConfigError(
                f"the bundle at {self.path} holds a model of class {self.spec.name}, which has no "
                "ModelConfig; what is known of it is in Bundle.spec."
            )
        return self._config

    @property
    def kept_columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Dtype and shape, for one behaviour, of columns that ``extend`` goes on from; empty without it."""
        given = self._programs[EXTEND].signature.inputs if EXTEND in self._programs else ()
        specs = {operand.path: operand.at({"b": 1, "l": 1, "p": 1}) for operand in given}
        return {
            path.removeprefix("long/"): (np.dtype(spec.dtype), spec.shape[2:])
            for path, spec in specs.items()
            if path.startswith("long/") and path.endswith("_kept")
        }

    @property
    def kept_sources(self) -> list[str]:
        """The columns of long sequences that `kept_columns` depend on, besides the types."""
        read = {operand.path for operand in self._programs["user"].signature.inputs}
        names = (*(name.removesuffix("_kept") for name in self.kept_columns), "gap")
        return [name for name in names if f"long/{name}" in read]

    def signature(self, stage: Stage) -> Signature:
        """Return the signature of a stage's program: its inputs and outputs."""
        return self._programs[stage].signature

    def program(self, stage: Stage) -> Program:
        """Return a stage's program, to be compiled as part of another."""
        return self._programs[stage]

    def call(self, stage: Stage, **dims: int) -> Call:
        """Return a stage's program compiled for the given sizes.

        They are ``m`` of ``behaviour`` and ``item``; ``b``, ``l`` of ``user``, and ``p`` too of ``extend``;
        ``n``, ``l`` of ``stage``. Compiles when this process has not done so yet and no compilation cache has
        it; see `Program.at`.
        """
        return self._programs[stage].at(self.weights, self.compilation_cache, **dims)

    def explain(self) -> str:
        """Return in words the kind of programs that runs, and why."""
        head = (
            f"bundle {self.version[:12]} at {self.path}: {self.kind} programs on {jax.default_backend()}, "
            f"exported with jax {self._manifest['jax']}, running {jax.__version__}"
        )
        why = [*self._why, self.compilation_cache.explain()] if self.compilation_cache else self._why
        return "\n".join([head, *(f"- {line}" for line in why)])

    def __repr__(self) -> str:
        return f"Bundle({self.version[:12]}, {self.spec.name}, {self.kind}, {str(self.path)!r})"

    # -- choosing ---------------------------------------------------------------------------------

    def _choose(
        self,
        prefer: str,
        signatures: Mapping[Stage, Mapping[str, Signature]],
        contents: Mapping[str, bytes],
        vectors: Mapping[str, np.ndarray],
    ) -> None:
        refused: dict[str, str] = {}
        for kind in KINDS if prefer == "auto" else (prefer,):
            reason = self._cannot_run(signatures, contents, kind)
            if reason is None:
                self._programs = {
                    stage: Program(
                        stage, kind, contents[f"programs/{stage}.{kind}"],
                        signatures[stage][kind],
                    )
                    for stage in signatures
                }  # fmt: skip
                reason = self._disproof(vectors, kind)
            if reason is None:
                self.kind = "native" if kind == "native" else "portable"
                self._why += [f"{kind}: taken, agrees with the golden vectors within {golden.RELATIVE:g}"]
                return
            refused[kind] = reason
            self._why += [f"{kind}: not taken, {reason}"]
        given = "; ".join(f"{kind}: {reason}" for kind, reason in refused.items())
        raise BundleError(
            f"{self.path}: no programs can serve it. {given}. Rebuild them with Bundle.refresh, or export "
            "again."
        )

    def _cannot_run(
        self, signatures: Mapping[Stage, Mapping[str, Signature]], contents: Mapping[str, bytes], kind: str
    ) -> str | None:
        if any(kind not in of_stage for of_stage in signatures.values()):
            return "the bundle was exported without such programs"
        if missing := [n for stage in signatures if (n := f"programs/{stage}.{kind}") not in contents]:
            return f"the manifest lists no {', '.join(missing)}"
        if kind != "native":
            return None
        if (backend := jax.default_backend()) != "cpu":
            return f"the native kernels run on a CPU, and this backend is {backend}"
        if (abi := self._manifest["kernel_abi"]) != KERNEL_ABI:
            return f"made for kernel ABI {abi}, this release has {KERNEL_ABI}"
        report = kernels.implementations()
        return None if report["native"] else report["reason"]

    def _disproof(self, vectors: Mapping[str, np.ndarray], kind: str) -> str | None:
        for stage in self._programs:
            given = _under(vectors, f"{stage}/in/")
            expected = _under(vectors, f"{stage}/out/")
            try:
                # The cache must live until the outputs are there, as its handle alone does not hold it.
                cached = golden.CachedRows(given) if stage == "stage" and kind == "native" else None
                inputs = given if cached is None else cached.inputs
                dims = _dims(self.signature(stage), inputs)
                outputs = {path: np.asarray(a) for path, a in self.call(stage, **dims)(inputs).items()}
                if cached is not None:
                    expected["status"] = cached.status
            except (AifError, TypeError, KeyError, ValueError, jax.errors.JaxRuntimeError) as error:
                return f"program {stage} cannot run: {error}"
            if found := golden.difference(stage, expected, outputs):
                return f"program {stage} does not give its golden vectors: {found}"
        return None


def _under(vectors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in vectors.items() if name.startswith(prefix)}


def _dims(signature: Signature, given: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the sizes of a program's symbolic dimensions, read from its inputs."""
    return {
        size: actual
        for operand in signature.inputs
        for size, actual in zip(operand.shape, given[operand.path].shape, strict=True)
        if isinstance(size, str)
    }
