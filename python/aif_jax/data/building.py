"""Data sets from tables: events of people who did something, or impressions with labels.

Everything but the names of columns is worked out: rows are put in order by user and time, ids become row
numbers, a history is what the user did strictly before the row, and the parts follow from a rule.
"""

import dataclasses
import time as clock
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aif_jax.data.content import CONTENT_WIDTH, collaborative_content, given_content, out_of_fold
from aif_jax.data.facts import known_items
from aif_jax.data.moments import UNITS, Moments, as_text, common_unit
from aif_jax.data.reading import Log, Names, RawLog, Side, number, read_label, read_log, read_side
from aif_jax.data.request_log import read_request_log
from aif_jax.data.rows import Events, Impressions, take_columns
from aif_jax.data.sampling import COMING_BACK, Met, Negatives, draw
from aif_jax.data.splits import SPLITS, TEST, TRAIN, VALIDATION, Held, Split, ends_before
from aif_jax.data.tables import CodedIds, SortedIds, code_ids, open_table
from aif_jax.errors import DataError, SchemaError
from aif_jax.features import GROUPS, Group, Numeric, Schema

CONTENT_EVENTS = 2_000_000
"""Training events up to which content embeddings are derived by default."""

MIN_ITEM_COUNT = 3
"""Times that an item occurs in training before the inferred schema knows its id, by default. The embedding of
a rarer id would be noise, and no training row would have an unknown id."""

