"""Users and item updates through a redis-server of this test's own."""

import dataclasses
import re
import time

import numpy as np
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from aif_jax.errors import ConfigError, DataError, UnknownUserError, UserSourceError
from aif_jax.integrations.redis import START, RedisUsers, stream_end, write_update, write_user
from aif_jax.integrations.redis_stream import RedisStream, position_of
from aif_jax.nearline import Archive, BehaviourTable, Delete, Follower, ItemIndex, Upsert, read_dead_letters
from aif_jax.serving import Engine
from aif_jax.types import UserRecord
from support.redis_server import connect, serve
from support.served import ENGINE_CONFIG
from support.waiting import eventually

STREAM = "items"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("redis")) as (port, _):
        yield port


@pytest.fixture(params=["bytes", "strings", "resp3"])
def client(port, request):
    options = {"bytes": {"protocol": 2}, "strings": {"decode_responses": True}, "resp3": {"protocol": 3}}
    with connect(port, **options[request.param]) as client:
        client.flushall()
        yield client


def test_redis_users_read_written_records(client):
    users = RedisUsers(client)
    assert users(5) is None
    record = UserRecord(features={"country": "de"}, items=[2**64 - 1, 3], types=["like", "click"], revision=4)
    write_user(client, 5, record, keep_revision=True)
    assert users(5) == users("5") == record
    write_user(client, 5, dataclasses.replace(record, items=np.array([3, 4], np.uint64)))
    assert users(5).items == [3, 4]
    assert RedisUsers(client, "other:")(5) is None
    write_user(client, "x", record, prefix="other:", expire_s=60)
    assert RedisUsers(client, "other:")("x").features == {"country": "de"}
    assert 0 < client.ttl("other:x") <= 60
    assert client.ttl("aif:user:5") == -1


def test_redis_users_broken_value_is_refused_by_key(client):
    client.set("aif:user:7", "{oops")
    with pytest.raises(DataError, match="aif:user:7: is not JSON"):
        RedisUsers(client)(7)


def test_engine_with_redis_users_ranks_as_in_memory(client, world, bundle, tables, engine, users):
    for user in range(10):
        write_user(client, user, users(user))
    ids, pair = world.candidates(30)
    with Engine(bundle, tables, users=RedisUsers(client), config=ENGINE_CONFIG) as other:
        with pytest.raises(UnknownUserError, match="user 77"):
            other.begin(77).rank(ids, pair=pair, k=10)
        for user in (0, 4, 9):
            expected = engine.begin(user, context={"hour": 3}).rank(ids, pair=pair, k=10)
            ranking = other.begin(user, context={"hour": 3}).rank(ids, pair=pair, k=10)
            np.testing.assert_array_equal(ranking.ids, expected.ids)
            np.testing.assert_array_equal(ranking.scores, expected.scores)
        # A write is seen although the old state is cached: the revision has changed with it.
        write_user(client, 4, users(9))
        fresh = other.begin(4, context={"hour": 3}).rank(ids, pair=pair, k=10)
        nine = engine.begin(9, context={"hour": 3}).rank(ids, pair=pair, k=10)
        np.testing.assert_array_equal(fresh.scores, nine.scores)


def test_redis_connection_errors_pass_through(tmp_path, bundle, tables, world):
    with serve(tmp_path) as (port, process), connect(port) as client:
        users = RedisUsers(client)
        assert users(1) is None
        process.terminate()
        process.wait(10)
        with pytest.raises(redis.ConnectionError):
            users(1)
        with pytest.raises(redis.ConnectionError):
            RedisStream(client, STREAM, "mine").read(None, 0.01)
        with Engine(bundle, tables, users=users, config=ENGINE_CONFIG) as engine:
            with pytest.raises(UserSourceError, match="raised ConnectionError"):
                engine.begin(1).rank(world.ids[:5], k=2)
            assert engine.stats()["requests"]["error:UserSourceError"] == 1


