"""The consistency of a data set's fields."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aif_jax.checks import is_variable
from aif_jax.data.content import Content
from aif_jax.data.moments import UNITS
from aif_jax.data.rows import Events, Impressions
from aif_jax.errors import DataError
from aif_jax.features import Schema
from aif_jax.shown import shown


def check_fields(
    name: str,
    schema: Schema,
    users: Mapping[str, Any],
    items: Mapping[str, Any],
    events: Events,
    impressions: Impressions,
    content: Content | None,
) -> None:
    """Refuse a data set whose parts do not fit together, or whose histories reach past rows with a time.

    Args:
        name: of the data set, for messages.
        schema, users, items, events, impressions, content: its fields, see `aif_jax.data.Dataset`.

    Raises:
        DataError: see above.
    """
    n_users, n_items = len(users.get("ids", ())), len(items.get("ids", ()))

    def fail(what: str) -> None:
        raise DataError(f"{name}: {what}.")

    for label, columns in (("users", users), ("items", items)):
        if "ids" not in columns:
            fail(f"{label} have no column 'ids'")
        n = len(columns["ids"])
        if wrong := {name: len(column) for name, column in columns.items() if len(column) != n}:
            fail(f"columns {wrong} of {label} do not have {n} rows, as their ids")
    lengths = {name: len(getattr(events, name)) for name in ("item", "type", "time", "training")}
    if events.offsets.shape != (n_users + 1,) or set(lengths.values()) != {int(events.offsets[-1])}:
        fail(
            f"event columns {lengths} do not fit offsets of shape {events.offsets.shape} "
            f"ending at {events.offsets[-1]}"
        )
    if len(events) and not (events.item.min() >= 0 and events.item.max() < n_items):
        fail(f"an event names an item outside the {n_items} items")
    types = len(schema.behaviour_types)
    if len(events) and not (events.type.min() >= 0 and events.type.max() < types):
        fail(f"an event has a type outside the {types} behaviour types")
    if events.unit not in (*UNITS, "step"):
        fail(f"events have times in {shown(events.unit)}, expected one of {', '.join(UNITS)} or step")
    same_user = np.diff(events.user) == 0
    if np.any(np.diff(events.time)[same_user] < 0):
        fail("events of a user are not in order of time")
    rows = len(impressions)
    columns = {
        **{name: getattr(impressions, name) for name in ("user", "item", "history_end", "split", "request")},
        **impressions.labels,
        **{f"mask of {name}": mask for name, mask in impressions.label_mask.items()},
        **impressions.context, **impressions.pair, **impressions.train_only,
        **({} if impressions.time is None else {"time": impressions.time}),
    }  # fmt: skip
    if wrong := {name: len(column) for name, column in columns.items() if len(column) != rows}:
        fail(f"impression columns {wrong} do not have {rows} rows")
    if wrong := [name for name in impressions.labels if not is_variable(str(name))]:
        fail(f"label {shown(wrong[0])} is not a name that a score expression could use, such as 'order'")
    if not impressions.labels or set(impressions.labels) != set(impressions.label_mask):
        fail(
            f"labels {sorted(impressions.labels)} and masks {sorted(impressions.label_mask)} differ, "
            "or there are none"
        )
    if rows:
        if not (impressions.user.min() >= 0 and impressions.user.max() < n_users):
            fail(f"an impression names a user outside the {n_users} users")
        if not (impressions.item.min() >= 0 and impressions.item.max() < n_items):
            fail(f"an impression names an item outside the {n_items} items")
        starts, stops, ends = events.offsets[:-1], events.offsets[1:], impressions.history_end
        if np.any(ends < starts[impressions.user]) or np.any(ends > stops[impressions.user]):
            fail("a history ends outside its user's events")
        if impressions.time is not None:
            some = np.flatnonzero(ends > starts[impressions.user])
            late = some[events.time[ends[some] - 1] >= impressions.time[some]]
            if len(late):
                newest = events.time[ends[late[0]] - 1]
                fail(
                    f"the history of row {late[0]} ends with an event of time {newest}, "
                    f"not before the row's own {impressions.time[late[0]]}, and so do {len(late):,} in all: "
                    "what happens at the time of a row or later would tell its label"
                )
        request, order = impressions.request, slice(None)
        if np.any(request[1:] < request[:-1]):
            order = np.argsort(request, kind="stable")
        same = request[order][1:] == request[order][:-1]
        for field in ("user", "split"):
            column = getattr(impressions, field)[order]
            if np.any(same & (column[1:] != column[:-1])):
                fail(f"a request mixes rows of different {field}s")
    if content is not None:
        vectors, has = content.vectors, content.has
        if vectors.shape[0] != n_items or has.shape != (n_items,):
            fail(f"content has {vectors.shape[0]} rows and {has.size} flags for {n_items} items")
        # Serving reads neither a mask nor a length: it takes them from the vectors.
        skewed = np.flatnonzero(~(np.abs(np.linalg.norm(vectors, axis=1) - has) < 1e-3))
        if len(skewed):
            fail(
                f"content of {len(skewed)} items, the first in row {skewed[0]}, is neither of unit length nor"
                " (without content) zero; ContentSpace.fit(ids, raw).apply(raw) makes it so"
            )
