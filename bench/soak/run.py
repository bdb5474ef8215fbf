"""An engine under steady load for hours, while all around it changes and fails. Every answer is checked.

`python bench/soak/run.py --minutes 120`, or `make soak`. New generations are published; a stream in redis
changes both tables, by a process that is killed again and again; users are invalidated; sources and retrieval
raise, hang and return garbage; requests are cancelled; the archives' disk is full for a minute; clocks step.
What happens is appended to files of ``--out``, of which `--report` makes the page, also if the run ended
midway. The exit code is 1 if a check is violated. Needs redis-server, glibc 2.33, and root for the full disk.
"""

import asyncio
import collections
import contextlib
import ctypes
import dataclasses
import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from aif_jax.errors import PublishError
from aif_jax.integrations.redis import write_update
from aif_jax.nearline import Delete
from aif_jax.nearline.change_log import Position
from aif_jax.serving import Engine, EngineConfig, PublishChecks, Shapes, UserStateCache
from aif_jax.types import Candidates, Request, UserRecord
from results import parser_of
from soak.generations import STREAM, Generation, SteppingClock, append, connect
from soak.report import CHECKS, report
from soak.truth import DELETED, HIDDEN, RANKABLE, Truth, fitting
from soak.world import (
    CANDIDATES,
    IDS,
    ITEMS,
    LENGTH,
    MOVING,
    PAIR,
    USERS,
    VERSIONS,
    K,
    base_of,
    items,
    own_item,
    record,
)  # fmt: skip
from stage.request import CONTEXT

LATE = {"DeadlineExceededError", "OverloadedError"}
EXPECTED: dict[str, set[str]] = {
    "none": {"rung 0"},
    "user source raises": {"UserSourceError"},
    "user source hangs": {"rung 2", "rung 3", *LATE},
    "user source returns garbage": {"UserSourceError"},
    "retrieval raises": {"RetrievalError"},
    "retrieval hangs": LATE,
    "retrieval returns garbage": {"RetrievalError"},
    "cancelled": {"CancelledError", "rung 0"},
}
"""What a request may end in, by its fault. Answers of every rung are checked."""

RECORDS: tuple[Any, ...] = ("a user", UserRecord(items=None), UserRecord({"age": "old"}), 7)
FOUND: tuple[Any, ...] = (None, "ids", 7, {"ids": [1]}, np.array([True]), np.array([-1, -2]), IDS * 0.5)
"""Garbage of the user source and of retrieval."""

_BODY = '{"version":1,"upsert":{"ids":[7],"columns":%s}}'
MALFORMED: tuple[dict[str, Any], ...] = (
    {"update": "{"}, {"update": b"\xff\xfe"}, {"other": "1"}, {"update": "[" * 5000}, {"update": "7"},
    {"update": '{"version":2}'}, {"update": '{"version":1,"delete":{"ids":7}}'},
    {"update": '{"version":1,"delete":{"ids":[1.5]}}'}, {"update": _BODY % '{"price":["dear"]}'},
    {"update": '{"version":1,"upsert":{"ids":[-5],"columns":{}}}'}, {"update": _BODY % '{"price":7}'},
    {"update": '{"version":1,"upsert":{"ids":[7],"columns":{},"content":[[1.0,2.0]]}}'},
    {"update": _BODY % '{"item":[1,2]}'}, {"update": _BODY % '{"no_such":[1]}'},
)  # fmt: skip
"""Fields of entries of the stream that are no updates, or of an item that nobody has."""

DEADLINE_MS, HANGS_S = 300.0, 1.0


class _Malloc(ctypes.Structure):
    """``struct mallinfo2`` of glibc, in bytes."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def allocator() -> Callable[[], int]:
    """Return a function that gives the bytes that are allocated and not freed, however much glibc keeps."""
    mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo.restype = _Malloc

    def allocated() -> int:
        found = mallinfo()
        return int(found.uordblks + found.hblkhd)

    return allocated


class InjectedError(Exception):
    """Error of a source that is down."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    minutes: float
    rate: float = 25.0  # requests a second
    updates: float = 10.0  # a second
    faulty: float = 0.06  # share of guests' requests with a fault on purpose
    malformed: float = 0.03  # share of updates
    publish_s: float = 240.0  # between publishes
    kill_s: float = 40.0  # between kills
    invalidate_s: float = 5.0  # between changes of users
    full_s: float = 60.0  # for which the disk is full, twice


