"""A small log of a shop, and settings that fit a model to it in seconds."""

from typing import Any

import numpy as np

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset
from aif_jax.training import TrainConfig
from aif_jax.training.choosing import Choice

SMALL = ModelConfig(
    heads=("click", "order"), blocks=("long_attention", "profile_item"), width=8,
    embedding_width=4, hidden=8, head_layers=(8,), item_layers=(8,), short_length=4, long_length=8,
    content_width=8, value_width=4, block_dropout=0.1,
)  # fmt: skip
BRIEF = TrainConfig(epochs=2, batch_size=64, group=5, learning_rate=5e-3, warmup_steps=2, patience=0)


def shop(rows: int = 4_000, **options: Any) -> Dataset:
    """Return a log of people who mostly stay in one category each, with types, negatives and two labels."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, 120, rows)
    stays = rng.random(rows) < 0.8
    category = np.where(stays, user % 3, rng.integers(0, 3, rows))
    log = {
        "user": user,
        "item": category + 3 * np.minimum(rng.geometric(0.05, rows), 40),
        "event": rng.choice(["click", "cart", "buy"], rows, p=[0.7, 0.2, 0.1]),
        "time": 1_760_000_000 + rng.integers(0, 30 * 86_400, rows),
    }
    items = {
        "item": np.arange(3, 123),
        "category": np.array(["shoes", "hats", "coats"])[np.arange(3, 123) % 3],
    }
    return Dataset.from_events(
        log, user="user", item="item", time="time", type="event", items=items, content_width=8, name="shop",
        labels={"click": "any", "order": ["cart", "buy"]}, **options,
    )  # fmt: skip


def choose_small(data: Dataset, budget_s: float | None) -> Choice:
    """Choose a model that trains in seconds, for pages whose `fit` would take its whole budget."""
    model = SMALL.replace(heads=data.heads, score=data.heads[0], blocks=("profile_item",))
    return Choice(model=model, training=BRIEF.replace(max_steps=20), reasons=(f"small, within {budget_s} s",))
