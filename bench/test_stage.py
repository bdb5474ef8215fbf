"""The real-time stage at the standard workload, and what people would use instead."""

import pytest

from stage.contenders import HAND_ROLLED, ONNX, SEQUENTIAL, STAGE, contenders_of
from stage.request import TURNS
from stage.xla_simtier import ONE_CORE
from workload import in_precision

PRECISIONS = ("bfloat16", "int8")


@pytest.fixture(scope="module")
def checked(case, tmp_path_factory):
    """Contenders by name, every answer checked against its definition."""
    folder = tmp_path_factory.mktemp("precisions")
    served = {"float32": case.built, **{p: in_precision(case.built, p, folder) for p in PRECISIONS}}
    found = contenders_of(case, served, ONE_CORE, 1)
    return {contender.name: contender for contender in found.contenders}


@pytest.mark.parametrize(
    "name", [STAGE, HAND_ROLLED, SEQUENTIAL, ONNX, *(f"{STAGE}, {precision}" for precision in PRECISIONS)]
)
def test_contender_rank(benchmark, case, checked, name):
    # No two sizes are compared.
    benchmark.group = f"one request after retrieval, {case.n:,} candidates, history {case.length:,}"
    turn = iter(range(1 << 60))
    benchmark(lambda: checked[name].run(next(turn) % TURNS))
