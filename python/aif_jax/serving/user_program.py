"""The user program: records are laid out, rows of their histories are joined, the compiled program runs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aif_jax.features import EncodeReport, bucket_for
from aif_jax.features.padding import joined, joined_rows, laid_out
from aif_jax.features.records import History, read_features, read_history
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_states import UserState
from aif_jax.types import UserId, UserRecord


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
    users: Sequence[tuple[UserId, UserRecord]], length: int, generation: Generation, *, long: bool = True
) -> list[UserState | Exception]:
    """Run the user side for several users, in one call of the smallest program that takes so many.

    Args:
        users: with what is known of each; not more than the engine has a program for.
        length: the history length of all of them.
        generation: whose programs run.
        long: whether to read the long sequences.

    Returns:
        A state for each user, or the error if the record is malformed, which is no one else's. The state of a
        single user may still be under way; those of several are there, in host memory.
    """
    short = generation.bundle.spec.short_length
    longest = generation.sizes.histories[-1] if long else short
    read = [_read(user, record, generation, longest) for user, record in users]
    good = [one for one in read if isinstance(one, _Read)]
    if not good:
        return [one for one in read if isinstance(one, Exception)]
    size = bucket_for(len(good), generation.sizes.users)
    operands = joined_rows([one.features for one in good], size)
    histories = [one.history for one in good]
    columns, found = generation.tables.behaviours.gather(joined([history.keys for history in histories]))
    columns = {**columns, "gap": joined([history.gaps for history in histories])}
    types = np.where(found, joined([history.types for history in histories]), np.int32(-1))
    spans, start = [], 0
    for history in histories:
        spans.append((start, start + len(history.keys)))
        start += len(history.keys)
    operands |= laid_out("short", columns, types, spans, size, short)
    operands |= laid_out("long", columns, types, spans if long else [], size, length)
    leaves = generation.user_call(length, size)(operands)
    states = iter(
        UserState(
            part, length, False, end - start - int(np.count_nonzero(found[start:end])),
            one.history.truncated, one.report,
        )
        for one, part, (start, end) in zip(good, _parts(leaves, size), spans, strict=False)
    )  # fmt: skip
    return [one if isinstance(one, Exception) else next(states) for one in read]


class _Read(NamedTuple):
    """A record that was checked."""

    features: Mapping[str, np.ndarray]
    history: History
    report: EncodeReport


def _read(user: UserId, record: UserRecord, generation: Generation, longest: int) -> _Read | Exception:
    schema, report = generation.bundle.schema, EncodeReport()
    try:
        features = {f"user/{n}": a for n, a in read_features(user, record, schema, report).items()}
        return _Read(features, read_history(user, record, schema, longest), report)
    except Exception as error:
        return error


def _parts(leaves: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    """Return the state's leaves of each user, ``[1, ...]`` each."""
    if size == 1:
        return [{f"state/{name}": leaf for name, leaf in leaves.items()}]
    # To slice on a device would be another program for each leaf, and a state is kept in host memory anyway.
    on_host = {f"state/{name}": np.asarray(leaf) for name, leaf in leaves.items()}
    return [{name: leaf[n : n + 1] for name, leaf in on_host.items()} for n in range(size)]
