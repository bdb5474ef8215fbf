"""Checks of settings and of the contents of files, and what every class of settings shares."""

import collections.abc
import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import keyword
import numbers
import sys
import types
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from aif_jax.errors import AifError, ConfigError
from aif_jax.shown import shown
from aif_jax.strict_json import shortened

_MAKERS = ("from_events", "infer", "fit", "load", "open")
"""Class methods by which a person gets an object, the usual one first."""

_MAX_FLOAT = sys.float_info.max
_MAX_WHOLE = 2**63 - 1
"""The extension, NumPy and clocks count with 64 signed bits."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
    Path: "a path",
}


def check(name: str, value: object, holds: bool, expected: str) -> None:
    """Raise `ConfigError` unless a condition on a setting holds.

    Args:
        name: of the setting.
        value: as it was given.
        holds: the condition.
        expected: the condition in words.
    """
    if not holds:
        raise ConfigError(f"{name}: got {shown(value)}, expected {expected}.")


def whole(name: str, value: Any, minimum: int, *, step: int = 1, none: bool = False) -> None:
    """Raise `ConfigError` unless a setting is a whole number.

    Args:
        name: of the setting.
        value: as it was given.
        minimum: the smallest number that fits.
        step: of which it must be a multiple.
        none: whether ``None`` fits too.
    """
    fits = type(value) is int and minimum <= value <= _MAX_WHOLE and value % step == 0
    number = "whole number" if step == 1 else f"multiple of {step}"
    check(
        name,
        value,
        fits or (none and value is None),
        f"a {number} of at least {minimum}" + _below(value) + ", or None" * none,
    )


def is_real(value: object) -> bool:
    """Return whether a value is a real number, of Python or of NumPy: no truth value and no text."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def number(name: str, value: Any, unit: str, *, zero: bool = False, none: bool = False) -> None:
    """Raise `ConfigError` unless a setting is a positive real number.

    Args:
        name: of the setting.
        value: as it was given.
        unit: of the number, for the message.
        zero: whether 0 fits too.
        none: whether ``None`` fits too.
    """
    fits = is_real(value) and (value >= 0 if zero else value > 0) and _is_float(value)
    kind = f"{'0 or more' if zero else 'more than 0'} {unit}"
    check(name, value, fits or (none and value is None), kind + ", or None" * none)


def _is_float(value: Any) -> bool:
    """Return whether a real number has a place among floats, which an integer of 400 digits has not."""
    return isinstance(value, (float, np.floating)) or -_MAX_FLOAT <= value <= _MAX_FLOAT


def _below(value: Any) -> str:
    """Return in words the upper bound of whole numbers, if that is what a value is beyond."""
    return ", below 2^63" if type(value) is int and value > _MAX_WHOLE else ""


def one_of(name: str, value: object, words: Any) -> None:
    """Raise `ConfigError` unless a setting is one of the words of a ``Literal``."""
    check(name, value, _among(value, get_args(words)), " or ".join(map(repr, get_args(words))))


def choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise `ConfigError` unless a setting is one of those allowed."""
    check(name, value, _among(value, allowed), f"one of {', '.join(map(repr, allowed))}")


def _among(value: object, allowed: Iterable[object]) -> bool:
    """Return whether a value is one of those allowed; an array is none, and has no single truth value."""
    return any(type(value) is type(one) and value == one for one in allowed)


def ascending(name: str, values: Sequence[Any]) -> None:
    """Raise `ConfigError` unless each value of a setting is larger than the one before."""
    if any(low >= high for low, high in itertools.pairwise(values)):
        raise ConfigError(f"{name}: {shortened(repr(values))} is not strictly ascending.")


def is_variable(name: str) -> bool:
    """Return whether a name stands for itself in an expression of Python: no keyword, and in composed form.

    >>> is_variable("ctr"), is_variable("if"), is_variable("\ufb01t")  # the last one is read as fit
    (True, False, False)
    """
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def check_names(what: str, given: Iterable[Any], known: Sequence[str]) -> None:
    """Raise `ConfigError` if a name is not known, with the nearest one that is.

    Args:
        what: the names are, in words.
        given: names.
        known: names that may be given.
    """
    if unknown := sorted({str(name) for name in given} - set(known)):
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown {what} {shortened(repr(unknown))}; {hint}known are {', '.join(known)}.")


@contextlib.contextmanager
def well_formed(where: object, error: type[AifError], fix: str) -> Iterator[None]:
    """Refuse contents that do not fit the block, which reads them: what it raises becomes an error of ours.

    A checksum tells only that a file is as somebody wrote it, which may have been another program.

    Args:
        where: the file, for the message.
        error: class of the error.
        fix: advice that ends the message.

    Raises:
        AifError: the block raised an error by which Python tells that a value does not fit; others pass.
    """
    try:
        yield
    except AifError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as e:
        why = shortened(f"{type(e).__name__}: {e}")
        raise error(f"{where}: has other contents than this release reads ({why}); {fix}.") from e


def check_types(
    owner: Any, error: type[AifError] = ConfigError, *, about: str = "", but: Sequence[str] = ()
) -> None:
    """Check that each field of a dataclass has the type that it is declared with; lists become tuples.

    Args:
        owner: the object, as its ``__post_init__`` gets it.
        error: class of the error.
        about: words before the field's name in the message.
        but: fields that are not checked.

    Raises:
        AifError: a field has another type, of the class ``error``.
    """
    for name, kind in _declared(type(owner)).items():
        if name in but:
            continue
        value = getattr(owner, name)
        if isinstance(value, list) and get_origin(kind) is tuple:
            object.__setattr__(owner, name, value := tuple(value))
        if not fits(value, kind):
            raise error(f"{about}{name}: got {shortened(repr(value))}, expected {in_words(kind)}.")


def typed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function refuse arguments that do not have their declared types; scalars of NumPy become plain.

    It is for entries that a person calls, not for requests: a call takes some microseconds longer. Types that
    only a type checker imports are not checked.

    >>> @typed
    ... def grow(tree: str, by: int = 1) -> str:
    ...     return f"{tree} +{by}"
    >>> grow("elm", by="two")
    Traceback (most recent call last):
    aif_jax.errors.ConfigError: grow: by: got 'two', expected a whole number.
    >>> grow("elm", how_much=2)
    Traceback (most recent call last):
    TypeError: grow(): got an unexpected keyword argument 'how_much'; arguments are tree, by
    """
    signature, called = inspect.signature(function), function.__qualname__.removesuffix(".__init__")
    kinds = {
        name: Any if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) else one.annotation
        for name, one in signature.parameters.items()
        if one.annotation is not one.empty
    }

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:  # names no function, unlike Python's own
            raise TypeError(f"{called}(): {error}; arguments are {', '.join(signature.parameters)}") from None
        for name, value in bound.arguments.items():
            kind = kinds.get(name, Any)
            if isinstance(value, np.generic) and not fits(value, kind):
                bound.arguments[name] = value = value.item()
            if not fits(value, kind):
                raise ConfigError(f"{called}: {name}: got {shown(value)}, expected {in_words(kind)}.")
        return function(*bound.args, **bound.kwargs)

    return call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of settings that are written as JSON and checked whenever they are made."""

    _about: ClassVar[str] = ""
    """Whose settings these are, for messages."""

    def __post_init__(self) -> None:
        check_types(self)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; `from_json` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build settings from `to_json` output.

        Raises:
            ConfigError: a field is unknown or invalid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{cls._about} config: got a {type(values).__name__}, expected an object of fields."
            )
        check_names(f"{cls._about} config fields", values, sorted(known))
        return cls(**values)


@functools.cache
def _declared(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value has a type; an integer, of 64 bits, is a number too, a boolean is neither."""
    if get_origin(kind) is Literal:
        return any(value is word or (type(value) is type(word) and value == word) for word in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(fits(part, get_args(kind)[0]) for part in value)
    if get_origin(kind) in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Sequence:
        return isinstance(value, (list, tuple)) and all(fits(part, get_args(kind)[0]) for part in value)
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping) and all(fits(part, get_args(kind)[1]) for part in value.values())
    if kind is Any or isinstance(kind, (str, TypeVar)):
        return True
    if getattr(kind, "_is_protocol", False):
        return not getattr(kind, "_is_runtime_protocol", False) or isinstance(value, kind)
    if get_origin(kind) is collections.abc.Callable:
        return callable(value)
    if isinstance(get_origin(kind), type):
        return isinstance(value, get_origin(kind))
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if kind is int:
            return number and -_MAX_WHOLE <= value <= _MAX_WHOLE
        return number and -_MAX_FLOAT <= value <= _MAX_FLOAT
    return isinstance(value, kind)


def in_words(kind: Any) -> str:
    """Return a type in words, for messages."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if get_origin(kind) is Mapping:
        if arguments[1] is str:
            return "a table of names"
        return "a mapping" if arguments[1] is Any else f"a mapping, each {in_words(arguments[1])}"
    if get_origin(kind) in (tuple, Sequence):
        return f"a list, each {in_words(arguments[0])}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if get_origin(kind) is collections.abc.Callable:
        return "a function"
    kind = get_origin(kind) or kind
    if kind in _WORDS:
        return _WORDS[kind]
    maker = next((f", which {kind.__name__}.{name} makes" for name in _MAKERS if hasattr(kind, name)), "")
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}{maker}"
