"""A release: a generation ready to serve, with the parts that change with it; and the requests under way."""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aif_jax.aio import EventLoop
from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError
from aif_jax.nearline import Tables
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.generation import Generation
from aif_jax.serving.ladder import Ladder
from aif_jax.serving.missing_items import MissingRows
from aif_jax.serving.observer import Observers
from aif_jax.serving.priors import Priors
from aif_jax.serving.retrieval import Fallback, Retrieval, checked_fallback
from aif_jax.serving.stage import Progress
from aif_jax.serving.tasks import Deadline
from aif_jax.serving.user_side import UserSides
from aif_jax.serving.user_states import UserStates
from aif_jax.shown import shown
from aif_jax.types import ItemRecords, ItemSource, Request, Retrieve, UserRecord, UserSource


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """The callables that an engine asks; they stay the same when the generation changes; see `Engine`."""

    users: UserSource | Callable[[Any], UserRecord | None]
    retrieve: Retrieve | Callable[[Request], Any] | None
    fallback: Fallback
    items: ItemSource | Callable[[Any], ItemRecords | None] | None

    @classmethod
    def of(cls, users: Any, retrieve: Any, fallback: Fallback, items: Any, loop: EventLoop) -> "Sources":
        """Return sources as an engine is given them; of users and items, coroutine functions run in a loop.

        Raises:
            ConfigError: one of them cannot be called, or the fallback is not candidates.
        """
        users = users.get if isinstance(users, Mapping) else users
        for name, source in (("users", users), ("retrieve", retrieve), ("items", items)):
            if not callable(source) and (source is not None or name == "users"):
                given = f"{type(source).__name__} {shown(source)}"
                also = ", or a mapping from user ids to records" if name == "users" else ""
                raise ConfigError(f"{name}: got {given}, expected a function of one argument{also}.")
        return cls(loop.plainly(users), retrieve, checked_fallback(fallback), loop.plainly(items))


class Release:
    """One generation ready to serve: compiled and warmed, with a ladder and user states of its own.

    A request holds the release open that it was begun with. A retired one is closed when the last of them
    has left.

    Args:
        bundle, tables: the model, and its tables of the same version.
        sources: callables to ask.
        config: settings of the engine.
        loop: runs coroutines of plain callers.
        progress: called after every program that was compiled.

    Raises:
        VersionMismatchError: a table was computed by another bundle version.
        ConfigError: the config does not fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        tables: Tables,
        sources: Sources,
        config: EngineConfig,
        loop: EventLoop,
        progress: Progress | None = None,
    ):
        self.generation = Generation(bundle, tables, config)
        self.version = self.generation.version
        try:
            self.generation.warm(progress)
            self.priors = Priors(self.generation)
            self.ladder: Ladder = self.priors.ladder
            self.missing = None if sources.items is None else MissingRows(tables.items, sources.items, config)
            self.user_states = UserStates(self.generation)
            self.user_sides = UserSides(sources.users, self.user_states, self.generation, self.ladder)
            self.retrieval = Retrieval(sources.retrieve, sources.fallback, self.generation, loop)
        except BaseException:
            # Nobody else knows of it yet, and rows on a device would follow the index until it is collected.
            self.generation.close()
            raise
        self.users = sources.users
        self._open = 0
        self._retired = False
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Hold the release open for a request; return whether that was in time, before it was retired."""
        with self._lock:
            if self._retired:
                return False
            self._open += 1
        return True

    def leave(self) -> None:
        """Let go of it: the request is over."""
        with self._lock:
            self._open -= 1
            last = self._retired and not self._open
        if last:
            self.generation.close()

    def retire(self) -> None:
        """Close it as soon as nothing holds it open any more; nothing new may enter."""
        with self._lock:
            last, self._retired = not self._open and not self._retired, True
        if last:
            self.generation.close()

    @property
    def open(self) -> int:
        """Number of requests that hold it open."""
        return self._open


class OpenRequest(Protocol):
    """Part of a request that its engine may end."""

    deadline: Deadline

    def expire(self, age_s: float) -> bool:
        """End it because its caller did not rank it in time; return whether it was open."""
        ...

    def close(self) -> None:
        """End it because the engine closes."""
        ...


class OpenRequests:
    """The requests of an engine that are not ranked yet. Safe to use from any thread.

    Args:
        max_age_s: seconds after which a handle that nobody ranked expires.
        observers: count expired ones.
    """

    def __init__(self, max_age_s: float, observers: Observers):
        self._max_age_s = max_age_s
        self._observers = observers
        self._open: dict[int, OpenRequest] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, pending: OpenRequest) -> None:
        """Hold on to a request; expire older ones when the oldest is due."""
        with self._lock:
            old = next(iter(self._open.values()), None)  # the one that began first
            self._open[id(pending)] = pending
        if old is not None and old.deadline.began_s < pending.deadline.began_s - self._max_age_s:
            self.expire()

    def remove(self, pending: OpenRequest) -> None:
        """Let go of a request."""
        with self._lock:
            self._open.pop(id(pending), None)

    def expire(self) -> None:
        """End the handles that nobody ranked in time, and count them."""
        oldest = time.perf_counter() - self._max_age_s
        old: list[OpenRequest] = []
        with self._lock:
            for pending in self._open.values():  # in the order in which they began
                if pending.deadline.began_s > oldest:
                    break
                old.append(pending)
        if expired := sum(pending.expire(self._max_age_s) for pending in old):
            self._observers.count("expired", expired)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            pendings = list(self._open.values())
        for pending in pendings:
            pending.close()
