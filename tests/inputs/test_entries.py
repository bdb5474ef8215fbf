"""Every public entry that takes columns, given every form of a column: as plain arrays, or an error."""

import asyncio
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from aif_jax.bundle import Bundle
from aif_jax.data import Dataset, Events, Impressions
from aif_jax.errors import AifError
from aif_jax.features import Categorical, ContentSpace, EncodeReport, Hashing, MultiValued, Numeric, Schema
from aif_jax.inputs import item_keys
from aif_jax.integrations.redis import decode_update, decode_user, encode_update, encode_user
from aif_jax.integrations.towers import Towers
from aif_jax.models import build_model
from aif_jax.nearline import BehaviourTable, ItemIndex, Tables, Upsert, build_snapshot, build_tables
from aif_jax.serving import Engine, Filters
from aif_jax.types import Candidates, ItemRecords, UserRecord
from support.public_names import BY_MODULE, PACKAGE, PACKAGES, exported
from support.representations import FORMS, REFUSED, Unfit
from support.served import CONTEXT, ENGINE_CONFIG, ONE_SIZE, World

N = 6
PLAIN: dict[str, Any] = {
    "ids": np.uint64(2**40) + np.arange(N, dtype=np.uint64) * np.uint64(2**32 + 17),  # those of `World`
    "names": np.array([f"item {n}" for n in range(N)], object),
    "numbers": np.array([0.5, np.nan, 1.5, 2.0, 0.1, 3.0]),
    "integers": np.arange(N, dtype=np.int64),
    "words": ["ann", None, "new", "ann", "new", "ann"],
    "lists": [["drama"], ["noir", "comedy"], None, ["horror"], [], ["drama", "noir"]],
    "content": np.vstack([np.eye(5, 8, dtype=np.float32), np.full((1, 8), np.nan, np.float32)]),
    "flags": np.array([True, False, True, True, False, True]),
    "types": np.arange(3),
    "genres": np.array(["noir", "drama", "horror"], object),
}

LIKE = {"types": "integers", "genres": "names"}
"""Columns of a few values of a user or request, and the kind that they are like."""

Give = Callable[[str], Any]
"""Returns the column of a kind in the form that is tried."""


class Place(NamedTuple):
    """Bundle, engine and folder; ``given`` holds what the engine's user source and retrieval return."""

    bundle: Bundle
    engine: Engine
    given: dict[str, Any]
    folder: Path


class Entry(NamedTuple):
    """One way in.

    Attributes:
        covers: names of the public functions and methods that are called.
        call: returns the answer, given the columns.
        kinds: of the columns that it takes.
        takes: forms that are refused elsewhere and taken here.
    """

    covers: str
    call: Callable[[Place, Give], Any]
    kinds: str
    takes: frozenset[str] = frozenset()


ORDERLESS = frozenset({"set"})
USERS = frozenset({"negative", "mixed kinds", "400 digits"})
CATEGORIES = frozenset({
    "set", "generator", "None in it", "missing in a nullable series", "null in polars", "null in arrow",
    "lone surrogate",
})  # fmt: skip
"""A generator is read once; what the vocabulary lacks is counted, and a missing category is no category."""


def items(give: Give, ids: str = "ids") -> dict[str, Any]:
    return {
        "ids": give(ids),
        "columns": {"item": give("integers"), "genres": give("lists"), "price": give("numbers")},
        "content": give("content"),
    }


def rows_of(table: Any) -> Any:
    keys = np.sort(item_keys(table.ids()))
    columns, _ = table.gather(keys)
    return keys.tolist(), {name: column.tobytes() for name, column in columns.items()}


def changed(table_type: type[Any], method: str, **plain: Any) -> Callable[[Place, Give], Any]:
    """Return a call of a method that writes to an empty table."""

    def call(place: Place, give: Give) -> Any:
        table = table_type(place.bundle)
        extra = {"rankable": give("flags")} if table_type is ItemIndex else {}
        if method == "apply":
            table.apply(Upsert(**items(give), **extra))
        else:
            getattr(table, method)(**items(give), **extra)
        return rows_of(table)

    return call


