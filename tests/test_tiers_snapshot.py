"""Snapshots of cached tables: what is saved, and that a run goes on from it."""

from pathlib import Path

import jax
import numpy as np
import pytest

import oneemb_jax as oe
from oneemb_jax import cache
from oneemb_jax import snapshot_files as files
from oneemb_jax.store import StoreError

BATCH, TABLES, DIM, STEPS = 8, 2, 4, 60
WORST = BATCH * TABLES


@pytest.fixture(autouse=True)
def closed():
    yield
    cache._close_all()


def embedding(options, name="resumed", key_type="int64", padding_idx=None):
    return oe.MultiTableEmbedding(
        name,
        DIM,
        "float32",
        key_type,
        tables=[oe.make_table_options(oe.make_uniform_initializer(-1.0, 1.0))] * TABLES,
        store_options=options,
        optimizer=oe.adam(0.05),
        seed=3,
        padding_idx=padding_idx,
    )


def budget(slots):
    with embedding(oe.make_device_mem_store_options(capacity=1), "budget") as emb:
        return cache.budget_for(emb.spec, slots)


def ssd(folder, slots=2 * WORST):
    return oe.make_cached_ssd_store_options(budget(slots), folder)


def host(folder, slots=2 * WORST):
    return oe.make_cached_host_mem_store_options(budget(slots), folder)


def device(folder):
    return oe.make_device_mem_store_options(folder, capacity=1000)


def batches():
    random = np.random.default_rng(5)
    return oe.pack_ids(random.integers(0, 120, (STEPS, BATCH, TABLES)))


@jax.jit
def step(table, ids, later):
    table = oe.prefetch(oe.stage(table, ids), later)
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, acts)


def train(table, begin, end):
    every = batches()
    for t in range(begin, end):
        table = step(table, every[t], every[min(t + 1, STEPS - 1)])
    oe.check(table)
    return table


def contents(table):
    ids = np.repeat(np.arange(120)[:, np.newaxis], TABLES, 1)
    rows = oe.get_rows(table, ids)
    state = [rows.state[name].tobytes() for name in sorted(rows.state)]
    counts = [oe.stats(table)[n] for n in ("rows", "step", "hits", "misses")]
    return [rows.embedding.tobytes(), rows.found.tobytes(), *state, *counts]


@pytest.fixture(scope="module")
def expected():
    with embedding(oe.make_device_mem_store_options(capacity=1000), "whole") as emb:
        return contents(train(emb.init(), 0, STEPS))


@pytest.mark.parametrize("before", [ssd, host, device])
@pytest.mark.parametrize("after", [ssd, host, device])
def test_a_run_goes_on_to_the_same_bits(tmp_path, expected, before, after):
    """From one kind of store to any other, in another process or this one."""
    with embedding(before(tmp_path)) as emb:
        table = train(emb.init(), 0, 30)
        path = emb.save_snapshot(table, "half")
        assert emb.list_snapshots() == ["half"]
        emb.verify_snapshot("half")
        train(table, 30, 40)  # what comes later is no part of it
    with embedding(after(tmp_path)) as emb:
        table = emb.load_snapshot("half")
        assert contents(train(table, 30, STEPS)) == expected
        assert oe.size(emb.load_snapshot(path)) == oe.size(emb.load_snapshot("half"))


def test_to_save_changes_nothing(tmp_path, expected):
    with embedding(ssd(tmp_path)) as emb:
        table = emb.init()
        for t in range(0, STEPS, 10):
            table = train(table, t, t + 10)
            emb.save_snapshot(table, f"at_{t}")
        assert contents(table) == expected
        assert len(emb.list_snapshots()) == STEPS // 10
        emb.delete_snapshot("at_10")
        assert len(emb.list_snapshots()) == STEPS // 10 - 1


@pytest.mark.parametrize("options", [ssd, host])
def test_back_and_forth_in_one_process(tmp_path, expected, options):
    with embedding(options(tmp_path)) as emb:
        table = train(emb.init(), 0, 30)
        emb.save_snapshot(table, "half")
        old = train(table, 30, 50)
        table = emb.load_snapshot("half")
        with pytest.raises(oe.TableError, match="belongs to a Store that is gone"):
            oe.check(old)
        assert contents(train(table, 30, STEPS)) == expected


