"""`Run`: its report, its files and its bundle."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from aif_jax.data import Dataset
from aif_jax.data.content import Content
from aif_jax.errors import BundleError, ConfigError
from aif_jax.evaluation import open_scorer
from aif_jax.evaluation.blocks import worth_of_blocks
from aif_jax.features import ContentSpace
from aif_jax.fitting import Run, fit
from aif_jax.models.store import weights_of
from aif_jax.training import candidate_lists
from support.fitted import BRIEF, SMALL


def test_run_report_holds_every_model_floor_and_figure_within_110_columns(run: Run) -> None:
    table = run.report()
    assert max(map(len, table.splitlines())) <= 110
    for name, head in run.evaluations["test"].heads.items():
        start = table.index(f"{name} in the test part:")
        rows = {
            cells[0]: cells[1:]
            for line in table[start : table.index("aif minus", start)].splitlines()
            if len(cells := re.split(r"\s{2,}", line.strip())) > 1
        }
        for label, found in {
            "aif": head.metrics, "cold": head.references["cold"].metrics,
            "chance": head.references["random"].metrics,
            "item mean": head.references["item mean"].metrics,
        }.items():  # fmt: skip
            for metric in ("auc", "gauc", "hr@10", "ndcg@10", "mrr"):
                assert f"{found[metric].value:.4f}" in rows[label], (label, metric)


def test_run_report_with_blocks_tells_their_worth_and_cost(run: Run, data: Dataset) -> None:
    added = run.report(blocks=data).removeprefix(run.report()[:500])
    worth = worth_of_blocks(run.model, data, "test", "click")
    for name, found in worth.items():
        (line,) = [line for line in added.splitlines() if line.strip().startswith(name)]
        assert f"{found.value:+.4f} ±{found.standard_error:.4f}" in line
        assert len(re.findall(r"-?\d+\.\d\d(?!\d)", line)) == 2
    assert "without it" not in run.report()


def test_run_chance_level_is_of_the_lists_used(run: Run, data: Dataset) -> None:
    head = run.evaluations["test"].heads["click"]
    chance = {name: found.value for name, found in head.references["random"].metrics.items()}
    sizes = (candidate_lists(data, "test", "click").items >= 0).sum(axis=1)
    assert head.candidates == sizes.mean() < 120, "users have met most of the 120 items"
    discounts = 1 / np.log2(np.arange(10) + 2)
    assert chance["hr@10"] == pytest.approx(np.mean(np.minimum(10, sizes) / sizes))
    assert chance["ndcg@10"] == pytest.approx(np.mean([discounts[:size].sum() / size for size in sizes]))
    assert chance["mrr"] == pytest.approx(np.mean([np.mean(1 / np.arange(1, size + 1)) for size in sizes]))


def test_run_loaded_is_as_it_was_saved(run: Run, folder: Path, data: Dataset) -> None:
    again = Run.load(folder)
    assert again.report() == run.report()
    assert repr(again) == repr(run)
    assert list(again.results) == list(run.results)
    for name, result in run.results.items():
        kept = again.results[name]
        assert (kept.history, kept.metrics, kept.encoding) == (
            result.history,
            result.metrics,
            result.encoding,
        )
        mine, theirs = weights_of(kept.model), weights_of(result.model)
        assert all((mine[key] == theirs[key]).all() for key in theirs)
    assert again.schema == run.schema
    assert again.choice == run.choice
    assert again.content_space.kind == run.content_space.kind == "derived"
    assert again.content_space.digest == run.content_space.digest == data.content.space.digest
    assert open_scorer(folder).name == "run", "the commands open it too"


def test_run_saved_over_an_earlier_one_replaces_it_whole(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    run.save(tmp_path / "run")
    assert Run.load(tmp_path / "run").report() == run.report()


def test_run_whose_saving_broke_off_is_refused(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    model = tmp_path / "run" / "baselines" / "cold" / "model.json"
    values = json.loads(model.read_text())
    model.write_text(json.dumps({**values, "notes": {"steps": 1}}))
    with pytest.raises(BundleError, match=r"cold: has other weights than .*run\.json describes"):
        Run.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not a run .*expected run.json as Run.save writes it"),
        ("{", "not a run"),
        ('{"format": 9}', "format 9, this release reads 1"),
        ('{"format": 1}', "has other contents than this release reads .*fit again"),
    ],
)
def test_run_load_of_something_else_names_what_is_wrong(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(BundleError, match=words):
        Run.load(tmp_path)


def test_run_report_is_the_same_text_in_a_notebook(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run.report()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert run.report() == plain


def test_run_export_gives_a_bundle_with_its_figures(run: Run, tmp_path: Path) -> None:
    bundle = run.export(tmp_path / "bundle", k_max=16, score="click * order")
    assert (bundle.k_max, bundle.config.score) == (16, "click * order")
    figures = bundle.metrics["test"]["click"]
    assert figures["gauc"] == run.evaluations["test"].heads["click"].metrics["gauc"].value
    assert bundle.notes["data"] == "shop"


def test_run_begins_where_the_earlier_run_ended_and_gives_vectors(
    run: Run, data: Dataset, tmp_path: Path
) -> None:
    # Derived the next day, content has other axes.
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    space = ContentSpace(kind="derived", width=8, digest="of the next day")
    content = Content((data.content.vectors @ axes).astype(np.float32), data.content.has, space)
    today = dataclasses.replace(data, content=content)
    again = fit(
        today, model=SMALL, training=BRIEF.replace(max_steps=1, learning_rate=1e-9, group=8, epochs=1),
        baselines=("two_tower",), init=run, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    mine, theirs = weights_of(again.model), weights_of(run.model)
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], atol=1e-6)
    loaded = Run.load(tmp_path / "run")
    assert loaded.content_space == run.content_space
    for found in (again.content, loaded.content):
        np.testing.assert_array_equal(found[0], data.item_keys())
        np.testing.assert_allclose(found[1], data.content.vectors, atol=1e-5)
    assert loaded.results["aif"].warm_start == again.results["aif"].warm_start
    assert loaded.results["two_tower"].warm_start is None, "the earlier run has none"
    assert "Started from an earlier model" in loaded.report()
    towers = loaded.towers(data)
    vector = towers.user_vector(data.user_record(0))
    assert (towers.item_vectors(data) @ vector).shape == (data.n_items,)
    with pytest.raises(ConfigError, match=r"has cold, aif, expected a two_tower; fit with baselines="):
        run.towers(data)
