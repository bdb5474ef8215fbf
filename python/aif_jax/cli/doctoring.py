"""`aif doctor`: a report on the environment of an engine, with remedies for its problems."""

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aif_jax.doctor import check_environment, worst

_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}
_CLOSING = {
    "ok": "all is well",
    "note": "it will run; see the notes for improvements",
    "problem": "solve the problems before you serve",
}


def run_doctor(*, as_json: bool, console: Console) -> int:
    """Check the environment, print the results, and return the command's exit status.

    Returns:
        1 if there is a problem, otherwise 0.
    """
    checks = check_environment()
    status = worst(checks)
    if as_json:
        report = {"status": status, "checks": [check.to_json() for check in checks]}
        console.out(json.dumps(report, indent=1), highlight=False)
        return int(status == "problem")
    table = Table("check", "status", "found, and what to do")
    for check in checks:
        words = Text(check.found)
        if check.advice:
            words.append(f"\n{check.advice}", style=_COLOURS[check.status])
        table.add_row(check.name, Text(check.status, style=_COLOURS[check.status]), words)
    console.print(table)
    console.print(f"[{_COLOURS[status]}]{status}[/]: {_CLOSING[status]}")
    return int(status == "problem")
