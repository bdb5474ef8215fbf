"""Export of a served model: its stages as programs, its weights and golden vectors, in the files of a bundle.

Only this part of bundles needs the model's code, so it is imported when something is exported.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jax import export
from safetensors.numpy import save as save_safetensors

from aif_jax import kernels
from aif_jax.bundle import files
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
from aif_jax.bundle.golden import sample_group, sample_items, sample_sequence, sample_types
from aif_jax.bundle.programs import Export, Program, Signature, Tree, exported_again, exporter, flatten
from aif_jax.bundle.tensors import load_tensors
from aif_jax.config import ModelConfig, check_precision
from aif_jax.errors import BundleError
from aif_jax.features import ContentSpace, Schema
from aif_jax.features.content_space import CONTENT_SPACE
from aif_jax.features.continuation import NEWEST
from aif_jax.models.served import spec_of
from aif_jax.models.store import check_finite
from aif_jax.uninterrupted import check_wanted, uninterrupted

if TYPE_CHECKING:
    from aif_jax.models.served import ServedModel

_PLATFORMS: dict[ProgramKind, tuple[str, ...]] = {"native": ("cpu",), "portable": ("cpu", "cuda", "tpu")}
_DIMS: dict[Stage, tuple[str, ...]] = {
    "behaviour": ("m",), "item": ("m",), "user": ("b", "l"), "stage": ("n", "l"),
    EXTEND: ("b", "l", "p"),
}  # fmt: skip
_GOLDEN_ITEMS = 64
_T = TypeVar("_T")


def refresh_bundle(path: Path, load: Callable[[Path], _T]) -> _T:
    """Replace a bundle's programs by ones of the jax that is installed now; `write_bundle` tells the rest.

    Raises:
        BundleError: the model is not ours, and this jax cannot read its programs.
    """
    from aif_jax.models.folding import Folded

    manifest = files.read_manifest(path)
    description = json.loads(files.read_verified(path, manifest, CONFIG))
    if not description["source"]:
        return _rewritten(path, manifest, description, load)
    weights = load_tensors(files.read_verified(path, manifest, WEIGHTS))
    config, schema = ModelConfig.from_json(description["source"]), Schema.from_json(description["schema"])
    check_precision(precision := description["model"]["precision"])
    arrays = (
        load_tensors(files.read_verified(path, manifest, CONTENT_SPACE))
        if CONTENT_SPACE in manifest["files"]
        else {}
    )
    space = ContentSpace.read(description, arrays, config.content_width)
    return write_bundle(
        path,
        Folded(config, schema, weights, precision),
        space,
        description["k_max"],
        description["metrics"],
        description["notes"],
        load,
        overwrite=True,
    )


def _rewritten(
    path: Path, manifest: Mapping[str, Any], description: dict[str, Any], load: Callable[[Path], _T]
) -> _T:
    """Read the programs of a model whose functions are not here, and write them anew."""
    contents = {name: files.read_verified(path, manifest, name) for name in manifest["files"]}
    kinds = [kind for kind in KINDS if kind == "portable" or manifest["kernel_abi"] == KERNEL_ABI]
    for stage in files.stages(extends=EXTEND in description["programs"]):
        old = {kind: contents.pop(f"programs/{stage}.{kind}", b"") for kind in KINDS}
        signatures = {k: one for k, one in description["programs"][stage].items() if k in kinds}
        description["programs"][stage] = signatures
        for kind, signature in signatures.items():
            try:
                program = Program(stage, kind, old[kind], Signature.from_json(signature))
                content = uninterrupted(partial(exported_again, program, kernels.CUSTOM_CALLS))
            except BundleError as error:
                raise BundleError(
                    f"{path}: holds a model of class {description['model']['name']}, whose functions are not "
                    f"in the bundle, and its programs cannot be read by jax {jax.__version__}; export the "
                    f"model again, or refresh the bundle with a jax that reads it, jax "
                    f"{manifest['jax']} for one, and then with later ones."
                ) from error
            contents[f"programs/{stage}.{kind}"] = content
    contents[CONFIG] = json.dumps(description, indent=1, allow_nan=False).encode()
    header = {"jax": jax.__version__, "kernel_abi": KERNEL_ABI}
    return files.write_bundle_files(path, contents, header, load, overwrite=True)


def write_bundle(
    path: Path,
    model: "ServedModel",
    space: ContentSpace,
    k_max: int,
    metrics: Mapping[str, Any],
    notes: Mapping[str, Any],
    load: Callable[[Path], _T],
    *,
    overwrite: bool,
) -> _T:
    """Write the bundle of a served model and its content space; `export_bundle` describes the arguments.

    Returns:
        The result of ``load``, which is called with the new bundle's directory before that gets its name.

    Raises:
        BundleError: something is at ``path`` already, nothing can be written there, a served weight is
            not finite, or the new bundle does not load.
    """
    check_finite(model.weights, "the served weights")
    contents, signatures, golden = uninterrupted(lambda: _programs(model, k_max))
    description = {
        "model": model.spec.to_json(),
        "source": dict(model.source),
        "schema": model.schema.to_json(),
        "k_max": k_max,
        "programs": signatures,
        "metrics": dict(metrics),
        "notes": dict(notes),
    }
    space.write(description, contents)
    try:
        contents[CONFIG] = json.dumps(description, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BundleError(f"metrics or notes cannot be written as JSON: {error}.") from error
    contents[WEIGHTS] = save_safetensors(dict(model.weights))
    contents[GOLDEN] = save_safetensors(golden)
    header = {"jax": jax.__version__, "kernel_abi": KERNEL_ABI}
    return files.write_bundle_files(path, contents, header, load, overwrite=overwrite)


def _programs(
    model: "ServedModel", k_max: int
) -> tuple[dict[str, bytes], dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Return the programs by the names of their files, their signatures, and golden vectors."""
    contents: dict[str, bytes] = {}
    signatures: dict[str, dict[str, Any]] = {}
    # Rows, states and scores are of 32 bits at most, whatever JAX_ENABLE_X64 says for the process.
    with jax.enable_x64(False):
        for stage in files.stages(extends=bool(model.kept_columns)):
            signatures[stage] = {}
            for kind, (content, signature) in _export_stage(model, stage, k_max).items():
                contents[f"programs/{stage}.{kind}"] = content
                signatures[stage][kind] = signature.to_json()
        check_wanted()
        return contents, signatures, _golden_vectors(model, k_max)


