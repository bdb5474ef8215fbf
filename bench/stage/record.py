"""Results as a page of tables."""

from typing import Any

from stage.contenders import STAGE, WHAT


def page(results: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    where, plan = results["environment"], results["plan"]
    sections = [
        f"# Real-time stage, {where['date'][:10]}",
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gb']} GB, {where['system']}; jax "
        f"{where['jax']}, ONNX Runtime {where['onnxruntime']}, NumPy {where['numpy']}, Python "
        f"{where['python']}, {where['rustc']}; commit {where['commit']}"
        f"{' with changes' if where['changed_since_commit'] else ''}. Load of the machine before and after: "
        f"{where['load_1_min']}, {where['load_1_min_at_end']} (this run itself is up to {where['cores']}).",
        "One request after retrieval: candidates in, positions and scores of the best "
        f"{plan['workload']['k']} out. One process, "
        f"{plan['rounds']} rounds in which every contender runs once on the same request, in an order drawn "
        f"anew; {plan['workload']['items']:,} items, candidates anew each round. Answers are checked against "
        "the unfolded definition (1e-4) before anything is timed. Milliseconds are medians with quartiles.",
        *(() if plan["meaningful"] else ("**A quick run: it checks answers, its times mean nothing.**",)),
        "## Bars",
        _bars(results["bars"]),
        *(_case(case) for case in results["cases"]),
        *_parts(results),
        *_growth(results),
        "## SimTier in pure XLA: the ways tried",
        _table(
            ("way", "ms"), [(name, _time(time)) for name, time in _by_median(results["xla_simtier"]).items()]
        ),
        "The rivals get the fastest of them, chosen anew at every size.",
    ]
    return "\n\n".join(sections) + "\n"


def _bars(bars: list[dict[str, Any]]) -> str:
    rows = []
    for bar in bars:
        ratio = bar.get("ratio")
        times = f"{ratio['median']:.2f} ({ratio['p25']:.2f} to {ratio['p75']:.2f})" if ratio else ""
        rows.append((bar["what"], times, f"{bar['needed']:g}", f"{bar['reach']:g}", bar["outcome"]))
    return _table(("what", "times", "bar", "reach for", "outcome"), rows)


def _case(case: dict[str, Any]) -> str:
    rows = []
    for name, time in _by_median(case["times"]).items():
        answer, what = case["answers"][name], WHAT.get(name, WHAT[STAGE])
        known = (
            f"{answer['largest_difference']:.1e}" if "largest_difference" in answer
            else f"{answer['overlap']:.1%} of the best"
        )  # fmt: skip
        rows.append((name, _time(time), f"{case['ratios'][name]['median']:.2f}", known, what))
    return (
        f"## N = {case['n']:,}, L = {case['length']:,}\n\n"
        + _table(("contender", "ms", "times the stage", "from its definition", "what it is"), rows)
        + f"\n\nSimTier of the rivals in XLA: {case['xla_simtier']}; ONNX Runtime takes {case['onnx_block']} "
        f"candidates at a time; the stage runs its {case['stage_programs']} programs."
    )


def _parts(results: dict[str, Any]) -> list[str]:
    if "parts" not in results:
        return ["## Roofline", f"Left out: {results['floor_left_out']}"]
    sections = ["## Roofline"]
    if results["busy_while_measuring_limits"]:
        sections.append(
            "**The machine was busy while its limits were measured (its threads together did less arithmetic "
            "than as many cores should): the floor is too high and its bar too easy. Run again.**"
        )
    for precision, parts in results["parts"].items():
        if precision == "stage":
            continue
        measured = "measured" in parts[0]
        rows = [
            (
                p["name"],
                p["work"],
                p["limit"],
                f"{p['floor_ms']:.3f}",
                _time(p["measured"]) if measured else "",
            )
            for p in parts
        ]
        floor, stage = sum(p["floor_ms"] for p in parts), results["parts"]["stage"]
        rows.append(("sum", "", "", f"{floor:.3f}", ""))
        if measured:
            alone = sum(p["measured"]["median_ms"] for p in parts)
            rows[-1] = ("sum", "", "", f"{floor:.3f}", f"{alone:.2f}")
            rows.append(("the whole stage", "", "", "", _time(stage)))
        head = ("part", "work", "limit", "floor, ms", "by itself, ms")
        sections += [f"### {precision}", _table(head, rows)]
    sections.append(
        "Limits are what this machine did in the same run, the best of the rates below. The parts "
        "by themselves are programs of their own, which the stage may have fused. They and the whole stage "
        "are timed in turns with each other only, so their caches are warmer than among the contenders."
    )
    rates = results["peaks"]
    names = [name for name in rates[0] if name != "threads"]
    rows = [
        (name, *(f"{rate[name] / 1e9:.1f}" if rate[name] is not None else "none" for rate in rates))
        for name in names
    ]
    head = ("G per second", *(f"{rate['threads']} thread{'s' * (rate['threads'] > 1)}" for rate in rates))
    return [*sections, _table(head, rows)]


def _growth(results: dict[str, Any]) -> list[str]:
    if not results["growth"]:
        return []
    rows = []
    for entry in results["growth"]:
        change = ", ".join(f"{name} = {value}" for name, value in entry.items() if name != "times")
        rows.append((change, *(_time(time) for time in entry["times"].values())))
    items = results["plan"]["growth_items"]
    return [
        "## Growth with signature bits and hidden width",
        f"At the first case's N and L, over {items:,} items.",
        _table(("changed", *results["growth"][0]["times"]), rows),
    ]


def _by_median(times: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(times.items(), key=lambda pair: pair[1]["median_ms"]))


def _time(time: dict[str, float]) -> str:
    return f"{time['median_ms']:.2f} ({time['p25_ms']:.2f} to {time['p75_ms']:.2f})"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
