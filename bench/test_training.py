"""Training steps of the model and of its baselines, from prepared batches to new weights."""

import itertools

import jax
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import synthetic
from aif_jax.models import build_model
from aif_jax.training import TrainConfig
from aif_jax.training.encoding import CountedDataset
from aif_jax.training.evaluate import device_catalogue
from aif_jax.training.feed import TrainingBatches, for_device, iterate
from aif_jax.training.parameters import Parameters
from aif_jax.training.step import Step

BATCHES, LEARNING_STEPS = 2, 10
CONFIG = TrainConfig(batch_size=16, warmup_steps=0, seed=1)
THOROUGH = [pytest.param(name, marks=pytest.mark.thorough) for name in ("aif", "exact", "cold")]
"""The one that is left compiles soonest; the tests train all of them anyway."""


@pytest.fixture(scope="module")
def data(sizes):
    return synthetic(n_users=sizes.train_users, n_items=10 * sizes.train_users)


@pytest.mark.parametrize("architecture", [*THOROUGH, "two_tower"])
def test_training_step(benchmark, data, sizes, architecture):
    long = sizes.workload.long_length
    config = ModelConfig(architecture=architecture, heads=("ctr",), long_length=long)
    benchmark.group = f"a training step, {CONFIG.batch_size} requests of {CONFIG.group}, history {long:,}"
    model, counted = build_model(config, data.fit_schema(), seed=CONFIG.seed), CountedDataset.of(data)
    catalogue = device_catalogue(counted, model)
    source = TrainingBatches(counted, data.fit_schema(), config, CONFIG)
    batches = [for_device(batch) for batch in itertools.islice(iterate(source, 0), BATCHES)]
    parameters = Parameters(model)
    step = Step(parameters, CONFIG, 1, 10_000)
    state, losses = step.start(), []
    for number in range(LEARNING_STEPS * BATCHES):
        state, report = step(state, batches[number % BATCHES], catalogue)
        losses.append(jax.device_get(report))
    assert all(ok for _, ok in losses)
    first, last = (sum(loss for loss, _ in part) for part in (losses[:BATCHES], losses[-BATCHES:]))
    assert last < 0.9 * first, "what is seen again and again is not learned"
    turn = itertools.cycle(batches)

    def run():
        nonlocal state
        state, report = step(state, next(turn), catalogue)
        return jax.block_until_ready(report)

    assert benchmark(run)[1]
