"""The native half of aif_jax: embedding cache, scheduler and CPU kernels, written in Rust.

Import these names from `aif_jax`, not from here.
"""

# Documentation tools run this file, and classes name themselves in it.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from os import PathLike
from typing import Any, Literal, TypeVar, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK_BYTES",
    "EmbeddingCache",
    "RowLayout",
    "Scheduler",
    "__version__",
    "block_checksums",
    "chosen_kernels",
    "cpu_features",
    "distinct",
    "ffi_targets",
    "hash_strings",
    "simtier",
    "standardise",
    "table_sum",
]

_T = TypeVar("_T")

__version__: str

# Cache: what the classes do and promise is said in the Rust crate's docs and in DESIGN.md.

@final
class RowLayout:
    """The named columns of a row, each with a dtype and a shape, at fixed offsets.

    Columns keep their order, start at multiples of 4 bytes, and a row is rounded up to whole cache lines.

    Args:
        columns: `(name, dtype, shape)` of each column; dtype is one of float32, bfloat16, float16, int8,
            uint8, int32, uint32; shape is that within one row, `()` for a scalar.

    Raises:
        LayoutError: no columns, a repeated or empty name, an unknown dtype, or a dimension of 0.
    """

    def __new__(cls, columns: Sequence[tuple[str, str, Sequence[int]]]) -> RowLayout: ...
    @property
    def columns(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """`(name, dtype, shape)` of each column, in order."""
    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next; a multiple of 64."""
    @property
    def payload_bytes(self) -> int:
        """Bytes of a row's columns, without padding."""
    @property
    def offsets(self) -> dict[str, int]:
        """Where each column starts within a row, in bytes."""
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class EmbeddingCache:
    """A concurrent store of fixed-size rows under 64-bit keys.

    Look-ups take no lock and never wait; all columns of a row come from one `upsert`. Writers copy their rows
    side by side and take turns at the table. A batch is not a transaction: a `gather` beside an `upsert` may
    see some of its rows and not yet others. All methods may be called from any thread; the GIL is released.
    Keys are contiguous `uint64[N]` arrays, 0 and 2**64 - 1 included. Arrays given to a call must not be
    written to by others until it returns.

    Args:
        layout: the columns of a row.
        capacity_bytes: the most bytes to take, overhead included; full, the cache evicts by S3-FIFO. `None`:
            unbounded.
        ttl_s: rows older than this many seconds are misses. `None`: rows do not expire.
        initial_keys: for how many keys to make the hash table and the segments of rows from the start.
        huge_pages: ask the system for huge pages wherever 2 MB or more are taken at once.
        prefault: back memory when it is taken, not when it is first used.

    Raises:
        ConfigError: `capacity_bytes` holds fewer than two rows, `ttl_s` is not positive, or `initial_keys`
            exceeds what a cache can hold.
    """

    def __new__(
        cls,
        layout: RowLayout,
        *,
        capacity_bytes: int | None = None,
        ttl_s: float | None = None,
        initial_keys: int = 0,
        huge_pages: bool = True,
        prefault: bool = False,
    ) -> EmbeddingCache: ...
    @staticmethod
    def over_file(
        layout: RowLayout,
        path: str | PathLike[str],
        offset: int,
        keys: npt.NDArray[np.uint64],
        *,
        prefault: bool = False,
    ) -> EmbeddingCache:
        """Make an unbounded cache whose first rows lie in a file, which is mapped and not read.

        They are memory of the system's own cache of the file, shared with other processes that map it. What
        is written later stays in this process; the file must stay as it is (it may be deleted or replaced).

        Args:
            layout: the columns of a row.
            path: the file; the row of ``keys[i]`` stands at ``offset + i * layout.row_bytes``.
            offset: a multiple of 65,536.
            keys: ``uint64[N]``, all different.
            prefault: map all pages at once, reading what is not in memory yet.

        Raises:
            RequestError: a key comes twice, the offset is none, or the file does not hold these rows.
            OSError: the file cannot be opened or mapped.
        """
    def upsert(self, keys: npt.NDArray[np.uint64], columns: Mapping[str, np.ndarray]) -> None:
        """Write one row per key, in order: of a key that comes twice the last row stays.

        Args:
            keys: `uint64[N]`.
            columns: for each column of the layout a contiguous array `[N, *shape]` of its dtype.

        Raises:
            LayoutError: the columns do not match the layout; nothing was written.
            RequestError: keys are not a contiguous `uint64[N]`; nothing was written.
            OverloadedError: a bounded cache has no row left because readers stall; some keys may have been
                written.
            MemoryError: the system refused memory; the keys before the one named were written.
        """
    def delete(self, keys: npt.NDArray[np.uint64]) -> int:
        """Delete keys; return how many had a row. Each is a miss for every `gather` that starts later."""
    def contains(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which keys have a row, `bool[N]`. Counts as no use of the rows."""
    def gather(
        self, keys: npt.NDArray[np.uint64], out: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], npt.NDArray[np.bool_]]:
        """Copy the rows of keys.

        Args:
            keys: `uint64[N]`.
            out: contiguous arrays `[N, *shape]` to write to, one per column, sharing memory with nothing
                else in the call. `None`: new arrays, aligned to 64 bytes so that JAX can take them without a
                copy. Their memory is on loan: it serves another batch when the last of them, and all that
                JAX made of them without a copy, is gone.

        Returns:
            The columns by name, `[N, *shape]` (the arrays of `out` if given), zeros where a key has no row;
            and which keys have one, `bool[N]`.

        Raises:
            LayoutError: `out` does not match the layout, or cannot be written to; nothing was written.
            RequestError: keys are not a contiguous `uint64[N]`.
        """
    def gather_column(
        self, keys: npt.NDArray[np.uint64], name: str
    ) -> tuple[np.ndarray, npt.NDArray[np.bool_]]:
        """Copy one column of the rows of keys; counts as a use of the rows, as `gather` does.

        Args:
            keys: `uint64[N]`.
            name: of the column.

        Returns:
            The column, `[N, *shape]`, zeros where a key has no row; and which keys have one, `bool[N]`.

        Raises:
            LayoutError: the rows have no such column.
            RequestError: keys are not a contiguous `uint64[N]`.
        """
    def get(self, key: int) -> dict[str, np.ndarray] | None:
        """Return the columns of one row, each of the column's shape, or `None` if the key has none."""
    def get_or_compute(
        self, key: int, compute: Callable[[], Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> dict[str, np.ndarray]:
        """Return the columns of one row, computing and keeping it if the key has none.

        However many threads ask for a key at once, `compute` runs in one of them and the others wait for it,
        without the GIL. A task in the compute lane of a `Scheduler` does not wait but raises, as others need
        its thread.

        Args:
            key: the key.
            compute: gives one row, an array of the column's shape and dtype for each column.
            timeout_s: how long to wait for another thread's computation, in seconds; `None`: without limit.

        Raises:
            LayoutError: what `compute` returned does not match the layout.
            DeadlineExceededError: another thread's computation took longer than `timeout_s`.
            SchedulerError: the key is being computed, and this thread may not wait for it.
            Exception: what `compute` raised, in every thread that waited for it.
        """
    def snapshot(self) -> tuple[npt.NDArray[np.uint64], dict[str, np.ndarray], npt.NDArray[np.float32]]:
        """Return all rows as of one moment between writes: copies that writers do not change.

        Returns:
            Keys `uint64[N]` in no order, columns `[N, *shape]` by name, and ages in seconds `float32[N]`.

        Raises:
            MemoryError: there is no memory for a copy of all rows.
        """
    def write_rows(
        self, path: str | PathLike[str], taken: Callable[[npt.NDArray[np.uint64]], object]
    ) -> npt.NDArray[np.uint64]:
        """Append all rows as of one moment to a file, whole and in the order of their keys.

        Writers go on meanwhile; what they replace stays memory until this returns.

        Args:
            path: a file that exists.
            taken: called with the keys, ``uint64[N]`` ascending, when the moment is taken and before anything
                is written; what it raises ends the call.

        Returns:
            The checksums of the rows' bytes, as `block_checksums` gives them.

        Raises:
            OSError: the file cannot be opened or written.
        """
    def ages_s(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        """Return the seconds since each key's row was written, `float32[N]`, to 16 ms; NaN without one."""
    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the keys that have a row, in no order. Waits for writers, unlike look-ups."""
    def stats(self) -> dict[str, int]:
        """Return how often things happened and how many rows there are.

        hits, misses (by `gather` and `get`; expired rows are misses), expiries (misses because of age),
        inserts, updates, deletes, evictions, expired_removed, live_rows, retired_rows (replaced, and waiting
        for readers to leave), max_rows (before eviction; 0 if unbounded), overrun_rows (made beyond the
        bound because readers stalled), payload_bytes, overhead_bytes (of live rows).
        """
    def memory_usage(self) -> dict[str, int]:
        """Return where the bytes are.

        payload_bytes, padding_bytes, retired_bytes, free_bytes (rows to be reused), table_bytes, side_bytes
        (time stamps, and keys and marks if rows are evicted), order_bytes (of eviction), total_bytes (all of
        these), mapped_bytes (of these, rows in a mapped file, shared while nobody writes to them),
        untouched_bytes (reserved address space, not in the total), growth_peak_bytes (most that two tables
        took during growth), pooled_bytes (of returned arrays, kept for the next batches; not in the total).
        """
    def clear(self) -> None:
        """Delete all rows; the counts go on."""
    def __len__(self) -> int:
        """Return the rows as of the last finished write; expired ones count until they are removed."""
    @property
    def handle(self) -> int:
        """The number by which compiled programs name this cache; it dies with the cache for good."""
    @property
    def layout(self) -> RowLayout:
        """The layout of its rows."""

BLOCK_BYTES: int
"""Bytes that have a checksum of their own."""

def block_checksums(bytes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return XXH3-64 of each `BLOCK_BYTES` bytes, and of the rest, ``uint64[B]``."""

def hash_strings(strings: list[str]) -> npt.NDArray[np.uint64]:
    """Return the 64-bit keys of strings, `uint64[N]`: XXH3-64 of their UTF-8 bytes, on any machine.

    Raises:
        RequestError: not a list, or an element is not a string that has a UTF-8 form.
    """

def distinct(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64] | None:
    """Return the places of all keys that did not come before, ascending, `int64[M]`; `None` if that is all.

    Raises:
        RequestError: not a contiguous array `uint64[N]`, or one of 2^31 keys or more.
    """

def standardise(
    values: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    mean: float,
    std: float,
    clip: float,
    log1p: bool,
) -> tuple[npt.NDArray[np.float32], int, int, int]:
    """Standardise a column ``[N]``, in double precision, rounded once at the end.

    Args:
        values: contiguous.
        mean: subtracted.
        std: divides what is left.
        clip: bound of the result on both sides.
        log1p: whether ``sign(x) log(1 + |x|)`` takes the place of ``x``.

    Returns:
        (standardised value, 1) for each value, (0, 0) for one that is not finite, ``float32[N, 2]``; how many
        are NaN; how many are infinite; how many were cut to the bound.

    Raises:
        SchemaError: not such an array, or the bound is negative.
    """

# Scheduler: how it orders, helps and stops is said in the docs of the Rust crate's `sched`.

@final
class Scheduler:
    """A thread pool for request graphs, in two lanes, so that waiting never starves computing.

    `"blocking"` is for calls that wait (retrieval, feature stores), `"compute"` for calls that use the cores
    (compiled programs; few threads, since each brings its own pool). Within a lane the earliest deadline
    starts first, tasks without one last, equals in the order of submission.

    A deadline is the time by which a task should have *ended*. A task is refused (`OverloadedError`) when, by
    the usual run times of what runs, of what goes before it, and of its own name, it would end later; it is
    dropped when the deadline comes before its start. Of a task that was let in no more is promised: one that
    comes later with an earlier deadline goes first all the same, run times vary, and what runs is never
    interrupted, so it may still expire in the queue or end late, each of which is counted. Run times are
    learnt by name, from the last 16 or so; until eight have run nothing is known, and they count as nothing.
    If a name is refused for its run time alone, one task a second is let in to measure again. Beyond 1,024
    names in a lane nothing is learnt of new ones: a name says what kind of work a task is, not which request
    it is for.

    When `hang_share` of the blocking threads are held by tasks of one name that have run for too long, that
    name's circuit opens: its tasks are refused, and dropped when their turn comes, so that other names still
    get threads. When fewer hang, the next task is let in as a probe, and the circuit closes if it ends in
    time.

    It may be used from any thread. It does not survive a fork: in the child every method raises
    `SchedulerError`. At interpreter exit queued tasks are cancelled and running ones waited for; without
    `shutdown` the threads live until then. A scheduler that is dropped still runs what is queued.

    Args:
        blocking_threads: threads of the blocking lane, 1 to 1024.
        compute_threads: threads of the compute lane, 1 to 1024.
        queue_bound: tasks that may be queued in each lane, at least 1.
        admission: refuse tasks that would end after their deadline.
        hang_ms: run time in milliseconds beyond which a blocking task hangs. `None`: ten times the 99th
            percentile of its name and at least 1 s, or 10 s for a name of which fewer than eight have run.
        hang_share: share of the blocking threads, above 0 and at most 1.

    Raises:
        ConfigError: a number is out of its range.
        RequestError: `hang_ms` is not a number.
        SchedulerError: the system refuses a thread.
    """

    def __new__(
        cls,
        *,
        blocking_threads: int = 8,
        compute_threads: int = 2,
        queue_bound: int = 1024,
        admission: bool = True,
        hang_ms: float | None = None,
        hang_share: float = 0.75,
    ) -> Scheduler: ...
    def submit(
        self,
        lane: Literal["blocking", "compute"],
        fn: Callable[..., _T],
        /,
        *args: Any,
        deadline_ms: float | None = None,
        name: str = "",
        goes_on: bool = False,
    ) -> Future[_T]:
        """Queue `fn(*args)`, to be run in a copy of the caller's context variables.

        Cancelling the future takes the task out of the queue at once; what runs is never interrupted. A task
        whose deadline passes in the queue is dropped, and its future raises `DeadlineExceededError`: when a
        thread gets to it or when a full queue makes room, in which case the future's callbacks run on the
        submitting thread.

        Args:
            lane: `"blocking"` or `"compute"`.
            fn: what to call; use `functools.partial` for keyword arguments.
            args: its positional arguments.
            deadline_ms: milliseconds from now by which the task should have ended; None for no deadline.
            name: what traces and errors call the task, and under which its run time is learnt; the function's
                qualified name if empty.
            goes_on: whether it is the next step of something that was taken on before; then a full queue does
                not refuse it, which would waste what was done already.

        Raises:
            OverloadedError: the queue of the lane is full, the task would end after its deadline, or the
                circuit of its name is open.
            SchedulerError: after `shutdown` or a fork.
            ConfigError: there is no such lane.
            RequestError: `deadline_ms` is not a number.
        """
    def run(
        self,
        lane: Literal["blocking", "compute"],
        fn: Callable[..., _T],
        /,
        *args: Any,
        deadline_ms: float | None = None,
        name: str = "",
        goes_on: bool = False,
    ) -> _T:
        """Return `fn(*args)`, or raise what it raises, as a task of the lane but without a change of threads.

        If a thread of the lane is idle, `fn` runs here, in that thread's seat: it counts as one of the lane's
        tasks in every way, no more of them run at once than the lane has threads, and inside it the rules for
        workers hold (see `wait`). Otherwise it is queued like any other task, and run by a thread of the
        lane. On a worker of the same lane it runs at once, as part of the task that calls. Either way it sees
        a copy of the caller's context variables.

        Args: as for `submit`.

        Raises:
            DeadlineExceededError: the deadline passed before a thread was free.
            OverloadedError: as for `submit`.
            SchedulerError: after `shutdown` or a fork; or a compute worker asks for another lane, or another
                scheduler's, in which it might have to wait.
            ConfigError: there is no such lane.
            RequestError: `deadline_ms` is not a number.
        """
    def predict_ms(
        self, lane: Literal["blocking", "compute"], name: str, deadline_ms: float | None = None
    ) -> float:
        """Return in how many milliseconds a task of this name would end if it came now: queue and run time.

        The same figure by which `submit` refuses. With a deadline only what goes before such a task counts,
        without one all that is queued. What has never been measured counts as nothing, so an unknown name
        gives the queue time alone. It costs about as much as a refused `submit`, and reserves nothing.

        Raises:
            SchedulerError: after a fork.
            ConfigError: there is no such lane.
            RequestError: `deadline_ms` is not a number.
        """
    def idle_threads(self, lane: Literal["blocking", "compute"]) -> int:
        """Return how many threads of the lane are idle now; it reserves none.

        Raises:
            SchedulerError: after a fork.
            ConfigError: there is no such lane.
        """
    def wait(self, future: Future[_T], timeout_ms: float | None = None) -> _T:
        """Return the result of `future`, or raise its exception.

        On a worker thread of any scheduler the wait is put to use: an awaited task that is still queued in
        the worker's own lane runs here and now. Otherwise a compute worker runs other tasks of its lane; a
        blocking worker does so only while it waits for a future that is not its scheduler's and all other
        threads of its lane wait too. Such a task is finished before the wait looks again, so a timeout may be
        overrun.

        Raises:
            DeadlineExceededError: `timeout_ms` has passed; the task goes on.
            SchedulerError: a compute worker waits for anything but a compute task of its own scheduler, which
                could only park it; the wait would close a circle of waits; or 8 tasks that wait lie under one
                another on a compute thread and more are queued.
        """
    def stats(self) -> dict[str, dict[str, Any]]:
        """What each lane has done.

        Counters: `threads`, `queued`, `running`, `submitted` (accepted), `completed`, `failed` (raised),
        `cancelled`, `expired`, `panicked` (native code that the task called), `shed` (dropped because the
        circuit of its name was open), `overrun` (ended after the deadline); and of those not accepted
        `rejected` (queue full, or shut down), `refused_late` and `refused_open`. With nothing queued or
        running, `submitted = completed + failed + cancelled + expired + shed + panicked`; a task that ran is
        counted just before its future is done.

        Times: `queue`, `run`, `wait` (time inside `wait` on the lane's workers), each `{"count", "p50_us",
        "p99_us", "max_us"}`, quantiles to two significant digits.

        Names: `names`, by name `{"runs", "running", "mean_us", "likely_us" (mean plus twice the mean
        deviation, which admission expects), "p99_us", "hang_us", "refused_late", "refused_open" (shed ones
        included), "circuit" ("closed", "open" or "half-open")}`; times are None until eight have run.
        """
    def trace(self, enabled: bool) -> None:
        """Keep a span of every task that starts from now on (the newest 65,536), or stop doing so."""
    def take_trace(self) -> list[dict[str, Any]]:
        """Take the spans kept so far, in the order in which the tasks ended.

        Each is `{"name", "lane", "thread", "queued_us", "start_us", "end_us"}`, in microseconds on the clock
        of `time.perf_counter`. What `run` ran on its caller's thread has the name of the thread whose seat it
        took, with `-guest` behind. Warns (`RuntimeWarning`) if older spans were overwritten.
        """
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks; with `wait`, return when all threads have ended.

        Queued tasks still run unless `cancel_futures`. Calling it again is allowed.

        Raises:
            SchedulerError: with `wait`, inside a task of this scheduler, which would wait for itself.
        """
    def __enter__(self) -> Scheduler: ...
    def __exit__(self, *_exception: object) -> None: ...

# Kernels: for aif_jax.kernels and its tests.

def ffi_targets() -> dict[str, object]: ...
def cpu_features() -> dict[str, bool]: ...
def chosen_kernels() -> dict[str, str]: ...
def simtier(
    cand: npt.NDArray[np.uint8],
    seq: npt.NDArray[np.uint8],
    channel: npt.NDArray[np.int32],
    edges: npt.NDArray[np.int32],
    *,
    channels: int,
    kind: str,
    implementation: str,
) -> npt.NDArray[np.int32]: ...
def table_sum(
    table: npt.NDArray[np.float32], sig: npt.NDArray[np.uint8], *, bits: int, implementation: str
) -> npt.NDArray[np.float32]: ...
