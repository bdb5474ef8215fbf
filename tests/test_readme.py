"""The Python example of the README."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def write_log(path: Path) -> None:
    """Write a log of a shop, rows in random order."""
    rng, n = np.random.default_rng(0), 8_000
    log = {
        "user": rng.integers(0, 200, n),
        "item": rng.integers(1, 400, n),
        "event": rng.choice(["click", "cart", "buy"], n, p=[0.6, 0.3, 0.1]),
        "time": 1_760_000_000 + rng.integers(0, 30 * 86_400, n),
    }
    pd.DataFrame(log).to_csv(path, index=False)


@pytest.mark.thorough
def test_readme_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(examples) == 1
    (example,) = examples
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    write_log(tmp_path / "log.csv")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    ranking = names["ranking"]
    assert len(ranking.ids) == 20  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "Verdict:" in printed
    assert "(last: best floor)" in printed


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 700
