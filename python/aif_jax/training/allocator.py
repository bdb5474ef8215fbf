"""The C library's allocator, told to keep what training frees at every step and takes again at the next."""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Of mallopt(3) in glibc."""
_MOST = 2**31 - 1
_AHEAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have glibc keep memory that is freed, for the whole process and from now on.

    By default it gives large arrays back to the system at once, which hands the next ones out page by page,
    each filled with zeros. Training on a CPU takes some 50 MB so at every step; without that it sees 1.6
    times as many examples a second (``aif`` on KuaiRand, two cores; ``bench/training_allocator.py``).

    The process grows to the most that it ever held at once and stays there, so `aif_jax.training.train`
    leaves it to its caller; ``aif train`` and ``aif evaluate`` do it. Serving gains nothing: a warm engine's
    requests cause no page faults.

    Returns:
        Whether the C library has been told; other libraries than glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = {_M_MMAP_THRESHOLD: _MOST, _M_TRIM_THRESHOLD: _MOST, _M_TOP_PAD: _AHEAD}
    told = [mallopt(name, value) == 1 for name, value in wanted.items()]
    return all(told)
