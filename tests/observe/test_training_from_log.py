"""Data sets of logged requests: what is trained on is what was served."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from aif_jax.data import Content, Dataset, by_time
from aif_jax.errors import DataError
from aif_jax.observe import RequestLog
from aif_jax.serving import Engine, InMemoryUsers, Ranking
from aif_jax.training import TrainConfig, predict, train
from aif_jax.types import Candidates, UserRecord
from support.served import ENGINE_CONFIG, N_ITEMS, SCHEMA, TINY, World

HEADS = ("ctr", "cvr")


@dataclasses.dataclass
class Served:
    """A log of requests, their rankings by id, and what came of the items of the answers."""

    folder: Path
    rankings: dict[str, Ranking]
    labels: dict[str, Any]
    items: dict[str, Any]
    asked: dict[str, tuple[int, dict[str, Any], Candidates]]

    def dataset(self, **given: Any) -> Dataset:
        settings = {"labels": self.labels, "label": HEADS, "items": self.items, "schema": SCHEMA}
        return Dataset.from_request_log(self.folder, **{**settings, "content_width": 0, **given})


def with_times(record: UserRecord) -> UserRecord:
    """Return a record all whose behaviours but the oldest two have times."""
    times = 1.7e9 - np.cumsum(np.geomspace(1.0, 1e6, len(record.items)))
    times[-2:] = np.nan
    return dataclasses.replace(record, times=times)


@pytest.fixture(scope="module")
def served(
    world: World, bundle: Any, tables: Any, users: InMemoryUsers, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(0)
    rankings: dict[str, Ranking] = {}
    asked: dict[str, Any] = {}
    found: dict[int, Candidates] = {
        user: Candidates(*world.candidates(int(rng.integers(12, 60)), seed=user)) for user in range(10)
    }
    log = RequestLog(folder, 1.0, rotate_bytes=20_000)  # several files
    records = {user: with_times(users(user)) for user in range(10)}  # type: ignore[arg-type]
    with Engine(
        bundle, tables, users=records, retrieve=lambda request: found[request.user], config=ENGINE_CONFIG,
        observers=[log],
    ) as engine:  # fmt: skip
        for number in range(20):
            user, context = number % 10, {"hour": int(rng.integers(24))}
            ranking = engine.rank(user, context)
            rankings[ranking.report.request_id] = ranking
            asked[ranking.report.request_id] = user, context, found[user]
    assert log.stats()["files"] > 1
    labels = {
        "request_id": [name for name, ranking in rankings.items() for _ in ranking.ids],
        "item": np.concatenate([ranking.ids for ranking in rankings.values()]),
    }
    labels |= {head: rng.integers(0, 2, len(labels["item"])) for head in HEADS}
    columns = {name: column for name, column in world.columns.items() if name != "item"}
    return Served(folder, rankings, labels, {"item": world.ids, **columns}, asked)


def with_content(data: Dataset, world: World) -> Dataset:
    """Return the set with the content that the item rows were made of."""
    assert data.items["ids"].tolist() == world.ids.tolist()
    return dataclasses.replace(data, content=Content(world.content, np.any(world.content != 0, axis=1)))


def test_request_log_logits_of_logged_requests_are_those_served(served: Served, world: World) -> None:
    data = with_content(served.dataset(split=by_time(0, 0)), world)
    chances = np.asarray(jax.nn.sigmoid(predict(world.model, data, "train")))
    rows, ids = data.impressions, data.items["ids"]
    assert len(rows) == sum(map(len, served.rankings.values()))
    worst = 0.0
    for row in range(len(rows)):
        ranking = served.rankings[data.users["ids"][rows.user[row]]]
        [place] = np.flatnonzero(ranking.ids == ids[rows.item[row]])
        given = np.array([ranking.heads[head][place] for head in HEADS])
        worst = max(worst, float(np.abs(chances[row] - given).max()))
    assert worst < 1e-6


def test_request_log_rows_hold_the_labels_and_features_of_their_request(served: Served) -> None:
    data = served.dataset()
    rows, ids = data.impressions, data.items["ids"].tolist()
    label = {
        (name, item): values
        for name, item, *values in zip(
            *(np.asarray(served.labels[column]).tolist() for column in ("request_id", "item", *HEADS)),
            strict=True,
        )
    }
    assert len(rows) == len(label)
    for row in range(len(rows)):
        name, item = data.users["ids"][rows.user[row]], ids[rows.item[row]]
        _, context, candidates = served.asked[name]
        place = candidates.ids.tolist().index(item)
        assert [rows.labels[head][row] for head in HEADS] == label[name, item]
        assert rows.context["hour"][row] == context["hour"]
        assert rows.pair["bid"][row] == candidates.pair["bid"][place]
        assert rows.pair["channel"][row] == candidates.pair["channel"][place]
        assert rows.history_end[row] == data.events.offsets[rows.user[row] + 1]


def test_request_log_trains_a_model(served: Served, world: World) -> None:
    data = with_content(served.dataset(split=by_time(0.2, 0.2)), world)
    config = TrainConfig(epochs=1, batch_size=64)
    model = train(TINY, data, config).model
    assert np.isfinite(predict(model, data, "test")[data.impressions.split == 2]).all()


def test_request_log_unlabelled_items_of_the_answer_count_as_zero(served: Served) -> None:
    clicked = np.flatnonzero(served.labels["ctr"])
    labels = {name: np.asarray(column, object)[clicked].tolist() for name, column in served.labels.items()}
    labels["request_id"][0], labels["item"][1] = "nobody's", 0
    given = {"labels": labels, "unlisted": "drop", "label": {"ctr": "ctr"}, "split": by_time(0.2, 0.2)}
    data = served.dataset(**given, unlabelled="zero")
    assert len(data.impressions) == len(served.labels["item"])
    assert data.impressions.labels["ctr"].sum() == len(clicked) - 2
    assert data.notes["left_out"] == {"of labels whose request or candidate the log lacks": 2}
    with pytest.raises(DataError, match=r"all .* known training labels are 1"):
        served.dataset(**given)


def test_request_log_masked_features_are_missing_and_said_to_be(
    served: Served, world: World, bundle: Any, tables: Any, users: InMemoryUsers, tmp_path: Path
) -> None:
    log = RequestLog(tmp_path, 1.0, mask=["user_id", "user.country", "history"])
    with Engine(
        bundle, tables, users=users, retrieve=lambda request: world.ids[:30], config=ENGINE_CONFIG,
        observers=[log],
    ) as engine:  # fmt: skip
        names = [engine.rank(user).report.request_id for user in range(4)]
    labels = {"request_id": names * 2, "item": np.repeat(world.ids[:2], 4), "ctr": [0, 1] * 4}
    data = dataclasses.replace(served, folder=tmp_path).dataset(
        labels=labels, label="ctr", split=by_time(0, 0)
    )
    assert data.users["country"] == [None] * 4
    assert len(data.events) == 0
    assert "user feature 'country' is in no request, or masked" in data.summary
    assert len(data.impressions) == 8
    assert data.n_items == N_ITEMS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unlabelled": "one"}, "unlabelled: got 'one'"),
        ({"label": []}, "label: got no column"),
        ({"labels": {"request_id": ["?"], "item": [2**40], "ctr": [1], "cvr": [0]}}, "labels: none is of"),
        ({"request": "id"}, "labels: has no column 'id'"),
    ],
)
def test_request_log_what_does_not_fit_is_refused(served: Served, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        served.dataset(**given)


def test_request_log_folder_of_other_files_is_refused(served: Served, tmp_path: Path) -> None:
    empty = dataclasses.replace(served, folder=tmp_path)
    with pytest.raises(DataError, match=r"holds no \*.parquet file"):
        empty.dataset()
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="cannot be read"):
        empty.dataset()
