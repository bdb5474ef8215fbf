"""Rows from the actors of a Ray that these tests start on this machine."""

import numpy as np
import pytest
import ray
import ray.data

from aif_jax.bundle import Bundle
from aif_jax.errors import ConfigError, DataError, ItemIndexError
from aif_jax.features import item_keys
from aif_jax.integrations.ray import build_with_ray
from aif_jax.nearline import BehaviourTable, ItemIndex

pytestmark = [
    # Ray starts its processes by fork and exec; nothing of JAX runs between the two.
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
    # Ray warns of settings of its own that it has renamed.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


@pytest.fixture(scope="module")
def cluster():
    # More slots than cores: Ray frees those of a failed run only when its error is collected.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


def records(world, n=None, name=int):
    return [
        {
            "sku": name(world.ids[row]),
            "vector": world.content[row].tolist() if world.content[row].any() else None,
            "in_stock": row % 3 != 0,
            "item": int(world.columns["item"][row]),
            "genres": world.columns["genres"][row],
            "price": float(world.columns["price"][row]),
        }
        for row in range(n or len(world.ids))
    ]


def test_build_with_ray_equals_build_in_one_process(cluster, world, bundle):
    dataset = ray.data.from_items(records(world), override_num_blocks=3)
    built = build_with_ray(
        bundle, dataset, id_column="sku", content_column="vector", rankable_column="in_stock", batch_rows=40
    )
    index = ItemIndex.from_rows(bundle, built.ids, built.rows)
    flags = np.arange(len(world.ids)) % 3 != 0
    local = ItemIndex.build(bundle, world.ids, world.columns, world.content, rankable=flags)
    assert len(index) == len(local) == len(world.ids)
    rows, found = index.gather(world.ids)
    assert found.all()
    for name, column in local.gather(world.ids)[0].items():
        assert rows[name].dtype == column.dtype
        np.testing.assert_allclose(rows[name], column, rtol=1e-5, atol=1e-6, err_msg=name)
    assert built.encoding == local.encoding.as_dict()
    assert built.encoding["missing"]["genres"] > 0


def test_build_with_ray_behaviours_with_string_ids_and_no_content(cluster, world, bundle):
    dataset = ray.data.from_items(records(world, 10, "sku-{}".format)).drop_columns(["vector", "in_stock"])
    built = build_with_ray(bundle, dataset, table=BehaviourTable, id_column="sku", workers=1)
    table = BehaviourTable.from_rows(bundle, built.ids, built.rows)
    names = [f"sku-{key}" for key in world.ids[:10]]
    assert sorted(table.ids()) == sorted(names)
    local = BehaviourTable.build(bundle, names, {name: column[:10] for name, column in world.columns.items()})
    rows, _ = table.gather(item_keys(names))
    for name, column in local.gather(item_keys(names))[0].items():
        np.testing.assert_allclose(rows[name], column, rtol=1e-5, atol=1e-6, err_msg=name)


def test_build_with_ray_reports_error_of_actor(cluster, world, bundle):
    dataset = ray.data.from_items(records(world, 4))
    with pytest.raises(ray.exceptions.RayError, match=r"DataError: id_column: got 'id', but the columns are"):
        build_with_ray(bundle, dataset)
    with pytest.raises(ray.exceptions.RayError, match=r"SchemaError: item: columns \['in_stock', 'vector'\]"):
        build_with_ray(bundle, dataset, id_column="sku")
    short = ray.data.from_items([{"id": 41, "vector": [1.0]}])
    with pytest.raises(ray.exceptions.RayError, match=r"item 41.*shape"):
        build_with_ray(bundle, short, content_column="vector")
    long = [{"id": 40 + row, "vector": [3.0 if row == 2 else 0.0] * 8} for row in range(4)]
    with pytest.raises(ray.exceptions.RayError, match=r"DataError: item 42, row \d of its batch: .*length 8"):
        build_with_ray(bundle, ray.data.from_items(long), content_column="vector")


def test_build_with_ray_node_with_other_bundle_is_refused(cluster, world, bundle, other_bundle):
    moved = Bundle.load(bundle.path)
    moved.path = other_bundle.path
    dataset = ray.data.from_items([{"id": 1, "price": 2.0}])
    with pytest.raises(ray.exceptions.RayError, match=f"{other_bundle.version} there.*{bundle.version}"):
        build_with_ray(moved, dataset)


# Ray says so of an empty dataset.
@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning")
def test_build_with_ray_repeated_id_is_refused_and_empty_dataset_is_empty(cluster, bundle):
    twice = ray.data.from_items([{"id": 2**63 + 1, "price": 1.0}, {"id": 2**63 + 1, "price": 2.0}])
    built = build_with_ray(bundle, twice, batch_rows=1)
    assert built.ids.tolist() == [2**63 + 1] * 2
    with pytest.raises(ItemIndexError, match="is given twice"):
        ItemIndex.from_rows(bundle, built.ids, built.rows)
    nothing = build_with_ray(bundle, ray.data.from_items([]))
    assert len(ItemIndex.from_rows(bundle, nothing.ids, nothing.rows)) == 0


def test_build_with_ray_bad_arguments_are_refused(bundle):
    with pytest.raises(DataError, match=r"got a list, expected a ray\.data\.Dataset"):
        build_with_ray(bundle, [{"id": 1}])
    with pytest.raises(ConfigError, match="workers and batch_rows: got 0 and 4096"):
        build_with_ray(bundle, [], workers=0)
