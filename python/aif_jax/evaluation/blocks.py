"""Worth and cost of each block of a trained model, without training again.

A block's worth is what the model loses when every request goes without it, with its learned absent vector in
its place. Blocks that say the same stand in for each other, so the losses do not add up. Its cost is the time
that the folded programs of the model take, minus those of a model that never had it.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aif_jax.bundle.golden import CachedRows
from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation.evaluation import labelled
from aif_jax.evaluation.paired import Estimate, PairedBootstrap, PooledAuc, Ratio, Statistic
from aif_jax.features import Schema
from aif_jax.kernels import register
from aif_jax.models import build_model, fold
from aif_jax.models.aif import Aif
from aif_jax.training import Evaluator
from aif_jax.training.metrics import user_aucs

WHOLE = ""
"""The key of the model with all of its blocks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Milliseconds that a block adds on a CPU, near or below 0 where it takes less than timing tells.

    Attributes:
        user: of the user program, for one user with a history of ``long_length``.
        stage: of the stage, after retrieval.
    """

    user: float
    stage: float


def worth_of_blocks(
    model: Any, dataset: Dataset, split: str, head: str, *, resamples: int = 1000
) -> dict[str, Estimate]:
    """Return the GAUC that the model loses without each block; AUC, where no user has both classes.

    Args:
        model: trained with ``block_dropout``.
        dataset: of its schema.
        split: ``train``, ``validation`` or ``test``.
        head: whose labels count.
        resamples: draws of users for the errors.

    Raises:
        ConfigError: the model has no blocks that can be left out, or never learned to go without one.
        DataError: the labels of the part are of one class.
    """
    if not isinstance(model, Aif) or not model.config.block_dropout:
        raise ConfigError(
            f"blocks: {model.config.architecture!r} with block_dropout={model.config.block_dropout:g} never "
            "learned to go without a block, so leaving one out says nothing of its worth; expected a model "
            "with blocks, trained with block_dropout over 0."
        )
    rows, labels = labelled(dataset, split, head)
    users = np.unique(dataset.impressions.user[rows], return_inverse=True)[1]
    size, column = int(users.max()) + 1, model.config.heads.index(head)
    evaluator = Evaluator(dataset, model, split)
    gauc = user_aucs(users, labels, np.zeros(len(labels))).users.size > 0

    def statistic(without: str) -> Statistic:
        scores = evaluator.predict(model, without=without)[rows, column]
        if not gauc:
            return PooledAuc(users, labels, scores)
        found = user_aucs(users, labels, scores)
        weights = np.zeros(size)
        weights[found.users] = found.impressions
        aucs = np.zeros(size)
        aucs[found.users] = found.aucs
        return Ratio(aucs * weights, weights)

    names = [WHOLE, *(block.name for block in model.blocks)]
    drawn = PairedBootstrap(size, {name: [statistic(name)] for name in names}, resamples=resamples)
    return {name: drawn.difference(WHOLE, name) for name in names[1:]}


def cost_of_blocks(model: Aif, *, candidates: int = 1024, rounds: int = 15) -> dict[str, BlockCost]:
    """Return the time that each block adds to the folded programs.

    All take turns in every round, and the fastest call of each counts, which other processes disturb least.

    Args:
        model: whose config and schema count; weights do not. Not of the ``exact`` architecture.
        candidates: of the stage.
        rounds: of the measurement.

    Raises:
        ConfigError: the architecture does not fold.
    """
    config, names = model.config, [WHOLE, *(block.name for block in model.blocks)]
    programs = {
        name: folded_calls(
            config.replace(blocks=tuple(block for block in config.blocks if block != name)),
            model.schema,
            candidates,
        )
        for name in names
    }
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for name, pair in programs.items():
            for place, call in enumerate(pair):
                start = time.perf_counter()
                jax.block_until_ready(call())
                times.setdefault((name, place), []).append(1e3 * (time.perf_counter() - start))
    least = {key: min(found) for key, found in times.items()}
    return {
        name: BlockCost(user=least[WHOLE, 0] - least[name, 0], stage=least[WHOLE, 1] - least[name, 1])
        for name in names[1:]
    }


def table_of_blocks(worth: Mapping[str, Estimate], cost: Mapping[str, BlockCost]) -> Table:
    """Return both as a table, the block that is worth most first."""
    table = Table(title="What each block brings and costs", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for words in ("GAUC (AUC) lost\nwithout it", "user side,\nms", "after\nretrieval, ms"):
        table.add_column(words, justify="right", no_wrap=True)
    for name in sorted(worth, key=lambda name: -worth[name].value):
        found = worth[name]
        error = f" ±{found.standard_error:.4f}" if math.isfinite(found.standard_error) else ""
        times = (f"{cost[name].user:.2f}", f"{cost[name].stage:.2f}") if name in cost else ("-", "-")
        table.add_row(name, f"{found.value:+.4f}{error}", *times)
    return table


def folded_calls(config: ModelConfig, schema: Schema, n: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return calls of the user program and of the stage of a model with initial weights, compiled for a CPU.

    Contents and signatures are random: behaviours that are all alike would take SimTier less time.

    Args:
        config: of an architecture that folds.
        schema: fitted.
        n: candidates.
    """
    folded, length = fold(build_model(config, schema)), config.long_length
    cpu, rng = jax.devices("cpu")[0], np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        if leaf.dtype == np.float32:
            return rng.standard_normal(leaf.shape, np.float32)
        return np.zeros(leaf.shape, leaf.dtype)

    def filled(spec: Any) -> Any:
        return jax.tree.map(drawn, spec)

    user_given = (
        folded.weights_of("user"),
        *filled(
            (folded.user_inputs_spec(1), folded.short_spec(1), folded.types_spec(1, config.short_length))
        ),
        *filled((folded.long_spec(1, length), folded.types_spec(1, length))),
    )
    user_given = jax.device_put(user_given, cpu)
    user = jax.jit(folded.user)
    state = {name: leaf[0] for name, leaf in jax.block_until_ready(user(*user_given)).items()}
    rows, valid = filled(folded.rows_spec(n)), np.ones(n, bool)
    rest = jax.device_put((folded.weights_of("stage"), state), cpu)
    context, pair = filled((folded.context_spec(), folded.pair_spec(n)))
    if register():
        cached = CachedRows({**{f"rows/{name}": column for name, column in rows.items()}, "valid": valid})
        stage, given = jax.jit(folded.cached_scores), (*rest, cached.inputs, context, pair)
    else:
        cached = None
        stage, given = jax.jit(folded.stage_scores), (*rest, rows, valid, context, pair)
    jax.block_until_ready(stage(*given))
    # The cache of the rows lives as long as the call.
    return lambda: user(*user_given), lambda kept=cached: stage(*given)