def filled(place: Place, table_type: type[Any] = ItemIndex) -> Any:
    return table_type.build(place.bundle, PLAIN["ids"], {"item": PLAIN["integers"]})


def built(table_type: type[Any]) -> Callable[[Place, Give], Any]:
    def call(place: Place, give: Give) -> Any:
        extra = {"rankable": give("flags")} if table_type is ItemIndex else {}
        return rows_of(table_type.build(place.bundle, **items(give), **extra))

    return call


def built_by_name(place: Place, give: Give) -> Any:
    index = ItemIndex.build(place.bundle, **items(give, "names"))
    return sorted(index.ids().tolist()), rows_of(index)


@functools.cache
def towers_of(bundle: Bundle) -> Towers:
    return Towers(build_model(bundle.config.replace(architecture="two_tower"), bundle.schema))


def vectors(place: Place, give: Give) -> Any:
    towers = towers_of(place.bundle)
    found = towers.upsert(ItemRecords(**items(give)))
    return found.tobytes(), sorted(towers.snapshot()[0].tolist())


def both_tables(place: Place, give: Give) -> Any:
    tables = build_tables(place.bundle, ItemRecords(**items(give), rankable=give("flags")))
    return [rows_of(table) for table in tables]


def deleted(table_type: type[Any]) -> Callable[[Place, Give], Any]:
    def call(place: Place, give: Give) -> Any:
        table = filled(place, table_type)
        table.upsert([1], {})
        return table.delete(give("ids")), table.ids().tolist()

    return call


def made_rankable(place: Place, give: Give) -> Any:
    table = filled(place)
    return table.set_rankable(give("ids"), False), rows_of(table)


def of_rows(place: Place, give: Give) -> Any:
    rows, _ = filled(place).gather(PLAIN["ids"])
    return rows_of(ItemIndex.from_rows(place.bundle, give("ids"), rows))


def snapshot(place: Place, give: Give) -> Any:
    path = place.folder / "snapshot"
    batch = ItemRecords(**items(give), rankable=give("flags"))
    report = build_snapshot(ItemIndex, place.bundle, [batch], path, max_bad_share=0.0, resume=False)
    return report.rows, rows_of(ItemIndex.open(place.bundle, path))


def space_of(place: Place, give: Give) -> Any:
    space = ContentSpace.fit(give("ids"), give("content"), width=2)
    return space.digest, [array.tobytes() for array in space.apply(give("content"), N)]


def result(ranking: Any) -> Any:
    report = ranking.report
    return ranking.ids.tolist(), ranking.scores.tobytes(), dict(report.filtered), report.unknown_features


def known(place: Place, record: UserRecord) -> None:
    """Make this the record of every user, and forget the state of user 5."""
    place.given["record"] = record
    place.engine.invalidate(5)


def pair(give: Give) -> dict[str, Any]:
    return {"bid": give("numbers"), "channel": give("words")}


def of_user(place: Place, give: Give) -> Any:
    types = ["click", "like", "skip", "click", "like", "skip"]
    known(place, UserRecord({"country": "de", "activity": 1.0}, give("ids"), types))
    ranking = place.engine.begin(5).rank(PLAIN["ids"])
    return result(ranking), ranking.report.unknown_behaviours


def of_types(place: Place, give: Give) -> Any:
    known(place, UserRecord({}, PLAIN["ids"][:3], give("types")))
    return result(place.engine.begin(5).rank(PLAIN["ids"]))


def of_times(place: Place, give: Give) -> Any:
    known(place, UserRecord({}, PLAIN["ids"], [0, 1, 2, 0, 1, 2], times=give("numbers")))
    return result(place.engine.begin(5).rank(PLAIN["ids"]))


def retrieved(method: str) -> Callable[[Place, Give], Any]:
    def call(place: Place, give: Give) -> Any:
        known(place, UserRecord())
        place.given["candidates"] = Candidates(give("ids"), pair(give))
        answer = getattr(place.engine, method)(5)
        return result(asyncio.run(answer) if inspect.iscoroutine(answer) else answer)

    return call


