"""The examples of models of one's own: with random weights, each answers as the sequential way does."""

import runpy
from pathlib import Path

import jax
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples" / "models"
NAMES = ("two_tower_cross", "cold", "din", "sasrec", "aif_by_fit")


def test_model_examples_are_short_and_all_tested() -> None:
    files = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert files.keys() == {*NAMES, "shared"}
    for name in NAMES:
        assert len(files[name].read_text(encoding="utf-8").splitlines()) < 120, name


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.thorough) for name in NAMES])
def test_model_example_ranks_as_the_sequential_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    strict = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # as users have it, in all threads
    try:
        main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
        found = main(str(tmp_path), epochs=0, requests=3, clients=2)
    finally:
        jax.config.update("jax_numpy_dtype_promotion", strict)
    assert found["difference"] < 1e-5
    assert min(found[f"{way}_{unit}"] for way in ("engine", "sequential") for unit in ("ms", "rps")) > 0
