"""What precision of item rows and user states costs: one model served in each, on a data set's test part.

Everything is computed by the four folded programs, from item features to scores, as an engine would.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.config import PRECISIONS, Precision
from aif_jax.data import Dataset
from aif_jax.models import Folded, fold
from aif_jax.models.baselines import Model
from aif_jax.training.candidates import CandidateLists
from aif_jax.training.evaluate import Evaluator, HeadMetrics, head_metrics
from aif_jax.training.feed import Batch
from aif_jax.training.metrics import GaucDifference, gauc_difference, rank_correlation, top_k_overlap


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionQuality:
    """One model in one precision.

    Attributes:
        precision: which.
        row_bytes: of one item row's columns.
        state_bytes: of one user state, for the model's longest history.
        heads: metrics of each head over the test part, the main one first.
        gauc_difference: GAUC of the main head minus that in float32, with a paired bootstrap over users.
        candidates: int ``[U]``, how many each user's request had.
        correlation: ``[U]``, Spearman's of the scores of each request with those in float32.
        overlap: ``[U]``, share of the best ``k`` in float32 among the best ``k``.
        logit_error: ``[U]``, root mean square of the main head's difference in logits from float32, over
            the standard deviation of the request's logits.
    """

    precision: Precision
    row_bytes: int
    state_bytes: int
    heads: Mapping[str, HeadMetrics]
    gauc_difference: GaucDifference
    candidates: np.ndarray
    correlation: np.ndarray
    overlap: np.ndarray
    logit_error: np.ndarray


def compare_precisions(
    model: Model,
    dataset: Dataset,
    *,
    users: int = 500,
    candidates: int = 4096,
    k: int = 500,
    seed: int = 0,
    precisions: Sequence[Precision] = PRECISIONS,
) -> dict[Precision, PrecisionQuality]:
    """Measure a model in several precisions against itself in float32.

    Args:
        model: trained, of any architecture that folds.
        dataset: of the schema that the model was trained with; its test part is used.
        users: requests for rankings, each the first of the test part of another user.
        candidates: items of each request at most: all that are not in the user's history then, or so many
            drawn from them. Their pair features are missing.
        k: how many results a request would keep.
        seed: of the draws.
        precisions: which to measure.

    Raises:
        ConfigError: the architecture does not fold.
        DataError: the data set has no test part.
        TrainingError: a logit is not finite.
    """
    lists = _requests(dataset, users, candidates, seed)
    evaluator = Evaluator(dataset, model, "test")
    plain = _Served(fold(model), dataset)
    baseline = evaluator.collect(plain.logits), plain.rankings(lists)
    measured: dict[Precision, PrecisionQuality] = {}
    for precision in precisions:
        served = _Served(fold(model, precision=precision), dataset)
        logits, rankings = (
            baseline if precision == "float32" else (evaluator.collect(served.logits), served.rankings(lists))
        )
        measured[precision] = _quality(served.folded, dataset, logits, rankings, baseline, k)
    return measured


Arrays = dict[str, jax.Array]

Rankings = list[tuple[np.ndarray, np.ndarray]]
"""Scores and the main head's logits ``[N]`` of each request."""


class _Served:
    """The folded programs over a whole catalogue, as functions of batches (see `aif_jax.data.batching`)."""

    def __init__(self, folded: Folded, dataset: Dataset) -> None:
        self.folded, self._dataset = folded, dataset
        catalogue = dataset.catalogue(folded.schema, content_width=folded.config.content_width)
        items = {name: catalogue[name] for name in folded.item_inputs_spec(1)}
        with jax.default_matmul_precision("highest"):
            self._behaviours = jax.jit(folded.behaviour)(folded.weights_of("behaviour"), items)
            self._rows = jax.jit(folded.item)(folded.weights_of("item"), items)
        weights = {**folded.weights_of("user"), **folded.weights_of("stage")}
        self._weights = {name: jnp.asarray(array) for name, array in weights.items()}

    def logits(self, batch: Batch) -> jax.Array:
        """Return logits ``[B, G, heads]``, each candidate scored by itself: they differ in context."""
        return self._scored(batch, together=False)[1]

    def rankings(self, lists: CandidateLists) -> Rankings:
        """Score each list as one request, in the context of its positive."""
        config, found = self.folded.config, []
        for number in range(len(lists)):
            lengths = (config.short_length, config.long_length)
            batch = lists.batch(self._dataset, self.folded.schema, np.array([number]), *lengths)
            score, logits = jax.device_get(self._scored(batch, together=True))
            real = lists.items[number] >= 0
            found.append((score[0, real], logits[0, real, 0]))
        return found

    def _scored(self, batch: Batch, *, together: bool) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest"):
            return _score(self.folded, together, self._weights, self._behaviours, self._rows, batch)


