"""Waiting for a condition that another thread or process brings about."""

import time
from collections.abc import Callable


def eventually(holds: Callable[[], object], within_s: float = 60.0) -> bool:
    """Wait until a condition holds, for a time that no busy machine needs; return whether it did."""
    end = time.perf_counter() + within_s
    while not holds():
        if time.perf_counter() > end:
            return False
        time.sleep(0.001)
    return True