def many(method: str) -> Callable[[Place, Give], Any]:
    def call(place: Place, give: Give) -> Any:
        place.given["record"], place.given["candidates"] = UserRecord(), PLAIN["ids"]
        answers = getattr(place.engine, method)(give("ids"), contexts=[CONTEXT] * N)
        answers = asyncio.run(answers) if inspect.iscoroutine(answers) else answers
        return [(answer.report.user, answer.ids.tolist()) for answer in answers]

    return call


def invalidated(place: Place, give: Give) -> Any:
    known(place, UserRecord())
    place.engine.rank_many(PLAIN["ids"])
    return place.engine.invalidate(give("ids"))


def ranked(place: Place, give: Give) -> Any:
    known(place, UserRecord())
    return result(place.engine.begin(5, CONTEXT).rank(give("ids"), pair(give)))


def ranked_table(place: Place, give: Give) -> Any:
    known(place, UserRecord())
    return result(asyncio.run(place.engine.begin(5).rank_async({"id": give("ids"), **pair(give)})))


def ranked_less(place: Place, give: Give) -> Any:
    known(place, UserRecord())
    return result(place.engine.begin(5).rank(PLAIN["ids"], filters=Filters(exclude=give("ids"))))


def ranked_categories(place: Place, give: Give) -> Any:
    known(place, UserRecord())
    filters = Filters(categories=give("genres"))
    return result(place.engine.begin(5).rank(PLAIN["ids"], filters=filters))


CODED, LISTS = Categorical(name="x"), MultiValued(name="x", max_values=2)
HASHED = Categorical(name="name", encoder=Hashing(buckets=50))


def schema_of(place: Place, give: Give) -> Any:
    columns = {"item": give("integers"), "genres": give("lists"), "price": give("numbers")}
    fitted = Schema(
        item=(Categorical(name="item"), MultiValued(name="genres", max_values=3), Numeric(name="price")),
        behaviour_types=("click",),
    ).fit(item=columns)
    report = EncodeReport()
    encoded = fitted.encode("item", columns, N, report=report)
    return fitted.to_json(), {name: a.tobytes() for name, a in encoded.items()}, report.as_dict()


def feature(made: Any, kind: str) -> Callable[[Place, Give], Any]:
    def call(place: Place, give: Give) -> Any:
        fitted, report = made.fit(give(kind)), EncodeReport()
        return fitted.to_json(), fitted.encode(give(kind), N, report).tobytes(), report.as_dict()

    return call


def dataset_of(place: Place, give: Give) -> Any:
    schema = Schema(
        user=(Categorical(name="town"),),
        item=(Categorical(name="item"), MultiValued(name="genres", max_values=2)),
        behaviour_types=("click",), context=(Numeric(name="hour"),),
    )  # fmt: skip
    made = Dataset(
        "made", schema, {"ids": give("ids"), "town": give("words")},
        {"ids": give("ids"), "item": give("integers"), "genres": give("lists")},
        Events(np.arange(N + 1), *(np.zeros(N, kind) for kind in (np.int32, np.int32, np.int64, bool))),
        Impressions(
            np.arange(N, dtype=np.int32), np.arange(N, dtype=np.int32), np.arange(N),
            {"ctr": np.ones(N, np.float32)}, {"ctr": np.ones(N, np.float32)}, np.zeros(N, np.int8),
            np.arange(N), context={"hour": give("numbers")},
        ),
    )  # fmt: skip
    fitted = made.fit_schema()
    encoded = [made.encode(fitted, group, np.array([4, 1])) for group in ("user", "item", "context")]
    record = made.user_record(1)
    return str(encoded), fitted.to_json(), made.item_keys().tolist(), record.features, record.items.tolist()


def through_redis(place: Place, give: Give) -> Any:
    update = decode_update({"update": encode_update(Upsert(**items(give), rankable=give("flags")), "x")}, "x")
    index = ItemIndex(place.bundle)
    index.apply(update)  # type: ignore[arg-type]
    return rows_of(index)


