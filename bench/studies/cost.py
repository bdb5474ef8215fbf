"""Cost of serving a variant: time of a request by the engine, bytes of rows and states, weights.

Cost does not depend on what was learnt, so models have random weights; nothing is trained here. All engines
stand side by side and answer the same requests in turns, so that a busy machine slows all of them.
"""

import contextlib
import dataclasses
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aif_jax.bundle import export_bundle
from aif_jax.config import ModelConfig
from aif_jax.data import TEST, Dataset, fit_width
from aif_jax.data.dataset import take_columns
from aif_jax.errors import AifError, ConfigError
from aif_jax.features import Schema
from aif_jax.models import add_signatures, build_model
from aif_jax.models.baselines import Exact
from aif_jax.models.folded_shapes import FoldedShapes
from aif_jax.models.sequential import Sequential
from aif_jax.models.store import weights_of
from aif_jax.nearline import build_tables
from aif_jax.serving import Engine, EngineConfig, Shapes, UserStateCache
from aif_jax.types import ItemRecords, UserRecord
from results import step
from stage.request import TURNS
from studies.study import where
from studies.variants import Variant

K = 200
"""Results of a request: the most that the table of retention asks for."""

Clock = Callable[[int], tuple[float | None, float]]
"""Answers the request of a turn; milliseconds of the stage (``None`` without one) and of the whole."""


