"""`choose`: settings from data, on logs that are made here."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from aif_jax.config import BLOCKS
from aif_jax.data import TRAIN, VALIDATION, Dataset, by_time
from aif_jax.errors import ConfigError, DataError
from aif_jax.models import build_model
from aif_jax.training.choosing import COMPILING_S, FEWEST_STEPS, Choice, choose
from aif_jax.training.feed import TrainingBatches
from aif_jax.training.two_tower import apart
from support.tables import shop, shown


def log(rows: int = 4_000, users: int = 60, **changes: Any) -> Dataset:
    """Return a log of events without features, whose users did ``rows / users`` things each."""
    events = shop(rows, users=users)["events"]
    named = {"user": "who", "item": "what", "time": "when", "type": "kind", "content_width": 8}
    return Dataset.from_events(events, **{**named, **changes})


def reason(choice: Choice, about: str) -> str:
    (found,) = (text for text in choice.reasons if text.startswith(about))
    return found


@pytest.fixture(scope="module")
def data() -> Dataset:
    return log()


@pytest.fixture(scope="module")
def chosen(data: Dataset) -> Choice:
    return choose(data)


def test_choose_lengths_follow_histories(data: Dataset, chosen: Choice) -> None:
    rows = data.impressions
    first = rows.real(TRAIN)
    lengths = rows.history_end[first] - data.events.offsets[rows.user[first]]
    model = chosen.model
    assert model.short_length // 2 < np.quantile(lengths, 0.5) <= model.short_length
    assert model.long_length // 2 < np.quantile(lengths, 0.95) <= model.long_length
    brief = choose(log(users=1_200)).model
    assert (brief.short_length, brief.long_length) == (8, 16)
    endless = choose(log(rows=9_000, users=3, labels={"order": ["buy"]})).model
    assert (endless.short_length, endless.long_length) == (64, 1024)


def test_choose_requests_of_sampled_negatives_are_whole(chosen: Choice) -> None:
    assert 5 <= chosen.training.group <= 10  # rows of one user at one hour, each with four sampled ones
    assert "rows in the mean" in reason(chosen, "group ")


def test_choose_large_requests_are_split() -> None:
    events = shop(3_000)["events"]
    impressions = {**shown(3_000), "request": np.zeros(3_000, int)}
    del impressions["bid"], impressions["place"]
    data = Dataset.from_impressions(
        impressions | {"request": impressions["who"]},
        user="who", item="what", time="when", label="click", request="request", events=events, type="kind",
        content_width=0,
    )  # fmt: skip
    assert choose(data).training.group == 32


def test_choose_few_rows_make_small_steps_and_more_epochs() -> None:
    small, large = choose(log(400)).training, choose(log(40_000, users=2_000, negatives=8)).training
    assert small.batch_size == 16 < large.batch_size
    assert small.epochs == 5 >= large.epochs


def test_choose_without_content_leaves_its_blocks_out(chosen: Choice) -> None:
    assert chosen.model.content_width == 8
    assert chosen.model.blocks == BLOCKS
    without = choose(log(content_width=0))
    assert set(BLOCKS) - set(without.model.blocks) == {"long_attention", "simtier"}
    assert "no item has a content embedding" in reason(without, "no long_attention")


def test_choose_without_category_says_so(chosen: Choice) -> None:
    assert "no category" in reason(chosen, "no sim_hard")
    items = shop()["items"]
    assert not [text for text in choose(log(items=items)).reasons if text.startswith("no sim_hard")]


def test_choose_hides_as_many_ids_as_validation_lacks(chosen: Choice) -> None:
    assert chosen.model.item_id_dropout == 0.05
    events = shop(6_000)["events"]
    late = events["when"] > np.quantile(events["when"], 0.85)
    renamed = late & (np.random.default_rng(0).random(6_000) < 0.4)
    new = {**events, "what": events["what"] + 1_000 * renamed}
    data = Dataset.from_events(
        new, user="who", item="what", time="when", type="kind", content_width=0, split=by_time(0.1, 0.05)
    )
    choice = choose(data)
    known = data.training_counts() >= 3
    rows = data.impressions
    now, later = ((~known)[rows.item[rows.split == part]].mean() for part in (TRAIN, VALIDATION))
    assert later > now + 0.1
    dropout = choice.model.item_id_dropout
    assert now + (1 - now) * dropout == pytest.approx(later, abs=0.01) or dropout == 0.3
    assert f"of {later:.0%} of the validation" in reason(choice, "item_id_dropout")


def test_choose_reads_statistics_where_items_have_an_id(data: Dataset, chosen: Choice) -> None:
    assert chosen.model.item_statistics
    counts = data.training_counts()
    assert f"{np.median(counts[counts > 0]):,.0f} rows in the median" in reason(chosen, "item_statistics")
    schema = dataclasses.replace(data.schema, item_id=None)
    assert not choose(dataclasses.replace(data, schema=schema)).model.item_statistics


def test_choose_takes_all_labels_the_first_as_score() -> None:
    choice = choose(log(labels={"click": "any", "order": ["cart", "buy"]}))
    assert (choice.model.heads, choice.model.score) == (("click", "order"), "click")
    assert "click, order" in reason(choice, "heads ")


def test_choose_twice_gives_the_same(data: Dataset, chosen: Choice) -> None:
    assert choose(data) == chosen == choose(log())


def test_choose_budget_shares_histories_then_bounds_epochs_then_steps(data: Dataset, chosen: Choice) -> None:
    most, tight = chosen.training.epochs, choose(data, 1e-3)
    assert choose(data, 1e6).training == chosen.training
    assert chosen.training.visit == 1
    assert tight.training.max_steps == FEWEST_STEPS
    shared, an_epoch = tight.training.replace(max_steps=0), _seconds_of(tight)
    compiling = COMPILING_S * (1 + len(shared.long_buckets))
    for epochs in range(1, most):
        found = choose(data, compiling + (epochs + 0.5) * an_epoch)
        assert found.training == shared.replace(epochs=epochs)
        assert reason(found, f"epochs {epochs}, not {most}")
        assert "share that of the first" in reason(found, f"visit {shared.visit}")
    most_of_one = choose(data, compiling + 0.9 * an_epoch).training
    requests = data.requests(TRAIN, shared.group, shared.visit)
    assert len(requests) < 0.6 * len(data.requests(TRAIN, shared.group))
    assert most_of_one.epochs == 1
    assert most_of_one.max_steps == pytest.approx(0.9 * len(requests) / shared.batch_size, rel=0.05)


def test_two_tower_takes_requests_apart_as_many_rows_a_step(data: Dataset) -> None:
    shared = choose(data, 1e-3).training.replace(batch_size=100)
    found = apart(data, shared)
    together, alone = (len(data.requests(TRAIN, shared.group, visit)) for visit in (shared.visit, 0))
    assert found.visit == 0
    assert found.batch_size == round(100 * alone / together) > 120
    assert apart(data, found) == found


def test_choose_lengths_of_long_sequences_by_what_they_spare() -> None:
    (few, many) = (choose(log(rows=rows, users=rows // 400)).training for rows in (4_000, 60_000))
    assert few.long_buckets == ()
    assert many.long_buckets


def _seconds_of(choice: Choice) -> float:
    """Return the estimate of an epoch from what the reason says."""
    (words,) = (text.split() for text in choice.reasons if "one core is estimated" in text)
    return float(words[words.index("take") + 1].replace(",", ""))


def test_choose_settings_build_a_model_and_batches(data: Dataset, chosen: Choice) -> None:
    schema = data.fit_schema()
    build_model(chosen.model, schema)
    batches = TrainingBatches(data, schema, chosen.model, chosen.training)
    assert batches[0]["item"].shape == (chosen.training.batch_size, chosen.training.group)


@pytest.mark.parametrize("budget", [0, -3.0, math.nan, "10m"])
def test_choose_budget_that_is_no_time_raises(data: Dataset, budget: Any) -> None:
    with pytest.raises(ConfigError, match="budget_s: got"):
        choose(data, budget)


def test_choose_without_training_part_raises(data: Dataset) -> None:
    rows = dataclasses.replace(data.impressions, split=np.full(len(data.impressions), VALIDATION, np.int8))
    with pytest.raises(DataError, match="training part is empty"):
        choose(dataclasses.replace(data, impressions=rows))
