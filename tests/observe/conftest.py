"""Engines with observers, over the small model that all serving tests share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aif_jax.bundle import Bundle
from aif_jax.nearline import Tables
from aif_jax.serving import Engine, InMemoryUsers
from support.served import ENGINE_CONFIG


@pytest.fixture
def make(bundle: Bundle, tables: Tables, users: InMemoryUsers) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make_engine(*observers: Any, **arguments: Any) -> Engine:
        arguments = {"users": users, "config": ENGINE_CONFIG, **arguments}
        engine = Engine(bundle, tables, observers=observers, **arguments)
        made.append(engine)
        return engine

    yield make_engine
    for engine in made:
        engine.close()
