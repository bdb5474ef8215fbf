"""Reduced precision: rounding as defined, the stage of float32 on rounded inputs, errors within bounds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from aif_jax import _native
from aif_jax.config import BLOCKS, PRECISIONS, REDUCED_COLUMNS, ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.models import Folded, fold
from aif_jax.models.folded_shapes import FoldedShapes
from aif_jax.models.precision import narrow_rows, rounded, widen_rows
from support.model_cases import (
    folded_states,
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
    small_config,
    stage_logits,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
UNIT = 2.0**-8
"""Unit roundoff of bfloat16: it keeps 8 bits, so rounding moves a number by at most this share of it."""

KINDS = (
    {"blocks": BLOCKS},
    {"signature": "int8"},
    {"long_attention": "sign", "blocks": BLOCKS},
    {"long_attention": "collision", "collision_bits": 2},
    {"long_attention": "collision", "collision_bits": 4, "blocks": BLOCKS, "heads": ("ctr", "cvr")},
    {"architecture": "cold"},
    {"architecture": "two_tower", "heads": ("ctr", "cvr")},
    {"blocks": ()},
)


# Two programs, because within one XLA may leave out a cast there and back.
NARROW = {precision: jax.jit(functools.partial(narrow_rows, precision)) for precision in PRECISIONS}
WIDEN = {precision: jax.jit(functools.partial(widen_rows, precision)) for precision in PRECISIONS}


def random_columns(rng, n=50):
    """Columns of very different sizes, with rows of zeros, tiny rows, and what is not narrowed."""
    columns = {
        name: (rng.normal(size=(n, width)) * 10.0 ** rng.uniform(-6, 3, (n, 1))).astype(np.float32)
        for name, width in (("content", 16), ("e", 8), ("h", 33), ("bridge", 1), ("event", 8))
    }
    columns["e"][3] = 0.0
    columns["content"][4] = 1e-30
    columns["has_content"] = np.ones((n, 1), np.float32)
    columns["category"] = rng.integers(0, 9, (n, 2)).astype(np.int32)
    return columns


def numpy_rows(precision, columns, rows):
    """The definition of `narrow_rows`, with the last bit of the given scales: XLA divides its own way."""
    if precision == "bfloat16":
        return {n: c.astype(BF16) if n in REDUCED_COLUMNS else c for n, c in columns.items()}
    out, scales = dict(columns), []
    for name in (name for name in REDUCED_COLUMNS if name in columns):
        scale = np.asarray(rows["scale"])[:, len(scales), None]
        exact = np.abs(columns[name]).max(axis=1, keepdims=True) / np.float32(127)
        np.testing.assert_allclose(scale, exact, rtol=2e-7)
        steps = np.divide(columns[name], scale, out=np.zeros_like(columns[name]), where=scale > 0)
        out[name] = np.clip(np.rint(steps), -127, 127).astype(np.int8)
        scales.append(scale)
    return {**out, "scale": np.concatenate(scales, axis=1)}


def numpy_widened(precision, rows):
    """The definition of `widen_rows`."""
    wide = {name: column for name, column in rows.items() if name != "scale"}
    for place, name in enumerate(name for name in REDUCED_COLUMNS if name in rows):
        wide[name] = np.asarray(rows[name], np.float32)
        if precision == "int8":
            wide[name] = wide[name] * np.asarray(rows["scale"])[:, place : place + 1]
            if name != "h":
                wide[name] = wide[name].astype(BF16).astype(np.float32)
    return wide


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_narrow_and_widen_rows_equal_their_definition(precision):
    for seed in range(5):
        columns = random_columns(np.random.default_rng(seed))
        rows = jax.device_get(NARROW[precision](columns))
        want = numpy_rows(precision, columns, rows)
        assert {n: c.dtype for n, c in rows.items()} == {n: c.dtype for n, c in want.items()}
        for name, column in want.items():
            np.testing.assert_array_equal(rows[name], column, err_msg=name)
        wide = jax.device_get(WIDEN[precision](rows))
        want = numpy_widened(precision, rows)
        assert wide.keys() == want.keys() == columns.keys()
        for name, column in want.items():
            assert wide[name].dtype == columns[name].dtype
            np.testing.assert_array_equal(wide[name], column, err_msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_narrowed_values_stay_within_error_bounds(seed):
    columns = random_columns(np.random.default_rng(seed))
    wide = {name: jax.device_get(WIDEN[name](NARROW[name](columns))) for name in ("bfloat16", "int8")}
    for name in REDUCED_COLUMNS:
        x, half, quantised = columns[name], wide["bfloat16"][name], wide["int8"][name]
        assert (np.abs(half - x) <= UNIT * np.abs(x)).all()
        step = np.abs(x).max(axis=1, keepdims=True) / 127
        rounding = 0.0 if name == "h" else UNIT * (np.abs(x) + step)
        assert (np.abs(quantised - x) <= step * (0.5 + 1e-4) + rounding).all()
        assert (half[x == 0] == 0).all()
        assert (quantised[x == 0] == 0).all()


def test_narrowed_non_finite_rows_stay_non_finite():
    x = np.ones((3, 4), np.float32)
    x[0, 1], x[1, 2] = np.inf, np.nan
    for precision in PRECISIONS:
        wide = np.asarray(WIDEN[precision](NARROW[precision]({"h": x}))["h"])
        assert np.isfinite(wide).all(axis=1).tolist() == [False, False, True]


def test_rounded_under_jit_still_rounds():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    got = np.asarray(jax.jit(lambda x: rounded("bfloat16", x * 3.0) + 0.0)(x))
    np.testing.assert_array_equal(got, (x * np.float32(3.0)).astype(BF16).astype(np.float32))
    assert (got != x * np.float32(3.0)).mean() > 0.9
    np.testing.assert_array_equal(jax.jit(lambda x: rounded("float32", x))(x), x)


def served(models, batch, items):
    """Rows and states of some requests by each of the models of one set of weights, on the host.

    By one program: the models share all but their roundings.
    """

    @quick_jit
    def run(weights, items, batch):
        return [folded_states(folded, weights, items, batch) for folded in models]

    return jax.device_get(run(models[0].weights, only(items, models[0].item_inputs_spec(1)), batch))


def logits_of_requests(models, given, batch):
    """Logits ``[B, G, heads]`` by each of the models, of rows and states of its own."""

    @quick_jit
    def run(weights, given, batch):
        return [
            stage_logits(folded, weights, *of_one, batch)
            for folded, of_one in zip(models, given, strict=True)
        ]

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(models[0].weights_of("stage"), given, batch))


def largest_error(folded, precision, rows, states, batch):
    """Bound the difference of logits from float32, from float32 rows and states alone.

    A product of x and m, each off by at most dx and dm, is off by ``|x| dm + dx |m| + dx dm``; ReLU moves no
    two numbers further apart; a layer multiplies what comes in by at most the magnitudes of its weights.
    """
    w, config = folded.weights, folded.config

    def wrong(name):
        x = np.abs(rows[name])
        if precision == "bfloat16":
            return UNIT * x
        step = np.broadcast_to((0.5 + 1e-4) * x.max(axis=1, keepdims=True) / 127, x.shape)
        return step if name == "h" else step + UNIT * (x + step)

    if config.architecture == "two_tower":
        error = wrong("e")[batch["item"]]
        return error @ np.abs(states["vector"])
    first = wrong("h")[batch["item"]]
    if folded.factored:
        x = np.concatenate([np.abs(rows[name]) for name in folded.factored], axis=1)[batch["item"]]
        dx = np.concatenate([wrong(name) for name in folded.factored], axis=1)[batch["item"]]
        m = np.abs(states["M"])
        first = first + x @ (UNIT * m) + dx @ ((1 + UNIT) * m)
    if "sim" in states:  # the candidate's share of each slot is at most 1 over all slots
        first = first + UNIT * np.abs(states["sim"]).max(axis=1)[:, None]
    if "factor" in states:  # rounded as factor, and again as table
        table = np.abs(states["factor"]) @ np.abs(w["first.long_attention.kernel"])
        table = table.sum(axis=1) if config.long_attention == "sign" else table.max(axis=2).sum(axis=1)
        first = first + (2 * UNIT + UNIT**2) * table[:, None]
    for number in range(len(config.head_layers)):
        first = first @ np.abs(w[f"heads.layer_{number}.kernel"])
    return first @ np.abs(w["heads.out.kernel"])


@pytest.mark.parametrize("number", numbers(KINDS))
def test_reduced_precision_logits_stay_within_rounding_bounds(number):
    rng = np.random.default_rng(100 + number)
    forced = KINDS[number] if number < len(KINDS) else {"long_attention": ("linear", "sign")[number % 2]}
    config, schema = random_config(rng, encoder_layers=1, **forced), random_schema(rng)
    model = random_model(rng, config, schema)
    catalogue, batch = make_catalogue(rng, config, schema), make_batch(rng, config, schema)
    plain, *reduced = models = [fold(model, precision=precision) for precision in PRECISIONS]
    given = served(models, batch, catalogue)
    rows, states = given[0]
    want, *found = logits_of_requests(models, given, batch)
    for folded, got in zip(reduced, found, strict=True):
        precision = folded.precision
        bound = largest_error(plain, precision, rows, states, batch)
        noise = 1e-5 * np.abs(want).max()  # of float32 itself
        assert (np.abs(got - want) <= bound + noise).all()
        assert np.abs(got - want).max() > noise
        # Roundings are off by 0.2 % of a number at most, half that in the mean (bfloat16), or by 0.3 steps in
        # the mean, 0.7 % of a row's usual values (int8). They do not know of each other, so a sum of
        # products has about the same share of its own size.
        spread = want.std(axis=(0, 1)).max()
        share = np.sqrt(np.mean((got - want) ** 2)) / spread
        assert share < {"bfloat16": 0.01, "int8": 0.02}[precision]


@pytest.mark.thorough
@pytest.mark.parametrize("forced", [KINDS[0], KINDS[1], KINDS[5], KINDS[6]])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_reduced_precision_stage_equals_float32_on_widened_inputs(precision, forced):
    rng = np.random.default_rng(7)
    config, schema = random_config(rng, **forced), random_schema(rng)
    model = random_model(rng, config, schema)
    catalogue, batch = make_catalogue(rng, config, schema), make_batch(rng, config, schema)
    folded = fold(model, precision=precision)
    ((rows, states),) = served([folded], batch, catalogue)
    wide = {n: x.astype(np.float32) if x.dtype == BF16 else x for n, x in states.items()}
    given = [(rows, states), (numpy_widened(precision, rows), wide)]
    got, want = logits_of_requests([folded, fold(model)], given, batch)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["sign", "collision"])
def test_table_of_long_attention_is_rounded_to_bfloat16(kind):
    """With rows and states that rounding leaves alone, what remains is the table's rounding."""
    rng = np.random.default_rng(8)
    config = small_config(long_attention=kind, blocks=("long_attention",), head_layers=(), hidden=8)
    schema = make_schema(context=False, pair=False, train_only=False)
    model = random_model(rng, config, schema)
    catalogue, batch = make_catalogue(rng, config, schema), make_batch(rng, config, schema)
    plain, half = fold(model), fold(model, precision="bfloat16")
    ((rows, states),) = served([half], batch, catalogue)
    wide = {n: x.astype(np.float32) if x.dtype == BF16 else x for n, x in states.items()}
    given = [(rows, states), (numpy_widened("bfloat16", rows), wide)]
    got, unrounded = logits_of_requests([half, plain], given, batch)
    assert np.abs(got - unrounded).max() > 1e-5 * np.abs(unrounded).max()

    table = wide["factor"] @ half.weights["first.long_attention.kernel"]  # [B, ..., h]
    codes = np.unpackbits(rows["signature"], axis=1, bitorder="little")  # [M, b]
    n_bits = 4 if kind == "sign" else config.collision_bits
    codes = codes.reshape(len(codes), -1, n_bits) @ (1 << np.arange(n_bits))  # [M, groups]
    if kind == "sign":
        signs = 2.0 * ((np.arange(16)[:, None] >> np.arange(4)) & 1) - 1.0
        table = np.einsum("vj,bgjh->bgvh", signs, table.reshape(len(table), -1, 4, table.shape[-1]))
    table = table.astype(np.float32).astype(BF16).astype(np.float32)
    attention = table[:, np.arange(codes.shape[1]), codes].sum(axis=2) * rows["has_content"]  # [B, M, h]
    first = rows["h"].astype(np.float32) + states["h_u"][:, None] + attention
    logits = np.maximum(first, 0) @ half.weights["heads.out.kernel"] + half.weights["heads.out.bias"]
    want = np.take_along_axis(logits, batch["item"][:, :, None], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


WIDE = ModelConfig(
    width=64, hidden=128, head_layers=(64,), content_width=64, bridges=16, long_length=1024, value_width=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "floats", "scales", "large"),
    [("float32", 4, 0, 4), ("bfloat16", 2, 0, 2), ("int8", 1, 4 * 4, 2)],
)
def test_row_and_state_bytes_by_precision_are_as_documented(precision, floats, scales, large):
    schema = make_schema()
    shapes = FoldedShapes(WIDE, schema, precision)
    layout = _native.RowLayout([(n, dtype.name, shape) for n, (shape, dtype) in shapes.item_columns.items()])
    kept = 4 + 32 + 3 * 4  # has_content, signature, three categories
    assert layout.payload_bytes == (128 + 64 + 16 + 64) * floats + scales + kept
    assert layout.row_bytes == {"float32": 1152, "bfloat16": 640, "int8": 384}[precision]
    state = shapes.state_spec(1024)
    for name in ("M", "sim"):
        assert state[name].dtype.itemsize == large
    assert {state[name].dtype.name for name in ("h_u", "tier_length")} == {"float32"}
    # What histories need of items stays float32 in every precision.
    assert shapes.behaviour_spec(1) == FoldedShapes(WIDE, schema).behaviour_spec(1)


