import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from aif_jax.bundle import Bundle, compilations, export_bundle
from aif_jax.bundle.files import CONFIG as CONFIG_FILE
from aif_jax.bundle.files import (
    GOLDEN,
    MANIFEST,
    STAGES,
    WEIGHTS,
    read_manifest,
    read_verified,
    write_bundle_files,
)
from aif_jax.bundle.golden import CachedRows
from aif_jax.bundle.programs import executables
from aif_jax.errors import BundleError, ConfigError
from aif_jax.models.store import load_model, save_model, set_weights, weights_of
from support.processes import shared_compilations
from support.served import CONFIG, K_MAX, SCHEMA, make_model


def rewritten(bundle: Bundle, path: Path, changes: dict[str, bytes | None], **header: object) -> Path:
    """Write a bundle with some files changed (None: left out) and a manifest that vouches for them."""
    manifest = read_manifest(bundle.path)
    contents = {name: read_verified(bundle.path, manifest, name) for name in manifest["files"]}
    contents = {name: changes.get(name, content) for name, content in contents.items()}
    given = {"jax": manifest["jax"], "kernel_abi": manifest["kernel_abi"], **header}
    kept = {name: content for name, content in contents.items() if content is not None}
    write_bundle_files(path, kept, given, read_manifest, overwrite=False)
    return path


def test_bundle_holds_exported_values(bundle: Bundle) -> None:
    assert bundle.config == CONFIG
    assert bundle.schema == SCHEMA
    assert bundle.k_max == K_MAX
    assert dict(bundle.metrics) == {"auc": 0.5}
    assert dict(bundle.notes) == {"data": "made up"}
    assert bundle.version == read_manifest(bundle.path)["version"]
    assert list(bundle.weights) == sorted(bundle.weights)
    assert bundle.version[:12] in repr(bundle)


def test_load_takes_native_programs_and_explains(bundle: Bundle) -> None:
    assert bundle.kind == "native"
    assert "native: taken, agrees with the golden vectors" in bundle.explain()
    portable = Bundle.load(bundle.path, prefer="portable")
    assert portable.kind == "portable"
    assert "portable: taken" in portable.explain()
    with pytest.raises(ConfigError, match="'fast'"):
        Bundle.load(bundle.path, prefer="fast")  # type: ignore[arg-type]


