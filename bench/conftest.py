"""Fixtures of the benchmarks. Each benchmark checks its answer before it is timed.

`pytest bench` times everything; with `--quick` every benchmark runs once, over small sizes, and only checks.
"""

import dataclasses

import pytest

from stage.request import Case
from stage.sequential import as_defined
from stage.timing import Contender
from workload import SMALL, Built, W, Workload, build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    workload: Workload  # of stage, engine and nearline
    cache_share: float  # of the cache's rows
    tasks: int  # of the scheduler at once
    rows: int  # item rows that nearline computes or writes at once
    train_users: int  # users of the training data


FULL = Sizes(workload=W, cache_share=1.0, tasks=200, rows=8192, train_users=2000)
QUICK = Sizes(workload=SMALL, cache_share=0.01, tasks=50, rows=256, train_users=60)

SECONDS = {
    "test_cache": 30, "test_engine": 40, "test_kernels": 20, "test_nearline": 40, "test_bars": 60,
    "test_programs": 180, "test_scheduler": 5, "test_stage": 90, "test_training": 90,
}  # fmt: skip
"""Time of a file on two cores, in seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: small sizes, once, answers only")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # The whole table is over 200 columns wide; a file of times (--benchmark-json) holds the rest.
    if not any(argument.startswith("--benchmark-columns") for argument in config.invocation_params.args):
        config.option.benchmark_columns = ["median", "iqr", "rounds"]
    # Who asks for a file of times gets one, of the small sizes.
    if config.getoption("--quick") and not config.option.benchmark_json:
        config.option.benchmark_disable = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long = ("program", "thorough")
    left_out = [item for item in items if any(map(item.get_closest_marker, long))]
    if config.getoption("--quick") and left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Announce the benchmarks and their time, before the first one."""
    report = session.config.pluginmanager.get_plugin("terminalreporter")
    files = dict.fromkeys(item.path.stem for item in session.items)
    if report is None or not files:
        return
    if session.config.getoption("--quick"):
        plan = "each once at small sizes, answers only: about a minute on two cores"
    else:
        minutes = max(1, round(sum(SECONDS.get(file, 1) for file in files) / 60))
        plan = f"timed at full sizes: about {minutes} min on two cores (--quick: answers only, one minute)"
    report.ensure_newline()
    report.write_line(f"{len(session.items)} benchmarks of {', '.join(files)}; {plan}.")


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    return QUICK if pytestconfig.getoption("--quick") else FULL


@pytest.fixture(scope="session")
def built(sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(sizes.workload, tmp_path_factory.mktemp("workload"))


@pytest.fixture(scope="session")
def case(built: Built) -> Case:
    return Case(built, built.workload.candidates, built.workload.long_length)


@pytest.fixture(scope="session")
def definition(case: Case) -> Contender:
    return as_defined(case, "linear")
