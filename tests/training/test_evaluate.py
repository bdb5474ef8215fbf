import dataclasses

import numpy as np
import pytest
from scipy import special

from aif_jax.data import TEST, TRAIN, VALIDATION
from aif_jax.errors import DataError, TrainingError
from aif_jax.features import MultiValued, Ragged
from aif_jax.models import build_model
from aif_jax.training import metrics
from aif_jax.training.candidates import candidate_lists
from aif_jax.training.evaluate import Evaluator, Metrics, device_catalogue, evaluate, predict
from aif_jax.training.feed import for_device
from aif_jax.training.floors import floor_scores, floors


@pytest.fixture(scope="module")
def model(dataset, tiny):
    return build_model(tiny, dataset.fit_schema(), seed=3)


def test_predictions_stand_at_their_impressions_whatever_the_batches(dataset, model):
    logits = predict(model, dataset, "validation", group=8, batch_size=16)
    part = dataset.impressions.split == VALIDATION
    assert logits.shape == (len(dataset.impressions), 1)
    assert np.isfinite(logits[part]).all()
    assert np.isnan(logits[~part]).all()

    evaluator = Evaluator(dataset, model, "validation", group=8, batch_size=16)
    batch = evaluator._batcher.source.batch(np.array([3]), 1)
    alone = np.asarray(model(for_device(batch), device_catalogue(dataset, model), train=False))
    real = batch["impression"] >= 0
    np.testing.assert_allclose(logits[batch["impression"][real]], alone[real], atol=1e-5)


def test_metrics_are_those_of_the_predictions(dataset, model):
    rows = dataset.impressions
    lists = candidate_lists(dataset, "test", "ctr", lists=40, unseen=29)
    found = evaluate(model, dataset, "test", lists=lists, group=8, batch_size=16)
    part = rows.split == TEST
    logits = predict(model, dataset, "test", group=8, batch_size=16)[part, 0]
    labels = rows.labels["ctr"][part]
    assert found.auc == metrics.auc(labels, logits)
    assert found.gauc == metrics.gauc(rows.user[part], labels, logits)
    assert found.log_loss == metrics.log_loss(labels, logits)
    assert found.main.impressions == part.sum()
    assert found.hit_lists == 40
    assert 0.0 <= found.hit_rate[10] <= found.hit_rate[50] == 1.0, (
        "a list of 30 has every item in the first 50"
    )
    assert Metrics.from_json(found.to_json()) == found


def test_scores_of_lists_do_not_depend_on_the_buckets_of_histories(dataset, tiny):
    config = tiny.replace(
        architecture="aif",
        blocks=("long_attention", "simtier", "context"),
        long_length=500,
        signature_bits=64,
    )
    seeing = build_model(config, dataset.fit_schema(), seed=3)
    lists = candidate_lists(dataset, "test", "ctr", lists=40, unseen=9)
    lengths = lists.history_lengths(dataset)
    assert all(((lengths > low) & (lengths <= high)).any() for low, high in ((0, 80), (80, 110), (110, 500)))
    one, three = (
        Evaluator(dataset, seeing, "test", buckets=buckets).score_lists(seeing, lists, batch_size=8)
        for buckets in ((), (80, 110, 500))
    )
    np.testing.assert_allclose(one, three, atol=1e-5)
    assert (one.std(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("ctr", lambda logits: logits[..., 0]),
        ("ctr * exp(logit_like)", lambda logits: np.exp(logits[..., 1]) / (1 + np.exp(-logits[..., 0]))),
        ("like * retrieval_score", lambda logits: logits[..., 0]),
    ],
)
def test_lists_are_ordered_as_an_engine_would(dataset, tiny, score, expected):
    config = tiny.replace(heads=("ctr", "like"), score=score)
    model = build_model(config, dataset.fit_schema(), seed=3)
    lists = candidate_lists(dataset, "test", "ctr", lists=20, unseen=9)
    evaluator = Evaluator(dataset, model, "test")
    heads = {head: build_model(config.replace(score=head), model.schema, seed=3) for head in config.heads}
    logits = np.stack(
        [
            evaluator.score_lists(heads["ctr"], lists),
            special.logit(evaluator.score_lists(heads["like"], lists).astype(np.float64)),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(evaluator.score_lists(model, lists), expected(logits), rtol=1e-4)
    main = evaluator.score_lists(model, lists, main_head=True)
    np.testing.assert_array_equal(main, logits[..., 0])


def test_a_model_that_gives_nan_is_an_error(dataset, model):
    broken = build_model(model.config, model.schema, seed=3)
    kernel = broken.item.mlp.layer_0.kernel
    kernel[...] = kernel[...].at[0, 0].set(np.nan)
    with pytest.raises(TrainingError, match="600 of 600 impressions of split 'validation'"):
        predict(broken, dataset, "validation", group=8, batch_size=16)


def test_an_unknown_part_is_refused(dataset, model):
    with pytest.raises(DataError, match="split: got 'dev'"):
        predict(model, dataset, "dev")


def test_lists_hold_one_positive_and_items_that_the_user_never_saw(dataset):
    rows = dataset.impressions
    lists = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1)
    assert len(lists) == 50
    assert (rows.split[lists.rows] == TEST).all()
    assert (rows.labels["ctr"][lists.rows] == 1).all()
    for row, items in zip(lists.rows, lists.items, strict=True):
        user = rows.user[row]
        start, end = dataset.events.offsets[user : user + 2]
        seen = set(dataset.events.item[start:end]) | set(rows.item[rows.user == user])
        others = items[1:][items[1:] >= 0]
        assert items[0] == rows.item[row]
        assert not seen & set(others.tolist())
        assert len(set(others.tolist())) == others.size >= 38
    again = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1)
    np.testing.assert_array_equal(lists.items, again.items)
    other = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=2)
    assert (lists.items != other.items).any()


