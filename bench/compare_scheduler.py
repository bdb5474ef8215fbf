"""The scheduler beside `ThreadPoolExecutor` and `asyncio.to_thread`, with as many threads in total.

`python bench/compare_scheduler.py`: four minutes on two cores; `--quick` is over in seconds and only checks
answers. Prints a page of tables, and writes it to `--record` too.
"""

import argparse
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scheduler.contenders import Contender, Executor, Ours, OursHere, ToThread
from scheduler.measure import Outcome, Plan, idle, mix, throughput
from scheduler.work import Compute
from stage.environment import environment

BLOCKING, COMPUTE = 8, 2
RIVALS = ("ThreadPoolExecutor", "asyncio.to_thread")
QUANTILES = (0.5, 0.99, 0.999)


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share `q` does not exceed; one of the values."""
    return sorted(values)[min(len(values) - 1, math.ceil(q * len(values)) - 1)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _shown(value: float, digits: int) -> str:
    return "never" if math.isinf(value) else f"{value:.{digits}f}"


def _quantiles(values: Sequence[float], digits: int) -> list[str]:
    return [_shown(quantile(values, q), digits) for q in QUANTILES]


def _over_best_rival(values: Mapping[str, Sequence[float]], name: str, q: float) -> float:
    best = min(quantile(values[rival], q) for rival in RIVALS)
    return best / quantile(values[name], q)


def _idle_section(size: str, times: dict[str, list[float]]) -> str:
    rows = [
        [name, *_quantiles(values, 1), f"{_over_best_rival(times, name, 0.99):.2f}"]
        for name, values in times.items()
    ]
    head = ["contender", "p50, us", "p99, us", "p99.9, us", "better rival's p99 over this"]
    return f"### Submission to start at idle, tasks of {size}\n\n" + table(head, rows)


def _throughput_section(rates: dict[str, list[float]]) -> str:
    best = max(quantile(rates[rival], 0.5) for rival in RIVALS)
    rows = [
        [name, f"{quantile(values, 0.5):,.0f}", f"{quantile(values, 0.5) / best:.2f}"]
        for name, values in rates.items()
    ]
    head = ["contender", "tasks a second, median", "over the better rival"]
    return "### Small tasks, submission to result\n\n" + table(head, rows)


def _mix_section(outcomes: dict[str, dict[str, Outcome]]) -> str:
    shares = {
        name: [share for outcome in by_kind.values() for share in outcome.of_deadline]
        for name, by_kind in outcomes.items()
    }
    rows = [
        [name, *_quantiles(values, 3), f"{_over_best_rival(shares, name, 0.99):.2f}"]
        for name, values in shares.items()
    ]
    head = ["contender", "p50", "p99", "p99.9", "better rival's p99 over this"]
    parts = ["### Mix, all tasks: due to end, as a share of what the deadline allows\n\n" + table(head, rows)]
    for kind in sorted(next(iter(outcomes.values()))):
        times = {name: by_kind[kind].start_ms for name, by_kind in outcomes.items()}
        rows = []
        for name, by_kind in outcomes.items():
            outcome = by_kind[kind]
            count = len(outcome.start_ms)
            rows.append(
                [
                    name,
                    *_quantiles(outcome.start_ms, 2),
                    f"{100 * outcome.late / count:.2f} %",
                    f"{100 * outcome.never / count:.2f} %",
                    f"{_over_best_rival(times, name, 0.99):.2f}",
                ]
            )
        head = [
            "contender",
            "p50, ms",
            "p99, ms",
            "p99.9, ms",
            "late",
            "not run",
            "better rival's p99 over this",
        ]
        parts.append(f"### Mix, due to start: {kind}\n\n" + table(head, rows))
    return "\n".join(parts)


def page(plan: Plan, quick: bool) -> str:
    """Measure everything; return the page."""
    rng = random.Random(7)
    before = environment()
    print(f"scheduler: {BLOCKING} + {COMPUTE} threads, rivals: {BLOCKING + COMPUTE}", file=sys.stderr)
    ours: list[Contender] = [Ours(BLOCKING, COMPUTE), OursHere(BLOCKING, COMPUTE)]
    rivals: list[Contender] = [Executor(BLOCKING + COMPUTE), ToThread(BLOCKING + COMPUTE)]
    everyone = [*ours, *rivals]
    sections = []
    try:
        for size, seconds in (("100 us", 100e-6), ("1 ms", 1e-3)):
            print(f"idle, {size}", file=sys.stderr)
            task = Compute(seconds)
            sections.append(_idle_section(size, idle(everyone, task, plan.samples, rng)))
        print("throughput", file=sys.stderr)
        sections.append(_throughput_section(throughput(everyone, plan.small, plan.rounds, rng)))
        task = Compute(1e-3)
        mixed = mix([ours[0], *rivals], task, plan, rng, lambda text: print(text, file=sys.stderr))
        sections.append(_mix_section(mixed))
    finally:
        for contender in everyone:
            contender.close()
    after = environment()
    changed = " with changes" if before["changed_since_commit"] else ""
    both = BLOCKING + COMPUTE
    parts = [
        f"{before['cpu']}, {before['cores']} cores, {before['system']}, Python {before['python']},",
        f"{before['rustc']}; commit {before['commit']}{changed}.",
        f"Load of the machine before and after: {before['load_1_min']}, {after['load_1_min']}.",
        f"`python bench/compare_scheduler.py`{', --quick: its times mean nothing' if quick else ''}",
        "\n\n",
        f"The scheduler has {BLOCKING} blocking and {COMPUTE} compute threads, each rival {both}.",
        "One process, every contender in every round, in an order drawn anew; every answer is checked.",
        f"At idle {plan.samples:,} tasks each, one at a time. The mix: bursts of 12 tasks that sleep 5 to",
        "20 ms, 12 bursts a second, due within 60 ms or 300; computing tasks of",
        f"{1e3 * task.takes_s:.2f} ms without the GIL, 300 a second, due within 10 ms; Poisson arrivals;",
        f"{plan.mixes} rounds of {plan.seconds:g} s, the same for all. Its times count from when a task was",
        "due, not from when it could be submitted. The rivals know no deadlines; what the scheduler refused",
        "or dropped counts as late and as never started.",
    ]
    text = " ".join(parts).replace(" \n\n ", "\n\n")
    return f"# Scheduler, {before['date'][:10]}\n\n{text}\n\n" + "\n".join(sections)


def main(arguments: list[str] | None = None) -> str:
    """Run the comparison; return the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few samples; times mean nothing")
    parser.add_argument("--record", type=Path, help="where the page of tables is written besides")
    given = parser.parse_args(arguments)
    plan = Plan(20, 50, 2, 0.5, 1) if given.quick else Plan(3000, 2000, 15, 8.0, 5)
    text = page(plan, given.quick)
    if given.record is not None:
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(text)
    print(text)
    return text


if __name__ == "__main__":
    main()
