"""The verdict on a fitted model; where it is not above all else, the measured causes, and what to change."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from aif_jax.config import LONG_BLOCKS, ModelConfig
from aif_jax.data import TRAIN, Dataset
from aif_jax.data.facts import known_users
from aif_jax.evaluation import Estimate, Evaluation, HeadEvaluation
from aif_jax.evaluation.blocks import worth_of_blocks
from aif_jax.evaluation.evaluation import CHANCE, labelled
from aif_jax.models.aif import Aif
from aif_jax.training import Epoch, TrainResult

_COMPARED = ("auc", "gauc")
_ERRORS = 2.0
"""Standard errors within which a difference says nothing."""
_FEW_POSITIVES = 20_000
_MANY_UNKNOWN = 0.1
_SHORT = 0.5
"""Share of impressions with a history beyond the short sequence, under which the long one is little use."""
_NOTHING = 5e-4
"""Loss of GAUC or AUC without a block under which the block adds nothing."""


def findings(data: Dataset, evaluation: Evaluation, results: Mapping[str, TrainResult]) -> tuple[str, ...]:
    """Return the verdict and, if the model is not above everything by more than the error, the causes.

    Args:
        data: that was trained and measured on.
        evaluation: of the model against the baselines.
        results: of training, the model's last.
    """
    head_name, head = next(iter(evaluation.heads.items()))
    name, result = list(results.items())[-1]
    short = {
        (metric, key): gap
        for metric in _COMPARED
        for key, each in head.references.items()
        if (gap := each.difference.get(metric)) is not None and not _above(gap)
    }
    others = ", ".join(evaluation.against) or "no other model"
    if not short:
        return (f"{name} is above {others} and every floor in AUC and GAUC, by more than {_ERRORS:g} errors",)
    part = evaluation.data["split"]
    return (
        *_verdict(name, short),
        *_noise(head, short),
        *_below_floor(evaluation, head, short),
        *_ending(name, result),
        *_histories(data, part, head_name, head, evaluation, result),
        *_amount(data, head_name, name, result),
        *_unknown(data, part, head_name),
        *_missing_inputs(data, result.model.config),
        *_blocks(data, part, head_name, result),
    )


def _above(gap: Estimate) -> bool:
    error = gap.standard_error if math.isfinite(gap.standard_error) else 0.0
    return gap.value > _ERRORS * error or not math.isfinite(gap.value)


def _verdict(name: str, short: Mapping[tuple[str, str], Estimate]) -> Iterator[str]:
    for words, below in (("is below", True), ("cannot be told from", False)):
        found: dict[str, list[str]] = {}
        for (metric, key), gap in short.items():
            if (gap.value < -_ERRORS * gap.standard_error) == below:
                found.setdefault(key, []).append(f"{metric.upper()} {_signed(gap)}")
        if found:
            each = [
                f"{'chance' if key == CHANCE else key} ({', '.join(gaps)})" for key, gaps in found.items()
            ]
            yield f"{name} {words} " + "; ".join(each)


def _noise(head: HeadEvaluation, short: Mapping[tuple[str, str], Estimate]) -> Iterator[str]:
    unsure = [gap for gap in short.values() if gap.value >= -_ERRORS * gap.standard_error]
    if unsure:
        least = _ERRORS * max(gap.standard_error for gap in unsure)
        yield (
            f"{head.users_with_both:,} of the {head.users:,} users have a positive and a negative: they tell "
            f"no difference under {least:.4f}; hold out more rows, such as split=by_time(test='7d')"
        )


def _below_floor(
    evaluation: Evaluation, head: HeadEvaluation, short: Mapping[tuple[str, str], Estimate]
) -> Iterator[str]:
    """Say which other models the floors beat too."""
    floors = {key: head.references[key] for _, key in short if head.references[key].kind == "floor"}
    for other in evaluation.against:
        mine = head.references[other].metrics
        above = [
            key for key, each in floors.items()
            if any(each.metrics[metric].value > mine[metric].value for metric in _COMPARED)
        ]  # fmt: skip
        if above:
            yield f"{other} is below {', '.join(above)} too, so the cause is one that both models share"


def _ending(name: str, result: TrainResult) -> Iterator[str]:
    """Read the curve of the epochs."""
    epochs = [epoch for epoch in result.history if epoch.validation is not None]
    if result.ended == "seconds":
        yield (
            f"{name} was ended by its time in epoch {result.history[-1].number + 1}, after {result.steps:,} "
            "steps, before its learning rate had fallen: give a larger budget"
        )
    if not epochs:
        yield "without a validation part the last epoch was taken, good or not: hold one out"
        return
    values = [_quality(epoch) for epoch in epochs]
    best = max(i for i, epoch in enumerate(epochs) if epoch.best)
    if best == len(epochs) - 1 and result.ended != "seconds" and len(values) > 1:
        yield (
            f"validation was still rising in the last of {len(epochs)} epochs, {values[-2]:.4f} to "
            f"{values[-1]:.4f}: give a larger budget, or training=TrainConfig(epochs={2 * len(epochs)}, ...)"
        )
    elif best < len(epochs) - 1:
        yield (
            f"{name} overfits: after epoch {best + 1} of {len(epochs)} validation fell from "
            f"{values[best]:.4f} to {values[-1]:.4f} while the training loss went from "
            f"{epochs[best].loss:.4f} to {epochs[-1].loss:.4f}: make it narrower (width, "
            "embedding_width), raise item_id_dropout or embedding_decay, or give min_item_count"
        )


def _histories(
    data: Dataset,
    part: str,
    head_name: str,
    head: HeadEvaluation,
    evaluation: Evaluation,
    result: TrainResult,
) -> Iterator[str]:
    """Compare histories with what models without the long sequence read."""
    rows, _ = labelled(data, part, head_name)
    every, seen = data.impressions, result.model.config.short_length
    lengths = every.history_end[rows] - data.events.offsets[every.user[rows]]
    beyond = float(np.mean(lengths > seen))
    if beyond < _SHORT:
        yield (
            f"{beyond:.0%} of the impressions have more than the {seen} behaviours that the short sequence "
            f"reads (median {np.median(lengths):,.0f}, none for {np.mean(lengths == 0):.0%}): the long "
            "sequence adds nothing to the others; log further kinds of behaviour, or keep more of them"
        )
    for name in evaluation.against:
        gaps = [
            f"{each.name}: {_signed(gap)}"
            for each in head.slices
            if each.dimension == "history length" and (gap := each.difference.get(name, {}).get("gauc"))
            and math.isfinite(gap.value)
        ]  # fmt: skip
        if gaps:
            yield f"by length of the history, GAUC minus that of {name} is " + "; ".join(gaps)


def _amount(data: Dataset, head_name: str, name: str, result: TrainResult) -> Iterator[str]:
    rows = data.impressions
    known = (rows.split == TRAIN) & (np.asarray(rows.label_mask[head_name]) > 0)
    positives = int(np.sum(rows.labels[head_name][known] > 0.5))
    if positives < _FEW_POSITIVES:
        narrower = ", or a narrower model (model=ModelConfig(width=, embedding_width=, hidden=))"
        yield (
            f"{result.parameters:,} weights of {name} learn from {positives:,} training positives: take a "
            f"longer log{narrower if result.parameters > positives else ''}"
        )


def _unknown(data: Dataset, part: str, head_name: str) -> Iterator[str]:
    rows, _ = labelled(data, part, head_name)
    items = float(np.mean(~data.trained_items()[data.impressions.item[rows]]))
    users = float(np.mean(~known_users(data.impressions, data.n_users)[data.impressions.user[rows]]))
    if items > _MANY_UNKNOWN:
        yield (
            f"{items:.0%} of the impressions are of items that training has not seen, known by their "
            "features alone: give items= more features, or content; train more often"
        )
    if users > _MANY_UNKNOWN:
        yield (
            f"{users:.0%} of the impressions are of users without a training impression: give users= "
            "features, or events= of before"
        )


def _missing_inputs(data: Dataset, config: ModelConfig) -> Iterator[str]:
    if data.content is None:
        yield "items have no content embeddings, so long_attention and simtier compare nothing: give content="
    elif (share := float(np.mean(data.content.has))) < _SHORT:
        yield f"{share:.0%} of the items have content embeddings; long_attention and simtier skip the others"
    if data.schema.category is None:
        yield "no item feature is the category, so sim_hard finds nothing: give items= one, and category="
    off = [block for block in LONG_BLOCKS if not config.has(block)]
    if off := [block for block in off if block != "encoder" or config.encoder_layers]:
        yield f"blocks that read the long sequence are switched off: {', '.join(off)}"


def _blocks(data: Dataset, part: str, head_name: str, result: TrainResult) -> Iterator[str]:
    """Measure what each block adds: the loss when every request goes without it."""
    model = result.model
    if not isinstance(model, Aif) or not model.config.block_dropout:
        return  # it never learned to go without a block
    worth = worth_of_blocks(model, data, part, head_name)
    added = {name: found.value for name, found in worth.items()}
    idle = [f"{name} {value:+.4f}" for name, value in added.items() if value < _NOTHING]
    if idle:
        kept = tuple(name for name in added if added[name] >= _NOTHING)
        yield (
            f"blocks that add nothing, by what the model loses without them: {', '.join(idle)}; try "
            f"model=ModelConfig(blocks={kept}, ...)"
        )
    else:
        yield "what each block adds: " + ", ".join(f"{name} {value:+.4f}" for name, value in added.items())


def _quality(epoch: Epoch) -> float:
    assert epoch.validation is not None
    found = epoch.validation
    return found.auc if math.isnan(found.gauc) else found.gauc


def _signed(gap: Estimate) -> str:
    return f"{gap.value:+.4f} ± {gap.standard_error:.4f}"
