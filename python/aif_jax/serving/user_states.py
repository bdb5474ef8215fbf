"""User states and their cache.

A state is kept by user, one for each history length, with the bundle version and the revision of the record
that it was computed from; a record of another revision does not get it, and its own state takes the place. It
holds nothing of a request's context. It is also as old as the behaviour table was when it was computed: an
item that enters the table later counts for a cached user once the state's time to live is over, the
record's revision has changed, or the user is invalidated.
"""

import dataclasses
import itertools
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError, OverloadedError
from aif_jax.features import EncodeReport
from aif_jax.features.continuation import WAYS, Kept
from aif_jax.features.ids import user_keys
from aif_jax.nearline.store import ColumnSpecs, RowStore, row_bytes
from aif_jax.serving.generation import Generation
from aif_jax.types import UserId

_OWNER, _SOURCE, _COUNTS, _COMPUTED, _KEPT = "#owner", "#source", "#counts", "#computed", "#kept"

_MAX_REMEMBERED = 65_536
"""Users remembered: those invalidated, for user sides that are under way meanwhile; and those whose states
were kept last, for the next generation."""


@dataclasses.dataclass(frozen=True, slots=True)
class UserState:
    """State of one user, computed by the user program.

    Attributes:
        leaves: operands ``state/...`` of the real-time stage, by path, each ``[1, ...]``.
        length: the history length.
        hit: whether it came from the cache.
        unknown_behaviours: behaviours whose item is not in the behaviour table.
        truncated: behaviours beyond the model's ``long_length``.
        encoding: what encoding the user's features left out; ``None`` for a cached state.
        age_ms: milliseconds since it was computed, for a cached state.
        kept: what a later state goes on from, of a computed state under ``user_states.extend``.
        why: with it, ``extended``, or why it was computed whole, see `aif_jax.features.continuation`.
    """

    leaves: Mapping[str, Any]
    length: int
    hit: bool
    unknown_behaviours: int
    truncated: int
    encoding: EncodeReport | None
    age_ms: float = 0.0
    kept: Kept | None = None
    why: str = ""