@pytest.mark.parametrize(
    ("precision", "architecture", "kind"),
    [  # A kind matters to `aif` alone; the thorough ones repeat paths.
        pytest.param(
            *case, marks=[] if case[2] == "linear" or case[:2] == ("int8", "aif") else pytest.mark.thorough
        )
        for case in itertools.product(
            PRECISIONS, ("aif", "cold", "two_tower"), ("linear", "sign", "collision")
        )
    ],
)
def test_folded_shapes_equal_what_the_programs_return(precision, architecture, kind):
    rng = np.random.default_rng(0)
    config, schema = small_config(long_attention=kind, architecture=architecture), make_schema()
    folded = fold(random_model(rng, config, schema), precision=precision)
    items, batch = make_catalogue(rng, config, schema), make_batch(rng, config, schema, batch=2)
    rows, states = jax.eval_shape(lambda: folded_states(folded, folded.weights, items, batch))
    assert specs(rows) == specs(folded.item_spec(len(items["content"])))
    length = batch["long_item"].shape[1]
    assert specs(states) == {n: ((2, *s), d) for n, (s, d) in specs(folded.state_spec(length)).items()}
    narrowed = {n for n, leaf in states.items() if leaf.dtype == BF16}
    possible = {"M"}.union(*(block.narrowed for block in folded.blocks)) & states.keys()
    assert narrowed == (set() if precision == "float32" else possible)