def test_lists_of_whole_requests_hold_all_that_was_shown_and_none_of_it_in_the_history(dataset):
    rows = dataset.impressions
    lists = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1, whole_requests=True)
    width = lists.items.shape[1] - 40
    assert len(np.unique(rows.request[lists.rows])) == len(lists) == 50
    for row, items, positives in zip(lists.rows, lists.items, lists.positives, strict=True):
        mine = np.flatnonzero(rows.request == rows.request[row])
        assert (rows.split[mine] == TEST).all()
        assert rows.history_end[row] == rows.history_end[mine].min()
        liked = set(rows.item[mine][rows.labels["ctr"][mine] > 0].tolist())
        assert sorted(items[:width][items[:width] >= 0]) == sorted(set(rows.item[mine].tolist()))
        assert sorted(items[positives]) == sorted(liked)
        assert liked
        user = rows.user[row]
        start, end = dataset.events.offsets[user : user + 2]
        seen = set(dataset.events.item[start:end]) | set(rows.item[rows.user == user])
        others = items[width:][items[width:] >= 0]
        assert not seen & set(others.tolist())
        assert len(set(others.tolist())) == others.size >= 38
    again = candidate_lists(dataset, "test", "ctr", lists=50, unseen=40, seed=1, whole_requests=True)
    np.testing.assert_array_equal(lists.items, again.items)


def test_an_item_shown_twice_in_a_request_is_one_candidate_liked_if_it_was_once(dataset):
    rows = dataset.impressions
    mine = np.flatnonzero(rows.request == rows.request[np.flatnonzero(rows.split == TEST)[0]])
    item, label = rows.item.copy(), rows.labels["ctr"].copy()
    item[mine[:3]], label[mine] = item[mine[0]], 0.0
    label[mine[1]] = 1.0
    repeated = dataclasses.replace(rows, item=item, labels={**rows.labels, "ctr": label})
    changed = dataclasses.replace(dataset, impressions=repeated)
    lists = candidate_lists(changed, "test", "ctr", lists=10_000, unseen=5, whole_requests=True)
    place = np.flatnonzero(rows.request[lists.rows] == rows.request[mine[0]]).item()
    assert (lists.items[place] == item[mine[0]]).sum() == 1
    assert lists.items[place][lists.positives[place]].tolist() == [item[mine[0]]]


def test_half_of_the_unseen_items_follow_popularity(dataset):
    rows = dataset.impressions
    shown = np.bincount(rows.item[rows.split == TRAIN], minlength=dataset.n_items)
    items = candidate_lists(dataset, "test", "ctr", lists=200, unseen=20).items
    popular, uniform = shown[items[:, 2::2]].mean(), shown[items[:, 1::2]].mean()
    assert popular > 1.5 * uniform


def test_lists_that_cannot_be_filled_are_padded(dataset):
    lists = candidate_lists(dataset, "test", "ctr", lists=5, unseen=dataset.n_items)
    assert (lists.items[:, 0] >= 0).all()
    assert (lists.items == -1).any()


