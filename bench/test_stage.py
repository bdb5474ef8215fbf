"""The real-time stage at the standard workload, against the usual way with the same model and weights."""

import numpy as np
import pytest

from aif_jax import kernels
from aif_jax.features import pad_to
from aif_jax.kernels import integer_edges, simtier
from aif_jax.models.sequential import Sequential
from aif_jax.serving import Engine, EngineConfig
from workload import FIRST_ID

USER = 7


@pytest.fixture(scope="module")
def engine(built):
    config = EngineConfig(k=built.workload.k, buckets=(built.workload.candidates,))
    with Engine(
        built.bundle, built.index, built.behaviours, users={USER: built.user}.get, config=config
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def sequential(built):
    """The usual way as a callable without arguments, features encoded beforehand."""
    schema, config, n = built.bundle.schema, built.bundle.config, built.workload.candidates
    first = FIRST_ID
    history = (built.user.items - np.uint64(first)).astype(np.int32)
    batch = {
        "user": {k: v[None] for k, v in schema.encode_one("user", built.user.features).items()},
        "item": (built.candidates - np.uint64(first)).astype(np.int32)[None],
        "context": schema.missing("context", (1, n)),
        "pair": {k: v[None] for k, v in schema.encode("pair", built.pair, n).items()},
        "train_only": schema.missing("train_only", (1, n)),
    }
    for name, length in (("short", config.short_length), ("long", config.long_length)):
        batch[f"{name}_item"] = pad_to(history[:length], length, fill=-1)[None]
        batch[f"{name}_type"] = pad_to(np.zeros(min(length, len(history)), np.int32), length, fill=-1)[None]
    scorer = Sequential(built.model, built.catalogue, k=built.workload.k)
    return lambda: scorer(batch, {})


@pytest.mark.benchmark(group="one request of 4,096 candidates, history 1,024")
def test_sequential_model(benchmark, built, engine, sequential):
    _, scores = sequential()
    ranking = engine.begin(USER).rank(built.candidates, pair=built.pair)
    np.testing.assert_allclose(ranking.scores, scores, rtol=1e-4)
    benchmark(sequential)


@pytest.mark.benchmark(group="one request of 4,096 candidates, history 1,024")
def test_engine_with_cached_user_state(benchmark, built, engine, sequential):
    engine.begin(USER).rank(built.candidates, pair=built.pair)
    ranking = benchmark(lambda: engine.begin(USER).rank(built.candidates, pair=built.pair))
    np.testing.assert_allclose(ranking.scores, sequential()[1], rtol=1e-4)
    benchmark.extra_info["stage_ms"] = ranking.report.stage_ms
    benchmark.extra_info["gather_ms"] = ranking.report.gather_ms


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.benchmark(group="SimTier, 4,096 x 1,024 signatures of 256 bits, 16 tiers")
def test_simtier(benchmark, implementation):
    import jax

    if implementation == "native":
        assert kernels.implementations()["native"], kernels.implementations()["reason"]
    rng = np.random.default_rng(0)
    edges = integer_edges(tuple(np.linspace(-0.9, 0.9, 15)), "simhash", 256)
    candidates = rng.integers(0, 256, (4096, 32), dtype=np.uint8)
    sequence = rng.integers(0, 256, (1024, 32), dtype=np.uint8)
    channel = np.zeros(1024, np.int32)

    def run(which):
        return jax.jit(
            lambda c, s, t: simtier(c, s, t, edges, channels=1, kind="simhash", implementation=which)
        )

    program = run(implementation)
    expected = np.asarray(run("reference")(candidates, sequence, channel))
    np.testing.assert_array_equal(np.asarray(program(candidates, sequence, channel)), expected)
    benchmark(lambda: program(candidates, sequence, channel).block_until_ready())