@partial(jax.jit, static_argnums=(0, 1))
def _score(
    folded: Folded,
    together: bool,
    weights: dict[str, jax.Array],
    behaviours: dict[str, jax.Array],
    rows: dict[str, jax.Array],
    batch: Batch,
) -> tuple[jax.Array, jax.Array]:
    """Return scores ``[B, G]`` and logits ``[B, G, heads]``; a request's candidates together or alone."""
    short = _take(behaviours, folded.short_spec(1), batch["short_item"])
    long = _take(behaviours, folded.long_spec(1, 1), batch["long_item"])
    states = folded.user(
        {name: weights[name] for name in folded.weights_of("user")},
        batch["user"], short, batch["short_type"], long, batch["long_type"],
    )  # fmt: skip
    stage = {name: weights[name] for name in folded.weights_of("stage")}
    raw = {f"raw_{name}": jnp.zeros(batch["item"].shape, jnp.float32) for name in folded.score.raw}

    def request(
        state: Arrays, items: jax.Array, context: Arrays, pair: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        if together:
            context = {name: values[0] for name, values in context.items()}
            return folded.stage_scores(stage, state, _take(rows, rows, items), items >= 0, context, pair)
        return jax.vmap(partial(alone, state))(items, context, pair)

    def alone(state: Arrays, item: jax.Array, context: Arrays, pair: Arrays) -> tuple[jax.Array, jax.Array]:
        pair = {name: values[None] for name, values in pair.items()}
        columns = _take(rows, rows, item[None])
        score, logits = folded.stage_scores(stage, state, columns, item[None] >= 0, context, pair)
        return score[0], logits[0]

    return jax.vmap(request)(states, batch["item"], batch["context"], {**batch["pair"], **raw})


def _take(
    columns: Mapping[str, jax.Array], names: Mapping[str, object], items: jax.Array
) -> dict[str, jax.Array]:
    return {name: jnp.take(columns[name], items, axis=0, mode="clip") for name in names}


def _requests(dataset: Dataset, users: int, candidates: int, seed: int) -> CandidateLists:
    """Draw the first test row of some users, each with items that are not in the history before it."""
    rng = np.random.default_rng(seed)
    test = dataset.requests("test", group=1)
    _, first = np.unique(test.user, return_index=True)
    chosen = np.sort(rng.permutation(first)[:users])
    items = np.full((len(chosen), candidates), -1, np.int32)
    for place, request in enumerate(chosen):
        start = dataset.events.offsets[test.user[request]]
        known = np.zeros(dataset.n_items, bool)
        known[dataset.events.item[start : test.history_end[request]]] = True
        drawn = np.sort(rng.permutation(np.flatnonzero(~known))[:candidates])
        items[place, : len(drawn)] = drawn
    width = int((items >= 0).sum(axis=1).max(initial=1))
    return CandidateLists(test.rows[chosen, 0], items[:, : -(-width // 16) * 16])


def _quality(
    folded: Folded,
    dataset: Dataset,
    logits: np.ndarray,
    rankings: Rankings,
    baseline: tuple[np.ndarray, Rankings],
    k: int,
) -> PrecisionQuality:
    config, rows = folded.config, dataset.impressions
    known = np.isfinite(logits[:, 0]) & (np.asarray(rows.label_mask[config.heads[0]]) > 0)
    pairs = list(zip(rankings, baseline[1], strict=True))
    return PrecisionQuality(
        precision=folded.precision,
        row_bytes=_bytes(folded.item_spec(1)),
        state_bytes=_bytes(folded.state_spec(config.long_length)),
        heads={
            head: head_metrics(dataset, "test", head, logits[:, place])
            for place, head in enumerate(config.heads)
        },
        gauc_difference=gauc_difference(
            rows.user[known],
            rows.labels[config.heads[0]][known],
            logits[known, 0],
            baseline[0][known, 0],
        ),
        candidates=np.array([len(score) for score, _ in rankings]),
        correlation=np.array([rank_correlation(mine[0], theirs[0]) for mine, theirs in pairs]),
        overlap=np.array([top_k_overlap(mine[0], theirs[0], k) for mine, theirs in pairs]),
        logit_error=np.array(
            [np.sqrt(np.mean((mine[1] - theirs[1]) ** 2)) / np.std(theirs[1]) for mine, theirs in pairs]
        ),
    )


def _bytes(spec: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in spec.values())
