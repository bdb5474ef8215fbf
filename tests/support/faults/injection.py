"""Faults on purpose: a user source and a retrieval that fail for some requests, by number."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from aif_jax import _native
from aif_jax.errors import AifError
from aif_jax.types import Candidates, Request, UserRecord
from support.faults.service import Service

HANGS_FOR_S = 20.0
"""The longest that anything hangs if nobody lets it go."""


class SourceDownError(Exception):
    """Error of a user source or a retrieval that is down."""


class Hang:
    """Calls that do not return until they are let go."""

    def __init__(self) -> None:
        self._free = threading.Event()

    def then(self, result: Callable[[int], Any], seconds: float = HANGS_FOR_S) -> Callable[[int], Any]:
        """Return a call that hangs in its thread and has a result too late."""

        def hang(number: int) -> Any:
            self._free.wait(seconds)
            return result(number)

        return hang

    def let_go(self) -> None:
        """Let all calls return, now and from now on."""
        self._free.set()


@dataclasses.dataclass(frozen=True)
class Fault:
    """Fault of one request; ``None`` for no fault.

    Attributes:
        user: called by the user source instead of looking the user up; returns what the source returns.
        retrieve: called by retrieval instead of finding candidates; likewise. May return an awaitable.
    """

    user: Callable[[int], Any] | None = None
    retrieve: Callable[[int], Any] | None = None


NONE = Fault()

Faults = Callable[[int], Fault]
"""Function of a request's number: its fault."""


class Injected:
    """User source and retrieval of an engine, with the faults of the moment; the user is the request.

    Retrieval is a plain function that returns a coroutine for every other request.
    """

    def __init__(self, service: Service, retrieval_s: float):
        self._service = service
        self._retrieval_s = retrieval_s
        self._pause = threading.Event()
        self.faults: Faults = lambda _: NONE
        self.hit: set[int] = set()
        """Requests whose fault has happened."""

    def users(self, user: Any) -> UserRecord | None:
        """Look a user up, or fail."""
        fault = self.faults(user).user
        if fault is None:
            return self._service.user(user)
        self.hit.add(user)
        return fault(user)

    def retrieve(self, request: Request) -> Any:
        """Find candidates after a while, or fail."""
        number = int(request.user)
        fault = self.faults(number).retrieve
        if fault is not None:
            self.hit.add(number)
            return fault(number)
        if number % 2:
            return self._later(number)
        self._pause.wait(self._retrieval_s)
        return self._service.candidates(number)

    async def _later(self, number: int) -> Candidates:
        await asyncio.sleep(self._retrieval_s)
        return self._service.candidates(number)


def down(_: int) -> Any:
    """Raise, as a source does that is down."""
    raise SourceDownError("down, on purpose")


async def hanging_coroutine(_: int) -> Any:
    """Hang until cancelled."""
    await asyncio.sleep(HANGS_FOR_S)


def garbage_candidates(service: Service) -> tuple[Callable[[int], Any], ...]:
    """Return retrievals whose results are no candidates."""

    def pair(values: Any) -> Callable[[int], Any]:
        return lambda number: Candidates(service.candidates(number).ids, {"bid": values})

    return (
        lambda _: None,
        lambda _: "ids",
        lambda _: 7,
        lambda _: {"ids": [1, 2]},
        lambda _: [],
        lambda number: service.candidates(number).ids.reshape(2, -1),
        lambda number: service.candidates(number).ids.astype(np.float64),
        lambda _: [1, "two", None],
        lambda _: np.array([True, False]),
        lambda _: np.array([-1, -2]),
        pair(np.zeros(3, np.float32)),
        pair(["a"] * service.n),
        lambda number: Candidates(service.candidates(number).ids, {"no_such_feature": np.zeros(service.n)}),
    )


def strange_candidates(service: Service) -> tuple[Callable[[int], Any], ...]:
    """Return retrievals whose results are odd, but have the same right answer."""

    def mixed(number: int, ids: np.ndarray, fill: float) -> Candidates:
        found, more = service.candidates(number), len(ids)
        pair = {
            "bid": np.concatenate([found.pair["bid"], np.full(more, fill)]),
            "channel": np.concatenate([found.pair["channel"], np.full(more, "new")]),
        }
        return Candidates(np.concatenate([found.ids, ids]), pair)

    return (
        # Twice the same candidates: the first counts.
        lambda number: mixed(number, service.candidates(number).ids, np.nan),
        # Items that nobody knows.
        lambda number: mixed(number, np.arange(1, 60, dtype=np.uint64), 1e30),
        lambda number: dataclasses.replace(
            service.candidates(number), ids=service.candidates(number).ids.tolist()
        ),
    )


def garbage_records(service: Service) -> tuple[Callable[[int], Any], ...]:
    """Return user sources whose results are no records."""

    def changed(**changes: Any) -> Callable[[int], Any]:
        return lambda number: dataclasses.replace(service.user(number), **changes)

    return (
        lambda _: "a user",
        lambda _: {"features": {}},
        changed(types=np.zeros(3, np.int32)),
        changed(types=np.full(service.length, 99)),
        changed(items=None),
        changed(items=np.full(service.length, -1.5)),
        changed(features={"activity": "not a number"}),
    )


def panics() -> tuple[type[BaseException], ...]:
    """Return the exceptions by which a panic of native code travels through Python, one for each extension.

    Raised inside a worker, the one of this project's extension becomes a panic again there.
    """
    with contextlib.suppress(AifError):  # so that the extension has made its own
        _native.Scheduler(compute_threads=0)
    found = [kind for kind in BaseException.__subclasses__() if kind.__name__ == "PanicException"]
    assert found, "PyO3 keeps its exception elsewhere now"
    return tuple(found)


def panic(kinds: tuple[type[BaseException], ...]) -> Callable[[int], Any]:
    """Return a user source whose native code panics."""

    def fail(number: int) -> Any:
        raise kinds[number % len(kinds)]("a panic, on purpose")

    return fail


def some(fault: Fault | tuple[Fault, ...], every: int) -> Faults:
    """Return faults for one request in ``every``, several of them in turn."""
    faults: tuple[Fault, ...] = (fault,) if isinstance(fault, Fault) else fault

    def of(number: int) -> Fault:
        return faults[number // every % len(faults)] if number % every == 0 else NONE

    return of


def as_retrieval(results: tuple[Callable[[int], Any], ...]) -> tuple[Fault, ...]:
    """Return faults of retrieval."""
    return tuple(Fault(retrieve=result) for result in results)


def as_source(results: tuple[Callable[[int], Any], ...]) -> tuple[Fault, ...]:
    """Return faults of the user source."""
    return tuple(Fault(user=result) for result in results)
