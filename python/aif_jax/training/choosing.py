"""Sizes, lengths and epochs chosen from a data set and a time budget, each with its reason.

The rules read counts of the data set, and no label. The record of 1 December 2026 under ``bench/records`` has
the figures behind them.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from aif_jax.checks import number, typed
from aif_jax.config import BLOCKS, ModelConfig
from aif_jax.data import TRAIN, VALIDATION, Dataset
from aif_jax.data.rows import Requests
from aif_jax.errors import DataError
from aif_jax.training.config import FEWEST_STEPS, TrainConfig
from aif_jax.training.feed import long_buckets

SHORT, LONG = (8, 64), (16, 1024)
"""Bounds of the lengths of the short and the long sequence."""

MOST_ROWS = 32
"""Rows of a request that are scored together at most."""

STEP_ROWS, STEPS = 1024, 200
"""Rows of a step, in a data set large enough for so many steps an epoch."""

HIDDEN = (0.05, 0.3)
"""Bounds of the share of ids that training hides. The lower one is also that of the blocks."""

READ, EPOCHS = 2_000_000, (2, 5)
"""Rows that all epochs together read, and the bounds of their number."""

BEHAVIOUR_US, SHORT_US, ROW_US = 1.5, 2.0, 10.0
"""Microseconds of one core in training for each place of a request's long sequence, each of its short one,
and each of its rows. By this estimate MovieLens-1M trains at 20,000 rows a second and KuaiRand at 13,000; the
records of 29 November 2026 have 18,000 to 26,000 and 15,000."""

COMPILING_S = 15.0
"""Estimate of the seconds for compiling a step and its evaluation, for each length of long sequences."""

EVALUATION = 0.4
"""Estimate of the time of a request in evaluation, as a share of its time in training."""

VISIT = 16
"""`TrainConfig.visit` where not all epochs fit the budget with a history for each request; otherwise it is 1,
which changes no history, and spares the user side where requests follow each other without a behaviour."""

_OF_CONTENT = ("long_attention", "simtier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings of one model and of its training.

    Attributes:
        model: of the architecture ``aif``; ``model.replace(architecture="cold")`` is its baseline.
        training: its epochs, or its steps, fit the budget.
        reasons: a sentence for each choice, with the counts behind it.
    """

    model: ModelConfig
    training: TrainConfig
    reasons: tuple[str, ...]


@typed
def choose(data: Dataset, budget_s: float | None = None) -> Choice:
    """Choose settings for a data set. The same data set and budget give the same settings.

    Args:
        data: with a training part.
        budget_s: seconds that the training of one ``aif`` model may take, by an estimate for one core;
            ``None`` sets no bound.

    Raises:
        ConfigError: the budget is not over 0.
        DataError: the training part is empty.

    >>> from aif_jax.data import synthetic
    >>> found = choose(synthetic(n_users=50, n_items=200, n_requests=3, shown=4, history=50))
    >>> found.model.short_length, found.training.group, found.training.epochs
    (64, 4, 5)
    """
    number("budget_s", budget_s, "seconds", none=True)
    reasons: list[str] = []
    requests = _requests(data, 1)
    model = _model(data, requests, reasons)
    training = _training(data, model, requests, budget_s, reasons)
    return Choice(model=model, training=training, reasons=tuple(reasons))


def _requests(data: Dataset, visit: int) -> Requests:
    """Return the requests of the training part, of at most the size that 19 in 20 do not exceed."""
    sizes = data.request_sizes(TRAIN, visit)
    if not len(sizes):
        raise DataError(f"{data.name}: the training part is empty; give other parts (split=...).")
    return data.requests(TRAIN, min(int(np.quantile(sizes, 0.95, method="higher")), MOST_ROWS), visit)


def _model(data: Dataset, requests: Requests, reasons: list[str]) -> ModelConfig:
    lengths = _lengths(data, requests)
    middle, most = (int(x) for x in np.quantile(lengths, (0.5, 0.95), method="higher"))
    short = _power_of_two(middle, *SHORT)
    long = max(_power_of_two(most, *LONG), short)
    reasons.append(
        f"short_length {short}, long_length {long}: half of the histories have {middle:,} behaviours or "
        f"fewer, 19 in 20 have {most:,} or fewer; the next powers of two, at most {SHORT[1]} and {LONG[1]:,}."
    )
    blocks, width = BLOCKS, 1
    if data.content is not None and data.content.has.any():
        width = data.content.vectors.shape[1]
        reasons.append(f"content_width {width}: the width of the data set's content embeddings.")
    else:
        blocks = tuple(block for block in BLOCKS if block not in _OF_CONTENT)
        reasons.append(f"no {' and no '.join(_OF_CONTENT)}: no item has a content embedding.")
    if data.schema.category is None:
        reasons.append("no sim_hard: the schema names no category of items.")
    if len(data.heads) > 1:
        names = ", ".join(data.heads)
        reasons.append(f"heads {names}: all labels. {data.heads[0]}, the first, orders candidates.")
    return ModelConfig(
        blocks=blocks,
        heads=data.heads,
        short_length=short,
        long_length=long,
        content_width=width,
        block_dropout=HIDDEN[0],
        item_id_dropout=_hidden_ids(data, reasons),
        item_statistics=_has_statistics(data, reasons),
    )


