"""Snapshots of tables: what is saved comes back, and training goes on from it."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oneemb_jax as oe
from oneemb_jax import snapshot as snapshot_module
from oneemb_jax._ffi import native
from oneemb_jax.store import Store, StoreError
from snapshots import OPTIMIZERS, UNIFORM, assert_same, contents, embedding, train

each_optimizer = pytest.mark.parametrize(
    "optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS
)


@each_optimizer
def test_training_goes_on_to_the_same_bits(tmp_path, optimizer):
    with embedding(tmp_path, optimizer=optimizer) as emb:
        straight = train(emb.init(), 0, 10)
        saved = emb.save_snapshot(straight, "ten")
        straight = train(straight, 10, 20)
    assert saved == str(tmp_path / "0-1" / "snap" / "ten")
    # Slots differ in a table that its rows came to in another order.
    with embedding(tmp_path, optimizer=optimizer, capacity=99) as emb:
        loaded = emb.load_snapshot("ten")
        resumed = train(loaded, 10, 20)
        assert loaded.spec == resumed.spec == emb.spec
    assert_same(resumed, straight)
    assert resumed.capacity == 99


CHILD = """
import sys
import numpy as np
import oneemb_jax as oe
from snapshots import contents, embedding, train
with embedding(sys.argv[1]) as emb:
    table = train(emb.load_snapshot("ten"), 10, 20)
