"""A small shop's logs as columns: what people did, and what they were shown."""

from typing import Any

import numpy as np

HOUR = 3_600
START = 1_764_000_000
"""Seconds of the epoch; all of the log is within 40 days after it."""


def shop(rows: int = 4_000, *, users: int = 60, items: int = 80, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return ``events``, ``users`` and ``items`` as columns, in no order; times are seconds."""
    random = np.random.default_rng(seed)
    item = np.minimum(random.geometric(0.05, rows) - 1, items - 1)
    names = np.array(["click", "cart", "buy"], object)
    return {
        "events": {
            "who": np.array([f"u{user}" for user in random.integers(0, users, rows)], object),
            "what": 100 + item,
            "when": START + random.integers(0, 40 * 24, rows) * HOUR,
            "kind": names[random.choice(3, rows, p=[0.8, 0.15, 0.05])],
            "page": np.array(["home", "search"], object)[random.integers(0, 2, rows)],
        },
        "users": {"who": [f"u{user}" for user in range(users)], "age": random.integers(18, 80, users)},
        "items": {
            "what": 100 + np.arange(items),
            "price": random.gamma(2.0, 10.0, items),
            "tags": [["red", "blue", "green"][: 1 + item % 3] for item in range(items)],
        },
    }


def shown(rows: int = 4_000, *, users: int = 60, items: int = 80, seed: int = 1) -> dict[str, Any]:
    """Return impressions as columns: four of a request, some clicked, with a bid and a place."""
    random = np.random.default_rng(seed)
    requests = rows // 4
    owner, time = (
        random.integers(0, users, requests),
        START + np.sort(random.integers(0, 40 * 24, requests)) * HOUR,
    )
    item = np.concatenate([random.choice(items, 4, replace=False) for _ in range(requests)])
    return {
        "who": np.repeat(np.array([f"u{user}" for user in owner], object), 4),
        "what": 100 + item,
        "when": np.repeat(time, 4),
        "request": np.repeat(np.arange(requests), 4),
        "click": (random.random(rows) < 0.3).astype(np.int64),
        "bid": random.random(rows),
        "place": np.tile(np.arange(4), requests),
    }
