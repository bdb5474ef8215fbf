"""From one generation to the next: the new one is tried and warmed before it serves anybody."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.errors import AifError, PublishError, RequestError
from aif_jax.features import EncodeReport
from aif_jax.serving.arguments import check_context, checked_k
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.release import Release
from aif_jax.serving.user_program import compute_state, long_bucket
from aif_jax.serving.users import checked_record
from aif_jax.types import UserId, UserRecord

_REST = 2.0
"""Times what a piece of work took that the next one waits."""


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
        prepared_s: seconds until the new generation could serve.
    """

    version: str
    previous: str
    overlaps: tuple[float, ...]
    drifts: tuple[float, ...]
    warmed: int
    not_warmed: Mapping[str, int]
    prepared_s: float


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
        with _unhurried():
            ids, scores = _ranked(running, request)
        try:
            with _unhurried():
                new_ids, new_scores = _ranked(release, request)
        except AifError as error:
            raise PublishError(
                f"golden request {number} (user {request.user!r}) cannot be ranked by bundle "
                f"{release.version}: {error}"
            ) from error
        _, mine, theirs = np.intersect1d(ids, new_ids, return_indices=True)
        overlap = len(mine) / max(len(ids), len(new_ids), 1) if len(ids) or len(new_ids) else 1.0
        drift = float(np.max(np.abs(scores[mine] - new_scores[theirs]))) if len(mine) else 0.0
        overlaps.append(overlap)
        drifts.append(drift)
        if overlap < least_overlap or drift > most_drift:
            raise PublishError(
                f"golden request {number} (user {request.user!r}): bundle {release.version} and the "
                f"running {running.version} agree on {overlap:.1%} of the best {len(ids)}, and scores "
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
            with _unhurried():
                length = long_bucket(record, release.generation)
                state = compute_state(user, record, length, release.generation)
                release.states.put(user, record.revision, state, moment)
            warmed += 1
        # Whatever a user source raises: the user's next request meets it too, and is told then.
        except Exception as error:
            failed[type(error).__name__] = failed.get(type(error).__name__, 0) + 1
    return warmed, failed


@contextlib.contextmanager
def _unhurried() -> Iterator[None]:
    """Rest twice as long as a piece of work took: the cores are there for requests.

    A low priority would be worse: a thread of low priority that holds the GIL holds up all others.
    """
    began_s = time.perf_counter()
    yield
    time.sleep(_REST * (time.perf_counter() - began_s))


def _ranked(release: Release, request: GoldenRequest) -> tuple[np.ndarray, np.ndarray]:
    generation = release.generation
    schema, bundle = generation.bundle.schema, generation.bundle
    context = {} if request.context is None else request.context
    check_context(context, schema)
    record = _record(release, request.user)
    record = UserRecord() if record is None else record
    state = compute_state(request.user, record, long_bucket(record, generation), generation)
    report = EncodeReport()
    candidates = check_candidates(request.candidates, request.pair, schema, generation.raw_pair, report)
    k = checked_k(request.k, generation.sizes.k, bundle.k_max)
    encoded = schema.encode_one("context", context, report=report)
    scored = generation.score(state.leaves, state.length, encoded, candidates, k)
    return candidates.ids[scored.order], scored.scores


def _record(release: Release, user: UserId) -> UserRecord | None:
    record = release.user_sides.users(user)
    return None if record is None else checked_record(user, record)
