"""The table of a study: JSON-serialisable values, and Markdown for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.errors import DataError
from aif_jax.evaluation import Estimate, PairedBootstrap
from aif_jax.training import floors
from studies.retention import POSITIVES, SURVIVORS
from studies.study import COLD, Row, Study, metrics_of

MODEL, BEST, BASELINE = "aif", "exact", "cold"


def summarise(
    study: Study, rows: Mapping[str, Sequence[Row]], costs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return means and spreads over the seeds, paired differences, and the floors.

    Args:
        study: what was run.
        rows: all of its rows, by variant.
        costs: by variant, as far as they were measured, see `studies.cost`.

    Raises:
        DataError: rows were judged by different rankers.
    """
    against = MODEL if MODEL in rows else next(iter(rows))
    first = rows[against][0]
    if len({row.facts["judge"] for runs in rows.values() for row in runs}) > 1:
        raise DataError("rows were judged by different rankers; keep those of one, remove the others.")
    paired = {
        kind: PairedBootstrap.of_gauc(
            first.arrays["weights"], {name: [run.arrays[kind] for run in runs] for name, runs in rows.items()}
        )
        for kind in ("growing", "frozen")
    }
    if first.arrays["cold_weights"].size > 1:
        paired["cold"] = PairedBootstrap.of_gauc(
            first.arrays["cold_weights"],
            {name: [run.arrays["cold"] for run in runs] for name, runs in rows.items()},
        )

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
            "auc": _spread([each.auc for each in plain]),
            "gauc": _spread([each.gauc for each in plain]),
            "gauc_against": difference("growing", variant.name),
            "frozen_gauc": _spread([each.gauc for each in still]),
            "frozen_gauc_against": difference("frozen", variant.name),
            "log_loss": _spread([each.log_loss for each in plain]),
            "survivors": {n: _spread([each["survivors"][n] for each in kept]) for n in kept[0]["survivors"]},
            "positives": {n: _spread([each["positives"][n] for each in kept]) for n in kept[0]["positives"]},
            "ndcg": _spread([each["ndcg"] for each in kept]),
            "cold_auc": _spread([run.facts["cold_auc"] for run in runs]),
            "cold_gauc": _spread([_gauc(run) for run in runs]),
            "cold_gauc_against": difference("cold", variant.name),
            "parameters": runs[0].facts["parameters"],
            "examples_per_s": float(np.mean(speeds)) if speeds else None,
            "cost": (costs or {}).get(variant.name),
        }
    lost = None
    if {MODEL, BEST, BASELINE} <= rows.keys():
        lost = {
            kind: dataclasses.asdict(paired[kind].lost(MODEL, BEST, BASELINE))
            for kind in ("growing", "frozen")
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
        "lost": lost,
        "made": sorted({_made(row.facts["made"]) for runs in rows.values() for row in runs}),
    }


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the tables in Markdown, with a sentence on what `aif` loses against `exact`."""
    seeds, variants = summary["seeds"], summary["variants"]
    over = f"{seeds} seeds; mean ± standard deviation over them" if seeds > 1 else "one seed"
    who = "users and seeds" if seeds > 1 else "users"
    quality = {
        f"floor: {name}": [f"{each['auc']:.4f}", f"{each['gauc']:.4f}", *[""] * 3, f"{each['log_loss']:.4f}"]
        for name, each in summary["floors"].items()
    } | {
        f"`{name}`: {each['text']}": [
            _shown(each["auc"]), _shown(each["gauc"]), _gap(each["gauc_against"]),
            _shown(each["frozen_gauc"]), _gap(each["frozen_gauc_against"]), _shown(each["log_loss"]),
            f"{each['parameters']:,}", f"{each['examples_per_s'] or 0:,.0f}/s",
        ]
        for name, each in variants.items()
    }  # fmt: skip
    kept = {
        f"`{name}`": [
            f"{found['mean']:.3f}"
            for found in (*each["survivors"].values(), *each["positives"].values(), each["ndcg"])
        ]
        for name, each in variants.items()
    }
    cold = {
        f"`{name}`": [_shown(each["cold_auc"]), _shown(each["cold_gauc"]), _gap(each["cold_gauc_against"])]
        for name, each in variants.items()
    }
    parts = [
        f"{summary['data']}, head `{summary['head']}`: {summary['impressions']:,} impressions of "
        f"{summary['users']:,} users in the test part, {over}. Differences of GAUC are to "
        f"`{summary['against']}`, with the standard error of a paired bootstrap over {who}. Frozen: "
        "histories end where a user's test rows begin, so that no label of one is an input of a later one.",
        _table(
            ["AUC", "GAUC", "difference", "GAUC, frozen", "difference", "log loss", "weights", "trained"],
            quality,
        ),
        f"Retention, over {summary['lists']:,} lists of {summary['candidates']:,.0f} candidates: share of "
        f"the best K of the frozen ranker (`{summary['judge']}`) in the model's best M, share of the "
        "positives, and NDCG@10 of the ranker's order of the best 100. Chance keeps M of all.",
        _table(
            [*(f"{k} of {m}" for k, m in SURVIVORS), *(f"positives in {m}" for m in POSITIVES), "NDCG@10"],
            kept,
        ),
        f"Cold items, frozen histories: {summary['cold_impressions']:,} impressions of items with at most "
        f"{COLD} impressions in the training part.",
        _table(["AUC", "GAUC", "difference"], cold),
    ]
    measured = {f"`{name}`": each["cost"] for name, each in variants.items() if each["cost"]}
    if measured:
        some = next(iter(measured.values()))
        parts += [
            f"Cost of a request, float32: {some['candidates']:,} candidates, the longest history, the user "
            f"state cached; median (quartiles) of {some['rounds']} rounds in turns, {_made(some['made'])}. "
            "`exact` does not fold: it runs as a whole after retrieval, user side included.",
            _table(
                ["stage, ms", "request, ms", "bytes an item", "bytes a user", "weights"],
                {
                    name: [
                        _times(each["stage_ms"]), _times(each["request_ms"]),
                        *(f"{each[what] or 0:,}" for what in ("item_bytes", "user_bytes", "parameters")),
                    ]
                    for name, each in measured.items()
                },
            ),
        ]  # fmt: skip
    if (lost := summary["lost"]) is not None:
        parts.append(f"{_lost(lost['growing'])}; with frozen histories, {_lost(lost['frozen'])}.")
    return "\n\n".join([*parts, f"Rows made: {'; '.join(summary['made'])}."]) + "\n"


def _table(header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [["model", *header], ["---"] * (1 + len(header))]
    lines += [[name, *cells, *[""] * (len(header) - len(cells))] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gauc(row: Row) -> float:
    weights = row.arrays["cold_weights"]
    return float(np.average(row.arrays["cold"], weights=weights)) if weights.size else float("nan")


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation; one seed has none."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def _shown(found: Mapping[str, float | None]) -> str:
    return f"{found['mean']:.4f}" + ("" if found["sd"] is None else f" ± {found['sd']:.4f}")


def _gap(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['value']:+.4f} ± {found['standard_error']:.4f}"


def _times(quartiles: Sequence[float] | None) -> str:
    return "none" if quartiles is None else "{1:.2f} ({0:.2f} to {2:.2f})".format(*quartiles)


def _lost(lost: Mapping[str, Any]) -> str:
    gain = Estimate(**lost["gain"])
    found = f"`{BEST}` gains {gain.value:+.4f} ± {gain.standard_error:.4f} GAUC over `{BASELINE}`"
    if lost["share"] is None:
        return f"{found}, too little to say which share of it `{MODEL}` loses"
    return f"{found}, of which `{MODEL}` loses {lost['share']:.0%}, at most {lost['upper']:.0%} (95 %)"


def _made(made: Mapping[str, Any]) -> str:
    machine = f"{made['cpu']} ({made['cores']} cores)"
    return f"{made['date']}, {machine}, jax {made['jax']}, aif_jax {made['aif_jax']}"
