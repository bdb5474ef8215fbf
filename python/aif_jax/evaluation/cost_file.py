"""Costs that were measured once, kept with what they are of, so that no other table takes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aif_jax.data.digests import digest_of_schema
from aif_jax.errors import ConfigError, DataError
from aif_jax.evaluation.cost import Cost
from aif_jax.evaluation.study import Study
from aif_jax.evaluation.whole_file import write_whole


def write_costs(path: Path, study: Study, costs: Mapping[str, Cost]) -> None:
    """Keep costs of the variants of a study."""
    written = {**_of(study), "costs": {name: cost.to_json() for name, cost in costs.items()}}
    write_whole(path, json.dumps(written, indent=1).encode())


def read_costs(path: Path, study: Study) -> dict[str, Cost]:
    """Return the costs that were kept of the variants of a study; none if there is no file.

    Raises:
        ConfigError: they are of other data, or of other models of these names.
        DataError: the file cannot be read, or is of another release.
    """
    if not path.exists():
        return {}
    again = "Measure again with --cost, or remove it."
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
        costs = {name: Cost.from_json(values) for name, values in kept["costs"].items()}
        models = dict(kept["models"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as costs of this release ({error!r}). {again}") from error
    mine = json.loads(json.dumps(_of(study)))
    differ = [part for part in ("data", "features") if kept.get(part) != mine[part]]
    differ += [name for name, model in mine["models"].items() if models.get(name, model) != model]
    if differ:
        raise ConfigError(f"{path}: holds costs that differ in {', '.join(differ)} from this study. {again}")
    return {name: cost for name, cost in costs.items() if name in mine["models"]}


def _of(study: Study) -> dict[str, Any]:
    """Return what costs depend on: widths of encoded features, vocabularies, and the models."""
    return {
        "data": study.dataset.name,
        "features": digest_of_schema(study.dataset.fit_schema()),
        "models": {variant.name: variant.config(study.model).to_json() for variant in study.variants},
    }
