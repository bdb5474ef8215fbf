"""Scheduler: from submit to result, against the standard library's thread pool."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from aif_jax import _native

TASKS = 200


@pytest.mark.benchmark(group="200 small tasks, submit to result")
def test_scheduler(benchmark):
    with _native.Scheduler(blocking_threads=2, compute_threads=1) as scheduler:

        def run():
            futures = [scheduler.submit("blocking", abs, -n) for n in range(TASKS)]
            return [future.result() for future in futures]

        assert run() == list(range(TASKS))
        benchmark(run)


@pytest.mark.benchmark(group="200 small tasks, submit to result")
def test_thread_pool_executor(benchmark):
    with ThreadPoolExecutor(2) as pool:

        def run():
            return [future.result() for future in [pool.submit(abs, -n) for n in range(TASKS)]]

        assert run() == list(range(TASKS))
        benchmark(run)