_MOST_WIDE = 4_096
_DEFAULT_TYPE = "interaction"
_DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings that both kinds of logs share; see `Dataset.from_events`.

    Attributes:
        users: table of users, or ``None``.
        items: table of items, or ``None``.
        unlisted: for ids of the log that a table lacks.
        split: rule of the parts.
        schema: of the features; ``None`` to infer one.
        category: of the inferred schema.
        min_item_count: of the inferred schema; ``None`` for the default.
        repeats: ``drop`` or ``keep`` rows that say the same as another.
        time_unit: of numbers.
        content: content embeddings, see `Dataset.from_events`; ``None`` to derive them.
        content_width: of content embeddings; 0 for none; ``None`` for the default.
        name: of the data set.
    """

    users: Any
    items: Any
    unlisted: str
    split: Split
    schema: Schema | None
    category: str | None
    min_item_count: int | None
    repeats: str
    time_unit: str | None
    content: Any
    content_width: int | None
    name: str

    def __post_init__(self) -> None:
        if self.repeats not in ("drop", "keep"):
            raise DataError(f"repeats: got {self.repeats!r}, expected 'drop' or 'keep'.")
        if self.content_width is not None and not 0 <= self.content_width <= _MOST_WIDE:
            raise DataError(f"content_width: got {self.content_width}, expected 0 to {_MOST_WIDE:,}.")
        if self.content is not None and self.content_width == 0:
            raise DataError(
                "content_width: got 0, which is for no content, beside content; give one of them."
            )


def from_events(
    events: Any, names: Names, setting: Setting, labels: Mapping[str, Any] | None, negatives: Negatives
) -> dict[str, Any]:
    """Return the fields of a data set made of events.

    Args:
        events: table.
        names: of its columns.
        setting: see `Setting`.
        labels: types of behaviour of each head, or ``any``; ``None`` for one head of all types.
        negatives: rule of the sampled items.
    """
    raw = read_log(events, "events", names, setting.time_unit)
    users, items = _sides(names, setting, raw)
    log = number(raw, users, items, unlisted=setting.unlisted)
    types, log = _typed(log, raw.words.get("type"), setting.schema)
    log = _without_repeats(log.in_order(), setting)
    heads = _heads(labels, types)
    of_head = {head: np.isin(log.columns["type"], kinds) for head, kinds in heads.items()}
    rows = _moments_of_items(log, of_head)
    if not len(rows):
        raise DataError(f"{setting.name}: no event has one of the types in labels, {labels!r}.")

    real = log.take(rows)
    held = _held(real, log, raw.moments.unit)
    part, training = setting.split.divide(held)
    training[rows] = part == TRAIN
    event_part = np.where(training, TRAIN, TEST).astype(np.int8)
    event_part[rows] = part
    first_part = np.full(len(items.ids), TEST + 1, np.int8)
    for later in (TEST, VALIDATION, TRAIN):
        first_part[log.item[event_part == later]] = later
    ends = ends_before(log.user, log.time)[rows]
    met = Met.of(log.user, log.item, event_part, len(items.ids))
    back = (
        float(met.before(real.user, real.item, ends)[part == TRAIN].mean()) if (part == TRAIN).any() else 0.0
    )
    if negatives.met is None:
        negatives = dataclasses.replace(negatives, met=back >= COMING_BACK)
    drawn = draw(
        negatives,
        user=real.user,
        item=real.item,
        part=part,
        start=ends,
        day=_days(real.time, raw.moments.unit, negatives),
        met=met,
        first_part=first_part,
    )
    item = np.concatenate([real.item[:, None], drawn], axis=1)
    del drawn  # as large as a column of all rows
    shape, item = item.shape, item.ravel()
    kept = item >= 0 if item.min() < 0 else None

    def each(array: np.ndarray) -> np.ndarray:
        """Give the value of a real row to its sampled ones too."""
        wide = np.repeat(array, shape[1])
        return wide if kept is None else wide[kept]

    sampled = np.ones(shape, bool)
    sampled[:, 0] = False
    sampled = sampled.ravel() if kept is None else sampled.ravel()[kept]
    item = item if kept is None else item[kept]
    context = {name: real.columns[name] for name in names.context}
    rows_to_score = Impressions(
        user=each(real.user),
        item=item,
        history_end=each(ends),
        labels={
            head: np.where(sampled, np.float32(0), each(flag[rows])).astype(np.float32, copy=False)
            for head, flag in of_head.items()
        },
        label_mask={head: np.broadcast_to(np.float32(1), len(item)) for head in heads},
        split=each(part),
        request=each(_by_moment(real, part)),
        context=take_columns(context, each(np.arange(len(real)))) if context else {},
        sampled=sampled,
    )
    about = f"{negatives} ({back:.0%} of the training rows are of items met before)"
    notes = {"negatives": about, "negatives_lacking": 1 - len(item) / int(np.prod(shape))}
    return _fields(names, setting, raw, users, items, log, types, training, rows_to_score, notes)


def from_impressions(impressions: Any, names: Names, setting: Setting, events: Any) -> dict[str, Any]:
    """Return the fields of a data set made of impressions.

    Args:
        impressions: table.
        names: of its columns; ``type`` is a column of ``events``, if there are any.
        setting: see `Setting`.
        events: table of what users did; ``None`` if the impressions become the history.
    """
    own = events is None
    shown_names = names if own else dataclasses.replace(names, type=None)
    raw = read_log(impressions, "impressions", shown_names, setting.time_unit)
    logs = [raw]
    if not own:
        past_names = Names(user=names.user, item=names.item, time=names.time, type=names.type)
        logs.append(read_log(events, "events", past_names, setting.time_unit))
        raw.moments, logs[1].moments = common_unit(raw.moments, logs[1].moments)
    users, items = _sides(names, setting, *logs)
    shown = number(raw, users, items, unlisted=setting.unlisted)
    words, types = logs[-1].words.get("type"), ()
    if own:
        types, shown = _own_types(shown, words, tuple(names.labels), setting.schema)
    shown = shown.in_order()
    if setting.repeats == "drop":
        shown = _once(shown, names)
    if own:
        chosen = np.flatnonzero(shown.columns["type"] >= 0)
        log = dataclasses.replace(shown, columns={"type": shown.columns["type"]}).take(chosen)
    else:
        chosen = np.zeros(0, np.intp)
        log = number(logs[1], users, items, unlisted=setting.unlisted)
        types, log = _typed(log, words, setting.schema)
        log = _without_repeats(log.in_order(), setting)
    part, training = setting.split.divide(_held(shown, log, raw.moments.unit))
    notes: dict[str, Any] = {}
    if names.request:
        request, whole = _requests(shown, raw.words["request"], part)
        if moved := int(np.count_nonzero(whole != part)):
            notes["moved"] = f"{moved:,} rows moved to the part in which their request ends"
        part = whole
    else:
        request = _by_moment(shown, part)
    if own:
        training = part[chosen] == TRAIN
    rows = Impressions(
        user=shown.user,
        item=shown.item,
        history_end=_ends(log, shown),
        labels={head: shown.columns[f"label {head}"] for head in names.labels},
        label_mask={head: shown.columns[f"mask {head}"] for head in names.labels},
        split=part,
        request=request,
        context={name: shown.columns[name] for name in names.context},
        pair={name: shown.columns[name] for name in names.pair},
        train_only={name: shown.columns[name] for name in names.train_only},
    )
    log.left_out = shown.left_out | ({} if own else {f"events {k}": n for k, n in log.left_out.items()})
    return _fields(names, setting, raw, users, items, log, types, training, rows, notes)


def from_requests(
    requests: Any, labels: Any, names: Names, setting: Setting, *, unlabelled: str
) -> dict[str, Any]:
    """Return the fields of a data set made of served requests, each of which is a user of its own.

    Args:
        requests: files of a request log.
        labels: table.
        names: of its columns; ``user`` is that of the request.
        setting: see `Setting`.
        unlabelled: see `Dataset.from_request_log`.
    """
    if unlabelled not in ("drop", "zero"):
        raise DataError(f"unlabelled: got {unlabelled!r}, expected 'drop' or 'zero'.")
    if setting.split.kind != "time":
        raise DataError(
            f"split: got {setting.split}, expected by_time(): every request is a user of its own."
        )
    logged = read_request_log(requests)
    table = open_table(labels, "labels", [names.user, names.item, *names.labels.values()])
    if not table.rows:
        raise DataError("labels: got a table without rows.")
    request_ids, label_item = (
        code_ids(table.arrow(name), table.named(name)) for name in (names.user, names.item)
    )
    past, shown = logged.flat("history.item", newest_last=True), logged.flat("candidates")
    ranked = logged.flat("ranked.id" if unlabelled == "zero" else "")
    past_item, ranked_item = past.ids("history.item"), ranked.ids("ranked.id")
    used = [label_item, past_item, ranked_item]
    items = read_side(setting.items, "items", names.item, used, unlisted=setting.unlisted)
    users = Side(SortedIds.of(logged.ids), logged.features("user"))

    def places(owner: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return a number for each request and item, int64; -1 where one is unknown."""
        return np.where((owner < 0) | (item < 0), -1, owner * np.int64(len(items.ids)) + item)

    label_key = places(users.ids.rows(request_ids), items.ids.rows(label_item))
    shown_key = places(shown.owner, items.ids.rows(shown.ids("candidates")))
    label_keys, inverse = np.unique(label_key, return_inverse=True)
    place = np.searchsorted(label_keys, shown_key)
    place = np.where(label_keys[np.minimum(place, len(label_keys) - 1)] == shown_key, place, len(label_keys))
    taken = place < len(label_keys)
    if unlabelled == "zero":
        taken |= np.isin(shown_key, places(ranked.owner, items.ids.rows(ranked_item)))
    rows = np.flatnonzero(taken & (shown_key >= 0))
    if not len(rows):
        raise DataError("labels: none is of a request and a candidate of it that the log holds.")
    flags, masks = {}, {}
    for head, column in names.labels.items():
        value, known = read_label(table, column)
        flags[head], masks[head] = np.zeros(len(label_keys) + 1, np.float32), np.zeros(len(label_keys) + 1)
        np.maximum.at(flags[head], inverse, value)
        np.maximum.at(masks[head], inverse, known)
        masks[head][-1] = 1.0  # of what was answered and has no label
    owner, time = shown.owner[rows], logged.time[shown.owner[rows]]
    part, _ = setting.split.divide(Held(owner, time, owner[:0], time[:0], "us"))

    type_words = logged.flat("history.type", newest_last=True).ids("history.type")
    if len(type_words.codes) != len(past.owner):
        raise DataError("request log: history.item and history.type differ in length; mask both, or neither.")
    log = Log(
        past.owner, items.ids.rows(past_item), logged.times(past), {"type": type_words.codes}, logged.left_out
    ).without(items.ids.rows(past_item) < 0, "of behaviours with items that the table lacks")
    types, log = _typed(log, type_words, setting.schema)
    types = types or (_DEFAULT_TYPE,)  # no request has a history
    in_training = np.zeros(len(logged), bool)
    in_training[owner[part == TRAIN]] = True
    ends = np.cumsum(np.bincount(log.user, minlength=len(logged)))
    context, pair, remarks = logged.features("context"), logged.pair(shown), []
    if setting.schema is not None:
        given: dict[Group, Any] = {"user": users.columns, "context": context, "pair": pair}
        for group, columns in given.items():
            for name in sorted(setting.schema.names(group) - columns.keys()):
                columns[name] = [None] * len(shown.owner if group == "pair" else logged.time)
                remarks.append(f"{group} feature {name!r} is in no request, or masked; it is missing in all")
    impressions = Impressions(
        user=owner,
        item=items.ids.rows(shown.ids("candidates"))[rows],
        history_end=ends[owner],
        labels={head: flag[place[rows]] for head, flag in flags.items()},
        label_mask={head: mask[place[rows]].astype(np.float32) for head, mask in masks.items()},
        split=part,
        request=owner.astype(np.int64),
        context=take_columns(context, owner),
        pair=take_columns(pair, rows),
    )
    strangers = int(np.count_nonzero(~np.isin(label_key, shown_key[rows])))
    log.left_out |= {"of labels whose request or candidate the log lacks": strangers} if strangers else {}
    raw = RawLog("request log", logged.ids, label_item, Moments(logged.time, None, "us", "served"), {}, {})
    span = " to ".join(as_text(int(bound), "us") for bound in (logged.time.min(), logged.time.max()))
    notes = {"time": f"served, {span}"}
    return _fields(
        names, setting, raw, users, items, log, types, in_training[log.user], impressions, notes, remarks
    )


