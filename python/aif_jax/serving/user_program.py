"""The user program: records are laid out, rows of their histories are joined, the compiled program runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aif_jax.features import bucket_for
from aif_jax.features.continuation import NEWEST, Continuation, Kept, carried, continuation
from aif_jax.features.padding import joined, joined_rows, laid_out, parted
from aif_jax.features.records import ReadRecord, read_record
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_states import UserState
from aif_jax.types import UserId, UserRecord


class _Known(NamedTuple):
    """A record that was read.

    Attributes:
        record: it, with its history.
        start, end: where its behaviours stand among those of all.
        follows: how it goes on from what was kept; ``None`` where nothing is kept.
    """

    record: ReadRecord
    start: int
    end: int
    follows: Continuation | None


def long_bucket(record: UserRecord, generation: Generation) -> int:
    """Return the history length of a record."""
    longs = generation.sizes.histories
    return bucket_for(min(len(record.items), longs[-1]), longs)


def compute_state(
    user: UserId, record: UserRecord, length: int, generation: Generation, *, long: bool = True
) -> UserState:
    """Run the user side for one user.

    Args:
        user: whose record it is.
        record: what is known of the user.
        length: the history length.
        generation: whose programs run.
        long: whether to read the long sequence; without it, the blocks that would are absent.

    Returns:
        The state, which may still be under way: its leaves are arrays of JAX.

    Raises:
        RequestError: the record is malformed.
    """
    state = compute_states([(user, record)], length, generation, long=long)[0]
    if isinstance(state, Exception):
        raise state
    return state


def compute_states(
    users: Sequence[tuple[UserId, UserRecord]],
    length: int,
    generation: Generation,
    *,
    long: bool = True,
    kept: Sequence[Kept | None] | None = None,
) -> list[UserState | Exception]:
    """Run the user side for several users, in one call of the smallest program that takes so many.

    Where the engine extends states, those that go on from what was kept are computed in a call of their own.

    Args:
        users: with what is known of each; not more than the engine has a program for.
        length: the history length of all of them.
        generation: whose programs run.
        long: whether to read the long sequences.
        kept: for each user, what was kept of an earlier history of this length.

    Returns:
        A state for each user, or the error if the record is malformed, which is no one else's. The state of a
        single user may still be under way; those of several are there, in host memory.
    """
    spec, tables, sizes = generation.bundle.spec, generation.tables, generation.sizes
    longest = sizes.histories[-1] if long else spec.short_length
    read = [read_record(user, record, generation.bundle.schema, longest) for user, record in users]
    histories = [one.history for one in read if not isinstance(one, Exception)]
    if not histories:
        return [one for one in read if isinstance(one, Exception)]
    columns, found = tables.behaviours.gather(joined([history.keys for history in histories]))
    columns = {**columns, "gap": joined([history.gaps for history in histories])}
    types = np.where(found, joined([history.types for history in histories]), np.int32(-1))
    sources = [types, *(columns[name] for name in generation.bundle.kept_sources)] if generation.kept else []
    groups: dict[int, dict[int, _Known]] = {}
    end = places = 0
    for place, one in enumerate(read):
        if isinstance(one, Exception):
            continue
        start, end, follows = end, end + len(one.history.keys), None
        if generation.kept:
            own = [column[start:end] for column in sources]
            before = None if kept is None else kept[place]
            follows = continuation(own, before, truncated=one.history.truncated > 0)
            places = length if follows.new is None else min(NEWEST, length)
        groups.setdefault(places, {})[place] = _Known(one, start, end, follows)
    states: dict[int, UserState | Exception] = {n: e for n, e in enumerate(read) if isinstance(e, Exception)}
    for places, group in groups.items():
        size, spans = bucket_for(len(group), sizes.users), [(one.start, one.end) for one in group.values()]
        operands = joined_rows([one.record.features for one in group.values()], size)
        operands = {f"user/{name}": column for name, column in operands.items()}
        operands |= laid_out("short", columns, types, spans, size, spec.short_length)
        operands |= laid_out("long", columns, types, spans if long else [], size, length)
        if places:
            operands["new"] = np.arange(places, dtype=np.int32)
            operands |= carried(generation.kept, [one.follows for one in group.values()], size, length)
        leaves = parted(generation.user_call(length, size, places)(operands), size)
        for (place, one), own in zip(group.items(), leaves, strict=False):
            going_on = {name: own.pop(name) for name in generation.kept}
            unknown = one.end - one.start - int(np.count_nonzero(found[one.start : one.end]))
            states[place] = UserState(
                {f"state/{name}": leaf for name, leaf in own.items()}, length, False, unknown,
                one.record.history.truncated, one.record.report,
                kept=one.follows and Kept(going_on, one.follows.length, one.follows.digest),
                why="" if one.follows is None else one.follows.why,
            )  # fmt: skip
    return [states[n] for n in range(len(read))]
