"""Memory of generations beside each other: its parts, their sum, and its bound."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from aif_jax.errors import PublishError


class Part(NamedTuple):
    """Bytes of one part, and what they belong to: generations that share it need them once."""

    bytes: int
    owner: object


Needs: TypeAlias = Mapping[str, Part]
"""Memory that a generation needs, by part: ``item_index``, ``behaviour_table``, ``user_states``, ``weights``,
and ``device_rows`` where it has them.

Counted are tables as they are now, user states at their bound, rows on a device, and weights; host and device
together. Not counted: memory that programs take while they run, and what a table takes while it grows.
"""


def memory_stats(generations: Mapping[str, Needs], max_bytes: int | None) -> dict[str, Any]:
    """Return bytes by generation and part with their ``total``, and ``total_bytes`` and ``max_bytes``."""
    return {
        "generations": {name: _bytes(needs) for name, needs in generations.items()},
        "total_bytes": _total(generations), "max_bytes": max_bytes,
    }  # fmt: skip


def check_budget(max_bytes: int | None, generations: Mapping[str, Needs]) -> None:
    """Check that generations have room beside each other.

    Args:
        max_bytes: of all together; ``None`` for no bound.
        generations: needs of each, by a name for the message.

    Raises:
        PublishError: they have not.
    """
    needed = _total(generations)
    if max_bytes is None or needed <= max_bytes:
        return
    each = "; ".join(
        f"{name}: " + ", ".join(f"{part.replace('_', ' ')} {n:,}" for part, n in _bytes(needs).items())
        for name, needs in generations.items()
    )
    raise PublishError(
        f"generations beside each other need {needed:,} bytes, but max_memory_bytes is {max_bytes:,}. "
        f"{each}. (A part that several share counts once.) Nothing was changed: raise the bound, call "
        "drop_previous to go without a rollback, stop shadows, lower user_states.max_bytes, or export with a "
        "smaller precision."
    )


def _total(generations: Mapping[str, Needs]) -> int:
    parts = {id(part.owner): part.bytes for needs in generations.values() for part in needs.values()}
    return sum(parts.values())


def _bytes(needs: Needs) -> dict[str, int]:
    parts = {name: part.bytes for name, part in needs.items()}
    return {**parts, "total": sum(parts.values())}
