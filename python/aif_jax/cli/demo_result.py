"""Results of one run of the demo, as plain values that a file can hold."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aif_jax.files import write_atomic
from aif_jax.timeline import Bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All results that the demo prints.

    Attributes:
        dataset: one line on the data.
        head: the label that quality is measured on.
        quality: a row each model and each floor: ``model``, ``floor``, ``auc``, ``gauc``, ``log_loss``,
            ``hr_at_10``, ``parameters``; absent figures are ``None``.
        quality_note: remarks on the quality figures.
        latency: milliseconds of every request, by way; all ways saw the same requests, interleaved.
        after_retrieval: time of each after retrieval had returned, in milliseconds.
        latency_note: remarks on the latency figures.
        timelines: one request in bars, by way.
        hidden_ms: user-side time hidden behind retrieval in that request.
        candidates: number of candidates a request.
        facts: sizes, versions and the machine.
    """

    dataset: str
    head: str
    quality: Sequence[Mapping[str, Any]]
    quality_note: str
    latency: Mapping[str, Sequence[float]]
    after_retrieval: Mapping[str, Sequence[float]]
    latency_note: str
    timelines: Mapping[str, Sequence[Bar]]
    hidden_ms: float
    candidates: int
    facts: Mapping[str, str]

    def write_json(self, path: Path) -> None:
        """Write everything as JSON."""
        values = dataclasses.asdict(self)
        values["timelines"] = {way: [bar._asdict() for bar in bars] for way, bars in self.timelines.items()}
        write_atomic(path, json.dumps(values, indent=1), begins=b"{")


def percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the maximum of latencies in milliseconds."""
    values = np.asarray(values_ms, dtype=np.float64)
    return {
        "p50": float(np.percentile(values, 50)),
        "p90": float(np.percentile(values, 90)),
        "p99": float(np.percentile(values, 99)),
        "max": float(values.max()),
    }
