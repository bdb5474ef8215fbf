import jax.numpy as jnp
import numpy as np
import pytest

from aif_jax.errors import TrainingError
from aif_jax.training.checkpoints import CheckpointStore
from support.full_disk import limited_file_size


def arrays(scale=1.0):
    return {
        "params": {"item.table": jnp.arange(6.0).reshape(2, 3) * scale, "bias": jnp.full((3,), scale)},
        "key": jnp.array([1, 2], jnp.uint32),
        "count": jnp.array(7, jnp.int32),
    }


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, dict):
            same(value, b[name])
        else:
            assert value.dtype == b[name].dtype
            np.testing.assert_array_equal(value, b[name])


def test_checkpoint_store_restores_newest(tmp_path):
    with CheckpointStore(tmp_path / "run", kept=1) as store:
        assert store.latest_step() is None
        assert store.notes() is None
        assert store.restore(arrays()) is None
        store.save(3, arrays(), {"epoch": 0})
        store.save(5, arrays(2.0), {"epoch": 1, "data": {"next_index": 5}})
    with CheckpointStore(tmp_path / "run") as store:
        restored = store.restore(arrays())
        assert restored.step == store.latest_step() == 5
        assert restored.notes == store.notes() == {"epoch": 1, "data": {"next_index": 5}}
        same(restored.arrays, arrays(2.0))


def test_checkpoint_store_saved_arrays_may_be_deleted(tmp_path):
    with CheckpointStore(tmp_path) as store:
        doomed = jnp.arange(5.0)
        store.save(1, {"x": doomed}, {})
        doomed.delete()
    with CheckpointStore(tmp_path) as store:
        np.testing.assert_array_equal(store.restore({"x": jnp.zeros(5)}).arrays["x"], np.arange(5.0))


def test_checkpoint_store_same_step_twice_raises(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, arrays(), {})
        with pytest.raises(TrainingError, match="step 1 already"):
            store.save(1, arrays(), {})


@pytest.mark.parametrize("name", ["bias", "item.table"])
def test_checkpoint_store_array_that_is_not_finite_is_named_and_not_saved(tmp_path, name):
    with CheckpointStore(tmp_path, kept=1) as store:
        store.save(1, arrays(), {})
        spoilt = arrays()
        spoilt["params"][name] = spoilt["params"][name] * jnp.nan
        with pytest.raises(TrainingError, match=rf"step 2: params\.{name} holds values that are not finite"):
            store.save(2, spoilt, {})
    with CheckpointStore(tmp_path) as store:
        assert store.latest_step() == 1


def test_checkpoint_store_on_full_disk_keeps_checkpoint_and_leaves_nothing(tmp_path):
    big = {"x": np.random.default_rng(0).random(100_000)}
    with CheckpointStore(tmp_path) as store:
        store.save(1, arrays(), {})
    store = CheckpointStore(tmp_path)
    with limited_file_size(100_000):
        store.save(2, big, {})
        with pytest.raises(TrainingError, match=r"cannot be written \(File too large\).*needs 800,000 bytes"):
            store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()  # of a killed process
    with CheckpointStore(tmp_path) as store:
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        assert store.latest_step() == 1
        store.save(2, big, {})


def test_checkpoint_store_mismatch_names_first_arrays(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"params": {"user.b": jnp.zeros(2), "user.a": jnp.zeros(3)}}, {})
        with pytest.raises(
            TrainingError,
            match=r"2 arrays differ from this run's: params\.item\.b is absent there and float32\[2\] here; "
            r"params\.user\.b is float32\[2\] there and absent here\. Resume",
        ):
            store.restore({"params": {"item.b": jnp.zeros(2), "user.a": jnp.zeros(3)}})
        many = {f"weight{number}": jnp.zeros(1) for number in range(9)}
        with pytest.raises(TrainingError, match=r"11 arrays differ .*weight3 .*; and 5 more\. Resume"):
            store.restore({"params": many})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda a: a["params"].update(bias=jnp.zeros(4)),
            r"params\.bias.*float32\[3\] there.*float32\[4\] here",
        ),
        (lambda a: a.update(count=jnp.zeros((), jnp.uint32)), r"count.*int32\[\] there.*uint32\[\] here"),
        (lambda a: a.update(extra=jnp.zeros(1)), "extra.*absent there"),
        (lambda a: a.pop("key"), "key.*absent here"),
    ],
)
def test_checkpoint_store_checkpoint_of_other_model_raises_with_name(tmp_path, change, words):
    other = arrays()
    change(other)
    with CheckpointStore(tmp_path) as store:
        store.save(1, arrays(), {})
        with pytest.raises(TrainingError, match=words):
            store.restore(other)
