"""A report of the kernels of this process, for logs, bug reports and the loader of a bundle."""

from typing import Any

from aif_jax import _native
from aif_jax.kernels import ffi


def implementations() -> dict[str, Any]:
    """Return the implementation that ``"auto"`` means on a CPU, and why.

    Returns:
        a dictionary of ``"native"`` (whether it is the native kernels), ``"reason"`` in words, ``"kernels"``
        (instruction set by kernel) and ``"cpu_features"`` (whether the CPU has them, by name);
        the last two are empty if XLA refused the kernels. On other platforms ``"auto"`` is always
        the reference.

    Raises:
        ConfigError: the environment variable ``AIF_JAX_KERNELS`` names kernels that this CPU cannot run.
    """
    registered = ffi.register()
    report: dict[str, Any] = {"native": registered, "reason": ffi.why(), "kernels": {}, "cpu_features": {}}
    if registered:
        report["kernels"] = _native.chosen_kernels()
        report["cpu_features"] = _native.cpu_features()
    return report
