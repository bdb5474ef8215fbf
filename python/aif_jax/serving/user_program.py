"""How a user becomes a state: the record is laid out, rows of its history are joined, the program runs."""

from collections.abc import Mapping

import numpy as np

from aif_jax.features import EncodeReport, bucket_for, pad_to
from aif_jax.serving.stages import Generation
from aif_jax.serving.user_states import UserState
from aif_jax.serving.users import History, read_features, read_history
from aif_jax.types import UserId, UserRecord


def long_bucket(record: UserRecord, generation: Generation) -> int:
    """Return the long bucket of a record."""
    longs = generation.sizes.long_buckets
    return bucket_for(min(len(record.items), longs[-1]), longs)


def compute_state(
    user: UserId, record: UserRecord, length: int, generation: Generation, *, long: bool = True
) -> UserState:
    """Run the user side for one user.

    Args:
        user: whose record it is.
        record: what is known of the user.
        length: the long bucket.
        generation: whose programs run.
        long: whether to read the long sequence; without it, the blocks that would are absent.

    Raises:
        RequestError: the record is malformed.
    """
    bundle = generation.bundle
    report = EncodeReport()
    operands = {f"user/{n}": a for n, a in read_features(user, record, bundle.schema, report).items()}
    short = bundle.config.short_length
    longest = generation.sizes.long_buckets[-1] if long else short
    history = read_history(user, record, bundle.schema, longest)
    columns, found = generation.behaviours.gather(history.keys)
    operands |= _sequence("short", columns, found, history, short)
    operands |= _sequence("long", columns, found, history, length, read=length if long else 0)
    leaves = generation.user_call(length)(operands)
    unknown = len(found) - int(np.count_nonzero(found))
    state = {f"state/{name}": leaf for name, leaf in leaves.items()}
    return UserState(state, length, False, unknown, history.truncated, report)


def _sequence(
    name: str,
    columns: Mapping[str, np.ndarray],
    found: np.ndarray,
    history: History,
    length: int,
    read: int | None = None,
) -> dict[str, np.ndarray]:
    """Lay out ``read`` behaviours in ``length`` places; those without a row have type -1, as padding does."""
    read = length if read is None else read
    types = np.where(found, history.types, np.int32(-1))[:read]
    operands = {f"{name}/{column}": pad_to(rows[:read], length)[None] for column, rows in columns.items()}
    operands[f"{name}_type"] = pad_to(types, length, fill=-1)[None]
    return operands
