"""An embedding cache in the child of a fork, where a lock may be held by a thread that does not exist."""

import subprocess
import sys
import textwrap


def run(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_fork_child_that_uses_a_cache_of_the_parent_is_refused_by_every_method():
    lines = run("""
        import os, signal, threading
        import numpy as np
        from aif_jax._native import EmbeddingCache, RowLayout
        from aif_jax.errors import ProcessError

        layout = RowLayout([("x", "float32", (512,))])
        cache = EmbeddingCache(layout)
        keys = np.arange(20_000, dtype=np.uint64)
        rows = {"x": np.zeros((20_000, 512), np.float32)}
        cache.upsert(keys, rows)
        batch, _ = cache.gather(keys[:100])
        writing = threading.Event()

        def write():
            while True:
                cache.upsert(keys, rows)
                writing.set()

        # Beside the fork these hold the locks of the cache and of its pool most of the time.
        for _ in range(2):
            threading.Thread(target=write, daemon=True).start()
        writing.wait()
        one, out = keys[:1], {"x": rows["x"][:1]}
        uses = {
            "upsert": lambda: cache.upsert(one, out), "delete": lambda: cache.delete(one),
            "contains": lambda: cache.contains(one), "gather": lambda: cache.gather(one),
            "gather_column": lambda: cache.gather_column(one, "x"), "get": lambda: cache.get(0),
            "snapshot": cache.snapshot, "write_rows": lambda: cache.write_rows("/dev/null", print),
            "ages_s": lambda: cache.ages_s(one), "keys": cache.keys, "stats": cache.stats,
            "memory_usage": cache.memory_usage, "clear": cache.clear, "__len__": lambda: len(cache),
            "handle": lambda: cache.handle,
        }
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            public = {name for name in dir(EmbeddingCache) if not name.startswith("_")} | {"__len__"}
            print(sorted(public - set(uses)), flush=True)
            for name, use in uses.items():
                try:
                    use()
                    print(name, "was not refused", flush=True)
                except ProcessError as error:
                    assert "forked" in str(error) and str(os.getppid()) in str(error), error
            print(repr(cache).replace(str(os.getppid()), "N"), flush=True)
            # The lease goes back to no pool, and the cache is not freed.
            del batch
            del cache
            own = EmbeddingCache(layout)
            own.upsert(one, out)
            print(len(own), own.handle > 0, flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os._exit(0)
        """)
    assert lines == [
        # These two take no lock: a constructor of a new cache, and what the cache was made of.
        "['layout', 'over_file']",
        "<EmbeddingCache of process N, unusable after a fork>",
        "1 True",
        "0",
    ]
