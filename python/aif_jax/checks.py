"""Checks of settings, and what every class of settings shares."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from aif_jax.errors import ConfigError


def check(name: str, value: object, holds: bool, expected: str) -> None:
    """Raise `ConfigError` unless a condition on a setting holds.

    Args:
        name: of the setting.
        value: as it was given.
        holds: the condition.
        expected: the condition in words.
    """
    if not holds:
        raise ConfigError(f"{name}: got {value!r}, expected {expected}.")


def whole(name: str, value: Any, minimum: int, *, step: int = 1, none: bool = False) -> None:
    """Raise `ConfigError` unless a setting is a whole number.

    Args:
        name: of the setting.
        value: as it was given.
        minimum: the smallest number that fits.
        step: of which it must be a multiple.
        none: whether ``None`` fits too.
    """
    fits = type(value) is int and value >= minimum and value % step == 0
    number = "whole number" if step == 1 else f"multiple of {step}"
    check(
        name,
        value,
        fits or (none and value is None),
        f"a {number} of at least {minimum}" + ", or None" * none,
    )


def choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise `ConfigError` unless a setting is one of those allowed."""
    check(name, value, value in allowed, f"one of {', '.join(map(repr, allowed))}")


def ascending(name: str, values: Sequence[Any]) -> None:
    """Raise `ConfigError` unless each value of a setting is larger than the one before."""
    if any(low >= high for low, high in itertools.pairwise(values)):
        raise ConfigError(f"{name}: {values} is not strictly ascending.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of settings that are written as JSON and checked whenever they are made."""

    _about: ClassVar[str] = ""
    """Whose settings these are, for messages."""

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
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown {cls._about} config fields {unknown}; known are {sorted(known)}.")
        return cls(**values)
