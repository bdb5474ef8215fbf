from pathlib import Path

import pytest

from aif_jax.data import Dataset
from aif_jax.fitting import Run, fit
from support.fitted import BRIEF, SMALL, shop


@pytest.fixture(scope="session")
def data() -> Dataset:
    return shop()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fitted") / "run"


@pytest.fixture(scope="session")
def run(data: Dataset, folder: Path) -> Run:
    """A run that was saved."""
    return fit(data, model=SMALL, training=BRIEF, budget=None, out=folder, progress=False)
