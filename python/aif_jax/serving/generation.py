"""A generation: one bundle, its tables, its compiled programs, and the memory that it needs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.bundle.programs import Call
from aif_jax.errors import UnknownItemError
from aif_jax.features.continuation import NEWEST
from aif_jax.memory import Needs, Part
from aif_jax.nearline import Tables
from aif_jax.nearline.device_rows import DeviceRows, device_bytes
from aif_jax.nearline.tables import check_tables
from aif_jax.serving.candidates import EncodedCandidates
from aif_jax.serving.config import EngineConfig
from aif_jax.serving.device_stage import DeviceStage
from aif_jax.serving.stage import (
    CachedStage,
    GatheredStage,
    Meanwhile,
    Progress,
    Scored,
    Shared,
    Stage,
)


class Generation:
    """One bundle with the tables that it computed; a request is ranked by exactly one.

    Attributes:
        bundle: the model.
        tables: its tables.
        config: settings of the engine.
        sizes: sizes that programs are compiled for.
        raw_pair: names of the pair features whose raw values the score expression reads.
        kept: columns that user states keep of behaviours, see `Bundle.kept_columns`; empty for none.
        version: version of the bundle.
        k_max: the most results that one request can ask for.
        missing_policy: policy for candidates without a row.

    Raises:
        VersionMismatchError: a table was computed by another bundle version.
        ConfigError: the config does not fit the bundle.
    """

    def __init__(self, bundle: Bundle, tables: Tables, config: EngineConfig):
        check_tables(bundle, tables)
        self.bundle = bundle
        self.tables = tables
        self.config = config
        self.sizes = config.sizes(k_max=bundle.k_max, long_length=bundle.spec.long_length)
        signature = bundle.signature("stage")
        self.raw_pair = frozenset(
            operand.path.removeprefix("pair/raw_")
            for operand in signature.inputs
            if operand.path.startswith("pair/raw_")
        )
        self.version, self.k_max = bundle.version, bundle.k_max
        self.missing_policy = config.missing_items.policy
        extends = config.user_states.extend and config.user_states.max_bytes > 0
        self.kept = bundle.kept_columns if extends else {}
        self._user_calls: dict[tuple[int, int, int], Call] = {}
        self._stage: Stage | None = None

    def warm(self, progress: Progress | None = None) -> None:
        """Compile and run every program for every size; afterwards no request compiles anything."""
        sizes = self.sizes
        # For items that requests lack: by the index's own bundle, which may run another kind of programs.
        items = int(self.missing_policy == "compute")
        shapes = [
            (length, users, places)
            for length in sizes.histories
            for users in sizes.users
            for places in (sorted({min(NEWEST, length), length}) if self.kept else (0,))
        ]
        total = len(shapes) + len(sizes.histories) * len(sizes.candidates) + items

        def ready(number: int, name: str) -> None:
            if progress is not None:
                progress(number, total, name)

        if items:
            self.tables.items.warm()
            ready(items, "items that the index lacks")
        for number, (length, users, places) in enumerate(shapes, items + 1):
            dims = {"b": users, "l": length, "p": places}
            call = self.bundle.call("extend" if places else "user", **dims)
            self._user_calls[length, users, places] = call
            jax.block_until_ready(call(call.program.zeros(dims)))
            ready(number, f"{'user' if users == 1 else f'{users} users'}, history {length}")
        self._stage = self._made_stage(lambda number, _, name: ready(items + len(shapes) + number, name))

    def _made_stage(self, progress: Progress) -> Stage:
        index, sizes = self.tables.items, (self.sizes.candidates, self.sizes.histories)
        default = self.missing_policy == "default"
        if rows_on_device(self.config):
            rows = DeviceRows(index, capacity=self.config.item_rows.device_capacity)
            try:
                return DeviceStage(rows, self.bundle, *sizes, default=default, progress=progress)
            except BaseException:
                rows.close()
                raise
        kind = CachedStage if self.bundle.kind == "native" else GatheredStage
        return kind(index, self.bundle, *sizes, default=default, progress=progress)

    def needs(self, *, user_states: bool = True) -> Needs:
        """Return the memory that it needs now; ``user_states`` says whether it caches any."""
        device = None if self._stage is None else self._stage.device_bytes
        return _needs(self.bundle, self.tables, self.config, device, user_states=user_states)

    def close(self) -> None:
        """Give device memory back; no request may be under way."""
        if self._stage is not None:
            self._stage.close()

    def user_call(self, length: int, users: int, places: int) -> Call:
        """Return the user program; with ``places``, ``extend`` for so many; see `compute_states`."""
        return self._user_calls[length, users, places]

    def prepare(self, leaves: Mapping[str, Any], length: int, context: Mapping[str, np.ndarray]) -> Shared:
        """Lay out what all candidates of a request share; see `Stage.prepare`."""
        assert self._stage is not None, "warm makes it"
        return self._stage.prepare(leaves, length, context)

    def score(
        self, shared: Shared, candidates: EncodedCandidates, k: int, meanwhile: Meanwhile | None = None
    ) -> Scored:
        """Score candidates and take the best: in one compiled call, or in several of the largest size.

        Args:
            shared: user state and context, from `prepare`.
            candidates: from `aif_jax.serving.candidates.encode`.
            k: results wanted, at most the bundle's ``k_max``.
            meanwhile: called when the first call was dispatched.

        Raises:
            UnknownItemError: a candidate has no row, under ``missing_items="error"``.
        """
        assert self._stage is not None, "warm makes it"
        n, sizes = len(candidates.keys), self.sizes.candidates
        if not n:
            heads = np.empty((0, len(self.bundle.spec.heads)), np.float32)
            return Scored(np.empty(0, np.int64), np.empty(0, np.float32), heads)

        def refuse(found: np.ndarray) -> None:
            raise unknown_items(candidates.ids, found)

        if n <= sizes[-1]:
            size = sizes[0]
            for larger in sizes:
                size = larger
                if n <= larger:
                    break
            scored = self._stage.score(
                shared, candidates.keys, candidates.pair, size,
                refuse=refuse if self.missing_policy == "error" else None, meanwhile=meanwhile,
            )  # fmt: skip
            if len(scored.order) <= k:
                return scored
            return scored._replace(order=scored.order[:k], scores=scored.scores[:k], heads=scored.heads[:k])
        return self._score_parts(shared, candidates, k, meanwhile)

    def _score_parts(
        self, shared: Shared, candidates: EncodedCandidates, k: int, meanwhile: Meanwhile | None
    ) -> Scored:
        """Score more candidates than the largest size takes, in several calls, and merge."""
        assert self._stage is not None, "warm makes it"
        n, size = len(candidates.keys), self.sizes.candidates[-1]
        parts, starts = [], range(0, n, size)
        for start in starts:
            part = slice(start, min(start + size, n))

            def refuse(found: np.ndarray, part: slice = part) -> None:
                raise unknown_items(candidates.ids[part], found)

            pair = {name: column[part] for name, column in candidates.pair.items()}
            refused = refuse if self.missing_policy == "error" else None
            done = None if start else meanwhile
            parts.append(
                self._stage.score(shared, candidates.keys[part], pair, size, refuse=refused, meanwhile=done)
            )
        order = np.concatenate([part.order + start for part, start in zip(parts, starts, strict=True)])
        scores = np.concatenate([part.scores for part in parts])
        heads = np.concatenate([part.heads for part in parts])
        best = np.lexsort((order, -scores))[:k]
        return Scored(
            order[best], scores[best], heads[best],
            unscored=sum(part.unscored for part in parts), missing=sum(part.missing for part in parts),
            not_rankable=sum(part.not_rankable for part in parts),
            gather_s=sum(part.gather_s for part in parts), stage_s=sum(part.stage_s for part in parts),
            bucket=size, calls=len(parts),
        )  # fmt: skip


def rows_on_device(config: EngineConfig) -> bool:
    """Return whether the real-time stage reads item rows from a device."""
    where = config.item_rows.where
    return where == "device" or (where == "auto" and jax.default_backend() != "cpu")


def unknown_items(ids: np.ndarray, found: np.ndarray) -> UnknownItemError:
    """Return the error that refuses candidates ``[n]`` of which some have no row."""
    absent = np.flatnonzero(~found)
    return UnknownItemError(
        f"candidates: {len(absent)} of {len(found)} have no row in the item index, the first is "
        f"{ids[absent[0]]}; add them with ItemIndex.upsert, leave them out of "
        "retrieval, or configure missing_items='drop' or 'default'."
    )


# -- memory ---------------------------------------------------------------------------------------


def needs_ahead(bundle: Bundle, tables: Tables, config: EngineConfig, *, user_states: bool = True) -> Needs:
    """Return the memory that a generation would need, before it is made; see `Generation.needs`."""
    device = device_bytes(tables.items, config.item_rows.device_capacity) if rows_on_device(config) else None
    return _needs(bundle, tables, config, device, user_states=user_states)


def _needs(
    bundle: Bundle, tables: Tables, config: EngineConfig, device: int | None, *, user_states: bool
) -> Needs:
    index, behaviours = tables
    parts = {
        "item_index": Part(index.stats()["total_bytes"], index),
        "behaviour_table": Part(behaviours.stats()["total_bytes"], behaviours),
        "user_states": Part(config.user_states.max_bytes if user_states else 0, object()),
        "weights": Part(sum(int(array.nbytes) for array in bundle.weights.values()), bundle),
    }
    if device is not None:
        parts["device_rows"] = Part(device, object())
    return parts