np.save(sys.argv[2], np.array(sorted(contents(table).items()), object))
"""


def test_training_goes_on_in_another_process(tmp_path):
    with embedding(tmp_path) as emb:
        table = train(emb.init(), 0, 10)
        emb.save_snapshot(table, "ten")
    out = tmp_path / "rows.npy"
    subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(out)],
        check=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    rows = np.load(out, allow_pickle=True)
    wanted = sorted(contents(train(table, 10, 20)).items())
    assert [tuple(pair) for pair in rows] == wanted


KEYS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 2**32, 1])


@settings(max_examples=25)
@given(
    dims=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    optimizer=st.sampled_from([*OPTIMIZERS.values()]),
    key_type=st.sampled_from(["int32", "uint32", "int64", "uint64"]),
    num_tables=st.integers(1, 4),
    key_space=st.sampled_from(["separate", "shared"]),
    padding=st.booleans(),
    ids=st.lists(KEYS, max_size=40),
    seed=st.integers(0, 99),
)
def test_round_trip(
    tmp_path_factory,
    dims,
    optimizer,
    key_type,
    num_tables,
    key_space,
    padding,
    ids,
    seed,
):
    tmp_path = tmp_path_factory.mktemp("round")
    random = np.random.default_rng(seed)
    keys = np.array(ids, np.int64).astype(key_type)
    with embedding(
        tmp_path,
        dims,
        optimizer=optimizer,
        key_type=key_type,
        tables=[oe.make_table_options(UNIFORM)] * num_tables,
        key_space=key_space,
        padding_idx=1 if padding else None,
    ) as emb:
        tables = random.integers(0, num_tables, len(keys)).astype(np.int32)
        acts, ctx = oe.lookup(emb.init(), keys, tables)
        grads = random.standard_normal(acts.shape).astype(np.float32)
        table = oe.update(emb.init(), ctx, grads)
        emb.save_snapshot(table, "one")
        emb.verify_snapshot("one")
        assert_same(emb.load_snapshot("one"), table)


def test_odd_bits_survive(tmp_path):
    words = [0x7FC00001, 0xFFFFFFFF, 0x80000000, 0x00000001]
    odd = np.array([words, words[::-1]], np.uint32).view(np.float32)
    with embedding(tmp_path, optimizer=oe.sgd(0.1)) as emb:
        table = oe.set_rows(emb.init(), np.array([0, -1]), odd)
        emb.save_snapshot(table, "odd")
        rows = oe.get_rows(emb.load_snapshot("odd"), np.array([0, -1]))
    assert rows.embedding.tobytes() == odd.tobytes()


def test_small_batches_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_module, "_BATCH_BYTES", 4000)
    monkeypatch.setattr(snapshot_module, "SEGMENT_BYTES", 1 << 14)
    with embedding(tmp_path, 100, capacity=3000) as emb:
        ids = np.arange(2500)
        rows = np.random.default_rng(0).standard_normal((2500, 100))
        table = oe.set_rows(emb.init(), ids, rows)
        emb.save_snapshot(table, "many")
        assert len(list((tmp_path / "0-1" / "snap" / "many").glob("*.seg"))) > 20
        assert_same(emb.load_snapshot("many"), table)


def test_a_large_table_has_larger_files(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_module, "SEGMENT_BYTES", 1 << 13)
    monkeypatch.setattr(snapshot_module, "_MOST_SEGMENTS", 4)
    with embedding(tmp_path, 100, capacity=3000) as emb:
        table = oe.set_rows(emb.init(), np.arange(2500), np.ones((2500, 100)))
        saved = Path(emb.save_snapshot(table, "many"))
        assert 3 <= len(list(saved.glob("*.seg"))) <= 6
        assert_same(emb.load_snapshot("many"), table)


def test_the_largest_rows(tmp_path):
    with embedding(tmp_path, 2**14, capacity=3, optimizer=oe.sgd(0.1)) as emb:
        table = oe.set_rows(emb.init(), [5], np.arange(2**14)[None])
        emb.save_snapshot(table, "wide")
        assert_same(emb.load_snapshot("wide"), table)
    with embedding(tmp_path / "wider", 2**14 + 1, 3, optimizer=oe.sgd(0.1)) as emb:
        with pytest.raises(ValueError, match="65540 bytes"):
            emb.save_snapshot(emb.init(), "wide")
        assert not (tmp_path / "wider").exists()


@pytest.mark.parametrize("rows", [0, 64])
def test_empty_and_full(tmp_path, rows):
    with embedding(tmp_path, optimizer=oe.sgd(0.1)) as emb:
        table = emb.init()
        if rows:
            table = oe.set_rows(table, np.arange(rows), np.ones((rows, 4)))
        _, ctx = oe.lookup(table, np.arange(rows + 70))
        table = oe.update(table, ctx, np.ones((rows + 70, 4), np.float32))
        emb.save_snapshot(table, "one")
        loaded = emb.load_snapshot("one")
        assert_same(loaded, table)
        assert oe.stats(loaded)["overflows"] == 6 + rows
        with pytest.raises(oe.TableError, match="were dropped"):
            oe.check(loaded)
        assert_same(emb.load_snapshot("one", capacity=200), table)


def test_ids_meet_a_full_table_in_the_same_order(tmp_path):
    with embedding(tmp_path, capacity=20) as emb:
        table = train(emb.init(), 0, 2)
        assert oe.size(table) < 20
        emb.save_snapshot(table, "part")
        loaded = emb.load_snapshot("part")
        assert_same(train(loaded, 2, 9, 1000), train(table, 2, 9, 1000))
        assert oe.stats(loaded)["overflows"] == 0


def test_the_norm_of_gradients_is_the_same(tmp_path):
    with embedding(tmp_path) as emb:
        table = train(emb.init(), 0, 5)
        emb.save_snapshot(table, "one")
        loaded = emb.load_snapshot("one")
        ids = np.random.default_rng(0).integers(0, 60, 500)
        grads = np.random.default_rng(1).standard_normal((500, 4)).astype(np.float32)
        norms = [oe.global_norm(oe.lookup(t, ids)[1], grads) for t in (table, loaded)]
        # A context of the saved table serves the loaded one: found again by key.
        _, ctx = oe.lookup(table, ids)
        assert_same(oe.update(loaded, ctx, grads), oe.update(table, ctx, grads))
    assert np.asarray(norms[0]).tobytes() == np.asarray(norms[1]).tobytes()


def test_capacity(tmp_path):
    with embedding(tmp_path, capacity=8) as emb:
        table = oe.grow(oe.set_rows(emb.init(), [1, 2], np.ones((2, 4))), 30)
        table = oe.set_rows(table, np.arange(25), np.ones((25, 4)))
        emb.save_snapshot(table, "grown")
        with pytest.raises(
            ValueError, match=r"25 rows.* for 8\. .*load_snapshot\(capacity=30\)"
        ):
            emb.load_snapshot("grown")
        loaded = emb.load_snapshot("grown", capacity=30)
        assert_same(loaded, table)
        assert loaded.capacity == 30
        assert emb(loaded, [1])[0].shape == (1, 4)
        for wrong, error in [(0, ValueError), (2**31, ValueError), (0.5, TypeError)]:
            with pytest.raises(error, match="capacity"):
                emb.load_snapshot("grown", capacity=wrong)


def test_names_are_sorted_by_the_numbers_in_them(tmp_path):
    names = ["step-9-end", "step-10", "step-100", "a2b1", "a10", "a2b10", "step"]
    with embedding(tmp_path) as emb:
        table = emb.init()
        for name in names:
            emb.save_snapshot(table, name)
        assert emb.list_snapshots() == [
            "a2b1", "a2b10", "a10", "step", "step-9-end", "step-10", "step-100"
        ]  # fmt: skip


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with embedding("here") as emb:
        emb.save_snapshot(emb.init(), "one")
        monkeypatch.chdir("/")
        assert emb.list_snapshots() == ["one"]
        assert (tmp_path / "here").is_dir()


def test_the_folder_of_save_is_no_snapshot(tmp_path):
    with embedding(None) as emb:
        table = train(emb.init(), 0, 1)
        oe.save(tmp_path / "s", table=table)
        with pytest.raises(ValueError, match=r"oe\.restore reads.*table-0"):
            emb.load_snapshot(tmp_path / "s")
        assert_same(emb.load_snapshot(tmp_path / "s" / "table-0"), table)


def test_step_may_be_given(tmp_path):
    with embedding(tmp_path) as emb:
        emb.save_snapshot(train(emb.init(), 0, 2), "two")
        assert oe.stats(emb.load_snapshot("two", step=9))["step"] == 9
        for step, error in [(-1, ValueError), (2**32, ValueError), (True, TypeError)]:
            with pytest.raises(error, match="step="):
                emb.load_snapshot("two", step=step)


def test_a_device_of_its_own(tmp_path):
    device = jax.devices()[1]
    with embedding(tmp_path) as emb:
        table = train(emb.init(device), 0, 2)
        emb.save_snapshot(table, "two")
        loaded = emb.load_snapshot("two", device)
        assert {leaf.device for leaf in jax.tree.leaves(loaded)} == {device}
        assert_same(train(loaded, 2, 4), train(table, 2, 4))


def test_list_delete_and_names(tmp_path):
    with embedding(tmp_path) as emb:
        assert emb.list_snapshots() == []
        with pytest.raises(FileNotFoundError, match="found: none"):
            emb.load_snapshot("one")
        table = train(emb.init(), 0, 1)
        for name in ("one", "two.2", "0_-"):
            oe.save_snapshot(table, name)
        with pytest.raises(FileExistsError, match="delete it first"):
            emb.save_snapshot(table, "one")
        assert emb.list_snapshots() == ["0_-", "one", "two.2"]
        emb.delete_snapshot("one")
        with pytest.raises(FileNotFoundError, match=r"found: 0_-, two\.2"):
            emb.delete_snapshot("one")
        for name in ("", ".a", "a b", "x" * 201, "é", 3):
            with pytest.raises((ValueError, TypeError), match="save_snapshot"):
                emb.save_snapshot(table, name)
            with pytest.raises((ValueError, TypeError), match="load_snapshot"):
                emb.load_snapshot(name)
        assert emb.list_snapshots() == ["0_-", "two.2"]
        emb.init()
        assert_same(emb.load_snapshot("two.2"), table)


def test_no_folder_for_snapshots():
    with embedding(None) as emb:
        table = emb.init()
        for call in (
            lambda: emb.save_snapshot(table, "a"),
            lambda: oe.save_snapshot(table, "a"),
            lambda: emb.load_snapshot("a"),
            lambda: emb.delete_snapshot("a"),
            lambda: emb.verify_snapshot("a"),
            emb.list_snapshots,
        ):
            with pytest.raises(ValueError, match="have no persistent_path"):
                call()


def test_tables_that_cannot_be_saved(tmp_path):
    with embedding(tmp_path) as emb, embedding(tmp_path, name="b", seed=4) as other:
        with pytest.raises(ValueError, match=r"another embedding, .* seed"):
            emb.save_snapshot(other.init(), "a")
        with pytest.raises(TypeError, match="save_snapshot"):
            emb.save_snapshot(3, "a")
        table = emb.init()
        jax.jit(oe.reset_counters, donate_argnums=0)(table)
        with pytest.raises(ValueError, match="donated"):
            emb.save_snapshot(table, "a")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is closed"):
        emb.load_snapshot("a")


@pytest.mark.parametrize("kind", ["str", "Path", "bytes", "list"])
def test_paths_of_all_kinds(tmp_path, kind):
    path = tmp_path / "ein Örtchen 🙂" / "a:b%20'\""
    given = {"str": str(path), "Path": path, "bytes": os.fsencode(path)}.get(kind)
    with embedding([path] if kind == "list" else given) as emb:
        table = train(emb.init(), 0, 2)
        saved = emb.save_snapshot(table, "two")
        assert Path(saved).is_relative_to(path)
        assert_same(emb.load_snapshot("two"), table)
        for folder in (saved, Path(saved), os.fsencode(saved)):
            assert_same(emb.load_snapshot(folder), table)
            emb.verify_snapshot(folder)


def test_a_path_that_is_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    with embedding(path) as emb:
        table = train(emb.init(), 0, 2)
        saved = emb.save_snapshot(table, "two")
        assert_same(emb.load_snapshot("two"), table)
        os.remove(os.path.join(saved, "LIVE"))
        with pytest.raises(OSError, match="LIVE"):
            emb.load_snapshot("two")
    with pytest.raises(ValueError, match="NUL"), embedding("a\0b"):
        pass


def test_a_copy_elsewhere_needs_nothing_else(tmp_path):
    with embedding(tmp_path / "here") as emb:
        table = train(emb.init(), 0, 3)
        saved = emb.save_snapshot(table, "three")
        shutil.copytree(saved, tmp_path / "copy")
        emb.delete_snapshot("three")
        shutil.rmtree(tmp_path / "here")
        emb.verify_snapshot(tmp_path / "copy")
        assert_same(emb.load_snapshot(tmp_path / "copy"), table)
        with pytest.raises(FileNotFoundError, match="no snapshot"):
            emb.load_snapshot(tmp_path / "gone")
    with embedding(tmp_path / "there") as emb:
        target = tmp_path / "there" / "0-1" / "snap"
        target.mkdir(parents=True)
        (tmp_path / "copy").rename(target / "three")
        assert emb.list_snapshots() == ["three"]
        assert_same(emb.load_snapshot("three"), table)


def test_a_snapshot_that_a_store_saved(tmp_path):
    with Store(tmp_path / "0-1", 48) as store:
        store.save_snapshot("mine", b"words")
    with embedding(tmp_path) as emb, pytest.raises(ValueError, match="of no table"):
        emb.load_snapshot("mine")


def test_a_store_loads_the_rows_of_a_table(tmp_path):
    with embedding(tmp_path) as emb:
        table = train(emb.init(), 0, 3)
        emb.save_snapshot(table, "three")
    with Store(tmp_path / "0-1", 48) as store:
        store.load_snapshot("three")
        rows = {
            (int(of), int(id_)): row.tobytes()
            for ids, tables, rows in store.items()
            for id_, of, row in zip(ids.view(np.int64), tables, rows, strict=True)
        }
    assert rows == contents(table)


def test_rows_that_the_description_does_not_fit(tmp_path):
    """A snapshot's own words may be right and its rows not what they say."""
    with embedding(tmp_path / "a", padding_idx=5) as emb:
        saved = emb.save_snapshot(train(emb.init(), 0, 1), "one")
        user = snapshot_module.files.open_part(saved).reader.user
        for name, ids, tables, width, words in [
            ("table", [1, 2], [0, 1], 48, "a row of table 1; there are 1"),
            ("width", [1], [0], 44, "rows of 44 bytes, but its table has"),
            ("twice", [1, 2, 1], [0, 0, 0], 48, "1 of its rows have the key of"),
            (
                "padding",
                [1, 5],
                [0, 0],
                48,
                "a row of id 5, the embedding's padding_idx",
            ),
        ]:
            root = os.fsencode(tmp_path / name)
            writer = native.SnapshotWriter(root, "one", width, len(ids), 1 << 20)
            rows = np.ones((len(ids), width), np.uint8)
            writer.write(np.array(ids, np.uint64), np.array(tables, np.uint16), rows)
            writer.commit(user)
            with pytest.raises(ValueError, match=words):
                emb.load_snapshot(tmp_path / name / "snap" / "one")


