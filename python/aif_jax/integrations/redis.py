"""Redis as user source and as stream of item updates: one JSON document for each user or entry.

Needs a synchronous client, ``redis.Redis`` or ``redis.RedisCluster`` (``pip install 'aif_jax[redis]'``), with
or without ``decode_responses``. Errors of the connection pass through as the client raises them. The client
tries again on its own, with pauses: for serving, give it a ``socket_timeout`` and a ``retry`` that fit the
deadline of a request.

A user is the string value of the key ``PREFIX + id`` (so 5 and "5" are the same user)::

    {"version": 1, "features": {"country": "de"}, "items": [3, 1], "types": ["click", "like"], "revision": 7}

``features``, ``items`` (most recent first) and ``types`` are those of a `UserRecord`, and so are ``times``,
in seconds since 1970; an absent one is empty.
``revision`` is an integer that changes whenever anything else does; without one the reader takes a hash of
the value.

An item update is the field ``update`` of a stream entry, either of::

    {"version": 1, "upsert": {"ids": [5], "columns": {"price": [2.5]}, "content": null, "rankable": [true]}}
    {"version": 1, "delete": {"ids": [5]}}

with the fields of `Upsert` and `Delete`; ``columns``, ``content`` and ``rankable`` may be absent. Ids are
integers below 2^64 or strings. JSON has no NaN: a missing value is ``null``.
"""

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aif_jax.errors import ConfigError, DataError, RequestError
from aif_jax.inputs import (
    Ragged,
    is_user_id,
    read_column,
    read_content,
    read_flags,
    read_flat,
    read_ids,
    read_numbers,
)
from aif_jax.nearline import Delete, Update, Upsert
from aif_jax.nearline.records import read_records
from aif_jax.shown import shown
from aif_jax.strict_json import shortened
from aif_jax.types import UserId, UserRecord

if TYPE_CHECKING:
    from redis import Redis, RedisCluster

PREFIX = "aif:user:"
"""Default prefix of the keys of users."""

START = "0-0"
"""The position before the first entry of a stream."""

_VERSION = 1
_FIELD = "update"


class RedisUsers:
    """A user source that reads one key a user, from any thread; `write_user` writes them.

    Raises:
        ConfigError: the client is an asynchronous one.
    """

    def __init__(self, client: "Redis | RedisCluster", prefix: str = PREFIX) -> None:
        self._client: Any = synchronous(client)
        self._prefix = prefix

    def __call__(self, user: UserId, /) -> UserRecord | None:
        """Return the user's record, or ``None`` if there is no such key.

        Raises:
            DataError: the value does not have the format of the module.
            RequestError: the user's id is neither an integer nor a string.
        """
        key = user_key(user, self._prefix)
        value = self._client.get(key)
        return None if value is None else decode_user(value, key)


def write_user(
    client: "Redis | RedisCluster",
    user: UserId,
    record: UserRecord,
    *,
    prefix: str = PREFIX,
    keep_revision: bool = False,
    expire_s: int | None = None,
) -> None:
    """Write a user's record, replacing the one before; readers see the one or the other.

    Args:
        client: client of the server.
        user: the user's id.
        record: NumPy arrays and numbers become JSON's, NaN becomes ``null``.
        prefix: the same as for `RedisUsers`.
        keep_revision: write ``record.revision``, which then must change with every change. Otherwise none is
            written, and readers take the hash of the value.
        expire_s: seconds after which Redis deletes the user; ``None`` for never.

    Raises:
        DataError: the record holds a value that JSON cannot.
        RequestError: the user's id is neither an integer nor a string.
    """
    key = user_key(user, prefix)
    synchronous(client).set(key, encode_user(record, key, keep_revision=keep_revision), ex=expire_s)


def user_key(user: UserId, prefix: str = PREFIX) -> str:
    """Return the key of a user's record.

    Raises:
        RequestError: the user's id is neither an integer nor a string.
    """
    if not is_user_id(user):
        raise RequestError(
            f"user {shown(user)}: got a {type(user).__name__}, expected an integer or a string."
        )
    return f"{prefix}{user}"


