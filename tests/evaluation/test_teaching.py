"""The teacher is trained once, kept, and given to those that learn from one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.data import Dataset
from aif_jax.errors import ConfigError
from aif_jax.evaluation import study, teaching
from aif_jax.evaluation.judges import JUDGE_SEED
from aif_jax.evaluation.table import summarise
from aif_jax.evaluation.teaching import TEACHER, TEACHER_SEED
from aif_jax.evaluation.variants import Variant
from aif_jax.models import build_model
from aif_jax.training import predict
from support.studies import VARIANTS, make, small_dataset, untrained


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return small_dataset()


def test_a_distilled_variant_learns_from_one_teacher_and_is_judged_by_another_model(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int, Any]] = []

    def train(
        config: Any, data: Any, training: Any, *, teacher: Any = None, bottom: Any = None, **_: Any
    ) -> Any:
        assert ((teacher is not None), (bottom is not None)) == (training.distils, training.negatives > 0)
        assert bottom is None or bottom.shape == (data.n_users, 32)
        trained.append((f"{config.architecture} {config.hidden}", training.seed, teacher))
        Path(training.checkpoint_dir).mkdir(parents=True)
        return untrained(config, data, training)

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(teaching, "train", train)
    lessons = {"distillation_weight": 1.0, "negatives": 2, "negative_bottom": 0.5}
    taught = Variant("taught", "", {}, training=lessons)
    monkeypatch.setitem(VARIANTS, "taught", taught)
    mine = make(dataset, tmp_path, "aif,taught")
    rows = mine.run()
    assert [each[:2] for each in trained] == [
        ("exact 8", JUDGE_SEED), ("aif 8", 0), (f"aif {TEACHER.changes['hidden']}", TEACHER_SEED),
        ("aif 8", 0), ("aif 8", 1), ("aif 8", 1),
    ]  # fmt: skip
    # What it says is what the teacher predicts of the training part, and of no other.
    model = build_model(TEACHER.config(mine.model), dataset.fit_schema(), seed=TEACHER_SEED)
    said = predict(model, dataset, "train").astype(np.float16)
    logits = [each[2] for each in trained if each[2] is not None]
    assert len(logits) == 2
    for given in logits:
        np.testing.assert_array_equal(given, said)
    assert np.isnan(said[dataset.impressions.split != 0]).all()
    assert [bool(row.teacher) for row in rows] == [False, False, True, True]
    assert list(summarise(mine, rows)["variants"]) == ["aif", "taught"]
    assert not list((tmp_path / "checkpoints").iterdir())
    # It is kept, and kept apart from the rows.
    (tmp_path / "rows" / "taught-1.npz").unlink()
    make(dataset, tmp_path, "aif,taught").run()
    assert len(trained) == 7
    assert not (tmp_path / "rows" / "teacher.npz").exists()
    (tmp_path / "rows").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"holds a teacher that differs in model\.width"):
        make(dataset, tmp_path, "taught", changes={"width": 16})._teacher()
