"""Counts of values that encoding a training set left out or did not recognise, and their summary."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from aif_jax.data import Dataset
from aif_jax.features import GROUPS, EncodeReport, Group, Schema

Encoding = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Counts by group, then by reason as in `EncodeReport`, then by feature; only those that are not zero."""

_WORDS = {
    "unknown": "unknown values",
    "missing": "missing values",
    "overflow": "values beyond max_values",
    "non_finite": "infinite numbers",
    "clipped": "clipped numbers",
    "ignored": "columns that the schema does not name",
}
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class CountedDataset(Dataset):
    """A data set that counts the values which its last encoding of each group left out.

    Attributes:
        reports: by group. Columns that the schema does not name are ``ignored``, once each.
    """

    reports: Mapping[Group, EncodeReport] = dataclasses.field(
        default_factory=lambda: {group: EncodeReport() for group in GROUPS}
    )

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Return a data set that counts; its columns are those of ``dataset``, not copies."""
        return cls(**{field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)})

    def encode(
        self,
        schema: Schema,
        group: Group,
        rows: np.ndarray | None = None,
        *,
        report: EncodeReport | None = None,
    ) -> dict[str, np.ndarray]:
        """Encode as `Dataset.encode` does; without a ``report`` the counts go to `reports`."""
        if report is None:
            report = self.reports[group]
            for field in dataclasses.fields(report):
                getattr(report, field.name).clear()
            names = {feature.name for feature in schema.features(group)}
            report.ignore(self._group(group).keys() - names)
        return super().encode(schema, group, rows, report=report)

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return the counts in plain dictionaries."""
        return {group: found for group, report in self.reports.items() if (found := report.as_dict())}


def summary_of(encoding: Encoding) -> str:
    """Return counts in one line, such as ``3 unknown values (item.brand 2, user.region 1)``; or nothing."""
    parts: list[str] = []
    for reason, words in _WORDS.items():
        counts = [
            (count, f"{group}.{feature}")
            for group, reasons in encoding.items()
            for feature, count in reasons.get(reason, {}).items()
        ]
        if not counts:
            continue
        counts.sort(key=lambda entry: (-entry[0], entry[1]))
        named = ", ".join(f"{name} {count:,}" for count, name in counts[:_SHOWN])
        more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
        parts.append(f"{sum(count for count, _ in counts):,} {words} ({named}{more})")
    return "; ".join(parts)
