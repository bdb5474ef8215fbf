"""The future of a scheduler's task."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class TaskFuture(Future[T]):
    """A `concurrent.futures.Future` whose cancellation takes its task out of the queue at once.

    Made by `Scheduler.submit`, never by hand.
    """

    # The scheduler's side of the task. `cancel` is overridden and no done callback added, since that would be
    # called for every task and not only for those that are cancelled.
    _aif_task: Callable[[], object] | None = None

    def cancel(self) -> bool:
        """Cancel the task if it has not begun; return whether it is cancelled now."""
        cancelled = super().cancel()
        if cancelled and self._aif_task is not None:
            self._aif_task()
        return cancelled
