"""The README's Python example runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(examples) == 1
    assert len([line for line in examples[0].splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(examples[0], str(README), "exec"), names)
    ranking = names["ranking"]
    assert len(ranking.ids) == 20  # type: ignore[attr-defined]
    assert set(ranking.ids.tolist()) <= set(names["candidates"].tolist())  # type: ignore[attr-defined]
    assert capsys.readouterr().out
