"""Counts of values that encoding left out or did not recognise, by feature."""

import dataclasses
from collections.abc import Iterable


class Counts(dict[str, int]):
    """Numbers by name, 0 by default. (A ``Counter`` takes ten times as long to make.)"""

    __slots__ = ()

    def __missing__(self, name: str) -> int:
        return 0


@dataclasses.dataclass(slots=True)
class EncodeReport:
    """Counts of values by their treatment; several calls given the same report add up.

    One thread adds at a time; `as_dict` may be called from any thread meanwhile.

    Attributes:
        unknown: values that the vocabulary has no entry for (encoded as 1), by feature.
        missing: rows without any value (encoded as 0), by feature.
        overflow: values of a multi-valued feature dropped because the row was already full, by feature.
        non_finite: infinite numbers, treated as missing, by feature.
        clipped: numbers cut to the feature's clip range, by feature.
        ignored: columns that the schema does not name, by name (only with ``strict=False``).
    """

    unknown: Counts = dataclasses.field(default_factory=Counts)
    missing: Counts = dataclasses.field(default_factory=Counts)
    overflow: Counts = dataclasses.field(default_factory=Counts)
    non_finite: Counts = dataclasses.field(default_factory=Counts)
    clipped: Counts = dataclasses.field(default_factory=Counts)
    ignored: Counts = dataclasses.field(default_factory=Counts)

    def copy(self) -> "EncodeReport":
        """Return a copy that can be added to."""
        copy = EncodeReport()
        copy.add(self)
        return copy

    def add(self, other: "EncodeReport") -> None:
        """Add the counts of another one."""
        for name in self.__slots__:
            if counts := getattr(other, name):
                mine = getattr(self, name)
                for feature, number in counts.items():
                    mine[feature] = mine.get(feature, 0) + number

    def ignore(self, columns: Iterable[str]) -> None:
        """Count columns that the schema does not name, one each."""
        for name in columns:
            self.ignored[name] += 1

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts that are not zero, as plain dictionaries."""
        result: dict[str, dict[str, int]] = {}
        for name in self.__slots__:
            if counts := getattr(self, name):
                # Copied in one piece (`dict` of a dictionary runs no Python code), because a table counts
                # while another thread asks for its statistics: iterating over the counters would fail then.
                for feature, number in dict(counts).items():
                    if number:
                        result.setdefault(name, {})[feature] = int(number)
        return result
