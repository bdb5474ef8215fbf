"""Callers that keep an engine busy in every way that it can be asked, from threads and from an event loop."""

import asyncio
import gc
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aif_jax.errors import RequestError
from aif_jax.serving import Engine, Ranking
from aif_jax.types import Candidates
from support.faults.ledger import CANCELLED, Entry, Ledger, noting
from support.faults.service import CONTEXT, Answer, Service

WAITS_S = 60.0
"""After so long without an end, requests are given up as lost."""

MANY = 8
"""Requests of one `rank_many`, at most."""

Deadline = float | None


class Callers:
    """A number of threads and coroutines over one engine.

    Args:
        engine: whom they ask.
        service: whose candidates the callers of `begin` bring themselves.
        threads: callers in threads: one uses `rank_many`, the others `rank`, and `begin` and `Pending.rank`.
        coroutines: callers in an event loop: one uses `rank_many_async`, the others `rank_async`, and `begin`
            and `Pending.rank_async`.
    """

    def __init__(self, engine: Engine, service: Service, threads: int = 4, coroutines: int = 8):
        self._engine = engine
        self._service = service
        self._threads = threads
        self._coroutines = coroutines
        # Where little may wait, they would be refused for each other.
        self._many = max(1, min(MANY, engine.config.threads.max_queued // 4))

    def more(self, times: int) -> "Callers":
        """Return several times as many callers in the event loop."""
        return Callers(self._engine, self._service, self._threads, times * self._coroutines)

    def ask(self, requests: int, deadline_ms: Deadline = None, first: int = 0) -> Ledger:
        """Make requests, each caller one after the other; return what became of them."""
        ledger, numbers = Ledger(), _Numbers(first, first + requests)

        def plain() -> None:
            for number in numbers:
                entry = ledger.begin(number)
                with noting(entry):
                    note(entry, self._plainly(number, deadline_ms))

        async def caller() -> None:
            for number in numbers:
                entry = ledger.begin(number)
                with noting(entry):
                    note(entry, await self._async(number, deadline_ms))

        def plain_many() -> None:
            while users := list(itertools.islice(numbers, self._many)):
                entries = [ledger.begin(number) for number in users]
                with noting(*entries):
                    note_many(entries, self._engine.rank_many(users, **_options(users, deadline_ms)))

        async def many() -> None:
            while users := list(itertools.islice(numbers, self._many)):
                entries = [ledger.begin(number) for number in users]
                with noting(*entries):
                    found = await self._engine.rank_many_async(users, **_options(users, deadline_ms))
                    note_many(entries, found)

        async def callers() -> None:
            await asyncio.gather(many(), *(caller() for _ in range(self._coroutines - 1)))

        run(
            [plain_many, *[plain] * (self._threads - 1)]
            + [lambda: asyncio.run(callers())] * bool(self._coroutines)
        )
        return ledger

    def storm(self, requests: int, longest_s: float, first: int, seed: int = 0) -> Ledger:
        """Make requests and give up most of them at random moments: coroutines, and handles from threads."""
        ledger, numbers = Ledger(), _Numbers(first, first + requests)

        def plain() -> None:
            luck = random.Random(seed + threading.get_ident())
            for number in numbers:
                entry = ledger.begin(number)
                with noting(entry):
                    pending = self._engine.begin(number, CONTEXT)
                    timer = threading.Timer(luck.uniform(0, longest_s), pending.cancel)
                    timer.start()
                    found = self._service.candidates(number)
                    try:
                        note(entry, pending.rank(found.ids, found.pair))
                    except RequestError as error:
                        # The handle says that it was cancelled; anything else would be a fault.
                        if "cancelled" not in str(error):
                            raise
                        entry.error = CANCELLED
                    finally:
                        timer.cancel()
                        timer.join()

        async def caller(luck: random.Random) -> None:
            for number in numbers:
                entry = ledger.begin(number)
                task = asyncio.ensure_future(self._async(number, None))
                with noting(entry):
                    done, _ = await asyncio.wait({task}, timeout=luck.uniform(0, longest_s))
                    if not done:
                        task.cancel()
                    try:
                        note(entry, await task)
                    except asyncio.CancelledError:
                        entry.error = CANCELLED

        async def callers() -> None:
            await asyncio.gather(*(caller(random.Random(seed + place)) for place in range(self._coroutines)))

        run([plain] * self._threads + [lambda: asyncio.run(callers())] * bool(self._coroutines))
        return ledger

    def close_loops(self, loops: int, first: int, seed: int = 0) -> Ledger:
        """Make requests from event loops that are stopped and closed while these are under way."""
        ledger, luck = Ledger(), random.Random(seed)

        async def one(entry: Entry) -> None:
            with noting(entry):
                note(entry, await self._async(entry.number, None))

        async def burst(entries: list[Entry], seconds: float) -> list[asyncio.Task[None]]:
            tasks = [asyncio.ensure_future(one(entry)) for entry in entries]
            await asyncio.sleep(seconds)
            return tasks

        for turn in range(loops):
            start = first + turn * self._coroutines
            entries = [ledger.begin(start + place) for place in range(self._coroutines)]
            loop = asyncio.new_event_loop()
            # What a loop says of tasks that are thrown away while pending is this test's own doing.
            loop.set_exception_handler(lambda _loop, _context: None)
            tasks = loop.run_until_complete(burst(entries, luck.uniform(0.0, 0.02)))
            loop.close()
            # The last that held them: the coroutines end here.
            tasks.clear()
            gc.collect()
        return ledger

    def _plainly(self, number: int, deadline_ms: Deadline) -> Ranking:
        if number % 4 < 2:
            return self._engine.rank(number, CONTEXT, deadline_ms=deadline_ms)
        pending = self._engine.begin(number, CONTEXT, deadline_ms=deadline_ms)
        found = self._found(number)
        return pending.rank(found.ids, found.pair)

    async def _async(self, number: int, deadline_ms: Deadline) -> Ranking:
        if number % 4 < 3:
            return await self._engine.rank_async(number, CONTEXT, deadline_ms=deadline_ms)
        pending = self._engine.begin(number, CONTEXT, deadline_ms=deadline_ms)
        await asyncio.sleep(0.002)
        found = self._found(number)
        return await pending.rank_async(found.ids, found.pair)

    def _found(self, number: int) -> Candidates:
        return self._service.candidates(number)


class _Numbers(Iterator[int]):
    """Numbers dealt out to several threads, each once."""

    def __init__(self, first: int, end: int):
        self._numbers = itertools.chain(range(first, end))
        self._lock = threading.Lock()

    def __next__(self) -> int:
        with self._lock:
            return next(self._numbers)


def note(entry: Entry, ranking: Ranking) -> None:
    """Note an answer."""
    entry.answer = Answer(ranking.ids, ranking.scores, ranking.report.rung)


def note_many(entries: Sequence[Entry], answers: Sequence[Ranking | BaseException]) -> None:
    """Note answers, or errors in their places."""
    for entry, answer in zip(entries, answers, strict=True):
        with noting(entry):
            if isinstance(answer, BaseException):
                raise answer
            note(entry, answer)


def _options(users: Sequence[int], deadline_ms: Deadline) -> dict[str, Any]:
    contexts: Any = [CONTEXT] * len(users)
    return {"contexts": contexts, "deadline_ms": deadline_ms, "return_exceptions": True}


def run(functions: list[Callable[[], None]]) -> None:
    """Run functions in threads of their own and wait for them, but not for ever."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAITS_S)
