"""`aif init`: a project to edit, for a log in a file."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from aif_jax.data.tables import compute, open_table
from aif_jax.errors import ConfigError
from aif_jax.files import make_directory, write_atomic

_FILES = Path(__file__).with_name("project")
_NAMES = {
    "user": r"(user|customer|visitor|member|account|client|viewer|session)s?(_?(id|no|key))?|uid",
    "item": r"(item|product|article|movie|video|track|song|listing|sku|post|news|book)s?(_?(id|no|key))?|iid",
    "time": r"(event_?|request_?)?(time|timestamp|ts|time_?ms|date|datetime)|created(_at)?",
    "type": r"(event|action|behaviou?r|interaction)(_?type)?|type|kind",
    "label": r"label|target|(is_?|has_?)?(click|clicked|like|liked|buy|bought|converted)",
}
"""Names of columns that say what they hold, in small letters, without what follows a colon."""
_NEEDED = ("user", "item", "time")
_MOST_TYPES = 30


def run_init(
    folder: Path, *, log: Path | None, example: bool, columns: Mapping[str, str | None], console: Console
) -> None:
    """Write a project.

    Args:
        folder: where; created if absent, and empty.
        log: a Parquet or CSV file, or a folder of these, whose columns are guessed.
        example: make up a log and write it to the project.
        columns: names of the columns ``user``, ``item``, ``time`` and ``type``; ``None`` to guess one.
        console: where the guesses are printed.

    Raises:
        ConfigError: the folder is not empty, or a column cannot be guessed.
        DataError: the log cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder, expected a new one; nothing was written.")
    if log is not None and not log.exists():
        raise ConfigError(f"--log: got {str(log)[:200]!r}, which does not exist; give the path of a log.")
    given = {role: column for role, column in columns.items() if column is not None}
    table = None if log is None else open_table(str(log), "--log")
    found = {"user": "user", "item": "item", "time": "time"} | given
    if table is not None:
        found = guess_columns({name: table.arrow(name) for name in table.columns}, given)
    make_directory(folder)
    if example:
        log, found = folder / "log.parquet", {**found, "type": "event"}
        _write_parquet(log, _made_up())
        table = open_table(str(log), "--log")
    path = "log.parquet" if log is None or example else str(log.resolve())
    lines = [
        "# [data] takes the arguments of Dataset.from_events, or those of Dataset.from_impressions.",
        "[data]",
        f"{'impressions' if 'label' in found else 'events'} = {_text(path)}  # or a pattern, or a list",
        *(f"{role} = {_text(column)}" for role, column in found.items()),
    ]
    if table is not None:
        lines += _features(table, found, folder, console)
    if "label" not in found:
        lines += [
            'labels = { interaction = "any" }  # or by type, the main one first: { buy = ["cart", "buy"] }'
        ]
        lines += ["negatives = 4  # sampled items for each row"]
    lines += [
        'split = { by = "time", validation = 0.1, test = 0.1 }',
        f"name = {_text(re.sub('[^a-z0-9-]+', '-', folder.resolve().name.lower()) or 'log')}",
        "",
        "# Fields of ModelConfig under [model] and of TrainConfig under [training] replace what fit chooses.",
        "[fit]",
        f'budget = "{"1m" if example else "10m"}"  # for the training of all models',
    ]
    write_atomic(folder / "config.toml", "\n".join(lines) + "\n")
    user = _text("USER") if table is None else _example_user(table.plain(found["user"]))
    for file in sorted(_FILES.iterdir()):
        if file.is_file():
            write_atomic(folder / file.name, file.read_text(encoding="utf-8").replace("USER,", f"{user},"))
    for role, column in found.items():
        how = (
            "as given" if role in given else "guessed from its name" if table is not None else "to be edited"
        )
        console.print(f"{role:6} {column}  ({how})", markup=False, highlight=False)
    console.print(
        f"wrote {folder}; read {folder / 'config.toml'}, then {folder / 'README.md'}", highlight=False
    )


