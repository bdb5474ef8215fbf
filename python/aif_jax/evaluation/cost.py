"""What serving a variant costs: time of a request by the engine, bytes of rows and states, weights.

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
from typing import Any, Self

import jax
import numpy as np

from aif_jax.bundle import export_bundle
from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.data.content import fit_width
from aif_jax.data.dataset import take_columns
from aif_jax.data.splits import TEST
from aif_jax.errors import AifError, ConfigError
from aif_jax.evaluation.variants import Variant
from aif_jax.evaluation.where import Where, where
from aif_jax.features import Schema
from aif_jax.models import add_signatures, build_model
from aif_jax.models.aif import Aif
from aif_jax.models.baselines import Exact
from aif_jax.models.folded_shapes import FoldedShapes
from aif_jax.models.sequential import Sequential
from aif_jax.models.store import weights_of
from aif_jax.nearline import build_tables
from aif_jax.serving import Engine, EngineConfig, Shapes, UserStateCache
from aif_jax.types import ItemRecords, UserRecord

K = 200
"""Results of a request: the most that the table of retention asks for."""

TURNS = 8
"""Sets of candidates that take turns, so that no request finds its rows in the processor's cache."""

Clock = Callable[[int], tuple[float | None, float]]
"""Answers the request of a turn; milliseconds of the stage (``None`` without one) and of the whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What it costs to serve one variant.

    Attributes:
        way: ``engine``; or ``sequential``, where nothing can be computed ahead: the whole model in one
            compiled call after retrieval, item features on the device, user side included.
        parameters: number of weights.
        item_bytes: of an item's row in the index; ``None`` if there are no rows.
        user_bytes: of a user state; ``None`` if there is none.
        candidates: ``N`` of each request.
        history: behaviours of the user.
        rounds: how often each was timed.
        stage_ms: quartiles and median of the compiled real-time stage, ascending; ``None`` without one.
        request_ms: the same of the whole request, candidates given and the user state cached.
        made: where, see `aif_jax.evaluation.where`.
    """

    way: str
    parameters: int
    item_bytes: int | None
    user_bytes: int | None
    candidates: int
    history: int
    rounds: int
    stage_ms: tuple[float, float, float] | None
    request_ms: tuple[float, float, float]
    made: Where

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json` output."""
        stage = values["stage_ms"]
        times = {
            "stage_ms": None if stage is None else tuple(stage),
            "request_ms": tuple(values["request_ms"]),
        }
        return cls(**{**values, **times})


def measure_costs(
    dataset: Dataset,
    preset: ModelConfig,
    variants: Sequence[Variant],
    *,
    candidates: int = 4096,
    rounds: int = 31,
    seed: int = 0,
    step: Callable[[str], None] = lambda _: None,
) -> dict[str, Cost]:
    """Measure variants side by side.

    The user has the longest history that a model reads, the catalogue at least twice as many items as there
    are candidates; if the data set has fewer, its items come again under other ids.

    Args:
        dataset: gives schema, items and users.
        preset: the config of ``aif``.
        variants: what is measured; of those that are the same model, one is, and its cost is given for all.
        candidates: ``N``, a multiple of 16 of at least `K`.
        rounds: timed requests of each.
        seed: of weights, candidates, histories and order.
        step: told what is being done.

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
    configs = {variant.name: variant.config(preset) for variant in variants}
    distinct: dict[str, str] = {}
    for name, config in configs.items():
        distinct.setdefault(repr(config), name)
    clocks: dict[str, Clock] = {}
    models: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name in distinct.values():
            step(f"cost of {name}: building and compiling")
            models[name] = build_model(configs[name], world.schema, seed=seed)
            clocks[name] = (
                _sequential(models[name], world)
                if isinstance(models[name], Exact)
                else _served(models[name], world, stack)
            )
        step(f"cost: {rounds} rounds of {len(clocks)} models")
        times = _interleaved(clocks, rounds, seed)
    costs = {
        name: _cost(model, world, rounds, times[name], "sequential" if isinstance(model, Exact) else "engine")
        for name, model in models.items()
    }
    return {name: costs[distinct[repr(config)]] for name, config in configs.items()}


class _World:
    """A catalogue, a user and requests, the same for all variants."""

    def __init__(self, dataset: Dataset, candidates: int, seed: int) -> None:
        self.dataset, self.candidates = dataset, candidates
        self.schema: Schema = dataset.fit_schema()
        rng = np.random.default_rng(seed)
        self.rows = np.arange(max(dataset.n_items, 2 * candidates)) % dataset.n_items
        self.ids = np.arange(len(self.rows), dtype=np.uint64)
        self.turns = [rng.choice(self.ids, candidates, replace=False) for _ in range(TURNS)]
        self._seed = seed
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

    def content(self, width: int) -> np.ndarray | None:
        """Return the content embeddings of the catalogue, or ``None``."""
        content = self.dataset.content
        return None if content is None else fit_width(content, width).vectors[self.rows]

    def history(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return catalogue positions and types of a history of some length."""
        rng = np.random.default_rng(self._seed)
        types = rng.integers(0, len(self.schema.behaviour_types), length).astype(np.int32)
        return rng.integers(0, len(self.ids), length), types

    def record(self, length: int) -> UserRecord:
        """Return the user as a user source gives it."""
        items, types = self.history(length)
        return dataclasses.replace(self.dataset.user_record(self.user), items=self.ids[items], types=types)


def _served(model: Any, world: _World, stack: contextlib.ExitStack) -> Clock:
    config: ModelConfig = model.config
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    bundle = export_bundle(model, folder / "bundle", k_max=K)
    items = ItemRecords(world.ids, world.columns, world.content(config.content_width))
    record = world.record(config.long_length)
    engine = stack.enter_context(
        Engine(
            bundle,
            build_tables(bundle, items),
            users=lambda _: record,
            config=EngineConfig(
                k=K,
                shapes=Shapes(candidates=(world.candidates,), histories=(config.long_length,)),
                user_states=UserStateCache(ttl_s=None),
            ),
        )
    )

    def clock(turn: int) -> tuple[float, float]:
        began = time.perf_counter()
        report = engine.begin(0, context=world.context).rank(world.turns[turn]).report
        return report.stage_ms, (time.perf_counter() - began) * 1e3

    clock(0)  # computes the user state, which the cache then holds
    report = engine.begin(0, context=world.context).rank(world.turns[0]).report
    if (report.user_state, report.rung, report.missing_items) != ("hit", 0, 0):
        raise AifError(
            f"cost: the user state was {report.user_state}, the rung {report.rung} and "
            f"{report.missing_items} rows were missing; expected a hit, rung 0 and none, or the times would "
            "be of something else."
        )
    return clock


def _sequential(model: Aif, world: _World) -> Clock:
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


def _cost(model: Any, world: _World, rounds: int, times: list[tuple[float | None, float]], way: str) -> Cost:
    item, user = (None, None) if way == "sequential" else sizes(model.config, world.schema)
    stages = [stage for stage, _ in times if stage is not None]
    return Cost(
        way=way,
        parameters=sum(array.size for array in weights_of(model).values()),
        item_bytes=item,
        user_bytes=user,
        candidates=world.candidates,
        history=model.config.long_length,
        rounds=rounds,
        stage_ms=_quartiles(stages) if stages else None,
        request_ms=_quartiles([whole for _, whole in times]),
        made=where(),
    )


def sizes(config: ModelConfig, schema: Schema) -> tuple[int, int]:
    """Return the bytes of an item row and of a user state in float32, the long sequence at its full length.

    Args:
        config: of an architecture that folds.
        schema: fitted.
    """
    shapes = FoldedShapes(config, schema)
    return _bytes(shapes.item_spec(1)), _bytes(shapes.state_spec(config.long_length))


def _bytes(spec: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in spec.values())


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, middle, high
