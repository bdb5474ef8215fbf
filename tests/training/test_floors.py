import dataclasses

import numpy as np
import pytest

from aif_jax.data import TEST, TRAIN, VALIDATION
from aif_jax.errors import DataError
from aif_jax.features import MultiValued, Ragged
from aif_jax.training import metrics
from aif_jax.training.floors import LabelCounts, floor_scores, floors


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


def test_floor_of_taste_is_the_mean_over_the_categories_of_an_item(dataset):
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


def test_floor_of_recent_categories_is_its_formula(dataset):
    rows, events, category = dataset.impressions, dataset.events, dataset.items["category"]
    scores = floor_scores(dataset, "ctr", smoothing=3.0)
    done = category[events.item[events.training]]
    for row in np.flatnonzero(rows.split == TEST)[::40]:
        wanted, end = category[rows.item[row]], rows.history_end[row]
        past = events.item[max(events.offsets[rows.user[row]], end - 20) : end]
        usual = np.mean(done == wanted)
        lift = (np.sum(category[past] == wanted) + 3.0 * usual) / (len(past) + 3.0) / usual
        mean = scores["item mean"][row]
        odds = mean / (1 - mean) * lift
        np.testing.assert_allclose(scores["item mean + recent categories"][row], odds / (1 + odds), rtol=1e-6)


def test_floors_without_categories_have_no_taste(dataset):
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


def test_scores_of_pairs_are_those_of_their_impressions(dataset):
    rows = dataset.impressions
    counts = LabelCounts(dataset, "ctr", smoothing=3.0)
    some = np.flatnonzero(rows.split == TEST)[::7]
    found = counts.scores(rows.user[some], rows.item[some], rows.history_end[some])
    for name, whole in floor_scores(dataset, "ctr", smoothing=3.0).items():
        np.testing.assert_array_equal(found[name], whole[some])
    train = rows.split == TRAIN
    assert counts.rate == rows.labels["ctr"][train & (rows.label_mask["ctr"] > 0)].mean(dtype=np.float64)
    assert counts.shown.sum() == train.sum()


def test_floors_are_measured_on_the_given_part(dataset):
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
