"""Settings of an engine: shapes, policies, memory and threads, checked when they are made."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from aif_jax.checks import check, number, one_of, whole
from aif_jax.machine import default_compute_threads

MissingPolicy = Literal["drop", "default", "error", "compute"]
Where = Literal["auto", "host", "device"]
UnknownUser = Literal["error", "default"]
UnknownColumns = Literal["error", "ignore"]
OnFailure = Literal["degrade", "error"]
Group = TypeVar("Group")
Word = TypeVar("Word")


def _ascending(name: str, sizes: Any, fewest: int, least: int, step: int) -> tuple[int, ...]:
    good = isinstance(sizes, Sequence) and len(sizes) >= fewest
    check(name, sizes, good, f"a tuple of {fewest} or more sizes")
    for size in sizes:
        whole(name, size, least, step=step)
    check(name, sizes, sorted({*sizes}) == [*sizes], "sizes in ascending order")
    return tuple(sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Shapes that programs are compiled for.

    Attributes:
        candidates: candidate counts of the real-time stage, ascending, at least the bundle's ``k_max``;
            multiples of 16, so that no score depends on the others. More are scored in several calls.
            ``None``: the bundle's smallest, then doubling up to 4,096.
        histories: history lengths of the user program, ascending, the last the model's ``long_length``.
            ``None``: a quarter of it, and all of it.
        users: users of `Engine.rank_many` in one call of the user program, at least 2, ascending, or none.

    >>> Shapes(candidates=[512, 2048])
    Shapes(candidates=(512, 2048), histories=None, users=(8,))
    """

    candidates: Sequence[int] | None = None
    histories: Sequence[int] | None = None
    users: Sequence[int] = (8,)

    def __post_init__(self) -> None:
        for name, bounds in {"candidates": (1, 16, 16), "histories": (1, 1, 1), "users": (0, 2, 1)}.items():
            if (sizes := getattr(self, name)) is not None or name == "users":
                object.__setattr__(self, name, _ascending(f"shapes.{name}", sizes, *bounds))


@dataclasses.dataclass(frozen=True)
class MissingItems:
    """Policy for candidates without an item row; each is counted in the report.

    Attributes:
        policy: ``drop`` leaves them out, ``default`` scores them as an item of which nothing is known,
            ``error`` refuses the request, ``compute`` computes rows of what `Engine`'s ``items`` knows.
        max_items: items that one request may have computed, the first of its candidates.
        max_wait_ms: milliseconds that a request waits for them, but only half of what its deadline leaves.
        retry_s: seconds for which an item that could not be computed is not asked for again.

    >>> MissingItems("compute", max_items=16)
    MissingItems(policy='compute', max_items=16, max_wait_ms=10.0, retry_s=5.0)
    """

    policy: MissingPolicy
    _: dataclasses.KW_ONLY
    max_items: int = 64
    max_wait_ms: float = 10.0
    retry_s: float = 5.0

    def __post_init__(self) -> None:
        one_of("missing_items.policy", self.policy, MissingPolicy)
        whole("missing_items.max_items", self.max_items, 1)
        number("missing_items.max_wait_ms", self.max_wait_ms, "milliseconds")
        number("missing_items.retry_s", self.retry_s, "seconds", zero=True)


