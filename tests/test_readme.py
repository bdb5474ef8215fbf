"""The Python example of the README."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


SMALL = (
    "long_length=16, short_length=4, width=8, embedding_width=4, hidden=8, head_layers=(8,), "
    "item_layers=(8,), blocks=('sim_hard', 'profile_item', 'context')"
)
"""A model that trains in seconds, in place of the long sequence of the example."""


@pytest.mark.parametrize(
    "small",
    [pytest.param(True, id="small model"), pytest.param(False, id="as it is", marks=pytest.mark.thorough)],
)
def test_readme_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: bool
) -> None:
    examples = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(examples) == 1
    (example,) = examples
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    assert example.count("long_length=256") == 1
    if small:
        example = example.replace("long_length=256", SMALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    ranking = names["ranking"]
    assert len(ranking.ids) == 20  # type: ignore[attr-defined]
    assert set(ranking.ids.tolist()) <= set(names["candidates"].tolist())  # type: ignore[attr-defined]
    assert capsys.readouterr().out