class Soak:
    """All that runs, and the notes of it."""

    def __init__(self, plan: Plan, out: Path, port: int, full_disk: bool):
        self.plan, self.out, self.port, self.full_disk = plan, out, port, full_disk
        self.truth, self.clock, self.clients = Truth(), SteppingClock(), (connect(port), connect(port))
        self.generations: list[Generation] = []
        self.ending_process = threading.Lock()
        self.faults: dict[int, str] = {}
        self.counts, self.hit = Counter[str](), Counter[str]()
        self.outcomes: dict[str, Counter[str]] = collections.defaultdict(Counter)
        self.latencies: list[float] = []
        self.ending, self.began = threading.Event(), time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self.began

    def note(self, what: str, **more: Any) -> None:
        self.counts[what] += 1
        append(self.out / "events.jsonl", t=self.now(), what=what, **more)

    def violated(self, check: str, text: str) -> None:
        self.counts[check] += 1
        if self.counts[check] <= 100:
            append(self.out / "violations.jsonl", t=self.now(), check=check, text=text[:2000])

    # -- requests ---------------------------------------------------------------------------------

    def fails(self, part: str, user: int) -> str:
        """Return how a part fails for a user, or nothing; raise if that is how."""
        fault = self.faults.get(user, "")
        if not fault.startswith(part):
            return ""
        self.hit[fault] += 1
        if fault.endswith("raises"):
            raise InjectedError("down, on purpose")
        return fault

    def users(self, user: int) -> UserRecord:
        fault = self.fails("user source", user)
        if fault.endswith("garbage"):
            return random.choice(RECORDS)
        if fault:
            time.sleep(HANGS_S)
        return record(base_of(user), self.truth.users[user][-1] if user < USERS else 0)

    async def retrieve(self, request: Request) -> Any:
        fault = self.fails("retrieval", int(request.user))
        if fault.endswith("garbage"):
            return random.choice(FOUND)
        await asyncio.sleep(20 * HANGS_S if fault else 0.005)
        return self.candidates(int(request.user))

    def asked(self, user: int) -> np.ndarray:
        return np.random.default_rng(user).permutation(ITEMS)[:CANDIDATES]

    def candidates(self, user: int) -> Candidates:
        return Candidates(IDS[self.asked(user)], {"retrieval_score": PAIR[self.asked(user)]})

    async def ask(self, number: int, user: int, deadline_ms: float | None) -> Any:
        """Make a request in one of three ways."""
        if number % 10 == 1:
            pending, found = self.engine.begin(user, CONTEXT, deadline_ms=deadline_ms), self.candidates(user)
            await asyncio.sleep(0.005)
            return await pending.rank_async(found.ids, found.pair)
        if number % 10 == 3:
            return (await self.engine.rank_many_async([user], contexts=[CONTEXT], deadline_ms=deadline_ms))[0]
        return await self.engine.rank_async(user, CONTEXT, deadline_ms=deadline_ms)

    async def request(self, number: int, due: float) -> None:
        """Make a request, by a guest or a user with versions, and check what it ends in."""
        user, fault = (number // 2 % USERS, "none") if number % 2 else (USERS + number, "none")
        if user >= USERS and random.random() < self.plan.faulty:
            fault = self.faults[user] = random.choice([*EXPECTED][1:])
        first = self.truth.settled[base_of(user)]
        alive = {one.bundle.version: (one, one.position) for one in tuple(self.generations)}
        asked = asyncio.ensure_future(
            self.ask(number, user, DEADLINE_MS if fault.endswith("hangs") else None)
        )
        if fault == "cancelled":
            await asyncio.wait({asked}, timeout=random.uniform(0, 0.012))
            self.hit[fault] += asked.cancel()
        text = ""
        try:
            ranking = await asked
            outcome = f"rung {ranking.report.rung}"
            self.check(user, self.truth.users[user][first:] if user < USERS else [0], alive, ranking)
            if fault == "none":
                self.latencies.append((time.perf_counter() - due) * 1e3)
        except BaseException as error:
            outcome, text = type(error).__name__, str(error)
        if outcome not in EXPECTED[fault]:
            self.violated("unexpected", f"{fault}: {outcome} {text}")
        self.outcomes[fault][outcome] += 1
        self.faults.pop(user, None)

    def check(
        self, user: int, versions: list[int], alive: dict[str, tuple[Generation, Position]], ranking: Any
    ) -> None:
        """Compare an answer with all that it may be in the generation that it reports."""
        report = ranking.report
        self.counts["answers checked"] += 1
        if report.version not in alive:
            return self.violated(
                "mixed", f"version {report.version[:12]} did not serve when the request began"
            )
        generation, position = alive[report.version]
        rows = self.truth.rows_of(base_of(user), versions, report.rung)
        if fault := self.truth.wrong(generation.scores, rows, self.asked(user), position, ranking):
            fits = {one.number: fitting(one.scores, rows, ranking) for one, _ in alive.values()}
            others = max((n for number, n in fits.items() if number != generation.number), default=0)
            text = f"user {user} of versions {versions}, {report.user_state}, rung {report.rung}, generation "
            text += f"{generation.number}: {fault}; scores that fit, by generation: {fits}"
            self.violated("mixed" if others > K // 10 else "wrong", text)
        if report.user_state_age_ms > self.now() * 1e3 + 60e3:
            self.violated("unexpected", f"user_state_age_ms of {report.user_state_age_ms:.0f}")

    async def arrivals(self) -> None:
        """Send requests as a Poisson process until the end, and wait for all of them."""
        rng, tasks, number, due = np.random.default_rng(0), set[asyncio.Task[None]](), 0, time.perf_counter()
        while not self.ending.is_set() and (self.now() < self.plan.minutes * 60 or self.early()):
            due += rng.exponential(1 / self.plan.rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.add(task := asyncio.create_task(self.request(number, due)))
            task.add_done_callback(tasks.discard)
            number += 1
        self.ending.set()
        await asyncio.gather(*tasks)
        self.counts["requests"] = number

    def early(self) -> bool:
        """Return whether a short run has not come to a publish yet; it has some minutes more."""
        return not self.counts["publish"] and self.now() < 300.0

    # -- changes and faults, each in a thread of its own ------------------------------------------

    def updates(self) -> None:
        """Write updates of items to the stream, and malformed ones among them."""
        luck = random.Random(1)
        while not self.ending.wait(luck.expovariate(self.plan.updates)):
            rows = luck.sample(range(MOVING - USERS), luck.randint(1, 3))
            flag = luck.choices((RANKABLE, HIDDEN, DELETED), (8, 1, 1))[0]
            if luck.random() >= self.plan.malformed:
                self.write(rows, None if flag == DELETED else luck.randrange(VERSIONS), flag)
                continue
            with self.truth.lock:
                if luck.random() < 0.2:  # one good item, one bad one
                    position = self.write(rows[:1], luck.randrange(VERSIONS), RANKABLE, spoiled=True)
                else:
                    send = lambda: self.clients[0].xadd(STREAM, luck.choice(MALFORMED)).decode()  # noqa: E731
                    position = self.truth.say([], 0, 0, send)
                self.truth.malformed.append(position)
            self.counts["malformed updates"] += 1

    def write(self, rows: list[int], version: int | None, flag: int, *, spoiled: bool = False) -> Position:
        update: Any = Delete(IDS[rows])
        if version is not None:
            update = items(self.source, rows, version, np.full(len(rows), flag == RANKABLE))
        if spoiled:
            update = items(self.source, [*rows, 0], version)
            update.columns["price"] = [*update.columns["price"].tolist()[:-1], "dear"]
            update = dataclasses.replace(update, ids=[*IDS[rows].tolist(), 7])
        self.counts["updates"] += 1
        send = lambda: write_update(self.clients[0], STREAM, update, max_entries=50_000)  # noqa: E731
        return self.truth.say(rows, version, flag, send)

    def invalidations(self) -> None:
        """Change a user's record, or a row that its history is full of, and invalidate the user."""
        luck = random.Random(2)
        while not self.ending.wait(self.plan.invalidate_s):
            user = luck.randrange(USERS)
            versions = self.truth.users[user]
            versions.append((versions[-1] + luck.randrange(1, VERSIONS)) % VERSIONS)
            if user % 2:
                position = self.write([own_item(user)], versions[-1], RANKABLE)
                while any(one.position < position for one in tuple(self.generations)):
                    if self.ending.wait(0.05):
                        return
            self.engine.invalidate(user)
            self.truth.settled[user] = len(versions) - 1
            self.counts["users invalidated"] += 1

    def kills(self) -> None:
        """Kill followers, look at what they left, and start them again; cut connections; step the clock."""
        luck = random.Random(3)
        while not self.ending.wait(luck.uniform(0.2, 1.8) * self.plan.kill_s):
            with self.ending_process:
                one = luck.choice([one for one in self.generations if one.process is not None])
                self.ended(one, signal.SIGKILL)
                self.note("kill", generation=one.number)
                self.ending.wait(luck.uniform(0, 3))
                one.start()
            if luck.random() < 0.5:
                own = {client.client_id() for client in self.clients}
                for other in self.clients[1].client_list():
                    if int(other["id"]) not in own:
                        self.clients[1].client_kill_filter(_id=other["id"])
                self.note("connections cut")
            if luck.random() < 0.5:
                self.note("clock step", by_s=self.clock.step())

    def ended(self, generation: Generation, how: int, reached: Position | None = None) -> None:
        """End a process, and compare what it leaves with what was said."""
        if text := generation.end(how):
            self.violated("unexpected", f"follower of generation {generation.number} {text}")
        for fault in generation.faults_on_disk(self.truth, reached):
            self.violated("lost", f"generation {generation.number}, after signal {how}: {fault}")
        self.counts["archives recovered"] += 2

    def disk(self) -> None:
        """Fill the disk, after a third and two thirds of the run."""
        filler = self.out / "disk" / "filler"
        for share in (1 / 3, 2 / 3) if self.full_disk else ():
            if self.ending.wait(max(0.0, share * self.plan.minutes * 60 - self.now())):
                return
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
            self.note("disk full")
            self.ending.wait(self.plan.full_s)
            while not any(one.told("disk_full") for one in self.generations) and not self.ending.wait(1.0):
                pass  # all were killed and are starting
            filler.unlink()
            self.note("disk has room again")

    def publishes(self) -> None:
        """Publish generations, roll back at times, and end those that the engine has dropped."""
        luck, checks = (
            random.Random(4),
            PublishChecks(min_overlap=0.0, min_coverage=0.999, coverage_within_s=20.0),
        )
        while not self.ending.wait(luck.uniform(0.5, 1.0) * self.plan.publish_s):
            new = self.made(self.generations[-1].number + 1)
            while not self.ending.is_set():
                try:
                    found = self.engine.publish(new.bundle, new.tables or new.open(), checks=checks, warm=100)
                except PublishError as error:  # its tables or the running ones lag, as those of a killed one
                    self.note("publish refused", error=str(error)[:300])
                    continue
                self.note("publish", generation=new.number, prepared_s=found.prepared_s, warmed=found.warmed)
                for _ in range(2 * (luck.random() < 0.3)):
                    self.ending.wait(3)
                    self.note("rollback", to=self.engine.rollback())
                break
            while len(self.generations) > 2 and not self.ending.is_set():
                with self.ending_process:
                    oldest = self.generations.pop(0)
                self.ended(oldest, signal.SIGTERM)
                oldest.close()
                oldest.tables = None
                shutil.rmtree(oldest.archives)
                shutil.rmtree(oldest.folder / "bundle")

    def made(self, number: int) -> Generation:
        """Prepare a generation, begin to follow, and open what it has."""
        name = f"{number:03}"
        one = Generation(number, self.out / name, self.out / "disk" / name, self.port)
        one.prepare()
        with self.truth.lock:  # what is said from now on, it must be told
            one.take_catalogue(self.truth, self.clients[1])
            self.generations.append(one)
        one.start()
        one.open()
        return one

    # -- watching ---------------------------------------------------------------------------------

    def watch(self) -> None:
        """Sample this process every second, write a window every ten, compare the tables every thirty."""
        floors = collections.deque[Position](maxlen=60)
        tick, allocated = 0, allocator()
        while not self.ending.wait(1.0):
            tick += 1
            generations = tuple(self.generations)
            floors.append(min(one.position for one in generations))
            self.truth.floor = floors[0]  # of a minute ago: requests under way may have seen older states
            rollup = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
            size = {row[0]: int(row[1]) << 10 for row in rollup}
            append(
                self.out / "samples.jsonl", t=self.now(), cpu_s=time.process_time(),
                rss=size["Rss:"], anonymous=size["Anonymous:"], allocated=allocated(),
                fds=len(os.listdir("/proc/self/fd")), threads=len(os.listdir("/proc/self/task")),
            )  # fmt: skip
            if self.ending_process.acquire(blocking=False):
                for one in generations:
                    if one.process is not None and one.process.poll() is not None:
                        self.violated(
                            "unexpected", f"follower of generation {one.number} ended: {one.output()}"
                        )
                        one.start()
                self.ending_process.release()
            if tick % 10 == 0:
                self.window()
            if tick % 30 == 0:
                self.compare()

    def compare(self) -> None:
        for one in tuple(self.generations):
            for fault in one.faults(self.truth) if one.tables else ():
                self.violated("lost", f"generation {one.number}: {fault}")
            self.counts["tables compared"] += 2

    def window(self) -> None:
        taken, self.latencies = self.latencies, []
        p50, p99 = np.quantile(taken or [0.0], (0.5, 0.99))
        append(self.out / "windows.jsonl", t=self.now(), n=len(taken), p50=p50, p99=p99)
        done = int(30 * self.now() / (self.plan.minutes * 60))
        counts = ", ".join(
            f"{self.counts[name]:,} {name}" for name in ("answers checked", "publish", "kill", *CHECKS)
        )
        print(
            f"[{'#' * done:30}] {self.now() / 60:.1f} min, p50 {p50:.1f}, p99 {p99:.1f} ms, {counts}",
            flush=True,
        )
        self.save()

    def save(self, **more: Any) -> None:
        append(
            self.out / "summary.jsonl", plan=dataclasses.asdict(self.plan), seconds=self.now(),
            counts=self.counts, outcomes=self.outcomes, hit=self.hit, full_disk=self.full_disk, **more,
        )  # fmt: skip

    # -- the run ----------------------------------------------------------------------------------

    def run(self) -> None:
        first = self.made(1)
        self.source = dict(np.load(first.folder / "right.npz"))
        shapes = Shapes(candidates=(CANDIDATES,), histories=(LENGTH,))
        config = EngineConfig(k=K, shapes=shapes, user_states=UserStateCache(max_bytes=8 << 20))
        tables = first.tables or first.open()
        self.engine = Engine(first.bundle, tables, users=self.users, retrieve=self.retrieve, config=config)
        gc.collect()
        gc.freeze()
        self.began = time.monotonic()
        jobs = (self.updates, self.invalidations, self.kills, self.disk, self.publishes, self.watch)
        threads = [threading.Thread(target=self.guarded, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        asyncio.run(self.arrivals())
        for thread in threads:
            thread.join()
        self.finish()

    def guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.violated("unexpected", f"{job.__name__}: {type(error).__name__}: {error}")
            self.ending.set()

    def finish(self) -> None:
        """Wait until the tables have all that was said, compare everything, close, and compare the counts."""
        last, end = self.write([0], 0, RANKABLE), time.monotonic() + 120
        while any(one.position < last for one in self.generations) and time.monotonic() < end:
            time.sleep(0.1)
        self.compare()
        counted = self.engine.stats()["requests"]
        for one in self.generations:
            self.ended(one, signal.SIGTERM, last)
            one.close()
        self.engine.close()
        ended = sum(self.outcomes.values(), Counter[str]())
        for outcome, number in [*ended.items(), ("requests", self.counts["requests"])]:
            kind = f"rung:{outcome[5:]}" if outcome.startswith("rung") else f"error:{outcome}"
            kind = "abandoned" if outcome == "CancelledError" else kind
            found = ended.total() if outcome == "requests" else counted.get(kind, 0)
            if found != number:
                self.violated("uncounted", f"{outcome}: {number}, but {found} were counted")
        self.save(requests=counted, finished=True)


@contextlib.contextmanager
def around(out: Path) -> Iterator[tuple[int, bool]]:
    """Run a redis-server, and mount a small disk if that is allowed; give the port, and whether it is."""
    disk = out / "disk"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(out),
    ]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        yield port, mounted
    finally:
        server.terminate()
        server.wait(10)
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=False)


def main(arguments: list[str] | None = None) -> Path:
    parser = parser_of(__doc__, Path("runs/soak"))
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--record", type=Path, help="where the page and its picture are written besides")
    parser.add_argument("--report", action="store_true", help="only make the page of what is in --out")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    if not given.report:
        plan = Plan(minutes=given.minutes)
        if given.quick:
            plan = Plan(minutes=1.5, faulty=0.2, publish_s=20, kill_s=20, invalidate_s=1, full_s=6)
        shutil.rmtree(out, ignore_errors=True)
        with around(out) as (port, mounted):
            soak = Soak(plan, out, port, mounted)
            try:
                soak.run()
            finally:
                for one in soak.generations:
                    if one.process is not None:
                        one.process.kill()
    return report(out, given.record, quick=given.quick)


if __name__ == "__main__":
    main()
