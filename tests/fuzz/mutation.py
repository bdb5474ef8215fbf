"""Changes of JSON that keep it JSON: values replaced, removed, doubled and moved."""

import json
import random
from collections.abc import Callable
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
    10**400, 0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), "", "a", "id", "\0", "\ud800", "é" * 3,
    "x" * 400, [], [[]], {}, [0], ["a"], [None], {"": 0}, {"kind": 0}, [[1, 2], [3]], [True, 1, "a"],
)  # fmt: skip


def mutated(data: bytes, max_size: int, seed: int, other: Callable[[bytes, int], bytes]) -> bytes:
    """Return JSON with one to four changes; bytes that are not JSON are changed by another function."""
    chance = random.Random(seed)
    try:
        whole = [json.loads(data)]
    except (ValueError, RecursionError):
        return other(data, max_size)
    if chance.random() < 0.1:
        return other(data, max_size)
    for _ in range(chance.randint(1, 4)):
        places = list(_places(whole))
        holder, key = chance.choice(places)
        kind = chance.randrange(7)
        if kind == 0 and holder is not whole:
            del holder[key]
        elif kind == 1:
            from_holder, from_key = chance.choice(places)
            holder[key] = json.loads(json.dumps(from_holder[from_key]))
        elif kind == 2 and isinstance(holder, list) and holder is not whole:
            holder.insert(key, json.loads(json.dumps(holder[key])))
        elif kind == 3 and isinstance(holder, dict):
            holder[chance.choice([name for at, name in places if isinstance(at, dict)])] = holder[key]
        elif kind == 4 and isinstance(holder[key], str) and holder[key]:
            text, at = holder[key], chance.randrange(len(holder[key]))
            holder[key] = text[:at] + chr(chance.randrange(256)) + text[at + chance.randrange(2) :]
        elif kind == 5 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] + chance.choice((-1, 1)) if chance.random() < 0.5 else -holder[key]
        else:
            holder[key] = json.loads(json.dumps(chance.choice(STRANGE)))
    result = json.dumps(whole[0]).encode()
    return result if len(result) <= max_size else data


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
