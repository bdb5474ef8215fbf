"""Processes: objects that stay in the process that made them, since threads do not survive a fork."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from aif_jax.errors import ProcessError

forks = 0
"""Forks between the first process and this one. An object that noted another number is of another process."""

_jax_at: int | None = None
"""The number of forks when this process, or the one that it is a fork of, began to compute with JAX."""


def _forked() -> None:
    global forks
    forks += 1


os.register_at_fork(after_in_child=_forked)

_INSTEAD = (
    "load the bundle and make the engine and its tables in each process, after the fork, and nothing of them "
    "before it; or start processes by multiprocessing.get_context('spawn')."
)


class OfOneProcess:
    """Base of objects that neither a fork nor a pickle takes to another process.

    A subclass calls ``super().__init__()`` and names the methods and properties that are refused in a forked
    child, before they take a lock or call JAX: ``class Table(OfOneProcess, guards=("upsert",))``.
    """

    unpickled: ClassVar[str]
    """Advice to those who pickle one."""

    def __init_subclass__(cls, *, guards: tuple[str, ...] = (), **given: Any):
        super().__init_subclass__(**given)
        for name in guards:
            member = cls.__dict__[name]
            if isinstance(member, property):
                assert member.fget is not None, "a guarded property can be read"
                setattr(cls, name, property(_guarded(member.fget)))
            else:
                setattr(cls, name, _guarded(member))

    def __init__(self) -> None:
        self._made_after = forks

    @property
    def forked(self) -> bool:
        """True in a process that was forked after this object was made: it cannot be used there."""
        return self._made_after != forks

    def check_process(self) -> None:
        """Raise `ProcessError` in a process that was forked after this object was made."""
        if self._made_after != forks:
            raise of_another_process(type(self).__name__)

    def __reduce__(self) -> NoReturn:
        raise not_pickled(self, self.unpickled)


def not_pickled(one: object, advice: str) -> ProcessError:
    """Return the error of an object that is pickled or copied, and what to do instead."""
    return ProcessError(f"pickle: got {_a(type(one).__name__)}, which cannot be pickled or copied; {advice}")


def of_another_process(name: str) -> ProcessError:
    """Return the error of an object that was made before a fork and is used after it."""
    return ProcessError(
        f"{name}: was made before this process (number {os.getpid()}) was forked, and does not survive a "
        f"fork: its threads are in the parent process; {_INSTEAD}"
    )


def begin_jax() -> None:
    """Note that this process computes with JAX.

    Raises:
        ProcessError: it is a fork of a process that did.
    """
    global _jax_at
    if _jax_at is None:
        _jax_at = forks
    if _jax_at != forks:
        raise ProcessError(
            f"Bundle: this process (number {os.getpid()}) was forked by one that had loaded a bundle, and "
            f"JAX does not survive a fork: its threads are in the parent process; {_INSTEAD}"
        )


def check_all(*objects: OfOneProcess) -> None:
    """Raise `ProcessError` if any object was made before this process was forked."""
    for one in objects:
        one.check_process()


def check_threads() -> None:
    """Check that ``threading`` makes threads of the operating system.

    Raises:
        ProcessError: gevent has replaced it.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ProcessError(
            "Engine: gevent.monkey has patched threading, but an engine needs threads of the operating "
            "system and would wait for itself; call monkey.patch_all(thread=False), or serve by threads or "
            "asyncio, as gunicorn's gthread workers and uvicorn do."
        )


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: OfOneProcess, *arguments: Any, **given: Any) -> Any:
        if self._made_after != forks:
            raise of_another_process(type(self).__name__)
        return method(self, *arguments, **given)

    return guarded


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"
