"""Serve over HTTP, as `aif serve` does: ``python serve.py``."""

from pathlib import Path

import uvicorn
from retrieve import retrieve
from users import users

import aif_jax as aif
from aif_jax.server import create_app

HERE = Path(__file__).parent


def main() -> None:
    """Serve the bundle over HTTP on port 8000 until the process is told to stop."""
    bundle = aif.Bundle.load(HERE / "bundle")
    tables = aif.Tables(
        aif.ItemIndex.open(bundle, HERE / "index" / "items.aifrows"),
        aif.BehaviourTable.open(bundle, HERE / "index" / "behaviours.aifrows"),
    )
    with aif.Engine(bundle, tables, users=users, retrieve=retrieve) as engine:
        uvicorn.run(create_app(engine), port=8000)


if __name__ == "__main__":
    main()
