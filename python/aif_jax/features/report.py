"""What encoding had to leave out or could not recognise, counted by feature."""

import dataclasses
from collections import Counter


@dataclasses.dataclass(slots=True)
class EncodeReport:
    """Counts of what happened to values on their way in; hand the same one to several calls to add up.

    One thread adds at a time; `as_dict` may be called from any thread meanwhile.

    Attributes:
        unknown: values that the vocabulary has no entry for (encoded as 1), by feature.
        missing: rows without any value (encoded as 0), by feature.
        overflow: values of a multi-valued feature dropped because the row was already full, by feature.
        non_finite: infinite numbers, treated as missing, by feature.
        clipped: numbers cut to the feature's clip range, by feature.
        ignored: columns that the schema does not name, by name (only with ``strict=False``).
    """

    unknown: Counter[str] = dataclasses.field(default_factory=Counter)
    missing: Counter[str] = dataclasses.field(default_factory=Counter)
    overflow: Counter[str] = dataclasses.field(default_factory=Counter)
    non_finite: Counter[str] = dataclasses.field(default_factory=Counter)
    clipped: Counter[str] = dataclasses.field(default_factory=Counter)
    ignored: Counter[str] = dataclasses.field(default_factory=Counter)

    def copy(self) -> "EncodeReport":
        """Return a copy that can be added to."""
        copy = EncodeReport()
        copy.add(self)
        return copy

    def add(self, other: "EncodeReport") -> None:
        """Add the counts of another one."""
        for name in self.__slots__:
            if counts := getattr(other, name):
                getattr(self, name).update(counts)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts that are not zero, as plain dictionaries."""
        # Copied in one piece (`dict` of a dictionary runs no Python code), because a table counts while
        # another thread asks for its statistics: iterating over the counters themselves would fail then.
        fields = {name: dict(counts) for name in self.__slots__ if (counts := getattr(self, name))}
        return {
            name: {k: int(v) for k, v in counts.items() if v}
            for name, counts in fields.items()
            if any(counts.values())
        }