def encode_user(record: UserRecord, key: str, *, keep_revision: bool = False) -> str:
    """Return the JSON of a record; ``key`` names it in errors. See `write_user`."""
    items = read_ids(record.items, f"{key}: the record's items", error=DataError).given
    types = read_flat(record.types, f"{key}: the record's types", error=DataError)
    if len(items) != len(types):
        raise DataError(
            f"{key}: the record has {len(items)} items and {len(types)} types; give one type for each item."
        )
    fields = {"features": record.features, "items": items, "types": types}
    if len(times := read_flat(record.times, f"{key}: the record's times", error=DataError)):
        fields["times"] = read_numbers(times, f"{key}: the record's times", len(items), error=DataError)
    if keep_revision:
        fields["revision"] = record.revision
    return _to_json(fields, key)


def decode_user(value: bytes | str, key: str) -> UserRecord:
    """Read the JSON of a record; ``key`` names it in errors.

    Raises:
        DataError: it does not have the format of the module.
    """
    fields = _from_json(value, key)
    _refuse_others(fields, ("version", "features", "items", "types", "revision", "times"), key)
    features = _field(fields, "features", dict, {}, key)
    items = _field(fields, "items", list, [], key)
    types = _field(fields, "types", list, [], key)
    if len(items) != len(types):
        raise DataError(
            f"{key}: holds {len(items)} items and {len(types)} types; write one type for each item."
        )
    times = _field(fields, "times", list, (), key)
    revision = _field(fields, "revision", int, None, key)
    if revision is None:
        digest = hashlib.blake2b(value.encode() if isinstance(value, str) else value, digest_size=8)
        revision = int.from_bytes(digest.digest(), "little")
    return UserRecord(features=features, items=items, types=types, revision=revision, times=times)


def write_update(
    client: "Redis | RedisCluster", stream: str, update: Update, *, max_entries: int | None = None
) -> str:
    """Append an update to a stream.

    Args:
        client: client of the server.
        stream: key of the stream.
        update: NumPy arrays and numbers become JSON's, NaN becomes ``null``.
        max_entries: approximate number of entries that the stream keeps; ``None`` for all.

    Returns:
        The id of the entry.

    Raises:
        DataError: the update holds a value that JSON cannot.
    """
    value = encode_update(update, f"stream {stream!r}")
    return as_text(synchronous(client).xadd(stream, {_FIELD: value}, maxlen=max_entries))


def stream_end(client: "Redis | RedisCluster", stream: str) -> str:
    """Return the id of a stream's last entry, or ``START`` if it has none.

    Call it *before* reading the catalogue that an index is built from, so that changes made meanwhile are
    followed.
    """
    last = raw_reply(synchronous(client), "XREVRANGE", stream, "+", "-", "COUNT", 1)
    return as_text(last[0][0]) if last else START


def encode_update(update: Update, where: str) -> str:
    """Return the JSON of an update; ``where`` names it in errors."""
    if isinstance(update, Delete):
        return _to_json({"delete": {"ids": read_ids(update.ids, ordered=False).given}}, where)
    names, update = ("ids", "columns", "content", "rankable"), read_records(update)
    return _to_json({"upsert": {name: getattr(update, name) for name in names}}, where)


