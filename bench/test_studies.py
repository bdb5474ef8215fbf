"""Studies at small sizes: rows are trained once, and the figures are those of plain definitions."""

import json
import math

import numpy as np
import pytest

from aif_jax.data import load
from aif_jax.errors import ConfigError, DataError
from aif_jax.training import preset
from bars import of_quality
from bars.lines import BARS, measured
from studies import run
from studies.retention import NDCG_K, NDCG_M, POSITIVES, SURVIVORS, retention
from studies.study import Study
from studies.variants import VARIANTS, chosen

SMALL = {
    "blocks": ("context", "long_attention"), "width": 8, "embedding_width": 4, "hidden": 8, "value_width": 4,
    "head_layers": (8,), "item_layers": (8,), "short_length": 4, "long_length": 16, "content_width": 32,
    "signature_bits": 64,
}  # fmt: skip


def plainly(ranker, scores, chosen):
    """Retention list by list, with Python's own sort."""
    survivors, positives, ndcg = {f"{k}@{m}": [] for k, m in SURVIVORS}, {str(m): [] for m in POSITIVES}, []
    for judged, mine, liked in zip(ranker.tolist(), scores.tolist(), chosen.tolist(), strict=True):
        columns = range(len(judged))
        by_ranker, by_mine = (
            sorted(columns, key=lambda c, of=of, liked=liked: (-of[c], liked[c], c)) for of in (judged, mine)
        )
        wanted = {c for c in columns if liked[c]}
        for k, m in SURVIVORS:
            survivors[f"{k}@{m}"].append(len(set(by_ranker[:k]) & set(by_mine[:m])) / k)
        for m in POSITIVES:
            positives[str(m)].append(len(wanted & set(by_mine[:m])) / len(wanted))
        kept = [c for c in by_ranker if c in by_mine[:NDCG_M]]
        gain = [0.0 if each == -math.inf else 1 / (1 + math.exp(-each)) for each in judged]
        found, best = (
            sum(gain[c] / math.log2(place + 2) for place, c in enumerate(order[:NDCG_K]))
            for order in (kept, by_ranker)
        )
        ndcg.append(found / best)
    means = ({name: np.mean(each) for name, each in found.items()} for found in (survivors, positives))
    return dict(zip(("survivors", "positives", "ndcg"), (*means, np.mean(ndcg)), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_retention_equals_plain_sorting(seed):
    rng = np.random.default_rng(seed)
    ranker = rng.normal(size=(12, int(rng.integers(201, 400))))
    scores = ranker + rng.normal(size=ranker.shape) * rng.random()
    liked = np.zeros(ranker.shape, bool)
    liked[:, 0] = True
    if seed % 2:  # ties, several positives, and lists that are not full
        ranker, scores = np.round(ranker, 1), np.round(scores, 1)
        liked[:, 1:5] = rng.random((12, 4)) < 0.4
        absent = (rng.random(ranker.shape) < 0.05) & ~liked
        ranker[absent] = scores[absent] = -np.inf
    found, expected = retention(ranker, scores, liked), plainly(ranker, scores, liked)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values)


def test_variants_are_models_of_the_preset_and_unknown_names_are_refused():
    model, _ = preset("movielens-1m")
    configs = {name: variant.config(model) for name, variant in VARIANTS.items()}
    assert configs["aif"] == model
    assert set(model.blocks) - set(configs["aif-bridge"].blocks) == {"bridge"}
    assert configs["aif_short"].long_length == model.short_length
    assert configs["aif_shown"].heads == (*model.heads, "shown")
    assert {each.name for each in chosen("all", sampled=False)}.isdisjoint({"aif_shown", "aif_negatives"})
    for names in ("moon", "aif,aif", ""):
        with pytest.raises(ConfigError, match="expected different ones of two_tower"):
            chosen(names)
    dataset = load("synthetic:small", content_width=8)
    shuffled = VARIANTS["aif_shuffled"].data(dataset, 5).content.vectors
    assert (shuffled != dataset.content.vectors).any()
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(dataset.content.vectors, axis=0))


@pytest.mark.thorough
def test_study_trains_each_row_once_and_its_table_gives_the_bars(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL))
    out = tmp_path / "out"
    arguments = ["synthetic:small", "--out", str(out), "--config", str(config), "--epochs=1", "--lists=20"]
    arguments += ["--seeds=1", "--variants"]
    run.main([*arguments, "cold,aif"])
    assert "kept" not in capsys.readouterr().out
    run.main([*arguments, "cold,aif,exact"])
    shown = capsys.readouterr().out
    assert shown.count("  kept\n") == 2
    assert not list((out / "checkpoints").iterdir())
    table = json.loads((out / "table.json").read_text())
    for name, found in table["variants"].items():
        assert 0 < found["gauc"]["mean"] < 1
        assert f"| `{name}` | " in (out / "page.md").read_text()
    assert table["variants"]["aif"]["gauc_against"] is None
    bars = measured(BARS, of_quality.measurements(out / "table.json"))
    quality = bars["quality"]
    assert quality.value is not None or quality.also["holds"] == "inconclusive"
    with pytest.raises(ConfigError, match=r"differs in .*model\.width"):
        Study(load("synthetic:small"), out, chosen("cold"), seeds=1, epochs=1, lists=20)
    (out / "rows" / "cold-0.npz").write_bytes(b"spoilt")
    with pytest.raises(DataError, match=r"cold-0\.npz: cannot be read as a row"):
        run.main([*arguments, "cold,aif"])
