"""Tables on devices: one that init was told, copies on several, and shards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import oneemb_jax as oe
from helpers import make_cached, make_spec, make_table, table_bits, train
from oneemb_jax import cache
from oneemb_jax.table import init_table

IDS = np.arange(3)


def step(table, ids):
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, jnp.ones_like(acts)), acts


def mesh_of(axis_type=jax.sharding.AxisType.Auto):
    return jax.make_mesh((4,), ("x",), axis_types=(axis_type,))


class TestInit:
    def test_a_device_holds_through_every_call(self):
        device = jax.devices()[2]
        table = init_table(make_spec(4), device)
        assert all(leaf.committed for leaf in jax.tree.leaves(table))
        compiled = jax.jit(step, donate_argnums=0)

        def on_device(tree):
            return all(x.devices() == {device} for x in jax.tree.leaves(tree))

        assert on_device(table)
        table, acts = compiled(table, oe.pack_ids(IDS))
        assert on_device((table, acts))
        acts, ctx = oe.lookup(table, IDS)
        assert on_device((acts, ctx.slots))
        assert on_device(oe.update(table, ctx, acts))
        assert on_device(oe.grow(table))
        assert on_device(oe.reset_counters(table))
        table = oe.set_rows(table, [9], np.ones((1, 4)))
        assert on_device(table)
        assert oe.size(table) == 4

    def test_a_committed_table_is_donated(self):
        table = init_table(make_spec(4), jax.devices()[1])
        after, _ = jax.jit(step, donate_argnums=0)(table, oe.pack_ids(IDS))
        assert table.rows.is_deleted()
        assert oe.size(after) == 3

    def test_without_a_device_it_goes_where_jax_does(self):
        table = init_table(make_spec(4))
        assert not any(leaf.committed for leaf in jax.tree.leaves(table))
        with jax.default_device(jax.devices()[3]):
            assert init_table(make_spec(4)).rows.devices() == {jax.devices()[3]}

    @pytest.mark.parametrize("device", ["cpu", 0, object()])
    def test_something_that_is_no_device(self, device):
        with pytest.raises(TypeError, match=r"init.device=.*jax\.devices"):
            init_table(make_spec(4), device)


def test_a_table_on_every_device():
    table = make_table(4)
    everywhere = jax.device_put(table, NamedSharding(mesh_of(), PartitionSpec()))
    ids = jax.device_put(
        oe.pack_ids(np.arange(8)), NamedSharding(mesh_of(), PartitionSpec("x"))
    )
    compiled = jax.jit(step)
    after, acts = compiled(everywhere, ids)
    wanted, wanted_acts = compiled(table, oe.pack_ids(np.arange(8)))
    np.testing.assert_array_equal(acts, wanted_acts)
    assert table_bits(after) == table_bits(wanted)


def shard(table, mesh):
    def put(leaf):
        split = "x" if leaf.shape[0] % 4 == 0 else None
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(split)))

    return jax.tree.map(put, table)


def test_a_table_in_shards_is_refused():
    table = shard(make_table(4), mesh_of())
    _, ctx = oe.lookup(make_table(4), IDS)
    calls = [
        functools.partial(oe.lookup, ids=IDS),
        functools.partial(oe.update, ctx=ctx, grads=jnp.ones((3, 4))),
        functools.partial(oe.get_rows, ids=IDS),
        oe.grow,
        oe.check,
        oe.items,
        oe.size,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="sharded over several devices"):
            call(table)


def test_a_table_in_shards_is_refused_inside_jit_of_an_explicit_mesh():
    mesh = mesh_of(jax.sharding.AxisType.Explicit)
    with jax.set_mesh(mesh):
        table = shard(make_table(4), mesh)
        with pytest.raises(ValueError, match="sharded over several devices"):
            jax.jit(oe.lookup)(table, oe.pack_ids(IDS))


def test_a_table_in_shards_of_an_auto_mesh_is_gathered_inside_jit():
    table, ids = make_table(4), oe.pack_ids(IDS)
    shards = shard(table, mesh_of())
    assert not shards.rows.sharding.is_fully_replicated
    compiled = jax.jit(step).lower(shards, ids).compile()
    assert "all-gather" in str(compiled.as_text())
    after, acts = compiled(shards, ids)
    wanted, wanted_acts = step(table, ids)
    assert after.rows.sharding.is_fully_replicated
    assert table_bits(after) == table_bits(wanted)
    np.testing.assert_array_equal(acts, wanted_acts)


@pytest.mark.parametrize("change", [lambda x: jnp.stack([x, x]), lambda x: x[:0]])
def test_a_table_that_is_not_whole(change):
    table = jax.tree.map(change, train(make_table(4), IDS, np.ones((3, 4))))
    for call in (oe.size, oe.grow, functools.partial(oe.lookup, ids=IDS)):
        with pytest.raises(ValueError, match=r"not uint32.*A table is used whole"):
            call(table)


def test_a_table_of_another_dtype():
    table = jax.tree.map(lambda x: x.astype(jnp.float32), make_table(4))
    with pytest.raises(ValueError, match=r"index is float32\[.*not uint32"):
        oe.lookup(table, IDS)


def test_a_cached_table_lives_on_one_device(tmp_path):
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), auto, devices=jax.devices()[:2])
    everywhere, split = PartitionSpec(), PartitionSpec("data")
    table = make_cached(tmp_path)

    def stage(table, ids):
        return oe.stage(table, ids)

    def update(table, ids):
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, acts)

    for function in (stage, update):
        split_up = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(everywhere, split),
            out_specs=everywhere,
            check_vma=False,
        )
        with pytest.raises(ValueError, match="this runs on 2"):
            jax.jit(split_up)(table, oe.pack_ids(np.arange(4)))
    oe.check(oe.stage(table, np.arange(4)))
    cache.close_cached(table.spec.name)


@pytest.mark.parametrize("kind", ["ssd", "host_mem"])
@pytest.mark.parametrize("axis_type", [*jax.sharding.AxisType][:2])
def test_a_cached_table_is_not_copied_to_the_devices_of_its_ids(
    tmp_path, kind, axis_type
):
    """One Store with a cache on each of four devices would be a race."""
    with oe.MultiTableEmbedding(
        "sharded_ids", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        store_options=(
            oe.make_cached_ssd_store_options if kind == "ssd"
            else oe.make_cached_host_mem_store_options
        )(1, tmp_path),
    ) as emb:  # fmt: skip
        table = emb.init()
        assert table.rows.committed
        ids = oe.pack_ids(np.arange(8))
        split = NamedSharding(mesh_of(axis_type), PartitionSpec("x"))

        @jax.jit
        def staged(table, ids):
            return step(oe.stage(table, ids), ids)

        with pytest.raises(ValueError, match="incompatible devices"):
            staged(table, jax.device_put(ids, split))
        table, acts = staged(table, ids)
        oe.check(table)
        assert np.isfinite(acts).all()
        emb.save_snapshot(table, "one")
        assert emb.load_snapshot("one").rows.committed