def test_load_broken_file_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    names = [*read_manifest(bundle.path)["files"], MANIFEST]
    assert len(names) == 2 * len(STAGES) + 4
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(bundle.path, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 0x01
        (copy / name).write_bytes(content)
        with pytest.raises(BundleError, match=name):
            Bundle.load(copy)
        (copy / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BundleError, match=name):
            Bundle.load(copy)
        (copy / name).unlink()
        with pytest.raises(BundleError, match=name):
            Bundle.load(copy)


def test_load_native_programs_of_other_abi_takes_portable(tiny_bundle: Bundle, tmp_path: Path) -> None:
    loaded = Bundle.load(rewritten(tiny_bundle, tmp_path / "b", {}, kernel_abi=99))
    assert loaded.kind == "portable"
    assert "native: not taken, made for kernel ABI 99" in loaded.explain()
    with pytest.raises(BundleError, match="kernel ABI 99"):
        Bundle.load(loaded.path, prefer="native")


@pytest.mark.parametrize("stage", STAGES)
def test_load_unreadable_native_program_takes_portable(
    tiny_bundle: Bundle, tmp_path: Path, stage: str
) -> None:
    loaded = Bundle.load(
        rewritten(tiny_bundle, tmp_path / "b", {f"programs/{stage}.native": b"not a program"})
    )
    assert loaded.kind == "portable"
    assert f"program {stage} cannot run" in loaded.explain()


@pytest.mark.parametrize("stage", STAGES)
def test_load_programs_that_differ_from_golden_vectors_are_refused(
    tiny_bundle: Bundle, tmp_path: Path, stage: str
) -> None:
    vectors = load((tiny_bundle.path / GOLDEN).read_bytes())
    name = next(n for n, a in vectors.items() if n.startswith(f"{stage}/out/") and a.dtype == np.float32)
    vectors[name] = vectors[name] + np.float32(0.01)
    with pytest.raises(
        BundleError, match=rf"program {stage} does not give its golden vectors.*Bundle.refresh"
    ):
        Bundle.load(rewritten(tiny_bundle, tmp_path / "b", {GOLDEN: save(vectors)}))


def test_load_other_weights_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    weights = load((tiny_bundle.path / WEIGHTS).read_bytes())
    weights["heads.out.kernel"] = weights["heads.out.kernel"] * np.float32(1.5)
    with pytest.raises(BundleError, match="golden vectors"):
        Bundle.load(rewritten(tiny_bundle, tmp_path / "b", {WEIGHTS: save(weights)}))


def test_load_missing_part_is_refused_by_name(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"lists no {GOLDEN}"):
        Bundle.load(rewritten(tiny_bundle, tmp_path / "a", {GOLDEN: None}))
    description = json.loads((tiny_bundle.path / CONFIG_FILE).read_bytes())
    for stage in STAGES:
        del description["programs"][stage]["native"]
    portable = Bundle.load(
        rewritten(tiny_bundle, tmp_path / "b", {CONFIG_FILE: json.dumps(description).encode()})
    )
    assert "exported without such programs" in portable.explain()
    program = "programs/item.native"
    portable = Bundle.load(rewritten(tiny_bundle, tmp_path / "c", {program: None}))
    assert f"native: not taken, the manifest lists no {program}" in portable.explain()
    vectors = load((tiny_bundle.path / GOLDEN).read_bytes())
    vectors["item/in/item/content"] = vectors["item/in/item/content"][0]
    with pytest.raises(BundleError, match="program item cannot run"):
        Bundle.load(rewritten(tiny_bundle, tmp_path / "d", {GOLDEN: save(vectors)}))


def test_programs_of_any_size_native_equals_portable(bundle: Bundle) -> None:
    portable = Bundle.load(bundle.path, prefer="portable")
    rng = np.random.default_rng(0)
    vectors = load((bundle.path / GOLDEN).read_bytes())
    given = {n.removeprefix("stage/in/"): a for n, a in vectors.items() if n.startswith("stage/in/")}
    for n in (32, 80):
        chosen = rng.integers(0, 32, n)
        wider = {
            path: array[chosen] if path.startswith(("rows/", "pair/")) or path == "valid" else array
            for path, array in given.items()
        }
        cached = CachedRows(wider)
        mine = bundle.call("stage", n=n, l=24)(cached.inputs)
        np.testing.assert_array_equal(mine["status"], cached.status)
        theirs = portable.call("stage", n=n, l=24)(wider)
        assert mine["score"].shape == (K_MAX,)
        np.testing.assert_allclose(mine["score"], theirs["score"], rtol=1e-5, atol=1e-6)


def test_call_compiled_program_leaves_memory_with_its_last_bundle(bundle: Bundle) -> None:
    gc.collect()
    mine, other = Bundle.load(bundle.path), Bundle.load(bundle.path)
    before, compiled = executables(), compilations()
    sizes = {"n": 16 * 77, "l": 23}  # of no other test
    for each in (mine, other):
        each.call("stage", **sizes)
    assert (executables() - before, compilations() - compiled) == (1, 1)
    del mine, each
    gc.collect()
    assert executables() - before == 1
    assert other.call("stage", **sizes).program is other.program("stage")
    assert compilations() - compiled == 1
    del other
    gc.collect()
    assert executables() == before


def test_load_second_bundle_of_architecture_compiles_nothing(bundle: Bundle, other_bundle: Bundle) -> None:
    assert other_bundle.version != bundle.version
    before = compilations()
    again = Bundle.load(other_bundle.path)
    assert compilations() == before
    assert again.signature("stage") == bundle.signature("stage")
    assert (
        read_manifest(bundle.path)["files"]["programs/stage.native"]
        == (read_manifest(other_bundle.path)["files"]["programs/stage.native"])
    )


def test_refresh_rebuilds_programs(tiny_bundle: Bundle, tmp_path: Path) -> None:
    broken = {
        f"programs/{stage}.{kind}": b"from long ago" for stage in STAGES for kind in ("native", "portable")
    }
    path = rewritten(tiny_bundle, tmp_path / "b", dict(broken), jax="0.0.1")
    with pytest.raises(BundleError, match=r"Bundle\.refresh"):
        Bundle.load(path)
    refreshed = Bundle.refresh(path)
    assert refreshed.kind == "native"
    assert refreshed.path == path
    assert refreshed.metrics == tiny_bundle.metrics
    assert refreshed.version == tiny_bundle.version  # the same contents again


def test_refresh_that_is_not_proven_keeps_bundle(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rewritten(tiny_bundle, tmp_path / "b", {}, jax="0.0.1")
    version = read_manifest(path)["version"]
    with monkeypatch.context() as patch:
        patch.setattr("aif_jax.bundle.golden.difference", lambda *_: "other numbers")
        with pytest.raises(BundleError, match=r"b: is not written.*does not load.*other numbers"):
            Bundle.refresh(path)
    assert Bundle.load(path).version == version
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_export_bundle_weights_that_are_not_finite_are_named_and_keep_bundle(
    bundle: Bundle, tmp_path: Path, value: float
) -> None:
    path = rewritten(bundle, tmp_path / "b", {})
    model = make_model(3)
    weights = weights_of(model)
    name = "heads.out.kernel" if "heads.out.kernel" in weights else next(iter(weights))
    weights[name] = weights[name].copy()
    weights[name].reshape(-1)[-1] = value
    set_weights(model, weights, "here")
    with pytest.raises(
        BundleError, match=rf"{name} has 1 of [\d,]+ values that are not finite, the first is"
    ):
        export_bundle(model, path, overwrite=True)
    assert Bundle.load(path).version == bundle.version
    save_model(make_model(3), tmp_path / "model", metrics={}, notes={})
    with pytest.raises(BundleError, match=rf"{name} has 1 of"):
        save_model(model, tmp_path / "model", metrics={}, notes={})
    load_model(tmp_path / "model")


def test_export_bundle_calibration_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"calibration: got .*nan.*, expected a mapping, each a list, each a fin"
    ):
        export_bundle(make_model(3), tmp_path / "b", calibration={"ctr": (float("nan"), 0.0)})
    assert not list(tmp_path.iterdir())


def test_save_model_over_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds notes\.txt, which is no part of a saved model"):
        save_model(make_model(3), tmp_path, metrics={}, notes={})
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_load_imports_no_model_code(bundle: Bundle) -> None:
    program = f"""
import sys
from aif_jax.bundle import Bundle
bundle = Bundle.load({str(bundle.path)!r}, prefer="portable")
assert bundle.kind == "portable"
code = ("aif_jax.models", "aif_jax.training", "flax", "optax")
print([name for name in sys.modules if name.startswith(code)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | shared_compilations(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]", done.stdout


def test_export_bundle_bad_arguments_are_refused(tmp_path: Path) -> None:
    model = make_model(3)
    with pytest.raises(ConfigError, match="k_max: got 0"):
        export_bundle(model, tmp_path / "b", k_max=0)
    with pytest.raises(ConfigError, match="does not fold"):
        export_bundle(make_model(3, CONFIG.replace(architecture="exact")), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