def _has_statistics(data: Dataset, reasons: list[str]) -> bool:
    """Return whether the model reads statistics by item id: always where items have one."""
    if data.schema.item_id is None:
        return False
    counts = data.training_counts()
    reasons.append(
        "item_statistics: how often rows of an item are positive, counted over other users; an item that "
        f"training knows has {np.median(counts[counts > 0]) if counts.any() else 0:,.0f} rows in the median, "
        "from which an id alone would have to learn it."
    )
    return True


def _hidden_ids(data: Dataset, reasons: list[str]) -> float:
    """Return the share of ids to hide, after which as many are unknown in training as in validation."""
    rows, name = data.impressions, data.schema.item_id
    if name is None or not (rows.split == VALIDATION).any():
        return HIDDEN[0]
    encoder = getattr(data.schema.feature("item", name), "encoder", None)
    known = data.training_counts() >= getattr(encoder, "min_count", 1)
    now, later = (float(np.mean(~known[rows.item[rows.split == part]])) for part in (TRAIN, VALIDATION))
    share = round(float(np.clip((later - now) / max(1 - now, 1e-9), *HIDDEN)), 2)
    reasons.append(
        f"item_id_dropout {share:g}: ids of {now:.0%} of the training rows and of {later:.0%} of the "
        f"validation rows are unknown; between {HIDDEN[0]:g} and {HIDDEN[1]:g}."
    )
    return share


def _training(
    data: Dataset, model: ModelConfig, requests: Requests, budget_s: float | None, reasons: list[str]
) -> TrainConfig:
    rows = int(np.count_nonzero(requests.rows >= 0))
    epochs = int(np.clip(-(-READ // rows), *EPOCHS))
    held_out = data.request_sizes(VALIDATION)
    found, timing = _steps(data, model, requests, held_out, epochs)
    if budget_s is not None and timing.compiling + epochs * timing.epoch > budget_s:
        requests = _requests(data, VISIT)
        found, timing = _steps(data, model, requests, held_out, epochs)
        found = found.replace(visit=VISIT)
    n, group = requests.rows.shape
    reasons.append(
        f"group {group}, batch_size {found.batch_size}: a request has {rows / n:.1f} rows in the mean, 19 in "
        f"20 have {group} or fewer; a step reads about {STEP_ROWS:,} rows, or fewer for {STEPS} steps an "
        "epoch."
    )
    if found.visit == VISIT:
        reasons.append(
            f"visit {VISIT}: requests of a user within an eighth of the history, at most {VISIT} behaviours, "
            "share that of the first, because with one for each not all epochs fit the budget."
        )
    reason = (
        f"epochs {epochs}: enough to read {READ:,} rows, of {rows:,}, in {EPOCHS[0]} to {EPOCHS[1]} epochs."
    )
    if budget_s is not None:
        fitting = (budget_s - timing.compiling) / timing.epoch
        if fitting < 1:
            steps = max(int(fitting * n / found.batch_size), FEWEST_STEPS)
            found = found.replace(epochs=1, max_steps=steps)
            reason = f"max_steps {steps}: not all of an epoch fits the budget; at least {FEWEST_STEPS}."
        elif fitting < epochs:
            found = found.replace(epochs=int(fitting))
            reason = f"epochs {found.epochs}, not {epochs}: no more fit the budget."
        reason += (
            f" The budget is {budget_s:,.0f} s; one core is estimated to take {timing.epoch:,.1f} s an epoch "
            f"and {timing.compiling:.0f} s for compiling."
        )
    reasons.append(reason)
    return found


class _Timing(NamedTuple):
    """Estimated seconds of one core: of an epoch with its evaluation, and of compiling."""

    epoch: float
    compiling: float


def _steps(
    data: Dataset, model: ModelConfig, requests: Requests, held_out: np.ndarray, epochs: int
) -> tuple[TrainConfig, _Timing]:
    """Return the settings of a step, with the lengths of long sequences that take the least time in all.

    Args:
        data: whose histories are read.
        model: sizes.
        requests: of the training part.
        held_out: rows of each request of the validation part, int64 ``[R]``.
        epochs: that the lengths are chosen for.
    """
    n, group = requests.rows.shape
    rows = int(np.count_nonzero(requests.rows >= 0))
    config = TrainConfig(
        epochs=epochs,
        batch_size=_power_of_two(int(min(STEP_ROWS * n / rows, n / STEPS)), 16, 1024),
        group=group,
        visit=1,
        learning_rate=6e-3,
    )
    lengths = _lengths(data, requests)
    read = n + EVALUATION * int(np.sum(-(-held_out // group)))
    found: list[tuple[TrainConfig, _Timing]] = []
    short = (model.long_length // 16, model.long_length // 4)
    for some in ((), short[1:], short):
        config = config.replace(long_buckets=tuple(length for length in some if length >= 32))
        buckets = np.array(long_buckets(model, config.long_buckets))
        padded = buckets[np.searchsorted(buckets, np.minimum(lengths, buckets[-1]))]
        a_request = SHORT_US * model.short_length + ROW_US * group + BEHAVIOUR_US * float(padded.mean())
        found.append((config, _Timing(read * a_request * 1e-6, COMPILING_S * len(buckets))))
    return min(found, key=lambda each: each[1].compiling + epochs * each[1].epoch)


def _lengths(data: Dataset, requests: Requests) -> np.ndarray:
    """Return the behaviours before each request, int64 ``[R]``."""
    return requests.history_end - data.events.offsets[requests.user]


def _power_of_two(value: int, low: int, high: int) -> int:
    """Return the smallest power of two that is at least the value, within bounds that are such powers."""
    return min(max(1 << max(value - 1, 0).bit_length(), low), high)
