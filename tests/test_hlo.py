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


def test_an_extra_lookup(table):
    """A read for evaluation, whose context no update would take."""

    def evaluated(table, ids, others):
        acts, ctx = oe.lookup(table, ids)
        metric, seen = oe.lookup(table, others)
        return oe.update(table, ctx, jnp.cos(acts), after=seen), metric

    assert_no_table_copy(evaluated, table, IDS, IDS + 7)


@pytest.mark.parametrize("linear", [False, True])
def test_two_updates_of_earlier_lookups(table, linear):
    def two(table, ids, others):
        acts, ctx = oe.lookup(table, ids)
        acts2, ctx2 = oe.lookup(table, others)
        grad = jnp.ones_like if linear else jnp.cos
        table = oe.update(table, ctx, grad(acts), after=[ctx2])
        return oe.update(table, ctx2, grad(acts2)), acts.sum() + acts2.sum()

    assert_no_table_copy(two, table, IDS, IDS + 3)


def test_after_accumulated_lookups(table):
    def evaluated(table, batches):
        def body(carry, ids):
            acts, ctx = oe.lookup(table, ids)
            return carry + acts.sum(), ctx

        total, seen = jax.lax.scan(body, 0.0, batches)
        acts, ctx = oe.lookup(table, batches[0])
        return oe.update(table, ctx, jnp.cos(acts), after=seen), total

    assert_no_table_copy(evaluated, table, np.stack([IDS] * 4))


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

    With the branches the other way round, or an update in both, XLA copies
    (docs/faq.md): ``apply=`` never does.
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


def test_a_lookup_inside_of_a_checkpointed_loss(table):
    """The way back reads the table again; the dense gradient tells when."""

    def rematerialised(table, ids, weight):
        @jax.checkpoint
        def loss(weight):
            acts, ctx = oe.lookup(table, ids)
            return loss_of(acts, weight), ctx

        (value, ctx), g_weight = jax.value_and_grad(loss, has_aux=True)(weight)
        grads = jnp.ones((2, 3, 8))
        return oe.update(table, ctx, grads, after=g_weight), value, g_weight

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
        scale = 1 / jnp.maximum(norm / 0.5, 1)
        return oe.update(table, ctx, g_acts, grad_scale=scale), loss

    assert_no_table_copy(clipped, table, IDS, WEIGHT)


def test_the_helper_sees_a_copy(table):
    """Reading the old table after the update forces one."""

    def copying(table, ids):
        acts, ctx = oe.lookup(table, ids)
        new = oe.update(table, ctx, jnp.ones_like(acts))
        return new, oe.lookup(table, ids + new.step[0])[0]

    with pytest.raises(AssertionError, match="copy"):
        assert_no_table_copy(copying, table, IDS)


@pytest.mark.parametrize("capacity", [4096, 1_000_000])
def test_memory_of_a_step(capacity):
    """Beside the table, a step needs what its inputs and outputs need."""
    table = make_table(8, capacity=capacity)
    compiled = jax.jit(step, donate_argnums=0).lower(table, IDS, WEIGHT).compile()
    memory = compiled.memory_analysis()
    if memory is None:
        pytest.skip("this backend tells nothing of its memory")
    table_bytes = oe.stats(table)["bytes"]
    dense_bytes = IDS.nbytes + WEIGHT.nbytes + 4 * 8 * IDS.size // 2
    assert memory.alias_size_in_bytes > 0.99 * table_bytes
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert outside - 2 * memory.alias_size_in_bytes < 2 * dense_bytes
    assert memory.temp_size_in_bytes < 2000 + 4 * dense_bytes


def test_nothing_grows_with_the_table(table):
    """No fresh array of the rows' shape, as a dense gradient would be."""

    def dense(table, ids):
        rows = jax.lax.bitcast_convert_type(table.rows, jnp.float32) * 2.0
        rows = jax.lax.bitcast_convert_type(rows, jnp.uint32)
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, acts), rows

    with pytest.raises(AssertionError):
        assert_no_table_copy(dense, table, IDS)
