"""The native interaction over an embedding cache against the definition over rows, on random models."""

import copy
import functools

import jax
import numpy as np
import pytest

from aif_jax._native import EmbeddingCache, RowLayout
from aif_jax.config import BLOCKS, ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.kernels import FOUND, RANKABLE, handle_operand
from aif_jax.models import fold
from support.model_cases import (
    folded_states,
    make_batch,
    make_catalogue,
    make_group,
    numbers,
    only,
    quick_jit,
    random_config,
    random_model,
    random_schema,
)

KINDS = (
    {"blocks": BLOCKS},
    {"blocks": BLOCKS, "tier_scale": "log1p", "heads": ("ctr", "cvr")},
    {"signature": "int8"},
    {"signature": "int8", "content_width": 48, "blocks": BLOCKS},
    {"long_attention": "sign", "blocks": BLOCKS},
    {"long_attention": "sign", "head_layers": ()},
    {"long_attention": "collision", "collision_bits": 2},
    {"long_attention": "collision", "collision_bits": 4, "blocks": BLOCKS},
    {"long_attention": "collision", "collision_bits": 8},
    {"long_attention": "mean", "blocks": BLOCKS},
    {"architecture": "cold"},
    {"architecture": "two_tower"},
    {"blocks": ()},
    {"width": 64, "hidden": 128, "head_layers": (64,), "bridges": 16, "content_width": 64, "blocks": BLOCKS},
    {"width": 20, "hidden": 72, "head_layers": (36, 17), "blocks": BLOCKS},
)
N = 500
FIRST = 2**40


class Case:
    """A random model, one user's state, and a cache that holds the rows of all items but the last two."""

    def __init__(self, rng: np.random.Generator, config: ModelConfig, schema, precision="float32") -> None:
        self.folded = fold(random_model(rng, config, schema), precision=precision)
        items = make_catalogue(rng, config, schema)
        batch = make_batch(rng, config, schema, batch=3)
        made = quick_jit(lambda weights, items, batch: folded_states(self.folded, weights, items, batch))
        inputs = only(items, self.folded.item_inputs_spec(1))
        self.index, states = jax.device_get(made(self.folded.weights, inputs, batch))
        self.states = [{name: a[user] for name, a in states.items()} for user in range(3)]
        self.context = {name: values[1, 0] for name, values in batch["context"].items()}
        self.schema, self.items = schema, len(items["content"])
        self.weights = self.folded.weights_of("stage")
        self.rankable = rng.random(self.items) < 0.8
        columns = {name: values for name, values in self.index.items() if values.size}
        columns["rankable"] = self.rankable[:, None].astype(np.uint8)
        layout = RowLayout([(name, a.dtype.name, a.shape[1:]) for name, a in columns.items()])
        self.cache = EmbeddingCache(layout)
        stored = self.items - 2
        keys = np.arange(stored, dtype=np.uint64) + np.uint64(FIRST)
        self.cache.upsert(keys, {name: np.ascontiguousarray(a[:stored]) for name, a in columns.items()})
        self.default = EmbeddingCache(layout)
        first = {name: np.ascontiguousarray(a[:1]) for name, a in columns.items()}
        self.default.upsert(np.zeros(1, np.uint64), {**first, "rankable": np.ones((1, 1), np.uint8)})

        @jax.jit
        def native(state, cached, pair):
            return self.folded.cached_scores(self.weights, state, cached, self.context, pair)

        @quick_jit
        def reference(state, rows, valid, pair):
            with jax.default_matmul_precision("highest"):
                return self.folded.stage_scores(self.weights, state, rows, valid, self.context, pair)

        self._native, self._reference = native, reference

    def pair(self, rng, n):
        raw = {f"raw_{name}": rng.random(n).astype(np.float32) for name in self.folded.score.raw}
        return make_group(rng, self.schema, "pair", (n,), missing=0.5) | raw

    def native(self, user, chosen, pair, *, size=None, default=False):
        """Scores, logits and status of some candidates, padded to a size."""
        n = len(chosen)
        size = n if size is None else size
        ids = np.zeros((size, 2), np.uint32)
        ids[:n] = (chosen.astype(np.uint64) + np.uint64(FIRST)).view(np.uint32).reshape(n, 2)
        cached = {
            "index": handle_operand(self.cache),
            "missing": handle_operand(self.default) if default else np.zeros(2, np.uint32),
            "ids": ids,
            "count": np.asarray(n, np.int32),
        }
        padded = {
            name: np.concatenate([a, np.zeros((size - n, *a.shape[1:]), a.dtype)]) for name, a in pair.items()
        }
        return [np.asarray(a) for a in self._native(self.states[user], cached, padded)]

    def reference(self, user, chosen, pair, valid):
        rows = {name: a[chosen] for name, a in self.index.items()}
        return [np.asarray(a) for a in self._reference(self.states[user], rows, valid, pair)]


def case(number: int, precision="float32") -> tuple[np.random.Generator, Case]:
    """Random numbers, and a case which several tests share."""
    return np.random.default_rng(1000 + number), built(number, precision)