@dataclasses.dataclass(frozen=True)
class ItemRows:
    """Place from which the real-time stage reads item rows.

    Attributes:
        where: ``host`` memory, or copies in ``device`` memory (portable programs only); ``auto``: by backend.
        device_capacity: rows on the device at the start; it must hold a full table and one of twice the size.

    >>> ItemRows("device", device_capacity=1_000_000)
    ItemRows(where='device', device_capacity=1000000)
    """

    where: Where = "auto"
    _: dataclasses.KW_ONLY
    device_capacity: int = 0

    def __post_init__(self) -> None:
        one_of("item_rows.where", self.where, Where)
        whole("item_rows.device_capacity", self.device_capacity, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserStateCache:
    """Bounds of the cache of user states.

    Attributes:
        max_bytes: memory, of each generation that is kept; 0 switches the cache off.
        ttl_s: age in seconds at which a cached state is computed again; ``None`` for never.
        extend: keep with a state what deep layers computed of its history, so that new behaviours are
            computed alone; of no effect for a model with fewer than two ``encoder_layers`` or an
            ``encoder_reach``.

    >>> UserStateCache(ttl_s=None)
    UserStateCache(max_bytes=67108864, ttl_s=None, extend=False)
    """

    max_bytes: int = 64 * 2**20
    ttl_s: float | None = 300.0
    extend: bool = False

    def __post_init__(self) -> None:
        whole("user_states.max_bytes", self.max_bytes, 0)
        number("user_states.ttl_s", self.ttl_s, "seconds", none=True)
        check("user_states.extend", self.extend, isinstance(self.extend, bool), "True or False")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threads:
    """Threads of the scheduler, and the queue before them.

    Attributes:
        blocking: threads that wait for user sources and retrieval.
        compute: threads that run programs; see `aif_jax.machine.default_compute_threads` for the default.
        max_queued: requests that may wait with their first step before further ones are refused.

    >>> Threads(compute=2)
    Threads(blocking=8, compute=2, max_queued=1024)
    """

    blocking: int = 8
    compute: int = dataclasses.field(default_factory=default_compute_threads)
    max_queued: int = 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole(f"threads.{name}", value, 1)


class _GroupOrWord(Generic[Group, Word]):
    """Field that holds a group of settings and takes the first setting of it too, so that both are typed."""

    def __init__(self, make: Callable[[Word], Group], word: Word):
        self._make, self._default = make, make(word)

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, config: Any, owner: type | None = None) -> Group:
        return self._default if config is None else vars(config)[self._name]

    def __set__(self, config: Any, value: Group | Word) -> None:
        vars(config)[self._name] = value if isinstance(value, type(self._default)) else self._make(value)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one `Engine`.

    Attributes:
        k: results of a request that gives no number; ``None``: 100, or ``k_max`` if that is smaller.
        shapes: shapes that programs are compiled for.
        missing_items: policy for candidates without an item row, or `MissingItems` with more settings.
        item_rows: place from which the real-time stage reads item rows, or `ItemRows`.
        user_states: bounds of the cache of user states.
        threads: threads of the scheduler, and the queue before them.
        unknown_user: ``error`` refuses users unknown to the source, ``default`` ranks without a record.
        unknown_columns: ``error`` refuses tables with columns that are not pair features, ``ignore`` skips.
        on_deadline: ``degrade`` answers in time with what is there (`aif_jax.serving.ladder`); or ``error``.
        on_user_source_error: ``error`` raises `UserSourceError`, ``degrade`` ranks with the user prior.
        max_memory_bytes: memory of all generations, host and device, over which none is added; ``None``: any.
        max_pending_age_s: age in seconds at which a handle from `Engine.begin` that was never ranked expires.

    >>> EngineConfig(missing_items="default").missing_items.policy
    'default'
    """

    k: int | None = None
    shapes: Shapes = Shapes()
    missing_items: _GroupOrWord[MissingItems, MissingPolicy] = _GroupOrWord(MissingItems, "drop")
    item_rows: _GroupOrWord[ItemRows, Where] = _GroupOrWord(ItemRows, "auto")
    user_states: UserStateCache = UserStateCache()
    threads: Threads = dataclasses.field(default_factory=Threads)
    unknown_user: UnknownUser = "error"
    unknown_columns: UnknownColumns = "error"
    on_deadline: OnFailure = "degrade"
    on_user_source_error: OnFailure = "error"
    max_memory_bytes: int | None = None
    max_pending_age_s: float = 30.0

    def __post_init__(self) -> None:
        for name, group in (("shapes", Shapes), ("user_states", UserStateCache), ("threads", Threads)):
            check(name, value := getattr(self, name), isinstance(value, group), f"{group.__name__}(...)")
        one_of("unknown_user", self.unknown_user, UnknownUser)
        one_of("unknown_columns", self.unknown_columns, UnknownColumns)
        one_of("on_deadline", self.on_deadline, OnFailure)
        one_of("on_user_source_error", self.on_user_source_error, OnFailure)
        whole("k", self.k, 1, none=True)
        whole("max_memory_bytes", self.max_memory_bytes, 1, none=True)
        number("max_pending_age_s", self.max_pending_age_s, "seconds")

    def check_items(self, items: object) -> None:
        """Raise `ConfigError` unless an item source is given where it is needed, and only there."""
        policy, kind = self.missing_items.policy, None if items is None else type(items)
        fix = f"an item source with missing_items='compute', else None; it is {policy!r}: change one of them"
        check("items", kind, (policy == "compute") == (items is not None), fix)

    def sizes(self, *, k_max: int, long_length: int) -> "Sizes":
        """Return the sizes to compile for, by the bundle; `ConfigError` if the two do not fit together."""
        counts = list(self.shapes.candidates or (-(-k_max // 16) * 16,))
        while self.shapes.candidates is None and counts[-1] < 4096:
            counts.append(min(2 * counts[-1], 4096))
        longs = self.shapes.histories or sorted({max(1, long_length // 4), long_length})
        k = min(100, k_max) if self.k is None else self.k
        check("k", k, k <= k_max, f"at most the bundle's k_max={k_max}; lower it, or export a larger k_max")
        fix = f"at least the bundle's k_max={k_max} first; raise it, or export a smaller k_max"
        check("shapes.candidates", counts, counts[0] >= k_max, fix)
        fix = f"the model's long_length={long_length} last; add it"
        check("shapes.histories", longs, longs[-1] == long_length, fix)
        return Sizes(k, tuple(counts), tuple(longs), (1, *self.shapes.users))


class Sizes(NamedTuple):
    """Sizes that an engine is compiled for, as in `Shapes`, ascending; `users` from 1 on.

    >>> EngineConfig(shapes=Shapes(candidates=(64,))).sizes(k_max=50, long_length=200)
    Sizes(k=50, candidates=(64,), histories=(50, 200), users=(1, 8))
    """

    k: int
    candidates: tuple[int, ...]
    histories: tuple[int, ...]
    users: tuple[int, ...]