def test_redis_users_asynchronous_client_is_refused(port):
    with pytest.raises(ConfigError, match=r"asynchronous redis\.asyncio\.client\.Redis"):
        RedisUsers(redis.asyncio.Redis(port=port))


# -- updates -----------------------------------------------------------------------------------------------


def item(world, row, **changes):
    columns = {name: column[row : row + 1] for name, column in world.columns.items()}
    return Upsert(world.ids[row : row + 1], {**columns, **changes}, world.content[row : row + 1])


def test_write_update_max_entries_trims_stream(client):
    assert stream_end(client, STREAM) == START
    for number in range(1000):
        last = write_update(client, STREAM, Delete([number]), max_entries=100)
    assert 100 <= client.xlen(STREAM) < 500
    assert stream_end(client, STREAM) == last


# -- a consumer group into an archive ------------------------------------------------------------------------


def groups(client):
    return {_plain(info["name"]): info for info in client.xinfo_groups(STREAM)}


def _plain(value):
    return value.decode() if isinstance(value, bytes) else value


def follow_until(follower, archive, entry):
    with follower:
        follower.start()
        assert eventually(lambda: archive.position == position_of(entry) or follower.stats()["failure"])
    return follower.stats()


@pytest.mark.parametrize("table", [ItemIndex, BehaviourTable])
def test_follower_of_redis_stream_has_rows_of_build(client, world, bundle, tmp_path, table):
    n = 12
    for row in range(n):
        write_update(client, STREAM, item(world, row))
    last = write_update(client, STREAM, Delete(world.ids[3:4]))
    built = table.build(
        bundle, world.ids[:n], {name: column[:n] for name, column in world.columns.items()}, world.content[:n]
    )
    if table is ItemIndex:
        built.delete(world.ids[3:4])
    expected, there = built.gather(world.ids[:n])
    with Archive(tmp_path) as archive:
        archive.start(table(bundle))
        stats = follow_until(Follower(RedisStream(client, STREAM, "mine", limit=5), [archive]), archive, last)
        assert (stats["failure"], stats["upserted"]) == (None, n)
        rows, found = archive.table.gather(world.ids[:n])
    np.testing.assert_array_equal(found, there)
    for name, column in expected.items():
        np.testing.assert_array_equal(rows[name], column, err_msg=name)


def test_redis_stream_acknowledges_after_archive_has_updates(client, world, bundle, tmp_path):
    for row in range(10):
        write_update(client, STREAM, item(world, row))
    client.xadd(STREAM, {"update": "{oops"})
    other = _plain(client.xadd(STREAM, {"something": "else"}))
    last = write_update(client, STREAM, Delete(world.ids[3:4]))
    bad = []
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        source = RedisStream(client, STREAM, "mine", limit=4)
        stats = follow_until(Follower(source, [archive], on_bad=bad.append), archive, last)
        assert (stats["failure"], stats["updates"], stats["bad"]) == (None, 13, {"DataError": 2})
        assert bad[1].position == position_of(other)
        assert f"'items', entry {other}: got the fields ['something']" in str(bad[1].reason)
        assert 0 <= stats["lag_s"] < 60
        assert len(archive.table) == 9
        group = groups(client)["mine"]
        assert (group["pending"], _plain(group["last-delivered-id"])) == (0, last)


def test_redis_stream_read_but_unconfirmed_entries_are_read_again(client, world, bundle, tmp_path):
    first = write_update(client, STREAM, item(world, 0))
    last = write_update(client, STREAM, item(world, 1))
    source = RedisStream(client, STREAM, "mine")
    assert len(source.read(None, 0.01)) == 2  # and its process dies before anything is applied
    assert groups(client)["mine"]["pending"] == 2
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle), position_of(first))
        stats = follow_until(Follower(RedisStream(client, STREAM, "mine"), [archive]), archive, last)
        assert (stats["failure"], stats["updates"], archive.position) == (None, 1, position_of(last))
        assert world.ids[1] in archive.table
        assert groups(client)["mine"]["pending"] == 0


