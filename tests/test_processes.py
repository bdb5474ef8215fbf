"""Processes: forks, pickles and gevent, each refused with advice."""

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from aif_jax.bundle import Bundle
from aif_jax.errors import ProcessError
from aif_jax.nearline import Archive, Follower, IterableUpdates, Replica, Tables
from aif_jax.serving import Engine
from support.processes import shared_compilations

MADE = """
    import asyncio, os, sys
    import httpx
    from aif_jax.bundle import Bundle
    from aif_jax.errors import ProcessError
    from aif_jax.nearline import Archive, Delete, Follower, ItemIndex, IterableUpdates, Tables, build_tables
    from aif_jax.serving import Engine, EngineConfig, Shapes
    from aif_jax.types import ItemRecords, UserRecord

    path, folder = sys.argv[1:]
    config = EngineConfig(shapes=Shapes(candidates=(32,), histories=(24,)))
    users = {1: UserRecord({"country": "fr"}, items=[7], types=["click"])}

    def engine_of(bundle, tables):
        return Engine(bundle, tables, users=users.get, retrieve=lambda request: [7, 8, 9], config=config)
"""


def run(code: str, bundle: Bundle, folder: Path, *, timeout_s: float = 120) -> list[str]:
    """Run code after `MADE` in a fresh interpreter; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MADE) + textwrap.dedent(code), str(bundle.path), str(folder)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | shared_compilations(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_forked_child_every_entry_is_refused_and_parent_continues(bundle: Bundle, tmp_path: Path) -> None:
    lines = run(
        """
        bundle = Bundle.load(path)
        tables = build_tables(bundle, ItemRecords(ids=[7, 8, 9], columns={}))
        archive = Archive(folder)
        archive.start(tables.items)
        follower = Follower(IterableUpdates([Delete([9])]), [archive])
        engine = engine_of(bundle, tables)
        handle = engine.begin(1)
        other = engine.begin(1)

        async def health():
            from aif_jax.server import create_app
            transport = httpx.ASGITransport(app=create_app(engine))
            async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
                answers = [await client.get("/health"), await client.get("/stats")]
                answers.append(await client.post("/rank", json={"user": 1}))
            return [(answer.status_code, *answer.json().values()) for answer in answers]

        child = os.fork()
        if child == 0:
            uses = {
                "begin": lambda: engine.begin(1),
                "rank": lambda: engine.rank(1),
                "rank_async": lambda: asyncio.run(engine.rank_async(1)),
                "rank_many": lambda: engine.rank_many([1]),
                "publish": lambda: engine.publish(bundle, tables),
                "rollback": lambda: engine.rollback(),
                "shadow": lambda: engine.shadow(bundle, tables),
                "invalidate": lambda: engine.invalidate(1),
                "drop_previous": lambda: engine.drop_previous(),
                "stats": lambda: engine.stats(),
                "Pending.rank": lambda: handle.rank([7]),
                "Pending.rank_async": lambda: asyncio.run(handle.rank_async([7])),
                "Engine": lambda: engine_of(bundle, tables),
                "Bundle.load": lambda: Bundle.load(path),
                "Bundle.call": lambda: bundle.call("item", m=1),
                "build": lambda: ItemIndex.build(bundle, [1], {}),
                "build_tables": lambda: build_tables(bundle, ItemRecords(ids=[1], columns={})),
                "upsert": lambda: tables.items.upsert([1], {}),
                "add": lambda: tables.behaviours.add([1], {}),
                "delete": lambda: tables.items.delete([7]),
                "gather": lambda: tables.items.gather(tables.items.store.cache.keys()),
                "set_rankable": lambda: tables.items.set_rankable([7], False),
                "ids": lambda: tables.items.ids(),
                "save": lambda: tables.items.save(folder + "/x.aifrows"),
                "checkpoint": lambda: archive.checkpoint(),
                "batch": lambda: archive.batch("1").__enter__(),
                "follow": lambda: follower.run(),
                "start": lambda: follower.start(),
            }
            for name, use in uses.items():
                try:
                    use()
                except ProcessError as error:
                    print(name, str(error).rstrip(".").endswith("get_context('spawn')"), flush=True)
            print(engine.forked, tables.items.forked, repr(engine)[:7], flush=True)
            for answer in asyncio.run(health()):
                print(answer[0], answer[1], flush=True)
            follower.close(), archive.close(), engine.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(engine.forked, len(engine.rank(1)), len(handle.rank([7, 8])), len(other.rank([9])))
        tables.items.upsert([10], {})
        archive.checkpoint()
        follower.run()
        engine.close()
        archive.close()
        print(len(tables.items))
        """,
        bundle,
        tmp_path,
    )
    *refused, own, health, stats, rank, parent, rows = lines
    assert [line.split()[1] for line in refused] == ["True"] * 28, refused
    assert own == "True True Engine("
    assert (health, stats, rank) == ("503 forked", "503 ProcessError", "503 ProcessError")
    assert parent == "False 3 2 1"
    assert rows == "3"


HARMLESS = {
    "check_process", "forked", "close", "stop", "version", "closed", "bundle", "tables", "k_max", "signature",
    "explain", "config", "named", "spec", "table_spec", "program_key", "check_file", "overwritten",
    "ours", "kept_columns", "kept_sources",
}  # fmt: skip
"""Public members that a forked child may use: they read a constant, or do nothing there."""


def test_forked_child_every_public_member_is_refused_or_known_to_be_harmless(
    bundle: Bundle, tmp_path: Path
) -> None:
    lines = run(
        f"""
        import inspect
        from aif_jax.nearline import Replica
        from aif_jax.nearline.device_rows import DeviceRows
        from aif_jax.processes import OfOneProcess
        harmless = {HARMLESS!r}
        bundle = Bundle.load(path)
        tables = build_tables(bundle, ItemRecords(ids=[7, 8, 9], columns={{}}))
        archive = Archive(folder)
        archive.start(tables.items)
        engine = engine_of(bundle, tables)
        made = [
            bundle, *tables, archive, Replica(folder), Follower(IterableUpdates([]), [archive]), engine,
            DeviceRows(tables.items), engine.shadow(bundle, tables), engine.begin(1),
        ]
        values = {{"users": [1], "contexts": None, "filters": None}}

        def use(one, name):
            if isinstance(inspect.getattr_static(type(one), name), (classmethod, staticmethod)):
                return
            member = getattr(one, name)
            if not callable(member):
                return
            wanted = [p for p in inspect.signature(member).parameters.values()
                      if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            by_name = {{p.name: values.get(p.name) for p in wanted if p.kind is p.KEYWORD_ONLY}}
            result = member(*[values.get(p.name) for p in wanted if p.kind is not p.KEYWORD_ONLY], **by_name)
            if inspect.iscoroutine(result):
                asyncio.run(result)
            if hasattr(result, "__enter__") and not isinstance(result, type(one)):
                result.__enter__()

        child = os.fork()
        if child == 0:
            own = {{"__len__", "__contains__"}}
            internal = {{"begin", "expire", "retrieve_and_rank", "retrieve_and_rank_async"}}
            for one in made:
                kind = type(one).__name__
                names = {{n for n in dir(type(one)) if n[0] != "_" or n in own}} - harmless
                names -= internal if kind == "Pending" else set()
                for name in sorted(names):
                    static = inspect.getattr_static(type(one), name)
                    if not (callable(static) or isinstance(static, property)):
                        continue
                    try:
                        use(one, name)
                    except ProcessError:
                        print("refused", kind, name, flush=True)
                    except BaseException as error:
                        print("open", kind, name, type(error).__name__, error, flush=True)
                    else:
                        if not isinstance(static, (classmethod, staticmethod)):
                            print("open", kind, name, flush=True)
                repr(one)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for one in reversed(made):
            getattr(one, "close", getattr(one, "stop", lambda: None))()
        """,
        bundle,
        tmp_path,
    )
    assert [line for line in lines if not line.startswith("refused")] == []
    refused = {tuple(line.split()[1:]) for line in lines}
    assert len(refused) > 50
    assert {("ItemIndex", "__len__"), ("Archive", "position"), ("DeviceRows", "dispatch")} <= refused


def test_fork_before_anything_was_loaded_serves_in_child(bundle: Bundle, tmp_path: Path) -> None:
    lines = run(
        """
        child = os.fork()
        if child == 0:
            bundle = Bundle.load(path)
            tables = build_tables(bundle, ItemRecords(ids=[7, 8, 9], columns={}))
            with engine_of(bundle, tables) as engine:
                print(len(engine.rank(1)), engine.forked, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        bundle,
        tmp_path,
    )
    assert lines == ["3 False"]


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
@pytest.mark.parametrize(("how", "refused"), [("", True), ("thread=False", False)])
def test_engine_under_gevent_is_refused_unless_threads_are_real(
    bundle: Bundle, tmp_path: Path, how: str, refused: bool
) -> None:
    lines = run(
        f"""
        from gevent import monkey
        monkey.patch_all({how})
        bundle = Bundle.load(path)
        tables = build_tables(bundle, ItemRecords(ids=[7, 8, 9], columns={{}}))
        try:
            with engine_of(bundle, tables) as engine:
                print(len(engine.rank(1)))
        except ProcessError as error:
            print(error)
        """,
        bundle,
        tmp_path,
    )
    assert len(lines) == 1
    assert ("patch_all(thread=False)" in lines[0]) == refused
    assert lines[0].isdigit() != refused


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("Engine", "make one in each process: Engine(Bundle.load(path), tables, ...)"),
        ("Bundle", "Bundle.load(path)"),
        ("ItemIndex", "save(path), open(bundle, path)"),
        ("BehaviourTable", "save(path), open(bundle, path)"),
        ("Archive", "a Replica follows it"),
        ("Replica", "Replica(directory)"),
        ("Pending", "pass on its user and its candidates"),
        ("Follower", "in the process that keeps the archives"),
    ],
)
def test_pickle_and_copy_are_refused_with_advice(
    name: str, instead: str, way: Any, bundle: Bundle, tables: Tables, engine: Engine, tmp_path: Path
) -> None:
    with Archive(tmp_path) as archive:
        made = {
            "Engine": engine, "Bundle": bundle, "ItemIndex": tables.items, "Archive": archive,
            "BehaviourTable": tables.behaviours, "Replica": Replica(tmp_path),
            "Follower": Follower(IterableUpdates([]), [archive]), "Pending": engine.begin(5),
        }  # fmt: skip
        with pytest.raises(ProcessError) as refused:
            way(made[name])
    assert name in str(refused.value)
    assert instead in str(refused.value)


def test_pickle_tables_names_the_table(tables: Tables) -> None:
    with pytest.raises(ProcessError, match=r"ItemIndex.*save\(path\), open\(bundle, path\)"):
        pickle.dumps(tables)
