"""The real-time stage: candidates of one compiled call in, the best of them out; rows in host memory.

A native program reads item rows from the embedding cache itself, by id; a portable one is given them. Either
way a call returns a status for each candidate. The stage over rows in device memory is in
`aif_jax.serving.device_stage`.
"""

import abc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Call
from aif_jax.errors import ConfigError, RequestError
from aif_jax.kernels import FOUND, RANKABLE, handle_operand
from aif_jax.nearline import ItemIndex
from aif_jax.nearline.item_index import RANKABLE_COLUMN
from aif_jax.nearline.row_buffers import RowBuffers
from aif_jax.nearline.store import RowStore

_GOOD = FOUND | RANKABLE

Progress = Callable[[int, int, str], None]
"""Called with the number of programs ready, the number of all, and the name of the last."""

Refuse = Callable[[np.ndarray], None]
"""Called with which candidates have a row, bool ``[n]``, if some have none; may raise."""

Meanwhile = Callable[[], None]
"""Called once when a program was dispatched, to do what need not wait for its results."""


class Scored(NamedTuple):
    """Result of the real-time stage for one request, or for the candidates of one call.

    Attributes:
        order: positions of the best candidates, best first, int64 ``[k]``.
        scores: float32 ``[k]``.
        heads: float32 ``[k, n_heads]``.
        unscored: candidates whose score is not finite.
        missing: candidates without a row, whether or not the default row stood in for it.
        not_rankable: candidates with a row that may not be ranked.
        gather_s: seconds until the program was dispatched: rows gathered or looked up, operands laid out.
        stage_s: seconds from there until the results were on the host.
        bucket: candidates that one call takes.
        calls: calls made.
    """

    order: np.ndarray
    scores: np.ndarray
    heads: np.ndarray
    unscored: int = 0
    missing: int = 0
    not_rankable: int = 0
    gather_s: float = 0.0
    stage_s: float = 0.0
    bucket: int = 0
    calls: int = 0


class Shared(NamedTuple):
    """Operands that all candidates of a request share, laid out once, by `Stage.prepare`.

    Attributes:
        length: the history length that the user state was computed for.
        operands: in the order of the program's inputs; ``None`` where a call fills in its own.
    """

    length: int
    operands: tuple[Any, ...]


class Work(NamedTuple):
    """Candidates of one compiled call.

    Attributes:
        keys: uint64 ``[n]``.
        pair: encoded pair features by name, and raw ones under ``raw_<name>``, ``[n, ...]``.
        size: candidates that the call takes, at least n.
        refuse: called with a mask of the candidates that have a row, bool ``[n]``, if some have none.
        meanwhile: called when the program was dispatched.
    """

    keys: np.ndarray
    pair: Mapping[str, np.ndarray]
    size: int
    refuse: Refuse | None
    meanwhile: Meanwhile | None


