"""One request after retrieval, in the form of each contender: the same user, candidates and features."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import numpy as np

from aif_jax.features import pad_to
from aif_jax.types import UserRecord
from workload import FIRST_ID, Built

TURNS = 8
"""Sets of candidates that take turns, so that no request finds its rows in the processor's cache."""

CONTEXT = {"page": 2}

FIRST_CATEGORY, NO_CATEGORY = 2, -1
"""Encoded categories below the first name none that is known; the other fills a user's empty slots."""


@dataclasses.dataclass(frozen=True)
class Case:
    built: Built
    n: int  # candidates
    length: int  # behaviours of the user's history

    @property
    def k(self) -> int:
        return min(self.built.workload.k, self.n)

    @property
    def user(self) -> UserRecord:
        user = self.built.user
        return dataclasses.replace(
            user, items=np.asarray(user.items)[: self.length], types=np.asarray(user.types)[: self.length]
        )

    @cached_property
    def positions(self) -> list[np.ndarray]:
        """Catalogue positions of the candidates, int32 ``[n]``, for each turn."""
        rng = np.random.default_rng(1)
        items = self.built.workload.items
        return [rng.choice(items, self.n, replace=False).astype(np.int32) for _ in range(TURNS)]

    @cached_property
    def ids(self) -> list[np.ndarray]:
        """Item ids of the candidates, uint64 ``[n]``, for each turn."""
        return [positions.astype(np.uint64) + np.uint64(FIRST_ID) for positions in self.positions]

    @cached_property
    def raw_pair(self) -> list[dict[str, np.ndarray]]:
        """Pair features as retrieval gives them, by name, for each turn."""
        rng = np.random.default_rng(2)
        return [{"retrieval_score": rng.normal(size=self.n).astype(np.float32)} for _ in range(TURNS)]

    @cached_property
    def pair(self) -> list[dict[str, np.ndarray]]:
        """Encoded pair features ``[n, ...]`` by name, for each turn."""
        return [self.built.bundle.schema.encode("pair", pair, self.n) for pair in self.raw_pair]

    @cached_property
    def context(self) -> dict[str, np.ndarray]:
        """Encoded context features by name, without a leading axis."""
        return self.built.bundle.schema.encode_one("context", CONTEXT)

    @cached_property
    def user_inputs(self) -> dict[str, np.ndarray]:
        """Encoded user features ``[1, ...]`` by name."""
        schema = self.built.bundle.schema
        return {
            name: np.asarray(v)[None] for name, v in schema.encode_one("user", self.user.features).items()
        }

    @cached_property
    def sequences(self) -> dict[str, np.ndarray]:
        """Positions and types of the user's behaviours, ``[1, S]`` and ``[1, L]``, most recent first."""
        items = (np.asarray(self.user.items) - np.uint64(FIRST_ID)).astype(np.int32)
        types = np.asarray(self.user.types, np.int32)
        short = self.built.workload.short_length
        return {
            "short_item": pad_to(items[:short], short, fill=-1)[None],
            "short_type": pad_to(types[:short], short, fill=-1)[None],
            "long_item": items[None],
            "long_type": types[None],
        }

    def batch(self, turn: int | None = None) -> dict[str, Any]:
        """Return the user's part of a batch as the unfolded model takes it, and the request of a turn.

        Without a turn it has one candidate.
        """
        user = {"user": self.user_inputs, **self.sequences, "item": self.positions[0][None, :1]}
        return user if turn is None else {**user, **self.request(turn)}

    def request(self, turn: int) -> dict[str, Any]:
        """Return the request of a turn as the unfolded model takes it."""
        context = self.context.items()
        return {
            "item": self.positions[turn][None],
            "context": {name: np.broadcast_to(v, (1, self.n, *v.shape)) for name, v in context},
            "pair": {name: column[None] for name, column in self.pair[turn].items()},
        }


_CATALOGUES: dict[int, dict[str, jax.Array]] = {}


def device_catalogue(built: Built) -> dict[str, jax.Array]:
    """Return the encoded catalogue as device arrays, put there once for each workload."""
    key = id(built.catalogue)
    if key not in _CATALOGUES:
        _CATALOGUES[key] = {name: jax.device_put(column) for name, column in built.catalogue.items()}
    return _CATALOGUES[key]