@functools.cache
def built(number: int, precision: str) -> Case:
    rng = np.random.default_rng(number)
    forced = KINDS[number] if number < len(KINDS) else {"long_attention": ("linear", "sign")[number % 2]}
    config = random_config(rng, encoder_layers=1, **forced)  # how deep a user side is matters to no score
    return Case(rng, config, random_schema(rng), precision)


@pytest.mark.parametrize(
    "precision",
    ["float32", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("bfloat16", "int8"))],
)
@pytest.mark.parametrize("number", numbers(KINDS))
def test_cached_scores_and_status_equal_the_definition(number, precision):
    rng, made = case(number, precision)
    chosen = rng.integers(0, made.items, N)
    pair = made.pair(rng, N)
    there, rankable = chosen < made.items - 2, made.rankable[chosen]
    assert 0 < np.count_nonzero(~there) < N
    for user in range(3):
        score, logits, status = made.native(user, chosen, pair)
        want_score, want = made.reference(user, chosen, pair, there & rankable)
        np.testing.assert_array_equal(status, there * FOUND + (there & rankable) * RANKABLE)
        assert want[there].std() > 1e-3
        close = {"rtol": 1e-4, "atol": 1e-4 * np.abs(want).max()}
        np.testing.assert_allclose(logits[there], want[there], **close)
        np.testing.assert_allclose(score, want_score, **close)
        # A row stands in for missing ones.
        instead = np.where(there, chosen, 0)
        _, logits, status = made.native(user, chosen, pair, default=True)
        _, want = made.reference(user, instead, pair, there & rankable)
        np.testing.assert_array_equal(status, there * FOUND + (~there | rankable) * RANKABLE)
        np.testing.assert_allclose(logits, want, **close)


@pytest.mark.parametrize(
    ("number", "precision"),
    [
        (0, "float32"),
        (4, "float32"),
        (10, "float32"),
        (12, "float32"),
        (4, "bfloat16"),
        (12, "bfloat16"),
        (12, "int8"),
    ],
)
def test_cached_scores_in_any_company_have_the_same_bits(number, precision):
    rng, made = case(number, precision)
    chosen = rng.integers(0, made.items - 2, N)
    pair = made.pair(rng, N)
    whole = made.native(1, chosen, pair)[1]

    def some(places, size):
        places = np.asarray(places)
        return made.native(1, chosen[places], {name: a[places] for name, a in pair.items()}, size=size)[1][
            : len(places)
        ]

    np.testing.assert_array_equal(some(np.arange(N)[::-1], N), whole[::-1])
    np.testing.assert_array_equal(some(np.arange(N), 2048), whole)
    for n, size in ((1, 1), (2, N), (13, 13), (47, N), (48, N), (49, 49), (193, N)):
        places = rng.permutation(N)[:n]
        np.testing.assert_array_equal(some(places, size), whole[places])


def test_cached_scores_of_another_cache_compile_nothing_and_of_a_dropped_one_raise():
    rng, shared = case(0)
    made, chosen = copy.copy(shared), np.arange(16)
    keys = chosen.astype(np.uint64) + np.uint64(FIRST)

    def holding(columns):
        cache = EmbeddingCache(shared.cache.layout)
        cache.upsert(keys, columns)
        return cache

    columns, found = shared.cache.gather(keys)
    assert found.all()
    made.cache = holding(columns)
    pair = made.pair(rng, 16)
    _, before, _ = made.native(1, chosen, pair)
    compiled = made._native._cache_size()
    turned = {name: np.ascontiguousarray(column[::-1]) for name, column in columns.items()}
    gone, made.cache = handle_operand(made.cache), holding(turned)
    _, after, _ = made.native(1, chosen, pair)
    assert made._native._cache_size() == compiled
    assert not np.array_equal(before, after)
    # The same rows under other ids; the pair features stay with the places.
    _, again, _ = made.native(1, chosen[::-1].copy(), dict(pair))
    np.testing.assert_array_equal(again, before)
    made.cache = type("Gone", (), {"handle": int(gone[0]) | int(gone[1]) << 32})()
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="cache"):
        made.native(1, chosen, pair)


def test_cached_scores_with_wrong_operands_raise():
    _, made = case(0)
    cached = {
        "index": handle_operand(made.cache),
        "missing": np.zeros(2, np.uint32),
        "ids": np.zeros((4, 2), np.uint32),
        "count": np.asarray(4, np.int32),
    }
    pair = made.pair(np.random.default_rng(0), 4)
    for name, wrong in (
        ("ids", np.zeros(4, np.uint32)),
        ("ids", np.zeros((4, 2), np.int32)),
        ("index", np.zeros(3, np.uint32)),
        ("count", np.asarray([4], np.int32)),
    ):
        with pytest.raises(ConfigError):
            made._native(made.states[0], {**cached, name: wrong}, pair)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="count is 5"):
        made._native(made.states[0], {**cached, "count": np.asarray(5, np.int32)}, pair)