def user_through_redis(place: Place, give: Give) -> Any:
    record = UserRecord({"genres": give("ids")}, give("ids"), PLAIN["integers"])
    read = decode_user(encode_user(record, "user"), "user")
    return read.features, item_keys(read.items).tolist(), read.types


MADE = "ids integers lists numbers content"
ALL = f"{MADE} flags"
ENTRIES: dict[str, Entry] = {
    "ItemIndex.build": Entry("ItemIndex.build RowTable.build ItemIndex.extra_of", built(ItemIndex), ALL),
    "ItemIndex.build by name": Entry("ItemIndex.build", built_by_name, "names"),
    "ItemIndex.upsert": Entry("ItemIndex.upsert RowTable.upsert", changed(ItemIndex, "upsert"), ALL),
    "ItemIndex.add": Entry("ItemIndex.add RowTable.add", changed(ItemIndex, "add"), ALL),
    "ItemIndex.apply": Entry("ItemIndex.apply Upsert", changed(ItemIndex, "apply"), ALL),
    "ItemIndex.delete": Entry(
        "ItemIndex.delete RowTable.delete Delete", deleted(ItemIndex), "ids", ORDERLESS
    ),
    "ItemIndex.set_rankable": Entry("ItemIndex.set_rankable", made_rankable, "ids", ORDERLESS),
    "from_rows": Entry("ItemIndex.from_rows BehaviourTable.from_rows RowTable.from_rows", of_rows, "ids"),
    "BehaviourTable.build": Entry("BehaviourTable.build", built(BehaviourTable), MADE),
    "BehaviourTable.upsert": Entry("BehaviourTable.upsert", changed(BehaviourTable, "upsert"), MADE),
    "BehaviourTable.add": Entry("BehaviourTable.add", changed(BehaviourTable, "add"), MADE),
    "BehaviourTable.apply": Entry(
        "BehaviourTable.apply RowTable.apply", changed(BehaviourTable, "apply"), MADE
    ),
    "BehaviourTable.delete": Entry("BehaviourTable.delete", deleted(BehaviourTable), "ids", ORDERLESS),
    "Towers.upsert": Entry(
        "Towers Towers.upsert Towers.item_vectors Run.towers TwoTowerRetriever.upsert", vectors, MADE
    ),
    "ContentSpace": Entry("ContentSpace ContentSpace.fit", space_of, "ids content", frozenset({"narrow"})),
    "build_snapshot": Entry("build_snapshot ItemRecords", snapshot, ALL),
    "build_tables": Entry("build_tables", both_tables, ALL),
    "Pending.rank": Entry("Pending.rank GoldenRequest", ranked, "ids numbers words"),
    "Pending.rank_async": Entry("Pending.rank_async", ranked_table, "ids numbers words"),
    "Engine.rank": Entry("Engine.rank Candidates", retrieved("rank"), "ids numbers words"),
    "Engine.rank_async": Entry("Engine.rank_async", retrieved("rank_async"), "ids numbers words"),
    "Engine.rank_many": Entry("Engine.rank_many", many("rank_many"), "ids", USERS),
    "Engine.rank_many_async": Entry("Engine.rank_many_async", many("rank_many_async"), "ids", USERS),
    "Engine.invalidate": Entry("Engine.invalidate", invalidated, "ids", USERS | {"set", "one value"}),
    "Filters.exclude": Entry("Filters", ranked_less, "ids", ORDERLESS),
    "Filters.categories": Entry("Filters", ranked_categories, "genres", CATEGORIES),
    "UserRecord.items": Entry("UserRecord Engine InMemoryUsers.put", of_user, "ids"),
    "UserRecord.types": Entry("UserRecord", of_types, "types"),
    "UserRecord.times": Entry("UserRecord", of_times, "numbers"),
    "Schema": Entry("Schema.fit Schema.encode Schema.encode_one", schema_of, "integers lists numbers"),
    "Categorical of integers": Entry(
        "Categorical.fit Categorical.encode", feature(CODED, "integers"), "integers"
    ),
    "Categorical of words": Entry("Vocabulary.encode Vocabulary.fit", feature(CODED, "words"), "words"),
    "Categorical, hashed": Entry("Hashing.encode Hashing.fit", feature(HASHED, "words"), "words"),
    "MultiValued": Entry("MultiValued.fit MultiValued.encode", feature(LISTS, "lists"), "lists"),
    "Numeric": Entry(
        "Numeric.fit Numeric.encode Numeric.raw", feature(Numeric(name="x"), "numbers"), "numbers"
    ),
    "Dataset": Entry("Dataset Impressions", dataset_of, "ids words integers lists numbers"),
    "encode_update": Entry("encode_update write_update decode_update", through_redis, ALL),
    "encode_user": Entry("encode_user write_user decode_user", user_through_redis, "ids"),
    "item_keys": Entry("item_keys read_ids", lambda p, g: item_keys(g("ids")).tobytes(), "ids"),
    "item_keys of names": Entry("item_keys", lambda p, g: item_keys(g("names")).tobytes(), "names"),
}

