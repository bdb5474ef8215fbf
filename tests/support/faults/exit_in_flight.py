"""The interpreter exits while requests are under way: in a process of its own, which must end cleanly.

As a program it is that process: `python -m support.faults.exit_in_flight WAY BUNDLE`, from `tests`.
"""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

from aif_jax.bundle import Bundle
from aif_jax.errors import AifError
from aif_jax.serving import Engine
from aif_jax.types import UserRecord
from support.faults.injection import NONE, Fault, Injected
from support.faults.service import CONTEXT, Service
from support.processes import shared_compilations
from support.served import make_world, tables_of

WAYS = ("handles begun", "threads that ask", "coroutines that ask", "an exception in the main thread")
ENDS_WITHIN_S = 20.0
_LEAVING = "leaving"
_BUILDS_WITHIN_S = 240.0


@dataclasses.dataclass(frozen=True)
class Exit:
    """End of a process.

    Attributes:
        way: what was under way.
        clean: whether it ended in time, with the code it should, and wrote nothing that it should not.
        seconds: from leaving the program to the end of the process.
        output: its exit code and what it wrote to its error stream.
    """

    way: str
    clean: bool
    seconds: float
    output: str


def leave(way: str, bundle: Path) -> Exit:
    """Start a process that serves a bundle, let it exit with requests under way, and see how it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "support.faults.exit_in_flight", way, str(bundle)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **shared_compilations()},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watch = threading.Timer(_BUILDS_WITHIN_S, process.kill)
    watch.start()
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    left = time.perf_counter()
    try:
        errors = process.communicate(timeout=ENDS_WITHIN_S)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        errors = "it did not end. " + process.communicate()[1]
    watch.cancel()
    seconds = time.perf_counter() - left
    raised = way == WAYS[3]
    expected = (1, "SystemError: on purpose") if raised else (0, "")
    lines = errors.strip().splitlines()
    clean = first == _LEAVING and process.returncode == expected[0] and (lines[-1:] or [""]) == [expected[1]]
    # The traceback of the main thread's own exception, and nothing else.
    clean = clean and errors.count("Traceback") == raised
    return Exit(way, clean, seconds, f"exit code {process.returncode}: {errors.strip()[-2000:]}")


def _main(way: str, bundle: str) -> None:
    # From here on, not by `-W error`: what old versions warn of as they are imported is not ours.
    warnings.simplefilter("error")
    world = make_world()
    service = Service(world, *tables_of(Bundle.load(bundle), world))
    injected = Injected(service, 0.002)
    # Some are slow, so that something is under way in every lane whenever the process ends.
    injected.faults = lambda number: _slow(service, number)
    engine = Engine(
        service.bundle, service.tables, users=injected.users, retrieve=injected.retrieve,
        config=service.engine_config(),
    )  # fmt: skip
    engine.rank(1, CONTEXT)
    handles = [engine.begin(number, CONTEXT) for number in range(64)]
    if way == WAYS[1]:
        for first in range(4):
            threading.Thread(target=_ask, args=(engine, first), daemon=True).start()
    elif way == WAYS[2]:
        threading.Thread(target=lambda: asyncio.run(_ask_async(engine)), daemon=True).start()
    time.sleep(0.05)
    print(_LEAVING, flush=True)
    if way == WAYS[3]:
        raise SystemError("on purpose")
    assert len(handles) == 64


def _slow(service: Service, number: int) -> Fault:
    def user(asked: int) -> UserRecord:
        time.sleep(0.3)
        return service.user(asked)

    return Fault(user=user) if number % 16 == 15 else NONE


def _ask(engine: Engine, first: int) -> None:
    # Once the process is ending, requests are refused: an error is all that a caller can want then.
    with contextlib.suppress(AifError):
        for number in range(first, 1 << 20, 4):
            engine.rank(number, CONTEXT)


async def _ask_async(engine: Engine) -> None:
    async def caller(first: int) -> None:
        with contextlib.suppress(AifError):
            for number in range(first, 1 << 20, 8):
                await engine.rank_async(number, CONTEXT)

    await asyncio.gather(*(caller(first) for first in range(8)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
