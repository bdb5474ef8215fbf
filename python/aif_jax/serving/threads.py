"""The thread budget: how many threads compute, by the cores that the process gets. The only place that says.

Three parties compute: XLA's pool, which all programs of the process share and which is made for the cores (or
for ``NPROC``); the engine's compute threads, each of which holds one program in flight and works while it
waits for the pool; and callers, who take a compute thread's seat while they rank. One program more in flight
than there are cores keeps them busy while another's Python waits for the interpreter: on two cores, three in
flight served 8 % more requests than two with no worse latency under light load, four 15 % more with a worse
one.
"""

import math

from aif_jax import machine

_MOST = 8
"""Cores beyond which more programs in flight bring nothing: each uses the whole pool."""


def usable_cores(cores: int, quota: float | None) -> float:
    """Return how many cores' worth of time a process gets: those it may run on, within its group's quota."""
    return float(cores) if quota is None else min(float(cores), quota)


def programs_in_flight(usable: float) -> int:
    """Return how many compute threads suit so many usable cores."""
    return min(max(1, math.floor(usable)), _MOST) + 1


def default_compute_threads() -> int:
    """Return how many compute threads suit this process."""
    return programs_in_flight(usable_cores(machine.cores(), machine.cpu_quota()))
