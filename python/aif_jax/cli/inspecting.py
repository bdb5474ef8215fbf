"""`aif inspect`: a description of the contents of a path."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from aif_jax.bundle import Bundle
from aif_jax.config import ModelSpec
from aif_jax.errors import AifError, ItemIndexError
from aif_jax.features import ContentSpace, Schema
from aif_jax.features.schema import GROUPS
from aif_jax.models.store import CONFIG, load_model, weights_of
from aif_jax.nearline.archive import files_of
from aif_jax.nearline.row_file import open_row_file


def run_inspect(path: Path, *, console: Console) -> None:
    """Describe a path: a trained model, a bundle, an index folder, one table of it, or an archive.

    Raises:
        AifError: it is none of these.
    """
    if not path.exists():
        raise AifError(f"{path}: does not exist; give the path of a model, a bundle, an index or an archive.")
    if path.is_dir() and (path / "manifest.json").exists():
        _bundle(Bundle.load(path), console)
    elif path.is_dir() and ((path / CONFIG).exists() or (path / "model" / CONFIG).exists()):
        model, description = load_model(path if (path / CONFIG).exists() else path / "model")
        weights = weights_of(model)
        console.print(f"[bold]a trained {model.config.architecture} model[/], {_count(weights)} parameters")
        _model(model.config.spec("float32"), model.schema, model.content_space, console)
        console.print(f"notes: {json.dumps(description['notes'])}", highlight=False)
        console.print(f"quality when it was saved: {json.dumps(description['metrics'])}", highlight=False)
    elif path.is_dir() and list(path.glob("*.aifrows")):
        for table in sorted(path.glob("*.aifrows")):
            _rows(table, console)
    elif path.is_dir() and files_of(path):
        _archive(path, console)
    elif path.is_file():
        _rows(path, console)
    else:
        raise AifError(
            f"{path}: not a model, a bundle or an index; expected what one of the `aif` commands wrote."
        )


def _bundle(bundle: Bundle, console: Console) -> None:
    console.print(f"[bold]a bundle[/], version {bundle.version}")
    console.print(bundle.explain(), markup=False, highlight=False)
    weights = {name: np.asarray(value) for name, value in bundle.weights.items()}
    console.print(f"{_count(weights)} parameters; at most {bundle.k_max:,} results a request")
    console.print(f"item rows in {bundle.precision}", highlight=False)
    spec = bundle.spec
    rungs = ", ".join(map(str, spec.rungs))
    console.print(f"answers on rung {rungs} of the deadline ladder", highlight=False)
    _model(spec, bundle.schema, bundle.content_space, console)
    console.print(f"notes: {json.dumps(dict(bundle.notes))}", highlight=False)
    console.print(f"quality when it was exported: {json.dumps(dict(bundle.metrics))}", highlight=False)


def _model(spec: ModelSpec, schema: Schema, space: ContentSpace, console: Console) -> None:
    console.print(f"architecture {spec.name}; blocks {', '.join(spec.blocks) or 'not named'}")
    console.print(
        f"reads {spec.short_length} recent and {spec.long_length} long-term behaviours of types "
        f"{', '.join(schema.behaviour_types)}; heads {', '.join(spec.heads)}; score = {spec.score}",
        highlight=False,
    )
    console.print(f"content: {space}", markup=False, highlight=False)
    table = Table("group", "feature", "kind", "rows of its table")
    for group in GROUPS:
        for feature in schema.features(group):
            size = getattr(feature, "size", None)
            table.add_row(group, feature.name, type(feature).__name__, "" if size is None else f"{size:,}")
    console.print(table)


def _rows(path: Path, console: Console) -> None:
    file = open_row_file(path)
    bytes_each = {name: dtype.itemsize * int(np.prod(shape)) for name, (dtype, shape) in file.columns.items()}
    ids = "string ids" if file.names is not None else "integer ids"
    console.print(
        f"[bold]{file.kind.replace('_', ' ')}[/] {path.name}: {len(file.keys):,} rows under {ids}, made by "
        f"bundle {file.version[:12]}, {file.row_bytes} bytes a row",
        highlight=False,
    )
    table = Table("column", "dtype", "shape", "bytes a row")
    for name, (dtype, shape) in file.columns.items():
        table.add_row(name, dtype.name, str(list(shape)), str(bytes_each[name]))
    console.print(table)


def _archive(path: Path, console: Console) -> None:
    """Describe the files of an archive, and name broken snapshots."""
    console.print(f"[bold]an archive[/], {path}: snapshots, each with the log of the changes since")
    for number, suffix in files_of(path):
        file = path / f"{number:06}.{suffix}"
        if suffix == "log":
            console.print(f"log {number}: {file.stat().st_size:,} bytes", highlight=False)
            continue
        try:
            _rows(file, console)
        except ItemIndexError as error:
            console.print(f"[red]broken[/]: {error}", highlight=False)


def _count(weights: dict[str, np.ndarray]) -> str:
    return f"{sum(value.size for value in weights.values()):,}"
