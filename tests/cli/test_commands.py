"""The `aif` command end to end on made-up data, and the errors that a user sees."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aif_jax.bundle import Bundle
from aif_jax.cli import app as cli
from aif_jax.data import fit_width, load
from aif_jax.errors import AifError, BundleError, ConfigError, DataError, RequestError, VersionMismatchError
from aif_jax.nearline import Archive, ItemIndex
from aif_jax.nearline.records import concatenated

DATA = "synthetic:small"


USER = "u0000003"


def run(*arguments: object) -> str:
    """Run the command as `main` would, letting our own errors through."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a bundle and an index, whose content embeddings are wider than data sets load."""
    home = tmp_path_factory.mktemp("road")
    (home / "config.toml").write_text(
        f'[data]\nbuilt_in = "{DATA}"\n'
        "[model]\nwidth = 16\nhidden = 32\nlong_length = 64\nshort_length = 16\ncontent_width = 96\n"
        'blocks = ["sim_hard", "profile_item", "context"]\n[training]\nepochs = 1\nseed = 5\n'
    )
    run("train", home / "config.toml", "--out", home / "run")
    run("export", home / "run", "--out", home / "bundle")
    run("index", "build", home / "bundle", "--data", home / "config.toml", "--out", home / "index")
    return home


@pytest.fixture(scope="module")
def compact(road: Path) -> Path:
    """The same run, exported in another precision: another version."""
    run("export", road / "run", "--out", road / "compact", "--precision", "int8")
    return road / "compact"


def test_rank_command_prints_report_of_trained_model(road: Path) -> None:
    output = run("rank", road / "bundle", road / "index", "--data", DATA, "--user", USER, "--k", 5)
    assert "hidden_ms" in output
    assert "500 candidates" in output


