"""Findings: each measured cause is named where the data has it, and only there."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from aif_jax.data import SPLITS, Dataset
from aif_jax.evaluation import Estimate, Evaluation
from aif_jax.fitting import Run
from aif_jax.fitting.findings import findings
from aif_jax.models import build_model
from aif_jax.training import Evaluator, predict
from aif_jax.training.metrics import gauc


def compared(evaluation: Evaluation, gap: float, error: float) -> Evaluation:
    """Return an evaluation whose model lies ``gap`` above each reference, with that error."""
    given = Estimate(gap, error, gap - 2 * error, gap + 2 * error)
    heads = {
        name: dataclasses.replace(
            head,
            references={
                key: dataclasses.replace(each, difference=dict.fromkeys(each.difference, given))
                for key, each in head.references.items()
            },
        )
        for name, head in evaluation.heads.items()
    }
    return dataclasses.replace(evaluation, heads=heads)


def text(run: Run, data: Dataset, *, gap: float = -0.01, error: float = 0.001, **changes: Any) -> str:
    """Return the findings on a run whose model lies so far from everything."""
    results = {**run.results, "aif": dataclasses.replace(run.results["aif"], **changes)}
    return "\n".join(findings(data, compared(run.evaluations["test"], gap, error), results))


def curve(run: Run, values: list[float], losses: list[float]) -> dict[str, Any]:
    """Return a history whose validation GAUC and training loss take these values."""
    first = run.results["aif"].history[0]
    assert first.validation is not None
    history = []
    for number, (value, loss) in enumerate(zip(values, losses, strict=True)):
        heads = {name: dataclasses.replace(h, gauc=value) for name, h in first.validation.heads.items()}
        validation = dataclasses.replace(first.validation, heads=heads)
        best = value == max(values[: number + 1])
        history.append(dataclasses.replace(first, number=number, validation=validation, loss=loss, best=best))
    return {"history": tuple(history)}


@pytest.mark.thorough
def test_findings_above_everything_are_one_sentence(run: Run, data: Dataset) -> None:
    found = findings(data, compared(run.evaluations["test"], 0.01, 0.004), run.results)
    assert found == ("aif is above cold and every floor in AUC and GAUC, by more than 2 errors",)


def test_findings_below_name_the_reference_and_the_gap(run: Run, data: Dataset) -> None:
    found = text(run, data)
    assert "aif is below" in found
    assert "cold is below" in found, "at least one floor is above both"
    assert "cold (AUC -0.0100 ± 0.0010, GAUC -0.0100 ± 0.0010)" in found
    assert "cannot be told" not in found


def test_findings_within_the_error_say_how_small_a_difference_the_part_tells(run: Run, data: Dataset) -> None:
    found = text(run, data, gap=0.01, error=0.006)
    head = run.evaluations["test"].heads["click"]
    assert "aif cannot be told from" in found
    assert f"{head.users_with_both:,} of the {head.users:,} users" in found
    assert "tell no difference under 0.0120" in found
    assert "tell no difference" not in text(run, data)


def test_findings_of_the_curve_tell_rising_from_overfitting(run: Run, data: Dataset) -> None:
    rising = text(run, data, **curve(run, [0.6, 0.65, 0.67], [0.6, 0.5, 0.4]))
    assert "still rising in the last of 3 epochs, 0.6500 to 0.6700" in rising
    assert "overfits" not in rising
    falling = text(run, data, **curve(run, [0.6, 0.65, 0.61], [0.6, 0.5, 0.4]))
    assert "overfits: after epoch 2 of 3 validation fell from 0.6500 to 0.6100" in falling
    assert "from 0.5000 to 0.4000" in falling
    assert "rising" not in falling
    assert "ended by its time in epoch" in text(run, data, ended="seconds")


def test_findings_on_histories_count_what_only_the_long_sequence_reads(run: Run, data: Dataset) -> None:
    rows, long = data.impressions, text(run, data)
    assert "the long sequence adds nothing" not in long, "most histories are longer than 4"
    assert "by length of the history, GAUC minus that of cold is" in long
    starts = data.events.offsets[rows.user]
    ends = np.minimum(rows.history_end, starts + 2)
    short = dataclasses.replace(data, impressions=dataclasses.replace(rows, history_end=ends))
    found = text(run, short)
    assert "0% of the impressions have more than the 4 behaviours" in found
    assert "median 2" in found


def test_findings_on_amounts_count_positives_and_weights(run: Run, data: Dataset) -> None:
    rows = data.impressions
    positives = int(rows.labels["click"][rows.split == SPLITS["train"]].sum())
    weights = run.results["aif"].parameters
    named = f"weights of aif learn from {positives:,} training positives: take a longer log"
    assert f"{weights:,} {named}\n" in text(run, data)
    assert f"9,999 {named}, or a narrower model" in text(run, data, parameters=9_999)


def test_findings_on_unknown_items_and_users_measure_their_share(run: Run, data: Dataset) -> None:
    assert "items that training has not seen" not in text(run, data)
    rows, split = data.impressions, data.impressions.split
    trained, tested = split == SPLITS["train"], split == SPLITS["test"]
    # Training has the first half of the items alone, and the users of odd rows.
    item = np.where(trained, rows.item % 60, rows.item).astype(np.int32)
    left = np.where(trained & (rows.user % 2 == 0), SPLITS["validation"], split).astype(np.int8)
    past = np.where(data.events.training, data.events.item % 60, data.events.item).astype(np.int32)
    found = text(
        run,
        dataclasses.replace(
            data,
            impressions=dataclasses.replace(rows, item=item, split=left),
            events=dataclasses.replace(data.events, item=past),
        ),
    )
    items, users = np.mean(rows.item[tested] >= 60), np.mean(rows.user[tested] % 2 == 0)
    assert f"{items:.0%} of the impressions are of items that training has not seen" in found
    assert f"{users:.0%} of the impressions are of users without a training impression" in found


def test_findings_on_missing_inputs_name_content_and_category(run: Run, data: Dataset) -> None:
    bare = dataclasses.replace(data, content=None, schema=dataclasses.replace(data.schema, category=None))
    found = text(run, bare)
    assert "items have no content embeddings" in found
    assert "no item feature is the category" in found
    assert "content embeddings" not in text(run, data)
    assert "switched off: bridge, simtier, sim_hard\n" in text(run, data), (
        "and not the encoder, which has no layers"
    )


def test_findings_on_blocks_measure_the_loss_without_each(run: Run, data: Dataset) -> None:
    model, rows = run.model, data.impressions
    part = rows.split == SPLITS["test"]
    evaluator = Evaluator(data, model, "test")

    def quality(logits: np.ndarray) -> float:
        return gauc(rows.user[part], rows.labels["click"][part], logits[part, 0])

    whole = quality(predict(model, data))
    added = {b.name: whole - quality(evaluator.predict(model, without=b.name)) for b in model.blocks}
    assert len(set(added.values())) == len(added), "every block changes something"
    found = text(run, data)
    named = {name for name in added if f"{name} {added[name]:+.4f}" in found}
    assert named == set(added) or named == {name for name, value in added.items() if value < 5e-4}


def test_findings_on_blocks_are_left_out_without_block_dropout(run: Run, data: Dataset) -> None:
    assert "add nothing" in text(run, data) or "each block adds" in text(run, data)
    never_without = build_model(run.model.config.replace(block_dropout=0.0), run.schema)
    found = text(run, data, model=never_without)
    assert "add nothing" not in found
    assert "each block adds" not in found