def test_redis_stream_archive_from_backup_gets_later_entries_again(client, world, bundle, tmp_path):
    first = write_update(client, STREAM, item(world, 0))
    last = write_update(client, STREAM, item(world, 1))
    for folder, start in (("today", None), ("backup", position_of(first))):
        with Archive(tmp_path / folder) as archive:
            archive.start(ItemIndex(bundle), start)
            follow_until(Follower(RedisStream(client, STREAM, "mine"), [archive]), archive, last)
            assert world.ids[1] in archive.table


def test_redis_stream_trimmed_too_far_is_refused(client, world, bundle, tmp_path):
    first = write_update(client, STREAM, item(world, 0))
    write_update(client, STREAM, item(world, 1))
    client.xdel(STREAM, first)
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle), position_of(first))
        said = rf"does not hold the entry {first} any more.*build the rows again"
        with pytest.raises(DataError, match=said):
            RedisStream(client, STREAM, "mine").read(archive.position, 0.01)
        with Follower(RedisStream(client, STREAM, "mine"), [archive]) as follower:
            follower.start()
            assert eventually(lambda: follower.stats()["source_errors"] > 1)
            assert re.search(said, follower.stats()["trouble"])
        client.delete(STREAM)
        with pytest.raises(DataError, match=rf"does not hold the entry {first} any more.*it is empty"):
            RedisStream(client, STREAM, "mine").read(archive.position, 0.01)


MALFORMED = {
    "binary field name": {b"\xff\xfe": "x"},
    "binary value": {"update": b"\xff\x00{"},
    "deep": {"update": "[" * 100_000},
    "long integer": {"update": '{"version": 1, "upsert": {"ids": [' + "9" * 5000 + "]}}"},
    "huge number": {"update": f'{{"version":1,"upsert":{{"ids":[1],"columns":{{"price":[{10**400}]}}}}}}'},
    "negative id": {"update": '{"version": 1, "delete": {"ids": [-1]}}'},
    "lone surrogate": {"update": '{"version": 1, "delete": {"ids": ["\\ud800"]}}'},
    "short column": {"update": '{"version": 1, "upsert": {"ids": [1, 2], "columns": {"price": [1.0]}}}'},
    "mixed ids": {"update": '{"version": 1, "upsert": {"ids": [[1]], "columns": {}}}'},
    "unknown column": {"update": '{"version": 1, "upsert": {"ids": [1], "columns": {"colour": ["red"]}}}'},
}  # fmt: skip


def test_redis_stream_malformed_entries_leave_good_ones_alone(client, world, bundle, tmp_path):
    sent = []
    for row, fields in enumerate(MALFORMED.values()):
        write_update(client, STREAM, item(world, row))
        sent.append(position_of(_plain(client.xadd(STREAM, fields))))
    client.xadd(STREAM, {b"\xff": b"\xfe"})
    assert position_of(stream_end(client, STREAM)) > sent[-1]
    last = write_update(client, STREAM, item(world, len(sent)))
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        stats = follow_until(Follower(RedisStream(client, STREAM, "mine"), [archive]), archive, last)
        assert (stats["source_errors"], stats["trouble"], stats["set_aside"]) == (0, None, len(sent) + 1)
        assert sorted(archive.table.ids().tolist()) == sorted(world.ids[: len(sent) + 1].tolist())
    letters = list(read_dead_letters(tmp_path))
    assert [letter.position for letter in letters][:-1] == sent
    assert letters[0].raw == (b"\xff\xfe", b"x")
    assert letters[2].raw == (b"update", b"[" * 100_000)
    client.execute_command("XADD", STREAM, "*", *letters[1].raw)
    assert client.execute_command("XREVRANGE", STREAM, "+", "-", "COUNT", 1, NEVER_DECODE=True)[0][1] == {
        b"update": b"\xff\x00{"
    }