def test_rank_command_candidates_ranks_only_those(road: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "candidates.txt"
    some = [str(item) for item in load(DATA).items["ids"][:3]]
    chosen.write_text("\n".join(some))
    named = run(
        "rank",
        road / "bundle",
        road / "index",
        "--data",
        DATA,
        "--user",
        USER,
        "--candidates",
        ",".join(some),
    )
    from_file = run(
        "rank", road / "bundle", road / "index", "--data", DATA, "--user", USER, "--candidates", f"@{chosen}"
    )
    assert "3 candidates" in named
    assert "3 candidates" in from_file


def test_inspect_command_names_run_bundle_and_index(road: Path) -> None:
    assert "a trained aif model" in run("inspect", road / "run")
    notes = json.loads((road / "run" / "model" / "model.json").read_text())["notes"]
    assert (notes["data"], notes["seed"]) == ("synthetic", 5)  # of the config
    bundle = run("inspect", road / "bundle")
    assert Bundle.load(road / "bundle").version[:12] in bundle
    assert "16 recent and 64 long-term" in bundle
    assert "item rows in float32" in bundle
    index = run("inspect", road / "index")
    assert "500 rows" in index
    assert "behaviour table" in index


def test_index_build_command_catalogue_gives_index_of_data_set(road: Path, tmp_path: Path) -> None:
    dataset = load(DATA, content_width=96)
    assert dataset.content is not None
    bundle = Bundle.load(road / "bundle")
    rows = {name: concatenated([column, []]) for name, column in dataset.items.items() if name != "ids"}
    content = [list(row) for row in fit_width(dataset.content, bundle.config.content_width).vectors]
    pq.write_table(
        pa.table({"id": list(dataset.items["ids"]), **rows, "content": content}), tmp_path / "c.parquet"
    )
    said = run(
        "index", "build", road / "bundle", "--catalogue", tmp_path / "c.parquet", "--out", tmp_path / "i"
    )
    assert "item index: 500 rows" in said
    built, other = (
        ItemIndex.open(bundle, folder / "items.aifrows") for folder in (tmp_path / "i", road / "index")
    )
    keys = other.store.cache.keys()
    assert np.array_equal(built.gather(keys)[0]["h"], other.gather(keys)[0]["h"])
    with Archive(tmp_path / "archive") as archive:
        archive.start(built)
    assert "an archive" in run("inspect", tmp_path / "archive")
    (tmp_path / "archive" / "000001.rows").write_bytes(b"spoilt")
    assert "is not a snapshot" in run("inspect", tmp_path / "archive")
    result = CliRunner().invoke(
        cli.app, ["index", "build", str(road / "bundle"), "--out", str(tmp_path / "i")]
    )
    assert result.exit_code == 2
    assert "either --data or --catalogue" in result.output


def test_export_command_precision_and_score_are_taken(road: Path, compact: Path, tmp_path: Path) -> None:
    assert Bundle.load(compact).precision == "int8"
    assert "item rows in int8" in run("inspect", compact)
    run("export", road / "run", "--out", tmp_path / "other", "--score", "ctr * like")
    assert Bundle.load(tmp_path / "other").config.score == "ctr * like"
    with pytest.raises(ConfigError, match="'moon' in 'moon' is no head"):
        run("export", road / "run", "--out", tmp_path / "third", "--score", "moon")
    with pytest.raises(ConfigError, match="precision: got 'half'"):
        run("export", road / "run", "--out", tmp_path / "fourth", "--precision", "half")


def test_rank_command_index_of_another_bundle_is_refused(road: Path, compact: Path) -> None:
    with pytest.raises((VersionMismatchError, AifError), match="version"):
        run("rank", compact, road / "index", "--data", DATA, "--user", USER)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("train", "nowhere", "--out", "x"), DataError, "expected one of"),
        (("train", "nowhere.toml", "--out", "x"), ConfigError, r"nowhere\.toml: cannot be read as TOML"),
        (("train", "kuairand:/no/such/path", "--out", "x"), DataError, "/no/such/path"),
        (("train", DATA, "--out", "x", "--architecture", "mlp"), ConfigError, "two_tower"),
        (("export", "/no/model", "--out", "x"), BundleError, "not a saved model"),
        (("inspect", "/no/such/thing"), AifError, "does not exist"),
    ],
)
def test_commands_bad_arguments_say_what_was_expected(
    arguments: tuple[str, ...],
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        run(*arguments)


def test_rank_command_unknown_user_or_candidate_is_refused(road: Path) -> None:
    rank = ("rank", road / "bundle", road / "index", "--data", DATA)
    with pytest.raises(DataError, match="no user 'nobody'"):
        run(*rank, "--user", "nobody")
    with pytest.raises(RequestError, match="'x' is not an item id"):
        run(*rank, "--user", USER, "--candidates", "1,x")


def test_train_command_existing_run_is_refused(road: Path) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        run("train", DATA, "--out", road / "run", "--epochs", 1)


def test_train_command_config_that_does_not_fit_is_refused_before_data_is_read(tmp_path: Path) -> None:
    data = '[data]\nevents = "nowhere.parquet"\nuser = "u"\nitem = "i"\ntime = "t"\n'
    config = tmp_path / "config.toml"
    config.write_text(f"{data}[training]\nepohcs = 1\n")
    with pytest.raises(ConfigError, match=r"line 7, \[training\]: .*did you mean 'epochs'"):
        run("train", config, "--out", tmp_path / "run")
    config.write_text(data)
    with pytest.raises(ConfigError, match="leaves both to fit"):
        run("train", config, "--out", tmp_path / "run", "--epochs", 3)
    with pytest.raises(ConfigError, match="--budget: synthetic describes one model"):
        run("train", "synthetic", "--out", tmp_path / "run", "--budget", "1m")


def test_train_command_time_that_no_model_keeps_is_refused_before_training(tmp_path: Path) -> None:
    fastest = ("--architecture", "two_tower", "--budget-ms", 1e-4)
    with pytest.raises(ConfigError, match=r"stage_ms: got 0\.0001, but as it is takes"):
        run("train", "synthetic:small", "--out", tmp_path / "run", *fastest)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["/no/such/thing", "/no/such/thing" * 500], ids=["absent", "too long"])
def test_main_error_of_ours_or_of_the_system_is_shown_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    monkeypatch.setattr("sys.argv", ["aif", "inspect", path])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "/no/such/thing" in shown
    assert "Traceback" not in shown


def test_serve_command_answers_over_http_until_told_to_stop(road: Path, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from aif_jax import UserRecord\n"
        "def users(user):\n"
        "    return UserRecord() if user == 'ann' else None\n"
        f"def retrieve(request):\n    return {load(DATA).items['ids'][:20].tolist()!r}\n"
    )
    aif = Path(sys.executable).with_name("aif")
    arguments = [aif, "serve", road / "bundle", road / "index", "--port=0", f"--cache={tmp_path / 'cache'}"]
    arguments += ["--users=shop:users", "--retrieve=shop:retrieve"]
    wide = os.environ | {"COLUMNS": "300"}
    with subprocess.Popen(arguments, cwd=tmp_path, env=wide, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            (address,) = re.findall(r"http://[0-9.]+:[0-9]+", line)
            answer = httpx.post(f"{address}/rank", json={"user": "ann", "k": 3}, timeout=60)
            assert (answer.status_code, len(answer.json()["ids"])) == (200, 3)
            assert httpx.post(f"{address}/rank", json={"user": "bob"}).status_code == 404
            assert "aif_rankings_total" in httpx.get(f"{address}/metrics").text
        finally:
            process.terminate()
        assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shop", "got 'shop', expected MODULE:NAME"),
        ("no_such_module:f", "no_such_module:f cannot be imported"),
        ("json:__name__", "is a str, expected a function"),
    ],
)
def test_serve_command_users_that_are_no_function_are_refused(road: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run("serve", road / "bundle", road / "index", "--users", name)
