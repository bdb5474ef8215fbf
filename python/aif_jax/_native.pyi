"""Native half of aif_jax: embedding cache, scheduler and CPU kernels, written in Rust.

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

# Cache: the Rust crate's docs and DESIGN.md document the guarantees of the classes.

@final
class RowLayout:
    """Named columns of a row, each with a dtype and a shape, at fixed offsets.

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
        """Offset of each column within a row, in bytes."""
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class EmbeddingCache:
    """Concurrent store of fixed-size rows under 64-bit keys.

    Look-ups take no lock and never wait; all columns of a row come from one `upsert`. Writers copy their rows
    in parallel and serialise on the table. A batch is not a transaction: a `gather` beside an `upsert` may
    see some of its rows and not yet others. All methods may be called from any thread; the GIL is released.
    Keys are contiguous `uint64[N]` arrays, 0 and 2**64 - 1 included. Arrays given to a call must not be
    written to by others until it returns.

    Args:
        layout: the columns of a row.
        capacity_bytes: maximum bytes, overhead included; a full cache evicts by S3-FIFO. `None`: unbounded.
        ttl_s: rows older than this many seconds are misses. `None`: rows do not expire.
        initial_keys: number of keys for which to size the hash table and the segments of rows initially.
        huge_pages: request huge pages for allocations of 2 MB or more.
        prefault: back memory on allocation, not on first use.

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

        They are pages of the system's page cache, shared with other processes that map the file. Later writes
        stay in this process; the file must not be written to or truncated while the cache lives, since
        that changes rows or ends the process (it may be deleted, or replaced by renaming).

        Args:
            layout: the columns of a row.
            path: the file; the row of ``keys[i]`` stands at ``offset + i * layout.row_bytes``.
            offset: a multiple of 65,536.
            keys: ``uint64[N]``, all different.
            prefault: map all pages at once, reading what is not in memory yet.

        Raises:
            RequestError: a key is repeated, the offset is not a multiple, or the file is too short.
            OSError: the file cannot be opened or mapped.
        """
    def upsert(self, keys: npt.NDArray[np.uint64], columns: Mapping[str, np.ndarray]) -> None:
        """Write one row per key, in order: for a repeated key the last row stays.

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
                copy. Their memory is on loan: it is reused for another batch when the last of them, and all
                that JAX made of them without a copy, is gone.

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

        Writers continue meanwhile; rows they replace occupy memory until this returns.

        Args:
            path: a file that exists.
            taken: called with the keys, ``uint64[N]`` ascending, when the snapshot is taken and before
                anything is written; an exception of it ends the call.

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
        """Return event counts and row counts.

        hits, misses (by `gather` and `get`; expired rows are misses), expiries (misses because of age),
        inserts, updates, deletes, evictions, expired_removed, live_rows, retired_rows (replaced, and waiting
        for readers to leave), max_rows (before eviction; 0 if unbounded), overrun_rows (made beyond the
        bound because readers stalled), payload_bytes, overhead_bytes (of live rows).
        """
    def memory_usage(self) -> dict[str, int]:
        """Return the memory usage by purpose.

        payload_bytes, padding_bytes, retired_bytes, free_bytes (rows to be reused), table_bytes,
        retired_table_bytes (replaced, and waiting for readers to leave), new_table_bytes (being filled by a
        rebuild), side_bytes (time stamps, and keys and frequencies if rows are evicted), order_bytes (of the
        eviction order), total_bytes (all of these), mapped_bytes (of these, rows in a mapped file, shared
        while nobody writes to them), untouched_bytes (reserved address space, not in the total),
        growth_peak_bytes (most that two tables took during growth), pooled_bytes (of returned arrays, kept
        for the next batches; not in the total).
        """
    def clear(self) -> None:
        """Delete all rows; the statistics continue."""
    def __len__(self) -> int:
        """Return the rows as of the last finished write; expired ones count until they are removed."""
    @property
    def handle(self) -> int:
        """Number by which compiled programs refer to this cache; never reused."""
    @property
    def layout(self) -> RowLayout:
        """Layout of the rows."""

BLOCK_BYTES: int
"""Block size of the checksums in bytes."""

def block_checksums(bytes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return XXH3-64 of each `BLOCK_BYTES` bytes, and of the rest, ``uint64[B]``."""

def hash_strings(strings: list[str]) -> npt.NDArray[np.uint64]:
    """Return the 64-bit keys of strings, `uint64[N]`: XXH3-64 of their UTF-8 bytes, on any machine.

    Raises:
        RequestError: not a list, or an element is not a string that has a UTF-8 form.
    """

