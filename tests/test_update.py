"""update: sums, insertion, scalars, microbatches, and what is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax as oe
from helpers import bits, make_table, table_bits, train

FLOATS = (jnp.bfloat16, jnp.float32)


def tree_sum(terms):
    """Sums float32 rows in blocks of 32, then the sums likewise."""
    terms = [np.asarray(term, np.float32) for term in terms]
    while len(terms) > 1:
        blocks = [terms[i : i + 32] for i in range(0, len(terms), 32)]
        terms = []
        for block in blocks:
            total = block[0]
            for term in block[1:]:
                total = total + term
            terms.append(total)
    return terms[0]


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=200),
    st.integers(0, 2**31),
    st.sampled_from([1, 3, 16]),
)
def test_duplicates_are_summed_by_the_tree(ids, seed, dim):
    table = make_table(dim)
    rng = np.random.default_rng(seed)
    ids = np.array(ids)
    grads = rng.standard_normal((len(ids), dim)).astype(np.float32)
    before, _ = oe.lookup(table, ids)
    after, _ = oe.lookup(train(table, ids, grads), ids)
    for i, key in enumerate(ids):
        total = tree_sum(grads[ids == key])
        wanted = np.asarray(before[i]) - np.float32(0.5) * total
        np.testing.assert_array_equal(after[i], wanted)


def test_ten_thousand_duplicates():
    table = make_table(3)
    rng = np.random.default_rng(1)
    grads = rng.standard_normal((10_001, 3)).astype(np.float32)
    after = train(table, np.zeros(10_001, np.int64), grads)
    wanted = oe.get_rows(table, [0]).embedding[0] - np.float32(0.5) * tree_sum(grads)
    np.testing.assert_array_equal(oe.get_rows(after, [0]).embedding[0], wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_gradients_are_summed_in_float32(dtype):
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 5, 300)
    narrow = jnp.asarray(rng.standard_normal((300, 7)), dtype)
    table = make_table(7)
    wide = narrow.astype(jnp.float32)
    assert table_bits(train(table, ids, narrow)) == table_bits(train(table, ids, wide))


def test_gradients_of_two_dtypes_are_summed_in_float32():
    table = make_table(3)
    _, ctx = oe.lookup(table, [1, 2])
    grads = np.random.default_rng(3).standard_normal((2, 2, 3)).astype(np.float32)
    narrow = jnp.asarray(grads[1], jnp.bfloat16)
    mixed = oe.update(table, [ctx, ctx], [grads[0], narrow])
    wide = oe.update(table, [ctx, ctx], [grads[0], narrow.astype(jnp.float32)])
    assert table_bits(mixed) == table_bits(wide)
    norms = [oe.global_norm([ctx, ctx], [grads[0], narrow.astype(t)]) for t in FLOATS]
    assert norms[0] == norms[1]


def test_float16_extremes():
    values = jnp.array([65504.0, 6e-8, -0.0, 6.1e-5], jnp.float16)
    table = make_table(4, initializer=oe.make_constant_initializer(0.0))
    table = train(table, [1], values[jnp.newaxis])
    wanted = -0.5 * np.asarray(values, np.float32)
    np.testing.assert_array_equal(oe.get_rows(table, [1]).embedding[0], wanted)


def test_subnormal_numbers_are_kept():
    """XLA's own threads flush them to zero; a GPU does not."""
    tiny = np.float32(1e-40)
    table = make_table(3, initializer=oe.make_constant_initializer(3e-40))
    table = train(
        table, np.zeros(5000, int), np.full((5000, 3), np.float32(tiny / 1000))
    )
    row = oe.get_rows(table, [0]).embedding[0]
    grads = np.full((5000, 1), np.float32(tiny / 1000))
    wanted = np.float32(3e-40) - np.float32(0.5) * tree_sum(grads)
    assert wanted != 0.0
    np.testing.assert_array_equal(row, np.repeat(wanted, 3))


def test_rows_that_are_not_looked_up_do_not_move():
    table = make_table(4, optimizer=oe.adam(0.1), capacity=100)
    grads = np.ones((10, 4), np.float32)
    for _ in range(3):
        table = train(table, np.arange(10), grads)
    before = oe.get_rows(table, np.arange(10))
    table = train(table, np.arange(5), grads[:5])
    after = oe.get_rows(table, np.arange(10))
    np.testing.assert_array_equal(before.embedding[5:], after.embedding[5:])
    np.testing.assert_array_equal(before.state["m"][5:], after.state["m"][5:])
    assert (before.embedding[:5] != after.embedding[:5]).all()


