"""`aif init`: what it guesses of a log, what it refuses, and that what it writes runs as it is."""

import asyncio
import importlib
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from aif_jax.cli import app as cli
from aif_jax.data import load
from aif_jax.errors import ConfigError
from aif_jax.types import Request

SMALL = """
[model]
width = 8
embedding_width = 4
hidden = 8
item_layers = [8]
head_layers = [8]
short_length = 4
long_length = 8
blocks = ["profile_item"]
[training]
max_steps = 5
"""
"""A model that is trained in no time, in place of one that `fit` chooses."""


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def log(**more: Any) -> dict[str, Any]:
    """Columns of a log under names of somebody's own; 40 rows of 10 users and 8 products."""
    place = np.arange(40)
    return {
        "visitorId": place % 10, "product_id": place * 7 % 8, "created_at": 1_760_000_000 + place * 3_600,
        **more,
    }  # fmt: skip


def initialised(folder: Path, columns: dict[str, Any], *options: object) -> tuple[dict[str, Any], str]:
    pq.write_table(pa.table(columns), folder / "mine.parquet")
    said = run("init", folder / "shop", "--log", folder / "mine.parquet", *options)
    return tomllib.loads((folder / "shop" / "config.toml").read_text())["data"], said


def test_init_guesses_events_and_tables_of_items_and_users(tmp_path: Path) -> None:
    place = np.arange(40)
    data, said = initialised(
        tmp_path,
        log(
            action=np.array(["view", "buy"])[place % 2],
            colour=np.array(["red", "blue"])[place * 7 % 8 % 2],
            country=np.array(["de", "fr", "it"])[place % 10 % 3],
            hour=place % 24,
        ),
    )
    assert {role: data[role] for role in ("user", "item", "time", "type")} == {
        "user": "visitorId", "item": "product_id", "time": "created_at", "type": "action",
    }  # fmt: skip
    assert "product_id  (guessed from its name)" in said
    assert pq.read_table(tmp_path / "shop" / "items.parquet").column_names == ["product_id", "colour"]
    assert pq.read_table(tmp_path / "shop" / "users.parquet").column_names == ["visitorId", "country"]
    text = (tmp_path / "shop" / "config.toml").read_text()
    assert "# types: view 20, buy 20" in text
    assert '# context = ["hour"]' in text
    found = load(tmp_path / "shop" / "config.toml")
    assert (found.n_users, found.n_items, found.heads) == (10, 8, ("interaction",))
    assert [feature.name for feature in found.schema.item] == ["product_id", "colour"]


def test_init_guesses_impressions_by_their_label(tmp_path: Path) -> None:
    data, _ = initialised(tmp_path, log(clicked=np.arange(40) % 2))
    assert (data["label"], "events" in data, "negatives" in data) == ("clicked", False, False)
    assert load(tmp_path / "shop" / "config.toml").heads == ("clicked",)


def test_init_column_that_is_not_guessed_can_be_named(tmp_path: Path) -> None:
    columns = log()
    columns["x"] = columns.pop("visitorId")
    with pytest.raises(
        ConfigError, match=r"like the user; name it: --user COLUMN\. The columns are \['product"
    ):
        initialised(tmp_path, columns)
    assert not (tmp_path / "shop").exists()
    with pytest.raises(ConfigError, match="--user: got 'y', but the columns are"):
        initialised(tmp_path, columns, "--user", "y")
    data, said = initialised(tmp_path, columns, "--user", "x")
    assert data["user"] == "x"
    assert "x  (as given)" in said


def test_init_column_of_a_fitting_name_and_other_values_is_passed_over(tmp_path: Path) -> None:
    data, _ = initialised(tmp_path, log(type=np.arange(40) / 3, label=np.arange(40)))
    assert "type" not in data
    assert "label" not in data


def test_init_folder_that_is_not_empty_or_absent_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        run("init", tmp_path / "mine", "--example")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    with pytest.raises(ConfigError, match="does not exist"):
        run("init", tmp_path / "shop", "--log", tmp_path / "nowhere.parquet")


def test_init_example_sources_answer_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", tmp_path / "shop", "--example")
    project = _modules(tmp_path / "shop", monkeypatch)
    assert project["users"].DATA.content is None, "deriving it at each start of a server takes time"
    record = project["users"].users("u7")
    assert len(record.items) > 0
    assert asyncio.run(project["users"].users_async("u7")).items.tolist() == record.items.tolist()
    assert project["users"].users("nobody") is None
    found = project["retrieve"].retrieve(Request("u7")).tolist()
    assert len(set(found)) == len(found) == 150


@pytest.mark.thorough
def test_commands_examples_of_help_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = _examples()
    said = {}
    for name in ("init", "train", "evaluate", "export", "index build", "inspect", "rank", "doctor"):
        said[name] = run(*commands[name])
        if name == "init":
            config = tmp_path / "shop" / "config.toml"
            config.write_text(config.read_text().split("# Fields of")[0] + SMALL)
    assert "150 candidates" in said["rank"]
    assert json.loads(said["doctor"])["checks"]


def test_commands_each_has_an_example_that_parses() -> None:
    group: Any = get_command(cli.app)
    for name, words in _examples().items():
        command = group.commands["index"].commands["build"] if name == "index build" else group.commands[name]
        given = words[len(name.split()) :]
        command.make_context(name, given, resilient_parsing=False)


def _examples() -> dict[str, list[str]]:
    """Return the example of each command's help."""
    found: dict[str, list[str]] = {}
    group: Any = get_command(cli.app)
    commands = {**group.commands, **{f"index {n}": c for n, c in group.commands["index"].commands.items()}}
    for name, command in commands.items():
        if name != "index":
            (line,) = re.findall(r"Example: aif (.*)", command.epilog or "")
            found[name] = shlex.split(line)
    return found


def _modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Import the files of a project as `aif serve` would."""
    monkeypatch.syspath_prepend(folder)
    names = ("users", "retrieve", "train", "serve")
    try:
        return {name: importlib.import_module(name) for name in names}
    finally:
        for name in names:
            sys.modules.pop(name, None)