def _sides(names: Names, setting: Setting, *logs: RawLog) -> tuple[Side, Side]:
    users = read_side(
        setting.users, "users", names.user, [log.user for log in logs], unlisted=setting.unlisted
    )
    items = read_side(
        setting.items, "items", names.item, [log.item for log in logs], unlisted=setting.unlisted
    )
    return users, items


def _typed(log: Log, words: CodedIds | None, schema: Schema | None) -> tuple[tuple[str, ...], Log]:
    """Return the behaviour types, and the log with their positions as the column ``type``, int32."""
    declared = None if schema is None else schema.behaviour_types
    if words is None:
        if declared is not None and len(declared) > 1:
            raise DataError(
                f"type: the schema has the behaviour types {declared}, but no column names the type of an "
                "event; give type=."
            )
        log.columns["type"] = np.zeros(len(log), np.int32)
        return declared or (_DEFAULT_TYPE,), log
    log = log.without(log.columns["type"] < 0, "without a type")
    return _positions(log, words, declared)


def _positions(log: Log, words: CodedIds, declared: tuple[str, ...] | None) -> tuple[tuple[str, ...], Log]:
    """Turn codes of types into positions; -1 stays."""
    values, codes = words.values.to_pylist(), log.columns["type"]
    if declared is None:
        counts = np.bincount(codes[codes >= 0], minlength=len(values))
        order = sorted(range(len(values)), key=lambda code: (-counts[code], str(values[code])))
        if len(order) > 100:
            raise DataError(
                f"type: got {len(order):,} different values, such as {values[:3]}; expected the few kinds of "
                "behaviour, such as click and buy."
            )
        declared = tuple(str(values[code]) for code in order)
    by_name = {name: place for place, name in enumerate(declared)}
    places = [
        by_name.get(str(value), value if isinstance(value, int) and value < len(declared) else -1)
        for value in values
    ]
    if strange := [value for value, place in zip(values, places, strict=True) if place < 0]:
        raise DataError(
            f"type: got {str(strange[0])[:50]!r}, expected one of the schema's behaviour types {declared}."
        )
    log.columns["type"] = np.array([*places, -1], np.int32)[codes]
    return declared, log


