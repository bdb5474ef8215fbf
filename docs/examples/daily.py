"""Every day: train on the log until today from yesterday's model, export, build tables, publish.

The log is made up; put your own into `data_until`. Run: python docs/examples/daily.py
"""

import tempfile
from pathlib import Path

import numpy as np

import aif_jax as aif
from aif_jax.data import Dataset, by_time
from aif_jax.training import TrainConfig, TrainResult

MODEL = aif.ModelConfig(
    architecture="cold", heads=("interaction",), blocks=("profile_item",), width=8, embedding_width=8,
    hidden=16, head_layers=(8,), item_layers=(8,), short_length=8, long_length=8, content_width=8,
)  # fmt: skip
A_DAY, GROUPS = 1_500, 6


def data_until(day: int) -> Dataset:
    """Return what 300 users did until a day: most of it in a group of their own; six items a day are new."""
    rng, n = np.random.default_rng(0), A_DAY * day
    user, today, chance = rng.integers(0, 300, n), np.arange(n) // A_DAY, rng.random(n)
    group = np.where(rng.random(n) < 0.8, user % GROUPS, rng.integers(0, GROUPS, n))
    item = (chance * (10 + today)).astype(int) * GROUPS + group
    log = {"user": user, "item": item, "time": 1_760_000_000 + np.arange(n) * (86_400 // A_DAY)}
    items = {"item": np.unique(item), "group": [f"group {number % GROUPS}" for number in np.unique(item)]}
    users = {"user": np.unique(user), "city": [f"city {number % GROUPS}" for number in np.unique(user)]}
    return Dataset.from_events(
        log, user="user", item="item", time="time", users=users, items=items, content_width=8,
        split=by_time(validation="1d", test=0.0), name=f"day {day}",
    )  # fmt: skip


def main(folder: Path, first: int = 4, days: int = 3) -> list[TrainResult]:
    """Run the loop for some days and return the trainings, after checking each against the day before."""
    results: list[TrainResult] = []
    users, engine, yesterday = {}, None, None
    for day in range(first, first + days):
        data = data_until(day)
        users["source"] = data.user_source()
        training = TrainConfig(epochs=1 if yesterday else 4, learning_rate=1e-2, group=5)
        run = aif.fit(
            data, model=MODEL, training=training, baselines=(), init=yesterday, out=folder / f"run-{day}"
        )
        result, yesterday = run.results["cold"], folder / f"run-{day}"
        if results:
            assert result.metrics.gauc > results[-1].metrics.gauc - 0.03, "worse: not published"
            assert result.warm_start.kept["item.item"] == results[-1].schema.feature("item", "item").size
        bundle = run.export(folder / f"bundle-{day}", k_max=20)
        # All weights have changed, so all rows have: both tables are built anew, and published with it.
        tables = aif.build_tables(bundle, data)
        if engine is None:
            engine = aif.Engine(bundle, tables, users=lambda user: users["source"](user))
        else:
            print(engine.publish(bundle, tables, checks=aif.PublishChecks(min_coverage=1.0)))
        print(f"day {day}: best for user 17", engine.begin(17).rank(data.items["ids"], k=5).ids)
        results.append(result)
    engine.close()
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
