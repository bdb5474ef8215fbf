"""Every block of the registry: what it declares holds, and both forms compute the same of it."""

import ast
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from aif_jax import models
from aif_jax.config import BLOCKS, LONG_BLOCKS, REDUCED_COLUMNS, USER_BLOCKS
from aif_jax.features import GROUPS
from aif_jax.models import add_signatures, fold
from aif_jax.models.blocks import REGISTRY
from aif_jax.models.blocks.base import UserBlock
from aif_jax.models.folded_shapes import FoldedShapes
from aif_jax.models.folded_weights import constants
from support.model_cases import (
    abstract_forms,
    counted_flops,
    folded_logits_of,
    logits_of,
    make_batch,
    make_catalogue,
    make_schema,
    random_model,
    redrawn,
    small_config,
)

COMMON = ("aif", "folded_shapes", "folded_weights", "folding", "interaction", "item", "precision", "user")
"""Modules of what is common to the blocks."""

SHARING = {"self_attention", "long_attention", "sim_hard"}
"""Blocks that bring along what others read too, the tokens and values of histories."""

KINDS = ("linear", "sign", "collision", "mean")
BY_BLOCK = pytest.mark.parametrize("block", [block.name for block in REGISTRY])


def test_registry_and_config_name_the_same_blocks():
    declared = [block.name for block in REGISTRY]
    assert len(declared) == len(set(declared))
    assert set(BLOCKS) == set(declared)
    assert set(USER_BLOCKS) == {block.name for block in REGISTRY if issubclass(block, UserBlock)}


@pytest.mark.parametrize("kind", KINDS)
def test_config_names_the_blocks_that_read_the_long_sequence(kind):
    shapes = FoldedShapes(small_config(long_attention=kind), make_schema())
    assert set(LONG_BLOCKS) == {
        block.name for block in shapes.blocks if block.behaviour_columns.keys() - {"token"}
    }


def test_config_names_the_reduced_columns_in_the_order_of_the_registry():
    shapes = FoldedShapes(small_config(), make_schema())
    narrowed = [name for block in shapes.blocks for name in block.narrowed if name in block.row_columns]
    assert ("h", *dict.fromkeys(narrowed)) == REDUCED_COLUMNS


@pytest.mark.parametrize("module", COMMON)
def test_common_modules_name_no_block(module):
    """Constants of the syntax tree. As an argument or in a tuple a name may be that of a feature group."""
    path = Path(models.__file__).with_name(f"{module}.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    groups = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call | ast.Tuple)
        for inner in (node.args if isinstance(node, ast.Call) else node.elts)
        if isinstance(inner, ast.Constant) and inner.value in GROUPS
    }
    found = [
        f"{path.name}:{node.lineno}: {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in BLOCKS and id(node) not in groups
    ]
    assert not found


@pytest.mark.parametrize(
    ("block", "kind"),
    [  # The kind is that of one block; the others are thorough.
        pytest.param(
            block.name,
            kind,
            marks=[pytest.mark.thorough] * (kind != "linear" and block.name != "long_attention"),
        )
        for block in REGISTRY
        for kind in KINDS
    ],
)
def test_block_alone_gives_what_it_declares(block, kind):
    """Traced only. Of what other blocks bring along nothing may be needed."""
    config, schema = small_config(blocks=(block,), long_attention=kind), make_schema()
    shapes = FoldedShapes(config, schema, "int8")
    (declared,) = shapes.blocks
    rows, states, logits = abstract_forms(config, schema, "int8")
    assert all(leaf.shape[-1] == len(config.heads) for leaf in logits)
    given = {"rows": rows, "states": states}
    expected = {"rows": shapes.item_spec(rows["h"].shape[0]), "states": shapes.state_spec(12)}
    for part, spec in expected.items():
        assert given[part].keys() == spec.keys()
        for name, leaf in spec.items():
            got = given[part][name]
            assert (got.shape, got.dtype) == ((4,) * (part == "states") + leaf.shape, leaf.dtype), name
    for part, columns in (("rows", declared.row_columns), ("states", declared.state_columns(12))):
        for name, (shape, dtype) in columns.items():
            got = given[part][name]
            assert got.shape[1:] == shape
            assert (got.dtype != dtype) == (name in declared.narrowed), name


