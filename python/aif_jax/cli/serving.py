"""`aif serve`: an engine behind HTTP, with a user source and a retrieval that the user names."""

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from aif_jax.bundle import Bundle
from aif_jax.cli.building import BEHAVIOURS, ITEMS
from aif_jax.data import load
from aif_jax.errors import ConfigError
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables
from aif_jax.observe import SlowRequests
from aif_jax.serving import Engine, Observer


def run_serve(
    bundle_path: Path,
    index: Path,
    *,
    users: str | None,
    data: str | None,
    retrieve: str | None,
    host: str,
    port: int,
    cache: Path | None,
    console: Console,
) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); requests under way are answered.

    Args:
        bundle_path: OUT of `aif export`.
        index: OUT of `aif index build`.
        users: the user source as ``MODULE:NAME``; the working directory is searched, too.
        data: or a data set, whose users are served with their whole histories.
        retrieve: ``retrieve`` of the engine as ``MODULE:NAME``; without it each request brings candidates.
        host: address to listen on.
        port: port to listen on; 0 for any that is free.
        cache: directory of compiled programs; ``None`` for a private one of this user.
        console: where progress is printed.

    Raises:
        ConfigError: a name cannot be imported or called.
    """
    import uvicorn

    from aif_jax.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            for one in (each for server in self.servers for each in server.sockets):
                where = "http://{}:{}".format(*one.getsockname()[:2])
                console.print(f"{engine} on {where}; stop with Ctrl-C", markup=False, highlight=False)
            console.file.flush()  # a log reads it through a pipe

    source = _called("--users", users) if users else load(str(data)).user_source()
    finder = _called("--retrieve", retrieve) if retrieve else None
    with console.status("loading, and compiling what no earlier process did"):
        bundle = Bundle.load(bundle_path, compilation_cache=cache or private_cache())
        tables = Tables(
            ItemIndex.open(bundle, index / ITEMS), BehaviourTable.open(bundle, index / BEHAVIOURS)
        )
        slow = SlowRequests()
        observers: list[Observer] = [slow]
        metrics = None
        if importlib.util.find_spec("prometheus_client"):
            from aif_jax.observe.prometheus import PrometheusMetrics

            metrics = PrometheusMetrics()
            observers.append(metrics)
        engine = Engine(bundle, tables, users=source, retrieve=finder, observers=observers)
    with engine:
        app = create_app(engine, metrics=metrics, slow=slow)
        gc.collect()
        gc.freeze()  # a full collection would stop all threads for as long as it looks at jax's own objects
        Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).run()


def private_cache() -> Path:
    """Return this user's own directory of compiled programs; made, for nobody else to read, if absent."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = base / "aif_jax" / "compiled"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _called(option: str, name: str) -> Callable[..., Any]:
    """Return what ``MODULE:NAME`` names."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"{option}: got {name!r}, expected MODULE:NAME, such as shop.users:fetch.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{option}: {name} cannot be imported ({error}); it is looked for in {here} and in what is "
            "installed."
        ) from error
    if not callable(found):
        raise ConfigError(f"{option}: {name} is a {type(found).__name__}, expected a function.")
    return found