def specs(columns):
    return {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in columns.items()}


def test_int8_stage_score_in_any_company_has_the_same_bits():
    rng = np.random.default_rng(3)
    config, schema = WIDE.replace(long_length=128), make_schema(train_only=False)
    folded = fold(random_model(rng, config, schema), precision="int8")
    items, batch = make_catalogue(rng, config, schema), make_batch(rng, config, schema, batch=1, length=128)
    ((index, states),) = served([folded], batch, items)
    state = {name: values[0] for name, values in states.items()}
    context = {name: values[0, 0] for name, values in batch["context"].items()}
    chosen = rng.integers(0, len(items["content"]), 1008)
    pair = make_group(rng, schema, "pair", (1008,))
    weights = folded.weights_of("stage")
    stage = optimised_jit(
        lambda rows, pair: folded.stage_scores(
            weights, state, rows, jnp.ones(len(rows["e"]), bool), context, pair
        )[0]
    )

    def score(places):
        rows = {name: column[chosen[places]] for name, column in index.items()}
        return np.asarray(stage(rows, {name: column[places] for name, column in pair.items()}))

    whole = score(np.arange(1008))
    assert np.unique(whole).size > 500
    for size in (16, 272):
        places = rng.permutation(1008)[:size]
        np.testing.assert_array_equal(score(places), whole[places])


def test_fold_with_unknown_precision_raises_config_error():
    config, schema = small_config(), make_schema()
    model = random_model(np.random.default_rng(0), config, schema)
    expected = "precision: got 'float16', expected one of 'float32', 'bfloat16', 'int8'"
    with pytest.raises(ConfigError, match=expected):
        fold(model, precision="float16")
    with pytest.raises(ConfigError, match=expected):
        Folded(config, schema, fold(model).weights, "float16")
