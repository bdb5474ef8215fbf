"""Costs are those of the study that reads them, or refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aif_jax.errors import ConfigError, DataError
from aif_jax.evaluation.cost_file import read_costs, write_costs
from support.studies import cost_of, make, small_dataset


def test_what_was_kept_is_read_for_the_variants_of_the_study(tmp_path: Path) -> None:
    mine, file = make(small_dataset(), tmp_path), tmp_path / "cost.json"
    assert read_costs(file, mine) == {}
    costs = {"cold": cost_of("engine", 2.0), "aif": cost_of("sequential", 3.0)}
    write_costs(file, mine, costs)
    assert read_costs(file, mine) == costs
    assert read_costs(file, make(small_dataset(), tmp_path, "aif")) == {"aif": costs["aif"]}


def test_costs_of_something_else_are_refused(tmp_path: Path) -> None:
    dataset, file = small_dataset(), tmp_path / "cost.json"
    write_costs(file, make(dataset, tmp_path), {"aif": cost_of("engine", 2.0)})
    with pytest.raises(ConfigError, match=r"costs that differ in aif, cold from this study"):
        read_costs(file, make(dataset, tmp_path, "aif,cold", changes={"width": 16}))
    dearer = {**dataset.items, "price": np.asarray(dataset.items["price"]) + 1.0}
    less = dataclasses.replace(dataset, items=dearer)
    with pytest.raises(ConfigError, match="differ in features"):
        read_costs(file, make(less, tmp_path))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"aif": {"way": "engine"}}', '{"models": {}, "costs": {"aif": {}}}']
)
def test_a_file_of_another_release_says_so(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cost.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"of this release .* Measure again with --cost"):
        read_costs(file, make(small_dataset(), tmp_path))
