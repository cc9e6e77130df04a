"""Tiers change speed, never values: the same run on every store, bit by bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import make_cached, make_table
from oneemb_jax import snapshot_files
from oneemb_jax.cache import close_cached
from oneemb_jax.snapshot import read_table

STEPS, BATCH, TABLES, DIM, IDS = 200, 8, 3, 4, 300
WORST = BATCH * TABLES
OPTIMIZERS = {
    "sgd": oe.sgd(0.1, momentum=0.9),
    "adagrad": oe.adagrad(0.1),
    "rowwise": oe.rowwise_adagrad(0.1),
    "adam": oe.adam(0.01),
    "smart_decay": oe.smart_decay_adam(0.01),
}


def batches():
    """Zipf ids, of which some are in no earlier batch to the end."""
    random = np.random.default_rng(11)
    ids = random.zipf(1.2, (STEPS, BATCH, TABLES)) % IDS
    # Ids beyond 32 bits; 2**64 - 1 is 0 here, as int64.
    return oe.pack_ids(ids.astype(np.int64) * (2**33 + 1) - 1)


def loss_of(weight, acts):
    return jnp.mean(jnp.tanh(acts.reshape(BATCH, -1) @ weight) ** 2)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(table, weight, ids, later=None):
    table = oe.stage(table, ids)
    if later is not None:
        table = oe.prefetch(table, later)
    acts, ctx = oe.lookup(table, ids)
    loss, (g_weight, g_acts) = jax.value_and_grad(loss_of, (0, 1))(weight, acts)
    table = oe.update(table, ctx, g_acts)
    return table, weight - jnp.float32(0.1) * g_weight, loss


def resumed(table):
    """The table, by way of a snapshot; the cache is empty then."""
    path = oe.save_snapshot(table, "half")
    parts = snapshot_files.open_parts([path])
    return read_table(table.spec, parts, None, None, (), None, "test")


def run(table, depth=0, resume=False):
    """All that a run leaves: losses, weights, rows with their state, counts."""
    weight = jnp.linspace(-1, 1, TABLES * DIM * 2, dtype=jnp.float32)
    weight = weight.reshape(TABLES * DIM, 2)
    losses = []
    every = batches()
    for t, ids in enumerate(every):
        if resume and t == STEPS // 2:
            table = resumed(table)
        later = every[min(t + depth, STEPS - 1)] if depth else None
        table, weight, loss = step(table, weight, ids, later)
        losses.append(loss)
    oe.check(table)
    known = np.repeat(np.arange(IDS + 3)[:, np.newaxis], TABLES, 1)
    rows = oe.get_rows(table, known.astype(np.int64) * (2**33 + 1) - 1)
    counts = {n: oe.stats(table)[n] for n in ("rows", "hits", "misses", "inserts")}
    state = [rows.state[name].tobytes() for name in sorted(rows.state)]
    arrays = (np.array(losses), np.array(weight), rows.embedding, rows.found)
    return [array.tobytes() for array in arrays], state, counts, table


@functools.cache
def expected(optimizer):
    table = make_table(
        DIM,
        capacity=2000,
        num_tables=TABLES,
        name="tiers",
        optimizer=OPTIMIZERS[optimizer],
    )
    return run(table)[:3]


def cached(folder, slots, optimizer="adagrad", **options):
    return make_cached(
        folder,
        slots,
        DIM,
        num_tables=TABLES,
        name="tiers",
        optimizer=OPTIMIZERS[optimizer],
        **options,
    )


@pytest.fixture(autouse=True)
def closed():
    yield
    close_cached("tiers")


STORES = [("host_mem", 0), ("ssd", 0), ("ssd", 0.1)]


def same_bits(folder, kind, host_cache, factor, **options):
    """Runs on this store and budget as in device memory; the table's figures."""
    slots = int(WORST * factor)
    table = cached(folder, slots, kind=kind, host_cache_mb=host_cache)
    *found, table = run(table, **options)
    assert tuple(found) == expected("adagrad")
    return oe.stats(table)


@pytest.mark.parametrize("factor", [1, 1.1, 2, 10])
@pytest.mark.parametrize(("kind", "host_cache"), STORES)
def test_same_bits_whatever_the_store_and_the_budget(
    tmp_path, kind, host_cache, factor
):
    stats = same_bits(tmp_path, kind, host_cache, factor)
    assert stats["cached_rows"] == int(WORST * factor)
    assert stats["victims"] > 0
    assert stats["write_backs"] > 0


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("factor", [1, 1.1, 2, 10])
@pytest.mark.parametrize(("kind", "host_cache"), STORES)
def test_same_bits_with_prefetch(tmp_path, kind, host_cache, factor, depth):
    stats = same_bits(tmp_path, kind, host_cache, factor, depth=depth)
    assert stats["prefetched"] > 0
    assert stats["prefetched"] <= stats["cache_misses"]
    assert stats["stalls"] <= STEPS
    if factor in (1, 10):
        assert (stats["prefetch_refused"] > 0) == (factor == 1)


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("factor", [1, 1.1, 2, 10])
@pytest.mark.parametrize(("kind", "host_cache"), STORES)
def test_same_bits_after_a_snapshot(tmp_path, kind, host_cache, factor, depth):
    stats = same_bits(tmp_path, kind, host_cache, factor, depth=depth, resume=True)
    assert stats["staged"] == STEPS - STEPS // 2


@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if o != "adagrad"])
def test_same_bits_for_every_kind_of_state(tmp_path, optimizer):
    *found, _ = run(cached(tmp_path, int(1.1 * WORST), optimizer))
    assert tuple(found) == expected(optimizer)


def test_items_are_the_rows_of_both_tiers(tmp_path):
    table = run(cached(tmp_path, 2 * WORST))[3]
    seen = {}
    for ids, tables, rows in oe.items(table, batch_size=7):
        for key in zip(ids.tolist(), tables.tolist(), rows.tolist(), strict=True):
            assert key[:2] not in seen
            seen[key[:2]] = key[2]
    assert len(seen) == oe.size(table)
    ids, tables = (np.array(x) for x in zip(*seen, strict=True))
    rows = oe.get_rows(table, ids, tables)
    assert rows.found.all()
    assert rows.embedding.tolist() == list(seen.values())