def test_floors_equal_their_formulas(dataset):
    rows = dataset.impressions
    scores = floor_scores(dataset, "like", smoothing=4.0)
    train = (rows.split == TRAIN) & (rows.label_mask["like"] > 0)
    rate = rows.labels["like"][train].mean()

    def item_mean(item):
        mine = train & (rows.item == item)
        return (rows.labels["like"][mine].sum() + 4.0 * rate) / (mine.sum() + 4.0)

    for row in np.flatnonzero(rows.split == TEST)[:5]:
        expected = item_mean(rows.item[row])
        np.testing.assert_allclose(scores["item mean"][row], expected, rtol=1e-6)
        theirs = np.flatnonzero(train & (rows.user == rows.user[row]))
        residual = sum(rows.labels["like"][i] - item_mean(rows.item[i]) for i in theirs)
        bias = residual / (len(theirs) + 4.0)
        np.testing.assert_allclose(
            scores["item mean + user bias"][row], np.clip(expected + bias, 1e-4, 1 - 1e-4), rtol=1e-6
        )
        category = dataset.items["category"]
        alike = theirs[category[rows.item[theirs]] == category[rows.item[row]]]
        taste = sum(rows.labels["like"][i] - item_mean(rows.item[i]) for i in alike) / (len(alike) + 4.0)
        np.testing.assert_allclose(
            scores["item mean + taste"][row], np.clip(expected + taste, 1e-4, 1 - 1e-4), rtol=1e-6
        )


def test_taste_is_the_mean_over_the_categories_of_an_item(dataset):
    """Of items with several categories each counts alike, and one that the user never met counts as zero."""
    rows, n = dataset.impressions, dataset.n_items
    several = Ragged(np.tile(np.array(["a", "b", "c"]), n)[: 2 * n], np.arange(n + 1) * 2)
    schema = dataset.schema
    item = tuple(
        f if f.name != "category" else MultiValued(name="category", max_values=2) for f in schema.item
    )
    changed = dataclasses.replace(
        dataset,
        items={**dataset.items, "category": several},
        schema=dataclasses.replace(schema, item=item),
    )
    scores = floor_scores(changed, "ctr", smoothing=2.0)
    train = rows.split == TRAIN
    words = [set(several.values[2 * i : 2 * i + 2]) for i in range(n)]
    means = np.array([
        (rows.labels["ctr"][mine := train & (rows.item == i)].sum() + 2.0 * rows.labels["ctr"][train].mean())
        / (mine.sum() + 2.0)
        for i in range(n)
    ])  # fmt: skip
    for row in np.flatnonzero(rows.split == TEST)[:5]:
        theirs = np.flatnonzero(train & (rows.user == rows.user[row]))
        found = []
        for word in words[rows.item[row]]:
            alike = [i for i in theirs if word in words[rows.item[i]]]
            found.append(sum(rows.labels["ctr"][i] - means[rows.item[i]] for i in alike) / (len(alike) + 2.0))
        expected = np.clip(means[rows.item[row]] + np.mean(found), 1e-4, 1 - 1e-4)
        np.testing.assert_allclose(scores["item mean + taste"][row], expected, rtol=1e-6)


def test_without_categories_there_is_no_floor_of_taste(dataset):
    changed = dataclasses.replace(dataset, schema=dataclasses.replace(dataset.schema, category=None))
    assert list(floor_scores(changed, "ctr")) == ["item mean", "item mean + user bias"]


@pytest.mark.parametrize(
    ("value", "known", "words"),
    [
        (0.0, 1.0, "all {:,} known training labels of head 'ctr' are 0"),
        (1.0, 1.0, "all {:,} known training labels of head 'ctr' are 1"),
        (0.0, 0.0, "no training label of head 'ctr' is known"),
    ],
)
def test_floors_of_labels_of_one_class_are_refused(dataset, value, known, words):
    rows = dataset.impressions
    train = rows.split == TRAIN
    one = dataclasses.replace(
        rows,
        labels={"ctr": np.where(train, np.float32(value), rows.labels["ctr"])},
        label_mask={"ctr": np.where(train, np.float32(known), rows.label_mask["ctr"])},
    )
    with pytest.raises(DataError, match=words.format(train.sum()) + ", expected some of 0 and some of 1"):
        floors(dataclasses.replace(dataset, impressions=one))


def test_floors_are_measured_on_the_part_that_is_asked_for(dataset):
    found = floors(dataset, "validation", heads=("ctr",))
    part = dataset.impressions.split == VALIDATION
    score = floor_scores(dataset, "ctr")["item mean"][part]
    assert found["item mean"].auc == metrics.auc(
        dataset.impressions.labels["ctr"][part], np.log(score) - np.log1p(-score)
    )
    assert set(found["item mean"].heads) == {"ctr"}
    np.testing.assert_allclose(
        found["item mean"].gauc,
        found["item mean + user bias"].gauc,
        atol=0.01,
        err_msg="a bias of the user cannot reorder the user's own rows, but for the clipping",
    )
