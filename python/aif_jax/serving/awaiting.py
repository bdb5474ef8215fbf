"""Waiting in an event loop for a future that another thread resolves."""

import asyncio
import concurrent.futures
import contextlib
from typing import Any

from aif_jax.errors import SchedulerError

SHUT_DOWN = (
    "the engine's threads were shut down before all of this request could run, as happens when the "
    "interpreter exits; end the requests first."
)


async def result_of(future: "concurrent.futures.Future[Any]") -> Any:
    """Return the result of a future, or raise its exception; give it up when the caller is given up.

    Like ``asyncio.wrap_future``, but for one that is done it takes no turn of the loop, and where the loop
    was closed meanwhile the thread that resolves the future is not troubled with that.

    Raises:
        asyncio.CancelledError: the caller was cancelled.
        SchedulerError: the future was, by somebody else.
    """
    if not future.done():
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_: object) -> None:
            # A closed loop: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, waiter)

        future.add_done_callback(wake)
        try:
            await waiter
        except BaseException:
            future.cancel()
            raise
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        # Not as a cancellation: the caller's coroutine would pass for one that was given up.
        raise SchedulerError(SHUT_DOWN) from None


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
