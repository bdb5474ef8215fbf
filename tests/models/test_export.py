"""Each folded program exports with symbolic sizes, reloads and computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from aif_jax import kernels
from aif_jax.models import fold
from support.model_cases import (
    long_of,
    make_batch,
    make_catalogue,
    make_group,
    make_schema,
    only,
    quick_jit,
    random_model,
    small_config,
    take,
)

K = 20


def reload(function, *shapes):
    """Export with the portable kernels, serialise, and load again."""
    with kernels.use("reference"):
        exported = export.export(jax.jit(function))(*shapes)
    return export.deserialize(exported.serialize())


@pytest.mark.parametrize(
    "kind", ["linear", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("sign", "collision"))]
)
def test_folded_programs_exported_and_reloaded_compute_the_same(kind):
    rng = np.random.default_rng(0)
    config = small_config(long_attention=kind, score="ctr * bid", encoder_layers=2, encoder_reach=3)
    schema = make_schema()
    folded = fold(random_model(rng, config, schema))
    # The sizes of one program are solved from its own inputs, so each has a scope of its own.
    (m,) = export.symbolic_shape("m")
    b, length = export.symbolic_shape("b, l")
    history, n = export.symbolic_shape("l, n", constraints=["mod(n, 16) == 0", f"n >= {K}"])
    weights = {program: folded.weights_of(program) for program in ("behaviour", "item", "user", "stage")}

    def stage(*operands):
        return folded.stage(*operands, k=K)

    shapes = {
        "behaviour": (folded.item_inputs_spec(m),),
        "item": (folded.item_inputs_spec(m),),
        "user": (
            folded.user_inputs_spec(b), folded.short_spec(b), folded.types_spec(b, config.short_length),
            folded.long_spec(b, length), folded.types_spec(b, length),
        ),
        "stage": (
            folded.state_spec(history), folded.rows_spec(n), folded.valid_spec(n), folded.context_spec(),
            folded.pair_spec(n),
        ),
    }  # fmt: skip
    functions = {"behaviour": folded.behaviour, "item": folded.item, "user": folded.user, "stage": stage}
    loaded = {name: reload(functions[name], weights[name], *shapes[name]) for name in shapes}

    items = make_catalogue(rng, config, schema)
    size, batch_size, n_rows = 9, 3, 48
    batch = make_batch(rng, config, schema, batch=batch_size, length=size)
    pair = make_group(rng, schema, "pair", (n_rows,)) | {"raw_bid": rng.random(n_rows).astype(np.float32)}
    valid, chosen = rng.random(n_rows) < 0.8, rng.integers(0, len(items["content"]), n_rows)
    context = {name: values[1, 0] for name, values in batch["context"].items()}

    def road(run):
        """The four programs, one after the other, each by ``run(name, *inputs)``."""
        table, index = run("behaviour", items), run("item", items)
        states = run(
            "user", batch["user"],
            take(only(table, folded.short_spec(1)), batch["short_item"]), batch["short_type"],
            long_of(folded, table, batch), batch["long_type"],
        )  # fmt: skip
        state = {name: values[1] for name, values in states.items()}
        return table, index, states, run(
            "stage", state, take(only(index, folded.rows_spec(1)), chosen), valid, context, pair
        )  # fmt: skip

    def compiled(programs):
        return road(lambda name, *inputs: jax.device_get(quick_jit(programs[name])(weights[name], *inputs)))

    want = compiled(functions)
    got = compiled({name: program.call for name, program in loaded.items()})
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    # What the helpers say of shapes is what the programs give.
    table, index, states, ranking = want
    assert shapes_of(table) == shapes_of(folded.behaviour_spec(len(items["content"])))
    assert shapes_of(index) == shapes_of(folded.item_spec(len(items["content"])))
    per_user = {name: values[0] for name, values in states.items()}
    assert shapes_of(per_user) == shapes_of(folded.state_spec(size))
    assert [leaf.shape for leaf in ranking] == [(K,), (K,), (K, 1)]


def shapes_of(columns):
    return {name: (tuple(values.shape), jnp.dtype(values.dtype)) for name, values in columns.items()}
