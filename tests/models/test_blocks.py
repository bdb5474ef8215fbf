"""Each block against its formula, written out in NumPy on tiny inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.features import MultiValued, Numeric
from aif_jax.kernels import (
    hyperplanes,
    ordered_product,
    pack_signs,
    simhash,
    slot_weights,
    table_sum,
    tier_features,
)
from aif_jax.models import build_model
from aif_jax.models.blocks import long_attention
from aif_jax.models.blocks.base import UserSide
from aif_jax.models.blocks.bridge import Bridges
from aif_jax.models.blocks.sim_hard import CategoryPool, recent_categories
from aif_jax.models.blocks.simtier import channel_lengths, float_tiers
from aif_jax.models.dropout import draw_keep, hidden, shown
from aif_jax.models.embedder import FeatureEmbedder
from aif_jax.models.layers import attend, masked_mean
from aif_jax.models.user import BehaviourValues
from support.model_cases import make_group, make_schema, quick_jit, small_config

B, G, L, D_M, D_V, BITS = 3, 4, 7, 6, 5, 16


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def f4(values):
    return np.asarray(values, np.float32)


def run(function, *operands):
    """Compiled: one program in place of one for each operation."""
    return jax.device_get(quick_jit(function)(*operands))


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.fixture
def history(rng):
    """Content and sign bits of both sides, values, and which behaviours count; none of user 0 do."""
    counted = rng.random((B, L)) < 0.7
    counted[0] = False
    content, theirs = f4(rng.normal(size=(B, G, D_M))), f4(rng.normal(size=(B, L, D_M)))
    bits, their_bits = rng.random((B, G, BITS)) < 0.5, rng.random((B, L, BITS)) < 0.5
    return content, theirs, bits, their_bits, f4(rng.normal(size=(B, L, D_V))), counted


def packed_bits(bits):
    """Bytes of bits, lowest first, as `pack_signs` packs them."""
    packed = np.packbits(bits, axis=-1, bitorder="little")
    np.testing.assert_array_equal(run(pack_signs, f4(bits) - f4(0.5)), packed)
    return packed


def weighted(weight, value, counted):
    """``1/n Σ_l weight(u, i, b) Y_l`` over the behaviours that count."""
    out = np.zeros((B, G, D_V))
    for u in range(B):
        for i in range(G):
            for b in np.flatnonzero(counted[u]):
                out[u, i] += weight(u, i, b) * value[u, b] / counted[u].sum()
    return out


def test_models_of_one_config_and_schema_object_have_equal_graphs():
    config, schema = small_config(), make_schema()

    def graph(config, schema, seed):
        return nnx.split(build_model(config, schema, seed=seed))[0]

    first = graph(config, schema, 0)
    assert (first, hash(first)) == (graph(config, schema, 1), hash(graph(config, schema, 1)))
    assert first != graph(config.replace(width=config.width * 2), schema, 0)
    assert first != graph(
        config, dataclasses.replace(schema), 0
    )  # an equal one: vocabularies are never walked


def test_linear_attention_and_its_factor_equal_the_weighted_sum(history):
    content, theirs, _, _, value, counted = history
    want = weighted(lambda u, i, b: content[u, i] @ theirs[u, b], value, counted)
    got = run(long_attention.linear_attention, content, theirs, value, counted)
    np.testing.assert_allclose(got, want, atol=1e-5)
    factor = run(long_attention.linear_factor, theirs, value, counted)
    np.testing.assert_allclose(content @ factor, want, atol=1e-5)


def test_sign_attention_and_its_table_equal_the_weighted_sum(history):
    _, _, bits, their_bits, value, counted = history
    want = weighted(lambda u, i, b: (2.0 * (bits[u, i] == their_bits[u, b]) - 1).mean(), value, counted)
    packed, their_packed = packed_bits(bits), packed_bits(their_bits)
    got = run(long_attention.sign_attention, packed, their_packed, value, counted)
    np.testing.assert_allclose(got, want, atol=1e-5)
    factor = run(long_attention.sign_factor, their_packed, value, counted)

    def by_table(factor, packed):
        table = long_attention.sign_table(factor)
        return table_sum(table, packed, bits=long_attention.SIGN_BITS, implementation="reference")

    by_table = quick_jit(by_table)
    for user in range(B):
        np.testing.assert_allclose(by_table(factor[user], packed[user]), want[user], atol=1e-5)


@pytest.mark.parametrize("group", [2, 4, 8])
def test_collision_attention_and_its_table_equal_the_mean_of_groups(history, group):
    _, _, bits, their_bits, value, counted = history
    want = np.zeros((B, G, D_V))
    for u in range(B):
        for i in range(G):
            for start in range(0, BITS, group):
                same = bits[u, i, start : start + group] == their_bits[u, :, start : start + group]
                met = same.all(axis=1) & counted[u]
                if met.any():
                    want[u, i] += value[u, met].mean(axis=0) / (BITS // group)
    packed, their_packed = packed_bits(bits), packed_bits(their_bits)
    got = run(
        lambda *each: long_attention.collision_attention(*each, group), packed, their_packed, value, counted
    )
    np.testing.assert_allclose(got, want, atol=1e-5)
    factor = run(lambda *each: long_attention.collision_factor(*each, group), their_packed, value, counted)
    assert factor.shape == (B, BITS // group, 2**group, D_V)
    summed = quick_jit(lambda *each: table_sum(*each, bits=group, implementation="reference"))
    for user in range(B):
        np.testing.assert_allclose(summed(factor[user], packed[user]), want[user], atol=1e-5)


def test_softmax_attention_equals_its_formula(history):
    content, theirs, _, _, value, counted = history
    want = np.zeros((B, G, D_V))
    for u in range(1, B):
        for i in range(G):
            weights = softmax(2.0 * theirs[u, counted[u]] @ content[u, i])
            want[u, i] = weights @ value[u, counted[u]]
    got = run(long_attention.softmax_attention, content, theirs, value, counted[:, None], np.float32(2.0))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.fixture
def embedded(history):
    """The history with signatures made of its embeddings by random rotations, as in the publications."""
    content, theirs, _, _, value, counted = history
    content, theirs = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (content, theirs))
    planes = hyperplanes(0, D_M, BITS)
    bits, their_bits = content @ planes >= 0, theirs @ planes >= 0
    return content, theirs, bits, their_bits, value, counted, planes


def test_nearest_attention_equals_published_eta(embedded):
    """The ``k`` behaviours of the least ``Σ |bit - bit'|``, then attention to them (arXiv 2108.04468)."""
    content, theirs, bits, their_bits, value, counted, planes = embedded
    k = 3
    want = np.zeros((B, G, D_V))
    for u in range(1, B):
        for i in range(G):
            distance = np.abs(their_bits[u].astype(int) - bits[u, i].astype(int)).sum(axis=1)
            near = np.argsort(np.where(counted[u], distance, BITS + 1), kind="stable")[:k]
            near = near[counted[u, near]]
            want[u, i] = softmax(2.0 * theirs[u, near] @ content[u, i]) @ value[u, near]
    signatures = run(lambda *both: [simhash(each, planes) for each in both], content, theirs)
    read = run(lambda *each: long_attention.nearest(*each, k), *signatures, counted)
    np.testing.assert_array_equal(
        read.sum(axis=-1), np.minimum(counted.sum(axis=1), k)[:, None].repeat(G, axis=1)
    )
    got = run(long_attention.softmax_attention, content, theirs, value, read, np.float32(2.0))
    np.testing.assert_allclose(got, want, atol=1e-5)
    every = run(lambda *each: long_attention.nearest(*each, 10 * L), *signatures, counted)
    np.testing.assert_array_equal(every, np.broadcast_to(counted[:, None], every.shape))


