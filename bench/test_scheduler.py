"""Scheduler: from submit to result, against the standard library's thread pool."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from aif_jax import _native
from compare_scheduler import main, quantile


def test_small_tasks_are_submitted_to_the_scheduler(benchmark, sizes):
    benchmark.group = f"{sizes.tasks} small tasks, submit to result"
    with _native.Scheduler(blocking_threads=2, compute_threads=1) as scheduler:

        def run():
            futures = [scheduler.submit("blocking", abs, -n) for n in range(sizes.tasks)]
            return [future.result() for future in futures]

        assert run() == list(range(sizes.tasks))
        benchmark(run)


def test_small_tasks_are_submitted_to_a_thread_pool(benchmark, sizes):
    benchmark.group = f"{sizes.tasks} small tasks, submit to result"
    with ThreadPoolExecutor(2) as pool:

        def run():
            return [future.result() for future in [pool.submit(abs, -n) for n in range(sizes.tasks)]]

        assert run() == list(range(sizes.tasks))
        benchmark(run)


def test_small_tasks_are_run_by_the_scheduler_in_the_callers_thread(benchmark, sizes):
    benchmark.group = f"{sizes.tasks} small tasks, submit to result"
    with _native.Scheduler(blocking_threads=2, compute_threads=1) as scheduler:

        def run():
            return [scheduler.run("blocking", abs, -n) for n in range(sizes.tasks)]

        assert run() == list(range(sizes.tasks))
        benchmark(run)


@pytest.mark.program
@pytest.mark.benchmark(group="the comparison of the scheduler, --quick, once")
def test_contenders_answer_alike(benchmark, tmp_path, capsys):
    record = tmp_path / "record.md"
    page = benchmark.pedantic(main, (["--quick", "--record", str(record)],), rounds=1)
    assert "its times mean nothing" in page
    assert record.read_text() == page
    assert page in capsys.readouterr().out
    # Two sizes at idle, throughput, and the mix in all and of three kinds.
    assert page.count("\n### ") == 7
    assert page.count("| Scheduler.run |") == 3
    for name in ("Scheduler.submit", "ThreadPoolExecutor", "asyncio.to_thread"):
        assert page.count(f"| {name} |") == 7


def test_quantiles_are_values_and_infinite_if_too_many_never_ran():
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, q) for q in (0.5, 0.99, 0.999)] == [50.0, 99.0, 100.0]
    assert quantile([1.0] * 98 + [math.inf] * 2, 0.99) == math.inf
