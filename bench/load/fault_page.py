"""What became of requests under faults, as a page of tables."""

from typing import Any

from load.tables import table, where

_GOOD = "All as it must be: nothing wrong, nothing lost, nothing left over."


def page(results: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    environment, plan, accounts = results["environment"], results["plan"], results["accounts"]
    bad = [account for account in accounts if not account["good"]]
    exits = results["exits"]
    good = not bad and all(way["clean"] for way in exits)
    sections = [
        f"# Faults under load, {environment['date'][:10]}",
        where(environment),
        f"{plan['items']:,} items, {plan['candidates']:,} candidates, history of {plan['long_length']:,}, "
        f"the best {plan['k']}; {plan['threads']} threads and {2 * plan['threads']} coroutines ask in every "
        "way there is, of an engine of its own for each fault. Answers are checked against the definition "
        "(1e-4). Left over: handles, tasks and threads that are still there when nobody asks any more, and "
        "requests that no counter accounts for. Afterwards the engine must answer every request rightly, "
        "once a first one got through: where calls hung, a circuit is open until one does.",
        f"**{_GOOD if good else 'FAULTS FOUND.'}**",
        table(
            (
                "what goes wrong", "requests", "hit by it", "answered, by rung", "errors by type", "wrong",
                "lost", "not allowed", "left over", "answers afterwards", "seconds",
            ),
            [
                (
                    account["scenario"], str(account["requests"]), str(account["hit"]),
                    _counts(account["rungs"]), _counts(account["errors"]), str(len(account["wrong"])),
                    str(account["lost"]), str(len(account["unexpected"])),
                    ", ".join(account["left"]) or "0", "yes" if account["healthy"] else "NO",
                    f"{account['seconds']:.1f}",
                )
                for account in accounts
            ],
        ),
        *(
            f"{account['scenario']}: {text}"
            for account in bad
            for text in (*account["wrong"][:3], *account["unexpected"][:3])
        ),
        "## The interpreter exits with requests under way",
        table(
            ("under way", "processes", "clean", "longest, from leaving to the end, seconds"),
            [
                (
                    way["way"], str(way["processes"]), "yes" if way["clean"] else "NO: " + way["told"],
                    f"{way['seconds']:.2f}",
                )
                for way in exits
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
