"""A request ranked by a generation outside of the engine's own way, and how two answers to it differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.features import EncodeReport
from aif_jax.serving.arguments import check_context
from aif_jax.serving.candidate_tables import UnknownColumns
from aif_jax.serving.candidates import Asked, complete, read
from aif_jax.serving.stages import Generation
from aif_jax.serving.user_program import compute_state, long_bucket
from aif_jax.types import UserId, UserRecord


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The best of one request.

    Attributes:
        ids: item ids, best first, ``[k]``.
        scores: float32 ``[k]``.
        missing: candidates without a row.
    """

    ids: np.ndarray
    scores: np.ndarray
    missing: int = 0


def answer(
    generation: Generation,
    user: UserId,
    record: UserRecord | None,
    context: Mapping[str, Any],
    asked: Asked,
    k: int,
    unknown_columns: UnknownColumns = "error",
) -> Answer:
    """Rank a request with everything, in the calling thread; missing rows are not computed.

    Args:
        generation: warmed.
        user: whom to rank for.
        record: what is known of the user; ``None`` for nothing.
        context: raw context features.
        asked: candidates, pair features and filters.
        k: results wanted.
        unknown_columns: what becomes of columns that the schema does not know.

    Raises:
        RequestError: something of it is malformed, or the schema does not know it.
        UnknownItemError: a candidate has no row, under ``missing_items="error"``.
    """
    schema, report = generation.bundle.schema, EncodeReport()
    check_context(context, schema)
    record = UserRecord() if record is None else record
    state = compute_state(user, record, long_bucket(record, generation), generation)
    candidates = complete(read(asked, schema, unknown_columns), generation, report)
    encoded = schema.encode_one("context", context, report=report)
    scored = generation.score(state.leaves, state.length, encoded, candidates, k)
    return Answer(candidates.ids[scored.order], scored.scores, scored.missing)


def compared(one: Answer, other: Answer) -> tuple[float, float]:
    """Return the share of the best k that two answers agree on, and the most that a common score differs by.

    Two empty answers agree on everything; without a common item no score differs.
    """
    longest = max(len(one.ids), len(other.ids))
    _, mine, theirs = np.intersect1d(one.ids, other.ids, return_indices=True)
    overlap = len(mine) / longest if longest else 1.0
    drift = float(np.max(np.abs(one.scores[mine] - other.scores[theirs]))) if len(mine) else 0.0
    return overlap, drift