class TestMicrobatches:
    def ids(self):
        return np.random.default_rng(4).integers(0, 30, (4, 6, 3))

    def table(self):
        return make_table(5, optimizer=oe.adagrad(0.1), num_tables=3, capacity=200)

    def grads(self):
        rng = np.random.default_rng(5)
        return rng.standard_normal((4, 6, 3, 5)).astype(np.float32)

    def test_a_stack_equals_one_big_batch(self):
        table, ids, grads = self.table(), self.ids(), self.grads()

        @jax.jit
        def accumulate(table, ids, grads):
            def body(carry, batch):
                ids, grad = batch
                _, ctx = oe.lookup(table, ids)
                return carry, (ctx, grad)

            _, (ctx, grads) = jax.lax.scan(body, 0, (ids, grads))
            return oe.update(table, ctx, grads)

        stacked = accumulate(table, oe.pack_ids(ids), grads)
        whole = train(table, ids.reshape(24, 3), grads.reshape(24, 3, 5))
        assert table_bits(stacked) == table_bits(whole)

    def test_a_stack_with_table_ids_of_its_own(self):
        table, ids, grads = self.table(), self.ids(), self.grads()
        tables = np.random.default_rng(6).integers(0, 3, ids.shape)
        contexts = [oe.lookup(table, ids[k], tables[k])[1] for k in range(4)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)
        one = oe.update(table, stacked, grads)
        whole = train(
            table,
            ids.reshape(24, 3),
            grads.reshape(24, 3, 5),
            table_ids=tables.reshape(24, 3),
        )
        assert table_bits(one) == table_bits(whole)

    def test_a_list_equals_one_big_batch(self):
        table, ids, grads = self.table(), self.ids(), self.grads()
        contexts = [oe.lookup(table, ids[k])[1] for k in range(4)]
        listed = oe.update(table, contexts, list(grads))
        whole = train(table, ids.reshape(24, 3), grads.reshape(24, 3, 5))
        assert table_bits(listed) == table_bits(whole)
        assert oe.stats(listed)["step"] == 1


def test_contexts_of_an_older_table_find_their_rows():
    table = make_table(2)
    table = train(table, [1, 2], np.zeros((2, 2), np.float32))
    acts, ctx = oe.lookup(table, np.array([2, 5]))
    table = train(table, [9, 8, 7], np.zeros((3, 2), np.float32))  # inserts
    table = oe.update(table, ctx, jnp.ones_like(acts))
    after, _ = oe.lookup(table, np.array([2, 5]))
    np.testing.assert_array_equal(after, np.asarray(acts) - np.float32(0.5))
    assert oe.size(table) == 6


def test_after_changes_no_value():
    table = make_table(2)
    acts, ctx = oe.lookup(table, np.array([2, 5]))
    _, other = oe.lookup(table, np.array([9, 2, 7]))
    plain = oe.update(table, ctx, acts)
    for after in (other, [other, ctx], (), {"a": other, "b": acts}, acts):
        assert table_bits(oe.update(table, ctx, acts, after=after)) == table_bits(plain)
    assert oe.size(plain) == 2
    stranger = oe.lookup(make_table(2, seed=8), [1])[1]
    with pytest.raises(ValueError, match=r"update.after=.*differs.*seed"):
        oe.update(table, ctx, acts, after=stranger)
    with pytest.raises(TypeError, match=r"update.after=.*no array"):
        oe.update(table, ctx, acts, after="x")


def test_contexts_of_another_branch_find_their_rows():
    """Two histories give the same slot to different ids."""
    base = make_table(2)
    left = train(base, [1, 2], np.zeros((2, 2), np.float32))
    right = train(base, [2, 1], np.zeros((2, 2), np.float32))
    acts, ctx = oe.lookup(left, np.array([1]))
    right = oe.update(right, ctx, jnp.ones_like(acts))
    rows = oe.get_rows(right, [1, 2]).embedding
    initial, _ = oe.lookup(base, np.array([1, 2]))
    np.testing.assert_array_equal(rows[0], np.asarray(initial[0]) - np.float32(0.5))
    np.testing.assert_array_equal(rows[1], initial[1])