ELSEWHERE = {
    "TwoTowerRetriever": "integrations/test_usearch.py",
    "TwoTowerRetriever.build": "integrations/test_usearch.py",
    "TwoTowerRetriever.delete": "integrations/test_usearch.py",
    "catalogue_batches": "integrations/test_parquet.py", "records": "integrations/test_parquet.py",
    "build_with_ray": "integrations/test_ray.py", "check_golden": "integrations/test_check_golden.py",
    "Dataset.from_request_log": "observe/test_training_from_log.py",
    "Dataset.from_events": "data/test_log_tables.py", "Dataset.from_impressions": "data/test_log_tables.py",
    "Schema.infer": "data/test_log_tables.py", "Dataset.with_content_like": "data/test_content.py",
}  # fmt: skip
"""Entries that are tried in a file of their own."""

NO_COLUMNS = {
    "EmbeddingCache.upsert": "arrays of the layout alone", "RowLayout": "a specification",
    "Tables": "tables", "Coverage": "a result", "BadItem": "a result", "BuiltRows": "a result",
    "Ranking": "a result", "Report": "a result", "Run": "a result", "Served": "made by the engine",
    "RankBody": "JSON, which `Pending.rank` reads",
    "Shapes": "sizes", "Schema": "features", "Schema.from_json": "JSON", "Request": "made by the engine",
    "Split": "a name", "by_column": "a name",
    "EncodeReport.ignore": "names", "Pending": "made by the engine", "InMemoryUsers": "records",
    "Events": "row numbers", "Dataset.history": "row numbers", "Dataset.history_gaps": "row numbers",
    "collaborative_content": "row numbers", "fit_width": "Content", "RedisUsers": "a client",
    "Delivery": "an update", "Report.count": "a tuple's", "Vocabulary": "a tuple",
    "EngineConfig.check_items": "a source", "BehaviourTable.extra_of": "what was read",
    "RowTable.extra_of": "what was read", "ItemIndex.check": "an update", "BehaviourTable.check": "an update",
    "RowTable.check": "an update", "Towers.read": "what `Towers.upsert` takes",
    "Towers.user_vector": "a record, as of the engine", "Towers.user_vectors": "records",
    "TwoTowerRetriever.search": "a record", "TwoTowerRetriever.user_vector": "a record",
    "TwoTowerRetriever.load": "a source", "BatchedUsers.fetch_all": "ids that the engine gave",
    "StageChoice": "a result", "model_within": "a number",
}  # fmt: skip
"""Public names with a parameter of such a name that is no column, and what it is."""

PARAMETERS = frozenset({
    "ids", "columns", "content", "rankable", "items", "types", "times", "candidates", "pair", "exclude",
    "categories", "users", "catalogue", "column", "records", "update", "record",
})  # fmt: skip
"""Names of parameters that take columns, or things that hold columns."""

ENCODED = ("aif_jax.models", "aif_jax.kernels", "aif_jax.training", "aif_jax.evaluation", "aif_jax.inputs")
"""Packages that take encoded arrays or a `Dataset`; `aif_jax.inputs` is what is tested."""


