"""Cached tables: what must be staged, who is stale, what a Store could not do."""

import errno
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax as oe
from helpers import (
    all_rows,
    assert_no_table_copy,
    bits,
    make_cached,
    make_table,
    train,
)
from oneemb_jax import cache
from oneemb_jax.store import StoreError

IDS = np.array([1, 2, 2, 3])
PACKED = oe.pack_ids(IDS)
GRADS = np.ones((4, 4), np.float32)


@pytest.fixture
def table(tmp_path):
    yield make_cached(tmp_path, 8)
    cache._close_all()


def row_of(table, identity):
    return oe.get_rows(table, [identity]).embedding[0].tolist()


def test_a_reserved_slot_is_no_row(table):
    table = oe.stage(table, IDS)
    acts, _ = oe.lookup(table, IDS)
    assert oe.size(table) == 0
    assert oe.stats(table)["cached_rows"] == 3
    assert not oe.get_rows(table, IDS).found.any()
    assert np.array_equal(acts, oe.get_rows(table, IDS).embedding)
    for i in range(4):
        table = oe.stage(table, IDS + 10 * (i + 1))
    assert oe.stats(table)["write_backs"] == 0
    assert all_rows(table) == {}


def test_unstaged_ids_read_nan_and_change_nothing(table):
    table = train(table, IDS, GRADS)
    before = all_rows(table), int(table.step[0]), int(table.generation[0])
    mixed = np.array([1, 2, 7, 3])
    acts, ctx = oe.lookup(table, mixed)
    assert np.isnan(acts[2]).all()
    assert not np.isnan(acts[np.array([0, 1, 3])]).any()
    table = oe.update(table, ctx, GRADS)
    assert (all_rows(table), int(table.step[0]), int(table.generation[0])) == before
    with pytest.raises(oe.TableError, match=r"2 ids were not in the cache.*oe\.stage"):
        oe.check(table)
    table = train(oe.reset_counters(table), mixed, GRADS)
    oe.check(table)
    assert oe.size(table) == 4


def test_what_read_nan_is_no_gradient_once_it_is_staged(table):
    table = train(table, IDS, GRADS)
    mixed = np.array([1, 2, 7, 3])
    before = all_rows(table)
    acts, ctx = oe.lookup(table, mixed)
    table = oe.stage(table, mixed)
    table = oe.update(table, ctx, acts)
    assert all_rows(table) == before
    assert oe.stats(table)["unstaged"] == 2


def test_a_kept_tables_lookup_is_no_gradient(table):
    kept = train(table, IDS, GRADS)
    table = train(jax.tree.map(jnp.copy, kept), IDS, GRADS)
    before = all_rows(table)
    acts, ctx = oe.lookup(kept, IDS)
    assert np.isnan(acts).all()
    assert all_rows(oe.update(table, ctx, acts)) == before


def test_a_lookup_alone_is_counted(table):
    acts, _ = jax.jit(oe.lookup)(table, PACKED)
    assert np.isnan(acts).all()
    with pytest.raises(oe.TableError, match="4 ids were not in the cache"):
        oe.check(table)


def test_padding_and_bad_tables_need_no_stage(tmp_path):
    table = make_cached(tmp_path, 8, num_tables=2, padding_idx=5)
    ids, tables = np.array([5, 1]), np.array([0, 9])
    acts, ctx = oe.lookup(table, ids, tables)
    assert not acts[0].any()
    assert np.isnan(acts[1]).all()
    table = oe.update(table, ctx, np.zeros_like(acts))
    assert oe.stats(table)["bad_table_ids"] == 1
    assert oe.stats(table)["unstaged"] == 0


@pytest.mark.parametrize("count", [8, 9])
def test_a_batch_larger_than_the_cache(table, count):
    ids = np.arange(count)
    if count <= table.capacity:
        oe.check(oe.stage(table, ids))
        return
    with pytest.raises(ValueError, match=r"batch of 9 ids.*budget_mb=0\.01 would do"):
        jax.eval_shape(oe.stage, table, oe.pack_ids(ids))


@given(dim=st.integers(1, 40), slots=st.integers(1, 10**7))
def test_the_budget_that_would_do_does(dim, slots):
    spec = make_table(dim, optimizer=oe.adam(0.1), capacity=1).spec
    budget = cache.budget_for(spec, slots)
    assert cache.cache_slots(spec, budget) >= slots
    assert cache.cache_bytes(spec, cache.cache_slots(spec, budget)) <= budget * 2**20


