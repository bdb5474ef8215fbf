"""From one generation to the next: the new one is tried and warmed before it serves anybody."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aif_jax.errors import AifError, PublishError, RequestError
from aif_jax.serving.arguments import check_context, checked_k
from aif_jax.serving.candidates import Asked
from aif_jax.serving.comparing import Answer, answer, compared
from aif_jax.serving.coverage import Coverage
from aif_jax.serving.release import Release
from aif_jax.serving.unhurried import unhurried
from aif_jax.serving.user_program import compute_state, long_bucket
from aif_jax.serving.users import checked_record
from aif_jax.types import UserId, UserRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenRequest:
    """A request whose answer must not change beyond bounds from one generation to the next.

    Attributes:
        user: whom to rank for, of the engine's user source.
        candidates: item ids, or a table of them; see `Pending.rank`.
        pair: raw pair features by name.
        context: raw context features.
        k: results to compare; ``None`` for the engine's default.
    """

    user: UserId
    candidates: Any
    pair: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    k: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
    """What became of `Engine.publish`.

    Attributes:
        version: of the bundle that serves now.
        previous: of the one that served before.
        overlaps: for each golden request, the share of its best k that both generations agree on.
        drifts: for each, the largest difference of a score of what both rank among their best k.
        warmed: users whose states were computed ahead.
        not_warmed: users for whom that failed, by the error's name.
        prepared_s: seconds until the new generation could serve, without those that it waited for coverage.
        coverage: what its tables had of those of the generation before, when it began to serve.
        waited_s: seconds of waiting for that.
    """

    version: str
    previous: str
    overlaps: tuple[float, ...]
    drifts: tuple[float, ...]
    warmed: int
    not_warmed: Mapping[str, int]
    prepared_s: float
    coverage: Coverage
    waited_s: float


def check_bounds(least_overlap: float, most_drift: float) -> None:
    """Check that bounds can be met.

    Raises:
        RequestError: they cannot.
    """
    if not 0 <= least_overlap <= 1 or not most_drift >= 0:
        raise RequestError(
            f"least_overlap, most_drift: got {least_overlap} and {most_drift}, expected a share from 0 to 1, "
            "and 0 or more."
        )


def compare(
    running: Release,
    release: Release,
    golden: Sequence[GoldenRequest],
    least_overlap: float,
    most_drift: float,
) -> tuple[list[float], list[float]]:
    """Rank golden requests with both generations; return overlaps and drifts.

    Raises:
        PublishError: a request cannot be ranked by the new generation, or differs by more than the bounds.
    """
    overlaps, drifts = [], []
    for number, request in enumerate(golden):
        known = _ranked(running, request)
        try:
            new = _ranked(release, request)
        except AifError as error:
            raise PublishError(
                f"golden request {number} (user {request.user!r}) cannot be ranked by bundle "
                f"{release.version}: {error}"
            ) from error
        overlap, drift = compared(known, new)
        overlaps.append(overlap)
        drifts.append(drift)
        if overlap < least_overlap or drift > most_drift:
            raise PublishError(
                f"golden request {number} (user {request.user!r}): bundle {release.version} and the "
                f"running {running.version} agree on {overlap:.1%} of the best {len(known.ids)}, and scores "
                f"differ by up to {drift:.3g}; the bounds are least_overlap={least_overlap:g} and "
                f"most_drift={most_drift:g}. Nothing was changed: look at the new model, or loosen the "
                "bounds if this is what it should do."
            )
    return overlaps, drifts


def warm_users(running: Release, release: Release, users: int, seconds: float) -> tuple[int, dict[str, int]]:
    """Compute states of the users who were computed last, the latest first, for a new generation.

    Args:
        running: knows who they are.
        release: gets the states.
        users: how many at most.
        seconds: how long at most.

    Returns:
        How many were computed, and how many failed, by the error's name.
    """
    until = time.monotonic() + seconds
    warmed, failed = 0, dict[str, int]()
    for user in running.states.recent(users):
        if time.monotonic() > until:
            break
        moment = release.states.moment()
        try:
            record = _record(release, user)
            if record is None:
                continue
            with unhurried():
                length = long_bucket(record, release.generation)
                state = compute_state(user, record, length, release.generation)
                release.states.put(user, record.revision, state, moment)
            warmed += 1
        # Whatever a user source raises: the user's next request meets it too, and is told then.
        except Exception as error:
            failed[type(error).__name__] = failed.get(type(error).__name__, 0) + 1
    return warmed, failed


def _ranked(release: Release, request: GoldenRequest) -> Answer:
    generation = release.generation
    context = {} if request.context is None else request.context
    check_context(context, generation.bundle.schema)
    k = checked_k(request.k, generation.sizes.k, generation.bundle.k_max)
    asked = Asked(request.candidates, request.pair, k, None, 0.0)
    with unhurried():
        return answer(generation, request.user, _record(release, request.user), context, asked, k)


def _record(release: Release, user: UserId) -> UserRecord | None:
    record = release.user_sides.users(user)
    return None if record is None else checked_record(user, record)
