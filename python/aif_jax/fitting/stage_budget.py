"""The richest model whose stage after retrieval fits a time on this machine."""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aif_jax.checks import number, typed, whole
from aif_jax.config import ModelConfig
from aif_jax.errors import ConfigError
from aif_jax.evaluation.blocks import folded_calls
from aif_jax.evaluation.tables import as_text
from aif_jax.features import Schema
from aif_jax.progress import progress_bar

CANDIDATES = 4096
"""Candidates of the stage that is timed, by default: those of the records."""

_CALLS, _FIRST = 51, 5
"""Calls of a stage that are timed, and those before them, which find cold caches."""

_NOT_MEASURED = "not measured"


class Recorded(NamedTuple):
    """Quality of a model on two public data sets, by the records of 29 November 2026 under ``bench/records``.

    Attributes:
        row: its name there.
        movielens: GAUC minus that of all blocks, on MovieLens-1M, with the error over users and seeds.
        kuairand: the same on KuaiRand.
        found: share of a list's positives that are among the best 100 of 1,002, on KuaiRand.
    """

    row: str
    movielens: str
    kuairand: str
    found: str


RECORDED = {
    each.row: each
    for each in (
        Recorded("aif", "", "", "0.261"),
        Recorded("aif_tiers2", "-0.0008 ± 0.0007", _NOT_MEASURED, _NOT_MEASURED),
        Recorded("aif-simtier", "-0.0010 ± 0.0007", "-0.0015 ± 0.0009", "0.260"),
        Recorded("aif_mean", "-0.0111 ± 0.0014", "-0.0026 ± 0.0008", "0.196"),
        Recorded("cold", "-0.0236 ± 0.0013", "+0.0001 ± 0.0010", "0.195"),
        Recorded("two_tower", "-0.0203 ± 0.0014", "-0.0196 ± 0.0013", "0.204"),
    )
}
"""By row. That of two tiers is of one seed; that of the mean lacks category sub-sequences too, which cost the
stage next to nothing and carry most where people stay in a category, so the variant here keeps them."""


class _Step(NamedTuple):
    name: str
    model: ModelConfig
    recorded: Recorded


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageTime:
    """Time of one model's stage.

    Attributes:
        name: what the model is.
        model: its sizes and switches.
        recorded: its quality elsewhere.
        median_ms: of the calls; decides.
        least_ms: of the calls; far below the median on a busy machine.
    """

    name: str
    model: ModelConfig
    recorded: Recorded
    median_ms: float
    least_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageChoice:
    """A model that fits a time, and what was measured before it.

    Attributes:
        stage_ms: the time that was given.
        candidates: of the stage.
        tried: models in the order of measuring, from the richest; the last is chosen, the others take too
            long.
    """

    stage_ms: float
    candidates: int
    tried: tuple[StageTime, ...]

    @property
    def model(self) -> ModelConfig:
        """The chosen model."""
        return self.tried[-1].model

    @property
    def reasons(self) -> tuple[str, ...]:
        """Sentences on what was measured, and on what the choice leaves out and costs."""
        *slow, found = self.tried
        first = (
            f"{found.name}: its stage of {self.candidates:,} candidates takes {_ms(found)} on this machine, "
            f"of {self.stage_ms:g} given (median of {_CALLS} calls; the fastest {found.least_ms:.2f})."
        )
        if not slow:
            return (f"{first} Nothing was left out.",)
        return (
            f"{first} Too slow: {_listed(slow)}.",
            f"recorded of {found.name}, against all blocks: GAUC {found.recorded.movielens} on "
            f"MovieLens-1M, {found.recorded.kuairand} on KuaiRand; positives among the best 100 of 1,002 on "
            f"KuaiRand {found.recorded.found}, with all blocks {RECORDED['aif'].found}.",
        )

    def table(self) -> Table:
        """Return what was measured beside what the records say."""
        table = Table(
            title=f"Models whose stage of {self.candidates:,} candidates may take {self.stage_ms:g} ms; the "
            "last is chosen",
            title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1),
        )  # fmt: skip
        table.add_column("", no_wrap=True)
        for words in (
            "median,\nms", "fastest,\nms", "GAUC,\nMovieLens-1M", "GAUC,\nKuaiRand",
            "found in 100,\nKuaiRand",
        ):  # fmt: skip
            table.add_column(words, justify="right", no_wrap=True)
        for each in self.tried:
            times = f"{each.median_ms:.2f}", f"{each.least_ms:.2f}"
            table.add_row(each.name, *times, *each.recorded[1:])
        return table

    def __str__(self) -> str:
        return as_text(self.table())


