"""Data sets and settings by description: the name of a built-in set, or the path of a TOML file.

A file has up to four parts. ``[data]`` holds the arguments of `Dataset.from_events` or
`Dataset.from_impressions`, with paths in place of tables; or ``built_in``, the name of a built-in set.
``[model]`` and ``[training]`` hold fields of `ModelConfig` and of `TrainConfig`, ``[fit]`` arguments of
`aif_jax.fit`. Paths are relative to the file. The settings of built-in sets are files of this kind, too.
"""

import contextlib
import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from aif_jax.checks import Config, check_names, fits, in_words
from aif_jax.config import ModelConfig
from aif_jax.data.dataset import Dataset
from aif_jax.data.files import PUBLIC_SETS
from aif_jax.data.kuairand import kuairand
from aif_jax.data.movielens import movielens_1m, movielens_100k
from aif_jax.data.sampling import Negatives
from aif_jax.data.splits import Split, by_column, by_time, by_user, last_n
from aif_jax.data.synthetic import synthetic, synthetic_small
from aif_jax.data.tables import open_table
from aif_jax.errors import AifError, ConfigError, DataError
from aif_jax.features import Schema
from aif_jax.files import read_file
from aif_jax.shown import shown

_FROM_PATH: dict[str, Callable[..., Dataset]] = {
    "movielens-1m": movielens_1m,
    "movielens-1m-new-users": partial(movielens_1m, new_users=True),
    "movielens-100k": movielens_100k,
    "kuairand": kuairand,
}
_MADE_UP = {"synthetic": synthetic, "synthetic:small": synthetic_small}
_CONFIGS = Path(__file__).with_name("configs")
_CONTENT_WIDTH = 64
_TABLES = ("events", "impressions", "users", "items")
_SPLITS: dict[str, Callable[..., Split]] = {
    "time": by_time, "user": by_user, "last": last_n, "column": by_column,
}  # fmt: skip

C = TypeVar("C", bound=Config)


@dataclasses.dataclass(frozen=True)
class Described:
    """A description that was read; its data was not loaded yet.

    Attributes:
        source: the name or the path that was given.
        parts: ``data``, ``model``, ``training`` and ``fit``, by name; those of a file over those of the
            built-in set that it names, unless it has a ``fit``.
        text: of the file; empty for a built-in set.
    """

    source: str
    parts: Mapping[str, Mapping[str, Any]]
    text: str = ""

    def dataset(self, content_width: int | None = None, *, seed: int = 0) -> Dataset:
        """Load the data.

        Args:
            content_width: width that content embeddings must have; by default that of ``[model]``. They are
                64 wide at least, so that narrower models share one derivation. 0 for none: users and
                histories need none, and to derive them takes time.
            seed: of made-up data.

        Raises:
            ConfigError: a key is unknown or absent, or has a value of another type.
            DataError: the data cannot be read.
        """
        call = self.reading(content_width, seed=seed)
        with self._located("data", self.parts["data"]):
            return call()

    def reading(self, content_width: int | None = None, *, seed: int = 0) -> "partial[Dataset]":
        """Return the call that loads the data, its arguments checked; see `dataset`."""
        width = max(content_width or 0, self.settings("model", ModelConfig).content_width, _CONTENT_WIDTH)
        width = width if content_width != 0 else 0
        given = dict(self.parts["data"])
        with self._located("data", given):
            if "built_in" in given:
                check_names("keys", given, ("built_in",))
                return partial(_built_in, given["built_in"], content_width=width, seed=seed)
            make = Dataset.from_impressions if "impressions" in given else Dataset.from_events
            if "events" not in given and make == Dataset.from_events:
                raise ConfigError("expected events or impressions, the path of a table, or built_in.")
            if not width:
                given = {name: value for name, value in given.items() if name != "content"}
                given["content_width"] = 0
            elif width > _CONTENT_WIDTH:
                given.setdefault("content_width", width)
            readers: dict[str, Callable[[Any], Any]] = dict.fromkeys(_TABLES, self._path)
            readers |= {"schema": lambda path: Schema.load(self._path(path)), "split": _split}
            readers["content"] = lambda path: self._content(path, given.get("item"))
            return partial(make, **arguments(make, given, {**readers, "negatives": _rule}))

    def settings(self, part: str, kind: type[C], base: C | None = None) -> C:
        """Return the fields of a part over others.

        Raises:
            ConfigError: a field is unknown or invalid.
        """
        given = self.parts.get(part, {})
        with self._located(part, given):
            return kind.from_json({**(base.to_json() if base else {}), **given})

    def arguments(self, part: str, function: Callable[..., Any]) -> dict[str, Any]:
        """Return a part as arguments of a function, checked.

        Raises:
            ConfigError: it has no such argument, or one of another type.
        """
        given = self.parts.get(part, {})
        with self._located(part, given):
            return arguments(function, given, {"init": self._path}, complete=False)

    def _path(self, value: Any) -> Any:
        """Return a path, or several, as seen from the file."""
        if not fits(value, str | Sequence[str]):
            raise ConfigError(f"got {shown(value)}, expected a path, or a list of them.")
        folder = Path(self.source).parent
        return str(folder / value) if isinstance(value, str) else [str(folder / one) for one in value]

    def _content(self, value: Any, item: Any) -> tuple[Any, Any]:
        """Return item ids and content embeddings of a table with the log's column of ids, and ``content``."""
        table = open_table(self._path(value), "content", [item, "content"])
        return table.columns[item], table.columns["content"]

    @contextlib.contextmanager
    def _located(self, part: str, given: Mapping[str, Any]) -> Iterator[None]:
        """Let errors of ours say in which line of the file they arose."""
        try:
            yield
        except AifError as error:
            if not self.text:
                raise
            named = re.match(r"(\w+):|unknown [\w ]+ \['(\w+)'", str(error))
            key = (named[1] or named[2]) if named else next(iter(given), None) if len(given) == 1 else None
            line = _line(self.text, part, key)
            raise type(error)(f"{self.source}, line {line}, [{part}]: {error}") from error


