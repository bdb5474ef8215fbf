"""The choice of the implementation of a kernel that is traced: native, or the reference that defines it."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from aif_jax.errors import ConfigError
from aif_jax.kernels import ffi

Implementation = Literal["auto", "reference", "native"]

_CHOICES = ("auto", "reference", "native")
_forced: contextvars.ContextVar[Implementation] = contextvars.ContextVar("aif_jax_kernels", default="auto")


@contextlib.contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Force one implementation for every kernel call with ``"auto"``, while the context is open.

    The choice is made when a function is *traced*. A function that was jitted and called before keeps its
    implementation, so open the context around the trace (``jax.jit(f).lower``, ``jax.export.export``).

    Args:
        implementation: ``"reference"`` (pure JAX, any platform), ``"native"`` (CPU only) or ``"auto"``.

    Raises:
        ConfigError: the name is none of the three.
    """
    token = _forced.set(_checked(implementation))
    try:
        yield
    finally:
        _forced.reset(token)


def dispatch(
    implementation: Implementation,
    native: Callable[..., Any],
    reference: Callable[..., Any],
    *operands: jax.Array,
) -> Any:
    """Call the implementation that was asked for.

    ``"auto"`` compiles the native kernel where the program is lowered for a CPU and the reference elsewhere;
    it is the reference everywhere if the native kernels could not be registered (see `implementations`).

    Raises:
        ConfigError: ``"native"`` was asked for and is not registered, or the name is unknown.
    """
    wanted = _checked(implementation)
    if wanted == "auto":
        wanted = _forced.get()
    if wanted == "reference":
        return reference(*operands)
    if wanted == "native":
        ffi.require()
        return native(*operands)
    if not ffi.register():
        return reference(*operands)
    return jax.lax.platform_dependent(*operands, cpu=native, default=reference)


def _checked(implementation: str) -> Implementation:
    if implementation not in _CHOICES:
        raise ConfigError(
            f"implementation: got {implementation!r}, expected one of {', '.join(map(repr, _CHOICES))}."
        )
    return implementation  # type: ignore[return-value]
