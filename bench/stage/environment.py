"""Where a result was measured."""

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from aif_jax.machine import cores, cpu_model

PACKAGES = ("aif_jax", "jax", "jaxlib", "numpy", "onnx", "onnxruntime")


def environment() -> dict[str, Any]:
    """Return processor, memory, versions, commit and date, and how busy the machine is right now."""
    kind = re.search(r"cpu family\s*: (\d+)\s+model\s*: (\d+)", Path("/proc/cpuinfo").read_text())
    installed = {found.name: found.version for found in distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model() + (f" (cpu family {kind[1]}, model {kind[2]})" if kind else ""),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: installed.get(name, "not installed") for name in PACKAGES},
        "rustc": _output("rustc", "--version"),
        "commit": _output("git", "rev-parse", "--short=12", "HEAD"),
        "changed_since_commit": bool(_output("git", "status", "--porcelain")),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def _output(*command: str) -> str:
    folder = Path(__file__).parent
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
