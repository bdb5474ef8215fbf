"""Deep encoder: one pass over a window gives every request what its own history gives, and nothing later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.errors import ConfigError
from aif_jax.features.gaps import GAP_STEPS
from aif_jax.models import add_signatures, fold
from aif_jax.models.blocks.encoder import SequenceEncoder, near_attention
from support.model_cases import (
    logits_of,
    make_batch,
    make_catalogue,
    make_schema,
    quick_jit,
    random_model,
    small_config,
)

WINDOWS, LENGTH = 2, 12
ROW, END = np.array([0, 0, 1, 1, -1, 0], np.int32), np.array([0, 5, 12, 1, 0, 12], np.int32)


def windows_and_histories(rng, schema):
    """Return a batch's windows, and the long sequences of its requests that say the same, newest first."""
    windows = {
        "sequence_item": rng.integers(0, 40, (WINDOWS, LENGTH)).astype(np.int32),
        "sequence_type": rng.integers(0, len(schema.behaviour_types), (WINDOWS, LENGTH)).astype(np.int32),
        "sequence_gap": rng.integers(0, GAP_STEPS, (WINDOWS, LENGTH)).astype(np.int32),
        "sequence_row": ROW,
        "sequence_end": END,
    }
    long = {}
    for name, absent in (("item", -1), ("type", -1), ("gap", 0)):
        long[f"long_{name}"] = np.full((len(ROW), LENGTH), absent, np.int32)
        for b, (row, end) in enumerate(zip(ROW, END, strict=True)):
            long[f"long_{name}"][b, :end] = windows[f"sequence_{name}"][row, :end][::-1]
    return windows, long


@pytest.fixture(scope="module", params=[0, 5], ids="reach {}".format)
def case(request):
    rng = np.random.default_rng(0)
    reach = request.param
    config, schema = small_config(blocks=("encoder",), encoder_gaps=True, encoder_reach=reach), make_schema()
    model = random_model(rng, config, schema)
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    batch = make_batch(rng, config, schema, batch=len(ROW), length=LENGTH)
    windows, long = windows_and_histories(rng, schema)
    compiled = logits_of(config, schema)

    def logits(**changes):
        with jax.default_matmul_precision("highest"):
            return compiled(model, {**batch, **long, **changes}, catalogue)

    return windows, logits


def test_encoder_by_windows_equals_encoder_by_history(case):
    windows, logits = case
    by_history, by_window = logits(), logits(**windows)
    assert np.ptp(by_history, axis=0).min() > 1e-3
    np.testing.assert_allclose(by_window, by_history, rtol=1e-5, atol=1e-5 * np.abs(by_history).max())


def test_encoder_by_windows_reads_nothing_after_a_request(case):
    """Types of later behaviours are labels of the batch's own rows."""
    windows, logits = case
    before = logits(**windows)
    for b in (1, 3):
        later = {name: value.copy() for name, value in windows.items()}
        later["sequence_item"][ROW[b], END[b] :] += 1
        later["sequence_type"][ROW[b], END[b] :] ^= 1
        later["sequence_gap"][ROW[b], END[b] :] ^= 1
        changed = logits(**later)
        np.testing.assert_array_equal(changed[b], before[b])
        assert np.abs(changed - before)[ROW[b] == ROW].max() > 1e-3


def newest(encoder):
    """The encoder's vector of the newest behaviour, compiled."""
    return quick_jit(lambda *sequence: encoder(*sequence, last=True))


