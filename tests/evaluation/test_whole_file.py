"""What ends a process midway leaves what was there."""

import os

import pytest

from aif_jax.evaluation.whole_file import write_whole


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch, step):
    path = tmp_path / "made" / "table.json"
    write_whole(path, b"old")
    assert path.read_bytes() == b"old"

    def ends(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as at:
        at.setattr(os, step, ends)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, b"the new one")
    assert path.read_bytes() == b"old"
    write_whole(path, b"the new one")
    assert path.read_bytes() == b"the new one"
    assert [found.name for found in path.parent.iterdir()] == ["table.json"]