def test_any_rows_fit_whatever_their_hashes(tmp_path):
    """Cache after cache full of new ids, one slot short of none."""
    table = make_cached(tmp_path, 37)
    stage = jax.jit(oe.stage, donate_argnums=0)
    random = np.random.default_rng(0)
    for _ in range(100):
        ids = random.integers(0, 2**63, 37)
        table = stage(table, oe.pack_ids(ids))
        assert not np.isnan(oe.lookup(table, ids)[0]).any()
    oe.check(table)


def step(table, ids):
    table = oe.stage(table, ids)
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, acts), acts


def test_a_kept_table_is_stale(table):
    new, _ = jax.jit(step)(table, PACKED)
    rows = all_rows(new)
    acts, ctx = oe.lookup(table, IDS)
    assert np.isnan(acts).all()
    for stale in (oe.stage(table, IDS), oe.update(table, ctx, GRADS)):
        assert bits(stale.rows) == bits(table.rows)
        assert int(stale.generation[0]) == int(table.generation[0])
    for call in (oe.check, oe.size, oe.stats, oe.flush, lambda t: list(oe.items(t))):
        with pytest.raises(oe.TableError, match=r"generation 0, its Store at .* 2.*"):
            call(table)
    assert all_rows(new) == rows


def test_a_rollback_is_stale(table):
    """The step is skipped by selecting the old arrays: the Store has moved on."""

    @jax.jit
    def rolled(table, ids, keep):
        new, acts = step(table, ids)
        return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, table), acts

    table, _ = rolled(table, PACKED, True)
    oe.check(table)
    table, acts = rolled(table, PACKED, False)
    assert not np.isnan(acts).any()
    table, acts = rolled(table, PACKED, True)
    assert np.isnan(acts).all()
    with pytest.raises(oe.TableError, match=r"apply=False.*load_snapshot"):
        oe.check(table)


def test_apply_false_advances_neither_step_nor_generation(table):
    table = train(table, IDS, GRADS)
    before = all_rows(table)
    table = oe.stage(table, IDS)
    seen = int(table.step[0]), int(table.generation[0])
    _, ctx = oe.lookup(table, IDS)
    table = oe.update(table, ctx, GRADS, apply=False)
    assert (int(table.step[0]), int(table.generation[0])) == seen
    assert all_rows(train(table, [9], GRADS[:1]))[1] == before[1]


def test_two_tables_of_one_name(table, tmp_path):
    second = cache.init_cached(table.spec)
    second = train(second, IDS, GRADS)
    stale, acts = step(table, IDS)
    assert np.isnan(acts).all()
    with pytest.raises(oe.TableError, match="belongs to a Store that is gone"):
        oe.check(stale)
    oe.check(second)  # what was done to the other is no fault of this one
    assert oe.stats(second)["stale"] == 0
    assert sorted(all_rows(second)) == [1, 2, 3]


def test_a_closed_store(table):
    cache.close_cached(table.spec.name)
    table, acts = step(table, IDS)
    assert np.isnan(acts).all()
    with pytest.raises(oe.TableError, match="is closed"):
        oe.size(table)


def test_to_stage_again_gives_the_same_answer(table):
    """A kept table, staged once more for the same batch."""
    for i in range(3):
        table = train(table, IDS + 3 * i, GRADS)
    stage = jax.jit(oe.stage)
    first = stage(table, oe.pack_ids(IDS + 20))
    again = stage(table, oe.pack_ids(IDS + 20))
    assert bits(first) == bits(again)
    other = stage(table, oe.pack_ids(IDS + 30))
    assert int(other.generation[0]) == int(table.generation[0])
    after = train(again, IDS, GRADS)
    oe.check(after)
    late = stage(table, oe.pack_ids(IDS + 20))
    assert int(late.generation[0]) == int(table.generation[0])


def test_a_rematerialised_stage(table, tmp_path_factory):
    def rematerialised(table, weight, ids):
        @jax.checkpoint
        def loss(weight):
            staged = oe.stage(table, ids)
            acts, ctx = oe.lookup(staged, ids)
            return jnp.sum(jnp.tanh(acts @ weight) ** 2), (staged, ctx)

        (_, (staged, ctx)), grad = jax.value_and_grad(loss, has_aux=True)(weight)
        grads = jnp.ones((4, 4))
        return oe.update(staged, ctx, grads, after=grad), grad

    other = make_cached(tmp_path_factory.mktemp("plain"), 8)
    weight = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    for i in range(4):
        ids = oe.pack_ids(IDS + 3 * i)
        table, grad = jax.jit(rematerialised, donate_argnums=0)(table, weight, ids)
        assert np.isfinite(grad).all()
        other = train(other, IDS + 3 * i, GRADS)
    oe.check(table)
    assert all_rows(table) == all_rows(other)