def decode_update(entry: Mapping[Any, Any], where: str) -> Update:
    """Read the fields of a stream entry, names and values as bytes or text; ``where`` names it in errors.

    Raises:
        DataError: it does not have the format of the module.
    """
    names = [name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name for name in entry]
    if names != [_FIELD]:
        raise DataError(
            f"{where}: got the fields {shortened(str(sorted(map(str, names))))}, expected one, {_FIELD!r}."
        )
    (value,) = entry.values()
    fields = _from_json(value, where)
    kinds = fields.keys() - {"version"}
    if kinds not in ({"upsert"}, {"delete"}):
        raise DataError(
            f"{where}: got {shortened(str(sorted(kinds)))}, expected either 'upsert' or 'delete'."
        )
    (kind,) = kinds
    body = _field(fields, kind, dict, None, where)
    known = ("ids",) if kind == "delete" else ("ids", "columns", "content", "rankable")
    _refuse_others(body, known, where)
    ids = _field(body, "ids", list, None, where)
    if ids is None:
        raise DataError(f"{where}: {kind!r} has no 'ids'; name the items.")
    if kind == "delete":
        return Delete(ids)
    columns = _field(body, "columns", dict, {}, where)
    content, rankable = (body.get(name) if ids else None for name in ("content", "rankable"))
    if content is not None:  # null is missing, within floats too
        content = read_content(content, len(ids), None, f"{where}: 'content'", error=DataError)
    if rankable is not None:
        rankable = read_flags(rankable, len(ids), f"{where}: 'rankable'", error=DataError)
    return Upsert(ids, columns, content, rankable)


# -- JSON ---------------------------------------------------------------------------------------------


def _to_json(fields: Mapping[str, Any], where: str) -> str:
    return json.dumps({"version": _VERSION, **_plain(fields, where)}, separators=(",", ":"))


def _from_json(value: bytes | str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
        start = value[:40]
        raise DataError(f"{where}: is not JSON ({error}); it begins with {start!r}.") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: got a JSON {type(fields).__name__}, expected an object.")
    if (version := fields.get("version")) != _VERSION:
        raise DataError(f"{where}: got version {shortened(repr(version))}, this release reads {_VERSION}.")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed; write null for a missing value")


def _field(fields: Mapping[str, Any], name: str, kind: type, default: Any, where: str) -> Any:
    if name not in fields:
        return default
    value = fields[name]
    if type(value) is not kind:  # a bool is an int to isinstance
        raise DataError(
            f"{where}: {name!r} is a {type(value).__name__}, expected a {kind.__name__}: {str(value)[:40]!r}."
        )
    return value


def _refuse_others(fields: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    if others := sorted(fields.keys() - set(known)):
        raise DataError(
            f"{where}: got the fields {shortened(str(others))}, expected only {', '.join(known)}."
        )


def _plain(value: Any, where: str) -> Any:
    """Return a value in the types of JSON."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (float, np.floating)):
        if math.isinf(value):
            raise DataError(f"{where}: holds {value}, which JSON cannot; leave it out.")
        return None if math.isnan(value) else float(value)
    if isinstance(value, (np.integer, np.bool_)) or (type(value) is np.ndarray and not value.ndim):
        return _plain(value.item(), where)
    if isinstance(value, Ragged):
        bounds = value.offsets.tolist()
        value = [value.values[start:end] for start, end in itertools.pairwise(bounds)]
    if isinstance(value, (list, tuple)):
        return [_plain(element, where) for element in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(element, where) for name, element in value.items()}
    try:
        column = read_column(value, where, error=DataError)
    except DataError as error:
        raise DataError(
            f"{where}: holds a {type(value).__name__}, which JSON cannot; give numbers, strings, lists or "
            "arrays."
        ) from error
    return _plain(column.tolist() if isinstance(column, np.ndarray) else column, where)


def as_text(value: bytes | str) -> str:
    """Return a reply as text, whether or not the client decodes."""
    return value.decode() if isinstance(value, bytes) else value


def raw_reply(client: Any, *command: Any) -> Any:
    """Return the reply to a command, its text as bytes even if the client decodes.

    A client that decodes fails for the whole reply if one string in it is not UTF-8.
    """
    return client.execute_command(*command, NEVER_DECODE=True)


def synchronous(client: Any) -> Any:
    """Return the client.

    Raises:
        ConfigError: it is an asynchronous one.
    """
    if inspect.iscoroutinefunction(getattr(client, "execute_command", None)):
        raise ConfigError(
            f"client: got the asynchronous {type(client).__module__}.{type(client).__name__}, expected "
            "redis.Redis or redis.RedisCluster; the engine calls user sources in threads of their own."
        )
    return client