def test_a_context_survives_growth():
    table = train(make_table(2, capacity=4), [1, 2], np.zeros((2, 2), np.float32))
    acts, ctx = oe.lookup(table, np.array([1, 9]))
    table = oe.update(oe.grow(table), ctx, jnp.ones_like(acts))
    after, _ = oe.lookup(table, np.array([1, 9]))
    np.testing.assert_array_equal(after, np.asarray(acts) - np.float32(0.5))


class TestCapacity:
    def full(self):
        table = make_table(1, capacity=3)
        return table, train(table, [9, 5, 9, 7, 4, 5, 8], np.ones((7, 1), np.float32))

    def test_admission_in_order_of_first_occurrence(self):
        empty, table = self.full()
        ids = np.array([9, 5, 7, 4, 8])
        initial = np.asarray(oe.lookup(empty, ids)[0])[:, 0]
        rows = oe.get_rows(table, ids)
        np.testing.assert_array_equal(rows.found, [True, True, True, False, False])
        np.testing.assert_array_equal(
            rows.embedding[:, 0],
            initial - np.array([1.0, 1.0, 0.5, 0.0, 0.0], np.float32),
        )

    def test_overflow_is_counted_and_raised_by_check(self):
        _, table = self.full()
        stats = oe.stats(table)
        assert (stats["rows"], stats["overflows"], stats["load"]) == (3, 2, 1.0)
        with pytest.raises(oe.TableError, match=r"2 gradients were dropped.*oe\.grow"):
            oe.check(table)

    def test_growing_makes_room(self):
        _, table = self.full()
        table = oe.grow(table)
        oe.check(table)
        table = train(table, [4, 8], np.ones((2, 1), np.float32))
        oe.check(table)
        assert (oe.size(table), table.capacity) == (5, 6)

    @pytest.mark.parametrize("capacity", [1, 2, 3, 5, 100, 1000])
    def test_capacity_is_honoured_to_the_last_row(self, capacity):
        table = make_table(1, capacity=capacity)
        ids = np.random.default_rng(capacity).permutation(capacity)
        table = train(table, ids, np.ones((capacity, 1), np.float32))
        oe.check(table)
        assert oe.size(table) == capacity
        assert oe.get_rows(table, ids).found.all()
        table = train(table, [-1], np.ones((1, 1), np.float32))
        assert oe.stats(table)["overflows"] == 1

    def test_index_bytes_a_row(self):
        table = make_table(1, capacity=100_000)
        stats = oe.stats(table)
        assert stats["index_bytes"] == table.index.nbytes <= 24 * 100_000
        assert stats["clock_bytes"] == table.clock.nbytes == 4 * 100_000

    def test_a_fuller_index_of_a_table_that_was_saved(self):
        table = make_table(2, capacity=1000)
        fuller = dataclasses.replace(table, index=jnp.zeros((313, 16), jnp.uint32))
        ids = np.random.default_rng(3).permutation(1000)
        grads = np.ones((1000, 2), np.float32)
        wanted = oe.get_rows(train(table, ids, grads), ids)
        found = train(fuller, ids, grads)
        assert found.index.shape == fuller.index.shape
        assert oe.size(found) == 1000
        np.testing.assert_array_equal(
            oe.get_rows(found, ids).embedding, wanted.embedding
        )
        assert oe.grow(found).index.shape == (750, 16)


