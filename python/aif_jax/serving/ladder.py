"""The deadline ladder: how far an answer is degraded so that it comes in time, and why. Decisions only.

====  ================================  ==================================================================
rung  what is ranked with               when
====  ================================  ==================================================================
0     everything                        it is predicted to be done in time, or there is no deadline
1     all but the long sequence         the user program is predicted to be late, the one for the shortest
                                        history is not
2     the user prior, the context       the user side is late, was refused, or its source failed
3     the item prior                    the real-time stage itself is predicted to be late
====  ================================  ==================================================================

Blocks that a rung goes without contribute their learned absent vectors, as they do in training.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from aif_jax.features import bucket_for
from aif_jax.serving.stage_times import StageTimes

Rung: TypeAlias = Literal[0, 1, 2, 3]

Reason: TypeAlias = Literal[
    "user source late", "user program late", "overloaded", "user source failed", "stage would not fit"
]

ITEM_PRIOR = "item prior"
"""Key of the time that a ranking by item priors takes."""

USER = "user"
"""Key of the time that a user program takes, whatever the history, from record to state."""

REST = "rest"
"""Key of the time from the end of waiting to the ranking, whatever the candidates."""


_WAKE_MS = 1.0
"""How late a thread or a coroutine may be woken when its time is over: event loops count in milliseconds."""


class Choice(NamedTuple):
    """A rung and why it is not 0; the reason is ``None`` on rung 0."""

    rung: Rung
    reason: Reason | None


FULL = Choice(0, None)


class Ladder:
    """Chooses rungs by what is left of a deadline and what the rest of the request takes.

    Without a deadline (``None`` milliseconds left) nothing is degraded for being late.

    Args:
        times: how long things take; its owner records them under the keys that `user_key` and `stage_key`
            return, `USER`, `REST` and `ITEM_PRIOR`.
        buckets: candidate counts that the stage is compiled for, ascending.
        long_buckets: history lengths, ascending.
        on: whether lateness is answered with a lower rung; otherwise a late request is an error.
        item_prior: whether item rows hold a prior; without it there is no rung 3.
        shared: whether user sides of any requests may share a call of the user program.
    """

    def __init__(
        self,
        times: StageTimes,
        buckets: Sequence[int],
        long_buckets: Sequence[int],
        *,
        on: bool,
        item_prior: bool,
        shared: bool = False,
    ):
        self.times = times
        self.on = on
        self.item_prior = item_prior
        self._shared = shared
        self._buckets = tuple(buckets)
        self._longs = tuple(long_buckets)

    def degrades(self, remaining_ms: float | None) -> bool:
        """Whether a request with so much time left may be degraded for being late or too much."""
        return self.on and remaining_ms is not None

    def user_key(self, length: int, users: int = 1) -> tuple[str, int, int]:
        """Return the key of one call of the user program for a long bucket, from records to states."""
        return "user", length, users

    def stage_key(self, n: int, length: int) -> tuple[str, int, int]:
        """Return the key of one call of the stage for n candidates and a long bucket."""
        return "stage", bucket_for(min(n, self._buckets[-1]), self._buckets), length

    def wait_ms(self, remaining_ms: float | None, n: int) -> float | None:
        """Return how long a request of n candidates may wait for its user side; 0 or less for not at all.

        What is left after it is enough for the stage, even if the user side comes at the last moment.
        """
        if remaining_ms is None or not self.on:
            return remaining_ms
        stage_ms = self._calls(n) * self.times.reserve_ms(self.stage_key(n, self._longs[-1]))
        return remaining_ms - stage_ms - _WAKE_MS

    def retrieval_ms(self, remaining_ms: float | None) -> float | None:
        """Return how long a request may wait for candidates, for which there is a substitute."""
        return None if remaining_ms is None else remaining_ms - self.times.reserve_ms(REST) - _WAKE_MS

    def user_program(self, remaining_ms: float | None, length: int) -> Choice:
        """Choose the user program, rung 0 or 1, when it is about to start.

        Rung 0 too if neither is predicted to be in time: then the request goes without, but the next one
        finds the state.
        """
        shortest = self._longs[0]
        if remaining_ms is None or not self.on or length == shortest:
            return FULL
        left = self._for_user_side_ms(remaining_ms)
        full = self.user_key(length)
        if self.times.expected_ms(full) <= left or self.times.expected_ms(self.user_key(shortest)) > left:
            return FULL
        self.times.refused(full)
        return Choice(1, "user program late")

    def batch_fits(self, remaining_ms: float | None, length: int, users: int) -> bool:
        """Return whether a request's user side is predicted to be in time in a batch that starts now."""
        if remaining_ms is None:
            return True
        return self.times.expected_ms(self.user_key(length, users)) <= self._for_user_side_ms(remaining_ms)

    def stage(self, chosen: Choice, remaining_ms: float | None, n: int, length: int) -> Choice:
        """Choose between the stage, on the rung chosen so far, and the item prior, when it is about to start.

        Args:
            chosen: the rung of the user side.
            remaining_ms: what is left of the deadline; not positive if it passed while the request waited.
            n: candidates.
            length: long bucket of the user state.
        """
        if remaining_ms is None or not self.on or not self.item_prior or chosen.rung == 3:
            return chosen
        key = self.stage_key(n, length)
        if self._calls(n) * self.times.expected_ms(key) <= remaining_ms:
            return chosen
        if remaining_ms > 0:
            self.times.refused(key)
        return Choice(3, "stage would not fit")

    def record_user(self, length: int, ms: float, users: int = 1, computed: int = 1) -> None:
        """Count the time of one call of the user program, from records to states.

        Args:
            length: the long bucket.
            ms: the time.
            users: for how many the program is compiled.
            computed: of how many the states were computed.
        """
        self.times.record(self.user_key(length, users), ms)
        # A request on its own pays for all of its call, unless any may share one.
        if users == 1 or self._shared:
            self.times.record(USER, ms / computed)

    def record_rest(self, n: int, length: int, ms: float) -> None:
        """Count the time from the end of waiting to a ranking of n candidates by the stage."""
        self.times.record(self.stage_key(n, length), ms / self._calls(n))
        self.times.record(REST, ms)

    def stats(self) -> dict[str, Any]:
        """Return what it decides by: if it is ``on``, if there is an ``item_prior``, and the ``times``."""
        return {"on": self.on, "item_prior": self.item_prior, "times": self.times.as_dict()}

    def _for_user_side_ms(self, remaining_ms: float) -> float:
        """Return what is left for a user side that starts now, if the rest is to be done in time."""
        return remaining_ms - self.times.reserve_ms(REST) - _WAKE_MS

    def _calls(self, n: int) -> int:
        return max(1, -(-n // self._buckets[-1]))
