"""User sources: one in memory, and one that fetches several users in one call."""

import asyncio
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aif_jax.aio import TimeLimit, is_coroutine_function
from aif_jax.checks import number, typed, whole
from aif_jax.errors import ConfigError, UserSourceError
from aif_jax.features.copies import copied
from aif_jax.shown import shown
from aif_jax.types import UserId, UserRecord

Fetched = Sequence[UserRecord | None] | Mapping[Any, UserRecord | None]


class InMemoryUsers:
    """A user source that is a dictionary: for tests, demos and catalogues of users that fit.

    >>> users = InMemoryUsers()
    >>> users.put("ann", {"country": "de"}, items=[17, 42], types=["click", "like"]).revision
    0
    >>> users("bob") is None
    True
    """

    @typed
    def __init__(self, records: Mapping[UserId, UserRecord] | None = None):
        self._records: dict[UserId, UserRecord] = dict(records or {})
        self._lock = threading.Lock()

    def __call__(self, user: UserId, /) -> UserRecord | None:
        """Return the user's record, or ``None``."""
        return self._records.get(user)

    def __len__(self) -> int:
        return len(self._records)

    def put(
        self, user: UserId, features: Mapping[str, Any] | None = None, items: Any = (), types: Any = (),
        times: Any = (),
    ) -> UserRecord:  # fmt: skip
        """Add or replace a user; the revision counts up, so that no state of the old record is used."""
        with self._lock:
            known = getattr(self._records.get(user), "revision", None)
            # Copied: under this revision nothing may change any more.
            revision = known + 1 if isinstance(known, int) else 0
            given = copied(items), copied(types), revision, copied(times)
            self._records[user] = record = UserRecord(copied(features or {}), *given)
        return record


class BatchedUsers:
    """A user source that fetches in one call the users whose requests ask at the same time.

    A user who is asked for while fewer than ``at_once`` calls are under way is fetched at once, or after
    ``window_ms`` if any call is; beyond that users gather until a call ends. So a store that keeps up gets
    small calls at once, and one that falls behind gets fewer and larger ones. A user who is asked for twice
    meanwhile is fetched once.

    A request that waits holds one of the engine's threads for blocking work, so a call can have no more users
    than `aif_jax.serving.Threads` has of those.

    Args:
        fetch: from a list of different user ids to their records in the same order, ``None`` for an unknown
            user; or to a mapping of records by id, which may lack the unknown ones. A coroutine function, or
            a plain one, which runs in a thread.
        max_users: most users a call.
        window_ms: time to wait for further users while another call is under way.
        at_once: calls under way.
        timeout_ms: of one call, with `TimeoutError`. A plain function runs on behind it.
        retries: further tries after a call that raised.
        unknown_s: time for which an unknown user is not asked for again; 0 for none.
        max_unknown: most unknown users to remember; the oldest are forgotten first.

    Raises:
        ConfigError: an argument is out of bounds, or ``fetch`` cannot be called.

    >>> async def fetch(users):
    ...     return [UserRecord({"country": "de"}) if user == "ann" else None for user in users]
    >>> users = BatchedUsers(fetch)
    >>> asyncio.run(users("ann")).features["country"], asyncio.run(users("bob")), users.stats()["calls"]
    ('de', None, 2)
    """

    @typed
    def __init__(
        self,
        fetch: Callable[[list[Any]], Fetched | Awaitable[Fetched]],
        *,
        max_users: int = 64,
        window_ms: float = 0.5,
        at_once: int = 4,
        timeout_ms: float | None = None,
        retries: int = 0,
        unknown_s: float = 0.0,
        max_unknown: int = 100_000,
    ) -> None:
        if not callable(fetch):
            raise ConfigError(f"fetch: got {shown(fetch)}, expected a function of a list of user ids.")
        for name, value, least in (
            ("max_users", max_users, 1), ("at_once", at_once, 1), ("retries", retries, 0),
            ("max_unknown", max_unknown, 0),
        ):  # fmt: skip
            whole(name, value, least)
        number("window_ms", window_ms, "milliseconds", zero=True)
        number("timeout_ms", timeout_ms, "milliseconds", none=True)
        number("unknown_s", unknown_s, "seconds", zero=True)
        self.max_users, self.at_once, self.window_s = max_users, at_once, window_ms / 1e3
        self._fetch, self._plain, self._retries = fetch, not is_coroutine_function(fetch), retries
        self._timeout_s = None if timeout_ms is None else timeout_ms / 1e3
        self._unknown_s, self._max_unknown = unknown_s, max_unknown
        self._unknown: OrderedDict[Any, float] = OrderedDict()
        self._lock = threading.Lock()
        # By event loop: two engines that share a source have one each.
        self._gathering: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Gathering] = (
            weakref.WeakKeyDictionary()
        )
        names: list[str] = ["calls", "users", "failed", "retried", "unknown"]
        self._counts = dict.fromkeys(names, 0)

    async def __call__(self, user: UserId, /) -> UserRecord | None:
        """Return the user's record, or ``None``."""
        if self._unknown_s and self._is_unknown(user):
            return None
        loop = asyncio.get_running_loop()
        with self._lock:
            gathering = self._gathering.get(loop)
            if gathering is None:
                self._gathering[loop] = gathering = _Gathering(self)
        return await gathering.ask(user)

    def stats(self) -> dict[str, int]:
        """Return counts since the start.

        ``calls`` of ``fetch``, tries included, the ``users`` that they fetched, calls that ``failed``, tries
        that were ``retried``, and answers that a remembered ``unknown`` user spared.
        """
        with self._lock:
            return dict(self._counts)

    def forget_unknown(self, user: UserId) -> None:
        """Ask for a user again, though the user was unknown a moment ago: someone who has just signed up."""
        with self._lock:
            self._unknown.pop(user, None)

    async def fetch_all(self, users: list[Any]) -> list[UserRecord | None]:
        """Return the records of users by one call, or by its further tries.

        Raises:
            UserSourceError: what came back is not one record for each user.
        """
        for left in range(self._retries, -1, -1):
            try:
                async with TimeLimit(self._timeout_s):
                    if self._plain:
                        loop = asyncio.get_running_loop()
                        found = await loop.run_in_executor(None, self._fetch, users)
                    else:
                        found = await self._fetch(users)  # type: ignore[misc]
                records = _in_order(users, found)
            except Exception:
                self._count(calls=1, failed=1, retried=bool(left))
                if not left:
                    raise
            else:
                self._count(calls=1, users=len(users))
                if self._unknown_s:
                    self._remember(
                        user for user, record in zip(users, records, strict=True) if record is None
                    )
                return records
        raise AssertionError("the last try returns or raises")

    def _count(self, **by: int) -> None:
        with self._lock:
            for name, more in by.items():
                self._counts[name] += more

    def _is_unknown(self, user: Any) -> bool:
        with self._lock:
            until = self._unknown.get(user)
            if until is None or until <= time.monotonic():
                return False
            self._counts["unknown"] += 1
            return True

    def _remember(self, unknown: Any) -> None:
        until = time.monotonic() + self._unknown_s
        with self._lock:
            for user in unknown:
                self._unknown[user] = until
                self._unknown.move_to_end(user)
            while len(self._unknown) > self._max_unknown:
                self._unknown.popitem(last=False)


