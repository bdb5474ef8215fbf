"""Device rows of a release: given back, however its making ends."""

import dataclasses
from typing import Any

import pytest

from aif_jax import _native
from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError, RequestError
from aif_jax.nearline import build_tables
from aif_jax.nearline.device_rows import DeviceRows
from aif_jax.serving import (
    Engine,
    GoldenRequest,
    InMemoryUsers,
    ItemRows,
    Observer,
    Shapes,
    UserStateCache,
    release,
)
from aif_jax.serving.generation import Generation, needs_ahead
from aif_jax.types import ItemRecords
from support.served import ENGINE_CONFIG, Served, World

Closed = list[DeviceRows]


@pytest.fixture(scope="module")
def portable(bundle: Bundle, world: World) -> Served:
    loaded = Bundle.load(bundle.path, prefer="portable")
    return loaded, build_tables(loaded, ItemRecords(world.ids, world.columns, world.content))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Closed:
    """Device rows that were closed, in their order."""
    found: Closed = []
    close = DeviceRows.close

    def noted(rows: DeviceRows) -> None:
        found.append(rows)
        close(rows)

    monkeypatch.setattr(DeviceRows, "close", noted)
    return found


CONFIG = dataclasses.replace(
    ENGINE_CONFIG, item_rows="device", shapes=Shapes(candidates=(32,), histories=(24,))
)


def test_publish_that_fails_gives_device_rows_back(
    portable: Any, users: InMemoryUsers, closed: Closed, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the collector: what failed is still held by the error when this looks."""
    with Engine(*portable, users=users, config=CONFIG) as engine:
        for part in ("Priors", "UserStates", "UserSides", "Retrieval"):
            with monkeypatch.context() as patched:

                def broken(*_: Any, part: str = part) -> Any:
                    raise ConfigError(f"no {part} today")

                patched.setattr(release, part, broken)
                before = len(closed)
                with pytest.raises(ConfigError, match=f"no {part} today") as error:
                    engine.publish(*portable)
                assert len(closed) == before + 1, error
                assert closed[-1].stats()["pending"] == 0
        before = len(closed)
        with pytest.raises(RequestError, match="bid"):
            engine.publish(
                *portable, golden=[GoldenRequest(user=5, candidates=world.ids[:9], pair={"bid": [1]})]
            )
        assert len(closed) == before + 1
        assert len(engine.begin(5).rank(*world.candidates(20))) == 10
    assert len(closed) == before + 2


def test_engine_that_cannot_be_made_gives_device_rows_back(
    portable: Any, users: InMemoryUsers, closed: Closed, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, user_states=UserStateCache(max_bytes=1))
    with pytest.raises(ConfigError, match=r"user_states\.max_bytes"):
        Engine(*portable, users=users, config=config)
    assert len(closed) == 1

    def no_threads(**_: Any) -> Any:
        raise RuntimeError("no threads left")

    with monkeypatch.context() as patched:
        patched.setattr(_native, "Scheduler", no_threads)
        with pytest.raises(RuntimeError, match="no threads left"):
            Engine(*portable, users=users, config=CONFIG)
    assert len(closed) == 1  # nothing was made yet

    class Failing(Observer):
        def opened(self, engine: Engine) -> None:
            raise RuntimeError("not this one")

    with pytest.raises(RuntimeError, match="not this one"):
        Engine(*portable, users=users, config=CONFIG, observers=(Failing(),))
    assert len(closed) == 2


def test_needs_ahead_equal_needs_of_the_generation(portable: Any) -> None:
    ahead = needs_ahead(*portable, CONFIG)
    generation = Generation(*portable, CONFIG)
    generation.warm()
    needs = generation.needs()
    generation.close()
    assert needs["device_rows"].bytes > 0
    assert {n: part.bytes for n, part in needs.items()} == {n: part.bytes for n, part in ahead.items()}
    assert "device_rows" not in needs_ahead(*portable, ENGINE_CONFIG)
    rows = ItemRows("device", device_capacity=1000)
    roomy = needs_ahead(*portable, dataclasses.replace(CONFIG, item_rows=rows))
    assert roomy["device_rows"].bytes == 4 * needs["device_rows"].bytes  # 1,024 rows instead of 256
