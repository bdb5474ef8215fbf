"""A generation, with everything of an engine that belongs to it and changes with it."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from aif_jax.bundle import Bundle
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.missing_items import MissingItems
from aif_jax.serving.own_retrieval import Fallback, OwnRetrieval
from aif_jax.serving.retrieval import EventLoop
from aif_jax.serving.rungs import Rungs
from aif_jax.serving.stage import Progress
from aif_jax.serving.stages import Generation
from aif_jax.serving.user_side import Submit, UserSides
from aif_jax.serving.user_states import UserStates
from aif_jax.types import ItemRecords, ItemSource, Request, Retrieve, UserRecord, UserSource


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """What an engine asks: it stays the same when the generation changes; see `Engine`."""

    users: UserSource | Callable[[Any], UserRecord | None]
    retrieve: Retrieve | Callable[[Request], Any] | None
    fallback: Fallback
    items: ItemSource | Callable[[Any], ItemRecords | None] | None


class Release:
    """One generation ready to serve: compiled and warmed, with a ladder and user states of its own.

    A request holds on to the release that it was begun with until it is over. One that was retired is closed
    when the last of them has left.

    Args:
        bundle: the model.
        index: item rows of the same version.
        behaviours: rows of the items in histories, of the same version.
        sources: what is asked.
        config: settings of the engine.
        loop: where coroutines of plain callers run.
        submit: runs a task of a request.
        progress: called after every program that was compiled.

    Raises:
        VersionMismatchError: a table was computed by another bundle version.
        ConfigError: the config or the fallback does not fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        index: ItemIndex,
        behaviours: BehaviourTable,
        sources: Sources,
        config: EngineConfig,
        loop: EventLoop,
        submit: Submit,
        progress: Progress | None = None,
    ):
        self.generation = Generation(bundle, index, behaviours, config)
        try:
            self.generation.warm(progress)
            self.rungs = Rungs(self.generation)
            items = sources.items
            self.missing = None if items is None else MissingItems(index, items, config, submit)
            self.states = UserStates(self.generation)
            self.user_sides = UserSides(
                sources.users, self.states, self.generation.sizes.users, config, submit
            )
            self.retrieval = OwnRetrieval(self.generation, sources.retrieve, sources.fallback, loop, submit)
        except BaseException:
            # Nobody else knows of it yet, and rows on a device would follow the index until it is collected.
            self.generation.close()
            raise
        self._open = 0
        self._retired = False
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """Version of the bundle."""
        return self.generation.version

    def enter(self) -> None:
        """Hold the release open for a request."""
        with self._lock:
            self._open += 1

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
        """Requests that hold it open."""
        return self._open
