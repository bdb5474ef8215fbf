"""Every kept input of the fuzz targets: seeds, and what fuzzing found."""

import pytest

from fuzz.run import NAMES
from fuzz.seeds import read_seeds
from fuzz.targets import TARGETS


def test_targets_all_have_a_name_that_the_runner_knows() -> None:
    assert tuple(TARGETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_target_kept_inputs_are_refused_or_come_back(name: str) -> None:
    seeds = read_seeds(name)
    assert len(seeds) >= 3
    for data in seeds:
        TARGETS[name](data)
