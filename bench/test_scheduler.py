"""Scheduler: from submit to result, against the standard library's thread pool."""

from concurrent.futures import ThreadPoolExecutor

from aif_jax import _native


def test_scheduler_submit_small_tasks(benchmark, sizes):
    benchmark.group = f"{sizes.tasks} small tasks, submit to result"
    with _native.Scheduler(blocking_threads=2, compute_threads=1) as scheduler:

        def run():
            futures = [scheduler.submit("blocking", abs, -n) for n in range(sizes.tasks)]
            return [future.result() for future in futures]

        assert run() == list(range(sizes.tasks))
        benchmark(run)


def test_thread_pool_submit_small_tasks(benchmark, sizes):
    benchmark.group = f"{sizes.tasks} small tasks, submit to result"
    with ThreadPoolExecutor(2) as pool:

        def run():
            return [future.result() for future in [pool.submit(abs, -n) for n in range(sizes.tasks)]]

        assert run() == list(range(sizes.tasks))
        benchmark(run)


def test_scheduler_run_small_tasks(benchmark, sizes):
    benchmark.group = f"{sizes.tasks} small tasks, submit to result"
    with _native.Scheduler(blocking_threads=2, compute_threads=1) as scheduler:

        def run():
            return [scheduler.run("blocking", abs, -n) for n in range(sizes.tasks)]

        assert run() == list(range(sizes.tasks))
        benchmark(run)
