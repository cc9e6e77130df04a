"""lookup: what it reads, and that it changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax as oe
from helpers import bits, make_spec, make_table, train
from initial_rows import initial_rows

U64 = st.integers(0, 2**64 - 1)


def expected_initial(table, ids, tables=None):
    spec = table.spec
    flat = np.asarray(ids).reshape(-1)
    if tables is None:
        tables = np.zeros(flat.size, np.int64)
    return initial_rows(
        spec.initializers, spec.column_dims, spec.seed, np.ravel(tables), flat
    )


@given(st.lists(st.one_of(U64, st.integers(0, 5)), max_size=40))
def test_unseen_ids_read_their_initial_rows(ids):
    table = make_table(5, key_type="uint64")
    array = np.array(ids, np.uint64)
    acts, ctx = oe.lookup(table, array)
    assert acts.shape == (len(ids), 5)
    np.testing.assert_array_equal(acts, expected_initial(table, array))
    np.testing.assert_array_equal(ctx.counts[:3], [0, len(ids), 0])


@pytest.mark.parametrize("dim", [1, 3, 4, 17, 64, 128, (16, 1), (3, 5, 9)])
def test_dimensions(dim):
    table = make_table(dim, initializer=oe.make_normal_initializer(0.0, 0.1))
    ids = np.arange(7)
    acts, _ = oe.lookup(table, ids)
    np.testing.assert_array_equal(acts, expected_initial(table, ids))
    table = train(table, ids, np.ones(acts.shape, np.float32))
    after, ctx = oe.lookup(table, ids)
    np.testing.assert_array_equal(after, np.asarray(acts) - np.float32(0.5))
    np.testing.assert_array_equal(ctx.counts[:3], [7, 0, 0])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3), (2, 3, 4)])
def test_ids_of_any_shape(shape):
    table = make_table(4)
    ids = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    acts, ctx = oe.lookup(table, ids)
    assert acts.shape == (*shape, 4)
    assert ctx.batch_shape == shape
    table = oe.update(table, ctx, jnp.ones_like(acts))
    assert oe.size(table) == ids.size


def test_the_whole_range_of_ids():
    table = make_table(2, key_type="uint64")
    ids = np.array([0, 2**64 - 1, 2**63, 2**32, 2**32 - 1], np.uint64)
    table = train(table, ids, np.ones((5, 2), np.float32))
    assert oe.size(table) == 5
    np.testing.assert_array_equal(
        oe.lookup(table, ids)[0], expected_initial(table, ids) - np.float32(0.5)
    )


@pytest.mark.parametrize("key_type", ["int32", "uint32"])
def test_32_bit_ids_are_zero_extended(key_type):
    narrow = make_table(3, key_type=key_type)
    wide = make_table(3, key_type="uint64")
    ids = np.array([0, 1, -1, -(2**31)], np.int64).astype(key_type)
    as_u64 = ids.astype(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(
        oe.lookup(narrow, jnp.asarray(ids))[0], oe.lookup(wide, as_u64)[0]
    )


def test_numpy_int64_is_never_cut():
    table = make_table(3)
    ids = np.array([5, 2**32 + 5, 2**40 + 5])
    acts, _ = oe.lookup(table, ids)
    assert len({row.tobytes() for row in np.asarray(acts)}) == 3
    packed, _ = jax.jit(oe.lookup)(table, oe.pack_ids(ids))
    np.testing.assert_array_equal(acts, packed)
    with jax.enable_x64(True):
        wide, _ = jax.jit(oe.lookup)(table, ids)
        np.testing.assert_array_equal(acts, wide)


def test_the_last_axis_is_the_table():
    table = make_table(4, num_tables=3)
    ids = np.array([[7, 7, 7], [8, 7, 9]])
    acts, _ = oe.lookup(table, ids)
    tables = np.broadcast_to(np.arange(3), ids.shape)
    np.testing.assert_array_equal(
        acts.reshape(-1, 4), expected_initial(table, ids, tables)
    )
    table = train(table, ids, np.ones((2, 3, 4), np.float32))
    assert oe.size(table) == 5  # 7 is three rows, one of them met twice


@given(st.permutations(range(6)), st.sampled_from([0, 5]))
def test_one_id_of_several_tables_is_one_row_each(order, identity):
    # So few rows that their keys lie side by side in the index.
    table = make_table(4, num_tables=6, capacity=3)
    known, tables = order[:3], np.array(order)
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    table = oe.set_rows(table, np.full(3, identity), rows, table_ids=np.array(known))
    ids = np.full(6, identity)
    acts, ctx = oe.lookup(table, ids, tables)
    np.testing.assert_array_equal(acts[:3], rows)
    np.testing.assert_array_equal(
        acts[3:], expected_initial(table, ids[3:], tables[3:])
    )
    np.testing.assert_array_equal(ctx.counts[:3], [3, 3, 0])


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (3,), (1, 3), (2, 3), (2, 1), (4, 1, 1), (4, 2, 3), (1, 1, 1)],
)
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_table_ids_broadcast_as_in_jax(shape, as_array):
    table = make_table(4, num_tables=5)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (4, 2, 3))
    tables = rng.integers(0, 5, shape)
    acts, _ = oe.lookup(table, ids, as_array(tables, dtype=np.int32))
    np.testing.assert_array_equal(
        acts.reshape(-1, 4),
        expected_initial(table, ids, np.broadcast_to(tables, ids.shape)),
    )
    table = train(table, ids, np.ones(acts.shape, np.float32), table_ids=tables)
    pairs = {*zip(ids.ravel(), np.broadcast_to(tables, ids.shape).ravel(), strict=True)}
    assert oe.size(table) == len(pairs)


def test_a_table_id_out_of_range_reads_nan_and_is_counted():
    table = make_table(4, num_tables=2)
    ids = np.array([1, 1, 1, 1])
    tables = np.array([0, 2, -1, 2**40])
    acts, ctx = oe.lookup(table, ids, tables)
    assert np.isnan(acts[1:]).all()
    assert np.isfinite(acts[0]).all()
    np.testing.assert_array_equal(ctx.counts[:3], [0, 1, 3])
    table = oe.update(table, ctx, jnp.ones_like(acts))
    assert oe.size(table) == 1
    with pytest.raises(oe.TableError, match=r"3 ids had a table id outside 0\.\.1"):
        oe.check(table)


@pytest.mark.parametrize("padding", [0, -1, 2**40])
def test_padding_reads_zeros_and_stores_nothing(padding):
    table = make_table(4, padding_idx=padding)
    ids = np.array([padding, 3, padding])
    acts, ctx = oe.lookup(table, ids)
    np.testing.assert_array_equal(acts[0], np.zeros(4))
    assert np.any(np.asarray(acts[1]) != 0)
    table = oe.update(table, ctx, jnp.full_like(acts, np.nan).at[1].set(1.0))
    assert oe.size(table) == 1
    assert oe.stats(table)["non_finite_gradients"] == 0
    again, ctx = oe.lookup(table, ids)
    np.testing.assert_array_equal(again[0], np.zeros(4))
    np.testing.assert_array_equal(ctx.counts[:3], [1, 0, 0])


def test_a_batch_that_is_all_padding():
    table = make_table(4, padding_idx=9)
    acts, ctx = oe.lookup(table, np.full((3, 2), 9))
    assert not np.asarray(acts).any()
    table = oe.update(table, ctx, jnp.ones_like(acts))
    assert oe.size(table) == 0
    assert oe.stats(table)["step"] == 1


def test_padding_of_a_32_bit_key():
    table = make_table(4, padding_idx=-1, key_type="int32")
    acts, _ = oe.lookup(table, jnp.array([-1, 1], jnp.int32))
    assert not np.asarray(acts[0]).any()
    assert np.asarray(acts[1]).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_activations_are_rounded_rows(dtype):
    table = make_table(17)
    ids = np.arange(50)
    exact, _ = oe.lookup(table, ids)
    narrow, _ = oe.lookup(table, ids, dtype=dtype)
    assert narrow.dtype == dtype
    np.testing.assert_array_equal(narrow, exact.astype(dtype))


def test_lookup_changes_nothing():
    table = train(make_table(4), [1, 2], np.ones((2, 4), np.float32))
    before = bits(table)
    for _ in range(3):
        oe.lookup(table, np.arange(100))
    assert bits(table) == before


def test_shared_keys_are_one_row():
    initializers = (
        (oe.make_constant_initializer(1.0),),
        (oe.make_constant_initializer(2.0),),
    )
    table = make_table(2, initializers=initializers, shared_keys=True)
    ids = np.array([[6, 6]])
    acts, ctx = oe.lookup(table, ids)
    np.testing.assert_array_equal(acts[0, :, 0], [1.0, 2.0])
    # The lowest table that asks decides, wherever it stands in the batch.
    _, late = oe.lookup(table, np.array([6, 6]), np.array([1, 0]))
    first = oe.update(table, ctx, jnp.zeros((1, 2, 2)))
    second = oe.update(table, late, jnp.zeros((2, 2)))
    for updated in (first, second):
        assert oe.size(updated) == 1
        np.testing.assert_array_equal(oe.lookup(updated, ids)[0][0, :, 0], [1.0, 1.0])


def test_the_layout_is_static():
    """One trace serves every batch of a shape."""
    traces = []

    @jax.jit
    def read(table, ids):
        traces.append(1)
        return oe.lookup(table, ids)[0]

    table = make_table(4)
    for i in range(3):
        read(table, oe.pack_ids(np.arange(i, i + 5)))
        table = train(table, [i], np.ones((1, 4), np.float32))
    assert len(traces) == 1


def test_stage_and_prefetch_are_the_identity_in_device_memory():
    table = make_table(4)
    assert oe.stage(table, [1, 2]) is table
    assert oe.prefetch(table, [1, 2]) is table
    with pytest.raises(TypeError, match="stage"):
        oe.stage(table, [1.5])


def test_equal_specs_share_compiled_code():
    spec = make_spec(4)
    assert hash(spec) == hash(make_spec(4, name=spec.name))
    assert spec == make_spec(4, name=spec.name)