def _own_types(
    log: Log, words: CodedIds | None, heads: tuple[str, ...], schema: Schema | None
) -> tuple[tuple[str, ...], Log]:
    """Return behaviour types of impressions that become history; a row with -1 becomes none."""
    declared = None if schema is None else schema.behaviour_types
    if words is not None:
        return _positions(log, words, declared)
    if declared is not None and set(heads) - set(declared):
        raise DataError(
            f"type: the schema has the behaviour types {declared}, and impressions become events by their "
            f"labels {heads}; name these types too, or give type=, or events=."
        )
    declared = declared or heads
    log.columns["type"] = np.full(len(log), -1, np.int32)
    for head in reversed(heads):
        log.columns["type"][log.columns[f"label {head}"] > 0] = declared.index(head)
    return declared, log


def _heads(labels: Mapping[str, Any] | None, types: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the positions of the types of each head."""
    heads = {}
    for head, kinds in ({_DEFAULT_TYPE: "any"} if labels is None else labels).items():
        wanted = list(types) if isinstance(kinds, str) and kinds == "any" else kinds
        wanted = [wanted] if isinstance(wanted, (str, int)) else list(wanted)
        names = [str(kind) for kind in wanted]
        if wrong := [name for name in names if name not in types]:
            raise DataError(f"labels: head {head!r} names {wrong}, but the types of events are {types}.")
        heads[head] = [types.index(name) for name in names]
    if not heads:
        raise DataError("labels: got no head; leave labels out for one of all types.")
    return heads


def _runs(log: Log, keys: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Find rows that share user, item, time and keys with others.

    Returns:
        Rows in runs of equal ones, the first of the log first, int64 ``[m]``; and which begin a run. Rows
        whose moment is theirs alone are not among them.
    """
    same = (log.user[1:] == log.user[:-1]) & (log.time[1:] == log.time[:-1])
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False]) if len(log) else np.zeros(0, np.intp)
    moment = np.cumsum(np.r_[True, ~same])[tied] if len(tied) else tied
    columns = [log.item[tied], *(log.columns[key][tied] for key in keys)]
    order = np.lexsort((*columns, moment))
    columns = [moment[order], *(column[order] for column in columns)]
    first = np.logical_or.reduce([np.r_[True, column[1:] != column[:-1]][: len(order)] for column in columns])
    return tied[order], first


