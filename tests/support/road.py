"""The road of docs/getting-started.md: its commands, run as they stand there on a log that is made here."""

import json
import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "getting-started.md"
MAX_LINES = 25


def commands() -> list[str]:
    """Return the command lines of the page."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def write_log(path: Path, *, users: int = 500, items: int = 300, events: int = 20_000) -> None:
    """Write a log of users with tastes for categories, under a shop's own names of columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    category = random.integers(0, 8, items)
    popularity = random.pareto(1.5, items) + 1
    taste = random.dirichlet(np.full(8, 0.3), users)
    user = random.integers(0, users, events)
    weight = popularity * taste[:, category]
    bounds = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
    item = np.array([np.searchsorted(bounds[u], x) for u, x in zip(user, random.random(events), strict=True)])
    item = np.minimum(item, items - 1)
    names = np.array(["shoes", "hats", "coats", "bags", "belts", "scarves", "gloves", "socks"])
    columns = {
        "user_id": user,
        "product_id": item + 1_000,
        "action": random.choice(["view", "cart", "buy"], events, p=[0.8, 0.15, 0.05]),
        "ts": (1_760_000_000 + random.integers(0, 30 * 86_400, events)).astype("datetime64[s]"),
        "category": names[category[item]],
    }
    pq.write_table(pa.table(columns), path)


def walk(home: Path, lines: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run command lines in one shell, in a folder with the log, and return the answer of the last one.

    The page's port is replaced by one that is free. What is left running is ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ["set -em", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    script += ["PS4='[$SECONDS s] $ '", "set -x"]  # root's bash reads none from its environment
    for line in lines:
        line = line.replace("localhost:8000", f"localhost:{port}")
        script.append(re.sub(r"^(aif serve .*) &$", rf"\1 --port {port} > serve.log &", line))
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=home, env=dict(environment), text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3_000:]
    return json.JSONDecoder().raw_decode(done.stdout, done.stdout.index('{"ids"'))[0]