def distinct(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64] | None:
    """Return the indices of the first occurrences of all keys, ascending, `int64[M]`; `None` if all differ.

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
        std: divisor of the difference.
        clip: bound of the result on both sides.
        log1p: whether to standardise ``sign(x) log(1 + |x|)`` instead of ``x``.

    Returns:
        (standardised value, 1) for each value, (0, 0) for one that is not finite, ``float32[N, 2]``; how many
        are NaN; how many are infinite; how many were clipped.

    Raises:
        SchemaError: not such an array, or the bound is negative.
    """

# Scheduler: the docs of the Rust crate's `sched` document order, waiting and stopping.

@final
class Scheduler:
    """Thread pool for request graphs, in two lanes, so that waiting never starves computing.

    `"blocking"` is for calls that wait (retrieval, feature stores), `"compute"` for calls that use the cores
    (compiled programs; few threads, since each brings its own pool). Within a lane the earliest deadline
    starts first, tasks without one last, equals in the order of submission.

    A deadline is the time by which a task should have *ended*. A task is refused (`OverloadedError`) when, by
    the usual run times of the running tasks, of the tasks ahead of it, and of its own name, it would end
    later; it is dropped when the deadline comes before its start. An admitted task has no further guarantee:
    one submitted later with an earlier deadline still goes first, run times vary, and a running task is never
    interrupted, so it may still expire in the queue or end late, each of which is counted. Run times are
    learnt by name, from about the last 16; until eight have run they count as zero. If a name is refused for
    its run time alone, one task a second is admitted to measure again. Beyond 1,024 names in a lane no run
    times of new names are learnt: a name is the kind of work of a task, not its request.

    When `hang_share` of the blocking threads are held by tasks of one name that have run for too long, that
    name's circuit opens: its tasks are refused, and queued ones are dropped when a thread reaches them, so
    that other names still get threads. When fewer hang, the next task is admitted as a probe, and the circuit
    closes if it ends in time.

    It may be used from any thread. It does not survive a fork: in the child every method raises
    `SchedulerError`. At interpreter exit queued tasks are cancelled and running ones waited for; without
    `shutdown` the threads live until then. A scheduler that is dropped still runs what is queued.

    Args:
        blocking_threads: threads of the blocking lane, 1 to 1024.
        compute_threads: threads of the compute lane, 1 to 1024.
        queue_bound: maximum number of queued tasks in each lane, at least 1.
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

        Cancelling the future removes the task from the queue at once; a running task is never interrupted.
        A task whose deadline passes in the queue is dropped, and its future raises `DeadlineExceededError`:
        when a thread reaches it or when a full queue makes room, in which case the future's callbacks run on
        the submitting thread.

        Args:
            lane: `"blocking"` or `"compute"`.
            fn: the callable; use `functools.partial` for keyword arguments.
            args: its positional arguments.
            deadline_ms: milliseconds from now by which the task should have ended; None for no deadline.
            name: name of the task in traces and errors, under which its run time is learnt; the function's
                qualified name if empty.
            goes_on: whether it is the next step of a request whose first step was accepted; then a full queue
                does not refuse it, which would waste the earlier steps.

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

        If a thread of the lane is idle, `fn` runs inline on the calling thread, in that thread's slot: it
        counts as a task of the lane in every way, no more of them run at once than the lane has threads, and
        inside it the rules for workers hold (see `wait`). Otherwise it is queued like any other task, and run
        by a thread of the lane. On a worker of the same lane it runs at once, as part of the calling task.
        Either way it sees a copy of the caller's context variables.

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
        """Return the milliseconds until a task of this name would end if submitted now: queue and run time.

        `submit` refuses by the same figure. With a deadline only the tasks ahead of such a task count,
        without one all queued tasks. A name without measurements counts as zero run time, so an unknown name
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

        A worker thread of any scheduler runs tasks while it waits: an awaited task that is still queued in
        the worker's own lane runs on it. Otherwise a compute worker runs other tasks of its lane; a blocking
        worker does so only while it waits for a future that is not its scheduler's and all other threads of
        its lane wait too. The wait continues after such a task has ended, so it may exceed its timeout.

        Raises:
            DeadlineExceededError: `timeout_ms` has passed; the task continues.
            SchedulerError: a compute worker waits for anything but a compute task of its own scheduler, which
                could only block it; the wait would close a cycle of waits; or 8 waiting tasks are nested on a
                compute thread and more are queued.
        """
    def stats(self) -> dict[str, dict[str, Any]]:
        """Return the statistics of each lane.

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
        of `time.perf_counter`. A task that `run` ran inline has the name of the thread whose slot it
        borrowed, with the suffix `-guest`. Warns (`RuntimeWarning`) if older spans were overwritten.
        """
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further tasks; with `wait`, return when all threads have exited.

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
