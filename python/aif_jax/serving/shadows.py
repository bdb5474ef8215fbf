"""The shadows of an engine."""

import itertools
import threading
from typing import Any

from aif_jax.errors import SchedulerError
from aif_jax.serving.candidates import Asked
from aif_jax.serving.coverage import Coverage
from aif_jax.serving.memory import Needs
from aif_jax.serving.pending import Pending
from aif_jax.serving.report import Ranking
from aif_jax.serving.shadow import Shadow, ShadowConfig
from aif_jax.serving.stages import Generation


class Shadows:
    """Holds the shadows that run, by number. Safe to use from any thread."""

    def __init__(self) -> None:
        self._running: dict[int, Shadow] = {}
        """Replaced as a whole: requests read it without a lock."""
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False

    def start(self, generation: Generation, config: ShadowConfig, coverage: Coverage) -> Shadow:
        """Have a warmed generation shadow requests from now on.

        Raises:
            SchedulerError: the engine was closed; the generation is closed too.
        """
        with self._lock:
            if self._closed:
                generation.close()
                raise SchedulerError("the engine was closed meanwhile; nothing is shadowed.")
            try:
                shadow = Shadow(generation, config, coverage, self._forget)
            except BaseException:
                generation.close()
                raise
            self._running = {**self._running, next(self._numbers): shadow}
        return shadow

    def offer(self, pending: Pending, asked: Asked, ranking: Ranking) -> None:
        """Tell the shadows of a request that was ranked with everything; see `Shadow.offer`."""
        for shadow in self._running.values():
            shadow.offer(pending, asked, ranking)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return what each shadow that runs found, by its number; see `Shadow.stats`."""
        return {str(number): shadow.stats() for number, shadow in self._running.items()}

    def held(self) -> dict[str, Needs]:
        """Return what their generations need, by name."""
        return {
            f"shadow_{number}": shadow.generation.needs(user_states=False)
            for number, shadow in self._running.items()
        }

    def close(self) -> None:
        """Stop them all; none starts any more."""
        with self._lock:
            self._closed = True
            running = tuple(self._running.values())
        for shadow in running:
            shadow.stop()

    def _forget(self, shadow: Shadow) -> None:
        with self._lock:
            self._running = {n: other for n, other in self._running.items() if other is not shadow}