@typed
def model_within(
    model: ModelConfig,
    schema: Schema,
    stage_ms: float,
    *,
    candidates: int = CANDIDATES,
    progress: bool = True,
) -> StageChoice:
    """Choose the richest variant of a model whose stage fits a time on this machine.

    Variants leave out, one after the other, what costs the stage the most for what it brings by the records:
    tiers of SimTier, SimTier, the match of the long sequence with each candidate, the long sequence, all but
    a dot product. They are timed in this order, with random weights, by their folded programs; the first that
    fits is chosen. What it is worth on other data, `aif_jax.evaluation.blocks` measures.

    Args:
        model: with all that may be left out; only architectures that are served.
        schema: fitted.
        stage_ms: milliseconds that scoring may take after retrieval, reading of rows included, the order of
            the results not.
        candidates: of the stage.
        progress: show a progress bar.

    Raises:
        ConfigError: ``exact`` does not fold, no variant fits, or a number is out of bounds.
    """
    number("stage_ms", stage_ms, "milliseconds")
    whole("candidates", candidates, 1)
    if model.architecture == "exact":
        raise ConfigError("stage_ms: 'exact' does not fold, so no engine serves it; expected another model.")
    steps, tried = list(_steps(model)), list[StageTime]()
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("timing stages", total=len(steps))
        for step in steps:
            bar.update(task, description=f"timing {step.name}")
            tried.append(_timed(step, schema, candidates))
            if tried[-1].median_ms <= stage_ms:
                return StageChoice(stage_ms=stage_ms, candidates=candidates, tried=tuple(tried))
            bar.advance(task)
    best = min(tried, key=lambda each: each.median_ms)
    raise ConfigError(
        f"stage_ms: got {stage_ms:g}, but {best.name} takes {_ms(best)}, the least of all that was measured: "
        f"{_listed(tried)} (medians of {_CALLS} calls with {candidates:,} candidates on this machine); give "
        "more time, or fewer candidates."
    )


def _steps(model: ModelConfig) -> Iterator[_Step]:
    """Return the variants of a model from rich to poor."""
    yield _Step("as it is", model, RECORDED[model.architecture])
    if model.has("simtier"):
        if model.tiers > 2:
            edges = model.tier_edges
            two = model.replace(tier_edges=((edges[0] + edges[-1]) / 2,))
            yield _Step("SimTier of two tiers", two, RECORDED["aif_tiers2"])
        model = model.replace(blocks=tuple(block for block in model.blocks if block != "simtier"))
        yield _Step("without SimTier", model, RECORDED["aif-simtier"])
    if model.has("long_attention") and model.long_attention != "mean":
        model = model.replace(long_attention="mean")
        yield _Step("and the long sequence as its mean", model, RECORDED["aif_mean"])
    for architecture in ("cold", "two_tower"):
        if model.architecture not in (architecture, "two_tower"):
            model = model.replace(architecture=architecture)
            yield _Step(architecture, model, RECORDED[architecture])


def _timed(step: _Step, schema: Schema, candidates: int) -> StageTime:
    _, stage = folded_calls(step.model, schema, candidates)
    times = []
    for _ in range(_FIRST + _CALLS):
        start = time.perf_counter()
        jax.block_until_ready(stage())
        times.append(1e3 * (time.perf_counter() - start))
    times = times[_FIRST:]
    return StageTime(
        name=step.name,
        model=step.model,
        recorded=step.recorded,
        median_ms=statistics.median(times),
        least_ms=min(times),
    )


def _ms(found: StageTime) -> str:
    return f"{found.median_ms:.2f} ms"


def _listed(found: Sequence[StageTime]) -> str:
    return ", ".join(f"{each.name} {_ms(each)}" for each in found)
