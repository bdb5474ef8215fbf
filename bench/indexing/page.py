"""The page of bench/item_index.py."""

from typing import Any

from load.tables import table, where

BAR_SHARE = 0.8


def page(results: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    plan, opening, building = results["plan"], results["opening"], results["building"]
    environment = results["environment"]
    outcome = "met" if building["share"] >= BAR_SHARE else "missed"
    held = [one for one in results["updating"] if one["readers"] >= 0.9]
    most = max((one["done_per_s"] for one in held), default=0.0)
    sections = [
        f"# The life of an item index, {environment['date'][:10]}",
        f"By `python bench/item_index.py --items {plan['items']}`. {where(environment)}",
        *(() if plan["meaningful"] else ("**A quick run: it checks answers, its times mean nothing.**",)),
        f"{plan['items']:,} items, {results['row_bytes']:,} bytes a row. Every answer is checked first; "
        "ratios are medians of turns in one run.",
        "## Saving and opening",
        f"Saved in {opening['save_s']:.1f} s ({opening['bytes'] / 1e9:.2f} GB, confirmed by the disk). "
        f"Opened with the file in the system's cache; gathers of {plan['candidates']:,} rows, as multiples "
        "of the time that the index in memory takes.",
        table(
            ("opened", "seconds", "gather, times memory"),
            [
                (name, f"{way['open_s']:.2f}", f"{way['gather_ratio']:.2f}")
                for name, way in opening["ways"].items()
            ],
        ),
        "## Building out of core",
        f"{building['items']:,} items become rows of a snapshot on disk at {building['build_per_s']:,.0f} a "
        f"second; the item program alone, over ready inputs, makes {building['program_per_s']:,.0f}: "
        f"**{building['share']:.0%}** of its speed (bar {BAR_SHARE:.0%}: {outcome}; {building['rounds']} "
        "rounds in turns).",
        "## Updates",
        "Updates of single items arrive at a rate (Poisson) and are followed into an archive: computed, in "
        "the log, visible, on disk, acknowledged; then comes a pause. The delay is from arrival until the "
        f"update is visible. Beside them one thread gathers {plan['candidates']:,} rows after another; its "
        "speed is a share of that without updates, in the same run. Readers keep 90 % of their speed up to "
        f"{most:,.0f} updates a second.",
        table(
            (
                "offered a second",
                "pause, ms",
                "done a second",
                "updates a batch",
                "delay p50, ms",
                "delay p99, ms",
                "readers",
            ),
            [
                (
                    f"{one['offered_per_s']:,.0f}",
                    f"{one['pause_ms']:.0f}",
                    f"{one['done_per_s']:,.0f}",
                    f"{one['batch']:.1f}",
                    f"{one['delay_ms']['p50']:.1f}",
                    f"{one['delay_ms']['p99']:.1f}",
                    f"{one['readers']:.0%}",
                )
                for one in results["updating"]
            ],
        ),
    ]
    return "\n\n".join(sections) + "\n"