@pytest.mark.parametrize(("length", "reach"), [(9, 1), (9, 4), (12, 4), (5, 7)])
def test_near_attention_equals_masked_attention(length, reach):
    rng = np.random.default_rng(reach)
    query, key, value = rng.normal(size=(3, 2, length, 2, 4)).astype(np.float32)
    mask = rng.random((2, length)) < 0.8
    mask[0, :4] = False  # as padding is
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    seen = (distance >= 0) & (distance < reach) & mask[:, None]
    weight = np.exp(np.einsum("bqhc,bkhc->bhqk", query, key) / 2.0) * seen[:, None]
    total = weight.sum(axis=-1, keepdims=True)
    expected = np.einsum("bhqk,bkhc->bqhc", weight / np.where(total > 0, total, 1), value)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(near_attention(query, key, value, mask, reach))
    some = seen.any(axis=-1)
    np.testing.assert_allclose(found[some], expected[some], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reach", [3, 5])
def test_sequence_encoder_newest_place_is_that_of_the_whole_and_depends_on_what_it_reaches(reach):
    rng = np.random.default_rng(4)
    encoder = SequenceEncoder(8, 2, 2, 3, True, reach, rngs=nnx.Rngs(0))
    event = rng.normal(size=(3, 14, 8)).astype(np.float32)
    kind = rng.integers(0, 3, (3, 14)).astype(np.int32)
    kind[0, :6] = kind[1, -2:] = kind[2, [3, 10]] = -1
    gap = rng.integers(0, GAP_STEPS, (3, 14)).astype(np.int32)
    run, at = newest(encoder), np.array([13, 11, 13])
    found = np.asarray(run(event, kind, gap))
    every = np.asarray(quick_jit(lambda *sequence: encoder(*sequence))(event, kind, gap))
    np.testing.assert_allclose(found[:, 0], every[np.arange(3), at], rtol=1e-5, atol=1e-5)
    far = 2 * (reach - 1)  # two layers
    for row, newest_place in ((1, 11), (2, 13)):
        beyond, reached = event.copy(), event.copy()
        beyond[row, : newest_place - far] += 10.0
        reached[row, newest_place - far] += 10.0
        np.testing.assert_array_equal(run(beyond, kind, gap), found)
        assert np.abs(run(reached, kind, gap) - found).max() > 1e-4


def test_sequence_encoder_ignores_padding_and_finds_the_order():
    rng = np.random.default_rng(1)
    encoder = SequenceEncoder(8, 2, 2, 3, rngs=nnx.Rngs(0))
    event = rng.normal(size=(1, 9, 8)).astype(np.float32)
    kind = rng.integers(0, 3, (1, 9)).astype(np.int32)

    run = newest(encoder)

    def last(event, kind):
        with jax.default_matmul_precision("highest"):
            return np.asarray(run(event, kind))

    whole = last(event, kind)
    padded = np.concatenate([100 * np.ones((1, 4, 8), np.float32), event], axis=1)
    there = np.concatenate([np.full((1, 4), -1, np.int32), kind], axis=1)
    np.testing.assert_allclose(last(padded, there), whole, atol=1e-4)
    places = np.asarray(quick_jit(lambda *sequence: encoder(*sequence))(event, kind))
    np.testing.assert_allclose(places[:, -1:], whole, atol=1e-4)
    swapped = [1, 0, *range(2, 9)]
    assert np.abs(last(event[:, swapped], kind[:, swapped]) - whole).max() > 1e-2
    assert np.abs(last(event, (kind + 1) % 3) - whole).max() > 1e-2


@pytest.mark.parametrize("last", [False, True])
def test_sequence_encoder_rematerialised_has_the_same_gradients_in_less_memory(last):
    graph, weights = nnx.split(SequenceEncoder(8, 2, 4, 3, rngs=nnx.Rngs(0)))
    event = jax.random.normal(jax.random.key(0), (2, 64, 8))
    kind = jnp.zeros((2, 64), jnp.int32).at[0, :5].set(-1)
    memory, gradients = [], []
    for again in (False, True):

        def loss(weights, event, again=again):
            encoder = nnx.merge(graph, weights)
            encoder.rematerialise = again
            return jnp.sum(jnp.square(encoder(event, kind, last=last)))

        with jax.default_matmul_precision("highest"):
            program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, event).compile()
        memory.append(program.memory_analysis().temp_size_in_bytes)
        gradients.append(jax.tree.leaves(program(weights, event)))
    for kept, computed in zip(*gradients, strict=True):
        np.testing.assert_allclose(computed, kept, rtol=1e-4, atol=1e-5 * np.abs(kept).max())
    assert memory[1] < 0.6 * memory[0]


def test_sequence_encoder_expects_from_the_newest_behaviour_with_a_row():
    """The newest behaviours are often of items too new to have a row: what stands there is no vector."""
    rng = np.random.default_rng(2)
    encoder = SequenceEncoder(8, 2, 2, 3, rngs=nnx.Rngs(0))
    run = newest(encoder)
    event = rng.normal(size=(1, 9, 8)).astype(np.float32)
    kind = rng.integers(0, 3, (1, 9)).astype(np.int32)
    unknown = [4, 7, 8]
    kind[:, unknown] = -1
    found = run(event, kind)
    np.testing.assert_allclose(run(event[:, :7], kind[:, :7]), found, atol=1e-5)
    event[:, unknown] += 100.0
    np.testing.assert_allclose(run(event, kind), found, atol=1e-5)


