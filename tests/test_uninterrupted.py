"""Traces survive what interrupts their caller, and no entry traces in the thread of its caller."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from aif_jax import uninterrupted as module
from aif_jax.bundle import Bundle, export, export_bundle, programs
from aif_jax.data import load
from aif_jax.features import ContentSpace
from aif_jax.serving import Engine, EngineConfig, InMemoryUsers, ItemRows
from aif_jax.training import TrainConfig, train
from aif_jax.uninterrupted import uninterrupted
from support.contract_models import HEADS, LONG, SHORT, mean_pool
from support.processes import shared_compilations
from support.served import K_MAX, ONE_SIZE, SCHEMA, TINY, World, make_model, tables_of


class Interruption(BaseException):
    pass


def interrupt(*_: object) -> None:
    raise Interruption


class Patient:
    """A function that has its caller interrupted, and then takes as long as the test likes."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.reached: list[str] = []

    def __call__(self) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        for _ in range(10_000):  # where this is the main thread, the interruption comes here
            pass
        self.reached.append("waits")
        assert self.go_on.wait(30)
        self.reached.append("goes on")
        uninterrupted(lambda: self.reached.append("a part of it that nobody wants"))


@pytest.fixture
def patient() -> Iterator[Patient]:
    before = signal.signal(signal.SIGUSR1, interrupt)  # not Ctrl-C's, which workers of the tests may ignore
    made = Patient()
    yield made
    made.go_on.set()
    signal.signal(signal.SIGUSR1, before)


def test_uninterrupted_of_interrupted_caller_ends_at_its_next_part_and_holds_up_the_next(
    patient: Patient,
) -> None:
    with pytest.raises(Interruption):
        uninterrupted(patient)
    threading.Timer(0.05, patient.go_on.set).start()
    assert uninterrupted(lambda: list(patient.reached)) == ["waits", "goes on"]
    assert not module._given_up


def test_uninterrupted_that_raises_raises_the_same_error_with_its_lines() -> None:
    def fails() -> None:
        raise LookupError("of the function")

    with pytest.raises(LookupError, match="of the function") as raised:
        uninterrupted(fails)
    assert raised.traceback[-1].name == "fails"
    assert uninterrupted(lambda: uninterrupted(threading.current_thread)).name == "aif-compile"


def test_uninterrupted_has_the_settings_of_its_caller_alone() -> None:
    before = {name: jax.config.values[name] for name in module._CONTEXTS}
    device = jax.devices()[0]
    with (
        jax.debug_infs(True), jax.debug_nans(True), jax.default_device(device), jax.enable_x64(True),
        jax.default_matmul_precision("highest"), jax.default_prng_impl("rbg"),
        jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("warn"),
    ):  # fmt: skip
        mine = {name: jax.config.values[name] for name in module._CONTEXTS}
        assert all(mine[name] != before[name] for name in before)
        assert uninterrupted(lambda: {name: jax.config.values[name] for name in mine}) == mine
    assert uninterrupted(lambda: {name: jax.config.values[name] for name in before}) == before


@pytest.fixture(scope="module")
def threads() -> set[str]:
    """Names of the threads in which JAX traces, lowers or compiles."""
    found = set[str]()

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            found.add(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(note)  # there is no public way to take it away
    return found


@pytest.mark.parametrize(
    "entry",
    [
        "export_bundle",
        "host",
        pytest.param("export", marks=pytest.mark.thorough),
        pytest.param("device", marks=pytest.mark.thorough),
    ],
)
def test_entry_that_compiles_traces_in_a_thread_of_its_own(
    entry: str,
    threads: set[str],
    tiny_bundle: Bundle,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users, model = InMemoryUsers({1: world.record(1)}), make_model(3, TINY)
    where, prefer = ("device", "portable") if entry == "device" else ("host", "native")
    monkeypatch.setattr(programs, "_EXECUTABLES", programs._Executables())
    jax.clear_caches()
    threads.clear()
    if entry == "export":
        export(
            mean_pool(), SCHEMA, tmp_path / "bundle", k_max=K_MAX, heads=HEADS, short_length=SHORT,
            long_length=LONG, content_space=ContentSpace.declared(8),
        )  # fmt: skip
    elif entry == "export_bundle":
        export_bundle(model, tmp_path / "bundle", k_max=K_MAX)
    else:
        config = EngineConfig(shapes=ONE_SIZE, item_rows=ItemRows(where=where))
        with Engine(
            *tables_of(Bundle.load(tiny_bundle.path, prefer=prefer), world), users=users, config=config
        ) as engine:
            engine.publish(*tables_of(Bundle.load(tiny_bundle.path, prefer="portable"), world))
            engine.begin(1).rank(world.ids[:20])
    assert threads == {"aif-compile"}, threads


def test_train_and_evaluate_compile_steps_in_a_thread_of_their_own() -> None:
    found: dict[str, set[str]] = {}

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            found.setdefault(str(kwargs.get("fun_name")), set()).add(threading.current_thread().name)

    data = load("synthetic:small", content_width=8)
    config = TINY.replace(heads=("ctr",), score="ctr", blocks=("profile_item",))
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(note)  # there is no public way to take it away
    train(config, data, TrainConfig(max_steps=1), progress=False)
    assert found["jit(_step)"] == found["jit(_forward)"] == {"aif-compile"}


@pytest.mark.thorough
def test_process_interrupted_anywhere_in_export_and_load_does_both_afterwards(tmp_path: Path) -> None:
    code = f"""
import random, signal, sys, time
from aif_jax.bundle import export_bundle
from support.served import K_MAX, TINY, make_model
model, path, rng = make_model(1, TINY), {str(tmp_path / "bundle")!r}, random.Random(1)
began = time.monotonic()
export_bundle(model, path, k_max=K_MAX)
took, done = time.monotonic() - began, 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(6):
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, took))
        export_bundle(model, path, k_max=K_MAX, overwrite=True)
    except KeyboardInterrupt:
        done += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
export_bundle(model, path, k_max=K_MAX, overwrite=True)
print(done)
"""
    path = os.pathsep.join(["tests", *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **shared_compilations(), "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
