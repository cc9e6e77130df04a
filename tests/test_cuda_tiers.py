"""Cached tables on a GPU against cached tables on the CPU, bit for bit.

What holds for cached tables anywhere is in test_tiers.py, test_cached.py and
test_tiers_in_flight.py, which run on a GPU where one is JAX's default device.
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import assert_no_table_copy, make_cached
from oneemb_jax import cache
from oneemb_jax.cache import close_cached

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def closed_stores():
    yield
    cache._close_all()


def plain_step(table, ids, later=None, table_ids=None, dtype=jnp.float32, **options):
    table = oe.stage(table, ids, table_ids)
    if later is not None:
        table = oe.prefetch(table, later, table_ids)
    acts, ctx = oe.lookup(table, ids, table_ids, dtype=dtype)
    # Their gradients are the activations: XLA would round others as it likes.
    return oe.update(table, ctx, acts, **options), acts, ctx.slots, ctx.counts


step = jax.jit(plain_step, donate_argnums=0, static_argnames=("dtype",))


def pack(ids):
    return np.asarray(oe.pack_ids(np.asarray(ids, np.int64)))


def batches(seed, count, n, distinct):
    """Ids of any 64 bits, many of them often, of which some are new each time."""
    random = np.random.default_rng(seed)
    pool = random.integers(-(2**63), 2**63 - 1, distinct)
    pool[:2] = [0, -1]
    which = (distinct * random.random((count, n)) ** 2).astype(np.int64)
    return [pack(ids) for ids in pool[which]]


def tier_bits(table):
    """All of a cached table that means something: rows that are in its cache."""
    residency = np.asarray(table.residency)
    has_row = residency[:, 1] >= 2
    arrays = [table.index, table.clock, table.counters, table.step]
    arrays += [table.layout_version, table.generation, residency]
    arrays += [np.asarray(table.rows)[has_row]]
    return [np.asarray(array).tobytes() for array in arrays]


def on_both(folder, program, slots=64, dim=4, **changes):
    """Runs a program on a cached table of the CPU and of the GPU: they agree.

    What the program returns are the table and arrays; those of the GPU are
    returned, with its figures.
    """
    outcomes = []
    for platform in ("cpu", "gpu"):
        with jax.default_device(jax.devices(platform)[0]):
            table = make_cached(folder / platform, slots, dim, **changes)
            table, *rest = program(table)
            assert {d.platform for d in table.rows.devices()} == {platform}
            arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(rest)]
            same = [*tier_bits(table), *[array.tobytes() for array in arrays]]
            outcomes.append((same, oe.stats(table), arrays))
            close_cached(table.spec.name)
    (cpu, cpu_stats, _), (gpu, gpu_stats, arrays) = outcomes
    assert [i for i in range(len(cpu)) if cpu[i] != gpu[i]] == []
    differ = {name for name in cpu_stats if cpu_stats[name] != gpu_stats[name]}
    assert differ <= {"stalls"}  # which is quicker
    return arrays, gpu_stats


def trained(every, depth=1, **options):
    """A program of one step a batch; it ends with the rows of all ids."""

    def program(table):
        results = []
        for t, ids in enumerate(every):
            later = every[min(t + depth, len(every) - 1)] if depth else None
            table, *rest = step(table, ids, later, **options)
            results.append(rest)
        oe.check(table)
        rows = oe.get_rows(table, np.concatenate(every))
        state = [rows.state[name] for name in sorted(rows.state)]
        return table, results, rows.embedding, rows.found, state

    return program


@pytest.mark.parametrize("kind", ["ssd", "host_mem"])
@pytest.mark.parametrize("dim", [1, 4, 17, 128])
@pytest.mark.parametrize("slots", [64, 90, 1000])
def test_training_as_on_the_cpu(tmp_path, kind, dim, slots):
    every = batches(1, 30, 64, 300)
    _, stats = on_both(
        tmp_path, trained(every), slots, dim, kind=kind, optimizer=oe.adagrad(0.1)
    )
    assert (stats["victims"] > 0) == (slots < 300)


def test_all_devices_at_once(tmp_path):
    devices = [jax.devices("cpu")[0], *jax.devices("gpu")]
    program = trained(batches(3, 40, 64, 300))

    def run(number):
        device = devices[number % len(devices)]
        kind = ("ssd", "host_mem")[number // len(devices) % 2]
        with jax.default_device(device):
            table = make_cached(tmp_path / str(number), 80, 16, kind=kind)
            table, *rest = program(table)
            assert table.rows.devices() == {device}
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(rest)]

    with ThreadPoolExecutor() as threads:
        same = list(threads.map(run, range(4 * len(devices))))
    assert [i for i in range(len(same)) if same[i] != same[0]] == []


# With FTRL's usual power rows stay finite: which NaN a NaN is differs.
@pytest.mark.parametrize(
    "optimizer", [oe.sgd(0.1), oe.adam(0.1), oe.ftrl(0.1, lr_power=0.5)]
)
def test_optimizers(tmp_path, optimizer):
    program = trained(batches(2, 30, 64, 200), 2)
    on_both(tmp_path, program, 80, 16, optimizer=optimizer)


@pytest.mark.parametrize("shared", [False, True])
def test_tables_padding_and_bad_table_ids(tmp_path, shared):
    every = batches(3, 20, 60, 80)
    random = np.random.default_rng(0)
    # Table 3 does not exist.
    tables = np.where(random.random(60) < 0.1, 3, random.integers(0, 3, 60))

    def program(table):
        results = []
        for ids in every:
            table, *rest = step(table, ids, None, jnp.asarray(tables, jnp.int32))
            results.append(rest)
        return table, results

    _, stats = on_both(
        tmp_path, program, 70, 4, num_tables=3, padding_idx=0, shared_keys=shared
    )
    assert stats["bad_table_ids"] > 0


@pytest.mark.parametrize("new", [1, 5, 16, 23, 33, 50])
def test_rows_that_are_unused_for_long(tmp_path, new):
    """Victims of three ages, of which two are beyond 255 batches."""

    def program(table):
        stage = jax.jit(oe.stage, donate_argnums=0)
        for first, times in [(0, 1), (16, 300), (32, 270), (48, 1)]:
            ids = pack(np.arange(first, first + 16))
            table, *_ = step(table, ids)
            for _ in range(times):
                table = stage(table, ids)
        table, acts, *_ = step(table, pack(np.arange(100, 100 + new)))
        return table, acts

    on_both(tmp_path, program)


def test_few_of_the_victims_are_dirty(tmp_path):
    def program(table):
        table, *_ = step(table, pack(range(64)))
        table = oe.flush(table)
        table, *_ = step(table, pack(range(5)))
        table, *_ = step(table, pack(range(100, 164)))
        rows = oe.get_rows(table, pack(range(64)))
        return table, rows.embedding, rows.found

    (_, found), stats = on_both(tmp_path, program)
    assert found.all()
    assert stats["write_backs"] == 5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats(tmp_path, dtype):
    on_both(tmp_path, trained(batches(4, 10, 64, 200), dtype=dtype), 80, 16)


def test_batches_of_nothing_one_and_one_hot_id(tmp_path):
    every = [pack(ids) for ids in ([], [7], [7] * 50, [], range(50), [-1, 0, 7])]
    on_both(tmp_path, trained(every), 50)


def test_large_batches(tmp_path):
    """Several tiles of every kernel, and several pieces of every copy."""
    every = batches(5, 6, 300_000, 500_000)
    _, stats = on_both(tmp_path, trained(every), 300_000, 16)
    assert stats["write_backs"] > 0


def test_more_steps_under_way_than_there_are_boards(tmp_path):
    every = batches(6, 3, 16, 40)

    def program(table):
        acts = []
        for t in range(600):
            table, act, *_ = step(table, every[t % 3], every[(t + 1) % 3])
            acts.append(act)
        return table, acts[-1]

    on_both(tmp_path, program, 20)


@pytest.mark.parametrize(
    "options",
    [{"apply": False}, {"learning_rate": -1.0}, {"grad_scale": 0.5}],
    ids=["apply", "rate", "scale"],
)
def test_scalars(tmp_path, options):
    every = batches(7, 8, 32, 60)

    def program(table):
        for ids in every[:4]:
            table, *_ = step(table, ids)
        rest = []
        for ids in every[4:]:
            table, *rest = step(table, ids, **options)
        return table, rest

    on_both(tmp_path, program, 40)


def test_what_was_not_staged(tmp_path):
    staged, mixed = pack([1, 2, 2, 3]), pack([1, 2, 9, 3])

    def program(table):
        table, *_ = step(table, staged)
        acts, ctx = jax.jit(oe.lookup)(table, mixed)
        table = jax.jit(oe.update)(table, ctx, jnp.ones_like(acts))
        return table, acts, ctx.slots, ctx.counts

    (acts, *_), stats = on_both(tmp_path, program, 8)
    assert np.isnan(acts[2]).all()
    assert not np.isnan(acts[np.array([0, 1, 3])]).any()
    assert stats["unstaged"] == 2


def test_a_stale_table(tmp_path):
    first, other = pack([1, 2, 3]), pack([4, 5, 6])

    def program(table):
        old, *_ = jax.jit(step)(table, first)
        kept = jax.tree.map(jnp.copy, old)
        table, *_ = step(old, other)
        acts, ctx = jax.jit(oe.lookup)(kept, first)
        kept = jax.jit(oe.update)(kept, ctx, jnp.ones_like(acts))
        kept = jax.jit(oe.stage)(kept, other)
        with pytest.raises(oe.TableError, match="of generation"):
            oe.check(kept)
        return table, acts, kept.counters

    (acts, _), _ = on_both(tmp_path, program, 8)
    assert np.isnan(acts).all()


def test_a_context_of_what_was_not_staged(tmp_path):
    """It read NaN, so its gradients are, whatever has been staged since."""
    ids = pack([1, 2, 2, 3])

    def program(table):
        table, *_ = step(table, ids)
        table = oe.flush(table)
        acts, ctx = jax.jit(oe.lookup)(table, pack([1, 2, 9, 3]))
        table = jax.jit(oe.stage)(table, pack([1, 2, 9, 3]))
        return jax.jit(oe.update)(table, ctx, acts), acts

    _, stats = on_both(tmp_path, program, 8)
    assert stats["rows"] == 3


def test_a_context_whose_other_rows_are_gone_too(tmp_path):
    def program(table):
        table = oe.stage(table, pack([1]))
        acts, ctx = oe.lookup(table, pack([1, 2, 2]))
        for t in range(2):
            table = oe.stage(table, pack(np.arange(64 * t + 10, 64 * t + 74)))
        return oe.update(table, ctx, acts), acts

    _, stats = on_both(tmp_path, program)
    assert stats["unstaged"] == 2 + 2  # in the lookup and the update


def test_a_damaged_context(tmp_path):
    ids = pack(range(20))

    def program(table):
        table = jax.jit(oe.stage)(table, ids)
        acts, ctx = jax.jit(oe.lookup)(table, ids)
        ctx = jax.tree.map(lambda leaf: leaf * jnp.array(2, leaf.dtype), ctx)
        return jax.jit(oe.update)(table, ctx, acts), acts

    _, stats = on_both(tmp_path, program, 32)
    assert stats["damaged_contexts"] == 1


def test_rows_from_the_host(tmp_path):
    def program(table):
        for ids in batches(8, 8, 32, 60):
            table, *_ = step(table, ids)
        ids = np.arange(100, 140)
        values = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
        table = oe.set_rows(table, ids, values)
        table = oe.flush(table)
        rows = oe.get_rows(table, np.arange(90, 150))
        order = sorted(
            (int(i), row.tobytes())
            for ids, _, rows in oe.items(table)
            for i, row in zip(ids, rows, strict=True)
        )
        words = np.frombuffer(b"".join(row for _, row in order), np.uint8)
        return table, rows.embedding, rows.found, words

    on_both(tmp_path, program, 50)


@pytest.mark.parametrize(("to", "back"), [("gpu", "cpu"), ("cpu", "gpu")])
def test_a_table_moves_between_devices(tmp_path, to, back):
    every = batches(9, 12, 32, 60)
    home = make_cached(tmp_path / "home", 40)
    _, *expected = trained(every)(jax.device_put(home, jax.devices("cpu")[0]))
    close_cached(home.spec.name)
    table = make_cached(tmp_path / "away", 40)
    for t, ids in enumerate(every):
        device = jax.devices(to if t % 2 == 0 else back)[0]
        table, *_ = step(jax.device_put(table, device), jax.device_put(ids, device))
    rows = oe.get_rows(table, np.concatenate(every))
    assert np.array_equal(rows.embedding, expected[1])


def test_a_step_copies_no_table(tmp_path):
    ids = jnp.asarray(batches(1, 1, 64, 300)[0])
    assert_no_table_copy(plain_step, make_cached(tmp_path, 5000, 16), ids, ids)