def test_sequence_encoder_reads_the_gap_before_every_behaviour_but_the_oldest():
    """The behaviour before the oldest may be beyond the history, so that nobody knows the gap."""
    rng = np.random.default_rng(3)
    encoder = SequenceEncoder(8, 2, 2, 3, True, rngs=nnx.Rngs(0))
    run = newest(encoder)
    event = rng.normal(size=(1, 6, 8)).astype(np.float32)
    kind = np.array([[-1, -1, 0, 1, 2, 0]], np.int32)
    gap = rng.integers(0, GAP_STEPS - 1, (1, 6)).astype(np.int32)
    found = np.asarray(run(event, kind, gap))
    other = np.where(np.arange(6) < 3, 5, gap).astype(np.int32)
    np.testing.assert_array_equal(run(event, kind, other), found)
    for place in (3, 4, 5):
        other = gap.copy()
        other[:, place] += 1
        assert np.abs(run(event, kind, other) - found).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_layers": -1}, "encoder_layers: got -1"),
        ({"encoder_heads": 0}, "encoder_heads: got 0"),
        ({"encoder_reach": -1}, "encoder_reach: got -1"),
        ({"encoder_width": 10}, "encoder_width: got 10, expected a multiple of twice encoder_heads"),
    ],
)
def test_config_with_impossible_encoder_raises_with_advice(changes, said):
    with pytest.raises(ConfigError, match=said):
        small_config(**changes)


def test_config_without_encoder_layers_has_no_encoder():
    assert small_config().has("encoder")
    assert not small_config(encoder_layers=0).has("encoder")
    assert not small_config(architecture="cold").has("encoder")


@pytest.mark.parametrize(("layers", "precision"), [(2, "float32"), (4, "float32"), (2, "bfloat16")])
def test_extended_state_equals_the_whole(layers, precision):
    """Histories of any length, some behaviours without a row; what is kept is said by nobody but itself."""
    rng = np.random.default_rng(layers)
    config = small_config(blocks=("encoder",), encoder_layers=layers, encoder_gaps=True)
    schema = make_schema()
    folded = fold(random_model(rng, config, schema), precision=precision)
    weights = folded.weights_of("user")
    user = make_batch(rng, config, schema, batch=6)["user"]
    none = np.full((6, config.short_length), -1, np.int32)

    def laid_out(since):
        """Operands of the long sequence without the newest behaviours, of which each user lacks some."""
        long, types = {}, np.full((6, LENGTH), -1, np.int32)
        for name, values in {**events, "type": kinds}.items():
            placed = types if name == "type" else np.zeros_like(values)
            for row, value, start, end in zip(placed, values, since, ends, strict=True):
                row[: max(0, end - start)] = value[start:end]
            long[name] = placed
        return long, long.pop("type")

    @quick_jit
    def run(long, types, kept, new):
        given = weights, user, {}, none, long, types
        whole = folded.user(*given)
        return whole, folded.extend(*given[:4], {**long, "event_kept": kept}, types, new)

    shape = (6, LENGTH, layers - 1, config.encoder_width)
    for turn in range(4):
        events = {
            "event": rng.normal(size=(6, LENGTH, config.encoder_width)).astype(np.float32),
            "gap": rng.integers(0, GAP_STEPS, (6, LENGTH)).astype(np.int32),
        }
        kinds = rng.integers(-1, len(schema.behaviour_types), (6, LENGTH)).astype(np.int32)
        ends = np.array([0, 1, LENGTH, LENGTH, *rng.integers(2, LENGTH, 2)])
        lacking = np.minimum(rng.integers(0, 4, 6), ends)
        if turn == 0:
            kinds[2, :3] = -1
        every, few = np.arange(LENGTH, dtype=np.int32), np.arange(3, dtype=np.int32)
        with jax.default_matmul_precision("highest"):
            _, before = jax.device_get(run(*laid_out(lacking), np.zeros(shape, np.float32), every))
            kept = rng.normal(size=shape).astype(np.float32)
            for row, old, n in zip(kept, before["event_kept"], lacking, strict=True):
                row[n:] = old[: LENGTH - n]
            whole, extended = jax.device_get(run(*laid_out(np.zeros(6, int)), kept, few))
        assert np.ptp(whole["h_u"].astype(np.float32), axis=0).max() > 1e-3
        for name, leaf in whole.items():
            want, got = leaf.astype(np.float32), extended[name].astype(np.float32)
            step = 1e-2 if leaf.dtype == jnp.bfloat16 else 1e-5
            np.testing.assert_allclose(got, want, rtol=step, atol=step * np.abs(want).max())
