"""What pages of results share: tables, and where it was measured."""

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def where(environment: dict[str, Any]) -> str:
    """Return in words where and on what something was measured."""
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['memory_gb']} GB, "
        f"{environment['system']}; jax {environment['jax']}, NumPy {environment['numpy']}, Python "
        f"{environment['python']}; commit {environment['commit']}"
        f"{' with changes' if environment['changed_since_commit'] else ''}. Load of the machine before and "
        f"after: {environment['load_1_min']}, {environment['load_1_min_at_end']} (this run itself is up to "
        f"{environment['cores']})."
    )
