"""Random schemas, catalogues, batches and models of the shapes that the tests need."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aif_jax.config import BLOCKS, ModelConfig
from aif_jax.features import Categorical, Hashing, MultiValued, Numeric, Schema, Vocabulary
from aif_jax.features.gaps import GAP_STEPS
from aif_jax.models import Folded, add_signatures, fold
from aif_jax.models.baselines import model_shapes

ITEMS, CATEGORIES = 40, 9


def quick_jit(function):
    """Compile without the passes that take longest: these programs run once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": "0"})


def optimised_jit(function):
    """Compile as users do, whatever `XLA_FLAGS` says: for properties of the last bits."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": "3"})


@functools.cache
def make_schema(**groups: bool) -> Schema:
    """A schema of every kind of feature; groups, ``multi`` and ``category`` may be switched off.

    The same object for the same arguments, so that a model of it is built once.
    """
    types = groups.pop("types", 2)
    on = {
        "user": True,
        "context": True,
        "pair": True,
        "train_only": True,
        "multi": True,
        "category": True,
        **groups,
    }
    fitted = {"mean": 0.0, "std": 1.0}
    genres = Vocabulary(values=tuple(range(CATEGORIES)))
    user = (Categorical(name="age", encoder=Vocabulary(values=(1, 2, 3))), Numeric(name="activity", **fitted))
    context = (Categorical(name="hour", encoder=Vocabulary(values=tuple(range(24)))),)
    pair = (
        Numeric(name="bid", **fitted),
        Categorical(name="channel", encoder=Vocabulary(values=("a", "b"))),
        MultiValued(name="tags", max_values=2, encoder=Vocabulary(values=("x", "y", "z"))),
    )
    return Schema(
        user=user if on["user"] else (),
        item=(
            Categorical(name="item", encoder=Hashing(buckets=ITEMS)),
            MultiValued(name="genres", max_values=3, encoder=genres)
            if on["multi"]
            else Categorical(name="genres", encoder=genres),
            Numeric(name="popularity", **fitted),
        ),
        behaviour_types=tuple(f"type{n}" for n in range(types)),
        context=context if on["context"] else (),
        pair=pair if on["pair"] else (),
        train_only=(Numeric(name="position", **fitted),) if on["train_only"] else (),
        category="genres" if on["category"] else None,
        item_id="item",
    )


def make_group(rng, schema: Schema, group, shape: tuple[int, ...], missing: float = 0.2) -> dict:
    """Random encoded features; each value is missing with the given probability."""
    columns = {}
    for feature in schema.features(group):
        shown = rng.random(shape) >= missing
        if isinstance(feature, Numeric):
            values = np.stack([rng.normal(size=shape), np.ones(shape)], axis=-1) * shown[..., None]
            columns[feature.name] = values.astype(np.float32)
        elif isinstance(feature, MultiValued):
            ids = rng.integers(1, feature.size, (*shape, feature.max_values))
            kept = rng.integers(0, feature.max_values + 1, shape)[..., None] > np.arange(feature.max_values)
            columns[feature.name] = (ids * kept * shown[..., None]).astype(np.int32)
        else:
            columns[feature.name] = (rng.integers(1, feature.size, shape) * shown).astype(np.int32)
    return columns


def make_catalogue(rng, config: ModelConfig, schema: Schema, n: int = ITEMS) -> dict:
    """Random items, a fifth of them without content."""
    content = rng.normal(size=(n, config.content_width)) + 0.7 * rng.normal(size=config.content_width)
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    has_content = (rng.random((n, 1)) > 0.2).astype(np.float32)
    columns = make_group(rng, schema, "item", (n,), missing=0.1)
    return {**columns, "content": (content * has_content).astype(np.float32), "has_content": has_content}


def make_batch(
    rng, config: ModelConfig, schema: Schema, *, batch=4, group=16, length=12, n_items=ITEMS
) -> dict:
    """Random requests: the first knows nothing of its user, the last has full histories; all have holes."""
    out: dict = {}
    for name, longest in (("short", config.short_length), ("long", length)):
        lengths = rng.integers(1, longest + 1, batch)
        lengths[0], lengths[-1] = 0, longest
        there = (np.arange(longest) < lengths[:, None]) & (rng.random((batch, longest)) < 0.9)
        items = rng.integers(0, n_items, (batch, longest))
        types = rng.integers(0, len(schema.behaviour_types), (batch, longest))
        out[f"{name}_item"] = np.where(there, items, -1).astype(np.int32)
        out[f"{name}_type"] = np.where(there, types, -1).astype(np.int32)
    if config.reads_gaps:
        out["long_gap"] = rng.integers(0, GAP_STEPS, (batch, length)).astype(np.int32)
    out["item"] = rng.integers(0, n_items, (batch, group)).astype(np.int32)
    out["user"] = make_group(rng, schema, "user", (batch,))
    context = make_group(rng, schema, "context", (batch,), missing=0.4)
    for columns in (out["user"], context):
        for values in columns.values():
            values[0] = 0
    out["context"] = {name: np.repeat(values[:, None], group, axis=1) for name, values in context.items()}
    for name in ("pair", "train_only"):
        out[name] = make_group(rng, schema, name, (batch, group), missing=0.5)
    return out


def small_config(**changes) -> ModelConfig:
    """All blocks, small sizes."""
    sizes = {
        "width": 6, "embedding_width": 4, "hidden": 10, "head_layers": (7,), "item_layers": (8,),
        "short_length": 5, "long_length": 12, "content_width": 32, "value_width": 5, "signature_bits": 64,
        "tier_edges": (-0.1, 0.1, 0.4), "bridges": 3, "sim_slots": 4, "sim_width": 6,
        "encoder_layers": 2, "encoder_width": 8, "encoder_heads": 2,
    }  # fmt: skip
    return ModelConfig(**{**sizes, **changes})


def random_config(rng, **forced) -> ModelConfig:
    """A random model of small sizes, most blocks on."""

    def choice(*options):
        return options[int(rng.integers(len(options)))]

    drawn = {
        "blocks": tuple(block for block in BLOCKS if rng.random() < 0.8),
        "signature_bits": choice(64, 128),
        "tier_edges": choice((0.0,), (-0.1, 0.1, 0.4), (-0.5, -0.2, 0.0, 0.05, 0.1, 0.6)),
        "tier_scale": choice("share", "log1p"),
        "width": choice(4, 8),
        "hidden": choice(8, 16),
        "head_layers": choice((), (7,), (8, 4)),
        "item_layers": choice((), (8,)),
        "heads": choice(("ctr",), ("ctr", "cvr")),
        "item_statistics": choice(False, True),
        "bridges": choice(1, 4),
        "sim_slots": choice(2, 6),
        "value_width": choice(3, 6),
        "seed": int(rng.integers(100)),
        "encoder_gaps": choice(False, True),
        "encoder_reach": choice(0, 3),
        "encoder_layers": choice(1, 2),
    }
    return small_config(**{**drawn, **forced})


def numbers(kinds):
    """The numbers of the kinds of model, random otherwise, and of four cases that are all random.

    Every second kind is quick, the rest is thorough.
    """
    quick = range(0, len(kinds), 2)
    return [
        pytest.param(number, marks=[pytest.mark.thorough] * (number not in quick))
        for number in range(len(kinds) + 4)
    ]


def random_schema(rng) -> Schema:
    """A random subset of the groups of `make_schema`."""
    names = ("multi", "user", "context", "pair", "train_only", "category")
    return make_schema(types=int(rng.integers(1, 4)), **{name: bool(rng.random() < 0.75) for name in names})


_SHAPES: dict[tuple[ModelConfig, int], tuple[Schema, Any]] = {}


def shape_of(config: ModelConfig, schema: Schema):
    """A model of shapes without values, traced once."""
    key = config, id(schema)
    if key not in _SHAPES:
        _SHAPES[key] = schema, model_shapes(config, schema)  # kept, so is its id
    return _SHAPES[key][1]


def zero_model(config: ModelConfig, schema: Schema):
    """A model whose parameters are all zero."""
    graph, state = nnx.split(shape_of(config, schema))
    return nnx.merge(graph, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state))


def random_model(rng, config: ModelConfig, schema: Schema):
    """A model whose every parameter is random, also those that start as zeros or ones."""
    graph, state = nnx.split(shape_of(config, schema))

    def draw(leaf):
        scale = 0.5 if leaf.ndim < 2 else 1.5 / leaf.shape[0] ** 0.5
        return np.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))


def logits_of(config: ModelConfig, schema: Schema):
    """A compiled function from model, batch and catalogue to logits ``[B, G, n_heads]`` at serving."""
    graph, _ = nnx.split(shape_of(config, schema))
    run = quick_jit(lambda state, batch, catalogue: nnx.merge(graph, state)(batch, catalogue, train=False))
    return lambda model, batch, catalogue: np.asarray(run(nnx.split(model)[1], batch, catalogue))


def take(columns, rows):
    """Rows of every column: NumPy's own of its arrays, which compiles nothing."""
    return {name: values.take(rows, axis=0, mode="clip") for name, values in columns.items()}


