from aif_jax.models import build_model
from aif_jax.training.evaluate import device_catalogue
from aif_jax.training.feed import TrainingBatches, for_device
from aif_jax.training.parameters import Parameters
from aif_jax.training.step import Step


def test_step_of_other_seed_and_rates_compiles_to_same_program(dataset, tiny, brief):
    hiding = tiny.replace(block_dropout=0.1)
    programs, losses = set(), set()
    for seed in (0, 1):
        config = brief.replace(seed=seed, learning_rate=1e-3 * (1 + seed), clip_norm=1.0 * seed)
        parameters = Parameters(build_model(hiding, dataset.fit_schema(), seed=seed))
        step = Step(parameters, config, 1, 10 + seed)
        batch = for_device(TrainingBatches(dataset, dataset.fit_schema(), hiding, brief)[0])
        catalogue = device_catalogue(dataset, parameters.merge(parameters.initial))
        programs.add(step._run.lower(step.start(), batch, catalogue, step._key, step._rates).as_text())
        losses.add(float(step(step.start(), batch, catalogue)[1][0]))
    assert len(programs) == 1
    assert len(losses) == 2, "what is hidden depends on the seed"


def test_step_rematerialises_the_encoder_where_it_is_asked_to(dataset, tiny, brief):
    deep = tiny.replace(architecture="aif", blocks=("encoder",), encoder_layers=3, encoder_width=8)
    parameters = Parameters(build_model(deep, dataset.fit_schema()))
    batch = for_device(TrainingBatches(dataset, dataset.fit_schema(), deep, brief)[0])
    catalogue = device_catalogue(dataset, parameters.merge(parameters.initial))
    loops = []
    for again in (False, True):
        step = Step(parameters, brief.replace(rematerialise=again), 1, 10)
        lowered = step._gradients.lower(parameters.initial, 0, batch, catalogue, step._key)
        loops.append(lowered.as_text().count("stablehlo.while"))
    assert loops[1] == loops[0] + 2, "over layers, forward and backward"