def _without_repeats(log: Log, setting: Setting) -> Log:
    """Return events with those left out that another one says already."""
    if setting.repeats == "keep":
        return log
    rows, first = _runs(log, ("type",))
    gone = np.zeros(len(log), bool)
    gone[rows[~first]] = True
    return log.without(gone, "repeated (same user, item, time and type)")


def _moments_of_items(log: Log, of_head: dict[str, np.ndarray]) -> np.ndarray:
    """Return the rows to score: one a user, item and time, whose flags are those of all types at once."""
    rows, first = _runs(log, ())
    starts, real = np.flatnonzero(first), np.ones(len(log), bool)
    real[rows[~first]] = False
    for flag in of_head.values():
        if len(starts):
            flag[rows[starts]] = np.logical_or.reduceat(flag[rows], starts)
    return np.flatnonzero(real & np.logical_or.reduce(list(of_head.values())))


def _once(log: Log, names: Names) -> Log:
    """Return impressions with repeated ones left out; the larger of their labels is kept."""
    rows, first = _runs(log, ("request",) if names.request else ())
    starts = np.flatnonzero(first)
    if len(starts) == len(rows):
        return log
    for head in names.labels:
        for column in (log.columns[f"label {head}"], log.columns[f"mask {head}"]):
            column[rows[starts]] = np.maximum.reduceat(column[rows], starts)
    gone = np.zeros(len(log), bool)
    gone[rows[~first]] = True
    return log.without(gone, "repeated (same user, item, time and request; the larger label is kept)")


def _held(rows: Log, events: Log, unit: str) -> Held:
    return Held(rows.user, rows.time, events.user, events.time, unit, rows.columns.get("split"))


def _by_moment(log: Log, part: np.ndarray) -> np.ndarray:
    """Return a number for each user, time and part, int64, ascending."""
    opens = np.zeros(len(log), bool)
    for column in (log.user, log.time, part):
        opens[1:] |= column[1:] != column[:-1]
    return np.cumsum(opens, dtype=np.int64)


