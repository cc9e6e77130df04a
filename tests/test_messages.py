"""A wrong argument raises an error that names it, says what it was, and the remedy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_spec, make_table, train
from oneemb_jax.table import init_table


@pytest.fixture
def table():
    return train(make_table(3), [1], np.ones((1, 3), np.float32))


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("learning_rate", "x", TypeError, r"str 'x' is no array of numbers"),
        ("learning_rate", np.array([0.1]), ValueError, r"shape \(1,\).*scalar"),
        ("learning_rate", 1 + 2j, ValueError, "complex64.*scalar of type float32"),
        ("learning_rate", True, ValueError, "bool.*scalar of type float32"),
        ("learning_rate", 1e39, ValueError, r"1e\+39.*finite float32, 0 or more"),
        ("learning_rate", 10**400, TypeError, "no array of numbers"),
        ("learning_rate", -1, ValueError, r"-1\.0.*0 or more"),
        ("grad_scale", "x", TypeError, "str 'x' is no array of numbers"),
        ("grad_scale", np.nan, ValueError, "nan.*finite float32"),
        ("grad_scale", -np.inf, ValueError, "-inf.*finite float32"),
        ("grad_scale", 1e39, ValueError, r"1e\+39.*finite float32"),
        ("apply", "x", TypeError, "str 'x' is no array of numbers"),
        ("apply", 1, ValueError, "int32.*scalar of type bool"),
        ("grads", "x", TypeError, "str 'x' is no array of numbers"),
        ("grads", [[1.0], [2.0, 3.0]], TypeError, "no array of numbers"),
    ],
)
def test_update(table, argument, value, error, message):
    acts, ctx = oe.lookup(table, [1])
    arguments = {"grads": acts, argument: value}
    with pytest.raises(error, match=rf"update\({argument}=.*{message}"):
        oe.update(table, ctx, **arguments)


@pytest.mark.parametrize("schedule", [lambda _: None, lambda _: "x", lambda _: 1j])
def test_a_schedule_that_gives_no_number(schedule):
    table = make_table(3, optimizer=oe.sgd(schedule))
    acts, ctx = oe.lookup(table, [1])
    with pytest.raises(
        (TypeError, ValueError), match="update: what the optimizer's sch"
    ):
        oe.update(table, ctx, acts)


@pytest.mark.parametrize("dtype", ["junk", 3, object(), None, np.float64])
def test_activations_of_no_dtype(table, dtype):
    with pytest.raises(ValueError, match=r"lookup\(dtype=.*use one of float32"):
        oe.lookup(table, [1], dtype=dtype)


@pytest.mark.parametrize("call", [oe.lookup, oe.get_rows, oe.stage])
def test_ragged_ids(table, call):
    with pytest.raises(ValueError, match=rf"{call.__name__}\(ids=.*of one length"):
        call(table, [[1, 2], [3]])
    with pytest.raises(ValueError, match=rf"{call.__name__}\(table_ids=.*one length"):
        call(table, [[1, 2], [3, 4]], [[0, 0], [0]])
    with pytest.raises(ValueError, match=r"pack_ids\(ids=.*of one length"):
        oe.pack_ids([[1, 2], [3]])


@pytest.mark.parametrize("ids", [[2**64 - 1, 0], [[2**63], [1]], 2**64 - 1, [2**63]])
def test_lists_of_large_ids(ids):
    table = make_table(3, key_type="uint64")
    _, ctx = oe.lookup(table, ids)
    wanted = np.array(ids, object).astype(np.uint64)
    np.testing.assert_array_equal(oe.unpack_ids(ctx.ids, np.uint64), wanted.ravel())


@pytest.mark.parametrize("ids", [[2**64], [2**63, -1], [2**63, 0.5], [None]])
def test_lists_that_no_64_bits_hold(table, ids):
    with pytest.raises(TypeError, match=r"lookup\(ids=.*integers, all of int64 or"):
        oe.lookup(table, ids)


@pytest.mark.parametrize("ids", [None, {}, {1}, "a", 1.5, jnp.float16, object()])
def test_ids_that_are_no_array(table, ids):
    kind = type(ids).__name__
    with pytest.raises(TypeError, match=rf"lookup\(ids=.*{kind} .*pass integers"):
        oe.lookup(table, ids)
    if ids is not None:
        with pytest.raises(TypeError, match=rf"lookup\(table_ids=.*{kind} "):
            oe.lookup(table, [1], ids)


@pytest.mark.parametrize("key_type", [np.float64, "int32", None, np.uint32, "x", 8])
def test_packed_ids_of_another_type(key_type):
    with pytest.raises(ValueError, match=r"unpack_ids\(key_type=.*int64 or uint64"):
        oe.unpack_ids(oe.pack_ids(np.array([5])), key_type)


@pytest.mark.parametrize("key_type", [np.int64, "uint64", np.dtype("int64")])
def test_packed_ids_of_their_type(key_type):
    ids = oe.unpack_ids(oe.pack_ids(np.array([5])), key_type)
    assert ids.dtype == key_type
    assert ids.tolist() == [5]


def test_ids_that_look_packed(table):
    """uint32 with a last axis of 2 is packed, by definition."""
    words = np.array([[1, 0], [7, 0]], np.uint32)
    assert oe.lookup(table, words)[0].shape == (2, 3)
    assert oe.get_rows(table, words).found.tolist() == [True, False]


@pytest.mark.parametrize(
    ("embedding", "state", "error", "message"),
    [
        ("x", {}, TypeError, r"embedding=.*shape \(2, 3\)"),
        (1.0, {}, ValueError, r"embedding=.*shape \(\), wanted \(2, 3\)"),
        ([[1.0], [1.0, 2.0]], {}, TypeError, r"embedding=.*shape \(2, 3\)"),
        (np.ones((2, 3)), {"sum": 1.0}, ValueError, r"state\['sum'\].*\(2, 3\)"),
        (np.ones((2, 3)), {"sum": np.ones((3, 2))}, ValueError, r"state\['sum'\]"),
        (np.ones((2, 3)), {"sum": "x"}, TypeError, r"state\['sum'\].*\(2, 3\)"),
        (np.ones((2, 3)), {"x": 1}, ValueError, r"state=.*'x'.*\['sum'\]"),
        (np.full((2, 3), 1e39), {}, ValueError, r"embedding=.*1e\+39 does not fit"),
        (np.ones((2, 3)), {"sum": np.full((2, 3), -1e39)}, ValueError, "state.*-1e"),
    ],
)
def test_set_rows(embedding, state, error, message):
    table = make_table(3, optimizer=oe.adagrad(0.1))
    with pytest.raises(error, match=rf"set_rows\({message}"):
        oe.set_rows(table, [1, 2], embedding, state)
    assert oe.size(table) == 0


def test_numbers_that_fit_barely():
    table = make_table(3)
    values = np.array([[np.inf, np.nan, 3.4028235e38]])
    rows = oe.get_rows(oe.set_rows(table, [1], values), [1]).embedding
    np.testing.assert_array_equal(rows, values.astype(np.float32))


def test_whole_state_that_is_not(tmp_path):
    table = make_table(3, optimizer=oe.smart_decay_adam(0.1))
    for steps in (-1, 2**32, 0.5):
        with pytest.raises(ValueError, match=r"state.*does not fit uint32"):
            oe.set_rows(table, [1], np.ones((1, 3)), {"last_step": np.array([steps])})


def test_a_table_that_no_memory_holds():
    """JAX's error, of JAX's type, with what it was for."""
    spec, table = make_spec(3, capacity=2**31 - 1), make_table(3)
    for call, make in (
        ("init", lambda: init_table(spec)),
        ("grow", lambda: oe.grow(table, 2**31 - 1)),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXH") as caught:
            make()
        (note,) = [n for n in caught.value.__notes__ if n.startswith(call)]
        assert "arrays take 80.0 GiB" in note


def test_a_table_of_numpy_arrays_grows():
    table = make_table(3)
    assert oe.grow(jax.device_get(table)).capacity == 2 * table.capacity


def test_state_of_the_shape_of_the_ids():
    optimizer = oe.rowwise_adagrad(0.1)
    ids = np.array([[1, 2], [3, 4]])
    sums = np.arange(4, dtype=np.float32)
    for shaped in (sums, sums.reshape(2, 2)):
        table = make_table(3, optimizer=optimizer)
        table = oe.set_rows(table, ids, np.ones((2, 2, 3)), {"sum": shaped})
        np.testing.assert_array_equal(oe.get_rows(table, ids).state["sum"], sums)


@pytest.mark.parametrize("batch_size", [2.5, "4", None, True])
def test_items_in_batches_of_no_number(table, batch_size):
    with pytest.raises(TypeError, match=r"items\(batch_size=.*whole number"):
        oe.items(table, batch_size)
    with pytest.raises(ValueError, match=r"items\(batch_size=0\).*1 or more"):
        oe.items(table, 0)


def make_embedding(**changes):
    options = {
        "optimizer": oe.sgd(0.1),
        "store_options": oe.make_device_mem_store_options(capacity=8),
    }
    return oe.MultiTableEmbedding(
        "messages", 4, "float32", "int64", **options | changes
    )


def test_a_missing_optimizer():
    with pytest.raises(TypeError, match=r"^MultiTableEmbedding\(optimizer=None\)"):
        make_embedding(optimizer=None)
    with pytest.raises(TypeError, match=r"^MultiTableEmbedding\(optimizer=None\)"):
        oe.MultiTableEmbedding(
            "messages",
            4,
            "float32",
            "int64",
            store_options=oe.make_device_mem_store_options(capacity=8),
        )


def test_a_name_that_is_taken():
    with make_embedding(), pytest.raises(ValueError, match=r"close\(\).*`with`"):
        make_embedding()


def test_specs_that_differ(table):
    acts, ctx = oe.lookup(table, [1])
    other = make_table(3, seed=9, name=table.spec.name)
    with pytest.raises(ValueError, match=r"in seed \(3, not 9\); pass a context"):
        oe.update(other, ctx, acts)
    with make_embedding() as emb:
        with pytest.raises(ValueError, match=r"seed \(3, not 0\)") as info:
            emb(init_table(make_spec(4, name="messages", seed=3)), [1])
        assert "optimizer" not in str(info.value)


def donated():
    table = make_table(3)
    jax.jit(lambda table: table, donate_argnums=0)(table)
    return table


def public_calls():
    _, ctx = oe.lookup(make_table(3), [1])
    yield functools.partial(oe.lookup, ids=[1])
    yield functools.partial(oe.stage, ids=[1])
    yield functools.partial(oe.prefetch, ids=[1])
    yield functools.partial(oe.update, ctx=ctx, grads=jnp.ones((1, 3)))
    yield functools.partial(oe.get_rows, ids=[1])
    yield functools.partial(oe.set_rows, ids=[1], embedding=np.ones((1, 3)))
    yield from (oe.size, oe.num_rows, oe.stats, oe.check, oe.reset_counters)
    yield from (oe.grow, oe.items)
    yield oe.value_and_grad(lambda table: oe.lookup(table, [1])[0].sum())
    with make_embedding() as emb:
        yield functools.partial(emb, ids=[1])
        yield functools.partial(emb.forward, ids=[1])


def test_a_donated_table_in_every_public_call():
    for call in public_calls():
        with pytest.raises(ValueError, match="was donated to an earlier call"):
            call(donated())
