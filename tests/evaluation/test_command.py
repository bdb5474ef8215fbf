"""`aif evaluate` on a saved model and its bundle, and the errors of its paths."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aif_jax.bundle import Bundle
from aif_jax.cli import app as cli
from aif_jax.errors import AifError, DataError
from aif_jax.models.baselines import Model
from aif_jax.models.store import save_model

DATA = ("--data", "synthetic:small")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_evaluate_prints_tables_and_writes_json_and_picture(
    model: Model, bundle: Bundle, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "mine" / "model", metrics={}, notes={})
    shown = run(
        "evaluate", bundle.path, *DATA, "--against", tmp_path / "mine", "--out", tmp_path / "out",
        "--head", "ctr", "--slice", "category", "--lists", 20, "--candidates", 30, "--resamples", 20,
    )  # fmt: skip
    assert "folded, as it serves" in shown
    for words in (
        "GAUC",
        "floor: item mean",
        "mine",
        "agreement with mine",
        "rank correlation",
        "item category",
    ):
        assert words in shown
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(found["heads"]) == ["ctr"]
    assert (found["model"]["kind"], found["against"]["against"]["kind"]) == ("bundle", "run")
    assert (tmp_path / "out" / "evaluation.svg").read_text().count("<svg") == 1


def test_evaluate_of_a_path_or_data_that_does_not_fit_fails_before_any_work(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AifError, match="neither a trained model nor a bundle"):
        run("evaluate", tmp_path, *DATA)
    with pytest.raises(DataError, match="expected one of"):
        run("evaluate", bundle.path, "--data", "nowhere")
    assert not list(tmp_path.iterdir())
