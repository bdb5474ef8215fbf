"""What an engine may be told: sizes, policies, threads; checked when it is made, not when a request comes."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from aif_jax.errors import ConfigError
from aif_jax.serving.candidate_tables import UnknownColumns
from aif_jax.serving.threads import default_compute_threads

MissingItems = Literal["drop", "default", "error", "compute"]
UnknownUser = Literal["error", "default"]
Late = Literal["degrade", "error"]
Rows = Literal["auto", "host", "device"]
UserBatching = Literal["rank_many", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one `Engine`.

    Attributes:
        k: results of a request that does not say how many it wants; ``None`` for 100, or the bundle's
            ``k_max`` if that is smaller.
        buckets: candidate counts for which the real-time stage is compiled; multiples of 16, ascending, the
            smallest at least the bundle's ``k_max``. More candidates than the largest are scored in several
            calls of the largest and merged. ``None``: the bundle's smallest, then doubling up to 4,096.
        long_buckets: history lengths for which the user side is compiled, ascending; the largest must be the
            model's ``long_length``. ``None``: a quarter of it, and all of it.
        user_batches: numbers of users for whom the user program is compiled too, to compute the states of
            several in one call; at least 2, ascending. Empty: one call for each user.
        user_batching: whose user sides may share a call when several wait for a compute thread: those of
            `Engine.rank_many`, or ``all``. A state's last bits, and those of scores, may then differ from
            what they are alone.
        missing_items: what becomes of candidates without an item row: ``drop`` leaves them out, ``default``
            scores them as an item of which nothing is known, ``error`` refuses the request, ``compute`` has
            rows computed of what `Engine`'s ``items`` knows of them, and leaves out the rest. All are
            counted.
        compute_missing_max: items that one request may have computed, the first of its candidates.
        compute_missing_ms: milliseconds that a request waits for them, and no longer than half of what is
            left of its deadline; what comes later is there for other requests.
        compute_missing_retry_s: seconds for which an item that could not be computed is not asked for again.
        unknown_columns: what becomes of columns of a table of candidates that are no pair features:
            ``error`` refuses the request, ``ignore`` counts them among the report's ``unknown_features``.
        rows: where the real-time stage reads item rows: ``host`` memory, or copies in ``device`` memory that
            follow the index (portable programs only). ``auto``: the device, unless JAX's backend is the CPU.
        device_capacity: rows to have room for on the device from the start; a full table is replaced by one
            of twice the size, for which the device must hold both.
        unknown_user: what becomes of users that the source does not know: ``error`` refuses the request,
            ``default`` ranks for a user of whom nothing is known.
        late: what becomes of a request with a deadline whose user side or real-time stage is late, or refused
            for want of room: ``degrade`` answers with as much as is there in time (`aif_jax.serving.ladder`),
            ``error`` refuses it. Nothing is degraded without a deadline.
        user_source_failure: what becomes of a request whose user source raised, with a deadline or without:
            ``error`` passes the error on, ``degrade`` ranks with the user prior.
        user_state_bytes: memory for cached user states, of each generation that is kept; 0 switches the cache
            off.
        memory_budget_bytes: memory that all generations together may need, of host and device, when another
            is made beside those that are there: `Engine.publish` and `Engine.shadow` refuse one that has no
            room. ``None`` for no bound. What counts: `aif_jax.serving.memory`.
        user_state_ttl_s: age in seconds at which a cached user state is computed again; ``None`` for never.
        blocking_threads: threads that wait for user sources and retrieval.
        compute_threads: threads that run programs; few, because each program uses XLA's own pool. Left
            out, it follows the cores that the process gets, see `aif_jax.serving.threads`.
        queue_bound: requests that may wait for a thread with their first step before further ones are
            refused; the next steps of those that were taken on always find room.
        max_pending_age_s: age in seconds at which a handle from `Engine.begin` that was never ranked expires.
    """

    k: int | None = None
    buckets: Sequence[int] | None = None
    long_buckets: Sequence[int] | None = None
    user_batches: Sequence[int] = (8,)
    user_batching: UserBatching = "rank_many"
    missing_items: MissingItems = "drop"
    compute_missing_max: int = 64
    compute_missing_ms: float = 10.0
    compute_missing_retry_s: float = 5.0
    unknown_columns: UnknownColumns = "error"
    rows: Rows = "auto"
    device_capacity: int = 0
    unknown_user: UnknownUser = "error"
    late: Late = "degrade"
    user_source_failure: Late = "error"
    user_state_bytes: int = 64 * 2**20
    memory_budget_bytes: int | None = None
    user_state_ttl_s: float | None = 300.0
    blocking_threads: int = 8
    compute_threads: int = dataclasses.field(default_factory=default_compute_threads)
    queue_bound: int = 1024
    max_pending_age_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("k", "blocking_threads", "compute_threads", "queue_bound", "compute_missing_max"):
            value = getattr(self, name)
            if name == "k" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: got {value!r}, expected a whole number of at least 1.")
        for name in ("buckets", "long_buckets"):
            sizes = getattr(self, name)
            if sizes is None:
                continue
            sizes = tuple(sizes)
            object.__setattr__(self, name, sizes)
            if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
                raise ConfigError(f"{name}: got {sizes}, expected one or more positive sizes, ascending.")
        if self.buckets is not None and any(size % 16 for size in self.buckets):
            raise ConfigError(
                f"buckets: got {self.buckets}, expected multiples of 16: only then is a candidate's "
                "score the same in every company."
            )
        batches = tuple(self.user_batches)
        object.__setattr__(self, "user_batches", batches)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 2 for size in batches) or any(
            a >= b for a, b in itertools.pairwise(batches)
        ):
            raise ConfigError(
                f"user_batches: got {batches}, expected whole numbers of at least 2, ascending, or none."
            )
        if self.user_batching not in ("rank_many", "all"):
            raise ConfigError(f"user_batching: got {self.user_batching!r}, expected 'rank_many' or 'all'.")
        if self.missing_items not in ("drop", "default", "error", "compute"):
            raise ConfigError(
                f"missing_items: got {self.missing_items!r}, expected 'drop', 'default', 'error' or "
                "'compute'."
            )
        if not self.compute_missing_ms > 0:
            raise ConfigError(
                f"compute_missing_ms: got {self.compute_missing_ms}, expected more than 0 milliseconds."
            )
        if not self.compute_missing_retry_s >= 0:
            raise ConfigError(
                f"compute_missing_retry_s: got {self.compute_missing_retry_s}, expected 0 or more seconds."
            )
        if self.unknown_columns not in ("error", "ignore"):
            raise ConfigError(f"unknown_columns: got {self.unknown_columns!r}, expected 'error' or 'ignore'.")
        if self.rows not in ("auto", "host", "device"):
            raise ConfigError(f"rows: got {self.rows!r}, expected 'auto', 'host' or 'device'.")
        if self.device_capacity < 0:
            raise ConfigError(f"device_capacity: got {self.device_capacity}, expected 0 or more rows.")
        if self.unknown_user not in ("error", "default"):
            raise ConfigError(f"unknown_user: got {self.unknown_user!r}, expected 'error' or 'default'.")
        for name in ("late", "user_source_failure"):
            if (policy := getattr(self, name)) not in ("degrade", "error"):
                raise ConfigError(f"{name}: got {policy!r}, expected 'degrade' or 'error'.")
        if self.user_state_bytes < 0:
            raise ConfigError(f"user_state_bytes: got {self.user_state_bytes}, expected 0 or more bytes.")
        if self.memory_budget_bytes is not None and self.memory_budget_bytes < 1:
            raise ConfigError(
                f"memory_budget_bytes: got {self.memory_budget_bytes}, expected at least 1 byte, or None for "
                "no bound."
            )
        if self.user_state_ttl_s is not None and not self.user_state_ttl_s > 0:
            raise ConfigError(
                f"user_state_ttl_s: got {self.user_state_ttl_s}, expected more than 0 seconds, "
                "or None for no limit."
            )
        if not self.max_pending_age_s > 0:
            raise ConfigError(
                f"max_pending_age_s: got {self.max_pending_age_s}, expected more than 0 seconds."
            )

    def check_items(self, items: object) -> None:
        """Check that an item source is given where it is needed, and only there.

        Raises:
            ConfigError: it is not.
        """
        if (self.missing_items == "compute") == (items is not None):
            return
        if items is None:
            raise ConfigError(
                "missing_items: 'compute' needs an item source to compute from; pass Engine(items=...), or "
                "configure missing_items='drop'."
            )
        raise ConfigError(
            f"items: an item source was given, but missing_items={self.missing_items!r} never asks it; "
            "configure missing_items='compute', or leave items out."
        )

    def sizes(self, *, k_max: int, long_length: int) -> "Sizes":
        """Return the sizes to compile for, with the bundle's defaults filled in.

        Raises:
            ConfigError: a bucket is smaller than ``k_max``, ``k`` is larger, or the largest long bucket is
                not ``long_length``.
        """
        buckets = list(self.buckets or ())
        if not buckets:
            buckets = [-(-k_max // 16) * 16]
            while buckets[-1] < 4096:
                buckets.append(min(2 * buckets[-1], 4096))
        if buckets[0] < k_max:
            raise ConfigError(
                f"buckets: the smallest is {buckets[0]}, expected at least the bundle's k_max of {k_max}; "
                "raise it, or export the model with a smaller k_max."
            )
        k = min(100, k_max) if self.k is None else self.k
        if k > k_max:
            raise ConfigError(
                f"k: got {k}, but the bundle was exported for at most k_max={k_max} results; "
                "lower k, or export the model with a larger k_max."
            )
        longs = list(self.long_buckets or sorted({max(1, long_length // 4), long_length}))
        if longs[-1] != long_length:
            raise ConfigError(
                f"long_buckets: the largest is {longs[-1]}, expected the model's long_length of "
                f"{long_length}."
            )
        return Sizes(k, tuple(buckets), tuple(longs), (1, *self.user_batches))


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """What an engine is compiled for: an `EngineConfig` and a bundle together.

    Attributes:
        k: results of a request that does not say how many it wants.
        buckets: candidate counts, ascending.
        long_buckets: history lengths, ascending.
        users: users in one call of the user program, from 1 on, ascending.
    """

    k: int
    buckets: tuple[int, ...]
    long_buckets: tuple[int, ...]
    users: tuple[int, ...]
