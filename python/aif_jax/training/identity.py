"""Comparison of two runs by their configs and data, across releases, before one resumes the other."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from aif_jax.config import ModelConfig
from aif_jax.data.digests import is_older_digest
from aif_jax.training.config import TrainConfig


def differing(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], *, later: Collection[str] = ()
) -> list[str]:
    """Return what differs between two descriptions, as ``part`` or ``part.field``, sorted.

    A field of a config that one of them lacks has its default there: a release that did not know the field
    trained as its default does. A digest that an earlier release made differs always, and is named so.

    Args:
        mine: JSON-serialisable values by part; ``model`` and ``training`` are fields of the configs.
        theirs: the same.
        later: parts that earlier releases did not write: where theirs lacks one, it is not compared.
    """
    mine = {part: value for part, value in mine.items() if part in theirs or part not in later}
    defaults = {"model": ModelConfig().to_json(), "training": TrainConfig().to_json()}
    first, second, known = (json.loads(json.dumps(dict(each))) for each in (mine, theirs, defaults))
    found: list[str] = []
    for part in first.keys() | second.keys():
        a, b = first.get(part), second.get(part)
        if isinstance(a, dict) and isinstance(b, dict):
            a, b = ({**known.get(part, {}), **each} for each in (a, b))
            found += [
                _named(f"{part}.{name}", b.get(name))
                for name in a.keys() | b.keys()
                if a.get(name) != b.get(name)
            ]
        elif a != b:
            found.append(_named(part, b))
    return sorted(found)


def _named(name: str, theirs: Any) -> str:
    return f"{name} (a digest of an earlier release)" if is_older_digest(theirs) else name
