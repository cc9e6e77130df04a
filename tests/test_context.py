"""A context that was changed on the way from lookup to update is refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax as oe
from helpers import bits, make_table, table_bits, train

IDS = np.array([[1000, 2000, 1000], [5, 7, 2**40]])


def trained():
    table = make_table(2, num_tables=3, optimizer=oe.adagrad(0.1))
    return train(table, IDS, np.ones((2, 3, 2), np.float32))


def assert_refused(table, ctx, grads):
    """The update changes nothing, is counted, and `check` names the remedy."""
    after = oe.update(table, ctx, grads)
    assert oe.stats(after)["damaged_contexts"] == 1
    for name in ("rows", "index", "clock", "step", "layout_version"):
        rows = oe.size(table) if name in ("rows", "clock") else None
        before = np.asarray(getattr(table, name))[:rows]
        np.testing.assert_array_equal(getattr(after, name)[:rows], before)
    counters = {**oe.stats(after), "damaged_contexts": 0}
    assert counters == oe.stats(table)
    with pytest.raises(oe.TableError, match=r"1 updates.*context.*grad_scale="):
        oe.check(after)
    assert np.isnan(oe.global_norm(ctx, grads))


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda leaf: 2 * leaf,
        jnp.zeros_like,
        lambda leaf: leaf + jnp.ones_like(leaf),
        lambda leaf: jnp.minimum(leaf, jnp.ones_like(leaf)),
        lambda leaf: leaf[::-1],
    ],
)
def test_a_change_of_every_leaf(change, new):
    table = make_table(2, num_tables=3) if new else trained()
    acts, ctx = oe.lookup(table, IDS)
    damaged = jax.tree.map(change, ctx)
    assert_refused(table, damaged, acts)


@pytest.mark.parametrize("field", ["ids", "table_ids", "slots"])
@given(data=st.data())
def test_a_change_of_one_bit(field, data):
    table = trained()
    acts, ctx = oe.lookup(table, IDS)
    leaf = np.array(getattr(ctx, field))
    flat = leaf.reshape(-1).view(np.uint32)
    place = data.draw(st.integers(0, flat.size - 1))
    flat[place] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    assert_refused(table, dataclasses.replace(ctx, **{field: jnp.asarray(leaf)}), acts)


@pytest.mark.parametrize("slots", [[10**6, 2**31 - 1], [-(2**31), -4], [2, 3]])
def test_slots_that_the_table_does_not_have(slots):
    table = train(make_table(2), [1, 2], np.ones((2, 2), np.float32))
    acts, ctx = oe.lookup(table, [1, 2])
    damaged = dataclasses.replace(ctx, slots=jnp.array(slots, jnp.int32))
    assert_refused(table, damaged, acts)


def test_a_change_of_a_stack_of_microbatches():
    table = trained()
    contexts = [oe.lookup(table, IDS + k)[1] for k in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)
    grads = jnp.ones((3, 2, 3, 2))
    assert oe.stats(oe.update(table, stacked, grads))["damaged_contexts"] == 0
    slots = stacked.slots.at[2, 5].add(1)
    assert_refused(table, dataclasses.replace(stacked, slots=slots), grads)


def test_one_of_two_lookups():
    table = trained()
    acts, ctx = oe.lookup(table, IDS)
    zeros = jax.tree.map(jnp.zeros_like, ctx)
    assert_refused(table, [ctx, zeros], [acts, acts])


@given(
    st.sampled_from([1, 3, 40]),  # each is compiled
    st.sampled_from(["int32", "int64"]),
    st.sampled_from([1, 3]),
    st.integers(0, 99),
)
def test_whole_contexts_pass(rows, key_type, num_tables, seed):
    """Of 32-bit and 64-bit ids, one table and several, a table id an id."""
    rng = np.random.default_rng(seed)
    table = make_table(
        1, key_type=key_type, num_tables=num_tables, padding_idx=0, capacity=30
    )
    ids = rng.integers(-20, 20, (rows, num_tables)).astype(key_type)
    each = rng.integers(-1, num_tables + 1, ids.shape)
    for tables in (None, each[0], each):
        acts, ctx = oe.lookup(table, ids, tables)
        table = oe.update(table, ctx, acts)
        assert np.isfinite(oe.global_norm(ctx, jnp.ones_like(acts)))
    stats = oe.stats(table)
    assert (stats["damaged_contexts"], stats["step"]) == (0, 3)


def gradient(table, scale=1.0):
    return oe.value_and_grad(
        lambda w, table: (w * oe.lookup(table, IDS)[0]).sum(), (0, 1)
    )(scale, table)[1]


def test_map_changes_the_gradients_alone():
    table = trained()
    _, grad = gradient(table)
    _, thrice = gradient(table, 3.0)
    mapped = grad.map(lambda g: 3.0 * g)
    assert bits(mapped) == bits(thrice)
    updated = oe.update(table, mapped)
    assert table_bits(updated) == table_bits(oe.update(table, thrice))


@pytest.mark.any_promotion
def test_optax_on_the_whole_gradient_is_refused():
    """Scaling a tree that holds a SparseGrad scales its ids too."""
    table = trained()
    grads = gradient(table, 3.0)
    halve = optax.scale(0.5)
    halved: Any = halve.update(grads, halve.init(grads))[0]
    with pytest.raises(TypeError, match=r"ctx=.*ids.*SparseGrad\.map"):
        oe.update(table, halved[1])


@pytest.mark.parametrize("field", ["ids", "table_ids", "slots", "counts"])
def test_a_context_of_another_dtype_or_shape(field):
    table = trained()
    acts, ctx = oe.lookup(table, IDS)
    leaf = getattr(ctx, field)
    shorter = leaf[..., :-1] if field != "table_ids" else jnp.tile(leaf, 3)
    for wrong in (leaf.astype(jnp.float32), shorter):
        damaged = dataclasses.replace(ctx, **{field: wrong})
        with pytest.raises((TypeError, ValueError), match=rf"ctx=.*{field}"):
            oe.update(table, damaged, acts)
        with pytest.raises((TypeError, ValueError), match=rf"ctx=.*{field}"):
            oe.global_norm(damaged, acts)


@pytest.mark.any_promotion
@pytest.mark.parametrize("size", [0.0, 1e-4, 10.0])
def test_the_clipping_recipe(size):
    """One norm over dense parameters and rows; zero gradients stay zero."""
    table = make_table(2, optimizer=oe.sgd(1.0))

    def loss(w, table):
        return size * (w * oe.lookup(table, [1, 2])[0]).sum()

    _, (g, g_table) = oe.value_and_grad(loss, (0, 1))(jnp.ones(2), table)
    norm = jnp.hypot(optax.tree.norm(g), oe.global_norm(g_table))
    scale = 1.0 / jnp.maximum(norm / 0.5, 1.0)
    after = oe.update(table, g_table, grad_scale=scale)
    moved = oe.get_rows(table, [1, 2]).embedding - oe.get_rows(after, [1, 2]).embedding
    total = np.hypot(np.linalg.norm(scale * g), np.linalg.norm(moved))
    np.testing.assert_allclose(total, min(norm, 0.5), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "change", [lambda x: -x, lambda x: ~x, lambda x: x | np.uint32(2**31)]
)
@pytest.mark.parametrize("field", [None, "index", "counters", "clock"])
def test_a_table_whose_arrays_were_changed(change, field):
    """It is of no use any more, but nothing reads or writes beside it."""
    table = train(make_table(4), np.arange(40), np.ones((40, 4), np.float32))
    assert oe.size(table) == 40
    if field is None:
        changed = jax.tree.map(change, table)
    else:
        changed = dataclasses.replace(table, **{field: change(getattr(table, field))})
    if field in (None, "counters"):
        for call in (oe.check, oe.stats, oe.grow, oe.items):
            with pytest.raises(
                oe.TableError, match=r"rows in a table of 64.*tree\.map"
            ):
                call(changed)
    else:
        assert oe.grow(changed).capacity == 128
        oe.get_rows(changed, np.arange(130))
    for _ in range(2):
        acts, ctx = oe.lookup(changed, np.arange(100, 130))
        changed = oe.update(changed, ctx, jnp.ones_like(acts))
    with pytest.raises(oe.TableError):
        oe.check(changed)
