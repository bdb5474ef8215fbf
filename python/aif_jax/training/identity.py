"""Whether two trainings are the same one, also when an earlier release wrote down what one of them was."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from aif_jax.config import ModelConfig
from aif_jax.training.config import TrainConfig


def differing(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], *, later: Collection[str] = ()
) -> list[str]:
    """Return what differs between two descriptions, as ``part`` or ``part.field``, sorted.

    A field of a config that one of them lacks has its default there: it is of a release that did not know
    the field, and trained as the default does.

    Args:
        mine: JSON-serialisable values by part; ``model`` and ``training`` are fields of the configs.
        theirs: the same.
        later: parts that were not always written down: where theirs lacks one, it is not compared.
    """
    mine = {part: value for part, value in mine.items() if part in theirs or part not in later}
    defaults = {"model": ModelConfig().to_json(), "training": TrainConfig().to_json()}
    first, second, known = (json.loads(json.dumps(dict(each))) for each in (mine, theirs, defaults))
    found: list[str] = []
    for part in first.keys() | second.keys():
        a, b = first.get(part), second.get(part)
        if isinstance(a, dict) and isinstance(b, dict):
            a, b = ({**known.get(part, {}), **each} for each in (a, b))
            found += [f"{part}.{name}" for name in a.keys() | b.keys() if a.get(name) != b.get(name)]
        elif a != b:
            found.append(part)
    return sorted(found)