def public_entries() -> Iterator[tuple[str, set[str]]]:
    """Yield public functions and methods with their parameters that take columns."""
    modules = {package: exported(package) for package in PACKAGES if not package.startswith(ENCODED)}
    for path in (PACKAGE / "integrations").glob("[a-z]*.py"):
        name = f"{BY_MODULE[0]}.{path.stem}"
        try:
            found = vars(importlib.import_module(name))
        except ImportError:  # of an extra that is not installed
            continue
        modules[name] = {n for n, o in found.items() if n[0] != "_" and getattr(o, "__module__", "") == name}
    for module, names in modules.items():
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            called = {name: thing}
            if inspect.isclass(thing):
                called |= {f"{name}.{n}": m for n, m in inspect.getmembers(thing, callable) if n[0] != "_"}
            for label, function in called.items():
                try:
                    parameters = set(inspect.signature(function).parameters)
                except (ValueError, TypeError):
                    continue
                if parameters & PARAMETERS:
                    yield label, parameters & PARAMETERS


def test_public_entries_with_columns_are_all_in_the_matrix() -> None:
    covered = {name for entry in ENTRIES.values() for name in entry.covers.split()}
    found = dict(public_entries())
    assert len(found) > 40
    left = {
        name: taken
        for name, taken in found.items()
        if name not in covered | ELSEWHERE.keys() | NO_COLUMNS.keys()
    }
    assert not left, f"give each a row in ENTRIES: {left}"
    tests = Path(__file__).resolve().parent.parent
    assert all((tests / file).is_file() for file in ELSEWHERE.values())


@pytest.fixture(scope="module")
def place(bundle: Bundle, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    columns = {"item": world.columns["item"][:N], "genres": world.columns["genres"][:N]}
    assert world.ids[:N].tolist() == PLAIN["ids"].tolist()
    tables = Tables(
        ItemIndex.build(bundle, PLAIN["ids"], columns), BehaviourTable.build(bundle, PLAIN["ids"], columns)
    )
    given: dict[str, Any] = {"record": None, "candidates": PLAIN["ids"]}
    config = dataclasses.replace(ENGINE_CONFIG, shapes=ONE_SIZE)
    with Engine(
        bundle, tables, users=lambda user: given["record"], retrieve=lambda request: given["candidates"],
        config=config,
    ) as engine:  # fmt: skip
        yield Place(bundle, engine, given, tmp_path_factory.mktemp("inputs"))


def plain(kind: str) -> Any:
    return PLAIN[kind]


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_any_form_of_its_columns_gives_the_answer_of_plain_arrays(place: Place, name: str) -> None:
    entry = ENTRIES[name]
    expected = entry.call(place, plain)
    wrong = []
    for form, make in FORMS.items():
        for kind in entry.kinds.split():
            try:
                column = make(LIKE.get(kind, kind), PLAIN[kind])
            except Unfit:
                continue
            try:
                answer = entry.call(place, lambda asked: column if asked == kind else PLAIN[asked])  # noqa: B023
            except Exception as error:
                answer = error
            if isinstance(answer, Exception) or answer != expected:
                wrong.append(f"{kind} as {form}: {answer!r}"[:300])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_what_is_no_such_column_is_refused_with_an_error_of_ours(place: Place, name: str) -> None:
    entry = ENTRIES[name]
    wrong = []
    for form, make in REFUSED.items():
        if form in entry.takes:
            continue
        for kind in entry.kinds.split():
            try:
                column = make(LIKE.get(kind, kind), PLAIN[kind])
            except Unfit:
                continue
            try:
                answer = entry.call(place, lambda asked: column if asked == kind else PLAIN[asked])  # noqa: B023
            except AifError as error:
                if len(str(error)) > 900:
                    wrong.append(f"{kind} as {form}: {len(str(error))} characters")
            except Exception as error:
                wrong.append(f"{kind} as {form}: {error!r}"[:300])
            else:
                wrong.append(f"{kind} as {form}: taken, {answer!r}"[:300])
    assert not wrong, "\n".join(wrong)
