"""The service that is loaded: users, their requests, and the right answer to each of them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from aif_jax.features import Schema
from aif_jax.nearline import BehaviourTable
from aif_jax.types import Candidates, UserRecord
from stage.request import TURNS, Case, device_catalogue
from stage.sequential import SequentialModel, ready
from stage.timing import check_answer
from stage.xla_simtier import reference
from workload import Built, Workload, build

REQUESTS = 32
"""Different requests; more than the processor's caches have room for, few enough to check every answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Item ids of the best candidates, best first, their scores, and the rung; 0 is full quality."""

    ids: np.ndarray
    scores: np.ndarray
    rung: int = 0
    version: str = ""  # of the engine's generation


@dataclasses.dataclass(frozen=True)
class Service:
    """A workload with many users. Requests are numbered; request ``i`` asks the same as ``i + REQUESTS``.

    Every number is a user of its own to the engine, so that no user state is ever found in its cache.
    """

    built: Built  # its behaviour table holds the whole catalogue
    cases: tuple[Case, ...]  # one for each different request, with its user

    @property
    def shared(self) -> Case:
        """The case whose candidates and features all requests take in turns."""
        return self.cases[0]

    def user(self, number: int) -> UserRecord:
        return self.cases[number % REQUESTS].built.user

    def candidates(self, number: int) -> Candidates:
        """Return what retrieval finds for a request."""
        turn = number % TURNS
        return Candidates(self.shared.ids[turn], self.shared.raw_pair[turn])

    def operands(self, number: int) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return positions, encoded context and encoded pair features, as the rivals' programs take them."""
        turn = number % TURNS
        return self.shared.positions[turn], self.shared.context, self.shared.pair[turn]

    @functools.cached_property
    def batches(self) -> tuple[dict[str, Any], ...]:
        """The user's part of each different request as the unfolded model takes it, encoded beforehand."""
        return tuple(case.batch() for case in self.cases)


def make_service(workload: Workload, folder: Path) -> Service:
    """Build a workload whose users have different histories, all of the workload's length.

    All of its items are in the behaviour table.
    """
    built = build(workload, folder)
    source, length = built.source, workload.long_length
    behaviours = BehaviourTable.build(built.bundle, source.ids, source.columns, source.content)
    built = dataclasses.replace(built, tables=built.tables._replace(behaviours=behaviours))
    rng = np.random.default_rng(workload.seed + 1)
    cases = []
    for _ in range(REQUESTS):
        user = UserRecord(
            features={"country": int(rng.integers(8)), "age": float(rng.normal(40, 10))},
            items=source.ids[rng.integers(0, workload.items, length)],
            types=np.zeros(length, np.int32),
        )
        cases.append(Case(dataclasses.replace(built, user=user), workload.candidates, length))
    return Service(built, tuple(cases))


class Truth:
    """Every request's right answer by the model's own definition, products in full precision.

    Answers of a lower rung are right if they are the definition's with that much less known.
    Folded models serve ``linear`` attention over the long sequence, and approximate the other.
    """

    def __init__(self, service: Service, attention: Literal["linear", "exact, as defined"]):
        self._service = service
        model = SequentialModel(service.shared, attention, reference)
        program = jax.jit(model.rank_as_defined)
        catalogue = device_catalogue(service.built)
        self._program = lambda batch: ready(program(model.state, catalogue, batch))
        self._computed = functools.cache(self._compute)
        self.answers = [self.answer(number) for number in range(REQUESTS)]
        """Those of full quality."""

    def answer(self, number: int, rung: int = 0) -> Answer:
        """Return the right answer to a request, computed when it is first asked for."""
        return self._computed(number % REQUESTS, rung)

    def wrong(self, number: int, answer: Answer) -> str:
        if answer.rung not in RUNGS:
            return f"no definition of rung {answer.rung}"
        expected = self.answer(number, answer.rung)
        try:
            check_answer(answer.ids, answer.scores, expected.ids, expected.scores)
        except AssertionError as error:
            return str(error)
        return ""

    def _compute(self, number: int, rung: int) -> Answer:
        service, shared = self._service, self._service.shared
        batch = {**service.batches[number], **shared.request(number % TURNS)}
        with jax.default_matmul_precision("highest"):
            order, scores = self._program(known(service.built.bundle.schema, batch, rung))
        return Answer(shared.ids[number % TURNS][order], scores, rung)


RUNGS = range(4)


def known(schema: Schema, batch: dict[str, Any], rung: int) -> dict[str, Any]:
    """Return what the definition of a rung knows of a batch.

    From rung 1 not the long sequence, from 2 nothing of the user, and from 3 nothing of the request.
    """
    absent = ["long_item", "long_type"] * (rung >= 1) + ["short_item", "short_type"] * (rung >= 2)
    batch = {**batch, **{name: np.full_like(batch[name], -1) for name in absent}}
    if rung >= 2:
        batch["user"] = schema.encode("user", {}, 1, strict=False)
    for group in ("context", "pair") if rung >= 3 else ():
        batch[group] = {feature: np.zeros_like(values) for feature, values in batch[group].items()}
    return batch
