"""Waiting for a condition that another thread or process brings about."""

import time
from collections.abc import Callable


def wait_for(holds: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return once a condition holds; fail after a time that no busy machine needs."""
    end = time.perf_counter() + timeout_s
    while not holds():
        assert time.perf_counter() < end, f"not within {timeout_s:g} s"
        time.sleep(0.005)