def test_collision_attention_times_collisions_equals_published_sdim(embedded):
    """SDIM (arXiv 2205.10249) adds the values of a group's collisions, where we take their mean."""
    content, theirs, bits, their_bits, value, counted, planes = embedded
    group, powers = 8, 2 ** np.arange(8)
    code, their_code = (each.reshape(*each.shape[:-1], -1, group) @ powers for each in (bits, their_bits))
    same = (code[:, :, None] == their_code[:, None]) & counted[:, None, :, None]
    want = np.einsum("bglh,blv->bgv", same, value) / same.shape[-1]
    packed, their_packed = run(lambda *both: [simhash(each, planes) for each in both], content, theirs)
    attention = quick_jit(lambda *each: long_attention.collision_attention(*each, group))
    got = np.zeros_like(want)
    for h in range(same.shape[-1]):
        mean = attention(packed[..., h : h + 1], their_packed[..., h : h + 1], value, counted)
        got += np.asarray(mean) * same[..., h].sum(axis=2)[..., None] / same.shape[-1]
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_sign_attention_equals_published_similarity_of_signatures(embedded):
    """``1 - 2 · Hamming / b`` between the rotated embeddings' signs, times the values, over their number."""
    content, theirs, bits, their_bits, value, counted, planes = embedded
    distance = (bits[:, :, None] != their_bits[:, None]).sum(axis=-1)
    weight = (1 - 2 * distance / BITS) * counted[:, None]
    want = weight @ value / np.maximum(counted.sum(axis=1), 1)[:, None, None]
    got = run(
        lambda ours, theirs, *rest: long_attention.sign_attention(
            simhash(ours, planes), simhash(theirs, planes), *rest
        ),
        content, theirs, value, counted,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_behaviour_values_by_type_are_gated_and_shifted(rng):
    values = BehaviourValues(2, D_V)
    values.gate[...] = gate = f4(rng.normal(size=(2, D_V)))
    values.bias[...] = bias = f4(rng.normal(size=(2, D_V)))
    item, kind = f4(rng.normal(size=(3, D_V))), np.int32([1, 0, -1])
    want = np.stack([item[0] * gate[1] + bias[1], item[1] * gate[0] + bias[0], np.zeros(D_V)])
    np.testing.assert_allclose(run(values, item, kind), want, rtol=1e-6)


def test_behaviour_values_gradient_sums_over_all_histories(rng):
    values = BehaviourValues(3, D_V)
    graph, state = nnx.split(values)
    item, back = f4(rng.normal(size=(4, L, D_V))), f4(rng.normal(size=(4, L, D_V)))
    kind = rng.integers(-1, 3, (4, L)).astype(np.int32)
    found = run(jax.grad(lambda state: jnp.vdot(nnx.merge(graph, state)(item, kind), back)), state)
    for one in range(3):
        mine = (kind == one)[..., None]
        np.testing.assert_allclose(found["gate"][...][one], (mine * item * back).sum(axis=(0, 1)), atol=1e-5)
        np.testing.assert_allclose(found["bias"][...][one], (mine * back).sum(axis=(0, 1)), atol=1e-5)


def test_attend_and_masked_mean_ignore_masked_keys(rng):
    queries, keys = f4(rng.normal(size=(2, 3, D_M))), f4(rng.normal(size=(2, L, D_M)))
    mask = np.array([[True, False, True, True, False, True, False], [False] * L])
    want = np.zeros((2, 3, D_M))
    for q in range(3):
        want[0, q] = softmax(queries[0, q] @ keys[0, mask[0]].T / np.sqrt(D_M)) @ keys[0, mask[0]]
    np.testing.assert_allclose(run(attend, queries, keys, mask), want, atol=1e-5)
    np.testing.assert_allclose(
        run(masked_mean, keys, mask), [keys[0, mask[0]].mean(axis=0), np.zeros(D_M)], atol=1e-6
    )


def test_bridges_equal_softmax_attention_by_hand(rng):
    bridges = Bridges(3, D_M, rngs=nnx.Rngs(0))
    vectors = np.asarray(bridges.vectors[...])
    keys, e, mask = f4(rng.normal(size=(1, L, D_M))), f4(rng.normal(size=(4, D_M))), np.ones((1, L), bool)
    found = run(bridges.user, keys, mask)
    for n in range(3):
        want = softmax(keys[0] @ vectors[n] / np.sqrt(D_M)) @ keys[0]
        np.testing.assert_allclose(found[0, n], want, atol=1e-5)
    want = np.stack([softmax(vectors @ row / np.sqrt(D_M)) for row in e])
    np.testing.assert_allclose(run(bridges.item, e), want, atol=1e-6)


def test_ordered_product_equals_matrix_product(rng):
    x, kernel = f4(rng.normal(size=(2, 3, D_M))), f4(rng.normal(size=(D_M, 2)))
    np.testing.assert_allclose(run(ordered_product, x, kernel), x @ kernel, rtol=1e-5)


@pytest.mark.parametrize("scale", ["share", "log1p"])
def test_tier_features_equal_histogram_by_hand(rng, scale):
    edges, channels = (-0.5, 0.0, 0.5), 2
    similarity = f4(rng.uniform(-1, 1, (B, G, L)))
    similarity[0, 0, 0] = 0.5  # on a threshold: it is reached
    kind = rng.integers(-1, channels, (B, L)).astype(np.int32)
    kind[0, 0] = 1
    has_content = f4(rng.random((B, L, 1)) < 0.8)
    has_content[0, 0] = 1
    nothing = np.zeros(0, np.float32)

    @quick_jit
    def channel_of(has_content, kind):
        return UserSide(*[nothing] * 3, {"has_content": has_content}, kind, None, {}).channel

    channel = np.asarray(channel_of(has_content, kind))
    np.testing.assert_array_equal(channel, np.where(has_content[..., 0] > 0, kind, -1))
    counts = np.zeros((B, G, channels, 4), int)
    for u in range(B):
        for i in range(G):
            for b in range(L):
                if channel[u, b] >= 0:
                    counts[u, i, channel[u, b], np.sum(similarity[u, i, b] >= f4(edges))] += 1
    tiers = run(lambda *each: float_tiers(*each, edges, channels), similarity, channel)
    np.testing.assert_array_equal(tiers, counts)
    lengths = run(lambda each: channel_lengths(each, channels), channel)
    np.testing.assert_array_equal(lengths, [[(row == c).sum() for c in range(channels)] for row in channel])
    bound = np.maximum(lengths, 1)[:, None, :, None]
    want = counts / bound if scale == "share" else np.log1p(counts) / np.log1p(bound)
    got = run(lambda *each: tier_features(*each, scale), counts.astype(np.int32), lengths[:, None])
    np.testing.assert_allclose(got, want.reshape(B, G, -1), rtol=1e-6)


def by_hand(category, valid, slots):
    """The most recent distinct categories of one history, and how many of its categories found no slot."""
    seen: list[int] = []
    for behaviour in np.flatnonzero(valid):
        for value in category[behaviour]:
            if value >= 2 and value not in seen:
                seen.append(int(value))
    slot = seen[:slots]
    left = sum(int(v >= 2 and v not in slot) for row in category[valid] for v in row)
    return slot + [-1] * (slots - len(slot)), left


@pytest.mark.parametrize("slots", [1, 3, 20])
def test_recent_categories_are_the_most_recent_and_count_overflow(rng, slots):
    category = rng.integers(0, 9, (5, 12, 2)).astype(np.int32)
    valid = rng.random((5, 12)) < 0.8
    valid[0] = False
    found, overflow = run(lambda *each: recent_categories(*each, slots), category, valid)
    want = [by_hand(*row, slots) for row in zip(category, valid, strict=True)]
    np.testing.assert_array_equal(found, [slot for slot, _ in want])
    np.testing.assert_array_equal(overflow, [left for _, left in want])
    assert (overflow > 0).any() == (slots < 7)


def test_category_pool_and_slot_weights_average_by_category(rng):
    category = np.int32([[[2, 3], [3, 0], [2, 2], [4, 1], [5, 0]]])
    valid = np.array([[True, True, True, True, False]])
    value = f4(rng.normal(size=(1, 5, D_V)))
    slot, overflow = run(lambda *each: recent_categories(*each, 4), category, valid)
    np.testing.assert_array_equal(slot, [[2, 3, 4, -1]])
    assert overflow[0] == 0
    pool = CategoryPool(D_V, 3, rngs=nnx.Rngs(0))
    pool.linear.bias[...] = f4([0.1, 0.2, 0.3])
    kernel = np.asarray(pool.linear.kernel[...])
    want = np.zeros((4, 3))
    for row, members in enumerate([[0, 2], [0, 1], [3]]):
        sums = [sum(0.5 ** (place / half) for place in members) for half in (4, 20)]
        counts = [*np.log1p([*sums, len(members)]), len(members) / 4]
        features = np.append(value[0, members].mean(axis=0), counts)
        want[row] = np.maximum(features @ kernel + [0.1, 0.2, 0.3], 0)
    got = run(pool, value, category, valid, slot)
    np.testing.assert_allclose(got[0], want, atol=1e-6)
    # The mean over the item's categories; 9 has no slot and counts as zero, 0 and 1 name no category.
    item = np.int32([[3, 9, 0], [2, 0, 0], [2, 3, 4], [9, 1, 0], [0, 0, 0]])
    weights = run(slot_weights, item, slot[0])
    third = 1 / 3
    np.testing.assert_allclose(
        weights,
        [[0, 0.5, 0, 0], [1, 0, 0, 0], [third, third, third, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        rtol=1e-6,
    )


def test_embedder_concatenates_rows_means_and_numbers(rng):
    schema = make_schema()
    embed = FeatureEmbedder(schema.pair, 4, rngs=nnx.Rngs(0))
    inputs = make_group(rng, schema, "pair", (20,), missing=0.5)
    parts = []
    for feature in schema.pair:
        column = inputs[feature.name]
        if isinstance(feature, Numeric):
            parts.append(column)
            continue
        table = np.asarray(getattr(embed, f"table_{feature.name}")[...])
        assert table.shape == (feature.size, 4)
        if isinstance(feature, MultiValued):
            rows = [
                table[values[values != 0]].mean(axis=0) if values.any() else np.zeros(4) for values in column
            ]
            parts.append(np.stack(rows))
        else:
            parts.append(table[column])
    want = np.concatenate(parts, axis=1)
    assert embed.width == want.shape[1]
    found, filled = run(lambda each: (embed(each), embed.given(each)), inputs)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    given = (inputs["bid"][:, 1] > 0) | (inputs["channel"] != 0) | (inputs["tags"] != 0).any(axis=1)
    assert given.any()
    assert not given.all()
    np.testing.assert_array_equal(filled, given)


def test_embedder_id_beyond_its_table_gives_nan():
    embed = FeatureEmbedder(make_schema().context, 4, rngs=nnx.Rngs(0))
    assert np.isnan(run(embed, {"hour": np.int32([26])})).all()


def test_dropout_draws_independently_and_hides_rows(rng):
    keep = run(lambda key: draw_keep(0.25, ("b", "a"), 4000, key), jax.random.key(0))
    assert sorted(keep) == ["a", "b"]
    for kept in keep.values():
        assert abs(float(kept.mean()) - 0.75) < 0.03
    assert 0.5 < float((keep["a"] == keep["b"]).mean()) < 0.75  # 0.625: drawn independently
    present = rng.random((4000, 2)) < 0.5
    np.testing.assert_array_equal(
        run(lambda *each: shown(each[0], "a", each[1]), keep, present), present & keep["a"][:, None]
    )
    np.testing.assert_array_equal(shown(keep, "other", present), present)
    inputs = make_group(rng, make_schema(), "pair", (3,), missing=0.0)
    masked = run(hidden, inputs, np.array([True, False, True]))
    for name, values in masked.items():
        assert not values[1].any()
        np.testing.assert_array_equal(values[::2], inputs[name][::2])
