"""A Redis stream as source of a `Follower`: entries are acknowledged once they are applied and on disk.

Entries are those that `aif_jax.integrations.redis.write_update` appends.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aif_jax.errors import ConfigError, DataError
from aif_jax.integrations.redis import START, as_text, decode_update, synchronous
from aif_jax.nearline import Delivery
from aif_jax.nearline.change_log import Position

if TYPE_CHECKING:
    from redis import Redis, RedisCluster

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

    Args:
        client: client of the server.
        stream: key of the stream.
        group: name of the consumer group; made if absent.
        limit: maximum of entries that are delivered together.

    Raises:
        ConfigError: ``limit`` is under 1, or the client is asynchronous.
    """

    def __init__(self, client: "Redis | RedisCluster", stream: str, group: str, *, limit: int = 256):
        if limit < 1:
            raise ConfigError(f"limit: got {limit}, expected at least 1.")
        self._client: Any = synchronous(client)
        self._stream, self._group, self._limit = stream, group, limit
        self._begun = False

    def read(self, after: Position | None, wait_s: float) -> Sequence[Delivery]:
        """Return the next entries; see `UpdateSource`.

        Raises:
            DataError: the stream does not hold the entry at the position any more.
        """
        if not self._begun:
            self._begin(after)
            self._begun = True
        try:
            reply = self._client.xreadgroup(
                self._group,
                "follower",
                {self._stream: ">"},
                count=self._limit,
                block=max(1, int(wait_s * 1e3)),
            )
        except Exception:
            # The connection may have broken after the group moved on: set it back before reading on.
            self._begun = False
            raise
        if not reply:
            return ()
        # A list of pairs by RESP2, a mapping of lists of entries by RESP3.
        entries = (
            reply[0][1] if isinstance(reply, list) else [one for part in reply.values() for one in part[0]]
        )
        return [self._delivery(as_text(entry), fields) for entry, fields in entries]

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
        if entry == START or self._client.xrange(self._stream, min=entry, max=entry, count=1):
            return
        first = self._client.xrange(self._stream, count=1)
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
        try:
            update = decode_update(fields, f"stream {self._stream!r}, entry {entry}")
        except DataError as error:
            return Delivery(position, error)
        return Delivery(position, update, position[0] / 1e3)


def position_of(entry: str) -> Position:
    """Return the position of an entry's id, such as `aif_jax.integrations.redis.stream_end` gives it."""
    milliseconds, number = entry.split("-")
    return int(milliseconds), int(number)


def _entry(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
