"""A study on synthetic data: rows are trained once, go on anywhere, and are of this study or refused."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from aif_jax.cli import evaluating
from aif_jax.cli.evaluating import run_evaluation
from aif_jax.config import ModelConfig
from aif_jax.data import VALIDATION, Dataset
from aif_jax.data.dataset import take_columns
from aif_jax.errors import ConfigError
from aif_jax.evaluation import VARIANTS as ALL
from aif_jax.evaluation import Study, markdown, study
from aif_jax.evaluation.cold_items import of_cold_items
from aif_jax.evaluation.cost import Cost
from aif_jax.evaluation.judges import JUDGE_SEED, RANKER
from aif_jax.evaluation.paired import PairedBootstrap
from aif_jax.evaluation.plot import gauc_plot
from aif_jax.evaluation.row import LATER, Row
from aif_jax.evaluation.table import summarise
from aif_jax.evaluation.variants import Variant
from aif_jax.models import build_model
from aif_jax.training import Evaluator, TrainConfig, TrainResult, evaluate, metrics, predict, preset, train
from support.studies import SMALL, VARIANTS, cost_of, make, small_dataset, untrained

RANKER_FILE = f"{RANKER.name}-{JUDGE_SEED}.npz"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return small_dataset()


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose rows are all there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "train", untrained)
        made = make(dataset, tmp_path_factory.mktemp("finished"))
        made.run()
    return made


def copied(finished: Study, folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(finished.store.folder / name, folder)
    return folder


def test_a_study_is_resumed_row_by_row(
    dataset: Dataset, finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def train(config: Any, data: Any, training: Any, **options: Any) -> Any:
        if len(trained) == 3 and not any(name == "stop" for name, _ in trained):
            trained.append(("stop", 0))
            raise KeyboardInterrupt
        assert Path(training.checkpoint_dir).parent == tmp_path / "checkpoints"
        Path(training.checkpoint_dir).mkdir(parents=True)
        trained.append((f"{config.architecture} {config.hidden}", training.seed))
        return untrained(config, data, training)

    monkeypatch.setattr(study, "train", train)
    with pytest.raises(KeyboardInterrupt):
        make(dataset, tmp_path).run()
    told: list[tuple[str, int, int, bool]] = []
    rows = make(dataset, tmp_path).run(lambda row, *rest: told.append((row.name, *rest)))
    ranker, cold, aif = ("exact 8", JUDGE_SEED), "aif 16", "aif 8"
    assert trained == [ranker, (cold, 0), (aif, 0), ("stop", 0), (cold, 1), (aif, 1)]
    assert told == [
        ("cold-0", 1, 4, True),
        ("aif-0", 2, 4, True),
        ("cold-1", 3, 4, False),
        ("aif-1", 4, 4, False),
    ]
    assert [row.name for row in rows] == ["cold-0", "cold-1", "aif-0", "aif-1"]
    again = make(dataset, tmp_path)
    assert summarise(again, again.run()) == summarise(again, rows)  # nothing is trained again
    assert len(trained) == 6
    assert not list((tmp_path / "checkpoints").iterdir())
    assert json.dumps(summarise(again, rows)) == json.dumps(summarise(finished, finished.run()))


def test_a_row_is_what_evaluating_by_hand_gives(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"architecture": "cold", "heads": ("ctr",), "score": "ctr"}
    mine = make(dataset, tmp_path, "aif", changes=changes)
    mine._judge = dataclasses.replace(bare_row(), scores=np.zeros((12, 210), np.float32))
    trained: list[TrainResult] = []

    def train_once(config: Any, data: Any, training: TrainConfig, **options: Any) -> TrainResult:
        usual = preset("synthetic")[1].replace(epochs=1, seed=1, checkpoint_dir=training.checkpoint_dir)
        assert (config, training) == (VARIANTS["aif"].config(mine.model), usual)
        assert data is dataset
        trained.append(train(config, data, training, **options))
        return trained[0]

    monkeypatch.setattr(study, "train", train_once)
    row = mine.row(VARIANTS["aif"], 1)
    by_hand = evaluate(trained[0].model, dataset, "test")
    assert row.metrics.heads == by_hand.heads
    still = evaluate(trained[0].model, dataset.with_frozen_histories("test"), "test")
    assert row.frozen.heads == still.heads
    assert (row.steps, row.parameters) == (trained[0].steps, trained[0].parameters)


def bare_row() -> Row:
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(Row)), None)
    return Row(**nothing)  # type: ignore[arg-type]


def test_a_table_of_rows_is_the_table_of_the_logits(dataset: Dataset, finished: Study) -> None:
    """Every figure that users and cold items have a part in, from the logits themselves, to the bit."""
    rows = dataset.impressions
    part = rows.split == 2
    known = part & (rows.label_mask["ctr"] > 0)
    cold = of_cold_items(dataset, "test")[known[part]]
    users, labels = rows.user[known], rows.labels["ctr"][known]
    schema, frozen_set = dataset.fit_schema(), dataset.with_frozen_histories("test")
    growing, frozen = (
        {
            name: [
                predict(build_model(VARIANTS[name].config(finished.model), schema, seed=seed), data)[known, 0]
                for seed in range(2)
            ]
            for name in ("cold", "aif")
        }
        for data in (dataset, frozen_set)
    )

    def paired(users: np.ndarray, labels: np.ndarray, runs: dict[str, list[np.ndarray]]) -> dict[str, Any]:
        found = {name: [metrics.user_aucs(users, labels, run) for run in each] for name, each in runs.items()}
        aucs = {name: [each.aucs for each in of] for name, of in found.items()}
        bootstrap = PairedBootstrap(found["aif"][0].impressions, aucs)
        return dataclasses.asdict(bootstrap.difference("cold", "aif"))

    def spread(values: list[float]) -> dict[str, float]:
        return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}

    summary = summarise(finished, finished.run())
    told = summary["variants"]["cold"]
    assert told["gauc_against"] == paired(users, labels, growing)
    assert told["frozen_gauc_against"] == paired(users, labels, frozen)
    assert told["gauc"] == spread([metrics.gauc(users, labels, run) for run in growing["cold"]])
    assert told["frozen_gauc"] == spread([metrics.gauc(users, labels, run) for run in frozen["cold"]])
    few = {name: [run[cold] for run in runs] for name, runs in frozen.items()}
    of_cold = users[cold], labels[cold]
    assert told["cold_items"] == {
        "auc": spread([metrics.auc(labels[cold], run) for run in few["cold"]]),
        "gauc": spread([metrics.gauc(*of_cold, run) for run in few["cold"]]),
        "gauc_against": paired(*of_cold, few),
    }
    assert summary["cold_items"]["impressions"] == cold.sum() > 0
    assert summary["impressions"] == known.sum()
    assert summary["users"] == np.unique(users).size


def test_the_table_says_what_there_is(finished: Study) -> None:
    rows = finished.run()
    summary = summarise(finished, rows)
    means = {name: found["gauc"]["mean"] for name, found in summary["variants"].items()}
    assert summary["variants"]["cold"]["gauc_against"]["value"] == pytest.approx(means["cold"] - means["aif"])
    assert summary["lost"] is None
    text = markdown(json.loads(json.dumps(summary)))
    assert f"Cold items, frozen histories: {summary['cold_items']['impressions']:,} impressions" in text
    assert f"| `cold` | {summary['variants']['cold']['cold_items']['auc']['mean']:.4f} ±" in text
    assert "Cost of a request" not in text
    assert f"| {means['aif']:.4f} ±" in text
    assert "floor: item mean" in text
    assert "10 of 100" in text
    assert "| 5 | 10/s |" in text, "weights and speed of `untrained`"
    assert summary["frozen_history"] > 0.5
    assert "without histories" not in text
    stopped = [dataclasses.replace(row, examples_per_s=0.0) for row in rows]
    assert "| 5 | 10/s |" in markdown(summarise(finished, [stopped[0], *rows[1:]]))
    assert "| 5 |  |" in markdown(summarise(finished, stopped))
    assert f"- {rows[0].made['date']}, {rows[0].made['cpu']}" in text
    assert ": all\n" in text
    far = dataclasses.replace(rows[0], made={**rows[0].made, "cpu": "another", "date": "2001-01-01"})
    text = markdown(summarise(finished, [far, *rows[1:]]))
    assert "- 2001-01-01, another" in text
    assert ": cold-1, aif-0, aif-1\n" in text
    text = markdown(json.loads(json.dumps(summarise(finished, rows, {"aif": cost_of("engine", 2.5)}))))
    assert "| `aif` | 1.50 (1.00 to 2.00) | 2.50 (2.00 to 3.00) | 100 | 2,000 | 77 |" in text
    assert "| `cold` | not measured | not measured |" in text
    assert "cold" in gauc_plot(summary)


def test_a_study_goes_on_from_rows_made_elsewhere(
    dataset: Dataset, finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = copied(finished, tmp_path / "shared", RANKER_FILE, "cold-0.npz", "aif-1.npz")
    trained: list[int] = []

    def train(config: Any, data: Any, training: Any, **options: Any) -> Any:
        trained.append(training.seed)
        return untrained(config, data, training)

    monkeypatch.setattr(study, "train", train)
    mine = make(dataset, tmp_path / "mine", rows=shared)
    kept: dict[str, bool] = {}
    rows = mine.run(lambda row, number, total, there: kept.update({row.name: there}))
    assert kept == {"cold-0": True, "aif-0": False, "cold-1": False, "aif-1": True}
    assert sorted(trained) == [0, 1]
    assert summarise(mine, rows) == summarise(finished, finished.run())
    assert (shared / "aif-0.npz").exists()


def test_rows_without_the_ranker_that_judged_them_make_a_table_and_no_new_rows(
    dataset: Dataset, finished: Study, tmp_path: Path
) -> None:
    shared = copied(finished, tmp_path / "shared", "cold-0.npz", "aif-0.npz")
    few = make(dataset, tmp_path, seeds=1, rows=shared)
    assert summarise(few, few.run())["seeds"] == 1
    with pytest.raises(ConfigError, match=f"not {RANKER_FILE}, the ranker that judged them"):
        make(dataset, tmp_path, seeds=2, rows=shared).run()
    row = few.store.get("cold", 0)
    assert row is not None
    few.store.put(dataclasses.replace(row, judge="another"))
    with pytest.raises(ConfigError, match=r"different rankers.*: cold-0; aif-0\."):
        make(dataset, tmp_path, seeds=1, rows=shared)


def test_rows_of_another_study_are_not_mixed_in(dataset: Dataset, finished: Study, tmp_path: Path) -> None:
    there = finished.store.folder
    make(dataset, tmp_path, names="aif", seeds=3, rows=there)  # more rows of the same study are no other one
    with pytest.raises(ConfigError, match=r"row ranker-10007 is of a study that differs in model\.width"):
        make(dataset, tmp_path, changes={"width": 16}, rows=there)
    rows = dataset.impressions
    flipped = {**rows.labels, "ctr": np.where(rows.split == 2, 1 - rows.labels["ctr"], rows.labels["ctr"])}
    other = dataclasses.replace(dataset, impressions=dataclasses.replace(rows, labels=flipped))
    with pytest.raises(ConfigError, match=r"differs in .*impressions"):
        make(other, tmp_path, rows=there)
    hidden = {**rows.label_mask, "ctr": np.where(rows.user % 3, rows.label_mask["ctr"], 0).astype(np.float32)}
    other = dataclasses.replace(dataset, impressions=dataclasses.replace(rows, label_mask=hidden))
    with pytest.raises(ConfigError, match=r"differs in .*users, cold items"):
        make(other, tmp_path, rows=there)
    with pytest.raises(ConfigError, match="each name once"):
        Study(dataset, tmp_path, [VARIANTS["aif"], VARIANTS["aif"]])
    # The name of a variant that has become another model.
    with pytest.raises(ConfigError, match=r"row aif-0 .* differs in model\.hidden"):
        Study(
            dataset, tmp_path, [Variant("aif", "", {"hidden": 32})], seeds=1, epochs=1, lists=12,
            candidates=210, changes=SMALL, rows=there,
        )  # fmt: skip


def test_a_row_made_before_a_field_of_the_configs_was_known_still_counts(
    dataset: Dataset, finished: Study, tmp_path: Path
) -> None:
    shared = copied(finished, tmp_path / "shared", RANKER_FILE, "aif-0.npz")
    mine = make(dataset, tmp_path, names="aif", seeds=1, rows=shared)
    row = mine.store.get("aif", 0)
    assert row is not None
    old = {part: dict(row.identity[part]) for part in ("model", "training")}
    del old["model"]["tier_scale"], old["training"]["distillation_weight"]
    mine.store.put(dataclasses.replace(row, identity={**row.identity, **old}))
    make(dataset, tmp_path, names="aif", seeds=1, rows=shared)
    del old["model"]["width"]  # which this study has at another value than the default
    mine.store.put(dataclasses.replace(row, identity={**row.identity, **old}))
    with pytest.raises(ConfigError, match=r"model\.width"):
        make(dataset, tmp_path, names="aif", seeds=1, rows=shared)


def test_logs_of_ones_own_are_studied_with_settings_of_ones_own(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = dataclasses.replace(dataset, name="mine")
    with pytest.raises(ConfigError, match=r"no settings for data set 'mine'.*settings="):
        make(mine, tmp_path)
    model = ModelConfig.from_json({**preset("synthetic")[0].to_json(), "heads": ("like",), "score": "like"})
    settings = (model, TrainConfig(learning_rate=0.25))
    monkeypatch.setattr(study, "train", untrained)
    own = make(mine, tmp_path, names="aif", seeds=1, settings=settings, refit=True)
    (row,) = own.run()
    assert own.head == "like"
    assert row.identity["training"]["learning_rate"] == 0.25
    assert not (own.dataset.impressions.split == VALIDATION).any()
    assert "mine, head `like`" in markdown(summarise(own, [row]))
    kept = make(mine, tmp_path / "kept", names="aif", seeds=1, settings=settings)
    assert (kept.dataset.impressions.split == VALIDATION).any()
    with pytest.raises(ConfigError, match=r"differs in .*impressions"):
        make(mine, tmp_path, names="aif", seeds=1, settings=settings)
    with pytest.raises(ConfigError, match=r"differs in training\.learning_rate"):
        make(mine, tmp_path, names="aif", seeds=1, settings=(model, TrainConfig()), refit=True)
    # Another feature, or another history, and the rows are of another log.
    schema = dataclasses.replace(mine.schema, item=mine.schema.item[:-1])
    ends = mine.impressions.history_end
    late = dataclasses.replace(mine.impressions, history_end=np.maximum(ends - 1, 0))
    for other in (dataclasses.replace(mine, schema=schema), dataclasses.replace(mine, impressions=late)):
        with pytest.raises(ConfigError, match=r"differs in .*inputs"):
            make(other, tmp_path, names="aif", seeds=1, settings=settings, refit=True)


def test_rows_are_of_the_columns_masks_and_requests_that_they_were_made_with(
    dataset: Dataset, finished: Study, tmp_path: Path
) -> None:
    rng, rows = np.random.default_rng(0), dataset.impressions

    def refused(other: Dataset, part: str) -> None:
        with pytest.raises(ConfigError, match=f"differs in .*{part}"):
            make(other, tmp_path, rows=finished.store.folder)

    for group in ("users", "items"):
        columns = dict(getattr(dataset, group))
        name = next(name for name in columns if name not in ("ids", dataset.schema.item_id))
        columns[name] = take_columns({name: columns[name]}, rng.permutation(len(columns["ids"])))[name]
        refused(dataclasses.replace(dataset, **{group: columns}), "columns")
    mask = {**rows.label_mask, "like": np.zeros_like(rows.label_mask["like"])}
    context = take_columns(rows.context, rng.permutation(len(rows)))
    for changes in ({"label_mask": mask}, {"context": context}, {"request": np.arange(len(rows))}):
        refused(dataclasses.replace(dataset, impressions=dataclasses.replace(rows, **changes)), "columns")
    # Other labels of the test part make other lists.
    labels = {**rows.labels, "ctr": np.where(rows.split == 2, 1.0 - rows.labels["ctr"], rows.labels["ctr"])}
    refused(dataclasses.replace(dataset, impressions=dataclasses.replace(rows, labels=labels)), "drawn")


def test_a_row_made_before_inputs_were_written_down_still_counts(
    dataset: Dataset, finished: Study, tmp_path: Path
) -> None:
    shared = copied(finished, tmp_path / "shared", RANKER_FILE, "aif-0.npz")
    mine = make(dataset, tmp_path, names="aif", seeds=1, rows=shared)
    for name, seed in ((RANKER.name, JUDGE_SEED), ("aif", 0)):
        row = mine.store.get(name, seed)
        assert row is not None
        old = {part: value for part, value in row.identity.items() if part not in LATER}
        assert len(old) == len(row.identity) - 3
        mine.store.put(dataclasses.replace(row, identity=old))
    make(dataset, tmp_path, names="aif", seeds=1, rows=shared)


def test_lists_of_whole_requests_make_other_rows_and_the_table_says_what_is_in_them(
    dataset: Dataset, finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "train", untrained)
    mine = make(dataset, tmp_path, names="aif", seeds=1, whole_requests=True)
    lists = mine.candidates()
    assert lists.positives is not None
    row = mine.run()[0]
    shown = (lists.items[:, :-210] >= 0).sum(axis=1).mean()
    candidates = (lists.items >= 0).sum(axis=1).mean()
    assert row.retention["candidates"] == pytest.approx(candidates)
    assert row.retention["positive"] == pytest.approx(lists.positives.sum(axis=1).mean())
    model = untrained(VARIANTS["aif"].config(mine.model), dataset, TrainConfig(seed=0)).model
    scores = Evaluator(dataset, model, "test").score_lists(model, lists)
    assert row.metrics.hit_rate[10] == metrics.hit_rate_at_k(scores, 10, lists.positives)
    text = markdown(json.loads(json.dumps(summarise(mine, [row]))))
    assert f"what a user was shown in one request ({shown:.1f} items in the mean" in text
    assert f" of one positive and {candidates - shown:,.0f} items that" not in text
    assert " of one positive and " in markdown(summarise(finished, finished.run()))
    with pytest.raises(ConfigError, match="differs in drawn, lists"):
        make(dataset, tmp_path / "other", whole_requests=True, rows=finished.store.folder)


def test_where_nobody_has_a_frozen_history_the_table_says_so(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "train", untrained)
    rows = dataset.impressions
    by_user = np.where(rows.user % 3 == 0, 2, 0).astype(np.int8)
    first = dataset.events.offsets[rows.user]
    new = dataclasses.replace(
        rows, split=by_user, history_end=np.where(by_user == 2, first, rows.history_end)
    )
    mine = make(dataclasses.replace(dataset, impressions=new), tmp_path, names="aif", seeds=1)
    summary = summarise(mine, mine.run())
    assert summary["frozen_history"] == 0.0
    assert "this is without histories" in markdown(summary)


def test_a_variant_is_trained_on_its_own_data(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stop(config: Any, data: Dataset, training: Any, **options: Any) -> Any:
        given.append(data)
        raise KeyboardInterrupt

    mine = make(dataset, tmp_path)
    monkeypatch.setattr(study, "train", stop)
    monkeypatch.setattr(Study, "ranker", lambda self: bare_row())
    with pytest.raises(KeyboardInterrupt):
        mine.row(ALL["aif_shuffled"], 5)
    expected = ALL["aif_shuffled"].dataset(dataset, 5).content
    assert expected is not None
    np.testing.assert_array_equal(given[0].content.vectors, expected.vectors)
    assert (given[0].content.vectors != dataset.content.vectors).any()  # type: ignore[union-attr]


def test_the_command_writes_table_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "train", untrained)
    monkeypatch.setattr(
        evaluating, "chosen", lambda names, sampled: [VARIANTS[name] for name in names.split(",")]
    )
    fields = tmp_path / "fields.json"
    fields.write_text(json.dumps(SMALL))
    arguments: dict[str, Any] = {
        "variants": "aif,cold,exact", "seeds": 1, "epochs": 1, "config": fields, "lists": 4,
        "rows": tmp_path / "rows",
    }  # fmt: skip
    out = tmp_path / "study"
    run_evaluation("synthetic:small", out, **arguments, console=Console(quiet=True))
    table = json.loads((out / "table.json").read_text())
    assert list(table["variants"]) == ["aif", "cold", "exact"]
    assert {"date", "cores", "jax", "cpu", "aif_jax"} == table["where"].keys()
    assert "`exact` gains" in (out / "table.md").read_text()
    assert "<svg" in (out / "gauc.svg").read_text()
    assert not (out / "pareto.svg").exists()
    assert len(list((tmp_path / "rows").glob("*.npz"))) == 4

    def measured(data: Dataset, model: Any, variants: Any, **_: Any) -> dict[str, Cost]:
        assert model.long_length == SMALL["long_length"]
        return {v.name: cost_of("sequential" if v.name == "exact" else "engine", 2.0) for v in variants}

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "measure_costs", measured)
        run_evaluation("synthetic:small", out, **arguments, cost=True, console=Console(quiet=True))
    assert "| `exact` | not served by the engine | 2.00 (1.50 to 2.50) |" in (out / "table.md").read_text()
    assert "<svg" in (out / "pareto.svg").read_text()
    (out / "pareto.svg").unlink()
    said = io.StringIO()
    run_evaluation(
        "synthetic:small", out, **arguments, console=Console(file=said, width=300)
    )  # costs were kept
    assert said.getvalue().count("kept, of 20") == 3
    assert json.loads((out / "table.json").read_text())["variants"]["aif"]["cost"]["way"] == "engine"
    assert (out / "pareto.svg").exists()

    def bridges(name: str, model: Any, data: Dataset) -> list[Variant]:
        assert (name, model.width) == ("bridges", SMALL["width"])
        return [VARIANTS["aif"], VARIANTS["cold"]]

    monkeypatch.setattr(evaluating, "curve_of", bridges)
    run_evaluation("synthetic:small", out, **arguments, curve="bridges", console=Console(quiet=True))
    table = json.loads((out / "curve-bridges-table.json").read_text())
    assert list(table["variants"]) == ["aif", "cold"]
    assert (out / "curve-bridges-gauc.svg").exists()
    with pytest.raises(ConfigError, match="one of them at most"):
        run_evaluation(
            "synthetic:small", out, **arguments, curve="tiers", search="preset", console=Console(quiet=True)
        )
    fields.write_text('{"moon": 1}')
    with pytest.raises(ConfigError, match="moon"):
        run_evaluation("synthetic:small", tmp_path / "x", **arguments, console=Console(quiet=True))