def _requests(log: Log, words: CodedIds, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for each request of a user, int64, and the part in which the request ends.

    Whole numbers that belong to one user each stay as they are. Rows without a request are one by moment.
    """
    codes = log.columns["request"]
    plain = not words.strings and len(words.values) > 0
    named = np.asarray(words.values).astype(np.int64) if plain else SortedIds.of(words).rows(words)
    value = np.append(named, 0)[codes].astype(np.int64)
    order = np.lexsort((log.user, value))
    shared = np.any((np.diff(value[order]) == 0) & (np.diff(log.user[order]) != 0))
    if shared or not plain or (codes < 0).any():
        alone = np.where(codes < 0, _by_moment(log, part), -1)
        keys = (alone, value, log.user)
        order = np.lexsort(keys)
        opens = np.zeros(len(log), bool)
        for key in keys:
            opens[1:] |= np.diff(key[order]) != 0
        value = np.empty(len(log), np.int64)
        value[order] = np.cumsum(opens)
    order = np.argsort(value, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(value[order]) != 0])
    last = np.maximum.reduceat(part[order], starts)
    whole = np.empty_like(part)
    whole[order] = np.repeat(last, np.diff(np.r_[starts, len(order)]))
    return value, whole


def _ends(events: Log, rows: Log) -> np.ndarray:
    """Return, for each row, where its user's events strictly before it end, int64."""
    if events.user is rows.user:
        return ends_before(rows.user, rows.time)
    _, moment = np.unique(np.concatenate([events.time, rows.time]), return_inverse=True)
    size = int(moment.max(initial=0)) + 1
    keys = events.user.astype(np.int64) * size + moment[: len(events)]
    return np.searchsorted(keys, rows.user.astype(np.int64) * size + moment[len(events) :])


def _days(time: np.ndarray, unit: str, negatives: Negatives) -> np.ndarray:
    if unit == "step":
        if negatives.same_day:
            raise DataError("Negatives(same_day=True): the times are steps without dates.")
        return np.zeros(len(time), np.int64)
    return time // (_DAY * UNITS[unit]) if negatives.same_day else np.zeros(len(time), np.int64)


def _fields(
    names: Names,
    setting: Setting,
    raw: RawLog,
    users: Side,
    items: Side,
    log: Log,
    types: tuple[str, ...],
    training: np.ndarray,
    rows: Impressions,
    notes: dict[str, Any],
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Put the fields of the data set together, and refuse what cannot be trained or evaluated."""
    offsets = np.r_[0, np.cumsum(np.bincount(log.user, minlength=len(users.ids)))].astype(np.int64)
    events = Events(
        offsets=offsets,
        item=log.item,
        type=log.columns["type"],
        time=log.time,
        training=training,
        unit=raw.moments.unit,
    )
    _check_parts(rows, events, setting)
    _check_labels(rows, setting)
    content, width, past = None, setting.content_width, np.flatnonzero(training)
    if setting.content is not None:  # before a schema takes a column of embeddings for a feature
        trained = known_items(events, rows, len(items.ids))
        content, notes["content"] = given_content(
            setting.content, items.ids, items.columns, trained, setting.content_width
        )
    elif width is None and len(past) > CONTENT_EVENTS:
        notes["content"] = (
            f"none, because to derive it from over {CONTENT_EVENTS:,} events takes minutes; content_width=64 "
            "does it"
        )
    elif width != 0:
        content = collaborative_content(
            log.user[past],
            log.item[past],
            n_users=len(users.ids),
            n_items=len(items.ids),
            width=CONTENT_WIDTH if width is None else width,
        )
        if rows.sampled is not None:
            content = out_of_fold(
                content, log.user[past], log.item[past], n_users=len(users.ids), n_items=len(items.ids)
            )
    remarks = list(remarks)
    id_name = names.item if names.item.isidentifier() else "item"
    if setting.schema is None:
        columns = {
            "user": users.columns,
            "item": {id_name: items.ids.plain(), **items.columns},
            **{group: getattr(rows, group) for group in ("context", "pair", "train_only")},
        }
        schema = Schema.infer(
            columns,  # type: ignore[arg-type]
            behaviour_types=types,
            item_id=id_name,
            category=setting.category,
            min_item_count=_min_item_count(setting, log.item[training], rows),
            remarks=remarks,
        )
    else:
        schema, id_name = setting.schema, setting.schema.item_id or id_name
    people = {"ids": users.ids.plain(), **users.columns}
    catalogue = {"ids": items.ids.plain(), id_name: items.ids.plain(), **items.columns}
    _check_features(schema, (people, catalogue, rows.context, rows.pair, rows.train_only))
    return {
        "name": setting.name,
        "schema": schema,
        "users": people,
        "items": catalogue,
        "events": events,
        "impressions": rows,
        "content": content,
        "notes": {
            "time": _span(raw.moments, log),
            "unit": raw.moments.unit,
            "split": str(setting.split),
            **notes,
            "left_out": log.left_out,
            "idle": {"users": users.idle, "items": items.idle},
            "unlisted": {"users": users.unlisted, "items": items.unlisted},
            "future": _future(raw.moments),
            "schema": remarks,
        },
    }


def _min_item_count(setting: Setting, done: np.ndarray, rows: Impressions) -> int:
    """Return the least count of a known id; by default 1 where no item of training occurs often enough."""
    if setting.min_item_count is not None:
        return setting.min_item_count
    common = max(np.bincount(items).max(initial=0) for items in (done, rows.item[rows.real(TRAIN)]))
    return MIN_ITEM_COUNT if common >= MIN_ITEM_COUNT else 1


def _check_parts(rows: Impressions, events: Events, setting: Setting) -> None:
    """Refuse parts without rows that the rule asks for, and a test part without any known item."""
    split = setting.split
    wanted = {"train": 1, "validation": split.validation, "test": split.test}
    counts = {name: int(np.count_nonzero(rows.split == number)) for name, number in SPLITS.items()}
    if empty := [name for name, count in counts.items() if not count and wanted[name]]:
        raise DataError(
            f"{setting.name}: no row in the {' and the '.join(empty)} part: {split} puts all "
            f"{len(rows):,} rows elsewhere ({_counted(counts)}). Give smaller or other parts, or 0 for none."
        )
    known = np.zeros(int(max(rows.item.max(initial=0), events.item.max(initial=0))) + 1, bool)
    known[events.item[events.training]] = True
    known[rows.item[rows.split == TRAIN]] = True
    tested = rows.item[rows.real(TEST)]
    if len(tested) and not known[tested].any():
        raise DataError(
            f"{setting.name}: all items of the {len(tested):,} test rows are absent from the training part, "
            "so no model can know them. Check that ids are stable over time; or give later bounds, with less "
            "time between training and test."
        )


def _check_labels(rows: Impressions, setting: Setting) -> None:
    """Refuse a head whose known training labels are of one class."""
    trained = rows.split == TRAIN
    for head, label in rows.labels.items():
        known = label[trained & (rows.label_mask[head] > 0)]
        if len(known) and known.min() < known.max():
            continue
        found = (
            f"all {len(known):,} known training labels are {known[0]:g}"
            if len(known)
            else "no training label is known"
        )
        raise DataError(
            f"{setting.name}: label {head!r}: {found}, expected some 0 and some 1. {_mending(rows)}"
        )


def _mending(rows: Impressions) -> str:
    if rows.sampled is None:
        return (
            "If the table holds only what people did, without what they were shown, use Dataset.from_events, "
            "which samples negatives; otherwise leave this label out."
        )
    if not rows.sampled.any():
        return (
            "No negative was found, since the users met nearly all items: there is nothing to choose among."
        )
    return "Give labels= other types, or an earlier end of the training part."


def _check_features(schema: Schema, groups: tuple[Mapping[str, Any], ...]) -> None:
    """Refuse a schema whose features have no column, or text where it says numbers."""
    for group, columns in zip(GROUPS, groups, strict=True):
        for feature in schema.features(group):
            if feature.name not in columns:
                raise SchemaError(
                    f"{group}: the schema has a feature {feature.name!r}, but the columns are "
                    f"{str(sorted(columns))[:150]}; rename one of them, or leave the feature out."
                )
            if isinstance(feature, Numeric):
                column = columns[feature.name]
                feature.raw(column, len(column))


def _span(moments: Moments, log: Log) -> str:
    times = log.time if len(log) else moments.values
    first, last = (as_text(int(time), moments.unit) for time in (times.min(), times.max()))
    return f"{moments.origin}, {first} to {last}"


def _future(moments: Moments) -> int:
    """Return how many times lie over a day ahead of now."""
    if moments.unit == "step":
        return 0
    ahead = moments.values > int((clock.time() + _DAY) * UNITS[moments.unit])
    return int(np.count_nonzero(ahead if moments.missing is None else ahead & ~moments.missing))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