def only(columns, names):
    """Some of the columns."""
    return {name: columns[name] for name in names}


def long_of(folded: Folded, table, batch):
    """Columns of long sequences as the user program reads them."""
    names = folded.long_spec(1, 1).keys()
    return {
        name: batch["long_gap"] if name == "gap" else take(only(table, [name]), batch["long_item"])[name]
        for name in names
    }


def folded_states(folded: Folded, weights, items, batch):
    """Item rows and user states by the folded programs, each given only the weights that it reads."""
    table = folded.behaviour(only(weights, folded.weights_of("behaviour")), items)
    rows = folded.item(only(weights, folded.weights_of("item")), items)
    states = folded.user(
        only(weights, folded.weights_of("user")),
        batch["user"],
        take(only(table, folded.short_spec(1)), batch["short_item"]),
        batch["short_type"],
        long_of(folded, table, batch),
        batch["long_type"],
    )
    return rows, states


def stage_logits(folded: Folded, weights, index, states, batch):
    """Logits ``[B, G, n_heads]`` of requests by the stage, whose raw pair features are 1."""

    def one(state, rows, context, pair):
        valid = jnp.ones(rows.shape[0], bool)
        return folded.stage_scores(weights, state, take(index, rows), valid, context, pair)[1]

    context = {name: values[:, 0] for name, values in batch["context"].items()}
    raw = {f"raw_{name}": jnp.ones(batch["item"].shape) for name in folded.score.raw}
    return jax.vmap(one)(states, batch["item"], context, {**batch["pair"], **raw})


