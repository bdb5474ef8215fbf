"""A release: a generation ready to serve, with the parts of an engine that change with it."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from aif_jax.aio import EventLoop
from aif_jax.bundle import Bundle
from aif_jax.nearline import Tables
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.generation import Generation
from aif_jax.serving.ladder import Ladder
from aif_jax.serving.missing_items import MissingRows
from aif_jax.serving.priors import Priors
from aif_jax.serving.retrieval import Fallback, Retrieval
from aif_jax.serving.stage import Progress
from aif_jax.serving.user_side import UserSides
from aif_jax.serving.user_states import UserStates
from aif_jax.types import ItemRecords, ItemSource, Request, Retrieve, UserRecord, UserSource


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """The callables that an engine asks; they stay the same when the generation changes; see `Engine`."""

    users: UserSource | Callable[[Any], UserRecord | None]
    retrieve: Retrieve | Callable[[Request], Any] | None
    fallback: Fallback
    items: ItemSource | Callable[[Any], ItemRecords | None] | None


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
        ConfigError: the config or the fallback does not fit.
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