def describe(source: str | Path) -> Described:
    """Read a description.

    Args:
        source: ``synthetic``, ``synthetic:small``, ``movielens-1m:PATH``, ``movielens-1m-new-users:PATH``,
            ``movielens-100k:PATH`` or ``kuairand:PATH``, where PATH is the folder of the unpacked archive; or
            the path of a file whose name ends in ``.toml``.

    Raises:
        ConfigError: the file cannot be read, or has other parts.
        DataError: there is no such built-in set; see `load`.
    """
    source = str(source)
    if not source.endswith(".toml"):
        _check_built_in(source)
        return Described(source, {"data": {"built_in": source}, **built_in_settings(source)})
    try:
        text = read_file(source).decode()
        parts = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: cannot be read as TOML: {str(error)[:150]}.") from error
    return checked(source, parts, text)


def checked(source: str, parts: dict[str, Any], text: str) -> Described:
    """Return the description that a file holds, over the settings of the built-in set that it names.

    Raises:
        ConfigError: it has other parts.
        DataError: there is no such built-in set.
    """
    described = Described(source, parts, text)
    with described._located("", parts):
        check_names("parts", parts, ("data", "model", "training", "fit"))
        for name, part in parts.items():
            if not isinstance(part, dict):
                raise ConfigError(f"{name}: got {shown(part)}, expected a part: [{name}].")
        if "data" not in parts:
            raise ConfigError("has no part [data], which says how tables are read.")
    with described._located("data", parts["data"]):
        name = parts["data"].get("built_in")
        if name is not None:
            _check_built_in(name)
    if name is None or "fit" in parts:
        return described
    base = built_in_settings(name)
    merged = {part: {**base[part], **parts.get(part, {})} for part in base}
    return dataclasses.replace(described, parts={**parts, **merged})


def load(spec: str | Path, *, content_width: int = 64, seed: int = 0) -> Dataset:
    """Load a data set by description.

    Args:
        spec: see `describe`.
        content_width: least width of the content embedding to derive; `Dataset.catalogue` can cut it. 0 for
            none, which loads faster: enough for users and histories.
        seed: seed of made-up data; real data does not depend on it.

    Raises:
        ConfigError: a file has an unknown or absent key, or a value of another type.
        DataError: the description is not one of these, or the folder lacks files; the message names what is
            missing, where to get it, and on what terms.
    """
    if str(spec).endswith(".toml"):
        return describe(spec).dataset(content_width)
    return _built_in(str(spec), content_width=content_width, seed=seed)