def guess_columns(columns: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Return columns of a log by role: ``user``, ``item``, ``time``, and ``label`` or ``type`` if there are.

    Args:
        columns: Arrow columns by name.
        given: columns that are known, by role.

    Raises:
        ConfigError: one that is needed cannot be guessed.
    """
    found = dict(given)
    for role, pattern in _NAMES.items():
        if role in found or (role == "type" and "label" in found):
            continue
        named = [
            name for name, column in columns.items()
            if name not in found.values()
            and re.fullmatch(pattern, name.split(":")[0].lower()) and _can_be(role, column)
        ]  # fmt: skip
        if named:
            found[role] = named[0]
    for role in found:
        if found[role] not in columns:
            raise ConfigError(
                f"--{role}: got {found[role][:80]!r}, but the columns are {str([*columns])[:200]}."
            )
    if absent := [role for role in _NEEDED if role not in found]:
        raise ConfigError(
            f"--log: no column is named like the {' or the '.join(absent)}; name it: --{absent[0]} COLUMN. "
            f"The columns are {str([*columns])[:200]}."
        )
    return {role: found[role] for role in _NAMES if role in found}


def _can_be(role: str, column: Any) -> bool:
    """Return whether the values of a column suit what its name says."""
    import pyarrow as pa

    kind = column.type
    if role == "time":
        return not pa.types.is_nested(kind) and not pa.types.is_boolean(kind)
    if role == "label":
        values = compute().unique(column.drop_null()).to_pylist()[:3]
        return pa.types.is_boolean(kind) or (bool(values) and set(values) <= {0, 1})
    if role == "type":
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        return text and compute().count_distinct(column).as_py() <= _MOST_TYPES
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _features(table: Any, found: Mapping[str, str], folder: Path, console: Console) -> list[str]:
    """Write the columns with one value a user or an item as tables of these; return lines of the config."""
    import pyarrow as pa

    rest = [
        name for name in table.columns
        if name not in found.values() and name.isidentifier()
        and not pa.types.is_nested(table.arrow(name).type)
    ]  # fmt: skip
    lines = []
    if (kinds := found.get("type")) is not None:
        counts = compute().value_counts(table.arrow(kinds)).to_pylist()
        shown = ", ".join(f"{each['values']} {each['counts']:,}" for each in counts)
        lines.append(f"# types: {shown[:100]}")
    arrow = pa.table({name: table.arrow(name) for name in [*rest, found["item"], found["user"]]})
    for side in ("item", "user"):
        key = found[side]
        if not rest:
            break
        kept = arrow.filter(compute().is_valid(arrow[key]))
        each = kept.group_by(key).aggregate([(name, "count_distinct") for name in rest])
        mine = [n for n in rest if compute().max(each[f"{n}_count_distinct"]).as_py() == 1]
        if not mine or len(each) == len(kept):
            continue
        firsts = kept.group_by(key, use_threads=False).aggregate([(name, "first") for name in mine])
        of_side = pa.table({key: firsts[key], **{name: firsts[f"{name}_first"] for name in mine}})
        _write_parquet(folder / f"{side}s.parquet", of_side)
        lines.append(f'{side}s = "{side}s.parquet"  # columns with one value an {side}: {", ".join(mine)}')
        console.print(f"{side}s  {', '.join(mine)}  (one value an {side}: {side}s.parquet)", highlight=False)
        rest = [name for name in rest if name not in mine]
    if rest:
        lines.append(f"# context = {_text(rest)}  # what is known of a request when it comes")
    return lines


def _example_user(values: Any) -> str:
    value = next((each for each in values if each is not None), "USER")
    return _text(value.item() if isinstance(value, np.generic) else value)


def _text(value: Any) -> str:
    """Return text, a number or a list as TOML and JSON write them."""
    return json.dumps(value, ensure_ascii=False)


def _write_parquet(path: Path, table: Any) -> None:
    import pyarrow.parquet

    stream = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, stream)
    write_atomic(path, stream.getvalue().to_pybytes())


def _made_up() -> Any:
    """Return a log of 200 users with tastes for categories, 150 items, and some 5,000 events in 30 days."""
    import pyarrow as pa

    random, users, items = np.random.default_rng(0), 200, 150
    category = np.arange(items) % 6
    popularity = random.pareto(1.5, items) + 1
    taste = random.dirichlet(np.full(6, 0.3), users)
    user = np.sort(random.integers(0, users, 5_000))
    weight = popularity * taste[user][:, category]
    item = np.array([random.choice(items, p=each / each.sum()) for each in weight])
    order = np.argsort(time := 1_760_000_000 + random.integers(0, 30 * 86_400, len(user)), kind="stable")
    names = np.array(["shoes", "hats", "coats", "bags", "belts", "scarves"])
    columns = {
        "user": np.char.add("u", user.astype(str)),
        "item": item + 1_000,
        "event": random.choice(["click", "cart", "buy"], len(user), p=[0.8, 0.15, 0.05]),
        "time": time.astype("datetime64[s]"),
        "category": names[category[item]],
    }
    return pa.table({name: column[order] for name, column in columns.items()})