def folded_logits_of(config: ModelConfig, schema: Schema):
    """A function from weights, batch and catalogue to what the four folded programs give.

    Logits ``[B, G, n_heads]`` and the items' priors ``[M, n_heads]``.
    """
    folded = fold(zero_model(config, schema))

    @quick_jit
    def run(weights, items, batch):
        index, states = folded_states(folded, weights, items, batch)
        logits = stage_logits(folded, only(weights, folded.weights_of("stage")), index, states, batch)
        return logits, index["prior"]

    def logits(weights, batch, catalogue):
        return jax.device_get(run(weights, only(catalogue, folded.item_inputs_spec(1)), batch))

    return logits


def abstract_forms(config: ModelConfig, schema: Schema, precision="float32"):
    """Shapes and dtypes of item rows, of the states of four requests, and of the logits of both forms."""
    rng, model = np.random.default_rng(0), zero_model(config, schema)
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    batch, folded = make_batch(rng, config, schema), fold(model, precision=precision)
    items = only(catalogue, folded.item_inputs_spec(1))

    def run(weights, items, batch):
        rows, states = folded_states(folded, weights, items, batch)
        return rows, states, stage_logits(folded, folded.weights_of("stage"), rows, states, batch)

    rows, states, logits = jax.eval_shape(run, folded.weights, items, batch)
    unfolded = jax.eval_shape(lambda batch: model(batch, catalogue, train=False), batch)
    return rows, states, (logits, unfolded)


def redrawn(rng, model, part: str):
    """A copy of a model whose parameters with a string in their names are drawn anew."""
    graph, state = nnx.split(model)

    def draw(path, leaf):
        drawn = np.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        return drawn if part in jax.tree_util.keystr(path) else leaf

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def counted_flops(config: ModelConfig, schema: Schema) -> tuple[float, float]:
    """Floating-point operations of the folded form that XLA counts: for each candidate, and for each user."""
    folded, length = fold(zero_model(config, schema)), config.long_length

    def count(function, *operands):
        return jax.jit(function).lower(*operands).cost_analysis()["flops"]

    user = count(
        folded.user, folded.weights_of("user"), folded.user_inputs_spec(1), folded.short_spec(1),
        folded.types_spec(1, config.short_length), folded.long_spec(1, length), folded.types_spec(1, length),
    )  # fmt: skip
    some, more = (
        count(
            folded.stage_scores, folded.weights_of("stage"), folded.state_spec(length), folded.rows_spec(n),
            folded.valid_spec(n), folded.context_spec(), folded.pair_spec(n),
        )
        for n in (64, 128)
    )  # fmt: skip
    candidate = (more - some) / 64
    return candidate, user + some - 64 * candidate