def files_of(path):
    """The identities of a snapshot's files with rows."""
    segments = list(Path(path).glob("*.seg"))
    assert segments
    return {segment.stat().st_ino for segment in segments}


def test_rows_that_did_not_change_are_not_written_again(tmp_path):
    with embedding(tmp_path) as emb:
        start = train(emb.init(), 0, 3)
        table = train(start, 3, 5)
        first = emb.save_snapshot(table, "first")
        again = emb.save_snapshot(oe.reset_counters(table), "again")
        assert files_of(again) == files_of(first)
        emb.delete_snapshot("first")
        emb.verify_snapshot("again")
        assert_same(emb.load_snapshot("again"), oe.reset_counters(table))
        # Of as many updates and rows, but others.
        other = train(train(start, 4, 5), 3, 4)
        assert oe.size(other) == oe.size(table)
        assert other.step == table.step
        assert not files_of(emb.save_snapshot(other, "other")) & files_of(again)
        assert_same(emb.load_snapshot("other"), other)


def test_a_damaged_snapshot_is_not_built_on(tmp_path):
    with embedding(tmp_path) as emb:
        table = train(emb.init(), 0, 3)
        first = emb.save_snapshot(table, "first")
        segment = next(Path(first).glob("*.seg"))
        data = bytearray(segment.read_bytes())
        data[4200] ^= 1  # in the first row
        segment.chmod(0o600)
        segment.write_bytes(bytes(data))
        second = emb.save_snapshot(table, "second")
        assert not files_of(second) & files_of(first)
        emb.verify_snapshot("second")


def test_init_starts_empty_and_keeps_snapshots(tmp_path):
    with embedding(tmp_path) as emb:
        emb.save_snapshot(train(emb.init(), 0, 1), "one")
    with embedding(tmp_path) as emb:
        assert oe.size(emb.init()) == 0
        assert emb.list_snapshots() == ["one"]


def test_a_rolled_back_table_is_saved_as_it_is(tmp_path):
    """Nothing is taken for unchanged that another table has changed."""
    with embedding(tmp_path) as emb:
        old = train(emb.init(), 0, 3)
        emb.save_snapshot(train(old, 3, 5), "ahead")
        emb.save_snapshot(old, "back")
        assert_same(emb.load_snapshot("back"), old)


def test_counters_count_on(tmp_path):
    with embedding(tmp_path) as emb:
        table = emb.init()
        big = np.asarray(table.counters).copy()
        big[0, 1] = 2**32 - 1
        table = dataclasses.replace(table, counters=jax.numpy.asarray(big))
        emb.save_snapshot(table, "big")
        stats: Any = oe.stats(emb.load_snapshot("big"))
        assert stats["hits"] == 2**64 - 1


def test_store_error_is_one_class():
    assert issubclass(StoreError, RuntimeError)
