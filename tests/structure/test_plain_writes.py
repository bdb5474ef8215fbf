"""The check that all writing goes through `aif_jax.files`, which `tests/tidy.py` makes."""

import pytest

from support.plain_writes import plain_writes
from tidy import ROOT, WRITERS, unproven_writes


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'w')", "open(path, mode='ab')", "path.open('x')", "gzip.open(path, 'wb')",
        "open(path, 'r+b')",
        "open(path, 'r+b' if path.exists() else 'w+b')", "os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)",
        "path.write_text(text)", "(out / 'a.json').write_bytes(content)", "figure.savefig(path)",
        "np.savez(path, a=a)", "json.dump(values, stream)", "os.replace(a, b)", "path.rename(other)",
        "frame.to_parquet(path)", "np.memmap(path, np.uint8, 'w+')", "shutil.rmtree(folder)",
    ],
)  # fmt: skip
def test_plain_writes_finds_each_way_to_write(source: str) -> None:
    assert [line for line, _ in plain_writes(f"\nx = {source}\n")] == [2]


@pytest.mark.parametrize(
    "source",
    [
        "open(path)", "open(path, 'rb')", "os.open(path, os.O_RDONLY | os.O_CLOEXEC)",
        "text.replace('a', 'w')",
        "np.memmap(stream, np.uint8, 'r', 65536, (n,))", "write_atomic(path, data)",
        "dataclasses.replace(a, b=1)",
    ],
)  # fmt: skip
def test_plain_writes_passes_over_reads_and_our_writer(source: str) -> None:
    assert list(plain_writes(source)) == []


def test_unproven_writes_are_refused_outside_of_listed_modules() -> None:
    (found,) = unproven_writes("python/aif_jax/cli/new.py", "path.write_text('x')")
    assert found.startswith("python/aif_jax/cli/new.py:1: path.write_text('x') writes past aif_jax.files")
    assert unproven_writes("python/aif_jax/files.py", "open(path, 'w')") == []
    for name, calls in WRITERS.items():
        source = (ROOT / name).read_text(encoding="utf-8")
        assert unproven_writes(name, source) == []
        found = [call for _, call in plain_writes(source)]
        assert all(any(each.startswith(call) for each in found) for call in calls), "listed for nothing"
        assert unproven_writes(name, "path.write_bytes(b'')")
