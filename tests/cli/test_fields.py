"""Fields of a model on the command line, and data loaded for them."""

import json
from pathlib import Path

import numpy as np
import pytest

from aif_jax.cli.fields import load_for, read_fields
from aif_jax.errors import ConfigError


@pytest.mark.parametrize(("asked", "loaded"), [(None, 64), (32, 64), (64, 64), (100, 100)])
def test_load_for_content_is_as_wide_as_model_reads(asked: int | None, loaded: int) -> None:
    content = load_for("synthetic:small", {} if asked is None else {"content_width": asked}).content
    assert content is not None
    assert content.vectors.shape[1] == loaded
    assert np.any(content.vectors[:, -1] != 0.0)


@pytest.mark.parametrize("width", [0, -3, "96", 1.5])
def test_load_for_malformed_width_is_refused(width: object) -> None:
    with pytest.raises(ConfigError, match="content_width: got"):
        load_for("synthetic:small", {"content_width": width})


def test_read_fields_returns_fields_of_file(tmp_path: Path) -> None:
    file = tmp_path / "fields.json"
    file.write_text(json.dumps({"bridges": 3}))
    assert read_fields(file) == {"bridges": 3}
    assert read_fields(None) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected a JSON object"),
        ("null", "expected a JSON object"),
        ("[1, 2]", "expected a JSON object"),
        ('{"moon": 1, "bridges": 3}', r"\['moon'\] are not ModelConfig fields"),
    ],
)
def test_read_fields_malformed_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "fields.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_fields(file)
    with pytest.raises(ConfigError, match="no/such"):
        read_fields(Path("no/such"))
