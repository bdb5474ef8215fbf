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
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.nearline.item_index import RANKABLE
from aif_jax.serving.candidates import CheckedCandidates
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.staging import Staging

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
        gather_s: seconds spent on collecting rows.
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
        self._staging = Staging(index.store.columns)
        self._default = index.default_row() if config.missing_items == "default" else None
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
            state = run_on_zeros(call, {"b": 1, "l": length})
            ready(f"user, history {length}")
            for size in buckets:
                stage = self._stage_calls[size, length] = self.bundle.call("stage", n=size, l=length)
                run_on_zeros(stage, {"n": size, "l": length}, {f"state/{n}": a for n, a in state.items()})
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
        size, n = scored.bucket, part.stop - part.start
        lease = self._staging.lend(size)
        valid = self._collect(candidates, part, lease.columns, scored)
        operands = {
            **shared,
            **{f"rows/{name}": column for name, column in lease.columns.items()},
            **{f"pair/{name}": pad_to(column[part], size) for name, column in candidates.pair.items()},
            "valid": valid,
        }
        gathered = time.perf_counter()
        results = jax.block_until_ready(call(operands))
        self._staging.give_back(lease)
        order, scores, heads = (np.asarray(results[name]) for name in ("order", "score", "heads"))
        unscored = int(np.asarray(results["unscored"]))
        rankable = int(np.count_nonzero(valid[:n])) - unscored
        scored.calls += 1
        scored.unscored += unscored
        scored.gather_s += gathered - began
        scored.stage_s += time.perf_counter() - gathered
        return order[:rankable].astype(np.int64) + part.start, scores[:rankable], heads[:rankable]

    def _collect(
        self, candidates: CheckedCandidates, part: slice, columns: dict[str, np.ndarray], scored: Scored
    ) -> np.ndarray:
        """Fill the first rows of ``columns``; return which rows may be ranked, bool ``[size]``."""
        n = part.stop - part.start
        _, found = self.index.gather(
            candidates.keys[part], {name: array[:n] for name, array in columns.items()}
        )
        valid = np.zeros(scored.bucket, bool)
        valid[:n] = found
        missing = n - int(np.count_nonzero(found))
        if missing:
            scored.missing += missing
            absent = np.flatnonzero(~found)
            first = candidates.ids[part][absent[0]]
            if self.config.missing_items == "error":
                raise UnknownItemError(
                    f"candidates: {missing} of {n} have no row in the item index, the first is "
                    f"{first}; add them with ItemIndex.upsert, leave them out of "
                    "retrieval, or configure missing_items='drop' or 'default'."
                )
            if self._default is not None:
                for name, array in columns.items():
                    array[absent] = self._default[name]
                valid[absent] = True
        listed = columns[RANKABLE][:n, 0] != 0
        scored.not_rankable += int(np.count_nonzero(valid[:n] & ~listed))
        valid[:n] &= listed
        return valid


def run_on_zeros(
    call: Call, dims: Mapping[str, int], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a program once on zeros, so that its first request pays for nothing; return its outputs."""
    operands = {
        operand.path: np.zeros((spec := operand.at(dims)).shape, spec.dtype)
        for operand in call.program.signature.inputs
    }
    return jax.block_until_ready(call({**operands, **(given or {})}))
