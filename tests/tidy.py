"""Repository check: what no linter knows. `make lint` runs it; it prints each finding and exits 1 if any.

It looks for broken relative links in the documents, Python modules that nothing imports, files that hold more
than one concept by their length, docstrings that are indirect questions, leftovers, large or binary files,
Makefile targets that the documents name but the Makefile lacks, files that the package writes past
`aif_jax.files`, and figures of docs/benchmarks.md that no
record beside them holds.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from support.plain_writes import plain_writes
from support.quoted_figures import unrecorded

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 800
MAX_BYTES = 300_000
LEFTOVERS = re.compile(
    r"\b(TODO|FIXME|XXX|HACK)\b|todo!\(|unimplemented!\(|NotImplementedError|breakpoint\(\)|dbg!\("
)
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|#|mailto:)([^)#\s]+)")
RIDDLE = re.compile(r'^\s*"""(What|Which|How|Whether|When|Where|From)\b')
MAKE = re.compile(r"`make ([a-z][a-z-]*)")
ENTRY_POINTS = {"__init__", "__main__", "conftest", "tidy", "wheel_check"}

WRITERS = {
    # Pictures are drawn into memory.
    "python/aif_jax/cli/html_report.py": ("figure.savefig(buffer, ",),
    "python/aif_jax/evaluation/pictures.py": ("figure.savefig(buffer, ",),
    # An archive's lock holds nothing; its logs are appended to, record by record, each with a checksum.
    "python/aif_jax/nearline/archive.py": ("os.open(self.directory / 'lock', ",),
    "python/aif_jax/nearline/change_log.py": ("os.open(path, os.O_RDWR ",),
    # Entries that were set aside are appended to a file; full, it becomes the older one of two.
    "python/aif_jax/nearline/dead_letters.py": ("os.open(self.path, ", "os.replace(self.path, "),
    # A build that was broken off continues its partial files; what is left of it is removed.
    "python/aif_jax/nearline/row_file.py": ("open(os.open(path, ", "os.open(path, os.O_RDWR "),
    "python/aif_jax/nearline/build.py": ("shutil.rmtree(self._folder, ",),
    "python/aif_jax/training/checkpoints.py": ("shutil.rmtree(left, ",),
    # Checkpoints are of no use once the run is saved.
    "python/aif_jax/fitting/fit_models.py": ("shutil.rmtree(Path(out) / CHECKPOINTS, ",),
}
"""Calls that may write past `aif_jax.files`, by module, as far as needed to know them."""


def unproven_writes(name: str, source: str) -> list[str]:
    """Return a line for each call in a module of the package that writes past `aif_jax.files`."""
    if not name.startswith("python/") or name == "python/aif_jax/files.py":
        return []
    return [
        f"{name}:{line}: {call[:80]} writes past aif_jax.files; use write_atomic or write_directory"
        for line, call in plain_writes(source)
        if not call.startswith(WRITERS.get(name, ()))
    ]


def tracked() -> list[Path]:
    """Return the files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def findings() -> list[str]:
    """Return one line for each thing that should be mended."""
    found: list[str] = []
    files = tracked()
    texts: dict[Path, str] = {}
    for path in files:
        name = path.relative_to(ROOT)
        if path.stat().st_size > MAX_BYTES and path.name != "Cargo.lock":
            found.append(
                f"{name}: {path.stat().st_size:,} bytes; large files do not belong into the repository"
            )
        try:
            texts[path] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            if path.suffix != ".png":
                found.append(f"{name}: not text; only pictures of the documents may be binary")
    for path, text in texts.items():
        name = path.relative_to(ROOT)
        if path.suffix in (".py", ".rs", ".pyi"):
            lines = text.count("\n")
            if lines > MAX_LINES:
                found.append(
                    f"{name}: {lines} lines, expected at most {MAX_LINES}; give each concept its own file"
                )
            if path.suffix == ".py" and "bench" not in name.parts:
                found += [
                    f"{name}:{number}: docstring is an indirect question: {line.strip()[:60]}"
                    for number, line in enumerate(text.splitlines(), 1)
                    if RIDDLE.match(line)
                ]
            if path.suffix == ".py":
                found += unproven_writes(name.as_posix(), text)
            if path != Path(__file__).resolve():
                found += [
                    f"{name}:{number}: leftover: {line.strip()[:80]}"
                    for number, line in enumerate(text.splitlines(), 1)
                    if LEFTOVERS.search(line)
                ]
        if path.suffix == ".md":
            for target in LINK.findall(text):
                if not (path.parent / target).exists():
                    found.append(f"{name}: link to {target}, which does not exist")
            targets = set(re.findall(r"^([a-z-]+):", texts[ROOT / "Makefile"], re.MULTILINE))
            found += [f"{name}: `make {t}` is not a target" for t in set(MAKE.findall(text)) - targets]
    tests = Counter(
        path.name for path in files if ROOT / "tests" in path.parents and path.name[:5] == "test_"
    )
    found += [
        f"tests: {n} files have the name {name}; pytest takes one" for name, n in tests.items() if n > 1
    ]
    found += unrecorded(ROOT / "docs" / "benchmarks.md")
    found += _orphans({p: t for p, t in texts.items() if p.suffix == ".py"})
    return found


def _orphans(python: dict[Path, str]) -> list[str]:
    """Name package modules whose dotted name no other file mentions."""
    package = ROOT / "python"
    out = []
    for path in python:
        if package not in path.parents or path.stem in ENTRY_POINTS:
            continue
        if not (path.parent / "__init__.py").exists():
            continue  # no module, but a file that a command writes
        dotted = ".".join(path.relative_to(package).with_suffix("").parts)
        parent, leaf = dotted.rsplit(".", 1)
        from_parent = rf"from {re.escape(parent)} import (\([^)]*|[^\n]*)\b{leaf}\b"
        wanted = re.compile(rf"{re.escape(dotted)}\b|{from_parent}")
        if not any(wanted.search(text) for other, text in python.items() if other != path):
            out.append(f"{path.relative_to(ROOT)}: nothing imports it")
    return out


if __name__ == "__main__":
    problems = findings()
    print("\n".join(problems) if problems else "tidy: nothing to mend")
    sys.exit(bool(problems))
