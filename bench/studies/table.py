"""The table of a study: JSON-serialisable values, and pages for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import results
from aif_jax.errors import DataError
from aif_jax.evaluation import PairedBootstrap
from aif_jax.training import floors
from studies.study import COLD, Row, Study, metrics_of

MODEL, BEST, BASELINE = "aif", "exact", "cold"


def summarise(study: Study, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return means and spreads over the seeds, paired differences, and the floors.

    Args:
        study: what was run.
        rows: all of its rows, by variant.

    Raises:
        DataError: rows were judged by different rankers.
    """
    against = MODEL if MODEL in rows else next(iter(rows))
    first = rows[against][0]
    if len({row.facts["judge"] for runs in rows.values() for row in runs}) > 1:
        raise DataError("rows were judged by different rankers; keep those of one, remove the others.")
    paired = {
        kind: PairedBootstrap.of_gauc(
            first.arrays[weights], {name: [run.arrays[kind] for run in runs] for name, runs in rows.items()}
        )
        for kind, weights in (("growing", "weights"), ("frozen", "weights"), ("cold", "cold_weights"))
        if first.arrays[weights].size > 1
    }

    def difference(kind: str, name: str) -> dict[str, float] | None:
        if kind not in paired or name == against:
            return None
        return dataclasses.asdict(paired[kind].difference(name, against))

    variants: dict[str, Any] = {}
    for variant in study.variants:
        runs = rows[variant.name]
        plain, still = [metrics_of(run) for run in runs], [metrics_of(run, "frozen") for run in runs]
        kept = [run.facts["retention"] for run in runs]
        # A row whose run ended behind its last step, and was only scored here, has no speed.
        speeds = [run.facts["examples_per_s"] for run in runs if run.facts["examples_per_s"] > 0]
        variants[variant.name] = {
            "text": variant.text,
            **{
                name: _spread([getattr(each, name) for each in plain]) for name in ("auc", "gauc", "log_loss")
            },
            "frozen_gauc": _spread([each.gauc for each in still]),
            "cold_auc": _spread([run.facts["cold_auc"] for run in runs]),
            "cold_gauc": _spread([_gauc(run) for run in runs]),
            "gauc_against": difference("growing", variant.name),
            "frozen_gauc_against": difference("frozen", variant.name),
            "cold_gauc_against": difference("cold", variant.name),
            "survivors": {n: _spread([each["survivors"][n] for each in kept]) for n in kept[0]["survivors"]},
            "positives": {n: _spread([each["positives"][n] for each in kept]) for n in kept[0]["positives"]},
            "ndcg": _spread([each["ndcg"] for each in kept]),
            "parameters": runs[0].facts["parameters"],
            "examples_per_s": float(np.mean(speeds)) if speeds else None,
        }
    lost = {
        kind: dataclasses.asdict(paired[kind].lost(MODEL, BEST, BASELINE))
        for kind in ("growing", "frozen")
        if {MODEL, BEST, BASELINE} <= rows.keys()
    }
    return {
        "data": study.dataset.name,
        "head": study.head,
        "seeds": study.seeds,
        "impressions": len(study.known),
        "users": len(np.unique(study.dataset.impressions.user[study.known])),
        "judge": study.judge.name,
        "lists": len(study.lists),
        "candidates": float((study.lists.items >= 0).sum(axis=1).mean()),
        "cold_impressions": int(study.cold.sum()),
        "against": against,
        "floors": {
            name: {"auc": found.auc, "gauc": found.gauc, "log_loss": found.log_loss}
            for name, found in floors(study.dataset, heads=(study.head,)).items()
        },
        "variants": variants,
        "lost": lost or None,
        "made": sorted({str(row.facts["made"]) for runs in rows.values() for row in runs}),
    }


def sections(summary: Mapping[str, Any]) -> list[results.Section]:
    """Return the tables of a summary as sections of a result."""
    seeds, variants = summary["seeds"], {}
    for name, each in summary["variants"].items():
        kept = {
            **{f"survivors {n}": found for n, found in each["survivors"].items()},
            **{f"positives in {n}": found for n, found in each["positives"].items()},
            "NDCG@10": each["ndcg"],
        }
        variants[name] = {**each, **kept}

    def table(title: str, text: str, columns: Mapping[str, str]) -> results.Section:
        rows = [
            results.Row(f"`{name}`", None, also={head: _shown(each[key]) for head, key in columns.items()})
            for name, each in variants.items()
        ]
        return results.Section(title, text, rows)

    quality = table(
        "Quality",
        f"{summary['data']}, head `{summary['head']}`: {summary['impressions']:,} impressions of "
        f"{summary['users']:,} users in the test part; mean ± standard deviation over {seeds} seeds. "
        f"Differences of GAUC are to `{summary['against']}` ± the standard error of a paired bootstrap. "
        "Frozen: histories end where a user's test rows begin, so that no label is an input of a later one.",
        {
            "AUC": "auc", "GAUC": "gauc", "difference": "gauc_against", "GAUC, frozen": "frozen_gauc",
            "difference, frozen": "frozen_gauc_against", "log loss": "log_loss", "weights": "parameters",
            "examples a second": "examples_per_s", "model": "text",
        },
    )  # fmt: skip
    names = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}
    floor_rows = [
        results.Row(f"floor: {name}", None, also={names[key]: f"{value:.4f}" for key, value in each.items()})
        for name, each in summary["floors"].items()
    ]
    retained = (
        f"Over {summary['lists']:,} lists of {summary['candidates']:,.0f} candidates: share of the best K of "
        f"the frozen ranker (`{summary['judge']}`) in the model's best M (K@M), share of the positives, and "
        "NDCG@10 of the ranker's order of the best 100. Chance keeps M of all."
    )
    found = [
        dataclasses.replace(quality, rows=[*floor_rows, *quality.rows]),
        table("Retention", retained, {name: name for name in kept}),
        table(
            "Cold items, frozen histories",
            f"{summary['cold_impressions']:,} impressions of items with at most {COLD} in the training part.",
            {"AUC": "cold_auc", "GAUC": "cold_gauc", "difference": "cold_gauc_against"},
        ),
    ]
    rows = [
        results.Row(f"{kind} histories", each["share"], "ratio", also={
            f"gain of {BEST} over {BASELINE}, GAUC": _shown(each["gain"]), "upper 95 % bound": each["upper"],
        })
        for kind, each in (summary["lost"] or {}).items()
    ]  # fmt: skip
    return [*found, results.Section(f"Share of the gain that {MODEL} loses", rows=rows)] if rows else found


def _gauc(row: Row) -> float:
    weights = row.arrays["cold_weights"]
    return float(np.average(row.arrays["cold"], weights=weights)) if weights.size else float("nan")


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation; one seed has none."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def _shown(found: Any) -> str | float | None:
    """Return a spread or a difference in words, other figures as they are."""
    if not isinstance(found, Mapping):
        return found
    if "mean" in found:
        return f"{found['mean']:.4f}" + ("" if found["sd"] is None else f" ± {found['sd']:.4f}")
    return f"{found['value']:+.4f} ± {found['standard_error']:.4f}"
