"""The error reference, docs/errors.md: examples that show exactly what a real engine does.

After a message has changed, `AIF_JAX_REWRITE=1 python -m pytest tests/test_errors_page.py` writes what
happens now into the page; read the difference before it is committed.
"""

import contextlib
import dataclasses
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aif_jax.bundle import Bundle, export_bundle
from aif_jax.features import item_keys
from aif_jax.models.store import set_weights, weights_of
from aif_jax.nearline import ItemIndex, Tables
from aif_jax.serving import Engine, Filters, InMemoryUsers, MissingItems, Threads
from aif_jax.types import UserRecord
from support.full_disk import limited_file_size
from support.served import ENGINE_CONFIG, World, make_model

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
REWRITE = "AIF_JAX_REWRITE"
WIDTH = 120
BLOCK = re.compile(r"^```(pycon|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)

CASES = (
    "Unknown user",
    "User source that raises",
    "Malformed user record",
    "Unknown items among the candidates",
    "Missing items that cannot be computed",
    "Filters that do not fit",
    "Nothing left to rank",
    "Table of candidates that does not fit",
    "Empty candidate list",
    "Negative ids",
    "Ids of another kind than the index",
    "Duplicate candidates",
    "`k` larger than the number of candidates",
    "Wrong dtype",
    "Wrong shape",
    "`retrieve` that raises",
    "`retrieve` that returns nonsense",
    "Broken file in a bundle",
    "Missing file in a bundle",
    "Weights that are not finite",
    "Path that holds something else",
    "Full disk",
    "Snapshot that was written to",
    "Index of another version",
    "No generation to go back to",
    "Feature that the schema lacks",
    "Missing column",
    "Missed deadline",
    "Overloaded engine",
    "Closed engine",
    "Engine in another process",
    "Bad entry of a stream",
    "Bad `--data` or config on the command line",
)


def sections() -> dict[str, str]:
    """Return the body of each section of the page by its heading."""
    return dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def names(
    bundle: Bundle,
    other_bundle: Bundle,
    tables: Tables,
    users: InMemoryUsers,
    world: World,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """Names that the page gives its examples, in a directory with the paths that they use."""
    home = tmp_path_factory.mktemp("page")
    for name in ("today", "damaged", "edited", "incomplete"):
        shutil.copytree(bundle.path, home / "bundles" / name)
    weights = home / "bundles" / "damaged" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    manifest = home / "bundles" / "edited" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kernel_abi": ', '"kernel_abi": 1'))
    (home / "bundles" / "incomplete" / "golden.safetensors").unlink()
    other_index = ItemIndex.build(other_bundle, [1], {})
    other_index.save(home / "rows" / "yesterday.aifrows")
    (home / "shop.toml").write_text('[data]\nevents = "log.parquet"\nusr = "user_id"\n')
    diverged = make_model(3)
    broken = weights_of(diverged)
    first = next(iter(broken))
    broken[first] = np.full_like(broken[first], np.nan)
    set_weights(diverged, broken, "this page")

    def slow_users(user: Any) -> UserRecord | None:
        time.sleep(1)
        return users(user)

    before = Path.cwd()
    os.chdir(home)
    try:
        today = Bundle.load("bundles/today")
        with Engine(today, tables, users=users, config=ENGINE_CONFIG) as engine:
            yield {
                "export_bundle": export_bundle, "model": world.model, "diverged": diverged,
                "little_room": limited_file_size, "shutil": shutil,
                "Bundle": Bundle, "Engine": Engine, "Filters": Filters, "ItemIndex": ItemIndex,
                "MissingItems": MissingItems, "Threads": Threads, "UserRecord": UserRecord,
                "item_keys": item_keys, "replace": dataclasses.replace, "time": time,
                "bundle": today, "tables": tables, "users": users, "engine": engine,
                "config": ENGINE_CONFIG, "ids": world.ids[:30], "other_index": other_index,
                "slow_users": slow_users,
            }  # fmt: skip
    finally:
        os.chdir(before)


def outcome_of_python(source: str, names: dict[str, Any]) -> str:
    """Run one example as an interactive session would; return what it shows: a value, or the error."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            exec(compile(source, "<example>", "single"), names)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    return shown.getvalue()


def outcome_of_command(source: str, _: dict[str, Any]) -> str:
    """Run a line of the console; return what it shows, and its exit status if that is not 0."""
    program, *arguments = source.split()
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "FORCE_COLOR"},
    )
    return done.stdout + (f"(exit status {done.returncode})\n" if done.returncode else "")


def steadied(text: str, hashes: dict[str, str]) -> str:
    """Replace what differs from run to run; the hashes of a section are numbered as they come."""

    def number(found: re.Match[str]) -> str:
        return hashes.setdefault(found[0], f"HASH-{len(hashes) + 1}")

    text = re.sub(r"\b[0-9a-f]{64}\b", number, text)
    text = re.sub(r"\b\d+\.\d ms\b", "N.N ms", text)
    text = re.sub(r"[\d,]+ are free", "N are free", text)
    text = re.sub(r"it had [\d,]+ bytes and has [\d,]+", "it had N bytes and has N", text)
    wrapped = [
        textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    ]
    return "".join(f"{line}\n" for lines in wrapped for line in lines)


def examples(kind: str, block: str) -> Iterator[tuple[str, str]]:
    """Return each example of a block as its lines on the page and its source."""
    if kind == "console":
        for line in re.findall(r"^\$ .*\n", block, re.MULTILINE):
            yield line, line.removeprefix("$ ")
        return
    lines = block.splitlines(keepends=True)
    for example in doctest.DocTestParser().get_examples(block):
        count = example.source.count("\n")
        yield "".join(lines[example.lineno : example.lineno + count]), example.source


def as_it_happens(body: str, names: dict[str, Any]) -> str:
    """Run the examples of a section and return it with what they show."""
    own, hashes = dict(names), dict[str, str]()
    run: dict[str, Callable[[str, dict[str, Any]], str]] = {
        "pycon": outcome_of_python, "console": outcome_of_command,
    }  # fmt: skip

    def played(found: re.Match[str]) -> str:
        kind = found[1]
        shown = [
            lines + steadied(run[kind](source, own), hashes) for lines, source in examples(kind, found[2])
        ]
        return f"```{kind}\n{''.join(shown)}```"

    try:
        return BLOCK.sub(played, body)
    finally:
        for name, value in own.items():
            if isinstance(value, Engine) and value is not names.get(name):
                value.close()


@pytest.mark.parametrize("case", CASES)
def test_errors_page_examples_show_what_happens(case: str, names: dict[str, Any]) -> None:
    stated = sections()[case]
    found = as_it_happens(stated, names)
    if os.environ.get(REWRITE):
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(text.replace(f"## {case}\n{stated}", f"## {case}\n{found}"), encoding="utf-8")
        return
    assert stated == found, f"{PAGE.name} is out of date; {REWRITE}=1 rewrites it"


def test_errors_page_has_every_case_and_no_other() -> None:
    assert tuple(sections()) == CASES


def test_errors_page_every_case_has_example_and_advice() -> None:
    for case, body in sections().items():
        assert BLOCK.search(body), case
        assert BLOCK.sub("", body).strip(), case
