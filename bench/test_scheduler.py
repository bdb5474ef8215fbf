"""Scheduler: from submit to result, against the standard library's thread pool."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from aif_jax import _native


def submitted(pool, tasks, *queue):
    futures = [pool.submit(*queue, abs, -n) for n in range(tasks)]
    return [future.result() for future in futures]


WAYS = {
    "thread pool, submit": lambda scheduler, pool, tasks: submitted(pool, tasks),
    "scheduler, submit": lambda scheduler, pool, tasks: submitted(scheduler, tasks, "blocking"),
    "scheduler, run": lambda scheduler, pool, tasks: [
        scheduler.run("blocking", abs, -n) for n in range(tasks)
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_small_tasks_return_results(benchmark, sizes, way):
    benchmark.group = f"{sizes.tasks} small tasks, submit to result"
    scheduler = _native.Scheduler(blocking_threads=2, compute_threads=1)
    with scheduler, ThreadPoolExecutor(2) as pool:
        assert WAYS[way](scheduler, pool, sizes.tasks) == list(range(sizes.tasks))
        benchmark(WAYS[way], scheduler, pool, sizes.tasks)
