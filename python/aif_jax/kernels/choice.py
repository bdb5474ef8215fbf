"""The choice of the implementation of a kernel that is traced: native, or the reference that defines it."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from aif_jax.errors import ConfigError
from aif_jax.kernels import ffi

Implementation = Literal["auto", "reference", "native"]

_CHOICES = ("auto", "reference", "native")


@dataclasses.dataclass
class Choice:
    """The implementation that a context forces, and whether a kernel that was traced in it was left to it."""

    implementation: Implementation
    asked: bool = False


_forced: contextvars.ContextVar[Choice | None] = contextvars.ContextVar("aif_jax_kernels", default=None)


@contextlib.contextmanager
def use(implementation: Implementation) -> Iterator[Choice]:
    """Force one implementation for every kernel call with ``"auto"``, while the context is open.

    The choice is made when a function is *traced*. A function that was jitted and called before keeps its
    implementation, so open the context around the trace (``jax.jit(f).lower``, ``jax.export.export``).

    Args:
        implementation: ``"reference"`` (pure JAX, any platform), ``"native"`` (CPU only) or ``"auto"``.

    Raises:
        ConfigError: the name is none of the three.
    """
    choice = Choice(_checked(implementation))
    token = _forced.set(choice)
    try:
        yield choice
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
        choice = _forced.get() or Choice("auto")
        choice.asked, wanted = True, choice.implementation
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
