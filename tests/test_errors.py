"""Bad input: a sentence that names the argument, its value and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_table, train
from oneemb_jax import _ffi

TABLE_CALLS = [oe.lookup, oe.stage, oe.prefetch, oe.get_rows]


@pytest.mark.parametrize("call", TABLE_CALLS)
@pytest.mark.parametrize(
    "ids", [[1.0], np.ones(3), ["a"], [True], np.zeros(2, "M8[s]")]
)
def test_ids_that_are_no_integers(call, ids):
    with pytest.raises(TypeError, match=f"{call.__name__}.ids=.*pass integers"):
        call(make_table(2), ids)


@pytest.mark.parametrize("call", TABLE_CALLS)
def test_ids_that_jax_has_cut(call):
    with pytest.raises(TypeError, match=r"already cut.*oe\.pack_ids"):
        call(make_table(2), jnp.arange(3))


def test_numpy_ids_that_jit_has_cut():
    table = make_table(2)
    with pytest.raises(TypeError, match=r"already cut.*oe\.pack_ids"):
        jax.jit(oe.lookup)(table, np.array([2**40]))


def test_ids_of_another_32_bit_type():
    with pytest.raises(TypeError, match="int32 is not the table's key type uint32"):
        oe.lookup(make_table(2, key_type="uint32"), jnp.arange(3))
    with pytest.raises(TypeError, match="not the table's key type"):
        oe.lookup(make_table(2, key_type="int32"), jnp.ones(3))


@pytest.mark.parametrize(
    ("key_type", "ids"),
    [("int32", [2**31]), ("uint32", [-1]), ("uint32", [2**32])],
)
def test_numpy_ids_that_do_not_fit(key_type, ids):
    with pytest.raises(ValueError, match=r"do not fit.*key_type=np\.int64"):
        oe.lookup(make_table(2, key_type=key_type), np.array(ids))


@pytest.mark.parametrize("shape", [(), (5,), (3, 2), (3, 0)])
def test_a_last_axis_that_is_not_the_tables(shape):
    with pytest.raises(ValueError, match="last axis is the table and there are 3"):
        oe.lookup(make_table(2, num_tables=3), np.zeros(shape, np.int64))


@pytest.mark.parametrize("shape", [(2,), (1,), (4, 3), (3, 1)])
def test_table_ids_of_a_wrong_shape(shape):
    table = make_table(2, num_tables=3)
    with pytest.raises(ValueError, match="not a trailing part"):
        oe.lookup(table, np.zeros((2, 3), np.int64), np.zeros(shape, np.int64))


def test_table_ids_that_are_no_integers():
    with pytest.raises(TypeError, match=r"table_ids=.*integers from 0 to 1"):
        oe.lookup(make_table(2, num_tables=2), [1], [0.5])


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.int32, "float8_e4m3fn"])
def test_activations_of_another_dtype(dtype):
    with pytest.raises(ValueError, match="use one of float32, bfloat16, float16"):
        oe.lookup(make_table(2), [1], dtype=dtype)


@pytest.mark.parametrize("call", [*TABLE_CALLS, oe.update])
def test_something_that_is_no_table(call):
    with pytest.raises(TypeError, match="not a Table"):
        call(np.zeros(3), [1])


@pytest.mark.parametrize("shape", [(3,), (3, 2), (4, 4), (4, 3, 1), (1, 3)])
def test_a_gradient_of_a_wrong_shape(shape):
    table = make_table(3)
    _, ctx = oe.lookup(table, np.arange(4))
    with pytest.raises(ValueError, match=r"activations have shape \(4, 3\)"):
        oe.update(table, ctx, jnp.zeros(shape))
    with pytest.raises(ValueError, match=r"activations have shape \(4, 3\)"):
        oe.global_norm(ctx, jnp.zeros(shape))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_a_gradient_of_a_wrong_dtype(dtype):
    table = make_table(3)
    _, ctx = oe.lookup(table, [1])
    with pytest.raises(TypeError, match=r"grads=.*dtype"):
        oe.update(table, ctx, jnp.zeros((1, 3), dtype))


def test_a_context_of_another_table():
    table, other = make_table(3), make_table(3, seed=9)
    acts, ctx = oe.lookup(other, [1])
    with pytest.raises(ValueError, match="differs from table"):
        oe.update(table, ctx, jnp.ones_like(acts))


def test_things_that_are_no_context():
    table = make_table(3)
    acts, ctx = oe.lookup(table, [1])
    with pytest.raises(TypeError, match="pass the context"):
        oe.update(table, acts, acts)
    with pytest.raises(TypeError, match="not the context that lookup returned"):
        oe.update(table, [acts], [acts])
    with pytest.raises(ValueError, match="1 lookups with 2 gradients"):
        oe.update(table, [ctx], [acts, acts])
    with pytest.raises(TypeError):
        oe.update(table, ctx)
    with pytest.raises(ValueError, match="holds its gradients"):
        oe.update(table, oe.SparseGrad((ctx,), (acts,)), acts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", np.ones(2)),
        ("grad_scale", np.ones(2)),
        ("apply", 1.0),
        ("apply", np.ones(2, bool)),
        ("grad_scale", True),
    ],
)
def test_scalars_that_are_none(name, value):
    table = make_table(3)
    acts, ctx = oe.lookup(table, [1])
    with pytest.raises((ValueError, TypeError), match=f"{name}|scalar"):
        oe.update(table, ctx, acts, **{name: value})


def test_a_donated_table():
    table = make_table(2)
    jax.jit(lambda table: table, donate_argnums=0)(table)
    for call in (oe.size, oe.stats, oe.check, oe.grow, oe.items):
        with pytest.raises(ValueError, match="was donated to an earlier call"):
            call(table)
    with pytest.raises(ValueError, match=r"lookup.*was donated"):
        oe.lookup(table, [1])


def test_host_calls_inside_jit():
    table = make_table(2)
    for call in (oe.size, oe.stats, oe.check, oe.grow, oe.items):
        with pytest.raises(TypeError, match="outside of jit"):
            jax.jit(call)(table)


def test_nothing_is_written_by_a_call_that_raises():
    table = train(make_table(2), [1], np.ones((1, 2), np.float32))
    before = oe.get_rows(table, [1]).embedding
    acts, ctx = oe.lookup(table, [1])
    for bad in ({"grads": acts[0]}, {"grads": acts, "learning_rate": -1.0}):
        with pytest.raises(ValueError, match="update"):
            oe.update(table, ctx, **bad)
    np.testing.assert_array_equal(oe.get_rows(table, [1]).embedding, before)
    assert oe.stats(table)["step"] == 1


def test_packing():
    with pytest.raises(TypeError, match="holds no ids"):
        oe.pack_ids([0.5])
    with pytest.raises(TypeError, match="already cut"):
        oe.pack_ids(jnp.arange(3))
    with pytest.raises(ValueError, match=r"uint32\[\.\.\., 2\]"):
        oe.unpack_ids(np.zeros(3, np.uint32))
    ids = np.array([[-(2**63), -1], [0, 2**63 - 1]])
    np.testing.assert_array_equal(oe.unpack_ids(oe.pack_ids(ids)), ids)
    np.testing.assert_array_equal(
        oe.unpack_ids(oe.pack_ids(ids[:, ::-1])), ids[:, ::-1]
    )
    assert oe.pack_ids([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("built", "installed"), [((0, 4), (0, 3)), ((1, 0), (0, 3)), ((0, 3), (1, 0))]
)
def test_a_library_this_jaxlib_cannot_load(built, installed):
    with pytest.raises(ImportError, match="Reinstall oneemb_jax"):
        _ffi.check_api_version(built, installed)
    _ffi.check_api_version((0, 3), (0, 3))
    _ffi.check_api_version((0, 3), (0, 5))
