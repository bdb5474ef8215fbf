"""The page of a soak, from the files of a run: checks, what happened, latency and memory with a picture."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from scipy.stats import theilslopes

from results import Result, Row, Section, quartiles, row_of, write
from soak.generations import read_lines

CHECKS = ("lost", "wrong", "mixed", "unexpected", "uncounted")
WARM_UP = {"allocated memory": 2, "anonymous memory": 6, "rss memory": 6, "fds": 2, "threads": 2}
"""Publishes until which each may grow. An engine that publishes two bundles of this size in turns, with 20
requests after each, has allocated 65 MB before the first publish, then 76 MB after each of twelve: two
generations. What the threads free, the arenas of glibc keep, and those even out at the sixth publish: 231,
239, 243, 251, 257, 260 and 263 MB are anonymous, 260 MB after the twelfth, 175 MB after `malloc_trim`."""

MOST_MB_PER_HOUR, MOST_MORE = 20.0, 3
"""Growth that passes: of memory, the median of the slopes between all half-minutes; of descriptors and
threads, between the medians of the second and the last third."""

SHORTEST_S = 600.0
"""Less time after the warm-up says nothing about growth."""

MARKS = {"publish": "tab:green", "kill": "tab:gray", "disk full": "tab:red", "clock step": "tab:blue"}
WHAT = (
    "An answer is right if a state of items and user that it may have seen gives its scores within 1e-4 "
    "and nothing better was left out: states since the position that the tables had reached when the "
    "request began. Mixed has scores of another generation. Lost is a row of a table that is of no state "
    "that it may be, every 30 s, after every end of a follower and at the end, when all must be of the "
    "last one; a position behind a confirmed one; a dead letter too few or many. Unexpected is an error "
    "of another class than the fault's, or a process that ended. Uncounted is an outcome of which "
    "`Engine.stats` has another number. Untried is what the run should have done and did not."
)
HOW = (
    "Clock steps change `time.time` of the serving process and of followers by up to an hour. The "
    "connections that are cut are those of followers to redis; the disk that is full is the one of the "
    "archives."
)


def report(out: Path, record: Path | None, *, quick: bool) -> Path:
    """Write page and picture of a run; return the folder.

    Raises:
        AssertionError: a check is violated.
    """
    last, events = read_lines(out / "summary.jsonl")[-1], read_lines(out / "events.jsonl")
    samples, windows = read_lines(out / "samples.jsonl"), read_lines(out / "windows.jsonl")
    counts, followers = Counter(last["counts"]), _followers(out)
    happened = {event["what"] for event in events} | ({"disk full"} if not last["full_disk"] else set())
    untried = {*MARKS, "connections cut"} - happened | {
        fault for fault in last["outcomes"] if fault not in {"none", *last["hit"]}
    }
    untried |= {
        name for name in ("users invalidated", "malformed updates", "tables compared") if not counts[name]
    }
    untried |= (
        {"writes while the disk is full"} if last["full_disk"] and not followers["disk_full"] else set()
    )
    untried |= set() if last.get("finished") else {"the end of the run"}
    checks = [_check(name, counts[name], 0) for name in CHECKS]
    growth, unjudged = growth_of(samples, [event["t"] for event in events if event["what"] == "publish"])
    checks += [_check("untried", len(untried), 0, note=", ".join(sorted(untried))), *growth]
    failed = [f"{row.name} {row.value:g} {row.note}".strip() for row in checks if row.also["holds"] == "no"]
    done = Counter({name: counts[name] for name in ("updates", "malformed updates", "users invalidated")})
    done += Counter(event["what"] for event in events) + Counter(
        {f"followers: {name}": n for name, n in followers.items()}
    )
    rate = [after["cpu_s"] - before["cpu_s"] for before, after in itertools.pairwise(samples)]
    picture = (record or out / "page.md").with_suffix(".svg")
    # As many points as the picture is wide.
    _picture(samples[:: max(len(samples) // 800, 1)], windows, events, picture)
    result = Result(
        program="soak/run", title="Soak", plan=last["plan"], meaningful=not quick,
        question="Is anything lost, wrong or mixed in hours of load, changes and faults? Does anything grow?",
        answers=f"**{'Violated: ' + '; '.join(failed) if failed else 'All checks hold.'}** In "
        f"{last['seconds'] / 60:.0f} minutes {counts['answers checked']:,} answers were compared with the "
        f"unfolded model's, {counts['tables compared']:,} times a table and "
        f"{counts['archives recovered']:,} times an archive with a plain dictionary.",
        sections=[
            Section("Checks", WHAT, checks, "found"),
            Section("What was done", HOW, [Row(name, number, "") for name, number in done.items()], "times"),
            Section("Requests", "By the fault that was injected.", [
                Row(name, sum(ends.values()), "", note=", ".join(f"{end}: {n:,}" for end, n in found))
                for name, ends in last["outcomes"].items() if (found := sorted(ends.items()))
            ], "number"),
            Section("Times", "Requests without a fault, from when they were due, in windows of 10 s.", [
                *(row_of(name, [window[name] for window in windows]) for name in ("p50", "p99")),
                row_of("serving process, its checks included", rate, "cores"),
            ]),
        ],
        notes=[f"![Memory, descriptors, threads and latency over time]({picture.name})", *(
            f"- {line['t']:.0f} s, {line['check']}: {line['text'][:400]}"
            for line in read_lines(out / "violations.jsonl")[:20]
        )],
    )  # fmt: skip
    if not last["full_disk"]:
        result.notes.append("The disk was never full: a tmpfs could not be mounted here.")
    if unjudged:
        result.notes.append(f"The run was too short to tell whether these grow: {', '.join(unjudged)}.")
    write(result, out, record)
    assert not failed, failed
    return out


def _check(name: str, value: float, most: float, unit: str = "", **more: Any) -> Row:
    return Row(name, value, unit, also={"at most": most, "holds": "yes" if value <= most else "no"}, **more)


def growth_of(samples: list[dict[str, float]], published: list[float]) -> tuple[list[Row], list[str]]:
    """Return checks of growth after the warm-up, and the names of what the run was too short for.

    Args:
        samples: of the whole run, a second apart.
        published: seconds at which generations were published.
    """
    rows, unjudged = [], []
    for name, publishes in WARM_UP.items():
        warm = published[publishes - 1] if len(published) >= publishes else samples[-1]["t"]
        kept = [sample for sample in samples if sample["t"] > warm]
        if samples[-1]["t"] - warm < SHORTEST_S:
            unjudged.append(name)
            continue
        field, most, unit = name.split()[0], MOST_MORE, ""
        if not name.endswith("memory"):
            before, last = (
                quartiles([one[field] for one in part])[0] for part in np.array_split(kept, 3)[1:]
            )
            growth, note = last - before, f"{last:.0f} at the end"
        else:
            halves = [[*group] for _, group in itertools.groupby(kept, key=lambda one: one["t"] // 30)]
            values = [quartiles([one[field] for one in half])[0] / 1e6 for half in halves]
            growth, _, low, high = theilslopes(values, [half[0]["t"] / 3600 for half in halves])
            most, unit = MOST_MB_PER_HOUR, "MB/h"
            note = f"95 %: {low:.1f} to {high:.1f}; "
            note += f"{values[0]:.0f} MB after warm-up, {values[-1]:.0f} MB at the end"
        rows.append(_check(f"growth, {name}", float(growth), most, unit, note=note))
    return rows, unjudged


def _followers(out: Path) -> Counter[str]:
    """Return counts of all follower processes together, by the last line that each has written."""
    total = Counter[str]()
    for path in out.glob("*/status.jsonl"):
        for line in {line["pid"]: line for line in read_lines(path)}.values():
            total += Counter(
                {
                    name: n
                    for name, n in line.items()
                    if isinstance(n, int) and name not in ("pid", "dead_letter_bytes")
                }
            )
    return total


def _picture(samples: Any, windows: Any, events: Any, path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(3, 1, figsize=(11, 9), sharex=True, constrained_layout=True)
    parts = (
        ("MB", samples, ("rss", "anonymous", "allocated"), 1e6), ("number", samples, ("fds", "threads"), 1.0),
        ("ms, windows of 10 s", windows, ("p50", "p99"), 1.0),
    )  # fmt: skip
    for axis, (label, rows, names, unit) in zip(axes, parts, strict=True):
        for name in names:
            axis.plot(
                [row["t"] / 60 for row in rows], [row[name] / unit for row in rows], label=name, linewidth=1
            )
        for what, colour in MARKS.items():
            for number, event in enumerate(event for event in events if event["what"] == what):
                axis.axvline(
                    event["t"] / 60, color=colour, alpha=0.4, linewidth=1, label=None if number else what
                )
        axis.set(ylabel=label, **({"yscale": "log"} if rows is windows else {"ylim": (0, None)}))
    axes[0].legend(loc="lower right", ncols=7, fontsize="small")
    for axis in axes[1:]:
        axis.legend(handles=axis.lines[:2], loc="lower right", ncols=2, fontsize="small")
    axes[2].set_xlabel("minutes")
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path)
    pyplot.close(figure)
