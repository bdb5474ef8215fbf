"""Priors that the lower rungs of the ladder rank with, and the first times that the ladder knows."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import numpy as np

from aif_jax.config import PRIOR
from aif_jax.features import EncodeReport
from aif_jax.features.score import best_first, score_of
from aif_jax.nearline.item_index import RANKABLE_COLUMN
from aif_jax.serving.candidates import EncodedCandidates, check_candidates
from aif_jax.serving.generation import Generation, unknown_items
from aif_jax.serving.ladder import ITEM_PRIOR, Ladder, LatencyEstimates
from aif_jax.serving.stage import Scored
from aif_jax.serving.user_program import compute_state, compute_states
from aif_jax.serving.user_states import UserState
from aif_jax.types import UserRecord

Result = TypeVar("Result")

_NOBODY = ""


class Priors:
    """The ladder of one generation, with the priors that its lower rungs need. Safe to use from any thread.

    Everything is computed, and timed once, while it is made.

    Args:
        generation: warmed.

    Attributes:
        ladder: decides.
        user_prior: the state of a user of whom nothing is known, for the shortest history.
    """

    def __init__(self, generation: Generation):
        self._generation = generation
        bundle, config, sizes = generation.bundle, generation.config, generation.sizes
        self.ladder = Ladder(
            LatencyEstimates(),
            sizes.candidates,
            sizes.histories,
            enabled=config.on_deadline == "degrade",
            rungs=bundle.spec.rungs,
        )
        self._score = score_of(bundle.spec, bundle.schema)
        self._stand_in: np.ndarray | None = None
        if 3 in self.ladder.rungs and config.missing_items.policy == "default":
            self._stand_in = generation.tables.items.default_row()[PRIOR]
        self.user_prior = self._seeded()

    def by_item_prior(self, candidates: EncodedCandidates, k: int) -> Scored:
        """Rank candidates by their items' priors: a look-up and a sort, no program.

        The score expression gets the raw pair features of the request.

        Raises:
            UnknownItemError: a candidate has no row, under ``missing_items="error"``.
        """
        began_s = time.perf_counter()
        cache = self._generation.tables.items.store.cache
        # Two columns of two dozen: whole rows would cost as much as a stage.
        logits, found = cache.gather_column(candidates.keys, PRIOR)
        listed, still_found = cache.gather_column(candidates.keys, RANKABLE_COLUMN)
        found &= still_found
        missing = len(found) - int(np.count_nonzero(found))
        if missing and self._generation.config.missing_items.policy == "error":
            raise unknown_items(candidates.ids, found)
        listed = listed[:, 0] != 0
        usable = found & listed
        if missing and self._stand_in is not None:
            logits = np.where(found[:, None], logits, self._stand_in)
            usable |= ~found
        gathered_s = time.perf_counter()
        raw = {name: candidates.pair[f"raw_{name}"] for name in self._score.raw}
        scores, heads = self._score.in_numpy(logits, raw)
        ranked = usable & np.isfinite(scores)
        order = best_first(np.where(ranked, scores, -np.inf), min(k, int(np.count_nonzero(ranked))))
        finished_s = time.perf_counter()
        self.ladder.times.record(ITEM_PRIOR, (finished_s - began_s) * 1e3)
        return Scored(
            order, scores[order], heads[order],
            unscored=int(np.count_nonzero(usable)) - int(np.count_nonzero(ranked)), missing=missing,
            not_rankable=int(np.count_nonzero(found & ~listed)),
            gather_s=gathered_s - began_s, stage_s=finished_s - gathered_s,
        )  # fmt: skip

    def _seeded(self) -> UserState:
        """Time every program once more now that it is warm; return the user prior."""
        generation = self._generation
        sizes = generation.sizes
        states: list[UserState] = []
        for length in sizes.histories:
            state, ms = _second_run(partial(self._nobody, length))
            self.ladder.record_user(length, ms)
            states.append(state)
            for users in sizes.users[1:]:
                _, ms = _second_run(
                    partial(compute_states, [(_NOBODY, UserRecord())] * users, length, generation)
                )
                self.ladder.record_user(length, ms, users)
        context = generation.bundle.schema.encode_one("context", {}, report=EncodeReport())
        for size in sizes.candidates if len(generation.tables.items) else ():
            candidates = self._catalogue_part(size)
            for state in states:
                shared = generation.prepare(_as_if_full(state), state.length, context)
                _, ms = _second_run(partial(generation.score, shared, candidates, 1))
                self.ladder.record_finish(size, state.length, ms)
            if 3 in self.ladder.rungs:
                self.by_item_prior(candidates, 1)
        return states[0]

    def _nobody(self, length: int) -> UserState:
        """Return the state of a user of whom nothing is known, ready."""
        state = compute_state(_NOBODY, UserRecord(), length, self._generation)
        jax.block_until_ready(dict(state.leaves))
        return state

    def _catalogue_part(self, size: int) -> EncodedCandidates:
        """Return so many candidates of an index that is not empty, again from its start where it ends."""
        generation = self._generation
        numbers = np.arange(size, dtype=np.uint64)
        made = check_candidates(numbers, None, generation.bundle.schema, generation.raw_pair, EncodeReport())
        return made._replace(keys=np.resize(generation.tables.items.store.cache.keys(), size))


def _second_run(function: Callable[[], Result]) -> tuple[Result, float]:
    """Run a function twice; return what the second run returned, and its milliseconds."""
    function()
    began_s = time.perf_counter()
    result = function()
    return result, (time.perf_counter() - began_s) * 1e3


def _as_if_full(state: UserState) -> dict[str, object]:
    """Return a state whose behaviours all count, so that similarities to them are computed."""
    leaves = dict(state.leaves)
    if "state/channel" in leaves:
        leaves["state/channel"] = np.zeros_like(leaves["state/channel"])
    return leaves
