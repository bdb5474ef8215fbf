"""Descriptions of data and settings: built-in sets, and files in TOML with their errors."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aif_jax.config import ModelConfig
from aif_jax.data import Dataset, Negatives, by_time, describe, last_n, load
from aif_jax.errors import AifError, ConfigError, DataError
from aif_jax.training import TrainConfig

EVENTS = """
[data]
events = "log.parquet"
user = "who"
item = "what"
time = "when"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a log and a table of items."""
    rng = np.random.default_rng(0)
    log = {
        "who": rng.integers(0, 20, 300),
        "what": rng.integers(0, 30, 300),
        "when": 1_760_000_000 + rng.integers(0, 86_400 * 20, 300),
        "did": rng.choice(["click", "buy"], 300),
        "seen": rng.random(300) < 0.5,
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    pq.write_table(
        pa.table({"what": np.arange(30), "genre": ["a", "b", "c"] * 10}), tmp_path / "items.parquet"
    )
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_describe_events_of_a_file_are_those_of_the_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(
        folder,
        EVENTS + 'type = "did"\nitems = "items.parquet"\nlabels = { buy = "buy", any = ["click", "buy"] }\n'
        "negatives = { count = 2, same_day = true }\n"
        'split = { by = "time", validation = "2d", test = 0.2 }\n',
    )
    monkeypatch.chdir("/")  # paths are relative to the file
    found = load(path)
    called = Dataset.from_events(
        str(folder / "log.parquet"), user="who", item="what", time="when", type="did",
        items=str(folder / "items.parquet"), labels={"buy": "buy", "any": ["click", "buy"]},
        negatives=Negatives(2, same_day=True), split=by_time(validation="2d", test=0.2),
    )  # fmt: skip
    assert found.summary == called.summary
    assert found.heads == ("buy", "any")
    assert found.schema == called.schema
    for name in ("user", "item", "split", "history_end"):
        assert np.array_equal(getattr(found.impressions, name), getattr(called.impressions, name)), name


def test_describe_impressions_lists_and_schema_file_are_read(folder: Path) -> None:
    called = Dataset.from_impressions(
        str(folder / "log.parquet"), user="who", item="what", time="when", label="seen", split=last_n()
    )
    called.schema.save(folder / "schema.toml")
    text = EVENTS.replace('events = "log.parquet"', 'impressions = ["log.parquet"]')
    found = load(written(folder, text + 'label = "seen"\nsplit = "last"\nschema = "schema.toml"\n'))
    assert found.heads == ("seen",)
    assert np.array_equal(found.impressions.split, called.impressions.split)
    assert found.schema == called.schema


def test_describe_content_of_a_table_is_that_of_the_call(folder: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(30, 80)).astype(np.float32)
    table = pa.table({"what": np.arange(30), "content": list(vectors)})
    pq.write_table(table, folder / "content.parquet")
    found = load(written(folder, EVENTS + 'content = "content.parquet"\ncontent_width = 8\n'))
    called = Dataset.from_events(
        str(folder / "log.parquet"), user="who", item="what", time="when",
        content=(np.arange(30), vectors), content_width=8,
    )  # fmt: skip
    assert found.content is not None
    assert called.content is not None
    np.testing.assert_array_equal(found.content.vectors, called.content.vectors)


@pytest.mark.parametrize("content", ['content = "absent.parquet"\n', "content_width = 8\n", ""])
def test_describe_content_width_of_0_reads_and_derives_none(folder: Path, content: str) -> None:
    found = load(written(folder, EVENTS + content), content_width=0)
    assert found.content is None
    assert load("synthetic:small", content_width=0).content is None


def test_describe_file_of_the_page_is_read(folder: Path) -> None:
    load(written(folder, EVENTS)).schema.save(folder / "schema.toml")
    page = Path(__file__).resolve().parents[2] / "docs" / "your-data.md"
    (block,) = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    reading = describe(written(folder, block)).reading()
    assert reading.keywords["negatives"] == Negatives(4, same_day=True)
    assert reading.keywords["items"] == str(folder / "items.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("user =", "usr ="), r"line 4, \[data\]: unknown keys \['usr'\]; did you mean 'user'\? known"),
        (('user = "who"', ""), r"line 2, \[data\]: user: absent, but needed; known are"),
        (('"who"', "7"), r"line 4, \[data\]: user: got 7, expected a string"),
        (('"log.parquet"', '"nowhere.parquet"'), r"line 3, \[data\]: events: .*matches no file"),
        (('"log.parquet"', "[1]"), r"line 3, \[data\]: events: got \[1\], expected a path"),
        (("events", "event"), r"line 2, \[data\]: expected events or impressions"),
        (("[data]", "[date]"), r"line 1, \[\]: unknown parts \['date'\]; did you mean 'data'\?"),
        (("[data]", ""), r"unknown parts"),
        (("[data]", "[data"), "cannot be read as TOML"),
        (('"when"', '"when"\nnegatives = { cont = 2 }'), r"line 7, \[data\]: negatives: .*mean 'count'"),
        (('"when"', '"when"\nnegatives = { count = 0 }'), r"line 7, \[data\]: negatives: count: got 0"),
        (('"when"', '"when"\nsplit = { by = "day" }'), r"line 7, .*split: got .*by = time or user or last"),
        (('"when"', '"when"\nsplit = { by = "user", test = "1d" }'), r"line 7, .*split: test: got '1d'"),
        (('"when"', '"when"\ncontext = "hour"'), r"line 7, .*context: got 'hour', expected a list"),
        (('"when"', '"when"\n[data.labels]\nbuy = "rent"'), r"line 7, \[data\]: .*labels"),
        (('"when"', '"when"\n[model]\nwidht = 8'), r"line 8, \[model\]: unknown .*\['widht'\]"),
        (('"when"', '"when"\n[model]\nwidth = 0'), r"line 8, \[model\]: width: got 0, expected"),
    ],
)  # fmt: skip
def test_describe_malformed_file_says_line_and_what_was_expected(
    folder: Path, change: tuple[str, str], message: str
) -> None:
    path = written(folder, EVENTS.replace(*change, 1))
    with pytest.raises(AifError, match=f"{re.escape(str(path))}.*{message}") as found:
        load(path)
    assert str(found.value).count("config.toml") == 1


def test_describe_settings_of_built_in_set_yield_to_those_of_the_file(folder: Path) -> None:
    path = written(folder, '[data]\nbuilt_in = "synthetic:small"\n[model]\nwidth = 8\n')
    described = describe(path)
    model = described.settings("model", ModelConfig)
    assert (model.width, model.heads, model.block_dropout) == (8, ("ctr", "like"), 0.05)
    assert described.settings("training", TrainConfig).epochs == 2
    assert described.dataset().name == "synthetic"
    assert "model" not in describe(written(folder, '[data]\nbuilt_in = "synthetic:small"\n[fit]\n')).parts
    with pytest.raises(ConfigError, match=r"line 4, \[training\]: epochs: got 0"):
        describe(written(folder, '[data]\nbuilt_in = "synthetic:small"\n[training]\nepochs = 0\n')).settings(
            "training", TrainConfig
        )
    with pytest.raises(DataError, match=r"line 2, \[data\]: got data 'movies', expected one of synthetic"):
        describe(written(folder, '[data]\nbuilt_in = "movies"\n'))


def test_describe_arguments_are_checked_against_the_signature(folder: Path) -> None:
    def fit(data: object, *, budget: str | float | None = "10m", init: object = None) -> None: ...

    described = describe(written(folder, EVENTS + '[fit]\nbudget = 60\ninit = "yesterday"\n'))
    assert described.arguments("fit", fit) == {"budget": 60, "init": str(folder / "yesterday")}
    for text, message in (("budgte = 1", "did you mean 'budget'"), ("budget = [1]", r"budget: got \[1\]")):
        with pytest.raises(ConfigError, match=rf"line 8, \[fit\]: .*{message}"):
            describe(written(folder, f"{EVENTS}[fit]\n{text}\n")).arguments("fit", fit)


@pytest.mark.parametrize(("asked", "loaded"), [(None, 64), (32, 64), (100, 100)])
def test_describe_content_is_as_wide_as_asked_and_64_at_least(asked: int | None, loaded: int) -> None:
    content = describe("synthetic:small").dataset(asked).content
    assert content is not None
    assert content.vectors.shape[1] == loaded
    assert np.any(content.vectors[:, -1] != 0.0)
