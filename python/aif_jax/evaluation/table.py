"""The table of a study: JSON-serialisable values, and Markdown for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.data.splits import split_number
from aif_jax.evaluation.cold_items import AT_MOST, cold_item_metrics
from aif_jax.evaluation.cost import Cost
from aif_jax.evaluation.paired import Estimate, PairedBootstrap
from aif_jax.evaluation.retention import POSITIVES, SURVIVORS
from aif_jax.evaluation.row import Row
from aif_jax.evaluation.study import Study
from aif_jax.evaluation.where import by_machine, in_words

MODEL, BEST, BASELINE = "aif", "exact", "cold"


def summarise(study: Study, rows: Sequence[Row], costs: Mapping[str, Cost] | None = None) -> dict[str, Any]:
    """Return means and spreads over the seeds, paired differences, and the floors.

    Args:
        study: what was run.
        rows: all of its rows.
        costs: by variant, as far as they were measured.
    """
    labelled = study.labelled
    names = [variant.name for variant in study.variants]
    runs = {name: [row for row in rows if row.variant == name] for name in names}
    against = MODEL if MODEL in names else names[0]
    weights = rows[0].growing_pairs.impressions
    paired = PairedBootstrap(weights, {n: [row.growing_pairs.aucs for row in runs[n]] for n in names})
    still = PairedBootstrap(weights, {n: [row.frozen_pairs.aucs for row in runs[n]] for n in names})
    cold_items = cold_item_metrics(
        {name: [row.cold_pairs for row in runs[name]] for name in names},
        {name: [row.cold_auc for row in runs[name]] for name in names},
        against,
    )
    variants: dict[str, Any] = {}
    for variant in study.variants:
        mine = runs[variant.name]
        variants[variant.name] = {
            "text": variant.text,
            "auc": _spread([row.metrics.auc for row in mine]),
            "gauc": _spread([row.metrics.gauc for row in mine]),
            "log_loss": _spread([row.metrics.log_loss for row in mine]),
            "hit_rate": {str(k): _spread([row.metrics.hit_rate[k] for row in mine]) for k in (10, 50)},
            "survivors": {
                f"{k}@{m}": _spread([row.retention["survivors"][f"{k}@{m}"] for row in mine])
                for k, m in SURVIVORS
            },
            "positives": {
                str(m): _spread([row.retention["positives"][str(m)] for row in mine]) for m in POSITIVES
            },
            "ndcg": _spread([row.retention["ndcg"] for row in mine]),
            "frozen_gauc": _spread([row.frozen.gauc for row in mine]),
            "gauc_against": _difference_of(paired, variant.name, against),
            "frozen_gauc_against": _difference_of(still, variant.name, against),
            "parameters": mine[0].parameters,
            # A row whose run broke off behind its last step, and was only scored here, has no speed.
            "examples_per_s": _mean([row.examples_per_s for row in mine if row.examples_per_s > 0]),
            "cold_items": _cold_of(cold_items, variant.name),
            "cost": costs[variant.name].to_json() if costs and variant.name in costs else None,
        }
    lost = None
    if {MODEL, BEST, BASELINE} <= set(names):
        lost = {
            kind: dataclasses.asdict(found.lost(MODEL, BEST, BASELINE))
            for kind, found in (("growing", paired), ("frozen", still))
        }
    return {
        "data": study.dataset.name,
        "split": study.split,
        "head": study.head,
        "seeds": study.seeds,
        "users": len(np.unique(labelled.users)),
        "impressions": len(labelled),
        "frozen_history": _with_history(study),
        "lists": rows[0].retention["lists"],
        "candidates": rows[0].retention["candidates"],
        "shown": study.shown,
        "judge": study.judge,
        "positive": rows[0].retention.get("positive", 1),  # rows made before lists had more than one
        "against": against,
        "cold_items": {
            "at_most": AT_MOST,
            "impressions": int(labelled.cold.sum()),
            "users": 0 if cold_items is None else cold_items["users"],
        },
        "floors": {
            name: {"auc": found.auc, "gauc": found.gauc, "log_loss": found.log_loss}
            for name, found in study.floors().items()
        },
        "variants": variants,
        "lost": lost,
        "rows": [{"name": row.name, **row.made} for row in rows],
    }


def markdown(summary: dict[str, Any]) -> str:
    """Return the table in Markdown, with a sentence on what `aif` loses against `exact`."""
    against, part = summary["against"], summary["split"]
    lines = [
        f"{summary['data']}, head `{summary['head']}`: {summary['impressions']:,} impressions of "
        f"{summary['users']:,} users in the {part} part, {_seeds(summary['seeds'])}. The difference of GAUC "
        f"is to `{against}`, with the standard error of a bootstrap over {_drawn(summary['seeds'])} in "
        f"pairs. Frozen: histories end where a user's {part} rows begin, so that no label "
        f"of a {part} row is an input of a later one, which would turn the order of a user's rows round"
        + ("" if summary["frozen_history"] else "; nobody has any then, so that this is without histories")
        + ". Trained: impressions a second, compilation left out, the mean over the rows.",
        "",
        "| model | AUC | GAUC | difference | GAUC, frozen | difference | log loss | weights | trained |",
        "|---" * 9 + "|",
    ]
    for name, floor in summary["floors"].items():
        lines.append(
            f"| floor: {name} | {floor['auc']:.4f} | {floor['gauc']:.4f} "
            f"| | | | {floor['log_loss']:.4f} | | |"
        )
    for name, found in summary["variants"].items():
        cells = [
            f"`{name}`: {found['text']}", _shown(found["auc"]),
            _shown(found["gauc"]), _difference(found["gauc_against"]),
            _shown(found["frozen_gauc"]), _difference(found["frozen_gauc_against"]),
            _shown(found["log_loss"]), f"{found['parameters']:,}", _speed(found["examples_per_s"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    header = [f"{k} of {m}" for k, m in SURVIVORS]
    lines += [
        "",
        f"Retention, over {summary['lists']:,} lists of {_in_lists(summary)}, half of these drawn by "
        "popularity: how many of the frozen ranker's best K survive among the model's best M"
        f"{_judge(summary)}; how often the positive does; NDCG@10 of what the ranker makes of the best 100. "
        "Chance keeps M / "
        f"{round(summary['candidates']):,}.",
        "",
        f"| model | {' | '.join(header)} | "
        + " | ".join(f"positive in {m}" for m in POSITIVES)
        + " | NDCG@10 |",
        "|---" * (len(SURVIVORS) + len(POSITIVES) + 2) + "|",
    ]
    for name, found in summary["variants"].items():
        cells = [_share(found["survivors"][f"{k}@{m}"]) for k, m in SURVIVORS]
        cells += [_share(found["positives"][str(m)]) for m in POSITIVES]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_share(found['ndcg'])} |")
    lines += _cold_lines(summary) + _cost_lines(summary)
    if summary["lost"] is not None:
        lines += [
            "",
            f"{_lost(summary['lost']['growing'], summary['seeds'])} With frozen histories, "
            f"{_lost(summary['lost']['frozen'], summary['seeds'])}",
        ]
    lines += ["", "Rows by where they were made:", ""]
    lines += [f"- {line}" for line in by_machine((row["name"], row) for row in summary["rows"])]
    return "\n".join(lines) + "\n"


def _judge(summary: dict[str, Any]) -> str:
    return " (it has a head for what is shown)" if summary["judge"] == "shown" else ""


def _cold_lines(summary: dict[str, Any]) -> list[str]:
    cold = summary["cold_items"]
    of = f"items with at most {cold['at_most']} impressions in the training part"
    if not cold["users"]:
        return [
            "",
            f"Cold items: {cold['impressions']:,} impressions of {of}; fewer than two users have both "
            "classes among them, so there is nothing to compare.",
        ]
    lines = [
        "",
        f"Cold items, frozen histories: {cold['impressions']:,} impressions of {of}; {cold['users']:,} users "
        "have both classes among them.",
        "",
        "| model | AUC | GAUC | difference |",
        "|---|---|---|---|",
    ]
    for name, found in summary["variants"].items():
        mine = found["cold_items"]
        lines.append(
            f"| `{name}` | {_shown(mine['auc'])} | {_shown(mine['gauc'])} "
            f"| {_difference(mine['gauc_against'])} |"
        )
    return lines


def _cost_lines(summary: dict[str, Any]) -> list[str]:
    measured = [found["cost"] for found in summary["variants"].values() if found["cost"] is not None]
    if not measured:
        return []
    lines = [
        "",
        f"Cost of a request, float32: {measured[0]['candidates']:,} candidates, a history as long as the "
        f"model reads, the user state cached; median and quartiles of {measured[0]['rounds']} rounds in "
        "which all models took turns. Weights are random: cost does not depend on them. What does not fold "
        "runs as a whole after retrieval, user side included, in one compiled call. Measured "
        f"{in_words(measured[0]['made'])}.",
        "",
        "| model | stage, ms | request, ms | bytes an item | bytes a user | weights |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in summary["variants"].items():
        cost = found["cost"]
        if cost is None:
            lines.append(f"| `{name}` | not measured | not measured | | | {found['parameters']:,} |")
            continue
        served = cost["way"] == "engine"
        cells = [
            _times(cost["stage_ms"]) if served else "not served by the engine",
            _times(cost["request_ms"]),
            f"{cost['item_bytes']:,}" if served else "no rows",
            f"{cost['user_bytes']:,}" if served else "no state",
            f"{cost['parameters']:,}",
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def _cold_of(cold_items: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    if cold_items is None:
        return None
    mine = cold_items["models"][name]
    return {"auc": _spread(mine["auc"]), "gauc": _spread(mine["gauc"]), "gauc_against": mine["difference"]}


def _times(quartiles: Sequence[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _in_lists(summary: dict[str, Any]) -> str:
    unseen = f"{round(summary['candidates'] - summary['shown']):,} items that the user never saw"
    if summary["positive"] == summary["shown"] == 1:
        return f"one positive and {unseen}"
    return (
        f"what a user was shown in one request ({summary['shown']:.1f} items in the mean, "
        f"{summary['positive']:.1f} of them positives) and {unseen}"
    )


def _seeds(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds; mean ± standard deviation over seeds"


def _drawn(seeds: int) -> str:
    return "users and seeds" if seeds > 1 else "users, without what another seed would move,"


def _lost(lost: dict[str, Any], seeds: int) -> str:
    gain = Estimate(**lost["gain"])
    said = f"`{BEST}` gains {gain.value:+.4f} ± {gain.standard_error:.4f} GAUC over `{BASELINE}`"
    if lost["share"] is None:
        return f"{said}: too little to say which share of it `{MODEL}` loses."
    sure = "" if seeds > 1 else ", of users only"
    return f"{said}; `{MODEL}` loses {lost['share']:.0%} of that, at most {lost['upper']:.0%} (95 %{sure})."


def _with_history(study: Study) -> float:
    """Return which share of the rows that are scored has a history when histories are frozen."""
    frozen = study.dataset.with_frozen_histories(study.split)
    rows = frozen.impressions
    part = rows.split == split_number(study.split)
    return float(np.mean(rows.history_end[part] > frozen.events.offsets[rows.user[part]]))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _speed(examples_per_s: float | None) -> str:
    return "" if examples_per_s is None else f"{examples_per_s:,.0f}/s"


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation; one seed has none."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def _shown(found: dict[str, float | None]) -> str:
    return f"{found['mean']:.4f}" + ("" if found["sd"] is None else f" ± {found['sd']:.4f}")


def _share(found: dict[str, float | None]) -> str:
    return f"{found['mean']:.3f}"


def _difference_of(paired: PairedBootstrap, name: str, against: str) -> dict[str, float] | None:
    return None if name == against else dataclasses.asdict(paired.difference(name, against))


def _difference(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['value']:+.4f} ± {found['standard_error']:.4f}"
