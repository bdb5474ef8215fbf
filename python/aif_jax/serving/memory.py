"""The memory that generations need, by part, and the budget for all of them together.

Counted are tables as they are now, user states at their bound, rows on a device, and weights; host and device
together. What programs need while they run is not, nor is what a table takes more while it grows.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from aif_jax import _native
from aif_jax.bundle import Bundle
from aif_jax.errors import PublishError
from aif_jax.nearline import BehaviourTable, ItemIndex
from aif_jax.nearline.store import ColumnSpecs


class Part(NamedTuple):
    """Bytes of one part, and what they belong to: generations that share it need them once."""

    bytes: int
    owner: object


Needs: TypeAlias = Mapping[str, Part]
"""What a generation needs, by part: ``item_index``, ``behaviour_table``, ``user_states``, ``weights``, and
``device_rows`` where it has them."""


def needs_of(
    bundle: Bundle,
    index: ItemIndex,
    behaviours: BehaviourTable,
    *,
    user_state_bytes: int,
    device_bytes: int | None,
) -> Needs:
    """Return what a generation needs.

    Args:
        bundle: the model.
        index: item rows.
        behaviours: rows of the items in histories.
        user_state_bytes: the bound of its cached user states.
        device_bytes: of its rows on a device; ``None`` for none.
    """
    parts = {
        "item_index": Part(index.stats()["total_bytes"], index),
        "behaviour_table": Part(behaviours.stats()["total_bytes"], behaviours),
        "user_states": Part(user_state_bytes, object()),
        "weights": Part(sum(int(array.nbytes) for array in bundle.weights.values()), bundle),
    }
    if device_bytes is not None:
        parts["device_rows"] = Part(device_bytes, object())
    return parts


def total(generations: Mapping[str, Needs]) -> int:
    """Return the bytes of several generations together, each part once."""
    parts = {id(part.owner): part.bytes for needs in generations.values() for part in needs.values()}
    return sum(parts.values())


def as_stats(generations: Mapping[str, Needs], budget: int | None) -> dict[str, Any]:
    """Return bytes by generation and part with their ``total``, and ``total_bytes`` and ``budget_bytes``."""
    return {
        "generations": {name: _bytes(needs) for name, needs in generations.items()},
        "total_bytes": total(generations), "budget_bytes": budget,
    }  # fmt: skip


def check_budget(budget: int | None, generations: Mapping[str, Needs]) -> None:
    """Check that generations have room beside each other.

    Args:
        budget: bytes; ``None`` for as many as they need.
        generations: what each needs, by a name for the message.

    Raises:
        PublishError: they have not.
    """
    needed = total(generations)
    if budget is None or needed <= budget:
        return
    each = "; ".join(
        f"{name}: " + ", ".join(f"{part.replace('_', ' ')} {n:,}" for part, n in _bytes(needs).items())
        for name, needs in generations.items()
    )
    raise PublishError(
        f"generations beside each other need {needed:,} bytes, but memory_budget_bytes is {budget:,}. "
        f"{each}. (What several share counts once.) Nothing was changed: raise the budget, call "
        "drop_previous to go without a rollback, stop shadows, lower user_state_bytes, or export with a "
        "smaller precision."
    )


def row_bytes(columns: ColumnSpecs) -> int:
    """Return the bytes that a row of these columns takes in a table, padding included."""
    stored = [(name, dtype.name, shape) for name, (dtype, shape) in columns.items() if 0 not in shape]
    return _native.RowLayout(stored).row_bytes


def _bytes(needs: Needs) -> dict[str, int]:
    parts = {name: part.bytes for name, part in needs.items()}
    return {**parts, "total": sum(parts.values())}
