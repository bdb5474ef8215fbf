"""One computation for all who want the same user state at the same time."""

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aif_jax.serving.user_states import UserState, UserStates
from aif_jax.types import UserId

if TYPE_CHECKING:
    from aif_jax.serving.pending import Pending

Then = Callable[[UserState | None], None]
"""What a request does with the state that another one computed, or without it if that came to nothing."""


@dataclasses.dataclass(slots=True)
class Flight:
    """A user state that is being computed, and who else waits for it."""

    key: tuple[Any, ...]
    moment: int
    due_s: float
    state: UserState | None = None
    """The result, if it is as good as each of them would compute it."""
    waiting: list[Then] = dataclasses.field(default_factory=list)


class SingleFlight:
    """Finds out whether a user state is being computed already. Safe to use from any thread.

    A request joins another one's computation if both have the same user, revision and long bucket, the user
    was not invalidated since the other's record was fetched, and the other is not due later, since work is
    done in order of deadlines. Records are fetched by each request: what has changed by then counts for it.

    Args:
        states: which users were invalidated when.
    """

    def __init__(self, states: UserStates):
        self._states = states
        self._flights: dict[tuple[Any, ...], Flight] = {}
        self._lock = threading.Lock()

    def lead(self, pending: "Pending", revision: Any, length: int, moment: int, then: Then) -> Flight | None:
        """Return a flight that the caller has to compute and `land`; or ``None``: then ``then`` is called.

        Args:
            pending: the request.
            revision: of its user's record.
            length: the long bucket.
            moment: `UserStates.moment` before the record was fetched.
            then: called once, in the thread in which the other's computation ends.
        """
        key = (*_key(pending.user), repr(revision), length)
        remaining_ms = pending.remaining_ms()
        due_s = math.inf if remaining_ms is None else pending.began_s + (pending.deadline_ms or 0.0) / 1e3
        with self._lock:
            other = self._flights.get(key)
            if other is None:
                flight = self._flights[key] = Flight(key, moment, due_s)
                return flight
            if other.due_s <= due_s and not self._states.invalidated_since(pending.user, other.moment):
                other.waiting.append(then)
                return None
            # On its own; whoever comes next may still join the other.
            return Flight(key, moment, due_s)

    def land(self, flight: Flight) -> None:
        """End a flight, whatever became of it, and let those go on who wait for it."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            waiting, flight.waiting = flight.waiting, []
        for then in waiting:
            then(flight.state)


def _key(user: UserId) -> tuple[str, str]:
    # 5 and NumPy's 5 are one user, and "5" is another.
    return ("text" if isinstance(user, str) else "number", str(user))