def _export_stage(
    model: "ServedModel", stage: Stage, k_max: int
) -> dict[ProgramKind, tuple[bytes, Signature]]:
    """Return a stage's programs. Without a choice of kernels in it, it is traced once for all of them."""
    smallest = -(-k_max // 16) * 16
    constraints = {"n": ("mod(n, 16) == 0", f"n >= {smallest}"), "p": ("p <= l",)}
    dims = _DIMS[stage]
    symbols = export.symbolic_shape(
        ", ".join(dims), constraints=[text for name in dims for text in constraints.get(name, ())]
    )
    found: dict[ProgramKind, tuple[bytes, Signature]] = {}
    exported: Export | None = None
    for kind in KINDS:
        check_wanted()
        native = kind == "native"
        if native and not kernels.implementations()["native"]:
            continue
        # Scores must not depend on the platform's idea of a fast float32 product.
        with (
            kernels.use("native" if native else "reference") as choice,
            jax.default_matmul_precision("highest"),
        ):
            if exported is None:
                inputs = _inputs(model, stage, kind, dict(zip(dims, symbols, strict=True)))
                function = _function(model, stage, kind, k_max)
                exported = exporter(function, _weights(model, stage), inputs, dims=dims)
            found[kind] = exported(_PLATFORMS[kind], kernels.CUSTOM_CALLS if native else ())
        if stage == "stage" or choice.asked:
            exported = None
    return found


def _inputs(model: "ServedModel", stage: Stage, kind: ProgramKind, dims: Mapping[str, Any]) -> Tree:
    """Return the shapes of a stage's inputs for sizes that may be symbolic."""
    if stage in ("behaviour", "item"):
        return {"item": model.item_inputs_spec(dims["m"])}
    if stage in ("user", EXTEND):
        b, length = dims["b"], dims["l"]
        given = {"user": model.user_inputs_spec(b), **model.histories_spec(b, length)}
        if stage == EXTEND:
            given["long"] = given["long"] | spec_of(model.kept_columns, b, length)
            given["new"] = jax.ShapeDtypeStruct((dims["p"],), np.dtype(np.int32))
        return given
    n = dims["n"]
    state = {
        name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)
        for name, spec in model.state_spec(dims["l"]).items()
    }
    given = {"state": state, "context": model.context_spec(), "pair": model.pair_spec(n)}
    if kind == "portable":
        return {**given, "rows": model.rows_spec(n), "valid": model.valid_spec(n)}
    handle = jax.ShapeDtypeStruct((2,), np.dtype(np.uint32))
    return {
        **given, "index": handle, "missing": handle,
        "ids": jax.ShapeDtypeStruct((n, 2), np.dtype(np.uint32)),
        "count": jax.ShapeDtypeStruct((), np.dtype(np.int32)),
    }  # fmt: skip


