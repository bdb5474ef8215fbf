"""Strict JSON (RFC 8259): input that means one thing only, and output that every parser reads."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from aif_jax.errors import RequestError

MAX_SHOWN = 200
"""Characters of a given value that a message quotes."""

_MAX_NESTED = 32
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)
_ESCAPES = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
MAX_DIGITS = 20
"""Digits of an integer."""


def parse(content: bytes, *, max_depth: int, max_nested: int | None = None) -> Any:
    """Parse JSON in UTF-8. Other threads can run between two of its numbers.

    Args:
        content: the text.
        max_depth: arrays and objects that may stand one inside the other.
        max_nested: arrays and objects that it may have; ``None`` for any number.

    Raises:
        RequestError: it is not JSON, not UTF-8, too deep, has too many arrays and objects, a key twice in an
            object, a lone surrogate, a number that is not finite as a float, or an integer of more than 20
            digits.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"body: is not UTF-8 (byte {error.start} is {content[error.start]:#04x}); send JSON in UTF-8."
        ) from error
    depth, nested = _nesting(text, max_depth, max_nested)
    if depth > max_depth:
        raise RequestError(
            f"body: got {depth} or more arrays and objects one inside the other, expected at most "
            f"{max_depth}; send flat columns, or raise max_depth of create_app."
        )
    if max_nested is not None and nested > max_nested:
        raise RequestError(
            f"body: got more than {max_nested:,} arrays and objects; send flat columns and fewer candidates, "
            "or raise max_candidates of create_app."
        )
    try:
        values = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(f"body: is not JSON ({error}).") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                "body: a string holds half of a surrogate pair, which is not a character; escape characters "
                r"above U+FFFF as two \u, or send them in UTF-8."
            ) from error
    return values


def dumps(values: Any, *, max_chars: int | None = None) -> bytes:
    """Return values as JSON in UTF-8; if it cannot hold them all, that of what `plain` makes of them."""
    try:
        return _dumped(values)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return _dumped(plain(values, max_chars=max_chars))


def plain(value: Any, *, max_chars: int | None = None, depth: int = 0) -> Any:
    """Return a value as JSON can hold it: NaN and infinities as ``None``, anything unknown as its text.

    Args:
        value: anything.
        max_chars: bound of every text, the rest is cut off; ``None`` for none.
        depth: of this value inside the one that was given.
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, (str, bytes, bytearray)):
        return _text_of_either(value, max_chars)
    if isinstance(value, (int, np.integer)):
        number = int(value)
        return number if number.bit_length() <= 128 else f"an integer of {number.bit_length()} bits"
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if depth < _MAX_NESTED:
        if isinstance(value, Mapping):
            return {
                str(plain(key, max_chars=max_chars, depth=_MAX_NESTED)): plain(
                    item, max_chars=max_chars, depth=depth + 1
                )
                for key, item in value.items()
            }
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (list, tuple, set, frozenset)):
            return [plain(item, max_chars=max_chars, depth=depth + 1) for item in value]
    return plain(text_of(value), max_chars=max_chars)


def text_of(value: object) -> str:
    """Return the text of an error, or the ``repr`` of another value; the name of its class if that fails."""
    try:
        return str(value) if isinstance(value, BaseException) else repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _text_of_either(value: str | bytes | bytearray, max_chars: int | None) -> str:
    """Return text without lone surrogates, or bytes as text; what is no character stands as its escape."""
    if max_chars is not None and len(value) > max_chars:  # the rest is not worth its time
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{_text_of_either(value[:max_chars], None)}... ({len(value):,} {unit})"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    try:
        return value.decode()
    except UnicodeDecodeError:
        # Three times as fast as the handler "backslashreplace", which is called for each byte.
        return value.decode("utf-8", "surrogateescape").translate(_ESCAPES)


def shortened(text: str, max_chars: int | None = MAX_SHOWN) -> str:
    """Return a text, cut if it is longer than that, with its length."""
    if max_chars is None or len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}... ({len(text):,} characters)"


def _dumped(values: Any) -> bytes:
    return json.dumps(values, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _nesting(text: str, max_depth: int, max_nested: int | None) -> tuple[int, int]:
    """Return the depth of nesting and the number of arrays and objects, up to the first beyond its bound."""
    if text.count("[") + text.count("{") <= max_depth:
        return 0, 0
    depth = deepest = nested = 0
    for token in _TOKEN.finditer(text):
        sign = token[0][0]
        if sign in "[{":
            depth += 1
            nested += 1
            deepest = max(deepest, depth)
            if depth > max_depth or (max_nested is not None and nested > max_nested):
                break
        elif sign in "]}":
            depth -= 1
    return deepest, nested


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise RequestError(f"body: the key {shortened(twice)!r} is given twice in one object; give it once.")
    return values


def _constant(name: str) -> NoReturn:
    raise RequestError(
        f"body: got {name}, which is not JSON; send a finite number, or null for a missing one."
    )


def _float(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise RequestError(
            f"body: got the number {shortened(digits)}, which is beyond the range of a float (1.8e308); send "
            "a finite number, or null for a missing one."
        )
    return number


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise RequestError(
            f"body: got the integer {shortened(digits)}, expected at most {MAX_DIGITS} digits; send ids as "
            "integers of 64 bits or as strings, and other large numbers as floats, such as 1e30."
        )
    return int(digits)
