"""Comparison of a bundle with the model that it was made of elsewhere, such as one of PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.bundle import Bundle
from aif_jax.errors import RequestError
from aif_jax.nearline import build_tables
from aif_jax.serving import Engine, EngineConfig, GoldenRequest, Shapes
from aif_jax.shown import shown
from aif_jax.types import ItemRecords, UserRecord


def check_golden(
    bundle: Bundle,
    inputs: Sequence[GoldenRequest],
    outputs: Sequence[Mapping[str, Any]],
    *,
    items: ItemRecords,
    users: Callable[[Any], UserRecord | None],
) -> dict[str, float]:
    """Serve requests whose logits are known, and return how far the served probabilities are from those.

    Everything runs as it is served: features are encoded, tables are built, an engine ranks. So a feature
    that is encoded in another way shows, as does a weight that was mapped to another name.

    Args:
        bundle: the exported model.
        inputs: requests; every candidate must be among ``items`` and have a finite score.
        outputs: for each request its logits by head, float ``[N]``, in the order of its candidates.
        items: the candidates and the items of histories.
        users: the user source.

    Returns:
        The largest absolute difference of a probability, by head.

    Raises:
        RequestError: a request has logits of other heads or another number, or a candidate is not ranked.
    """
    heads, k = bundle.spec.heads, bundle.k_max
    if len(inputs) != len(outputs):
        raise RequestError(
            f"outputs: got {len(outputs)} for {len(inputs)} requests, expected the logits of each."
        )
    size = -(-k // 16) * 16
    config = EngineConfig(
        k=k, shapes=Shapes(candidates=(size,), histories=(bundle.spec.long_length,), users=()),
        missing_items="error",
    )  # fmt: skip
    apart = dict.fromkeys(heads, 0.0)
    with Engine(bundle, build_tables(bundle, items), users=users, config=config) as engine:
        for request, logits in zip(inputs, outputs, strict=True):
            ids = np.asarray(request.candidates)
            expected = {head: _probabilities(logits, head, len(ids)) for head in heads}
            for start in range(0, len(ids), k):
                part = slice(start, start + k)
                pair = {name: np.asarray(column)[part] for name, column in (request.pair or {}).items()}
                ranking = engine.begin(request.user, request.context).rank(ids[part], pair)
                place = {item: start + n for n, item in enumerate(ids[part].tolist())}
                order = [place.pop(item) for item in ranking.ids.tolist()]
                if place:
                    raise RequestError(
                        f"candidates: {shown(sorted(place))} were not ranked: their score is not finite, or "
                        "they are not rankable, or given twice; leave them out."
                    )
                for head in heads:
                    difference = np.abs(ranking.heads[head] - expected[head][order]).max(initial=0.0)
                    apart[head] = max(apart[head], float(difference))
    return apart


def _probabilities(logits: Mapping[str, Any], head: str, n: int) -> np.ndarray:
    if head not in logits or np.shape(logits[head]) != (n,):
        given = {name: np.shape(values) for name, values in logits.items()}
        raise RequestError(
            f"outputs: got {shown(given)}, expected the logits of head {head!r} as an array of {n}, one for "
            "each candidate."
        )
    return 1.0 / (1.0 + np.exp(-np.asarray(logits[head], np.float64)))
