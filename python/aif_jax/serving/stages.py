"""The compiled programs of one generation, for every bucket, and the real-time stage over them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Call
from aif_jax.errors import UnknownItemError, VersionMismatchError
from aif_jax.features import bucket_for
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.serving.candidates import CheckedCandidates
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.coverage import Tables
from aif_jax.serving.device_rows import DeviceRows, device_bytes
from aif_jax.serving.device_stage import DeviceStage
from aif_jax.serving.host_stage import CachedStage, GatheredStage, zeros
from aif_jax.serving.memory import Needs, needs_of
from aif_jax.serving.stage import Meanwhile, Progress, Stage


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
        gather_s: seconds until the compiled stage was called: rows gathered or looked up, operands laid out.
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
        check_versions(bundle, index, behaviours)
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
        self._user_calls: dict[tuple[int, int], Call] = {}
        self._stage: Stage | None = None

    @property
    def computes(self) -> bool:
        """Whether rows that the index lacks are computed while requests wait."""
        return self.config.missing_items == "compute"

    @property
    def version(self) -> str:
        """Version of the bundle."""
        return self.bundle.version

    def warm(self, progress: Progress | None = None) -> None:
        """Compile and run every program for every bucket; afterwards no request compiles anything."""
        buckets, longs = self.sizes.buckets, self.sizes.long_buckets
        # Of items that requests lack: by the index's own bundle, which may run another kind of programs.
        items = int(self.computes)
        shapes = [(length, users) for length in longs for users in self.sizes.users]
        total = len(shapes) + len(longs) * len(buckets) + items

        def ready(number: int, name: str) -> None:
            if progress is not None:
                progress(number, total, name)

        if self.computes:
            self.index.warm()
            ready(items, "items that the index lacks")
        for number, (length, users) in enumerate(shapes, items + 1):
            call = self._user_calls[length, users] = self.bundle.call("user", b=users, l=length)
            jax.block_until_ready(call(zeros(call, {"b": users, "l": length})))
            ready(number, f"{'user' if users == 1 else f'{users} users'}, history {length}")
        self._stage = self._made_stage(lambda number, _, name: ready(items + len(shapes) + number, name))

    def _made_stage(self, progress: Progress) -> Stage:
        config, sizes = self.config, (self.sizes.buckets, self.sizes.long_buckets)
        default = config.missing_items == "default"
        if rows_on_device(config):
            rows = DeviceRows(self.index, capacity=config.device_capacity)
            try:
                return DeviceStage(rows, self.bundle, *sizes, default=default, progress=progress)
            except BaseException:
                rows.close()
                raise
        kind = CachedStage if self.bundle.kind == "native" else GatheredStage
        return kind(self.index, self.bundle, *sizes, default=default, progress=progress)

    @property
    def tables(self) -> Tables:
        """Its tables."""
        return Tables(self.index, self.behaviours)

    def needs(self, *, user_states: bool = True) -> Needs:
        """Return the memory that it needs now; ``user_states`` says whether it caches any."""
        return needs_of(
            self.bundle, self.index, self.behaviours,
            user_state_bytes=self.config.user_state_bytes if user_states else 0,
            device_bytes=None if self._stage is None else self._stage.device_bytes,
        )  # fmt: skip

    def close(self) -> None:
        """Give device memory back; no request may be under way."""
        if self._stage is not None:
            self._stage.close()

    def user_call(self, length: int, users: int) -> Call:
        """Return the user program compiled for a long bucket, and for so many users in one call."""
        return self._user_calls[length, users]

    def score(
        self,
        state: Mapping[str, Any],
        length: int,
        context: Mapping[str, np.ndarray],
        candidates: CheckedCandidates,
        k: int,
        meanwhile: Meanwhile | None = None,
    ) -> Scored:
        """Score candidates and take the best: in one compiled call, or in several of the largest bucket.

        Args:
            state: the user state, operands ``state/...`` by path.
            length: the long bucket that it was computed for.
            context: encoded context by feature.
            candidates: from `check_candidates`.
            k: results wanted, at most the bundle's ``k_max``.
            meanwhile: called when the first call was dispatched.

        Raises:
            UnknownItemError: a candidate has no row, under ``missing_items="error"``.
        """
        buckets = self.sizes.buckets
        n = len(candidates.keys)
        if not n:
            empty, no_heads = (
                np.empty(0, np.float32),
                np.empty((0, len(self.bundle.config.heads)), np.float32),
            )
            return Scored(np.empty(0, np.int64), empty, no_heads)
        size = bucket_for(min(n, buckets[-1]), buckets)
        shared = {**state, **{f"context/{name}": value for name, value in context.items()}}
        scored = Scored(
            np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, 0), np.float32), bucket=size
        )
        parts = [
            self._score_part(
                shared, length, candidates, slice(start, min(start + size, n)), scored,
                None if start else meanwhile,
            )
            for start in range(0, n, size)
        ]  # fmt: skip
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
        shared: Mapping[str, Any],
        length: int,
        candidates: CheckedCandidates,
        part: slice,
        scored: Scored,
        meanwhile: Meanwhile | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self._stage is not None, "warm makes it"

        def refuse(found: np.ndarray) -> None:
            raise unknown_items(candidates.ids[part], found)

        made = self._stage.score_part(
            shared,
            candidates.keys[part],
            {name: column[part] for name, column in candidates.pair.items()},
            scored.bucket,
            length,
            refuse=refuse if self.config.missing_items == "error" else None,
            meanwhile=meanwhile,
        )
        scored.calls += 1
        scored.missing += made.missing
        scored.not_rankable += made.not_rankable
        scored.unscored += made.unscored
        scored.gather_s += made.prepare_s
        scored.stage_s += made.stage_s
        return made.order + part.start, made.scores, made.heads


def check_versions(bundle: Bundle, index: ItemIndex, behaviours: BehaviourTable) -> None:
    """Check that tables were computed by a bundle.

    Raises:
        VersionMismatchError: they were not.
    """
    for name, table in (("item index", index), ("behaviour table", behaviours)):
        if table.version != bundle.version:
            raise VersionMismatchError(
                f"the {name} was computed by bundle version {table.version}, but the bundle at "
                f"{bundle.path} is "
                f"version {bundle.version}; build the {name} with this bundle, or serve the other one."
            )


def rows_on_device(config: EngineConfig) -> bool:
    """Return whether the real-time stage reads item rows from a device."""
    return config.rows == "device" or (config.rows == "auto" and jax.default_backend() != "cpu")


def needs_ahead(
    bundle: Bundle,
    index: ItemIndex,
    behaviours: BehaviourTable,
    config: EngineConfig,
    *,
    user_states: bool = True,
) -> Needs:
    """Return the memory that a generation would need, before it is made; see `Generation.needs`."""
    return needs_of(
        bundle, index, behaviours,
        user_state_bytes=config.user_state_bytes if user_states else 0,
        device_bytes=device_bytes(index, config.device_capacity) if rows_on_device(config) else None,
    )  # fmt: skip


def unknown_items(ids: np.ndarray, found: np.ndarray) -> UnknownItemError:
    """Return the error that refuses candidates ``[n]`` of which some have no row."""
    absent = np.flatnonzero(~found)
    return UnknownItemError(
        f"candidates: {len(absent)} of {len(found)} have no row in the item index, the first is "
        f"{ids[absent[0]]}; add them with ItemIndex.upsert, leave them out of "
        "retrieval, or configure missing_items='drop' or 'default'."
    )
