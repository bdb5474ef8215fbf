"""Traces and compilations that no signal interrupts.

Python runs the handlers of signals between two steps of the main thread. What a handler raises, as that of
Ctrl-C does, comes up in any line of it. JAX does not survive that in the middle of a trace: its caches keep
half an entry, so that the next program of the process fails ("Recursively calling ...", or a tracer leaks) or
ends it by a segmentation fault. So traces run in a thread of their own, while the caller waits, and only the
waiting is interrupted. A run that was given up ends at the next one inside of it, or by itself.
"""

import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax

_T = TypeVar("_T")

_CONTEXTS: dict[str, Any] = {
    "jax_debug_infs": jax.debug_infs,
    "jax_debug_nans": jax.debug_nans,
    "jax_default_device": jax.default_device,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
}
"""Settings of JAX that a caller may have set for its own thread only, and the contexts that set them."""


class _GivenUpError(BaseException):
    """Ends a run that nobody waits for."""


class _Run(Generic[_T]):
    """A function that runs in a thread, and what came of it."""

    def __init__(self, function: Callable[[], _T]):
        self._function = function
        self._context = contextvars.copy_context()
        self._settings = {name: jax.config.values[name] for name in _CONTEXTS}
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self.running = threading.Lock()
        """Held while the function runs."""
        self.given_up = False

    def start(self) -> None:
        """Start the thread, for which the process waits when it ends."""
        threading.Thread(target=self._context.run, args=(self._main,), name="aif-compile").start()

    def result(self) -> _T:
        """Wait for the end; return what the function returned, or raise what it raised."""
        self._ended.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback holds this frame, which would hold it
        return self._result[0]

    def _main(self) -> None:
        with self.running:
            _here.run = self
            try:
                check_wanted()
                with contextlib.ExitStack() as settings:
                    for name, value in self._settings.items():
                        if value != jax.config.values[name]:
                            settings.enter_context(_CONTEXTS[name](value))
                    self._result.append(self._function())
            except BaseException as error:
                self._error = error
        self._ended.set()


class _Here(threading.local):
    run: _Run[Any] | None = None
    """The run whose thread this is."""


_here = _Here()
_given_up: list[_Run[Any]] = []


def uninterrupted(function: Callable[[], _T]) -> _T:
    """Return ``function()``, computed in a thread of its own with the settings and context of the caller.

    What interrupts the caller, such as Ctrl-C, is raised at once; the function then goes on until the next
    call of this one that it makes, and what it returns is dropped. The next caller waits for that.

    Args:
        function: traces or compiles. Files that appear although the caller was interrupted would surprise, so
            it writes none.
    """
    if _here.run is not None:
        check_wanted()
        return function()
    while _given_up:
        with _given_up[0].running:
            pass
        with contextlib.suppress(IndexError):  # another thread was first
            _given_up.pop(0)
    run = _Run(function)
    try:
        run.start()
        return run.result()
    except BaseException:
        run.given_up = True
        if run.running.locked():
            _given_up.append(run)
        raise


def check_wanted() -> None:
    """End the run that this thread is, if nobody waits for it any more."""
    if _here.run is not None and _here.run.given_up:
        raise _GivenUpError