class Stage(abc.ABC):
    """The real-time stage of one bundle over item rows, wherever these are. Safe to use from any thread.

    Attributes:
        place: memory that holds the rows, ``host`` or ``device``, for messages.
        sizes: compiled numbers of candidates, each with a history length.
    """

    place: ClassVar[str]
    sizes: Collection[tuple[int, int]]

    @abc.abstractmethod
    def prepare(self, leaves: Mapping[str, Any], length: int, context: Mapping[str, np.ndarray]) -> Shared:
        """Lay out what all candidates of a request share; the user side does it while retrieval runs.

        Args:
            leaves: the user state: operands ``state/...`` by path, on whatever device.
            length: the history length that it was computed for.
            context: encoded context by feature.
        """

    def score(
        self,
        shared: Shared,
        keys: np.ndarray,
        pair: Mapping[str, np.ndarray],
        size: int,
        *,
        refuse: Refuse | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> Scored:
        """Score candidates in one call and take the best; see `Work` for the other arguments.

        Args:
            shared: from `prepare`.

        Raises:
            ConfigError: size and history length are not compiled for.
            RequestError: there are more candidates than ``size``.
            ItemIndexError: the rows are on a device, and are closed or were lost.
        """
        if (size, shared.length) not in self.sizes:
            raise ConfigError(
                f"{self.place} stage: got {size} candidates and a history of {shared.length}, expected one "
                f"of {sorted(self.sizes)}; name it when the stage is made."
            )
        if len(keys) > size:
            raise RequestError(
                f"{self.place} stage: a list of {len(keys)} candidates is longer than {size}, the size of "
                "the call; send fewer."
            )
        return self._score(shared, Work(keys, pair, size, refuse, meanwhile))

    @abc.abstractmethod
    def _score(self, shared: Shared, work: Work) -> Scored:
        """Score candidates that fit a compiled call."""

    @property
    def device_bytes(self) -> int | None:
        """Bytes of rows on a device; ``None`` for rows on the host."""
        return None

    def close(self) -> None:  # noqa: B027, most have nothing to give back
        """Give back what the stage holds besides the host's memory; no request may be under way."""


class HostStage(Stage):
    """Base of the stages over rows in host memory.

    Everything is compiled, and run once, while it is made.

    Args:
        index: the item rows.
        bundle: the model, of the same version.
        buckets: candidate counts to compile for, multiples of 16, from the bundle's ``k_max`` upward.
        lengths: history lengths to compile for.
        default: whether candidates without a row are ranked as items of which nothing is known.
        progress: called after every program that is ready.
    """

    place = "host"

    def __init__(
        self,
        index: ItemIndex,
        bundle: Bundle,
        buckets: Sequence[int],
        lengths: Sequence[int],
        *,
        default: bool = False,
        progress: Progress | None = None,
    ):
        self.index = index
        self._default = index.default_row() if default else None
        self._calls: dict[tuple[int, int], Call] = {}
        self.sizes = self._calls.keys()
        signature = bundle.signature("stage")
        self._places = {operand.path: place for place, operand in enumerate(signature.inputs)}
        self._results = {operand.path: place for place, operand in enumerate(signature.outputs)}
        self._pair = {
            path.removeprefix("pair/"): place
            for path, place in self._places.items()
            if path.startswith("pair/")
        }
        self._fixed: dict[str, Any] = {}
        self._set_up()
        sizes = [(size, length) for length in lengths for size in buckets]
        for number, (size, length) in enumerate(sizes, 1):
            call = self._calls[size, length] = bundle.call("stage", n=size, l=length)
            blank = call.program.zeros({"n": size, "l": length})
            groups: dict[str, dict[str, Any]] = {"state": {}, "context": {}, "pair": {}}
            for path, leaf in blank.items():
                group, _, name = path.partition("/")
                groups.setdefault(group, {})[path if group == "state" else name] = leaf
            shared = self.prepare(groups["state"], length, groups["context"])
            self.score(shared, np.zeros(size, np.uint64), groups["pair"], size)
            if progress is not None:
                progress(number, len(sizes), f"stage, history {length}, {size} candidates")

    def prepare(self, leaves: Mapping[str, Any], length: int, context: Mapping[str, np.ndarray]) -> Shared:
        """Lay out what all candidates of a request share."""
        operands: list[Any] = [None] * len(self._places)
        for path, leaf in self._fixed.items():
            operands[self._places[path]] = leaf
        for path, leaf in leaves.items():
            if path in self._places:
                operands[self._places[path]] = leaf
        for name, value in context.items():
            if (place := self._places.get(f"context/{name}")) is not None:
                operands[place] = value
        return Shared(length, tuple(operands))

    def _score(self, shared: Shared, work: Work) -> Scored:
        began_s, n, size = time.perf_counter(), len(work.keys), work.size
        call = self._calls[size, shared.length]
        operands = list(shared.operands)
        for name, place in self._pair.items():
            column = work.pair[name]
            if n < size:
                padded = np.zeros((size, *column.shape[1:]), column.dtype)
                padded[:n] = column
                column = padded
            operands[place] = column
        results, status, dispatched_s = self._run(call, operands, work)
        rankable = n
        missing = not_rankable = 0
        # Counted as bytes, which is quick, and in detail only if a candidate has another status.
        if status.tobytes().count(_GOOD) < n:
            found = (status & FOUND) != 0
            missing = n - int(np.count_nonzero(found))
            if missing and work.refuse is not None:
                work.refuse(found)
            rankable = int(np.count_nonzero(status & RANKABLE))
            not_rankable = int(np.count_nonzero(found & ((status & RANKABLE) == 0)))
        places = self._results
        unscored = int(results[places["unscored"]])
        ranked = rankable - unscored
        return Scored(
            np.asarray(results[places["order"]])[:ranked].astype(np.int64),
            np.asarray(results[places["score"]])[:ranked],
            np.asarray(results[places["heads"]])[:ranked],
            unscored,
            missing,
            not_rankable,
            dispatched_s - began_s,
            time.perf_counter() - dispatched_s,
            size,
            1,
        )

    @abc.abstractmethod
    def _set_up(self) -> None:
        """Make what calls need besides the index and the default row."""

    @abc.abstractmethod
    def _run(self, call: Call, operands: list[Any], work: Work) -> tuple[Sequence[Any], np.ndarray, float]:
        """Return the results in order, each candidate's status uint8 ``[n]``, and the time of dispatch."""


class CachedStage(HostStage):
    """The stage of native programs: ids go into the program, rows are read where they lie."""

    def _set_up(self) -> None:
        self._fixed = {"index": handle_operand(self.index.store.cache), "missing": np.zeros(2, np.uint32)}
        self._stand_in = RowStore(self.index.store.columns)
        if self._default is not None:
            self._stand_in.upsert(np.zeros(1, np.uint64), self._default)
            self._fixed["missing"] = handle_operand(self._stand_in.cache)
        self._ids, self._count = self._places["ids"], self._places["count"]

    def _run(self, call: Call, operands: list[Any], work: Work) -> tuple[Sequence[Any], np.ndarray, float]:
        keys, size, n = work.keys, work.size, len(work.keys)
        if n < size:
            padded = np.zeros(size, np.uint64)
            padded[:n] = keys
            keys = padded
        operands[self._ids] = keys.view(np.uint32).reshape(size, 2)
        operands[self._count] = np.asarray(n, np.int32)
        dispatched_s = time.perf_counter()
        results = call.run(operands)
        if work.meanwhile is not None:
            work.meanwhile()
        return results, np.asarray(results[self._results["status"]])[:n], dispatched_s


class GatheredStage(HostStage):
    """The stage of portable programs: rows are collected into leased buffers, the program's operands."""

    def _set_up(self) -> None:
        self._buffers = RowBuffers(self.index.store.columns)

    def _run(self, call: Call, operands: list[Any], work: Work) -> tuple[Sequence[Any], np.ndarray, float]:
        size, n = work.size, len(work.keys)
        lease = self._buffers.lend(size)
        columns = lease.columns
        _, found = self.index.gather(work.keys, {name: array[:n] for name, array in columns.items()})
        status = np.where(found, np.uint8(FOUND), np.uint8(0))
        there = found
        if self._default is not None and not found.all():
            absent = np.flatnonzero(~found)
            for name, array in columns.items():
                array[absent] = self._default[name]
            there = np.ones(n, bool)
        status[there & (columns[RANKABLE_COLUMN][:n, 0] != 0)] |= np.uint8(RANKABLE)
        valid = np.zeros(size, bool)
        valid[:n] = (status & RANKABLE) != 0
        for name, column in columns.items():
            if (place := self._places.get(f"rows/{name}")) is not None:
                operands[place] = column
        operands[self._places["valid"]] = valid
        dispatched_s = time.perf_counter()
        results = call.run(operands)
        if work.meanwhile is not None:
            work.meanwhile()
        jax.block_until_ready(results)
        # Not before the results are ready: until then the program reads the buffers.
        self._buffers.give_back(lease)
        return results, status, dispatched_s
