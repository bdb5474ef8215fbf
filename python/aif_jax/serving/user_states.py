"""The cache of user states, and how a user becomes one.

A cached state is keyed by (user, bundle version, revision of the record, long bucket) and holds nothing of a
request's context. It is also as old as the behaviour table was when it was computed: an item that enters the
table later counts for a cached user once the state's time to live is over or the record's revision has
changed.
"""

import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError, OverloadedError
from aif_jax.features import EncodeReport, bucket_for, pad_to
from aif_jax.nearline.store import RowStore
from aif_jax.serving.stages import Generation
from aif_jax.serving.users import History, read_features, read_history
from aif_jax.types import UserId, UserRecord

_CHECK, _COUNTS = "#check", "#counts"


@dataclasses.dataclass(frozen=True, slots=True)
class UserState:
    """What the user side computed for one user.

    Attributes:
        leaves: operands ``state/...`` of the real-time stage, by path, each ``[1, ...]``.
        length: the long bucket.
        hit: whether it came from the cache.
        unknown_behaviours: behaviours whose item is not in the behaviour table.
        truncated: behaviours beyond the model's ``long_length``.
        encoding: what encoding the user's features left out; ``None`` for a cached state.
    """

    leaves: Mapping[str, Any]
    length: int
    hit: bool
    unknown_behaviours: int
    truncated: int
    encoding: EncodeReport | None


class UserStates:
    """Cached user states: one bounded embedding cache for each long bucket, each with room for as many users.

    Args:
        generation: whose states they are.

    Raises:
        ConfigError: ``user_state_bytes`` does not hold a few states of each long bucket.
    """

    def __init__(self, generation: Generation):
        bundle, config = generation.bundle, generation.config
        self._version = bundle.version
        self._stores: dict[int, RowStore] = {}
        self._not_kept: Counter[int] = Counter()
        self._counting = threading.Lock()
        if not config.user_state_bytes:
            return
        columns = {length: _state_columns(bundle, length) for length in generation.sizes.long_buckets}
        weight = {length: _row_bytes(specs) for length, specs in columns.items()}
        for length, specs in columns.items():
            share = config.user_state_bytes * weight[length] // sum(weight.values())
            try:
                self._stores[length] = RowStore(specs, capacity_bytes=share, ttl_s=config.user_state_ttl_s)
            except ConfigError as error:
                raise ConfigError(
                    f"user_state_bytes: got {config.user_state_bytes}, of which states with a history of "
                    f"{length} get {share}: {error}; raise it, or set it to 0 for no cache."
                ) from error

    def get(self, user: UserId, revision: Any, length: int) -> UserState | None:
        """Return the state of a user in a long bucket, if it is cached and fresh."""
        store = self._stores.get(length)
        if store is None:
            return None
        key, check = self._key(user, revision)
        columns, found = store.gather(key)
        if not found[0] or not np.array_equal(columns.pop(_CHECK), check):
            return None
        unknown, truncated = columns.pop(_COUNTS)[0].tolist()
        return UserState(
            {f"state/{n}": c for n, c in columns.items()}, length, True, unknown, truncated, None
        )

    def put(self, user: UserId, revision: Any, state: UserState) -> None:
        """Keep a state, which may drop others. One that finds no room is counted, not kept."""
        store = self._stores.get(state.length)
        if store is None:
            return
        key, check = self._key(user, revision)
        columns = {path.removeprefix("state/"): np.asarray(leaf) for path, leaf in state.leaves.items()}
        columns[_CHECK] = check
        columns[_COUNTS] = np.array([[state.unknown_behaviours, state.truncated]], np.int32)
        try:
            store.upsert(key, columns)
        except (OverloadedError, MemoryError):
            # The state is there, so its request goes on; only the user's next one computes it again.
            with self._counting:
                self._not_kept[state.length] += 1

    def stats(self) -> dict[str, dict[str, int]]:
        """Return the counters of each embedding cache and the states ``not_kept``, by long bucket."""
        return {
            str(length): {**store.cache.stats(), "not_kept": self._not_kept[length]}
            for length, store in self._stores.items()
        }

    def _key(self, user: UserId, revision: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the key ``uint64[1]`` and, against collisions, 64 more bits of hash ``uint32[1, 2]``."""
        text = f"{self._version}\0{type(user).__name__}\0{user}\0{revision!r}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return np.frombuffer(digest, np.uint64, 1), np.frombuffer(digest, np.uint32, 2, 8).reshape(1, 2)


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


def _state_columns(bundle: Bundle, length: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    columns = {}
    for operand in bundle.signature("stage").inputs:
        if operand.path.startswith("state/"):
            spec = operand.at({"n": 16, "l": length})
            columns[operand.path.removeprefix("state/")] = (np.dtype(spec.dtype), tuple(spec.shape[1:]))
    return {**columns, _CHECK: (np.dtype(np.uint32), (2,)), _COUNTS: (np.dtype(np.int32), (2,))}


def _row_bytes(specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> int:
    return sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in specs.values())
