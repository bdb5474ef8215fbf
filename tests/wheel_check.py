"""Install a wheel into new environments, with cargo off the path; run the demo, and getting-started.md."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import road


def main(wheel: Path) -> None:
    """Print what a wheel weighs and how long it takes to import; run ``aif demo`` and the road from it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        python = home / "venv" / "bin" / "python"
        environment = dict(os.environ)
        environment["PATH"] = os.pathsep.join(
            entry
            for entry in [str(python.parent), *os.environ["PATH"].split(os.pathsep)]
            if not (Path(entry) / "cargo").exists()
        )
        if shutil.which("cargo", path=environment["PATH"]):
            sys.exit("cargo is still on the path; this check would prove nothing")
        before = time.perf_counter()
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", f"{wheel.resolve()}[demo]"],
            check=True,
            env=environment,
        )
        took_s = time.perf_counter() - before
        print(f"wheel {wheel.stat().st_size / 1e6:.1f} MB, installed with its dependencies in {took_s:.0f} s")
        size = sum(f.stat().st_size for f in (home / "venv" / "lib").rglob("*") if f.is_file())
        own = next((home / "venv" / "lib").rglob("aif_jax"))
        own_size = sum(f.stat().st_size for f in own.rglob("*") if f.is_file())
        print(f"site-packages {size / 1e6:.0f} MB, of which aif_jax {own_size / 1e6:.1f} MB")
        for module in ("jax", "aif_jax"):
            code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
            best_s = min(
                float(subprocess.check_output([python, "-c", code], env=environment, cwd=home))
                for _ in range(3)
            )
            print(f"import {module}: {best_s:.2f} s (best of 3)")
        subprocess.run(
            [python.parent / "aif", "demo", "--out", home / "run"], check=True, env=environment, cwd=home
        )
        (home / "road").mkdir()
        road.write_log(home / "road" / "log.parquet")
        given = {**environment, "WHEEL": str(wheel.resolve())}
        answer = road.walk(home / "road", road.commands(), given)
        if len(answer["ids"]) != 3:
            sys.exit(f"the road of docs/getting-started.md ended in {answer}, expected 3 ids")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: wheel_check.py WHEEL (one wheel; `make wheel` leaves exactly one in dist/)")
    main(Path(sys.argv[1]))
