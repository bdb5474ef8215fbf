"""The real-time stage over item rows in host memory: read inside the compiled call, or gathered for it.

A native program reads rows from the embedding cache itself, by id; a portable one is given them. Either way a
call says what became of each candidate.
"""

import abc
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Call
from aif_jax.errors import ConfigError
from aif_jax.features import pad_to
from aif_jax.kernels import FOUND, RANKABLE, handle_operand
from aif_jax.nearline import ItemIndex
from aif_jax.nearline.item_index import RANKABLE as RANKABLE_COLUMN
from aif_jax.nearline.store import RowStore
from aif_jax.serving.stage import Meanwhile, Progress, Stage, StageCall, StagePart
from aif_jax.serving.staging import Staging


class HostStage(Stage):
    """What stages over rows in host memory share.

    Everything is compiled, and run once, while it is made.

    Args:
        index: the item rows.
        bundle: the model, of the same version.
        buckets: candidate counts to compile for, multiples of 16, from the bundle's ``k_max`` upward.
        long_buckets: history lengths to compile for.
        default: whether candidates without a row are ranked as items of which nothing is known.
        progress: called after every program that is ready.
    """

    def __init__(
        self,
        index: ItemIndex,
        bundle: Bundle,
        buckets: Sequence[int],
        long_buckets: Sequence[int],
        *,
        default: bool = False,
        progress: Progress | None = None,
    ):
        self.index = index
        self._default = index.default_row() if default else None
        self._calls: dict[tuple[int, int], Call] = {}
        self._prepare()
        sizes = [(size, length) for length in long_buckets for size in buckets]
        for number, (size, length) in enumerate(sizes, 1):
            call = self._calls[size, length] = bundle.call("stage", n=size, l=length)
            self._run(call, zeros(call, {"n": size, "l": length}), np.zeros(1, np.uint64), size)
            if progress is not None:
                progress(number, len(sizes), f"stage, history {length}, {size} candidates")

    def _check_size(self, size: int, length: int) -> None:
        if (size, length) not in self._calls:
            raise ConfigError(
                f"host stage: got {size} candidates and a history of {length}, expected one of "
                f"{sorted(self._calls)}; name it when the stage is made."
            )

    def _score(self, call: StageCall) -> StagePart:
        results, status, dispatched = self._run(
            self._calls[call.size, call.length], call.operands, call.keys, call.size, call.meanwhile
        )
        rankable = n = len(call.keys)
        missing = not_rankable = 0
        # Counted as bytes, which is quick, and told apart only if some candidate is not as it should be.
        if status.tobytes().count(FOUND | RANKABLE) < n:
            found = (status & FOUND) != 0
            missing = n - int(np.count_nonzero(found))
            if missing and call.refuse is not None:
                call.refuse(found)
            rankable = int(np.count_nonzero(status & RANKABLE))
            not_rankable = int(np.count_nonzero(found & ((status & RANKABLE) == 0)))
        unscored = int(results["unscored"])
        ranked = rankable - unscored
        return StagePart(
            order=results["order"][:ranked].astype(np.int64),
            scores=results["score"][:ranked],
            heads=results["heads"][:ranked],
            unscored=unscored,
            missing=missing,
            not_rankable=not_rankable,
            prepare_s=dispatched - call.began_s,
            stage_s=time.perf_counter() - dispatched,
        )

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Make what calls need besides the index and the default row."""

    @abc.abstractmethod
    def _run(
        self,
        call: Call,
        operands: Mapping[str, Any],
        keys: np.ndarray,
        size: int,
        meanwhile: Meanwhile | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
        """Return the results by path, each candidate's status uint8 ``[n]``, and when the call was made."""


class CachedStage(HostStage):
    """For native programs: ids go into the program, rows are read where they lie."""

    def _prepare(self) -> None:
        self._handles = {"index": handle_operand(self.index.store.cache), "missing": np.zeros(2, np.uint32)}
        self._stand_in = RowStore(self.index.store.columns)
        if self._default is not None:
            self._stand_in.upsert(np.zeros(1, np.uint64), self._default)
            self._handles["missing"] = handle_operand(self._stand_in.cache)

    def _run(
        self,
        call: Call,
        operands: Mapping[str, Any],
        keys: np.ndarray,
        size: int,
        meanwhile: Meanwhile | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
        n = len(keys)
        given = {
            **operands,
            **self._handles,
            "ids": pad_to(keys.view(np.uint32).reshape(n, 2), size),
            "count": np.asarray(n, np.int32),
        }
        dispatched = time.perf_counter()
        arrays = call(given)
        if meanwhile is not None:
            meanwhile()
        results = {path: np.asarray(array) for path, array in arrays.items()}
        return results, results["status"][:n], dispatched


class GatheredStage(HostStage):
    """For portable programs: rows are collected into leased buffers, and these are the program's operands."""

    def _prepare(self) -> None:
        self._staging = Staging(self.index.store.columns)

    def _run(
        self,
        call: Call,
        operands: Mapping[str, Any],
        keys: np.ndarray,
        size: int,
        meanwhile: Meanwhile | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
        n = len(keys)
        lease = self._staging.lend(size)
        columns = lease.columns
        _, found = self.index.gather(keys, {name: array[:n] for name, array in columns.items()})
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
        rows = {f"rows/{name}": column for name, column in columns.items()}
        dispatched = time.perf_counter()
        arrays = call({**operands, **rows, "valid": valid})
        if meanwhile is not None:
            meanwhile()
        results = jax.block_until_ready(arrays)
        # Not before the results are ready: until then the program reads the buffers.
        self._staging.give_back(lease)
        return {path: np.asarray(array) for path, array in results.items()}, status, dispatched


def zeros(call: Call, dims: Mapping[str, int]) -> dict[str, Any]:
    """Return zeros for every operand of a program, to run it once before a request has to wait for it."""
    specs = {operand.path: operand.at(dims) for operand in call.program.signature.inputs}
    return {path: np.zeros(spec.shape, spec.dtype) for path, spec in specs.items()}
