"""Setting of the C library's allocator that keeps memory which training frees and takes at every step."""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Of mallopt(3) in glibc."""
_MOST = 2**31 - 1
_AHEAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc keep memory that is freed, for the whole process and from now on.

    By default glibc returns large arrays to the system at once, which supplies new ones page by page, each
    filled with zeros. Training on a CPU takes some 50 MB at every step; with the memory kept it reads 1.6
    times as many examples a second (``aif`` on KuaiRand, two cores; `bench/records` has the measurement).

    The process grows to the most that it ever held at once and stays there, so `aif_jax.training.train`
    leaves the choice to its caller; ``aif train`` and ``aif evaluate`` call this. Serving gains nothing: a
    warm engine's requests cause no page faults.

    Returns:
        Whether the C library accepted the setting; other libraries than glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = {_M_MMAP_THRESHOLD: _MOST, _M_TRIM_THRESHOLD: _MOST, _M_TOP_PAD: _AHEAD}
    accepted = [mallopt(name, value) == 1 for name, value in wanted.items()]
    return all(accepted)