@BY_BLOCK
def test_block_bytes_are_those_of_row_and_state(block):
    shapes = FoldedShapes(small_config(blocks=(block,)), make_schema())
    (declared,) = shapes.blocks
    cost = declared.cost(12)

    def size(spec, *without):
        return sum(leaf.size * leaf.dtype.itemsize for name, leaf in spec.items() if name not in without)

    assert cost.candidate_bytes == size(shapes.rows_spec(1), "h")
    assert cost.user_bytes == size(shapes.state_spec(12), "h_u")


def wide(blocks, kind):
    """A config wide enough for leading terms to lead."""
    return small_config(
        blocks=blocks, long_attention=kind, width=24, embedding_width=16, hidden=32, value_width=24,
        short_length=16, long_length=64, bridges=8, sim_slots=8, sim_width=16,
        encoder_width=32,
    )  # fmt: skip


@cache
def flops(blocks, kind):
    return np.array(counted_flops(wide(blocks, kind), make_schema(train_only=False)))


# XLA counts the lookups of a table as nothing, and what it does in a loop only once.
@pytest.mark.parametrize(
    ("block", "kind", "counted"),
    [*((block.name, "linear", (0, 1)) for block in REGISTRY), ("long_attention", "sign", (1,)),
     ("long_attention", "mean", (0, 1))],
)  # fmt: skip
def test_block_flops_are_the_leading_terms_of_what_xla_counts(block, kind, counted):
    blocks = FoldedShapes(wide(BLOCKS, kind), make_schema()).blocks
    (declared,) = (one for one in blocks if one.name == block)
    # Blocks of one factored column share its rows, so that the second costs less.
    beside = {one.name for one in blocks if one.factored and one.factored == declared.factored} - {block}
    company = SHARING - beside - {block}
    with_it, without = (
        tuple(name for name in BLOCKS if name in names) for names in (company | {block}, company)
    )
    found = flops(with_it, kind) - flops(without, kind)
    cost = declared.cost(64)
    for place in counted:
        formula = (cost.candidate_flops, cost.user_flops)[place]
        assert formula == 0 or 0.75 * found[place] <= formula <= 1.02 * found[place]
        assert formula > 0 or found[place] < 1000


@BY_BLOCK
def test_block_weights_match_names_of_the_model(block):
    config, schema = small_config(), make_schema()
    shapes = FoldedShapes(config, schema)
    declared = next(one for one in shapes.blocks if one.name == block)
    folded = fold(random_model(np.random.default_rng(0), config, schema))
    assert declared.constants.keys() <= constants(shapes).keys()
    for program, patterns in declared.weights._asdict().items():
        read = folded.weights_of("stage" if program == "history" else program)
        for pattern in patterns:
            assert any(fnmatchcase(name, pattern) for name in read), pattern


@cache
def both_forms():
    """Both forms of one model with every block, compiled, with a catalogue and a batch."""
    rng = np.random.default_rng(0)
    config, schema = small_config(), make_schema()
    catalogue = add_signatures(config, make_catalogue(rng, config, schema))
    batch = make_batch(rng, config, schema)
    folded, unfolded = folded_logits_of(config, schema), logits_of(config, schema)
    plain = random_model(rng, config, schema)

    def logits(model):
        with jax.default_matmul_precision("highest"):
            return unfolded(model, batch, catalogue), folded(fold(model).weights, batch, catalogue)[0]

    return plain, logits


@BY_BLOCK
def test_block_weights_move_both_forms_alike(block):
    model, logits = both_forms()
    other = redrawn(np.random.default_rng(1), model, block)
    before, _ = logits(model)
    want, got = logits(other)
    assert np.abs(want - before).max() > 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