def built_in_settings(name: str) -> dict[str, dict[str, Any]]:
    """Return the parts ``model`` and ``training`` of a built-in set, as the package's file holds them.

    Raises:
        ConfigError: there is no such file.
    """
    stem = name.partition(":")[0].removesuffix("-new-users")
    path = _CONFIGS / f"{stem}.toml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in _CONFIGS.glob("*.toml")))
        raise ConfigError(
            f"no settings for data set {name!r}, only for {known}; give your own ModelConfig and TrainConfig."
        )
    return tomllib.loads(path.read_text(encoding="utf-8"))


def arguments(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    readers: Mapping[str, Callable[[Any], Any]],
    *,
    complete: bool = True,
) -> dict[str, Any]:
    """Return values as arguments of a function, after a check of names and types.

    Args:
        function: whose signature says what is known and needed.
        given: values by name.
        readers: make arguments of values, by name; the others are checked against the annotations.
        complete: whether all arguments without a default must be there.

    Raises:
        ConfigError: a name is unknown or absent, or a value has another type.
    """
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    known = inspect.signature(function).parameters
    check_names("keys", given, tuple(known))
    if complete and (absent := [n for n, p in known.items() if p.default is p.empty and n not in given]):
        raise ConfigError(f"{', '.join(absent)}: absent, but needed; known are {', '.join(known)}.")
    found = {}
    for name, value in given.items():
        if name in readers:
            try:
                found[name] = readers[name](value)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        elif fits(value, hints[name]):
            found[name] = value
        else:
            raise ConfigError(f"{name}: got {shown(value)}, expected {in_words(hints[name])}.")
    return found


def _rule(value: Any) -> Negatives:
    return Negatives(**arguments(Negatives, value if isinstance(value, dict) else {"count": value}, {}))


def _split(value: Any) -> Split:
    by = value.get("by", "time") if isinstance(value, dict) else value
    if not isinstance(by, str) or by not in _SPLITS:
        raise ConfigError(f"got {shown(value)}, expected a table with by = {' or '.join(_SPLITS)}.")
    given = {name: each for name, each in value.items() if name != "by"} if isinstance(value, dict) else {}
    return _SPLITS[by](**arguments(_SPLITS[by], given, {}))


def _check_built_in(spec: Any) -> None:
    name, colon, path = spec.partition(":") if isinstance(spec, str) else (None, "", "")
    if isinstance(spec, str) and spec in _MADE_UP:
        return
    if name not in _FROM_PATH or (colon and not path):
        known = [*_MADE_UP, *(f"{key}:PATH" for key in _FROM_PATH)]
        raise DataError(
            f"got data {shown(spec)}, expected one of {', '.join(known)}, or a config, the path of a file in "
            ".toml."
        )
    if not path:
        raise DataError(f"got {spec!r} without a path, expected {spec}:PATH. {PUBLIC_SETS[name].how_to_get}")


def _built_in(spec: str, *, content_width: int, seed: int) -> Dataset:
    _check_built_in(spec)
    if spec in _MADE_UP:
        made = _MADE_UP[spec](content_width=content_width or _CONTENT_WIDTH, seed=seed)
        return made if content_width else dataclasses.replace(made, content=None)
    name, _, path = spec.partition(":")
    return _FROM_PATH[name](Path(path), content_width=content_width)


def _line(text: str, part: str, key: str | None) -> int:
    """Return the number of the line in which a key of a part stands; that of the part, if it is not found."""
    found, inside = 1, not part
    for number, line in enumerate(text.splitlines(), 1):
        if table := re.match(r"\s*\[+\s*([\w.\"-]+)\s*\]", line):
            inside = table[1].split(".")[0] == part
            if inside and found == 1:
                found = number
            if inside and key in table[1].split(".")[1:]:
                return number
        elif inside and key is not None and re.match(rf'\s*"?{re.escape(key)}"?\s*[=.]', line):
            return number
    return found
