"""Schemas written for people: as Python code that declares them, and as TOML or JSON files to edit."""

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aif_jax.errors import SchemaError
from aif_jax.features.encoders import Encoder
from aif_jax.features.kinds import Feature
from aif_jax.files import read_file, write_atomic


def code_of(groups: Mapping[str, Iterable[Feature]], rest: Mapping[str, Any]) -> str:
    """Return code that declares a schema; what has its default is left out.

    Args:
        groups: features by group.
        rest: the other fields, in order.
    """
    lines = ["Schema("]
    for group, features in groups.items():
        if features := tuple(features):
            lines += [f"    {group}=(", *(f"        {_feature(feature)}," for feature in features), "    ),"]
    lines += [f"    {name}={_literal(value)}," for name, value in rest.items() if value is not None]
    return "\n".join([*lines, ")"])


def write_fields(path: Path, fields: Mapping[str, Any]) -> None:
    """Write the fields of a schema as TOML or JSON, by the file's name.

    Raises:
        SchemaError: the name ends otherwise.
    """
    if path.suffix == ".json":
        text = json.dumps(fields, indent=2)
    elif path.suffix == ".toml":
        text = _toml(fields)
    else:
        raise SchemaError(f"got the file name {path.name[:80]!r}, expected one in .toml or .json.")
    write_atomic(path, (text + "\n").encode())


def read_fields(path: Path) -> dict[str, Any]:
    """Read what `write_fields` wrote, or a person edited.

    Raises:
        SchemaError: the file cannot be read; the message says where.
    """
    try:
        text = read_file(path).decode()
        if path.suffix == ".json":
            return json.loads(text)
        if path.suffix == ".toml":
            return tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path}: cannot be read: {str(error)[:150]}.") from error
    raise SchemaError(f"got the file name {path.name[:80]!r}, expected one in .toml or .json.")


def _feature(feature: Feature) -> str:
    fields = {}
    for field in dataclasses.fields(feature):
        value = getattr(feature, field.name)
        if field.name == "encoder":
            if (written := _encoder(value)) != "Vocabulary()":
                fields["encoder"] = written
        elif value != field.default:
            fields[field.name] = _literal(value)
    return f"{type(feature).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def _encoder(encoder: Encoder) -> str:
    fields = {
        field.name: _literal(value)
        for field in dataclasses.fields(encoder)
        if (value := getattr(encoder, field.name)) != field.default
    }
    return f"{type(encoder).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def _literal(value: Any) -> str:
    """Write a value as Python code with double quotes."""
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _toml(fields: Mapping[str, Any]) -> str:
    """Write fields: values first, then a table of every feature; absent values are left out."""
    lines = [f"{name} = {_value(value)}" for name, value in fields.items() if _plain(value)]
    for group, features in fields.items():
        if _plain(features) or features is None:
            continue
        for feature in features:
            lines += ["", f"[[{group}]]"]
            lines += [f"{name} = {_value(value)}" for name, value in feature.items() if value is not None]
    return "\n".join(lines)


def _plain(value: Any) -> bool:
    if value is None:
        return False
    return not (isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        given = [f"{name} = {_value(entry)}" for name, entry in value.items() if entry is not None]
        return "{ " + ", ".join(given) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):  # TOML escapes one more character than JSON
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
