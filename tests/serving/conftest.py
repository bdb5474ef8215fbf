"""Two generations of one architecture, and engines that are closed in the end."""

from collections.abc import Iterator
from typing import Any

import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import Tables
from aif_jax.serving import Engine, InMemoryUsers
from aif_jax.types import Candidates
from support.served import ENGINE_CONFIG, Make, Served, World, tables_of


@pytest.fixture(scope="session")
def one(bundle: Bundle, tables: Tables) -> Served:
    """Not to be written to, but with the rows that are there."""
    return bundle, tables


@pytest.fixture(scope="session")
def two(other_bundle: Bundle, world: World) -> Served:
    """Likewise."""
    return tables_of(other_bundle, world)


@pytest.fixture
def make(one: Served, users: InMemoryUsers, world: World) -> Iterator[Make]:
    made: list[Engine] = []

    def make_engine(served: Served = one, **arguments: Any) -> Engine:
        arguments = {
            "users": users, "config": ENGINE_CONFIG,
            "retrieve": lambda request: Candidates(*world.candidates(30)), **arguments,
        }  # fmt: skip
        made.append(Engine(*served, **arguments))
        return made[-1]

    yield make_engine
    for engine in made:
        engine.close()
