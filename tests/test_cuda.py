"""CUDA against the CPU kernels, bit for bit, and against the float64 table.

Where both machines run the same program, every array of the table must agree:
rows, clocks, counters, the layout's version, and the index itself.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oneemb_jax as oe
from helpers import assert_no_table_copy, bits, make_spec, table_bits
from oneemb_jax.table import init_table
from snapshots import assert_same, embedding, train
from test_optimizers import OPTIMIZERS, check_fields, each_optimizer, reference_of
from test_optimizers import batch_of as optimizer_batch

pytestmark = pytest.mark.gpu

DIMS = [1, 16, 17, 64, 128]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("dtype",))
def step(table, ids, grads, table_ids=None, dtype=jnp.float32, **options):
    acts, ctx = oe.lookup(table, ids, table_ids, dtype=dtype)
    norm = oe.global_norm(ctx, grads)
    return oe.update(table, ctx, grads, **options), acts, ctx.slots, ctx.counts, norm


def pack(ids: np.ndarray) -> np.ndarray:
    return np.asarray(oe.pack_ids(np.asarray(ids, np.int64)))


def on_both(program: Callable[[oe.Table], Any], dim: Any = 4, **changes: Any) -> Any:
    """Runs a program on a table of the CPU and of the GPU; they must agree.

    Returns what it returned on the GPU.
    """
    spec = make_spec(dim, **changes)
    outcomes = []
    for platform in ("cpu", "gpu"):
        device = jax.devices(platform)[0]
        with jax.default_device(device):
            table, *rest = program(init_table(spec, device))
            assert table.rows.devices() == {device}
            outcomes.append(([*table_bits(table), *bits(rest)], table, rest))
    (cpu, *_), (gpu, table, rest) = outcomes
    assert [i for i in range(len(cpu)) if cpu[i] != gpu[i]] == []
    return table, rest


def random_batch(seed: int, n: int, distinct: int, dim: int) -> tuple[Any, Any]:
    """Ids of any 64 bits, some of them often, and gradients."""
    random = np.random.default_rng(seed)
    pool = random.integers(-(2**63), 2**63 - 1, distinct)
    pool[: min(2, distinct)] = [0, -1][: min(2, distinct)]
    which = (distinct * random.random(n) ** 3).astype(np.int64)
    return pool[which], random.standard_normal((n, dim)).astype(np.float32)


def train_steps(seed: int, n: int, distinct: int, dim: int, steps: int = 3) -> Any:
    """A program of several steps, whose batches overlap."""

    def program(table):
        results = []
        for i in range(steps):
            ids, _ = random_batch(seed, n, distinct, dim)
            _, grads = random_batch(seed + i, n, distinct, dim)
            ids = np.roll(ids, i) ^ np.where(np.arange(n) % 7 == 0, i, 0)
            table, *rest = step(table, pack(ids), grads)
            results.append(rest)
        return table, results

    return program


@each_optimizer
@pytest.mark.parametrize("dim", DIMS)
def test_optimizers_as_on_the_cpu(optimizer, dim):
    program = train_steps(dim, 500, 60, dim)
    table, _ = on_both(program, dim, optimizer=optimizer, capacity=256)
    assert oe.size(table) > 20


@each_optimizer
def test_optimizers_against_float64(optimizer):
    spec = make_spec(8, optimizer=optimizer, capacity=64)
    table = init_table(spec, jax.devices("gpu")[0])
    reference = reference_of(table)
    for i in range(10):
        ids, grads = optimizer_batch(i, 8)
        table, *_ = step(table, pack(ids), grads)
        reference.update(ids.tolist(), grads)
    check_fields(table, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("dim", DIMS)
def test_narrow_floats(dtype, dim):
    ids, grads = random_batch(1, 300, 40, dim)
    narrow = jnp.asarray(grads, dtype)
    on_both(
        lambda table: step(table, pack(ids), np.asarray(narrow), dtype=dtype),
        dim,
        optimizer=oe.adagrad(0.1),
    )


@pytest.mark.parametrize(
    "n", [0, 1, 2, 31, 32, 33, 64, 65, 511, 1024, 1025, 5000, 140_000, 600_000]
)
@pytest.mark.parametrize("distinct", [1, 3, 1000, 10**6])
def test_sizes_of_batches_and_rows(n, distinct):
    """Across the blocks of the sums, the tiles of the sort and of the scan."""
    program = train_steps(n, n, distinct, 2, steps=2)
    on_both(program, 2, capacity=max(1, min(2 * n, 300_000)))


@pytest.mark.parametrize("n", [33, 1025, 140_000, 600_000])
@pytest.mark.parametrize("distinct", [3, 1000, 10**6])
@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        (15, np.float32),
        (16, np.float32),
        (20, np.float32),
        (33, np.float32),
        (15, jnp.float16),
        (20, jnp.bfloat16),
        (31, jnp.bfloat16),
        (33, jnp.float16),
    ],
)
def test_sizes_of_batches_of_wide_and_narrow_rows(n, distinct, dim, dtype):
    """Gradients of 30 to 132 bytes: some go by way of shared memory."""
    ids, grads = random_batch(n, n, distinct, dim)
    on_both(
        lambda table: step(table, pack(ids), np.asarray(grads, dtype), dtype=dtype),
        dim,
        capacity=min(n, 200_000),
    )


def test_wide_rows():
    on_both(train_steps(1, 200, 30, 1000), 1000, optimizer=oe.lamb(0.1))
    on_both(train_steps(1, 200, 30, 999), 999, optimizer=oe.rowwise_adagrad(0.1))


def test_one_hot_id():
    """A tenth of the batch is one id: 34 blocks of blocks of 32, in order."""
    random = np.random.default_rng(3)
    ids = random.integers(0, 2**40, 400_000)
    ids[random.random(len(ids)) < 0.1] = 7
    grads = random.standard_normal((len(ids), 16)).astype(np.float32)
    on_both(
        lambda table: step(table, pack(ids), grads),
        16,
        capacity=500_000,
        optimizer=oe.adam(0.1),
    )


@pytest.mark.parametrize("capacity", [1, 3, 4, 17, 1000])
def test_ids_that_meet_a_full_table(capacity):
    """The first to come are admitted; the others are counted."""
    program = train_steps(5, 5000, 4000, 3)
    table, _ = on_both(program, 3, capacity=capacity, optimizer=oe.adagrad(0.1))
    assert oe.size(table) == capacity
    assert oe.stats(table)["overflows"] > 0


INITIALIZERS = {
    "uniform": oe.make_uniform_initializer(-1.0, 2.0),
    "normal": oe.make_normal_initializer(0.5, 2.0),
    "trunc_normal": oe.make_trunc_normal_initializer(0.0, 1.0),
    "constant": oe.make_constant_initializer(0.25),
}


@pytest.mark.parametrize("n", [700, 140_000])
@pytest.mark.parametrize("columns", [(16,), (17,), (3, 1, 5), (4, 8)], ids=str)
@pytest.mark.parametrize("first", [*INITIALIZERS, "uniform and constant"])
def test_new_rows(first, columns, n):
    """Read before they are there, and written: few kinds at once, and one."""
    names = ["uniform", "constant"] if first not in INITIALIZERS else [first]
    kinds = [INITIALIZERS[names[c % len(names)]] for c in range(len(columns))]
    ids, grads = random_batch(6, n, n, sum(columns))

    def program(table):
        table, *rest = step(table, pack(ids), grads)
        return table, rest

    on_both(program, columns, initializers=(tuple(kinds),), capacity=n * 3 // 4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("initializers", [1, 12])
def test_tables_padding_and_bad_table_ids(shared, initializers):
    """More initializers than a kernel takes by value, too."""
    random = np.random.default_rng(4)
    columns = (3, 1, 5) if initializers == 1 else tuple([2] * 12)
    kinds = list(INITIALIZERS.values())
    spec = {
        "initializers": tuple(
            tuple(kinds[(t + c) % 4] for c in range(len(columns))) for t in range(5)
        ),
        "shared_keys": shared,
        "padding_idx": 3,
        "capacity": 400,
    }
    ids = random.integers(0, 60, (700, 6))
    table_ids = np.array([0, 4, 2, 1, 7, -1], np.int32)
    grads = random.standard_normal((700, 6, sum(columns))).astype(np.float32)

    def program(table):
        table, *_ = step(table, pack(ids), grads, table_ids)
        table, *rest = step(table, pack(ids), grads, table_ids)
        return table, rest

    table, _ = on_both(program, columns, **spec)
    assert oe.stats(table)["bad_table_ids"] == 2 * np.sum(ids[:, 4:] != 3)


@pytest.mark.parametrize(
    "options",
    [
        {"apply": False},
        {"apply": True, "grad_scale": 0.3},
        {"learning_rate": -1.0},
        {"learning_rate": np.nan},
        {"learning_rate": 0.0},
    ],
    ids=str,
)
def test_scalars(options):
    ids, grads = random_batch(6, 100, 20, 4)

    def program(table):
        table, *_ = step(table, pack(ids), grads)
        return step(table, pack(ids), 2 * grads, **options)

    on_both(program, optimizer=oe.adam(0.1))


def test_microbatches_and_several_lookups():
    """More lookups than a kernel takes by value; one of them has microbatches."""
    random = np.random.default_rng(8)
    ids = random.integers(0, 90, (9, 4, 50))
    grads = random.standard_normal((9, 4, 50, 4)).astype(np.float32)

    @functools.partial(jax.jit, donate_argnums=0)
    def several(table, ids, grads):
        stacked = jax.lax.map(lambda batch: oe.lookup(table, batch)[1], ids[0])
        contexts, of_contexts = [stacked], [grads[0]]
        for k in range(1, 9):
            contexts.append(oe.lookup(table, ids[k, 0])[1])
            of_contexts.append(grads[k, 0])
        norm = oe.global_norm(contexts, of_contexts)
        return oe.update(table, contexts, of_contexts), norm

    def program(table):
        table, _ = several(table, pack(ids), grads)
        return several(table, pack(ids), grads)

    on_both(program, optimizer=oe.adagrad(0.1), capacity=80)


def test_stale_slots_are_searched_again():
    ids, grads = random_batch(9, 200, 30, 4)

    def program(table):
        acts, ctx = oe.lookup(table, pack(ids))
        others = pack(np.arange(1000, 1010))
        table, *_ = step(table, others, np.ones((10, 4), np.float32))
        return oe.update(table, ctx, grads), acts, oe.global_norm(ctx, grads)

    on_both(program)


DAMAGES = {
    "every leaf doubled": lambda ctx: jax.tree.map(lambda leaf: 2 * leaf, ctx),
    "zeros": lambda ctx: jax.tree.map(jnp.zeros_like, ctx),
    "one id": lambda ctx: dataclasses.replace(ctx, ids=ctx.ids.at[-1, 0].add(1)),
    "two ids": lambda ctx: dataclasses.replace(ctx, ids=ctx.ids[::-1]),
    "table": lambda ctx: dataclasses.replace(ctx, table_ids=ctx.table_ids + 1),
    "slot": lambda ctx: dataclasses.replace(ctx, slots=ctx.slots.at[7].add(1)),
    "large slots": lambda ctx: dataclasses.replace(ctx, slots=ctx.slots + 10**9),
    "small slots": lambda ctx: dataclasses.replace(ctx, slots=ctx.slots - 10**9),
    "checksum": lambda ctx: dataclasses.replace(ctx, counts=ctx.counts.at[3].add(1)),
}


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("n", [10, 3000])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_context_changes_nothing(damage, n, new):
    ids, grads = random_batch(17, n, 40, 4)

    def program(table):
        if not new:
            table, *_ = step(table, pack(ids), grads)
        before, counted = table_bits(table), oe.stats(table)
        acts, ctx = oe.lookup(table, pack(ids))
        whole = oe.global_norm(ctx, grads)
        damaged = DAMAGES[damage](ctx)
        assert np.isnan(oe.global_norm([ctx, damaged], [grads, grads]))
        table = oe.update(table, [ctx, damaged], [grads, grads])
        assert oe.stats(table) == counted | {"damaged_contexts": 1}
        pairs = zip(before, table_bits(table), strict=True)
        changed = [i for i, (one, two) in enumerate(pairs) if one != two]
        assert changed == [3], "the counters alone"
        return oe.update(table, ctx, grads), acts, ctx.counts, whole

    table, _ = on_both(program, optimizer=oe.adagrad(0.1), capacity=100)
    assert oe.stats(table)["step"] == (1 if new else 2)


def test_a_damaged_context_of_no_ids():
    def program(table):
        acts, ctx = oe.lookup(table, pack(np.zeros(0)))
        assert oe.global_norm(ctx, acts) == 0
        damaged = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), ctx)
        assert np.isnan(oe.global_norm(damaged, acts))
        return (oe.update(table, damaged, acts),)

    table, _ = on_both(program)
    assert oe.stats(table)["damaged_contexts"] == 1


def test_a_damaged_microbatch():
    ids, grads = random_batch(18, 400, 30, 4)
    ids, grads = pack(ids).reshape(4, 100, 2), grads.reshape(4, 100, 4)

    def program(table):
        stacked = jax.lax.map(lambda batch: oe.lookup(table, batch)[1], ids)
        slots = stacked.slots.at[2, 5].add(1)
        damaged = dataclasses.replace(stacked, slots=slots)
        table = oe.update(table, damaged, grads)
        return oe.update(table, stacked, grads), stacked.counts

    table, _ = on_both(program)
    stats = oe.stats(table)
    assert (stats["damaged_contexts"], stats["step"]) == (1, 1)


@pytest.mark.parametrize("others", [1, 7])
def test_other_reads_come_first(others):
    """Of any number: what follows the lookups of an update is no lookup."""
    ids, grads = random_batch(19, 300, 50, 4)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(table, ids, grads):
        _, ctx = oe.lookup(table, ids)
        reads = [oe.lookup(table, ids + np.uint32(k)) for k in range(others)]
        table = oe.update(table, ctx, grads, after=[ctx for _, ctx in reads])
        return table, [acts for acts, _ in reads]

    def program(table):
        table, _ = train(table, pack(ids), grads)
        return train(table, pack(ids), grads)

    table, _ = on_both(program, optimizer=oe.adam(0.1), capacity=100)
    assert oe.stats(table)["step"] == 2


def test_gradients_that_are_not_finite():
    ids, grads = random_batch(10, 3000, 20, 5)
    grads[::97, 2] = np.inf
    grads[::103, 4] = np.nan

    def program(table):
        table, acts, *rest, norm = step(table, pack(ids), grads)
        assert np.isnan(norm)
        # Which of the NaNs it is differs between machines.
        rows = np.asarray(table.rows).view(np.float32)
        rows = jnp.where(jnp.isnan(rows), 0.0, rows).view(jnp.uint32)
        return dataclasses.replace(table, rows=rows), acts, rest

    table, _ = on_both(program, 5)
    assert oe.stats(table)["non_finite_gradients"] > 0


def test_grow_and_rows_from_the_host():
    ids, grads = random_batch(11, 400, 300, 6)
    more, _ = random_batch(12, 400, 300, 6)

    def program(table):
        table, *_ = step(table, pack(ids), grads)
        table = oe.grow(table, 700)
        rows = oe.get_rows(table, more)
        state = {name: field + 1 for name, field in rows.state.items()}
        table = oe.set_rows(table, more, rows.embedding * 2, state)
        table, *rest = step(table, pack(more), grads)
        every = [
            np.concatenate(part) for part in zip(*oe.items(table, 50), strict=True)
        ]
        return table, rows, rest, every

    on_both(program, 6, capacity=300, optimizer=oe.rowwise_adagrad(0.1))


def test_a_table_moves_between_devices():
    ids, grads = random_batch(13, 500, 100, 4)
    cpu, gpu = jax.devices("cpu")[0], jax.devices("gpu")[0]
    spec = make_spec(4, optimizer=oe.adam(0.1), capacity=200)
    stays = init_table(spec, cpu)
    moves = init_table(spec, cpu)
    for device in (cpu, gpu, cpu, gpu):
        moves = jax.device_put(moves, device)
        with jax.default_device(device):
            moves, *_ = step(moves, pack(ids), grads)
        with jax.default_device(cpu):
            stays, *_ = step(stays, pack(ids), grads)
        ids = ids + 1
    assert table_bits(moves) == table_bits(stays)


def test_the_same_bits_every_time():
    outcomes = set()
    for _ in range(5):
        table = init_table(
            make_spec(16, name="again", optimizer=oe.adagrad(0.1), capacity=150_000),
            jax.devices("gpu")[0],
        )
        table, *rest = train_steps(14, 200_000, 120_000, 16)(table)
        outcomes.add((*table_bits(table), *bits(rest)))
    assert len(outcomes) == 1


@pytest.mark.parametrize("hit_rate", [0.0, 0.6, 1.0])
def test_filled_to_the_last_row(hit_rate):
    """HKV's cases: every id of a full table is found, and no other."""
    capacity, dim = 40_000, 8
    random = np.random.default_rng(15)
    pool = random.permutation(2 * capacity).astype(np.int64) * 2**32 + 5
    inside, outside = pool[:capacity], pool[capacity:]
    table = init_table(make_spec(dim, capacity=capacity), jax.devices("gpu")[0])
    before = oe.get_rows(table, inside).embedding
    for part in np.split(inside, 8):
        table, *_ = step(table, pack(part), np.ones((len(part), dim), np.float32))
    assert oe.stats(table)["load"] == 1.0
    known = int(hit_rate * 10_000)
    ids = np.concatenate([inside[:known], outside[: 10_000 - known]])
    acts, ctx = oe.lookup(table, pack(ids))
    assert ctx.counts[:3].tolist() == [known, 10_000 - known, 0]
    np.testing.assert_array_equal(acts[:known], before[:known] - np.float32(0.5))
    np.testing.assert_array_equal(ctx.slots[known:], -1)
    found = np.concatenate([part[0] for part in oe.items(table)])
    np.testing.assert_array_equal(np.sort(found), np.sort(inside))


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "lamb"])
def test_a_step_copies_no_table(name):
    ids, grads = random_batch(16, 64, 20, 8)
    spec = make_spec(8, capacity=4096, optimizer=OPTIMIZERS[name])
    table = init_table(spec, jax.devices("gpu")[0])

    def one(table, ids, grads):
        acts, ctx = oe.lookup(table, ids)
        return oe.update(table, ctx, grads), acts.sum()

    def scanned(table, ids, grads):
        def body(table, _):
            return one(table, ids, grads)[0], None

        return jax.lax.scan(body, table, None, length=3)[0]

    assert_no_table_copy(one, table, pack(ids), grads)
    assert_no_table_copy(scanned, table, pack(ids), grads)


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_snapshots_go_from_device_to_device(tmp_path, optimizer):
    """Saved and loaded on either, a table trains on to the same bits."""
    devices = [jax.devices(platform)[0] for platform in ("cpu", "gpu")]
    with embedding(tmp_path, 16, 1000, optimizer=OPTIMIZERS[optimizer]) as emb:
        for i, device in enumerate(devices):
            table = train(emb.init(device), 0, 5, 300)
            emb.save_snapshot(table, f"from_{i}")
            oe.save(tmp_path / f"all_{i}", table=table)
            for other in devices:
                loaded = emb.load_snapshot(f"from_{i}", other)
                assert loaded.rows.devices() == {other}
                assert_same(loaded, table)
                assert_same(train(loaded, 5, 9, 300), train(table, 5, 9, 300))
                like = {"table": emb.init(other)}
                assert_same(
                    oe.restore(tmp_path / f"all_{i}", like=like)["table"], table
                )