class TestScalars:
    def test_learning_rate_of_the_call(self):
        table = make_table(2)
        grads = np.ones((1, 2), np.float32)
        initial = oe.get_rows(table, [1]).embedding
        once = train(table, [1], grads, learning_rate=0.25)
        np.testing.assert_array_equal(
            oe.get_rows(once, [1]).embedding, initial - np.float32(0.25)
        )

    def test_rates_do_not_retrace(self):
        traces = []

        @jax.jit
        def step(table, ids, rate):
            traces.append(1)
            acts, ctx = oe.lookup(table, ids)
            return oe.update(table, ctx, acts, learning_rate=rate)

        table = make_table(2)
        for rate in (0.1, 0.2, 0.3):
            table = step(table, oe.pack_ids([1, 2]), np.float32(rate))
        assert len(traces) == 1

    def test_a_number_is_data_not_code(self):
        """Tables that differ in the rate alone share one compiled step."""
        traces = []

        @jax.jit
        def step(table, ids):
            traces.append(1)
            _, ctx = oe.lookup(table, ids)
            return oe.update(table, ctx, jnp.ones((1, 2)))

        initial = oe.make_constant_initializer(1.0)
        for rate in (0.5, 0.25):
            table = make_table(2, optimizer=oe.sgd(rate), name="n", initializer=initial)
            table = step(table, oe.pack_ids([1]))
            assert oe.get_rows(table, [1]).embedding[0, 0] == 1.0 - rate
        assert len(traces) == 1

    @pytest.mark.any_promotion
    def test_schedule_of_the_tables_own_step(self):
        schedule = optax.piecewise_constant_schedule(1.0, {2: 0.5, 3: 0.5})
        table = make_table(
            1, optimizer=oe.sgd(schedule), initializer=oe.make_constant_initializer(0.0)
        )
        traces = []

        @jax.jit
        def step(table, ids):
            traces.append(1)
            _, ctx = oe.lookup(table, ids)
            return oe.update(table, ctx, jnp.ones((1, 1)))

        seen = [0.0]
        for _ in range(5):
            table = step(table, oe.pack_ids([1]))
            seen.append(float(oe.get_rows(table, [1]).embedding[0, 0]))
        rates = np.array([schedule(t) for t in range(5)])
        np.testing.assert_allclose(-np.diff(seen), rates)
        assert len(traces) == 1

    @pytest.mark.parametrize("rate", [-0.1, np.nan, np.inf, -np.inf])
    def test_a_bad_rate(self, rate):
        table = train(make_table(2), [1], np.ones((1, 2), np.float32))
        _, ctx = oe.lookup(table, np.array([1, 2]))
        grads = jnp.ones((2, 2))
        with pytest.raises(ValueError, match="update\\(learning_rate="):
            oe.update(table, ctx, grads, learning_rate=rate)
        traced = jax.jit(lambda rate: oe.update(table, ctx, grads, learning_rate=rate))
        after = traced(np.float32(rate))
        assert bits((after.rows[:1], after.index, after.step)) == bits(
            (table.rows[:1], table.index, table.step)
        )
        with pytest.raises(oe.TableError, match=r"1 updates changed.*reset_counters"):
            oe.check(after)
        acknowledged = oe.reset_counters(after)
        oe.check(acknowledged)
        assert oe.size(acknowledged) == 1

    def test_grad_scale_scales_the_sum(self):
        table = make_table(2)
        grads = np.full((4, 2), 8.0, np.float32)
        scaled = train(table, [1, 1, 2, 1], grads, grad_scale=1 / 1024)
        plain = train(table, [1, 1, 2, 1], grads / 1024)
        assert table_bits(scaled) == table_bits(plain)

    def test_apply_false_changes_nothing(self):
        table = train(
            make_table(2, optimizer=oe.adam(0.1)),
            [1],
            np.ones((1, 2)),
        )
        acts, ctx = oe.lookup(table, np.array([1, 2]))
        same = jax.jit(oe.update)(table, ctx, jnp.ones_like(acts), apply=np.False_)
        assert table_bits(same) == table_bits(table)
        moved = jax.jit(oe.update)(table, ctx, jnp.ones_like(acts), apply=np.True_)
        assert oe.size(moved) == 2

    def test_skipping_steps_that_are_not_finite(self):
        @jax.jit
        def step(table, ids, grads):
            _, ctx = oe.lookup(table, ids)
            return oe.update(table, ctx, grads, apply=jnp.isfinite(grads).all())

        table = make_table(2)
        ids = oe.pack_ids([1, 2])
        table = step(table, ids, np.array([[1, 1], [1, np.nan]], np.float32))
        assert oe.size(table) == 0
        table = step(table, ids, np.ones((2, 2), np.float32))
        assert oe.size(table) == 2


def test_non_finite_gradients_are_applied_and_counted():
    table = make_table(3)
    grads = np.array([[0, np.inf, 0], [0, 0, np.nan], [1, 1, 1]], np.float32)
    table = train(table, [1, 1, 2], grads)
    assert oe.stats(table)["non_finite_gradients"] == 2
    rows = oe.get_rows(table, [1, 2]).embedding
    assert np.isinf(rows[0, 1])
    assert np.isnan(rows[0, 2])
    assert np.isfinite(rows[1]).all()
    oe.check(table)


