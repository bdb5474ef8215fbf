"""Score expressions: their values, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.features import Numeric, Schema
from aif_jax.features.score import score_of
from aif_jax.models import Score, build_model, fold
from support.model_cases import make_schema, small_config

HEADS, PAIR = ("ctr", "cvr"), ("bid", "price")


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        ("ctr", lambda p, q, x, y, bid, price: p),
        ("ctr * bid", lambda p, q, x, y, bid, price: p * bid),
        (
            "ctr * (0.5 + cvr) ** 2 - bid / price",
            lambda p, q, x, y, bid, price: p * (0.5 + q) ** 2 - bid / price,
        ),
        ("logit_ctr + 2 * logit_cvr", lambda p, q, x, y, bid, price: x + 2 * y),
        (
            "max(ctr, cvr) - -min(bid, 1)",
            lambda p, q, x, y, bid, price: np.maximum(p, q) + np.minimum(bid, 1),
        ),
        ("exp(log(ctr) + log(bid))", lambda p, q, x, y, bid, price: p * bid),
    ],
)
def test_score_of_expression_equals_its_formula(expression, formula):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 2)).astype(np.float32)
    raw = {name: rng.uniform(0.5, 2, 50).astype(np.float32) for name in PAIR}
    score = Score(expression, HEADS, PAIR)
    assert score.raw == tuple(name for name in PAIR if name in expression)
    got = score(jnp.asarray(logits), {name: jnp.asarray(raw[name]) for name in score.raw})
    p, q = (1 / (1 + np.exp(-logits))).T
    np.testing.assert_allclose(got, formula(p, q, *logits.T, raw["bid"], raw["price"]), rtol=2e-5)
    in_numpy, probability = score.in_numpy(logits, raw)
    assert in_numpy.dtype == probability.dtype == np.float32
    np.testing.assert_allclose(in_numpy, got, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(probability, np.stack([p, q], axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("ctr *", "is not an expression"),
        ("", "is not an expression"),
        ("ctr * rank", "'rank' in 'ctr \\* rank' is no head and no numeric pair feature; known are ctr, cvr"),
        ("bid * 2", "uses no head"),
        ("max(ctr)", "max in 'max\\(ctr\\)' got 1 values, expected 2"),
        ("sqrt(ctr)", "'sqrt\\(ctr\\)' .* is not allowed"),
        ("ctr.real", "is not allowed"),
        ("ctr if bid else cvr", "is not allowed"),
        ("ctr and cvr", "is not allowed"),
        ("ctr < cvr", "is not allowed"),
        ("__import__('os')", "is not allowed"),
        ("ctr + 'x'", "is not allowed"),
        ("ctr + True", "is not allowed"),
        ("ctr + 1j", "is not allowed"),
        ("max(ctr, key=cvr)", "is not allowed"),
        ("ctr // 2", "is not allowed"),
    ],
)
def test_score_of_wrong_expression_raises_with_advice(expression, message):
    with pytest.raises(ConfigError, match=message):
        Score(expression, HEADS, PAIR)


def test_score_with_ambiguous_name_raises_config_error():
    with pytest.raises(ConfigError, match="is a head and a pair feature; rename the feature"):
        Score("ctr * cvr", HEADS, ("cvr",))
    with pytest.raises(ConfigError, match="has the name of a function; rename the feature"):
        Score("ctr * log", HEADS, ("log",))
    Score("ctr", HEADS, ("cvr", "log"))  # not used, not in the way
    with pytest.raises(ConfigError, match="'logit_ctr' would be a head and another's logit"):
        Score("logit_ctr", ("ctr", "logit_ctr"))
    pair = tuple(Numeric(name=name, mean=0.0, std=1.0) for name in ("bid", "raw_bid"))
    schema = dataclasses.replace(make_schema(), pair=pair)
    with pytest.raises(ConfigError, match="travel as 'raw_bid'"):
        score_of(small_config(score="ctr * bid"), schema)
    score_of(small_config(score="ctr * raw_bid"), schema)


def test_score_of_schema_reads_numeric_pair_features_only():
    assert score_of(small_config(score="ctr * bid"), make_schema()).raw == ("bid",)
    with pytest.raises(ConfigError, match=r"'channel' .* is no head and no numeric pair feature"):
        score_of(small_config(score="ctr * channel"), make_schema())


def test_score_that_is_not_finite_becomes_minus_infinity() -> None:
    """A missing bid is 0: divided by, it would put its item before all others."""
    schema = Schema(item=(Numeric(name="price", mean=0.0, std=1.0),), behaviour_types=("click",),
                    pair=(Numeric(name="bid", mean=0.0, std=1.0),))  # fmt: skip
    config = ModelConfig(score="ctr / bid", width=8, hidden=8, content_width=8, value_width=8, bridges=2)
    folded = fold(build_model(config, schema, seed=0))
    n = 16
    zeros = [
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
        for spec in (folded.state_spec(4), folded.rows_spec(n), folded.context_spec(), folded.pair_spec(n))
    ]
    state, rows, context, pair = zeros
    pair["raw_bid"][1:] = 2.0
    scores, _ = folded.stage_scores(folded.weights, state, rows, np.ones(n, bool), context, pair)
    assert np.asarray(scores)[0] == -np.inf
    assert np.isfinite(np.asarray(scores)[1:]).all()
    in_numpy, _ = folded.score.in_numpy(np.zeros((n, 1), np.float32), {"bid": pair["raw_bid"]})
    assert np.isfinite(in_numpy).tolist() == [False] + [True] * (n - 1)
