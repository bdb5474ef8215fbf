"""docs/your-data.md: its examples run, one after the other, and leave what the page says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.fitted import choose_small

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-data.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.thorough
def test_your_data_page_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aif_jax.fitting.fit_models.choose", choose_small)
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        exec(compile(example, str(PAGE), "exec"), names)
    data, news, again = names["data"], names["news"], names["again"]
    assert again.schema == data.schema
    assert (data.heads, data.schema.category, data.warnings) == (("click", "order"), "category", ())
    assert np.mean(data.impressions.sampled) == pytest.approx(0.8, abs=0.01)
    assert [feature.name for feature in news.schema.pair] == ["bid"]
    assert len(news.events) > len(log := names["log"]["user"]) - 100, log
    assert names["tomorrow"].results["aif"].warm_start.grown == {}
    assert len(names["scores"]) == len(names["ids"]) == 10
    assert not {7, 8} & set(names["ids"].tolist())
    assert (tmp_path / "retriever").is_dir()
    printed = capsys.readouterr().out
    assert "epochs in seconds" in printed
    assert 'MultiValued(name="category"' not in printed
    assert 'Categorical(name="category")' in printed
    for line in ("item mean + recent categories", "chance", "cold", "aif minus", "Verdict:"):
        assert line in printed
