import platform
import subprocess
import sys

import pytest

from aif_jax.training import keep_freed_memory

TAKE_AND_FREE = """
import resource
from aif_jax.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults() and None, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switches are glibc's")
def test_keep_freed_memory_avoids_page_faults() -> None:
    said = subprocess.run(
        [sys.executable, "-c", TAKE_AND_FREE], capture_output=True, text=True, check=True
    ).stdout.split()
    before, told, _, after = said
    assert told == "True"
    assert int(before) > 8 * 1000, "64 MiB are 16,384 pages, or fewer of the larger kinds"
    assert int(after) < int(before) / 20


def test_keep_freed_memory_on_other_c_library_returns_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
