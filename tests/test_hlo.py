"""A compiled step holds no copy of a table-sized buffer.

Equal pointers prove nothing: XLA copies out and back. So the optimised program
is read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import assert_no_table_copy, make_table

IDS = oe.pack_ids(np.array([[1, 2, 2], [3, 1, 5]], np.int64))
OPTIMIZERS = [oe.sgd(0.1), oe.adagrad(0.1), oe.adam(0.1)]


@pytest.fixture
def table():
    return make_table(8, capacity=4096)


def loss_of(acts, weight):
    return jnp.sum(jnp.tanh(acts @ weight))


def step(table, ids, weight):
    acts, ctx = oe.lookup(table, ids)
    loss, (g_weight, g_acts) = jax.value_and_grad(
        lambda weight, acts: loss_of(acts, weight), argnums=(0, 1)
    )(weight, acts)
    return oe.update(table, ctx, g_acts), loss, g_weight


WEIGHT = np.ones((8, 2), np.float32)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_step(optimizer):
    table = make_table(8, capacity=4096, optimizer=optimizer)
    assert_no_table_copy(step, table, IDS, WEIGHT)


def test_linear_loss(table):
    """The gradient does not depend on the rows that were read."""

    def linear(table, ids):
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, jnp.ones_like(acts)), acts.sum()

    assert_no_table_copy(linear, table, IDS)


def test_two_lookups(table):
    def two(table, ids):
        first, ctx = oe.lookup(table, ids)
        second, ctx2 = oe.lookup(table, ids[..., ::-1, :])
        grads = [jnp.cos(second), jnp.ones_like(first)]
        return oe.update(table, [ctx, ctx2], grads), first.sum()

    assert_no_table_copy(two, table, IDS)


def test_two_updates(table):
    def two(table, ids):
        for _ in range(2):
            acts, ctx = oe.lookup(table, ids)
            table = oe.update(table, ctx, acts)
        return table

    assert_no_table_copy(two, table, IDS)


def test_scan(table):
    def scanned(table, batches):
        def body(table, ids):
            table, loss, _ = step(table, ids, WEIGHT)
            return table, loss

        return jax.lax.scan(body, table, batches)

    assert_no_table_copy(scanned, table, np.stack([IDS] * 5))


def test_scan_with_linear_loss(table):
    def scanned(table, batches):
        def body(table, ids):
            acts, ctx = oe.lookup(table, ids)
            return oe.update(table, ctx, jnp.ones_like(acts)), acts.sum()

        return jax.lax.scan(body, table, batches)

    assert_no_table_copy(scanned, table, np.stack([IDS] * 5))


def test_accumulation(table):
    def accumulated(table, batches):
        def body(carry, ids):
            acts, ctx = oe.lookup(table, ids)
            return carry, (ctx, jnp.cos(acts))

        _, (ctx, grads) = jax.lax.scan(body, 0, batches)
        return oe.update(table, ctx, grads)

    assert_no_table_copy(accumulated, table, np.stack([IDS] * 5))


def test_cond(table):
    """With the update in the branch that is taken when true.

    With the branches the other way round XLA copies (docs/faq.md): ``apply=``
    never does.
    """

    def branched(table, ids, flag):
        acts, ctx = oe.lookup(table, ids)
        return jax.lax.cond(
            flag,
            lambda table: oe.update(table, ctx, jnp.cos(acts)),
            lambda table: table,
            table,
        )

    assert_no_table_copy(branched, table, IDS, np.bool_(True))


def test_apply(table):
    def applied(table, ids, flag):
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, jnp.cos(acts), apply=flag)

    assert_no_table_copy(applied, table, IDS, np.bool_(True))


def test_checkpoint_around_the_loss(table):
    def rematerialised(table, ids, weight):
        acts, ctx = oe.lookup(table, ids)
        inner = jax.checkpoint(loss_of)
        loss, g_acts = jax.value_and_grad(inner)(acts, weight)
        return oe.update(table, ctx, g_acts), loss

    assert_no_table_copy(rematerialised, table, IDS, WEIGHT)


def test_checkpoint_around_the_lookup(table):
    def rematerialised(table, ids, weight):
        acts, ctx = jax.checkpoint(oe.lookup)(table, ids)
        loss, g_acts = jax.value_and_grad(loss_of)(acts, weight)
        return oe.update(table, ctx, g_acts), loss

    assert_no_table_copy(rematerialised, table, IDS, WEIGHT)


@pytest.mark.parametrize("linear", [False, True])
def test_value_and_grad(table, linear):
    def with_sugar(table, ids, weight):
        def loss(weight, table):
            first, _ = oe.lookup(table, ids)
            second, _ = oe.lookup(table, ids)
            acts = first + second
            return acts.sum() if linear else loss_of(acts, weight)

        value, (_, grad) = oe.value_and_grad(loss, (0, 1))(weight, table)
        return oe.update(table, grad), value

    assert_no_table_copy(with_sugar, table, IDS, WEIGHT)


def test_clipping(table):
    def clipped(table, ids, weight):
        acts, ctx = oe.lookup(table, ids)
        loss, g_acts = jax.value_and_grad(loss_of)(acts, weight)
        norm = oe.global_norm(ctx, g_acts)
        return oe.update(table, ctx, g_acts, grad_scale=1 / norm), loss

    assert_no_table_copy(clipped, table, IDS, WEIGHT)


def test_the_helper_sees_a_copy(table):
    """Reading the old table after the update forces one."""

    def copying(table, ids):
        acts, ctx = oe.lookup(table, ids)
        new = oe.update(table, ctx, jnp.ones_like(acts))
        return new, oe.lookup(table, ids + new.step[0])[0]

    with pytest.raises(AssertionError, match="copy"):
        assert_no_table_copy(copying, table, IDS)


def test_nothing_grows_with_the_table(table):
    """No fresh array of the rows' shape, as a dense gradient would be."""

    def dense(table, ids):
        rows = jax.lax.bitcast_convert_type(table.rows, jnp.float32) * 2.0
        rows = jax.lax.bitcast_convert_type(rows, jnp.uint32)
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, acts), rows

    with pytest.raises(AssertionError):
        assert_no_table_copy(dense, table, IDS)
