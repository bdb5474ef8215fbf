"""A Redis stream as source of a `Follower`: entries are acknowledged once they are applied and on disk.

Entries are those that `aif_jax.integrations.redis.write_update` appends.
"""

import functools
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aif_jax.checks import typed
from aif_jax.errors import ConfigError, DataError
from aif_jax.integrations.redis import START, as_text, decode_update, raw_reply, synchronous
from aif_jax.nearline import Delivery, decoded
from aif_jax.nearline.change_log import Position

if TYPE_CHECKING:
    from redis import Redis, RedisCluster

_LATE_S = 0.1
"""Redis looks ten times a second for clients that have waited for long enough."""

_POLL_S = 0.02
_ENTRY = re.compile(r"(\d+)-(\d+)")


class RedisStream:
    """Reads a stream as a consumer group of its own, so that Redis knows the progress of this follower.

    ``XINFO GROUPS`` then shows its lag and the entries that it has read and not acknowledged. Every follower
    needs a group name of its own, since Redis distributes the entries of a group among its members. Reading
    begins at the archive's position, not the group's: the group is set to it, so that a follower whose
    archive was restored from a backup gets the later entries again.

    Redis drops entries that producers trim away, even if nobody has read them. If the entry at the position
    is gone, updates may be lost, and reading raises an error. Trim by length, and leave room for the slowest
    follower.

    An entry that is no update is delivered as its error, whatever its bytes are.

    Args:
        client: client of the server. A read waits for less than half of its ``socket_timeout``; with one of
            up to 0.2 s not at all, and the stream is looked at every 20 ms.
        stream: key of the stream.
        group: name of the consumer group; made if absent.
        limit: maximum of entries that are delivered together.

    Raises:
        ConfigError: ``limit`` is under 1, or the client is asynchronous.
    """

    @typed
    def __init__(self, client: "Redis | RedisCluster", stream: str, group: str, *, limit: int = 256):
        if limit < 1:
            raise ConfigError(f"limit: got {limit}, expected at least 1.")
        self._client: Any = synchronous(client)
        self._stream, self._group, self._limit = stream, group, limit
        self._begun = False
        # A read that waits for longer than the client does is an error.
        timeout_s = self._client.get_connection_kwargs().get("socket_timeout")
        self._most_wait_s = float("inf") if timeout_s is None else timeout_s / 2 - _LATE_S

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery]:
        """Return the next entries; see `UpdateSource`.

        Raises:
            DataError: the stream does not hold the entry at the position any more.
        """
        if not self._begun:
            self._begin(after)
            self._begun = True
        wait_ms = int(min(wait_s, self._most_wait_s) * 1e3)
        block = ("BLOCK", wait_ms) if wait_ms > 0 else ()
        group = ("GROUP", self._group, "follower", "COUNT", self._limit, *block)
        try:
            reply = raw_reply(self._client, "XREADGROUP", *group, "STREAMS", self._stream, ">")
            if not reply:
                if not block:
                    time.sleep(min(wait_s, _POLL_S))
                return ()
            # A list of pairs by RESP2, a mapping of lists of entries by RESP3.
            parts = reply.values() if isinstance(reply, Mapping) else [entries for _, entries in reply]
            deliveries = [
                self._delivery(as_text(entry), fields) for part in parts for entry, fields in _flat(part)
            ]
            self._begun = not self._passed_over(after, deliveries[0].position)
        except BaseException:
            # The connection may have broken after the group moved on: set it back before reading on.
            self._begun = False
            raise
        return deliveries if self._begun else ()

    def acknowledge(self, position: Position) -> None:
        """Acknowledge all entries up to a position that were read.

        Should the connection fail, they are acknowledged when reading begins again.
        """
        pending = True
        try:
            while pending:
                pending = self._client.xpending_range(
                    self._stream, self._group, "-", _entry(position), self._limit
                )
                if pending:
                    self._client.xack(self._stream, self._group, *(one["message_id"] for one in pending))
        except Exception:
            self._begun = False
            raise

    def _passed_over(self, after: Position | None, first: Position) -> bool:
        """Return whether there are entries before the first one that never arrived here.

        A client repeats a command whose connection broke, and the group then gives it the entries after those
        of the lost reply.
        """
        start = "-" if after is None else f"{after[0]}-{int(after[1]) + 1}"
        milliseconds, number = map(int, first)
        end = f"{milliseconds}-{number - 1}" if number else f"{milliseconds - 1}"
        return bool(raw_reply(self._client, "XRANGE", self._stream, start, end, "COUNT", 1))

    def _begin(self, after: Position | None) -> None:
        entry = START if after is None else _entry(after)
        if after is not None:
            self._check_there(entry)
        try:
            self._client.xgroup_create(self._stream, self._group, id=entry, mkstream=True)
        except Exception as error:
            if "BUSYGROUP" not in str(error):
                raise
            self._client.xgroup_setid(self._stream, self._group, entry)
            if after is not None:
                self.acknowledge(after)

    def _check_there(self, entry: str) -> None:
        """Raise if entries after this one may have been trimmed: if it is gone itself.

        Raises:
            DataError: it is.
        """
        if entry == START or raw_reply(self._client, "XRANGE", self._stream, entry, entry):
            return
        first = raw_reply(self._client, "XRANGE", self._stream, "-", "+", "COUNT", 1)
        begins = f"it begins at {as_text(first[0][0])}" if first else "it is empty"
        raise DataError(
            f"stream {self._stream!r}: does not hold the entry {entry} any more, after which reading "
            f"continues; {begins}. Updates may be lost: build the rows again from the catalogue, and trim "
            "the stream less."
        )

    def _delivery(self, entry: str, fields: Any) -> Delivery:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise DataError(
                f"stream {self._stream!r}: got the entry {entry!r}, expected MILLISECONDS-NUMBER."
            )
        position = (int(match[1]), int(match[2]))
        where = f"stream {self._stream!r}, entry {entry}"
        update = decoded(functools.partial(decode_update, fields, where), where)
        raw = tuple(part for pair in fields.items() for part in pair) if isinstance(fields, Mapping) else ()
        return Delivery(position, update, position[0] / 1e3, raw)


def _flat(entries: Any) -> Any:
    """Return pairs of id and fields, which a client of RESP3 gives inside of one more list."""
    return entries[0] if len(entries) == 1 and isinstance(entries[0], list) else entries


def position_of(entry: str) -> Position:
    """Return the position of an entry's id, such as `aif_jax.integrations.redis.stream_end` gives it."""
    milliseconds, number = entry.split("-")
    return int(milliseconds), int(number)


def _entry(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
