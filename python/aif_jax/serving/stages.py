"""The compiled programs of one generation, for every bucket, and the real-time stage over them."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Call
from aif_jax.errors import UnknownItemError, VersionMismatchError
from aif_jax.features import bucket_for, pad_to
from aif_jax.kernels import FOUND, RANKABLE
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving.candidates import CheckedCandidates
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.row_sources import CachedRows, GatheredRows

WarmupProgress = Callable[[int, int, str], None]
"""Called with the number of programs ready, the number of all, and the name of the last."""


@dataclasses.dataclass(slots=True)
class Scored:
    """What the real-time stage made of one request's candidates.

    Attributes:
        order: positions of the best candidates, best first, ``[k]``.
        scores: float32 ``[k]``.
        heads: float32 ``[k, n_heads]``.
        bucket: candidates a call takes.
        calls: calls made.
        missing: candidates without a row.
        not_rankable: candidates with a row that may not be ranked.
        unscored: candidates whose score is not finite.
        gather_s: seconds spent on collecting rows on the host; 0 where the compiled stage reads them.
        stage_s: seconds spent in the compiled stage.
    """

    order: np.ndarray
    scores: np.ndarray
    heads: np.ndarray
    bucket: int = 0
    calls: int = 0
    missing: int = 0
    not_rankable: int = 0
    unscored: int = 0
    gather_s: float = 0.0
    stage_s: float = 0.0


class Generation:
    """One bundle with the tables that it computed; a request lives in exactly one.

    Raises:
        VersionMismatchError: a table was computed by another bundle version.
        ConfigError: the config does not fit the bundle.
    """

    def __init__(self, bundle: Bundle, index: ItemIndex, behaviours: BehaviourTable, config: EngineConfig):
        for name, table in (("item index", index), ("behaviour table", behaviours)):
            if table.version != bundle.version:
                raise VersionMismatchError(
                    f"the {name} was computed by bundle version {table.version}, but the bundle at "
                    f"{bundle.path} is "
                    f"version {bundle.version}; build the {name} with this bundle, or serve the other one."
                )
        self.bundle = bundle
        self.index = index
        self.behaviours = behaviours
        self.config = config
        self.sizes = config.sizes(k_max=bundle.k_max, long_length=bundle.config.long_length)
        signature = bundle.signature("stage")
        self.raw_pair = frozenset(
            operand.path.removeprefix("pair/raw_")
            for operand in signature.inputs
            if operand.path.startswith("pair/raw_")
        )
        default = index.default_row() if config.missing_items == "default" else None
        self._rows = (CachedRows if bundle.kind == "native" else GatheredRows)(index, default)
        self._user_calls: dict[int, Call] = {}
        self._stage_calls: dict[tuple[int, int], Call] = {}

    @property
    def version(self) -> str:
        """Version of the bundle."""
        return self.bundle.version

    def warm(self, progress: WarmupProgress | None = None) -> None:
        """Compile and run every program for every bucket; afterwards no request compiles anything."""
        buckets, longs = self.sizes.buckets, self.sizes.long_buckets
        total = len(longs) * (1 + len(buckets))
        done = 0

        def ready(name: str) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total, name)

        for length in longs:
            call = self._user_calls[length] = self.bundle.call("user", b=1, l=length)
            state = jax.block_until_ready(call(zeros(call, {"b": 1, "l": length})))
            ready(f"user, history {length}")
            for size in buckets:
                stage = self._stage_calls[size, length] = self.bundle.call("stage", n=size, l=length)
                operands = zeros(stage, {"n": size, "l": length})
                operands |= {f"state/{name}": leaf for name, leaf in state.items()}
                self._rows.run(stage, operands, np.zeros(1, np.uint64), size)
                ready(f"stage, history {length}, {size} candidates")

    def user_call(self, length: int) -> Call:
        """Return the user program compiled for a long bucket."""
        return self._user_calls[length]

    def score(
        self,
        state: Mapping[str, Any],
        length: int,
        context: Mapping[str, np.ndarray],
        candidates: CheckedCandidates,
        k: int,
    ) -> Scored:
        """Score candidates and take the best: in one compiled call, or in several of the largest bucket.

        Args:
            state: the user state, operands ``state/...`` by path.
            length: the long bucket that it was computed for.
            context: encoded context by feature.
            candidates: from `check_candidates`.
            k: results wanted, at most the bundle's ``k_max``.

        Raises:
            UnknownItemError: a candidate has no row, under ``missing_items="error"``.
        """
        buckets = self.sizes.buckets
        n = len(candidates.keys)
        size = bucket_for(min(n, buckets[-1]), buckets)
        call = self._stage_calls[size, length]
        shared = {**state, **{f"context/{name}": value for name, value in context.items()}}
        scored = Scored(
            np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, 0), np.float32), bucket=size
        )
        parts = [
            self._score_part(call, shared, candidates, slice(start, min(start + size, n)), scored)
            for start in range(0, n, size)
        ]
        if len(parts) == 1:
            order, scores, heads = parts[0]
        else:
            order, scores, heads = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            best = np.lexsort((order, -scores))
            order, scores, heads = order[best], scores[best], heads[best]
        scored.order, scored.scores, scored.heads = order[:k], scores[:k], heads[:k]
        return scored

    def _score_part(
        self,
        call: Call,
        shared: Mapping[str, Any],
        candidates: CheckedCandidates,
        part: slice,
        scored: Scored,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        began = time.perf_counter()
        pair = {
            f"pair/{name}": pad_to(column[part], scored.bucket) for name, column in candidates.pair.items()
        }
        run = self._rows.run(call, {**shared, **pair}, candidates.keys[part], scored.bucket)
        self._count(run.status, candidates, part, scored)
        order, scores, heads = (run.results[name] for name in ("order", "score", "heads"))
        unscored = int(run.results["unscored"])
        rankable = int(np.count_nonzero(run.status & RANKABLE)) - unscored
        scored.calls += 1
        scored.unscored += unscored
        scored.gather_s += run.gather_s
        scored.stage_s += time.perf_counter() - began - run.gather_s
        return order[:rankable].astype(np.int64) + part.start, scores[:rankable], heads[:rankable]

    def _count(self, status: np.ndarray, candidates: CheckedCandidates, part: slice, scored: Scored) -> None:
        """Count candidates that are missing or may not be ranked, or refuse the missing."""
        n = len(status)
        found = (status & FOUND) != 0
        missing = n - int(np.count_nonzero(found))
        if missing:
            scored.missing += missing
            if self.config.missing_items == "error":
                first = candidates.ids[part][np.flatnonzero(~found)[0]]
                raise UnknownItemError(
                    f"candidates: {missing} of {n} have no row in the item index, the first is "
                    f"{first}; add them with ItemIndex.upsert, leave them out of "
                    "retrieval, or configure missing_items='drop' or 'default'."
                )
        scored.not_rankable += int(np.count_nonzero(found & ((status & RANKABLE) == 0)))


def zeros(call: Call, dims: Mapping[str, int]) -> dict[str, Any]:
    """Return zeros for every operand of a program, to run it once before a request has to wait for it."""
    specs = {operand.path: operand.at(dims) for operand in call.program.signature.inputs}
    return {path: np.zeros(spec.shape, spec.dtype) for path, spec in specs.items()}
