"""The real-time stage at the standard workload, and what people would use instead, weaker models among it."""

from importlib.metadata import version

import pytest

from stage.answers import check_same, overlap
from stage.contenders import COLD, HAND_ROLLED, ONNX, SEQUENTIAL, STAGE, contenders_of
from stage.request import TURNS
from stage.staged import stage_contender
from stage.two_tower import CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH, recall, two_tower
from stage.xla_simtier import ONE_CORE
from workload import in_precision

GROUP = "one request after retrieval"


@pytest.fixture(autouse=True)
def group(benchmark, case):
    """Sizes are part of a benchmark's group, so that no two sizes are compared."""
    benchmark.group = f"{GROUP}, {case.n:,} candidates, history {case.length:,}"


@pytest.fixture(scope="module")
def checked(case, sizes):
    """Contenders by name, every answer checked against its definition."""
    found = contenders_of(case, {"float32": case.built}, ONE_CORE, 1, only=sizes.rivals)
    return {contender.name: contender for contender in found.contenders}


@pytest.fixture(scope="module")
def towers(case):
    return two_tower(case)


def timed(benchmark, contender, **extra):
    turn = iter(range(1 << 60))
    benchmark.extra_info.update(extra)
    benchmark(lambda: contender.run(next(turn) % TURNS))


@pytest.mark.parametrize("name", [STAGE, HAND_ROLLED, SEQUENTIAL, ONNX, COLD])
def test_a_request_is_ranked_by(benchmark, checked, name):
    if name not in checked:
        pytest.skip("left out at small sizes; the comparison of the stage checks it")
    timed(benchmark, checked[name])


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_request_is_ranked_by_the_stage_in(benchmark, case, definition, precision, tmp_path):
    stage = stage_contender(case, in_precision(case.built, precision, tmp_path), precision)
    share = overlap(stage, definition)
    timed(benchmark, stage, share_of_the_best=share)


@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_a_request_is_ranked_by_two_towers_in(benchmark, towers, library):
    contender = getattr(towers, library)()
    check_same(contender, towers.definition())
    timed(benchmark, contender, model="another, weaker one")


def test_the_best_of_all_items_are_found_by_usearch(benchmark, towers):
    contender = towers.ann()
    settings = f"usearch {version('usearch')}, M {CONNECTIVITY}, built with {EXPANSION_ADD}, searched with "
    settings += f"{EXPANSION_SEARCH}"
    share = recall(towers, contender)
    timed(benchmark, contender, model="another, weaker one", settings=settings, recall=share)
