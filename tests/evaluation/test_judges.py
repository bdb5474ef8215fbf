"""Who judges what a pre-ranker keeps, and by what."""

from pathlib import Path

import numpy as np
import pytest

from aif_jax.errors import ConfigError
from aif_jax.evaluation import VARIANTS as ALL
from aif_jax.evaluation import study
from aif_jax.evaluation.judges import JUDGE_SEED, JUDGES
from aif_jax.evaluation.retention import retention
from aif_jax.evaluation.table import markdown, summarise
from aif_jax.training import Evaluator, TrainConfig
from support.studies import make, small_dataset, untrained


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "train", untrained)


@pytest.mark.usefixtures("patched")
def test_a_judge_that_knows_what_is_shown_judges_by_its_score(tmp_path: Path) -> None:
    dataset = small_dataset()
    mine = make(dataset, tmp_path, "aif", seeds=1, judge="shown")
    rows = mine.run()
    variant = JUDGES["shown"]
    kept = mine.store.get(variant.name, JUDGE_SEED)
    assert kept is not None
    labelled = variant.dataset(dataset, JUDGE_SEED)
    model = untrained(variant.config(mine.model), labelled, TrainConfig(seed=JUDGE_SEED)).model
    scores = Evaluator(labelled, model, "test").score_lists(model, mine.candidates())
    there = np.isfinite(scores)
    assert kept.scores is not None
    assert np.array_equal(np.isfinite(kept.scores), there)
    np.testing.assert_allclose(np.exp(kept.scores[there]), scores[there], rtol=1e-5)
    main = Evaluator(labelled, model, "test").score_lists(model, mine.candidates(), main_head=True)
    assert np.any(np.argsort(main[0]) != np.argsort(scores[0]))

    pupil = untrained(ALL["aif"].config(mine.model), dataset, TrainConfig(seed=0)).model
    others = Evaluator(dataset, pupil, "test").score_lists(pupil, mine.candidates())
    positives = mine.candidates().positives
    assert positives is not None
    assert rows[0].retention == retention(kept.scores, others, positives).to_json()
    assert "best M (it has a head for what is shown); how" in markdown(summarise(mine, rows))


@pytest.mark.usefixtures("patched")
def test_rows_of_different_judges_do_not_mix(tmp_path: Path) -> None:
    dataset = small_dataset()
    plain = make(dataset, tmp_path, "aif", seeds=1)
    assert "a head for what" not in markdown(summarise(plain, plain.run()))
    other = make(dataset, tmp_path, "cold", seeds=1, judge="shown")
    with pytest.raises(ConfigError, match=f"not {JUDGES['shown'].name}-{JUDGE_SEED}.npz, the ranker"):
        other.run()
    with pytest.raises(ConfigError, match="row aif-0 is of a study that differs in judge"):
        make(dataset, tmp_path, "aif", seeds=1, judge="shown")  # although nothing is left to be trained


def test_there_is_no_other_judge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="judge: got 'moon', expected one of impressions, shown"):
        make(small_dataset(), tmp_path, "aif", seeds=1, judge="moon")
