"""Fixtures of the benchmarks. Each benchmark checks its answer before it is timed."""

import pytest

from workload import Built, W, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(W, tmp_path_factory.mktemp("workload"))
