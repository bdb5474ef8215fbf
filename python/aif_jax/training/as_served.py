"""A trained model as it is served: the four folded programs over a data set, from item features to scores."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from aif_jax.data import Dataset
from aif_jax.models import Folded
from aif_jax.training.candidates import CandidateLists
from aif_jax.training.feed import Batch

Arrays = dict[str, jax.Array]

Rankings = list[tuple[np.ndarray, np.ndarray]]
"""Scores and the main head's logits ``[N]`` of each request."""


class AsServed:
    """The folded programs over a whole catalogue, as functions of batches (see `aif_jax.data.batching`).

    Args:
        folded: the model.
        dataset: of the schema that it was trained with.
        rung: of the deadline ladder, 0 to 3: what requests go without, see `aif_jax.serving.ladder`.
    """

    def __init__(self, folded: Folded, dataset: Dataset, *, rung: int = 0) -> None:
        self.folded, self._dataset, self._rung = folded, dataset, rung
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
        batch = at_rung(batch, self._rung)
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


def at_rung(batch: Batch, rung: int) -> Batch:
    """Return requests without what a rung goes without: long sequence, user, context and pair features."""
    hidden: list[str] = ["long_type"] * (rung >= 1) + ["short_type"] * (rung >= 2)
    missing = ["user"] * (rung >= 2) + ["context", "pair"] * (rung >= 3)
    return {
        **batch,
        **{name: jnp.full_like(batch[name], -1) for name in hidden},
        # Missing is zero in features of every kind.
        **{group: {n: jnp.zeros_like(x) for n, x in batch[group].items()} for group in missing},
    }


def user_requests(dataset: Dataset, users: int, candidates: int, seed: int) -> CandidateLists:
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
