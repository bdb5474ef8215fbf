"""The request log: what is written is what was served, and it neither delays nor fails a request."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from aif_jax.errors import ConfigError
from aif_jax.observe import RequestLog
from aif_jax.serving import Ranking, Report, Served
from aif_jax.serving.report import Facts
from aif_jax.types import Candidates, UserRecord
from support.full_disk import limited_file_size
from support.served import Make, World

Retrieved = dict[int, Candidates]


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all files of a log, oldest file first."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def conserved(log: RequestLog) -> dict[str, Any]:
    """Return the counters, none of which lost a request."""
    stats = log.stats()
    assert stats["sampled"] == stats["logged"] + stats["dropped"] + stats["failed"] + stats["waiting"]
    return stats


@pytest.fixture
def ranking() -> Ranking:
    """A ranking that no engine made, to be offered to logs under several ids."""
    values: dict[str, Any] = dict.fromkeys(Report._fields, 0)
    values |= {"version": "v", "user_state": "hit", "rung_reason": None, "unknown_user": False}
    ids = np.arange(20, dtype=np.uint64)
    return Ranking(ids, np.ones(20, np.float32), {}, Facts(values, (), (), 0.0))


def offer(log: RequestLog, ranking: Ranking, number: int, **changed: Any) -> None:
    """Offer a ranking under an id of its own."""
    facts = Facts({**ranking.facts.values, "request_id": f"r-{number}"}, (), (), 0.0)
    served = Served(UserRecord({"country": "de"}, [7, 8], [0, 1]), {}, ranking.ids, {}, None)
    log.served(Ranking(ranking.ids, ranking.scores, ranking.heads, facts), served._replace(**changed))


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """A function that makes a log and starts its thread; it is ended afterwards."""
    logs: list[RequestLog] = []

    def make(**given: Any) -> RequestLog:
        log = RequestLog(tmp_path / "log", **{"share": 1.0, **given})
        log.opened(None)  # type: ignore[arg-type]
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.closed(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(2))
def test_request_log_random_requests_of_every_way_are_written_as_served(
    make: Make, world: World, users: Any, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    found: Retrieved = {}
    for user in range(10):
        ids, pair = world.candidates(int(rng.integers(2, 60)), seed=user + 100 * seed)
        found[user] = Candidates(np.r_[ids, ids[:1]], {name: np.r_[v, v[:1]] for name, v in pair.items()})
    log = RequestLog(tmp_path, share=1.0)
    engine = make(observers=[log], retrieve=lambda request: found[request.user])
    asked = [(int(rng.integers(10)), {"hour": int(rng.integers(24))}) for _ in range(12)]

    async def handle(user: int, context: Any) -> Ranking:
        return await engine.begin(user, context).rank_async(found[user].ids, found[user].pair)

    rankings: list[Ranking] = []
    for n, (user, context) in enumerate(asked[:8]):
        if n % 4 == 0:
            rankings.append(engine.rank(user, context))
        elif n % 4 == 1:
            rankings.append(asyncio.run(engine.rank_async(user, context)))
        elif n % 4 == 2:
            rankings.append(engine.begin(user, context).rank(found[user].ids, found[user].pair))
        else:
            rankings.append(asyncio.run(handle(user, context)))
    rest = {"users": [user for user, _ in asked[8:]], "contexts": [context for _, context in asked[8:]]}
    rankings += engine.rank_many(**rest)
    engine.close()
    rows = {row["request_id"]: row for row in logged(tmp_path)}
    assert len(rows) == len(asked) == conserved(log)["logged"]
    for ranking, (user, context) in zip(rankings, asked, strict=True):
        row, record, report = rows[ranking.report.request_id], users(user), ranking.report
        assert abs(row["time"].timestamp() - time.time()) < 600.0
        assert {name: row[name] for name in ("version", "rung", "user_state", "k_asked", "total_ms")} == {
            name: getattr(report, name) for name in ("version", "rung", "user_state", "k_asked", "total_ms")
        }
        assert (row["user_id"], row["context.hour"]) == (user, context["hour"])
        assert {name: row[f"user.{name}"] for name in record.features} == record.features
        assert row["history.item"] == np.asarray(record.items).tolist()
        assert row["history.type"] == np.asarray(record.types).tolist()
        np.testing.assert_array_equal(row["history.time"], np.asarray(record.times, float))
        once = slice(0, len(found[user].ids) - 1)
        assert row["candidates"] == found[user].ids[once].tolist()
        assert row["pair.bid"] == found[user].pair["bid"][once].tolist()
        assert row["pair.channel"] == found[user].pair["channel"][once].tolist()
        assert row["ranked.id"] == ranking.ids.tolist()
        assert row["ranked.score"] == ranking.scores.tolist()
        assert row["ranked.head.cvr"] == ranking.heads["cvr"].tolist()


def test_request_log_masked_columns_are_in_no_file(make: Make, world: World, tmp_path: Path) -> None:
    log = RequestLog(tmp_path, 1.0, mask=["user_id", "user.country", "history", "pair", "user.contry"])
    engine = make(observers=[log], retrieve=lambda request: Candidates(*world.candidates(20)))
    engine.rank(5, {"hour": 3})
    engine.close()
    [path] = tmp_path.iterdir()
    columns = pq.read_schema(path).names
    assert {"user.activity", "context.hour", "request_id"} <= set(columns)
    assert not [name for name in columns if name.startswith(("user_id", "user.c", "history", "pair"))]
    assert log.stats()["unused_mask"] == ["user.contry"]


@pytest.mark.parametrize("mask", ["user_id", ["age"], ["user."], ["version"], ["history.price"]])
def test_request_log_mask_of_no_column_is_refused(tmp_path: Path, mask: Any) -> None:
    with pytest.raises(ConfigError, match="mask: got"):
        RequestLog(tmp_path, mask=mask)


@pytest.mark.parametrize(
    "wrong", [{"share": 1.5}, {"max_queued": 0}, {"rotate_s": 0}, {"max_bytes": 9, "rotate_bytes": 10}]
)
def test_request_log_setting_out_of_range_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ConfigError):
        RequestLog(tmp_path, **wrong)


def test_request_log_share_takes_the_same_requests_in_every_log(opened: Any, ranking: Ranking) -> None:
    one, other = opened(share=0.3), opened(share=0.3)
    for number in range(200):
        offer(one, ranking, number)
    taken = [number for number in range(200) if other.takes(f"r-{number}")]
    assert conserved(one)["sampled"] == len(taken)
    assert 30 < len(taken) < 90
    assert not RequestLog(one._folder, share=0.0).takes("r-1")
    assert all(RequestLog(one._folder, share=1.0).takes(f"r-{number}") for number in range(9))


class Held:
    """Ids that are not there before the gate is open."""

    def __init__(self) -> None:
        self.entered, self.gate = threading.Event(), threading.Event()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(30.0)
        return np.arange(2, dtype=np.uint64)


def test_request_log_full_queue_drops_counts_and_does_not_wait(opened: Any, ranking: Ranking) -> None:
    log, held = opened(max_queued=4), Held()
    offer(log, ranking, 0, record=UserRecord({}, held, [0, 0]))
    assert held.entered.wait(30.0)
    for number in range(1, 11):
        offer(log, ranking, number)
    assert (conserved(log)["dropped"], log.stats()["waiting"]) == (6, 5)
    held.gate.set()
    log.flush()
    assert (conserved(log)["logged"], log.stats()["waiting"]) == (5, 0)


def test_request_log_refused_by_disk_counts_and_goes_on(
    opened: Any, ranking: Ranking, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = opened()
    with limited_file_size(100):
        offer(log, ranking, 0)
        log.flush()
    assert conserved(log)["failed"] == 1
    assert "a request log lost 1 requests" in caplog.text
    offer(log, ranking, 1)
    log.flush()
    assert [row["request_id"] for row in logged(tmp_path / "log")] == ["r-1"]
    assert len(list((tmp_path / "log").iterdir())) == 1


def test_request_log_folder_gone_counts_and_requests_go_on(make: Make, world: World, tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log", 1.0)
    engine = make(observers=[log], retrieve=lambda request: world.ids[:30])
    shutil.rmtree(tmp_path / "log")
    assert min(len(engine.rank(5)), len(engine.rank(6))) > 0
    log.flush()
    assert conserved(log)["failed"] == 2
    assert engine.stats()["observer_errors"] == {}


def test_request_log_files_rotate_by_size_and_oldest_are_removed(
    opened: Any, ranking: Ranking, tmp_path: Path
) -> None:
    log = opened(rotate_bytes=3000, max_bytes=30_000)
    for number in range(60):
        offer(log, ranking, number)
    log.flush()
    stats, rows = conserved(log), logged(tmp_path / "log")
    paths = list((tmp_path / "log").iterdir())
    assert stats["files"] - stats["removed_files"] == len(paths) > 1
    assert sum(path.stat().st_size for path in paths) <= 30_000 < stats["bytes"]
    assert [row["request_id"] for row in rows] == [f"r-{n}" for n in range(60 - len(rows), 60)]


def test_request_log_old_rows_are_written_without_further_requests(opened: Any, ranking: Ranking) -> None:
    log = opened(rotate_s=0.05)
    offer(log, ranking, 0)
    until = time.monotonic() + 30.0
    while not log.stats()["logged"] and time.monotonic() < until:
        time.sleep(0.01)
    assert conserved(log)["logged"] == 1


def test_request_log_values_of_several_kinds_are_written_apart(
    opened: Any, ranking: Ranking, tmp_path: Path
) -> None:
    log = opened()
    towns: list[Any] = ["york", 7, None, ["a", "b"], {"x", "y"}, 2**63, np.float32(0.5), object()]
    for number, town in enumerate(towns):
        offer(log, ranking, number, context={"town": town})
    log.flush()
    assert (conserved(log)["logged"], log.stats()["failed"]) == (7, 1)
    rows = {row["request_id"]: row.get("context.town") for row in logged(tmp_path / "log")}
    assert rows == {
        "r-0": "york", "r-1": 7, "r-2": None, "r-3": ["a", "b"], "r-4": ["x", "y"], "r-5": 2**63, "r-6": 0.5
    }  # fmt: skip


def test_request_log_what_callers_change_afterwards_is_written_as_served(
    make: Make, world: World, tmp_path: Path
) -> None:
    log = RequestLog(tmp_path, 1.0)
    engine = make(observers=[log])
    ids, pair = world.candidates(20)
    given = ids.copy(), {"bid": pair["bid"].copy()}
    engine.begin(5).rank(*given)
    given[0][:] = 0
    given[1]["bid"][:] = 0.0
    log.flush()
    [row] = logged(tmp_path)
    assert (row["candidates"], row["pair.bid"]) == (ids.tolist(), pair["bid"].tolist())


def test_request_log_user_prior_has_no_record(make: Make, world: World, tmp_path: Path) -> None:
    def users(user: int) -> UserRecord:
        raise ConnectionError("no route")

    log = RequestLog(tmp_path, 1.0)
    engine = make(observers=[log], users=users, on_user_source_error="degrade")
    assert engine.begin(5).rank(world.ids[:20]).report.rung == 2
    log.flush()
    [row] = logged(tmp_path)
    assert (row["rung"], row["user_state"], row.get("history.item")) == (2, "prior", None)


KILLED = """
import sys
import numpy as np
from aif_jax.observe import RequestLog
from aif_jax.serving import Ranking, Report, Served
from aif_jax.serving.report import Facts
ids = np.arange(20, dtype=np.uint64)
log = RequestLog(sys.argv[1], 1.0, rotate_bytes=3000)
log.opened(None)
for number in range(10**9):
    if log.stats()["waiting"] < 200:
        values = dict.fromkeys(Report._fields, 0) | {"rung_reason": None, "request_id": f"r-{number}"}
        ranking = Ranking(ids, np.ones(20, np.float32), {}, Facts(values, (), (), 0.0))
        log.served(ranking, Served(None, {}, ids, {}, None))
"""


def test_request_log_killed_process_leaves_readable_files(tmp_path: Path, opened: Any) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        until = time.monotonic() + 60.0
        while len(list((tmp_path / "log").glob("*.parquet"))) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    rows = logged(tmp_path / "log")
    assert len(rows) >= 5
    assert [row["request_id"] for row in rows] == [f"r-{n}" for n in range(len(rows))]
    opened()  # a new log clears what the dead one had begun
    assert all(path.suffix == ".parquet" for path in (tmp_path / "log").iterdir())