@pytest.mark.parametrize(
    ("grad", "scale"), [(3e38, 1.0), (1.0, np.nan), (1.0, np.inf), (0.0, -np.inf)]
)
def test_sums_that_are_not_finite_are_counted(grad, scale):
    """Finite gradients, which overflow as they are added or scaled."""
    table = make_table(3)
    _, ctx = oe.lookup(table, [1, 1, 2])
    grads = jnp.full((3, 3), grad).at[2].set(0.5)
    step = jax.jit(lambda scale: oe.update(table, ctx, grads, grad_scale=scale))
    after = step(np.float32(scale))
    assert oe.stats(after)["non_finite_gradients"] == (1 if scale == 1.0 else 2)
    assert not np.isfinite(oe.get_rows(after, [1]).embedding).any()
    oe.check(after)


@pytest.mark.parametrize("rate", [1e-46, 1e-45, 1e-40, 1.1754942e-38])
def test_ftrl_with_a_rate_too_small_to_divide_by(rate):
    table = make_table(3, optimizer=oe.ftrl(0.1, lambda1=0.1))
    table = train(table, [1], np.ones((1, 3), np.float32))
    after = train(table, [1], np.ones((1, 3), np.float32), learning_rate=rate)
    assert bits(oe.get_rows(after, [1])) == bits(oe.get_rows(table, [1]))


def test_counts_of_hits_and_misses():
    table = make_table(1)
    for ids in ([1, 2, 3], [1, 2, 9, 9]):
        table = train(table, ids, np.ones((len(ids), 1), np.float32))
    stats = oe.stats(table)
    assert (stats["hits"], stats["misses"], stats["inserts"]) == (2, 5, 4)
    assert stats["hit_rate"] == 2 / 7


class TestGlobalNorm:
    @given(st.lists(st.integers(0, 6), min_size=1, max_size=100), st.booleans())
    def test_is_the_norm_of_summed_rows(self, ids, seen):
        table = make_table(3)
        ids = np.array(ids)
        if seen:
            table = train(table, np.arange(4), np.zeros((4, 3), np.float32))
        rng = np.random.default_rng(len(ids))
        grads = rng.standard_normal((len(ids), 3)).astype(np.float32)
        _, ctx = oe.lookup(table, ids)
        sums = [grads[ids == key].astype(np.float64).sum(0) for key in np.unique(ids)]
        wanted = np.sqrt(np.sum(np.square(sums)))
        np.testing.assert_allclose(oe.global_norm(ctx, grads), wanted, rtol=1e-5)

    def test_needs_no_row_and_ignores_padding(self):
        table = make_table(2, padding_idx=0, num_tables=2)
        _, ctx = oe.lookup(table, np.array([0, 4, 4]), np.array([0, 0, 9]))
        grads = np.array([[9, 9], [3, 4], [9, 9]], np.float32)
        assert float(oe.global_norm(ctx, grads)) == 5.0

    def test_does_not_depend_on_what_the_table_holds(self):
        rng = np.random.default_rng(7)
        ids = rng.integers(0, 1000, 5000)
        grads = rng.standard_normal((5000, 9)).astype(np.float32)
        norms = set()
        table = make_table(9, capacity=2000)
        for known in ([], np.arange(500), np.arange(1000)[::-1]):
            part = np.array(known, np.int64)
            table = train(table, part, np.zeros((len(part), 9), np.float32))
            _, ctx = oe.lookup(table, ids)
            norms.add(float(oe.global_norm(ctx, grads)))
        assert len(norms) == 1

    def test_joins_optax(self):
        table = make_table(2)
        _, ctx = oe.lookup(table, np.array([1, 1]))
        grads = np.array([[3, 0], [0, 4]], np.float32)
        norm = jnp.hypot(
            optax.tree.norm({"w": jnp.array([12.0])}), oe.global_norm(ctx, grads)
        )
        np.testing.assert_allclose(norm, 13.0, rtol=1e-6)

    def test_nothing_looked_up(self):
        _, ctx = oe.lookup(make_table(2), np.zeros((0,), np.int64))
        assert float(oe.global_norm(ctx, jnp.zeros((0, 2)))) == 0.0
