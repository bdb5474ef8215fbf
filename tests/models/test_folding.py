"""The folded form equals the unfolded form, and a candidate's score does not depend on its company.

An item's prior: its logits for a user of whom nothing is known, context and pair features missing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.config import BLOCKS, PRECISIONS, ModelConfig
from aif_jax.errors import ConfigError, RequestError
from aif_jax.models import Folded, add_signatures, fold
from support.model_cases import (
    ITEMS,
    folded_logits_of,
    folded_states,
    logits_of,
    make_batch,
    make_catalogue,
    make_group,
    make_schema,
    numbers,
    only,
    optimised_jit,
    quick_jit,
    random_config,
    random_model,
    random_schema,
    shape_of,
    small_config,
    take,
)

KINDS = (
    {"blocks": BLOCKS},
    {"signature": "int8"},
    {"signature": "int8", "content_width": 48},
    {"long_attention": "sign"},
    {"long_attention": "sign", "blocks": BLOCKS, "heads": ("ctr", "cvr")},
    {"long_attention": "collision", "collision_bits": 2},
    {"long_attention": "collision", "collision_bits": 4, "blocks": BLOCKS},
    {"long_attention": "collision", "collision_bits": 8},
    {"long_attention": "mean", "blocks": BLOCKS},
    {"long_attention": "mean", "blocks": ("long_attention",)},
    {"architecture": "cold"},
    {"blocks": BLOCKS, "heads": ("ctr", "cvr")},
    {"architecture": "two_tower"},
    {"long_attention": "collision", "blocks": BLOCKS},
    {"blocks": ()},
)


def neutral(rng, config, schema):
    """Requests of all items by users, in contexts and with pair features, of whom nothing is known."""
    batch = make_batch(rng, config, schema)
    batch["item"] = np.resize(np.arange(ITEMS, dtype=np.int32), batch["item"].shape)
    for name in ("short_item", "short_type", "long_item", "long_type"):
        batch[name] = np.full_like(batch[name], -1)
    for group in ("user", "context", "pair"):
        batch[group] = {name: np.zeros_like(values) for name, values in batch[group].items()}
    return batch


@pytest.mark.parametrize("number", numbers(KINDS))
def test_folded_logits_and_priors_of_random_configs_equal_unfolded_logits(number):
    rng = np.random.default_rng(number)
    forced = KINDS[number] if number < len(KINDS) else {"long_attention": ("linear", "sign")[number % 2]}
    config, schema = random_config(rng, **forced), random_schema(rng)
    folded, unfolded = folded_logits_of(config, schema), logits_of(config, schema)
    for _ in range(3):  # compiled once
        model = random_model(rng, config, schema)
        catalogue = add_signatures(config, make_catalogue(rng, config, schema))
        batch, nobody = make_batch(rng, config, schema), neutral(rng, config, schema)
        weights = fold(model).weights
        with jax.default_matmul_precision("highest"):
            want, of_nobody = (unfolded(model, given, catalogue) for given in (batch, nobody))
            (got, _), (neutral_got, prior) = (folded(weights, given, catalogue) for given in (batch, nobody))
        assert want.std() > 1e-3
        assert of_nobody.std() > 1e-3
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
        tolerance = {"rtol": 1e-4, "atol": 1e-4 * np.abs(of_nobody).max()}
        np.testing.assert_allclose(neutral_got, of_nobody, **tolerance)
        np.testing.assert_allclose(prior[nobody["item"]], of_nobody, **tolerance)


def test_prior_is_calibrated_and_independent_of_precision():
    rng = np.random.default_rng(5)
    config, schema = random_config(rng, blocks=BLOCKS, heads=("ctr", "cvr")), random_schema(rng)
    model = random_model(rng, config, schema)
    plain, items = fold(model), make_catalogue(rng, config, schema)
    calibrated = [
        fold(model, precision=precision, calibration={"cvr": (0.5, -0.25)}) for precision in PRECISIONS
    ]

    @quick_jit
    def priors(weights, items):
        """Of all of them by one program, most of which they share."""
        return [each.item(w, items)["prior"] for each, w in zip([plain, *calibrated], weights, strict=True)]

    weights = [each.weights_of("item") for each in (plain, *calibrated)]
    with jax.default_matmul_precision("highest"):
        want, *found = jax.device_get(priors(weights, only(items, plain.item_inputs_spec(1))))
    for got in found:
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want * [1.0, 0.5] + [0.0, -0.25], rtol=1e-5, atol=1e-6)


def test_user_state_without_history_holds_absent_vectors():
    rng = np.random.default_rng(0)
    config, schema = small_config(), make_schema()
    folded = fold(random_model(rng, config, schema))
    items = {**make_catalogue(rng, config, schema)}
    batch = make_batch(rng, config, schema, batch=2)
    for name in ("short_type", "long_type"):
        batch[name][:] = -1
    run = quick_jit(lambda weights: folded_states(folded, weights, items, batch)[1])
    state = jax.device_get(run(folded.weights))
    assert (state["sim_category"] == -1).all()
    assert not state["sim_overflow"].any()
    assert (state["channel"] == -1).all()
    assert not state["tier_length"].any()
    content_rows = state["M"][:, config.width + config.bridges : -config.encoder_width]
    assert content_rows.shape == (2, config.content_width, config.hidden)
    assert not content_rows.any()
    for block in ("long_attention", "simtier", "sim_hard"):
        silent = dict(folded.weights)
        silent[f"first.absent_{block}"] = np.zeros(config.hidden, np.float32)
        other = run(silent)
        moved = state["h_u"] - np.asarray(other["h_u"])
        want = np.tile(folded.weights[f"first.absent_{block}"], (2, 1))
        np.testing.assert_allclose(moved, want, rtol=1e-4, atol=1e-5)


WORKLOAD = ModelConfig(
    width=64, hidden=128, head_layers=(64,), content_width=64, bridges=16, long_length=128, value_width=64,
    heads=("ctr", "cvr"), score="ctr * bid + 0.1 * cvr",
)  # fmt: skip


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("linear", "sign")), "collision"]
)
def test_stage_score_in_any_company_has_the_same_bits(kind):
    rng = np.random.default_rng(3)
    config, schema = WORKLOAD.replace(long_attention=kind), make_schema(train_only=False)
    folded = fold(random_model(rng, config, schema))
    items = make_catalogue(rng, config, schema)
    batch = make_batch(rng, config, schema, batch=1, length=128)
    make = quick_jit(lambda w, i, b: folded_states(folded, w, i, b))
    index, states = jax.device_get(make(folded.weights, items, batch))
    state = {name: values[0] for name, values in states.items()}
    context = {name: values[0, 0] for name, values in batch["context"].items()}
    n = 1008
    rows = rng.integers(0, len(items["content"]), n)
    pair = make_group(rng, schema, "pair", (n,)) | {"raw_bid": rng.random(n).astype(np.float32)}
    weights = folded.weights_of("stage")

    @optimised_jit
    def stage(columns, valid, pair):
        return folded.stage_scores(weights, state, columns, valid, context, pair)[0]

    def score(chosen, size):
        """Score some of the candidates, padded to a size."""
        chosen = np.asarray(chosen)
        padded = np.concatenate([chosen, np.zeros(size - len(chosen), int)])
        columns = {name: values[rows[padded]] for name, values in index.items()}
        valid = np.arange(size) < len(chosen)
        return np.asarray(stage(columns, valid, {name: values[padded] for name, values in pair.items()}))

    whole = score(np.arange(n), n)
    assert np.isfinite(whole).all()
    assert np.unique(whole).size > n // 2
    order = rng.permutation(n)
    np.testing.assert_array_equal(score(order, n), whole[order])
    more = ((16, 16), (48, 33), (272, 260), (2064, 1008)) if kind == "collision" else ()
    for size, count in ((16, 1), *more):
        chosen = rng.choice(n, count, replace=False)
        got = score(chosen, size)
        np.testing.assert_array_equal(got[:count], whole[chosen])
        assert np.isneginf(got[count:]).all()


def test_stage_with_k_returns_the_best_in_order():
    rng = np.random.default_rng(4)
    config = small_config(heads=("ctr", "cvr"), score="ctr * log(bid)")
    schema = make_schema()
    folded = fold(random_model(rng, config, schema), calibration={"cvr": (0.5, -1.0)})
    items, batch = make_catalogue(rng, config, schema), make_batch(rng, config, schema, batch=1, group=16)
    valid = np.arange(16) % 3 != 0
    bid = rng.random(16).astype(np.float32) + 1
    bid[1] = -1.0  # its logarithm is not a number

    @quick_jit
    def run(weights, items, batch):
        index, states = folded_states(folded, weights, items, batch)
        state = {name: values[0] for name, values in states.items()}
        context = {name: values[0, 0] for name, values in batch["context"].items()}
        pair = {name: values[0] for name, values in batch["pair"].items()} | {"raw_bid": jnp.asarray(bid)}
        operands = (
            only(weights, folded.weights_of("stage")),
            state,
            take(index, batch["item"][0]),
            valid,
            context,
            pair,
        )
        plain = operands[0] | {
            "calibration.scale": np.ones(2, np.float32),
            "calibration.offset": np.zeros(2, np.float32),
        }
        uncalibrated = folded.stage_scores(plain, *operands[1:])[1]
        return folded.stage_scores(*operands), folded.stage(*operands, k=12), uncalibrated

    (score, logits), (order, best, heads), plain = jax.device_get(run(folded.weights, items, batch))
    np.testing.assert_allclose(logits[:, 0], plain[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits[:, 1], 0.5 * plain[:, 1] - 1.0, rtol=1e-5, atol=1e-6)
    probability = 1 / (1 + np.exp(-logits))
    scored = valid & (bid > 0)
    want = np.where(scored, probability[:, 0] * np.log(np.abs(bid)), -np.inf)
    np.testing.assert_allclose(score, want, rtol=1e-5)
    np.testing.assert_array_equal(order, np.argsort(-score, kind="stable")[:12])
    np.testing.assert_array_equal(best, score[order])
    np.testing.assert_allclose(heads, probability[order], rtol=1e-5)
    assert np.isneginf(best[scored.sum() :]).all()
    assert np.isfinite(best[: scored.sum()]).all()


def test_folded_with_wrong_weights_raises_config_error():
    rng = np.random.default_rng(0)
    config, schema = small_config(), make_schema()
    weights = fold(random_model(rng, config, schema)).weights
    assert list(weights) == sorted(weights)
    Folded(config, schema, weights)
    with pytest.raises(ConfigError, match=r"missing \['heads.out.bias'\]"):
        Folded(config, schema, {name: array for name, array in weights.items() if name != "heads.out.bias"})
    with pytest.raises(ConfigError, match=r"unknown \['tail'\]"):
        Folded(config, schema, {**weights, "tail": np.zeros(1, np.float32)})
    with pytest.raises(ConfigError, match=r"heads.out.bias is float32\[2\], expected float32\[1\]"):
        Folded(config, schema, {**weights, "heads.out.bias": np.zeros(2, np.float32)})


def test_folded_programs_together_read_all_weights_and_the_stage_no_feature_tables():
    rng = np.random.default_rng(0)
    folded = fold(random_model(rng, small_config(), make_schema()))
    read = set().union(*(folded.weights_of(program) for program in ("behaviour", "item", "user", "stage")))
    assert read == set(folded.weights)
    # The feature tables, which are large, stay out of a request's path.
    assert not any(name.startswith(("item.", "user.")) for name in folded.weights_of("stage"))
    # What serving never computes is not in a bundle.
    assert {name for name in folded.weights if name.startswith("train_only")} == {"train_only.absent"}


def test_fold_with_another_score_keeps_logits():
    rng = np.random.default_rng(6)
    config, schema = small_config(heads=("ctr", "cvr"), score="ctr", blocks=("pair",)), make_schema()
    model = random_model(rng, config, schema)
    items, batch = make_catalogue(rng, config, schema), make_batch(rng, config, schema, batch=1, group=16)
    other = fold(model, score="logit_cvr - ctr")
    assert other.config == config.replace(score="logit_cvr - ctr")
    for name, array in fold(model).weights.items():
        np.testing.assert_array_equal(other.weights[name], array)
    logits, again = (
        folded_logits_of(each.config, schema)(each.weights, batch, items)[0][0]
        for each in (fold(model), other)
    )
    np.testing.assert_array_equal(again, logits)
    score = other.score.in_numpy(logits, {})[0]
    np.testing.assert_allclose(score, logits[:, 1] - 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-5)
    with pytest.raises(ConfigError, match="is no head"):
        fold(model, score="cvr * moon")


def test_fold_with_wrong_arguments_raises_with_advice():
    schema = make_schema()
    with pytest.raises(ConfigError, match="'exact' does not fold"):
        fold(shape_of(small_config(architecture="exact"), schema))
    with pytest.raises(ConfigError, match="'nearest' for 'aif'"):
        small_config(long_attention="nearest")
    model = random_model(np.random.default_rng(0), small_config(), schema)
    with pytest.raises(ConfigError, match=r"\['cvr'\] are not heads"):
        fold(model, calibration={"cvr": (1.0, 0.0)})
    with pytest.raises(RequestError, match="expected 1 to 16"):
        fold(model).stage({}, {}, {}, jnp.ones(16, bool), {}, {}, k=17)