def measure_costs(
    dataset: Dataset,
    preset: ModelConfig,
    variants: Sequence[Variant],
    *,
    candidates: int = 4096,
    rounds: int = 31,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Measure variants side by side.

    The user has the longest history that a model reads, the catalogue at least twice as many items as there
    are candidates; if the data set has fewer, its items come again under other ids. Of variants that are the
    same model, one is measured.

    Returns:
        By variant: ``way`` (``engine``, or ``sequential``: the whole model in one compiled call after
        retrieval), sizes, bytes (``None`` where there is none), and quartiles of stage and request.

    Raises:
        ConfigError: the number of candidates or of rounds is out of bounds.
        AifError: an engine did not answer from a cached state in full.
    """
    if candidates % 16 or candidates < K or rounds < 1:
        raise ConfigError(
            f"candidates, rounds: got {candidates} and {rounds}, expected a multiple of 16 of at least {K}, "
            "and at least 1."
        )
    world = _World(dataset, candidates, seed)
    keys = {variant.name: repr(variant.config(preset)) for variant in variants}
    models: dict[str, Any] = {}
    clocks: dict[str, Clock] = {}
    with contextlib.ExitStack() as stack:
        for variant in variants:
            if (key := keys[variant.name]) not in models:
                step(f"cost of {variant.name}: building and compiling")
                models[key] = model = build_model(variant.config(preset), world.schema, seed=seed)
                whole = isinstance(model, Exact)
                clocks[key] = _sequential(model, world) if whole else _served(model, world, stack)
        step(f"cost: {rounds} rounds of {len(clocks)} models")
        times = _interleaved(clocks, rounds, seed)
    costs = {key: _cost(model, world, times[key]) for key, model in models.items()}
    return {name: costs[key] for name, key in keys.items()}


class _World:
    def __init__(self, dataset: Dataset, candidates: int, seed: int) -> None:
        self.dataset, self.candidates, self._seed = dataset, candidates, seed
        self.schema: Schema = dataset.fit_schema()
        rng = np.random.default_rng(seed)
        self.rows = np.arange(max(dataset.n_items, 2 * candidates)) % dataset.n_items
        self.ids = np.arange(len(self.rows), dtype=np.uint64)
        self.turns = [rng.choice(self.ids, candidates, replace=False) for _ in range(TURNS)]
        test = np.flatnonzero(dataset.impressions.split == TEST)
        self.user = int(dataset.impressions.user[test[0]])
        context = {name: column[test[0]] for name, column in dataset.impressions.context.items()}
        self.context = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in context.items()
            if value is not np.ma.masked
        }
        names = {feature.name for feature in self.schema.item}
        columns = {name: column for name, column in dataset.items.items() if name in names}
        self.columns = take_columns(columns, self.rows)

    def history(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self._seed)
        types = rng.integers(0, len(self.schema.behaviour_types), length).astype(np.int32)
        return rng.integers(0, len(self.ids), length), types

    def record(self, length: int) -> UserRecord:
        items, types = self.history(length)
        return dataclasses.replace(self.dataset.user_record(self.user), items=self.ids[items], types=types)


def _served(model: Any, world: _World, stack: contextlib.ExitStack) -> Clock:
    config: ModelConfig = model.config
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    bundle = export_bundle(model, folder / "bundle", k_max=K)
    content = world.dataset.content
    vectors = None if content is None else fit_width(content, config.content_width).vectors[world.rows]
    tables = build_tables(bundle, ItemRecords(world.ids, world.columns, vectors))
    record = world.record(config.long_length)
    shapes = Shapes(candidates=(world.candidates,), histories=(config.long_length,))
    options = EngineConfig(k=K, shapes=shapes, user_states=UserStateCache(ttl_s=None))
    engine = stack.enter_context(Engine(bundle, tables, users=lambda _: record, config=options))

    def clock(turn: int) -> tuple[float, float]:
        began = time.perf_counter()
        report = engine.begin(0, context=world.context).rank(world.turns[turn]).report
        return report.stage_ms, (time.perf_counter() - began) * 1e3

    clock(0)  # computes the user state, which the cache then holds
    report = engine.begin(0, context=world.context).rank(world.turns[0]).report
    if (report.user_state, report.rung, report.missing_items) != ("hit", 0, 0):
        raise AifError(
            f"cost: user state {report.user_state}, rung {report.rung}, {report.missing_items} rows missing; "
            "expected a hit, rung 0 and none, or the times would be of something else."
        )
    return clock


def _sequential(model: Exact, world: _World) -> Clock:
    config, schema, n = model.config, world.schema, world.candidates
    whole = world.dataset.catalogue(schema, content_width=config.content_width)
    catalogue = {name: column[world.rows] for name, column in add_signatures(config, whole).items()}
    scorer = Sequential(model, catalogue, k=K)
    user = schema.encode_one("user", world.record(1).features)
    items, types = world.history(max(config.long_length, config.short_length))
    items = items.astype(np.int32)
    context = schema.encode_one("context", world.context)
    fixed: dict[str, Any] = {
        "user": {name: np.asarray(value)[None] for name, value in user.items()},
        "context": {name: np.broadcast_to(value, (1, n, *value.shape)) for name, value in context.items()},
        "pair": schema.missing("pair", (1, n)),
        "train_only": schema.missing("train_only", (1, n)),
    }
    for name, length in (("short", config.short_length), ("long", config.long_length)):
        fixed |= {f"{name}_item": items[None, :length], f"{name}_type": types[None, :length]}
    raw = {name: np.zeros(n, np.float32) for name in scorer.raw}

    def clock(turn: int) -> tuple[None, float]:
        began = time.perf_counter()
        scorer({**fixed, "item": world.turns[turn].astype(np.int32)[None]}, raw)
        return None, (time.perf_counter() - began) * 1e3

    return clock


def _interleaved(
    clocks: Mapping[str, Clock], rounds: int, seed: int
) -> dict[str, list[tuple[float | None, float]]]:
    """Time each once a round, in an order drawn anew, after a request that is not timed."""
    order = random.Random(seed)
    times: dict[str, list[tuple[float | None, float]]] = {name: [] for name in clocks}
    for number in range(-2, rounds):
        for name in order.sample(list(clocks), len(clocks)):
            clocks[name]((number + 1) % TURNS)
            found = clocks[name](number % TURNS)
            if number >= 0:
                times[name].append(found)
    return times


def _cost(model: Any, world: _World, times: list[tuple[float | None, float]]) -> dict[str, Any]:
    folds = not isinstance(model, Exact)
    shapes = FoldedShapes(model.config, world.schema) if folds else None
    stages = [stage for stage, _ in times if stage is not None]
    return {
        "way": "engine" if folds else "sequential",
        "parameters": sum(array.size for array in weights_of(model).values()),
        "item_bytes": _bytes(shapes.item_spec(1)) if shapes else None,
        "user_bytes": _bytes(shapes.state_spec(model.config.long_length)) if shapes else None,
        "candidates": world.candidates,
        "history": model.config.long_length,
        "rounds": len(times),
        "stage_ms": np.quantile(stages, [0.25, 0.5, 0.75]).tolist() if stages else None,
        "request_ms": np.quantile([whole for _, whole in times], [0.25, 0.5, 0.75]).tolist(),
        "made": where(),
    }


def _bytes(spec: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in spec.values())