@pytest.mark.parametrize("donate", [(), (0,)])
def test_scan(table, tmp_path_factory, donate):
    batches = np.stack([oe.pack_ids(IDS + 3 * i) for i in range(6)])
    scanned = jax.jit(lambda t, b: jax.lax.scan(step, t, b), donate_argnums=donate)
    table, acts = scanned(table, batches)
    oe.check(table)
    other = make_cached(tmp_path_factory.mktemp("other"), 8)
    for i in range(6):
        other, _ = step(other, IDS + 3 * i)
    assert np.isfinite(acts).all()
    assert all_rows(table) == all_rows(other)


@pytest.mark.parametrize("flag", [False, True])
def test_cond(table, flag):
    @jax.jit
    def branched(table, ids, flag):
        table = jax.lax.cond(flag, oe.stage, lambda t, _: t, table, ids)
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, acts), acts

    table, acts = branched(table, PACKED, flag)
    assert np.isnan(acts).all() == (not flag)
    assert oe.size(table) == (3 if flag else 0)


def test_a_read_without_an_edge_to_the_update(table):
    """XLA may run the update first, on a copy: the read is as good."""

    @jax.jit
    def evaluated(table, ids, others):
        table = oe.stage(table, ids)
        acts, ctx = oe.lookup(table, ids)
        new = oe.update(table, ctx, jnp.ones_like(acts))
        later = oe.stage(new, others + new.step[:, jnp.newaxis])
        return later, oe.lookup(table, ids + 0 * later.step[:, jnp.newaxis])[0], acts

    table, late, acts = evaluated(table, PACKED, PACKED)
    assert np.array_equal(late, acts)
    oe.check(table)


def test_no_copy_in_a_step(tmp_path):
    table = make_cached(tmp_path, 4096, 8)

    def loss(weight, acts):
        return jnp.sum(jnp.tanh(acts @ weight))

    def trained(table, ids, weight):
        table = oe.prefetch(oe.stage(table, ids), ids + 1)
        acts, ctx = oe.lookup(table, ids)
        value, grads = jax.value_and_grad(loss, (0, 1))(weight, acts)
        return oe.update(table, ctx, grads[1]), value, grads[0]

    weight = np.ones((8, 2), np.float32)
    assert_no_table_copy(trained, table, PACKED, weight)

    def scanned(table, batches):
        return jax.lax.scan(lambda t, i: trained(t, i, weight)[:2], table, batches)

    assert_no_table_copy(scanned, table, np.stack([PACKED] * 3))


def test_rows_that_a_later_batch_wants_are_evicted_last(table):
    oldest, newer = np.arange(3), np.arange(3, 6)
    for ids in (oldest, newer, *[np.arange(6, 8)] * 17):
        table = oe.stage(table, ids)
    announced = oe.prefetch(table, oldest)
    table = oe.stage(announced, np.arange(10, 13))  # there is no room
    # What it does to arrays it does to those of before as well, run again.
    assert bits(oe.prefetch(announced, oldest)) == bits(announced)
    before = oe.stats(table)
    table = oe.stage(table, oldest)
    after = oe.stats(table)
    assert after["cache_hits"] - before["cache_hits"] == 3
    assert after["victims"] == before["victims"] == 3
    # They go all the same where there is no other way.
    table = oe.stage(oe.prefetch(table, oldest), np.arange(20, 28))
    assert oe.stats(table)["cached_rows"] == 8
    oe.check(table)


def test_but_not_after_rows_that_this_step_has_staged(table):
    old, first, second = np.arange(4), np.arange(4, 8), np.arange(8, 12)
    # So that slots of `first` come first: of equal clocks they would go first.
    for ids in (first, old, *[old] * 17):
        table = oe.stage(table, ids)
    table = oe.prefetch(oe.stage(table, first), old)
    table = oe.stage(table, second)
    acts, ctx = oe.lookup(table, np.concatenate([first, second]))
    oe.check(oe.update(table, ctx, np.ones_like(acts)))


def test_stage_is_the_identity_in_device_memory():
    table = make_table(4)
    assert oe.stage(table, IDS) is table
    assert oe.prefetch(table, IDS) is table
    assert oe.flush(table) is table