def test_a_damaged_snapshot_leaves_the_table(tmp_path):
    with embedding(ssd(tmp_path)) as emb:
        table = train(emb.init(), 0, 30)
        path = emb.save_snapshot(table, "half")
        table = train(table, 30, 35)
        before = contents(table)
        manifest = next(p for p in (tmp_path / path).iterdir() if "MANIFEST" in p.name)
        data = bytearray(manifest.read_bytes())
        data[len(data) // 2] ^= 1
        manifest.write_bytes(bytes(data))
        with pytest.raises((StoreError, ValueError)):
            emb.load_snapshot("half")
        assert contents(table) == before
        train(table, 35, 40)


@pytest.mark.parametrize("ids", [[1, -1], [1, 7]])
@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_that_the_table_cannot_have_leave_it(tmp_path, ids, ranks):
    """Rows that no table wrote: one of padding_idx, or one of a table too many."""
    paths = [tmp_path / f"{i}-{ranks}" for i in range(ranks)]
    width = 3 * DIM
    with oe.make_persistent_table_writer(
        paths, "rows", "int64", np.float32, width
    ) as writer:
        of = [0, TABLES if ids[1] == 7 else 0]
        writer.write(np.array(ids), np.ones((2, width), np.float32), of)
    with embedding(ssd(tmp_path), padding_idx=-1) as emb:
        table = train(emb.init(), 0, 30)
        before = contents(table)
        folder = emb.save_snapshot(table, "half")
        with pytest.raises(ValueError, match=r"of id -1, the emb|of table 2; there"):
            emb.load_snapshot("rows", step=1)
        assert contents(table) == before
        assert oe.size(emb.load_snapshot(folder)) == before[-4]


def test_negative_ids_of_32_bits(tmp_path):
    """An id is one row, whether the cache, the Store or a snapshot has it."""
    ids = np.array([-1, -(2**31), 5, 2**31 - 1], np.int32)
    values = np.arange(4 * DIM, dtype=np.float32).reshape(4, DIM)
    with embedding(ssd(tmp_path / "a"), key_type="int32") as emb:
        table = oe.set_rows(emb.init(), ids[:, None], values[:, None], table_ids=[0])
        table = oe.flush(table)
        table = oe.stage(table, ids[:2, None], table_ids=[0])

        def rows_of(table):
            items = list(oe.items(table))
            keys = np.concatenate([ids for ids, _, _ in items]).tolist()
            rows = np.concatenate([rows for _, _, rows in items])
            assert sorted(keys) == sorted(ids.tolist())
            return dict(zip(keys, rows.tolist(), strict=True))

        expected = dict(zip(ids.tolist(), values.tolist(), strict=True))
        assert rows_of(table) == expected
        emb.save_snapshot(table, "one")
        assert rows_of(emb.load_snapshot("one")) == expected


def test_the_folder_is_where_snapshots_are_looked_for(tmp_path):
    options = ssd(tmp_path)
    assert options.folder == files.rank_folder(str(tmp_path))


def test_capacity_is_not_for_a_cached_table(tmp_path):
    with embedding(ssd(tmp_path)) as emb:
        emb.save_snapshot(emb.init(), "empty")
        with pytest.raises(ValueError, match="leave capacity out"):
            emb.load_snapshot("empty", capacity=7)
        assert oe.size(emb.load_snapshot("empty")) == 0


def test_save_and_restore_beside_a_pytree(tmp_path, expected):
    with embedding(ssd(tmp_path / "store")) as emb:
        table = train(emb.init(), 0, 30)
        oe.save(tmp_path / "checkpoint", table=table, weights=np.ones(3))
        table = train(table, 30, 40)
        restored = oe.restore(tmp_path / "checkpoint", like={"table": table})
        assert contents(train(restored["table"], 30, STEPS)) == expected


IDS = np.arange(WORST).reshape(BATCH, TABLES)


@pytest.fixture
def two(tmp_path):
    """Two embeddings on SSD."""
    with (
        embedding(ssd(tmp_path / "a"), "a") as a,
        embedding(ssd(tmp_path / "b"), "b") as b,
    ):
        yield {"a": a, "b": b}


def trained(tables):
    values = np.ones((*IDS.shape, DIM))
    return {name: oe.set_rows(table, IDS, values) for name, table in tables.items()}


def assert_alive(tables):
    for table in tables.values():
        oe.check(table)
        assert oe.size(table) == WORST


def flip_in_the_middle(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_restore_that_fails_leaves_cached_tables(tmp_path, two):
    tables = {name: emb.init() for name, emb in two.items()}
    folder = tmp_path / "s"
    oe.save(folder, a=tables["a"], b=tables["b"], w=np.arange(1000))
    tables = trained(tables)
    with (
        oe.MultiTableEmbedding(
            "other", DIM, "float32", "int64", optimizer=oe.sgd(0.1),
            store_options=device(None),
        ) as other,
        pytest.raises(ValueError, match="optimizer"),
    ):  # fmt: skip
        oe.restore(folder, like={"a": two["a"], "b": other})
    assert_alive(tables)
    flip_in_the_middle(folder / "arrays.npz")
    with pytest.raises(StoreError, match="damaged"):
        oe.restore(folder, like=two)
    assert_alive(tables)


@jax.tree_util.register_pytree_node_class
class Picky:
    """A node that takes what it is given, until it does not."""

    refuses = False

    def __init__(self, table):
        self.table = table

    def tree_flatten(self):
        return (self.table,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        if cls.refuses:
            raise AttributeError("no")
        return cls(*children)


def test_a_node_that_refuses_leaves_cached_tables(tmp_path, two, monkeypatch):
    table = two["a"].init()
    oe.save(tmp_path / "s", model=Picky(table))
    tables = trained({"a": table})
    monkeypatch.setattr(Picky, "refuses", True)
    with pytest.raises(AttributeError, match="no"):
        oe.restore(tmp_path / "s", like={"model": Picky(two["a"])})
    assert_alive(tables)


def test_one_embedding_for_two_tables(tmp_path, two):
    tables = {name: emb.init() for name, emb in two.items()}
    oe.save(tmp_path / "s", a=tables["a"], b=tables["b"])
    tables = trained(tables)
    with pytest.raises(ValueError, match="two tables are to be 'a'"):
        oe.restore(tmp_path / "s", like={"a": two["a"], "b": two["a"]})
    assert_alive(tables)


def test_damaged_rows_that_are_read_without_state(tmp_path):
    with embedding(ssd(tmp_path / "a"), "a") as emb:
        path = emb.save_snapshot(trained({"a": emb.init()})["a"], "one")
    with oe.MultiTableEmbedding(
        "serving", DIM, "float32", "int64", optimizer=oe.sgd(0.1),
        tables=[oe.make_table_options(oe.make_uniform_initializer(-1.0, 1.0))] * TABLES,
        store_options=ssd(tmp_path / "b"), seed=3,
    ) as serving:  # fmt: skip
        served = serving.load_snapshot(path, ignore="optimizer")
        (segment,) = Path(path).glob("*.seg")
        row = np.ones(DIM, np.float32).tobytes()
        segment.write_bytes(segment.read_bytes().replace(row, b"0" + row[1:], 1))
        with pytest.raises(StoreError):
            serving.load_snapshot(path, ignore="optimizer")
        assert_alive({"served": served})


def test_a_restore_of_damaged_rows_leaves_all_cached_tables(tmp_path, two):
    tables = trained({name: emb.init() for name, emb in two.items()})
    oe.save(tmp_path / "s", a=tables["a"], b=tables["b"])
    (segment,) = (tmp_path / "s" / "table-1").glob("*.seg")
    flip_in_the_middle(segment)
    with pytest.raises(StoreError):
        oe.restore(tmp_path / "s", like=two)
    assert_alive(tables)


def test_a_relative_path_of_a_running_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with embedding(ssd("here")) as emb:
        table = emb.init()
        monkeypatch.chdir("/")
        table = train(table, 0, 5)
        emb.save_snapshot(table, "one")
        assert emb.list_snapshots() == ["one"]


def test_room_for_the_rows_of_a_cache(tmp_path):
    """The snapshot's table had a cache of fewer slots than rows."""
    with embedding(ssd(tmp_path / "a", WORST), "a") as emb:
        table = train(emb.init(), 0, STEPS)
        rows = oe.size(table)
        path = emb.save_snapshot(table, "one")
    assert rows > 2 * WORST
    few = oe.make_device_mem_store_options(capacity=10)
    with (
        embedding(few, "few") as emb,
        pytest.raises(ValueError, match=rf"load_snapshot\(capacity={rows}\)"),
    ):
        emb.load_snapshot(path)
