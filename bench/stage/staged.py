"""This project's real-time stage: a request's ids to the best candidates, the user state computed before."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving import EngineConfig, Shapes
from aif_jax.serving.candidates import check_candidates
from aif_jax.serving.generation import Generation
from aif_jax.serving.user_program import compute_state
from stage.request import Case
from stage.timing import Contender
from workload import Built

USER = 7


@dataclasses.dataclass(frozen=True)
class Stage(Contender):
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # operands by path, leading axis 1
    kind: str = ""  # which programs run, `native` or `portable`
    requests: Sequence[Any] = ()  # candidates of each turn, checked


def stage_contender(case: Case, built: Built, precision: str = "float32") -> Stage:
    """Return the stage as `Generation.score` runs it, which is all that a request waits for after retrieval.

    ``built`` is the workload with bundle and tables of that precision, see `workload.in_precision`.
    """
    bundle = built.bundle
    longs = sorted({case.length, bundle.config.long_length})
    config = EngineConfig(k=case.k, shapes=Shapes(candidates=(case.n,), histories=longs))
    generation = Generation(bundle, built.tables, config)
    generation.warm()
    state = compute_state(USER, case.user, case.length, generation)
    assert (state.unknown_behaviours, state.truncated) == (0, 0)
    # The user side of a request does this, before retrieval returns.
    shared = generation.prepare(state.leaves, case.length, case.context)
    report = EncodeReport()
    requests = [
        check_candidates(ids, pair, bundle.schema, generation.raw_pair, report)
        for ids, pair in zip(case.ids, case.raw_pair, strict=True)
    ]

    def run(turn: int) -> tuple[np.ndarray, np.ndarray]:
        scored = generation.score(shared, requests[turn], case.k)
        return scored.order, scored.scores

    name = "stage" if precision == "float32" else f"stage, {precision}"
    leaves = {path: np.asarray(leaf) for path, leaf in state.leaves.items()}
    return Stage(name, run, leaves, bundle.kind, requests)