def test_flush_leaves_nothing_dirty(table):
    table = train(table, IDS, GRADS)
    rows = all_rows(table)
    flushed = oe.flush(table)
    assert cache.store_of(flushed, "test").size() == 3
    for i in range(4):
        flushed = oe.stage(flushed, IDS + 10 * (i + 1))
    assert oe.stats(flushed)["write_backs"] == 0
    assert oe.size(flushed) == 3
    assert all_rows(flushed) == rows


def test_set_rows_beyond_the_cache(table):
    ids = np.arange(30)
    values = np.arange(120, dtype=np.float32).reshape(30, 4)
    table = oe.set_rows(table, ids, values)
    oe.check(table)
    assert oe.size(table) == 30
    assert np.array_equal(oe.get_rows(table, ids).embedding, values)
    table = oe.set_rows(table, [3, 3], [[1, 1, 1, 1], [2, 2, 2, 2]])
    assert row_of(table, 3) == [2, 2, 2, 2]


def test_grow_is_refused(table):
    with pytest.raises(ValueError, match="its store grows by itself"):
        oe.grow(table)


def test_a_full_store_loses_nothing(monkeypatch):
    """Dirty rows stay where they are when they cannot be written down."""
    monkeypatch.setattr(cache, "_UNBOUNDED", 64 << 10)
    with tempfile.TemporaryDirectory() as folder:
        table = make_cached(folder, 64, 256, kind="host_mem")
        ids = np.arange(64)
        grads = np.ones((64, 256), np.float32)
        for i in range(4):
            table = train(table, ids + 64 * i, grads)
        with pytest.raises(OSError, match="budget") as error:
            oe.check(table)
        assert error.value.errno == errno.ENOSPC
        with pytest.raises(oe.TableError, match=r"oe\.stage"):
            oe.check(table)
        first = oe.size(table)
        rows = oe.get_rows(table, np.arange(first))
        assert rows.found.all()
        assert len(all_rows(table)) == first
        with pytest.raises(OSError, match="budget"):
            oe.flush(table)
        assert len(all_rows(table)) == first
        cache.close_cached(table.spec.name)


def test_a_damaged_row_is_never_read(tmp_path):
    """It reads NaN, the next call on the host says so, the others are well."""
    table = make_cached(tmp_path, 4)
    for i in range(8):
        table = train(table, [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3], GRADS)
    table = oe.flush(table)
    rows = all_rows(table)
    for path in Path(tmp_path).rglob("*"):
        if path.is_file() and path.stat().st_size > 4096 and path.name != "LOCK":
            damage(path, oe.get_rows(table, [0]).embedding.tobytes())
    table = oe.stage(table, [0, 5])
    acts, _ = oe.lookup(table, [0, 5])
    assert np.isnan(acts[0]).all()
    assert acts[1].tolist() == rows[5]
    with pytest.raises(StoreError, match="id 0 of table 0"):
        oe.check(table)
    with pytest.raises(oe.TableError, match=r"1 ids were not in the cache"):
        oe.check(table)
    assert row_of(table, 5) == rows[5]
    with pytest.raises(StoreError, match="id 0 of table 0"):
        oe.get_rows(table, [0])
    cache.close_cached(table.spec.name)


def test_lost_rows_need_no_victims(tmp_path):
    """More were expected, whose rows must not go for nothing."""

    def embedding(options):
        return oe.MultiTableEmbedding(
            *("lost", 4, "float32", "int64"),
            optimizer=oe.sgd(0.1),
            store_options=options,
        )

    with embedding(oe.make_device_mem_store_options(capacity=1)) as plain:
        budget = cache.budget_for(plain.spec, 8)
    with embedding(oe.make_cached_ssd_store_options(budget, tmp_path)) as emb:
        emb.save_snapshot(train(emb.init(), [0, 1, 2, 3], GRADS), "rows")
        table = emb.load_snapshot("rows")
        table = train(table, [10, 11, 12, 13], GRADS)
        table = train(table, [14, 15, 14, 15], GRADS)
        rows = all_rows(table)
        for path in Path(tmp_path).rglob("*"):
            if path.is_file() and path.name != "LOCK":
                for i in (2, 3):
                    damage(path, np.array(rows[i], np.float32).tobytes())
        table = oe.stage(table, [0, 1, 2, 3])  # there is room for two of them
        with pytest.raises(StoreError, match="of table 0"):
            oe.check(table)
        for i in (0, 1, *range(10, 16)):
            assert row_of(table, i) == rows[i]


def damage(path, pattern):
    """Changes a byte where the pattern is in a file."""
    data = path.read_bytes()
    at = data.find(pattern)
    if at >= 0:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([data[at] ^ 1]))