def _function(model: "ServedModel", stage: Stage, kind: ProgramKind, k_max: int) -> Any:
    """Return a stage as a function from weights and nested inputs to nested outputs.

    The real-time stage takes a user state as the user stage gives it for one user, with its leading axis,
    and returns the number of valid candidates without a score (``unscored``). Its portable program takes item
    rows and a mask of the candidates; its native one takes ids and the handle of the cache that holds the
    rows, and returns each id's ``status``, see `cached_interaction`.
    """
    if stage in ("behaviour", "item"):
        program = model.behaviour if stage == "behaviour" else model.item
        return lambda weights, inputs: program(weights, inputs.get("item", {}))
    if stage in ("user", EXTEND):

        def of_users(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tree:
            user, short, long = (inputs.get(name, {}) for name in ("user", "short", "long"))
            given = user, short, inputs.get("short_type"), long, inputs.get("long_type")
            if stage == EXTEND:
                return model.extend(weights, *given, inputs["new"])
            return model.user(weights, *given)

        return of_users

    def ranked(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tree:
        state = {name: leaf[0] for name, leaf in inputs["state"].items()}
        given = inputs.get("context", {}), inputs.get("pair", {})
        extra: Tree = {}
        if kind == "native":
            score, logits, status = model.cached_scores(weights, state, inputs, *given)
            extra, valid = {"status": status}, status >= np.uint8(kernels.RANKABLE)
        else:
            valid = inputs["valid"]
            score, logits = model.stage_scores(weights, state, inputs["rows"], valid, *given)
        best, order = kernels.top_k(score, k_max)
        heads = jax.nn.sigmoid(jax.numpy.take(logits, order, axis=0, mode="clip"))
        unscored = jax.numpy.sum(valid & jax.numpy.isneginf(score), dtype=jax.numpy.int32)
        return {"order": order, "score": best, "heads": heads, "unscored": unscored, **extra}

    return ranked


def _golden_vectors(model: "ServedModel", k_max: int) -> dict[str, np.ndarray]:
    """Draw inputs of every stage and compute its outputs by the reference implementation.

    The sizes are those of an engine's smallest bucket, so that proving a program compiles nothing extra.
    """
    rng = np.random.default_rng(0)
    schema = model.schema
    vectors: dict[str, np.ndarray] = {}

    def run(stage: Stage, inputs: Tree) -> dict[str, np.ndarray]:
        function = jax.jit(_function(model, stage, "portable", k_max))
        with kernels.use("reference"), jax.default_matmul_precision("highest"):
            outputs = flatten(function(_weights(model, stage), inputs))
        given = {path: np.array(array, order="C") for path, array in flatten(inputs).items()}
        computed = {path: np.asarray(array) for path, array in outputs.items()}
        vectors.update({f"{stage}/in/{path}": array for path, array in given.items()})
        vectors.update({f"{stage}/out/{path}": array for path, array in computed.items()})
        return computed

    items = {"item": sample_items(schema, model.spec.content_width, _GOLDEN_ITEMS, rng)}
    behaviours, rows = run("behaviour", items), run("item", items)
    sequences: dict[str, Any] = {}
    for name, spec in model.histories_spec(1, model.spec.long_length).items():
        if name.endswith("_type"):
            sequences[name] = sample_types(schema, spec.shape[1], rng)
        elif spec:
            sequences[name] = sample_sequence(behaviours, spec, rng)
    users = {"user": sample_group(schema, "user", (1,), rng), **sequences}
    state = run("user", users)
    n = -(-k_max // 16) * 16
    chosen = rng.integers(0, _GOLDEN_ITEMS, n)
    raw = {f"raw_{name}": np.abs(rng.normal(size=n)).astype(np.float32) for name in model.score.raw}
    run(
        "stage",
        {
            "state": state,
            "rows": {column: rows[column][chosen] for column in model.rows_spec(1)},
            "valid": rng.random(n) < 0.9,
            "context": sample_group(schema, "context", (), rng),
            "pair": {**sample_group(schema, "pair", (n,), rng), **raw},
        },
    )
    if model.kept_columns:
        length = model.spec.long_length
        kept = {
            name: rng.normal(size=spec.shape).astype(spec.dtype)
            for name, spec in spec_of(model.kept_columns, 1, length).items()
        }
        new = np.arange(min(NEWEST, length), dtype=np.int32)
        run(EXTEND, {**users, "long": {**sequences["long"], **kept}, "new": new})
    return vectors


def _weights(model: "ServedModel", stage: Stage) -> dict[str, np.ndarray]:
    return model.weights_of("user" if stage == "extend" else stage)