@pytest.mark.parametrize("timeout_s", [0.05, 0.15, 0.3])
def test_redis_stream_idle_waits_less_than_client(port, world, bundle, tmp_path, timeout_s):
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=port, socket_timeout=timeout_s, retry=once) as client, Archive(tmp_path) as archive:
        client.flushall()
        archive.start(ItemIndex(bundle))
        with Follower(RedisStream(client, STREAM, "mine"), [archive]) as follower:
            follower.start()
            assert eventually(lambda: client.exists(STREAM))
            idle = time.perf_counter()
            while time.perf_counter() < idle + 0.6:
                assert follower.stats()["trouble"] is None
            write_update(client, STREAM, item(world, 0))
            assert eventually(lambda: follower.stats()["upserted"] == 1)
            assert (follower.stats()["source_errors"], follower.stats()["trouble"]) == (0, None)


def test_redis_stream_reply_lost_by_repeating_client_is_read_again(
    client, world, bundle, tmp_path, monkeypatch
):
    for row in range(3):
        write_update(client, STREAM, item(world, row))
    source, send, lost = RedisStream(client, STREAM, "mine", limit=3), client.execute_command, []

    def repeated(*command, **options):
        reply = send(*command, **options)
        if command[0] == "XREADGROUP" and not lost:
            lost.append(reply)
            last = write_update(client, STREAM, item(world, 3))
            lost.append(last)
            return send(*command, **options)  # as the client does whose connection broke before the reply
        return reply

    monkeypatch.setattr(client, "execute_command", repeated)
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        with Follower(source, [archive]) as follower:
            follower.start()
            assert eventually(lambda: len(lost) == 2 and archive.position == position_of(lost[1]))
        assert sorted(archive.table.ids().tolist()) == sorted(world.ids[:4].tolist())


def test_follower_waits_for_redis_server(tmp_path, bundle, world):
    with Archive(tmp_path / "items") as archive:
        archive.start(ItemIndex(bundle))
        (tmp_path / "redis").mkdir()
        with serve(tmp_path / "redis", save="3600 1") as (port, process), connect(port) as client:
            write_update(client, STREAM, item(world, 0))
            with Follower(RedisStream(client, STREAM, "mine"), [archive]) as follower:
                follower.start()
                assert eventually(lambda: world.ids[0] in archive.table)
                client.save()
                process.kill()
                process.wait(10)
                assert eventually(lambda: follower.stats()["source_errors"] > 1)
                assert "ConnectionError" in follower.stats()["trouble"]
                with serve(tmp_path / "redis", port=port, save="3600 1"):
                    last = write_update(client, STREAM, item(world, 1))
                    assert eventually(lambda: archive.position == position_of(last))
                    assert world.ids[1] in archive.table
                    assert follower.stats()["trouble"] is None


def test_redis_stream_failed_acknowledgement_is_repeated(client, world, bundle, tmp_path, monkeypatch):
    look, away = client.xpending_range, [True, True]

    def sometimes(*arguments):
        if away and away.pop():
            raise redis.ConnectionError("gone between reading and acknowledging")
        return look(*arguments)

    monkeypatch.setattr(client, "xpending_range", sometimes)
    with Archive(tmp_path) as archive:
        archive.start(ItemIndex(bundle))
        with Follower(RedisStream(client, STREAM, "mine"), [archive]) as follower:
            follower.start()
            write_update(client, STREAM, item(world, 0))
            assert eventually(lambda: world.ids[0] in archive.table)
            assert eventually(lambda: not away and not client.xpending(STREAM, "mine")["pending"])
            assert follower.stats()["source_errors"] == 2
            assert eventually(lambda: follower.stats()["trouble"] is None)
            assert follower.stats()["updates"] == 1
