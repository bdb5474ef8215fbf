"""A run that starts from an earlier model."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from aif_jax.config import BLOCKS
from aif_jax.data import Dataset, by_column
from aif_jax.errors import BundleError, ConfigError, TrainingError
from aif_jax.features import Categorical, ContentSpace, Hashing, MultiValued, Numeric, Schema, Vocabulary
from aif_jax.models import add_signatures, build_model
from aif_jax.models.store import save_model, weights_of
from aif_jax.training import train
from aif_jax.training.warm_start import Earlier
from support.model_cases import small_config

ITEMS, USERS, GROUP, LENGTH = 30, 4, 6, 8


def vocabulary(*values):
    return Vocabulary(values=tuple(sorted(values)))


PAGES = vocabulary("home", "search")


def earlier_schema():
    return Schema(
        user=(
            Categorical(name="town", encoder=vocabulary("Bath", "York")),
            Numeric(name="age", mean=30.0, std=9.0),
        ),
        item=(
            Categorical(name="item", encoder=vocabulary(*range(20), 1000, 1001)),
            MultiValued(name="genres", max_values=2, encoder=vocabulary("drama", "noir")),
            Numeric(name="discontinued", mean=0.0, std=1.0),
            Categorical(name="maker", encoder=Hashing(buckets=5)),
            Numeric(name="price", mean=3.0, std=2.0),
        ),
        behaviour_types=("click", "skip", "buy"),
        context=(Categorical(name="page", encoder=PAGES),),
        pair=(Numeric(name="bid", mean=0.0, std=1.0),),
        train_only=(Numeric(name="place", mean=0.0, std=1.0),),
        category="genres",
        item_id="item",
    )


def later_schema():
    """More of everything, in another order; two ids and a feature have left; means are of other data."""
    return Schema(
        user=(
            Categorical(name="device", encoder=vocabulary("phone", "desk")),
            Numeric(name="age", mean=40.0, std=3.0),
            Categorical(name="town", encoder=vocabulary("Bath", "Hull", "York")),
        ),
        item=(
            Numeric(name="price", mean=5.0, std=1.0),
            Categorical(name="item", encoder=vocabulary(*range(ITEMS))),
            Categorical(name="maker", encoder=Hashing(buckets=5)),
            Categorical(name="colour", encoder=vocabulary("red", "blue")),
            MultiValued(name="genres", max_values=3, encoder=vocabulary("comedy", "drama", "noir")),
        ),
        behaviour_types=("buy", "cart", "click", "skip"),
        context=(Numeric(name="hour", mean=12.0, std=4.0), Categorical(name="page", encoder=PAGES)),
        pair=(
            Categorical(name="channel", encoder=vocabulary("a", "b")),
            Numeric(name="bid", mean=1.0, std=2.0),
        ),
        train_only=(
            Categorical(name="slot", encoder=vocabulary(1, 2)),
            Numeric(name="place", mean=9.0, std=1.0),
        ),
        category="genres",
        item_id="item",
    )


def encoded(schema, config):
    """Return the same raw requests and catalogue, encoded by a schema; columns that it lacks are left out."""
    rng = np.random.default_rng(3)
    n = USERS * GROUP

    def pick(*values, n):
        return [values[i] for i in rng.integers(0, len(values), n)]

    def group(name, n, **columns):
        return schema.encode(name, columns, n, strict=False)

    def wide(columns):
        return {name: x.reshape(USERS, GROUP, *x.shape[1:]) for name, x in columns.items()}

    content = rng.normal(size=(ITEMS, config.content_width)).astype(np.float32)
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    history = rng.integers(0, ITEMS, (USERS, LENGTH)).astype(np.int32)
    done = rng.choice(["click", "skip", "buy"], (USERS, LENGTH))
    types = np.vectorize(schema.behaviour_types.index)(done).astype(np.int32)
    catalogue = {
        **group(
            "item", ITEMS, item=np.arange(ITEMS), genres=[["drama", "noir"][: n % 3] for n in range(ITEMS)],
            maker=pick("x", "y", n=ITEMS), price=rng.normal(4, 2, ITEMS), colour=pick("red", "blue", n=ITEMS),
        ),
        "content": content, "has_content": np.ones((ITEMS, 1), np.float32),
    }  # fmt: skip
    batch = {
        "user": group(
            "user", USERS, town=pick("Bath", "York", "Hull", n=USERS), age=rng.normal(35, 9, USERS),
            device=pick("phone", None, n=USERS),
        ),
        "context": wide(group(
            "context", n, page=pick("home", "search", n=n), hour=rng.uniform(0, 24, n)
        )),
        "pair": wide(group(
            "pair", n, bid=rng.normal(size=n), channel=pick("a", "b", None, n=n)
        )),
        "train_only": wide(group("train_only", n, place=rng.normal(size=n))),
        "item": rng.integers(0, ITEMS, (USERS, GROUP)).astype(np.int32),
        "short_item": history[:, :5], "short_type": types[:, :5], "long_item": history, "long_type": types,
    }  # fmt: skip
    return batch, add_signatures(config, catalogue)


@nnx.jit
def scored(model, batch, catalogue):
    return model(batch, catalogue, train=False)


def logits(model):
    found = np.asarray(scored(model, *encoded(model.schema, model.config)))
    return {head: found[..., place] for place, head in enumerate(model.config.heads)}


EARLIER_BLOCKS = tuple(block for block in BLOCKS if block not in ("bridge", "profile_item", "self_attention"))


@pytest.mark.parametrize(
    "architecture",
    ["aif", "two_tower", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("cold", "exact"))],
)
def test_earlier_start_scores_every_input_as_the_earlier_model(architecture):
    config = small_config(architecture=architecture, heads=("like", "buy"), blocks=EARLIER_BLOCKS)
    earlier = build_model(config, earlier_schema(), seed=1)
    later = config.replace(heads=("cart", "buy", "like"), score="buy", blocks=BLOCKS, short_length=7)
    init = Earlier(earlier)
    model = build_model(later, init.schema_for(later_schema()), seed=2)
    untouched = logits(model)
    found = init.start(model)
    before, after = logits(earlier), logits(model)
    for head in config.heads:
        assert np.abs(untouched[head] - before[head]).max() > 0.05
        np.testing.assert_allclose(after[head], before[head], rtol=1e-4, atol=1e-5)
    assert found.grown == {"user.town": 1, "item.item": 10, "item.genres": 1}
    assert found.dropped == {"item.item": 2}
    assert found.kept["item.item"] == 22
    assert found.kept["item.maker"] == 7
    assert {"user.device", "item.colour", "head cart", "type cart"} <= set(found.fresh)
    assert found.left == ("item.discontinued",)
    text = found.summary()
    assert "2 dropped (item.item 2)" in text
    assert "left out: item.discontinued" in text


def test_block_weights_that_follow_the_schema_say_what_their_rows_are():
    """A weight whose rows were matched by position alone would mean something else for another schema."""
    models = [build_model(small_config(), schema) for schema in (earlier_schema(), later_schema())]
    shapes = [{name: array.shape for name, array in weights_of(model).items()} for model in models]
    labels = [{k: v for block in model.blocks for k, v in block.labels().items()} for model in models]
    assert labels[0].keys() == labels[1].keys()
    for shape, found in zip(shapes, labels, strict=True):
        for name, by_axis in found.items():
            assert {axis: len(rows) for axis, rows in by_axis.items()} == {0: shape[name][0]}
            assert len(set(by_axis[0])) == len(by_axis[0])
    follow = {
        name for name, shape in shapes[0].items()
        if name.startswith(("first.", "user.encoder.")) and ".table_" not in name and shape != shapes[1][name]
    }  # fmt: skip
    expected = {*(f"first.{name}.kernel" for name in ("simtier", "context", "pair")), "user.encoder.types"}
    assert follow == labels[0].keys() == expected


def test_earlier_model_without_a_block_leaves_new_ones_able_to_learn():
    """A new block has no influence yet; were what it alone reads zero too, no step would ever change it."""
    config = small_config(blocks=("profile_item",), encoder_layers=0)
    init = Earlier(build_model(config, earlier_schema(), seed=1))
    later = config.replace(blocks=BLOCKS, encoder_layers=1)
    model = build_model(later, init.schema_for(earlier_schema()), seed=2)
    init.start(model)
    found = weights_of(model)
    for block, column in (("encoder", "event"), ("long_attention", "value"), ("bridge", "token")):
        assert not found[f"first.{block}.kernel"].any()
        assert found[f"item.as_{column}.kernel"].any()


def test_earlier_rows_are_matched_by_key_and_new_ones_are_that_of_unknown():
    config = small_config()
    earlier = build_model(config, earlier_schema(), seed=1)
    init = Earlier(earlier)
    model = build_model(config, init.schema_for(later_schema()), seed=2)
    init.start(model)
    old, new = weights_of(earlier), weights_of(model)
    towns = ["missing", "unknown", "Bath", "Hull", "York"]
    rows = dict(zip(towns, new["user.embed.table_town"], strict=True))
    np.testing.assert_array_equal(rows["Bath"], old["user.embed.table_town"][2])
    np.testing.assert_array_equal(rows["York"], old["user.embed.table_town"][3])
    np.testing.assert_array_equal(rows["Hull"], old["user.embed.table_town"][1])
    assert model.schema.feature("item", "price") == dataclasses.replace(
        later_schema().feature("item", "price"), mean=3.0, std=2.0
    )


def test_earlier_feature_of_another_kind_starts_fresh():
    config = small_config()
    schema = earlier_schema()
    init = Earlier(build_model(config, schema, seed=1))
    item = tuple(
        Categorical(name="maker", encoder=Hashing(buckets=9)) if feature.name == "maker"
        else dataclasses.replace(feature, encoder=vocabulary("0", "1")) if feature.name == "item" else feature
        for feature in schema.item
    )  # fmt: skip
    model = build_model(config, init.schema_for(dataclasses.replace(schema, item=item)), seed=2)
    first = weights_of(model)
    found = init.start(model)
    assert found.fresh == found.left == ("item.item", "item.maker")
    for name in ("item.embed.table_maker", "item.embed.table_item"):
        np.testing.assert_array_equal(weights_of(model)[name], first[name])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 8, "hidden": 12}, "width is 6 there and 8 here, hidden is 10 there and 12 here"),
        ({"tier_edges": (-0.2, 0.0, 0.5)}, "tier_edges is"),
        ({"encoder_layers": 3}, "encoder_layers is 2 there and 3 here"),
        ({"tier_scale": "log1p"}, "tier_scale is share there and log1p here"),
    ],
)
def test_earlier_config_of_other_sizes_or_meanings_is_refused(changes, said):
    init = Earlier(build_model(small_config(), earlier_schema()))
    with pytest.raises(ConfigError, match=said):
        init.start(build_model(small_config(**changes), earlier_schema()))


def test_earlier_content_space_is_taken_over_or_refused():
    vectors = np.random.default_rng(0).normal(5, 1, (40, 8))
    spaces = [ContentSpace.fit(range(40), rows, width=6) for rows in (vectors, vectors + 1)]
    config = small_config(content_width=6)
    init = Earlier(build_model(config, earlier_schema(), content_space=spaces[0]))
    assert init.space_for(spaces[1]) == init.space_for(None) == spaces[0]
    for space in ContentSpace.declared(6), ContentSpace(kind="derived", width=6):
        with pytest.raises(ConfigError, match=r"the earlier model reads .*fitted on 40 .* of the same kind"):
            init.space_for(space)


def test_earlier_of_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"init: got a int \(3\), expected a trained model"):
        Earlier(3)
    with pytest.raises(BundleError, match="not a saved model"):
        Earlier(tmp_path)


@pytest.fixture(scope="module")
def log():
    """Two days of a log: on the second an item and a user are new, and one of each has left."""
    rng = np.random.default_rng(0)
    n = 1200
    user, item = rng.integers(0, 40, n), rng.integers(0, 25, n)
    day = np.arange(n) // 600
    keep = ~((day == 0) & ((item == 24) | (user == 39))) & ~((day == 1) & ((item == 0) | (user == 0)))
    liked = rng.random(n) < np.where((user + item) % 3 == 0, 0.8, 0.2)
    table = {
        "user": user,
        "item": item,
        "liked": liked.astype(int),
        "time": 1_760_000_000 + 60 * np.arange(n),
    }
    return {name: column[keep] for name, column in table.items()}, day[keep]


def day_of(log, day):
    table, days = log
    table = {name: column[days == day] for name, column in table.items()}
    table["part"] = np.where(np.arange(len(table["time"])) % 5 == 4, "validation", "train")
    return Dataset.from_impressions(
        table, user="user", item="item", time="time", label="liked", content_width=8, split=by_column("part"),
    )  # fmt: skip


@pytest.mark.thorough
def test_train_from_earlier_result_begins_where_that_ended(log, tiny, brief, tmp_path):
    config = tiny.replace(heads=("liked",), score="liked", blocks=("profile_item",))
    yesterday, today = day_of(log, 0), day_of(log, 1)
    brief = brief.replace(epochs=1)
    first = train(config, yesterday, brief, progress=False)
    assert first.warm_start is None
    save_model(first.model, tmp_path / "model", metrics={}, notes={})
    with pytest.raises(ConfigError, match=r"each derivation has axes of its own: .* data\.with_content_like"):
        train(config, today, brief, init=first, progress=False)
    content = yesterday.content
    today = today.with_content_like(yesterday.items["ids"], content.vectors, content.space)

    assert Earlier(tmp_path / "model").start(first.model) == Earlier(first).start(first.model)

    step = brief.replace(learning_rate=4e-3, warmup_steps=0, weight_decay=0.0, max_steps=1)
    result = train(config, today, step, init=first, progress=False)
    assert result.warm_start.grown == result.warm_start.dropped == {"item.item": 1}
    old, new = weights_of(first.model), weights_of(result.model)
    # Rows 2 and up are items 0 to 23 there, and 1 to 24 here. Adam moves a weight by its rate at first.
    rows = new["item.embed.table_item"][2:-1] - old["item.embed.table_item"][3:]
    kernel = new["item.mlp.layer_0.kernel"] - old["item.mlp.layer_0.kernel"]
    for moved in rows, kernel:
        np.testing.assert_allclose(np.abs(moved).max(), 4e-3 * step.warm_rate, rtol=1e-2)

    saved = brief.replace(checkpoint_dir=str(tmp_path / "checkpoints"))
    once = train(config, today, saved, init=first, progress=False)
    again = train(config, today, saved, init=tmp_path / "model", progress=False)
    jax.tree.map(np.testing.assert_array_equal, weights_of(again.model), weights_of(once.model))
    for other in (None, once):
        with pytest.raises(TrainingError, match=r"holds another run: training\.init differ"):
            train(config, today, saved, init=other, progress=False)
