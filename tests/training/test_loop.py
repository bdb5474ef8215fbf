import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import TRAIN, VALIDATION
from aif_jax.errors import ConfigError, TrainingError
from aif_jax.features import Categorical, MultiValued, Numeric, Vocabulary
from aif_jax.models import build_model
from aif_jax.training.config import TrainConfig
from aif_jax.training.evaluate import evaluate, predict
from aif_jax.training.floors import floors
from aif_jax.training.loop import Epoch, train
from aif_jax.training.parameters import Parameters, named_leaves


@pytest.fixture
def short(brief):
    """Settings of twelve steps; runs of one model under the same settings share their compiled program."""
    return brief.replace(weight_decay=0.0, embedding_decay=0.0, max_steps=12)


class Crash(Exception):
    pass


def crash_after(limit):
    def on_step(done):
        if done == limit:
            raise Crash

    return on_step


def weights(result):
    return {name: np.asarray(value) for name, value in Parameters(result.model).initial.items()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.thorough
def test_train_resumed_after_two_crashes_reaches_same_weights(dataset, tiny, brief, tmp_path):
    steps = []
    straight = train(tiny, dataset, brief.replace(epochs=2), progress=False, on_step=steps.append)
    per_epoch = straight.history[0].step
    assert straight.steps == steps[-1] == 2 * per_epoch

    # Once in the middle of the first epoch, two steps after a checkpoint, and once in the second.
    config = brief.replace(epochs=2, checkpoint_dir=str(tmp_path), checkpoint_interval=3)
    for crash in (5, per_epoch + 4):
        with pytest.raises(Crash):
            train(tiny, dataset, config, progress=False, on_step=crash_after(crash))
    made = []
    resumed = train(tiny, dataset, config, progress=False, on_step=made.append)
    assert made[0] == (per_epoch + 4) // 3 * 3 + 1, "the last checkpoint is where it goes on"

    assert_same_weights(weights(straight), weights(resumed))
    assert [(e.loss, e.validation) for e in straight.history] == [
        (e.loss, e.validation) for e in resumed.history
    ]

    # A finished run is read back without a step.
    again = train(tiny, dataset, config, progress=False, on_step=crash_after(1))
    assert_same_weights(weights(straight), weights(again))

    with pytest.raises(TrainingError, match=r"holds another run: training\.learning_rate differ"):
        train(tiny, dataset, config.replace(learning_rate=1e-4), progress=False)
    rows, events = dataset.impressions, dataset.events
    flipped = {**rows.labels, "ctr": 1.0 - rows.labels["ctr"]}
    relabelled = dataclasses.replace(rows, labels=flipped)
    other = dataclasses.replace(events, type=np.roll(events.type, 1))
    users = {**dataset.users, "region": dataset.users["region"][::-1]}
    folded = dataclasses.replace(dataset.content, folds=(dataset.content, dataset.content))
    for part, changed in (
        ("labels", dataclasses.replace(dataset, impressions=relabelled)),
        ("histories", dataclasses.replace(dataset, events=other)),
        ("histories", dataclasses.replace(dataset, content=folded)),
        ("columns", dataclasses.replace(dataset, users=users)),
    ):
        with pytest.raises(TrainingError, match=rf"holds another run: data\.{part} differ"):
            train(tiny, changed, config, progress=False)


@pytest.mark.thorough
def test_train_resumed_with_other_weight_order_reaches_same_weights(
    dataset, tiny, short, tmp_path, monkeypatch
):
    straight = train(tiny, dataset, short, progress=False)
    config = short.replace(checkpoint_dir=str(tmp_path), checkpoint_interval=3)
    with pytest.raises(Crash):
        train(tiny, dataset, config, progress=False, on_step=crash_after(7))
    # As another release might order them: every vector of the run, parameters and moments, is laid out anew.
    monkeypatch.setattr(
        "aif_jax.training.parameters._kind", lambda name, axes: -axes if "bias" in name else axes
    )
    made = []
    resumed = train(tiny, dataset, config, progress=False, on_step=made.append)
    assert made == [*range(7, 13)]
    expected, found = weights(straight), weights(resumed)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_train_resumed_with_renamed_modules_raises_with_name(dataset, tiny, short, tmp_path, monkeypatch):
    config = short.replace(checkpoint_dir=str(tmp_path))
    train(tiny, dataset, config, progress=False)

    def renamed(tree):
        return {
            f"thing.{name[5:]}" if name.startswith("item.") else name: leaf
            for name, leaf in named_leaves(tree).items()
        }

    monkeypatch.setattr("aif_jax.training.parameters.named_leaves", renamed)
    with pytest.raises(TrainingError, match=r"arrays differ from this run's: best\.item\..* absent here"):
        train(tiny, dataset, config, progress=False)


def test_train_beats_floor_and_untrained_model(dataset, tiny, brief):
    result = train(tiny, dataset, brief.replace(epochs=6, learning_rate=1e-2), progress=False)
    floor = floors(dataset, "validation", heads=("ctr",))["item mean + user bias"]
    untrained = evaluate(Parameters(result.model).merge(_initial(result)), dataset, "validation")
    assert result.metrics.auc > floor.auc + 0.05
    assert result.metrics.auc > untrained.auc + 0.05
    assert result.metrics.log_loss < floor.log_loss


def _initial(result):
    return Parameters(build_model(result.model.config, result.schema, seed=0)).initial


def test_train_keeps_best_epoch_and_stops_after_patience(dataset, tiny, brief):
    # At this rate the model is soon worse than it was.
    config = brief.replace(epochs=12, learning_rate=0.1, patience=2, final_rate=1.0, seed=1)
    result = train(tiny, dataset, config, progress=False)
    gauc = [epoch.validation.gauc for epoch in result.history]
    assert len(gauc) < 12
    best = int(np.argmax(gauc))
    assert best == len(gauc) - 3, "two epochs without a better one"
    assert [e.number for e in result.history if e.best][-1] == best
    again = evaluate(result.model, dataset, "validation", group=8, batch_size=16)
    np.testing.assert_allclose(again.gauc, gauc[best], atol=1e-6)
    assert result.metrics.gauc == gauc[best]
    for epoch in result.history:
        assert Epoch.from_json(epoch.to_json()) == epoch


def with_broken_numeric(dataset):
    """The user feature `activity` comes out of its encoding as NaN, as a wrong mean would make it."""
    user = tuple(
        dataclasses.replace(f, mean=0.0, std=1.0) if isinstance(f, Numeric) else f
        for f in dataset.schema.user
    )
    for feature in user:
        if isinstance(feature, Numeric):
            object.__setattr__(feature, "mean", float("nan"))  # the constructor refuses it
    (broken,) = [f.name for f in user if isinstance(f, Numeric)]
    return dataclasses.replace(dataset, schema=dataclasses.replace(dataset.schema, user=user)), broken


@pytest.mark.parametrize(("fewest", "steps"), [(1, 5), (7, 7)])
def test_train_max_seconds_ends_with_the_step_that_passes_them(
    dataset, tiny, short, monkeypatch, fewest, steps
):
    now = [0.0]
    monkeypatch.setattr("aif_jax.training.loop.FEWEST_STEPS", fewest)
    monkeypatch.setattr("aif_jax.training.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def second_passes(_):
        now[0] += 1.0

    result = train(tiny, dataset, short.replace(max_seconds=3.5), progress=False, on_step=second_passes)
    assert (result.steps, result.ended) == (steps, "seconds")
    assert result.history[-1].step == steps
    assert result.metrics is not None
    whole = train(tiny, dataset, short.replace(max_seconds=99.0), progress=False, on_step=second_passes)
    assert (whole.steps, whole.ended) == (12, "epochs")


@pytest.mark.parametrize(
    ("known", "words"), [(1.0, "all {:,} known labels are 1"), (0.0, "no label is known")]
)
def test_train_validation_of_one_class_raises_before_first_step(dataset, tiny, brief, known, words):
    rows = dataset.impressions
    held = rows.split == VALIDATION
    one = dataclasses.replace(
        rows,
        labels={**rows.labels, "ctr": np.where(held, np.float32(1), rows.labels["ctr"])},
        label_mask={**rows.label_mask, "ctr": np.where(held, np.float32(known), rows.label_mask["ctr"])},
    )
    with pytest.raises(
        TrainingError, match=words.format(held.sum()) + " for head 'ctr', so its AUC would be NaN"
    ):
        train(tiny, dataclasses.replace(dataset, impressions=one), brief, progress=False)


def test_train_nan_feature_raises_with_name(dataset, tiny, short):
    broken, name = with_broken_numeric(dataset)
    with pytest.raises(
        TrainingError, match=rf"step 1 of .*not finite in the batch: input user\.{name} \(16 of 32"
    ):
        train(tiny, broken, short, progress=False)


def test_train_overflowing_learning_rate_raises_with_gradient(dataset, tiny, brief):
    with pytest.raises(
        TrainingError, match=r"step \d+ of .*gradient of .*largest weight is .*Lower learning_rate"
    ):
        train(tiny, dataset, brief.replace(learning_rate=1e30, warmup_steps=0), progress=False)


@pytest.mark.parametrize(
    ("architecture", "blocks"),
    [
        pytest.param("aif", ModelConfig().blocks, marks=pytest.mark.thorough),
        ("aif", ("long_attention",)),
        ("aif", ("encoder",)),
        pytest.param("exact", ("long_attention", "pair"), marks=pytest.mark.thorough),
        ("two_tower", ("profile_attention",)),
    ],
)
def test_train_lowers_loss_of_every_architecture(dataset, tiny, brief, architecture, blocks):
    config = tiny.replace(
        architecture=architecture,
        blocks=blocks,
        heads=("ctr", "like"),
        signature_bits=64,
        bridges=8,
        sim_slots=4,
        sim_width=8,
        value_width=8,
        tier_edges=(0.0, 0.5),
        encoder_layers=1,
        encoder_width=8,
    )
    settings = brief.replace(epochs=3, next_weight=float(config.has("encoder")), next_pool=20)
    result = train(config, dataset, settings, progress=False)
    assert result.history[-1].loss < result.history[0].loss
    assert set(result.metrics.heads) == {"ctr", "like"}


@pytest.fixture(scope="module")
def with_softmax(dataset, tiny, brief):
    """A two-tower model's config, settings with the in-batch softmax, and the result of training by them."""
    config, settings = tiny.replace(architecture="two_tower", blocks=()), brief.replace(max_steps=4)
    settings = settings.replace(softmax_weight=1.0)
    return config, settings, train(config, dataset, settings, progress=False)


@pytest.mark.thorough
def test_train_two_tower_softmax_weight_changes_loss_and_weights(dataset, with_softmax):
    config, settings, with_it = with_softmax
    without = train(config, dataset, settings.replace(softmax_weight=0.0), progress=False)
    assert with_it.history[0].loss > without.history[0].loss + 0.5, (
        "a softmax over 16 rows costs about log 16"
    )
    a, b = weights(with_it), weights(without)
    assert any((a[name] != b[name]).any() for name in a)


def test_train_softmax_with_item_feature_named_log_q_is_unaffected(dataset, with_softmax):
    config, settings, with_it = with_softmax
    (price,) = [feature.name for feature in dataset.schema.item if isinstance(feature, Numeric)]
    renamed = dataclasses.replace(
        dataset,
        items={"log_q" if column == price else column: values for column, values in dataset.items.items()},
        schema=dataclasses.replace(
            dataset.schema,
            item=tuple(
                dataclasses.replace(feature, name="log_q") if feature.name == price else feature
                for feature in dataset.schema.item
            ),
        ),
    )
    result = train(config, renamed, settings, progress=False)
    np.testing.assert_allclose(result.history[0].loss, with_it.history[0].loss, rtol=1e-5)


def test_train_counts_and_shows_values_left_out_by_encoding(dataset, tiny, brief, capsys):
    rows = dataset.impressions
    trained = np.flatnonzero(rows.split == TRAIN)
    context = {**rows.context, "hour": np.where(np.arange(len(rows)) == trained[0], 99, rows.context["hour"])}
    changed = dataclasses.replace(
        dataset,
        items={**dataset.items, "title": np.array(["?"] * dataset.n_items)},
        impressions=dataclasses.replace(rows, context=context),
        schema=dataclasses.replace(
            dataset.schema,
            item=tuple(
                dataclasses.replace(feature, max_values=1) if isinstance(feature, MultiValued) else feature
                for feature in dataset.schema.item
            ),
            context=(Categorical(name="hour", encoder=Vocabulary(values=tuple(range(24)))),),
        ),
    )
    result = train(tiny, changed, brief.replace(max_steps=1), progress=True)
    lengths = np.diff(dataset.items["tags"].offsets)
    dropped = sum(max(0, length - 1) for length in lengths)
    unseen = dataset.n_items - int(dataset.trained_items().sum())
    assert dropped > 0
    assert result.encoding["item"]["overflow"] == {"tags": dropped}
    assert result.encoding["item"]["ignored"] == {"title": 1}
    assert result.encoding["item"].get("unknown", {}).get("item_id", 0) == unseen
    assert result.encoding["context"]["unknown"] == {"hour": 1}
    assert result.encoding["context"]["ignored"] == {"device": 1}
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{dropped:,} values beyond max_values (item.tags {dropped:,})" in shown
    assert "2 columns that the schema does not name (context.device 1, item.title 1)" in shown
    assert "context.hour 1" in shown


@pytest.mark.parametrize(
    ("model", "training", "words"),
    [
        ({}, {"next_weight": 1.0}, "next_weight: got 1 for a model without the block 'encoder'"),
        ({"heads": ("buy",), "score": "buy"}, {}, r"heads.*not \['buy'\]"),
        ({}, {"head_weights": (1.0, 2.0)}, "head_weights: got 2 weights for the 1 heads"),
        ({}, {"softmax_weight": 1.0}, "trains 'two_tower' only"),
        ({}, {"negatives": 2}, "none of the pair features"),
    ],
)
def test_train_contradictory_configs_raise(dataset, tiny, brief, model, training, words):
    with pytest.raises(ConfigError, match=words):
        train(tiny.replace(**{"score": "ctr", **model}), dataset, brief.replace(**training), progress=False)


def test_train_with_teacher_approaches_its_logits(dataset, tiny, brief, tmp_path):
    part = dataset.impressions.split == 0
    assert dataset.impressions.labels["ctr"][part].mean() < 0.45
    wanted = np.full((len(part), 1), 3.0, np.float32)  # sure that everything is clicked
    config = brief.replace(learning_rate=2e-2, distillation_weight=9.0, checkpoint_dir=str(tmp_path))
    taught = train(tiny, dataset, config, teacher=wanted, progress=False)
    assert predict(taught.model, dataset, "train")[part].mean() > 1.0
    with pytest.raises(TrainingError, match=r"training\.teacher"):
        train(tiny, dataset, config, teacher=wanted + 1, progress=False)


def test_train_teacher_without_weight_or_reverse_raises(dataset, tiny, brief):
    some = np.zeros((len(dataset.impressions), 1), np.float32)
    weighted = brief.replace(distillation_list_weight=1.0)
    for config, teacher in ((weighted, None), (brief, some)):
        with pytest.raises(ConfigError, match="or neither"):
            train(tiny, dataset, config, teacher=teacher, progress=False)
    with pytest.raises(ConfigError, match="one for every impression and head"):
        train(tiny, dataset, weighted, teacher=some[1:], progress=False)
    with pytest.raises(ConfigError, match="no logit is finite"):
        train(tiny, dataset, weighted, teacher=some * np.nan, progress=False)
    with pytest.raises(ConfigError, match="distillation_weight: got -1"):
        TrainConfig(distillation_weight=-1)