class _Gathering:
    """Users of one event loop who wait for a call, and the calls under way."""

    def __init__(self, source: BatchedUsers) -> None:
        self._source = source
        self._waiting: dict[Any, asyncio.Future[Any]] = {}
        self._asked: dict[Any, asyncio.Future[Any]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None

    def ask(self, user: Any) -> "asyncio.Future[Any]":
        """Return what will be the user's record; to cancel it does not end the call."""
        future = self._waiting.get(user) or self._asked.get(user)
        if future is None:
            self._waiting[user] = future = asyncio.get_running_loop().create_future()
            self._go_on()
        return asyncio.shield(future)

    def _go_on(self) -> None:
        """Begin a call, or see to it that one begins."""
        source, loop = self._source, asyncio.get_running_loop()
        if not self._waiting or len(self._calls) >= source.at_once:
            return
        if len(self._waiting) >= source.max_users:
            self._begin()
        elif self._timer is None:
            # Never at once: those who ask in the same turn of the loop share a call.
            later = self._calls and source.window_s
            self._timer = (
                loop.call_later(source.window_s, self._begin) if later else loop.call_soon(self._begin)
            )

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting or len(self._calls) >= self._source.at_once:
            return
        users = list(self._waiting)[: self._source.max_users]
        futures = {user: self._waiting.pop(user) for user in users}
        self._asked.update(futures)
        call = asyncio.get_running_loop().create_task(self._call(futures))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        self._go_on()

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        if not call.cancelled():
            self._go_on()

    async def _call(self, futures: "dict[Any, asyncio.Future[Any]]") -> None:
        try:
            records = await self._source.fetch_all(list(futures))
        except asyncio.CancelledError:
            if _is_cancelled():  # the loop is closed
                for future in futures.values():
                    future.cancel()
                raise
            _fail(
                futures.values(), UserSourceError("fetch: something in it was cancelled, such as a client.")
            )
        except Exception as error:
            _fail(futures.values(), error)
        else:
            for future, record in zip(futures.values(), records, strict=True):
                future.set_result(record)
        finally:
            for user in futures:
                del self._asked[user]


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fail(futures: "Iterable[asyncio.Future[Any]]", error: Exception) -> None:
    for future in futures:
        future.set_exception(error)
        future.exception()  # so that the loop reports nothing where all who waited are gone


def _in_order(users: list[Any], found: Any) -> list[UserRecord | None]:
    """Return the records of users in their order.

    Raises:
        UserSourceError: there are more or fewer.
    """
    if isinstance(found, Mapping):
        return [found.get(user) for user in users]
    if not isinstance(found, (list, tuple)) or len(found) != len(users):
        given = f"{len(found)} records" if isinstance(found, (list, tuple)) else shown(found)
        raise UserSourceError(
            f"fetch: returned {given} for {len(users)} users, expected a list of one record or None for "
            "each, in their order, or a mapping by id."
        )
    return list(found)