class UserStates:
    """Cached user states: one bounded embedding cache for each history length, with room for as many users.

    Safe to use from any thread. Look-ups take no lock; what is kept and what is invalidated does, so that
    nothing computed from a record fetched before an invalidation is there after it.

    Args:
        generation: whose states they are.

    Raises:
        ConfigError: ``user_states.max_bytes`` does not hold a few states of each history length.
    """

    def __init__(self, generation: Generation):
        bundle, config = generation.bundle, generation.config
        self._version = bundle.version
        self._kept = generation.kept
        self._stores: dict[int, RowStore] = {}
        self._counts: dict[int, Counter[str]] = {}
        self._bytes: dict[int, int] = {}
        self._changing = threading.Lock()
        self._moment = 0
        self._invalidated: OrderedDict[int, int] = OrderedDict()
        self._forgotten = 0
        self._recent: OrderedDict[UserId, None] = OrderedDict()
        if not config.user_states.max_bytes:
            return
        columns = {
            length: _state_columns(bundle, length, self._kept) for length in generation.sizes.histories
        }
        self._bytes = {length: row_bytes(specs) for length, specs in columns.items()}
        for length, specs in columns.items():
            share = config.user_states.max_bytes * self._bytes[length] // sum(self._bytes.values())
            self._counts[length] = Counter(stale=0, invalidated=0, void=0, not_kept=0)
            self._counts[length].update(dict.fromkeys(WAYS, 0) if self._kept else {})
            try:
                self._stores[length] = RowStore(specs, capacity_bytes=share, ttl_s=config.user_states.ttl_s)
            except ConfigError as error:
                raise ConfigError(
                    f"user_states.max_bytes: got {config.user_states.max_bytes}, of which states with a "
                    f"history of {length} get {share}: {error}; raise it, or set it to 0 for no cache."
                ) from error

    def moment(self) -> int:
        """Return the moment, to be taken before a record is fetched whose state shall be kept."""
        return self._moment

    def invalidated_since(self, user: UserId, moment: int) -> bool:
        """Return whether a record of a user that was fetched at a moment may be out of date."""
        key = int(user_keys(user, "").user[0])
        with self._changing:
            return moment < self._invalidated.get(key, self._forgotten)

    def get(self, user: UserId, revision: Any, length: int) -> UserState | None:
        """Return the state of a user in a history length, if it is cached, fresh and of this revision."""
        store = self._stores.get(length)
        if store is None:
            return None
        keys = user_keys(user, f"{self._version}\0{revision!r}")
        columns, found = store.gather(keys.user)
        if not found[0] or not np.array_equal(columns.pop(_OWNER), keys.owner):
            return None
        if not np.array_equal(columns.pop(_SOURCE), keys.source):
            with self._changing:
                self._counts[length]["stale"] += 1
            return None
        unknown, truncated = columns.pop(_COUNTS)[0].tolist()
        age_ms = (time.monotonic() - float(columns.pop(_COMPUTED).view(np.float64)[0, 0])) * 1e3
        leaves = {f"state/{n}": a for n, a in columns.items() if n != _KEPT and n not in self._kept}
        return UserState(leaves, length, True, unknown, truncated, None, max(0.0, age_ms))

    def kept(self, user: UserId, length: int) -> Kept | None:
        """Return what is kept of a user's history, whatever the revision of the record that it is of."""
        store, keys = self._stores.get(length), user_keys(user, "")
        if store is None or not self._kept:
            return None
        columns, found = store.gather(keys.user)
        if not found[0] or not np.array_equal(columns[_OWNER], keys.owner):
            return None
        count, *digest = columns[_KEPT][0].tolist()
        return Kept({name: columns[name] for name in self._kept}, count, np.array(digest, np.uint32))

    def put(self, user: UserId, revision: Any, state: UserState, since: int) -> None:
        """Keep a state, which may drop others. One that may not be kept, or finds no room, is counted.

        Args:
            user: whose state it is.
            revision: revision of the record.
            state: what was computed of it.
            since: the `moment` before the record was fetched; a user invalidated since then may have
                another record by now.
        """
        store = self._stores.get(state.length)
        if store is None:
            return
        keys = user_keys(user, f"{self._version}\0{revision!r}")
        columns = {path.removeprefix("state/"): np.asarray(leaf) for path, leaf in state.leaves.items()}
        columns[_OWNER], columns[_SOURCE] = keys.owner, keys.source
        columns[_COUNTS] = np.array([[state.unknown_behaviours, state.truncated]], np.int32)
        columns[_COMPUTED] = np.array([[time.monotonic()]], np.float64).view(np.uint32)
        if state.kept is not None:
            columns |= {name: np.asarray(column) for name, column in state.kept.columns.items()}
            columns[_KEPT] = np.array([[state.kept.length, *state.kept.digest]], np.uint32)
        with self._changing:
            counts = self._counts[state.length]
            if state.why:
                counts[state.why] += 1
            if since < self._invalidated.get(int(keys.user[0]), self._forgotten):
                counts["void"] += 1
                return
            try:
                store.upsert(keys.user, columns)
                self._recent[user] = None
                self._recent.move_to_end(user)
                if len(self._recent) > _MAX_REMEMBERED:
                    self._recent.popitem(last=False)
            except (OverloadedError, MemoryError):
                # The state is there, so its request continues; only the user's next one computes it again.
                counts["not_kept"] += 1

    def recent(self, count: int) -> list[UserId]:
        """Return users whose states were kept last, the latest first."""
        with self._changing:
            return list(itertools.islice(reversed(self._recent), count))

    def invalidate(self, users: Iterable[UserId]) -> int:
        """Drop what is cached of some users, and keep nothing that is computed of records fetched before.

        Returns:
            The number of states dropped.
        """
        dropped = 0
        for user in users:
            key = user_keys(user, "").user
            with self._changing:
                self._moment += 1
                self._invalidated[int(key[0])] = self._moment
                self._invalidated.move_to_end(int(key[0]))
                if len(self._invalidated) > _MAX_REMEMBERED:
                    # From whose record a state is computed since then is not known any more: none is kept.
                    _, self._forgotten = self._invalidated.popitem(last=False)
                for length, store in self._stores.items():
                    gone = int(store.cache.delete(key))
                    self._counts[length]["invalidated"] += gone
                    dropped += gone
        return dropped

    def stats(self) -> dict[str, dict[str, int]]:
        """Return counters by history length: those of the embedding cache, and more.

        ``bytes_per_state`` are those of a row without what the cache keeps beside it. ``stale`` counts
        look-ups that found a state of another revision, ``invalidated`` states dropped by `invalidate`,
        ``void`` those not kept because the user was invalidated while they were computed, ``not_kept``
        those that found no room. Under ``extend`` computed states are counted by
        `aif_jax.features.continuation.WAYS`: ``extended``, or why they were computed whole.
        """
        with self._changing:
            return {
                str(length): {
                    **store.cache.stats(), "bytes_per_state": self._bytes[length], **self._counts[length],
                }
                for length, store in self._stores.items()
            }  # fmt: skip


def _state_columns(bundle: Bundle, length: int, kept: ColumnSpecs) -> ColumnSpecs:
    columns = {name: (dtype, (length, *shape)) for name, (dtype, shape) in kept.items()}
    for operand in bundle.signature("stage").inputs:
        if operand.path.startswith("state/"):
            spec = operand.at({"n": 16, "l": length})
            columns[operand.path.removeprefix("state/")] = (np.dtype(spec.dtype), tuple(spec.shape[1:]))
    word = np.dtype(np.uint32)
    if kept:
        columns[_KEPT] = (word, (5,))
    return {
        **columns,
        _OWNER: (word, (2,)),
        _SOURCE: (word, (2,)),
        _COUNTS: (np.dtype(np.int32), (2,)),
        # A float64 in two words, which keep rows free of gaps.
        _COMPUTED: (word, (2,)),
    }
