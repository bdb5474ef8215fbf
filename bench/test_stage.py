"""The real-time stage at the standard workload, and what people would use instead, weaker models among it."""

import pytest

from stage.contenders import COLD, HAND_ROLLED, ONNX, SEQUENTIAL, STAGE, contenders_of
from stage.request import TURNS
from stage.staged import stage_contender
from stage.timing import check_same, overlap
from stage.weaker import two_tower
from stage.xla_simtier import ONE_CORE
from workload import in_precision

GROUP = "one request after retrieval"
CONTENDERS = (STAGE, HAND_ROLLED, SEQUENTIAL, ONNX, COLD)


@pytest.fixture(autouse=True)
def group(benchmark, case):
    """Sizes are part of a benchmark's group, so that no two sizes are compared."""
    benchmark.group = f"{GROUP}, {case.n:,} candidates, history {case.length:,}"


@pytest.fixture(scope="module")
def checked(case):
    """Contenders by name, every answer checked against its definition."""
    found = contenders_of(case, {"float32": case.built}, ONE_CORE, 1, only=CONTENDERS)
    return {contender.name: contender for contender in found.contenders}


@pytest.fixture(scope="module")
def towers(case):
    return two_tower(case)


def timed(benchmark, contender, **extra):
    turn = iter(range(1 << 60))
    benchmark.extra_info.update(extra)
    benchmark(lambda: contender.run(next(turn) % TURNS))


@pytest.mark.parametrize("name", CONTENDERS)
def test_contender_rank(benchmark, checked, name):
    timed(benchmark, checked[name])


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_stage_rank_in(benchmark, case, definition, precision, tmp_path):
    stage = stage_contender(case, in_precision(case.built, precision, tmp_path), precision)
    share = overlap(stage, definition)
    timed(benchmark, stage, share_of_the_best=share)


@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_two_towers_rank_in(benchmark, towers, library):
    contender = getattr(towers, library)()
    check_same(contender, towers.definition())
    timed(benchmark, contender, model="another, weaker one")
