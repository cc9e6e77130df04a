"""The persistent table reader and writer, against a dict of rows."""

import inspect
import os
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oneemb_jax as oe
from oneemb_jax.oneflow_format import owners
from oneemb_jax.store import Store, StoreError
from snapshots import UNIFORM, contents, embedding, train

reader_of = oe.make_persistent_table_reader
writer_of = oe.make_persistent_table_writer
F32 = np.float32


@pytest.mark.parametrize("function", [reader_of, writer_of])
def test_the_parameters_are_the_seed_systems(function):
    parameters = inspect.signature(function).parameters
    assert [*parameters] == [
        "paths",
        "snapshot_name",
        "key_type",
        "value_type",
        "storage_dim",
        "physical_block_size",
    ]
    assert parameters["physical_block_size"].default == 4096


def read(*words: Any) -> dict[tuple[int, int], bytes]:
    with reader_of(*words) as reader:
        found = {}
        for keys, tables, rows in reader.items():
            assert (keys.dtype, rows.dtype) == (np.dtype(words[2]), F32)
            assert len(keys) <= 65536
            for key, of, row in zip(keys, tables, rows, strict=True):
                assert (int(key), int(of)) not in found
                found[int(key), int(of)] = row.tobytes()
        assert len(reader) == len(found)
        return found


KEYS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 1, 2])
BATCHES = st.lists(
    st.lists(st.tuples(KEYS, st.sampled_from([0, 1, 65535])), max_size=9)
)


@settings(max_examples=25)
@given(
    batches=BATCHES,
    key_type=st.sampled_from(["int32", "uint32", "int64", "uint64"]),
    width=st.integers(1, 50),
    ranks=st.integers(1, 3),
    block=st.sampled_from([512, 4096]),
)
def test_what_is_written_is_read(
    tmp_path_factory, batches, key_type, width, ranks, block
):
    folder = tmp_path_factory.mktemp("table")
    paths = [folder / f"{i}-{ranks}" for i in range(ranks)]
    random, wanted = np.random.default_rng(0), {}
    with writer_of(paths, "a", key_type, F32, width, block) as writer:
        for batch in batches:
            keys = np.array([key for key, _ in batch], np.int64).astype(key_type)
            tables = np.array([of for _, of in batch], np.int64)
            rows = random.integers(0, 2**32, (len(batch), width), np.uint32)
            writer.write(keys, rows.view(F32), tables)
            for key, of, row in zip(keys, tables, rows, strict=True):
                wanted[int(key), int(of)] = row.tobytes()
    assert read(paths, "a", key_type, F32, width) == wanted
    assert read(folder, "a", key_type, F32, width) == wanted
    # Each rank has the keys that it owns.
    for rank, path in enumerate(paths):
        with Store(path, 4 * width) as store:
            store.load_snapshot("a")
            for ids, _, _ in store.items():
                keys = ids.astype(f"u{np.dtype(key_type).itemsize}").view(key_type)
                assert (owners(keys, ranks) == rank).all()


@pytest.mark.parametrize("optimizer", [oe.adam(0.1), oe.rowwise_adagrad(0.1)])
def test_the_rows_of_a_table(tmp_path, optimizer):
    with embedding(tmp_path, optimizer=optimizer) as emb:
        table = train(emb.init(), 0, 3)
        emb.save_snapshot(table, "three")
        ids = np.array([id_ for _, id_ in contents(table)])
        rows = oe.get_rows(table, ids)
        words = emb.spec.row_words
    whole = read(tmp_path, "three", "int64", F32, words)
    assert whole == {(id_, of): row for (of, id_), row in contents(table).items()}
    parts = [rows.embedding, *(x.reshape(len(ids), -1) for x in rows.state.values())]
    wanted = np.concatenate(parts, axis=1)
    found = read([tmp_path / "0-1"], "three", np.int64, F32, wanted.shape[1])
    for id_, row in zip(ids, wanted, strict=True):
        assert found[int(id_), 0] == row.tobytes()


def test_several_tables_need_items(tmp_path):
    tables = [oe.make_table_options(UNIFORM)] * 2
    with embedding(tmp_path, tables=tables) as emb:
        table = train(emb.init(), 0, 2)
        emb.save_snapshot(table, "two")
    with reader_of(tmp_path, "two", "int64", F32, 12) as reader:
        with pytest.raises(ValueError, match=r"reader\.items\(\)"):
            next(reader)
        count = sum(len(keys) for keys, _, _ in reader.items())
        assert count == oe.size(table) == len(reader)
    with embedding(tmp_path / "shared", tables=tables, key_space="shared") as emb:
        emb.save_snapshot(train(emb.init(), 0, 2), "two")
    with reader_of(tmp_path / "shared", "two", "int64", F32, 12) as reader:
        assert sum(len(keys) for keys, _ in reader) == len(reader) > 0


def test_a_table_from_a_writer(tmp_path):
    """Another number of ranks, and rows of two tables; the step is asked for."""
    tables = [oe.make_table_options(UNIFORM)] * 2
    paths = [tmp_path / "new" / f"{i}-3" for i in range(3)]
    with embedding(tmp_path / "old", tables=tables) as emb:
        table = train(emb.init(), 0, 5)
        emb.save_snapshot(table, "five")
        with (
            reader_of(tmp_path / "old", "five", "int64", F32, 12) as reader,
            writer_of(paths, "five", "int64", F32, 12) as writer,
        ):
            for keys, of, rows in reader.items():
                writer.write(keys, rows, of)
    for folder in (tmp_path / "new", paths):
        with embedding(folder, tables=tables) as emb:
            assert emb.list_snapshots() == ["five"]
            emb.verify_snapshot("five")
            with pytest.raises(ValueError, match=r"adam.* pass step=") as caught:
                emb.load_snapshot("five")
            assert "step=None" in str(caught.value)
            loaded = emb.load_snapshot("five", step=5)
            assert contents(loaded) == contents(table)
            assert contents(train(loaded, 5, 9)) == contents(train(table, 5, 9))
            saved = tmp_path / "new" / "0-3" / "snap" / "five"
            with pytest.raises(ValueError, match="part 1 of 3"):
                emb.load_snapshot(saved)
    for changes, words in [
        ({"dim": 5}, "storage_dim=12, but adam with embedding_dim=5 needs 15"),
        ({"key_type": "int32"}, "keys of int64"),
        ({"tables": tables[:1]}, "a row of table 1; there are 1"),
    ]:
        options = {"tables": tables, **changes}
        refused = pytest.raises(ValueError, match=words)
        with embedding(tmp_path / "new", **options) as emb, refused:
            emb.load_snapshot("five", step=5)
    with embedding(tmp_path / "new", tables=tables) as emb:
        emb.delete_snapshot("five")
        assert emb.list_snapshots() == []


def test_parts_of_different_tables(tmp_path):
    for name, width in [("a", 12), ("b", 8)]:
        paths = [tmp_path / name / f"{i}-2" for i in range(2)]
        writer_of(paths, "one", "int64", F32, width).close()
    mixed = [tmp_path / "a" / "0-2", tmp_path / "b" / "1-2"]
    with pytest.raises(ValueError, match=r"b/1-2.*: not part 2 of one table"):
        reader_of(mixed, "one", "int64", F32, 12)
    again = shutil.copytree(paths[0], tmp_path / "c" / "0-2")
    with pytest.raises(ValueError, match=r"c/0-2.*: not part 2 of one table"):
        reader_of([paths[0], again], "one", "int64", F32, 8)


def test_rows_without_padding_words(tmp_path):
    with embedding(tmp_path, optimizer=oe.rowwise_adagrad(0.1)) as emb:
        assert emb.spec.row_words == 8
        with writer_of(tmp_path, "five", "int64", F32, 5) as writer:
            writer.write(np.array([9]), np.arange(5, dtype=F32)[None])
        rows = oe.get_rows(emb.load_snapshot("five"), [9])
    assert rows.embedding.tolist() == [[0, 1, 2, 3]]
    assert rows.state["sum"].tolist() == [4]


ROW = np.ones((1, 2), F32)


def test_wrong_batches_write_nothing(tmp_path):
    with writer_of(tmp_path, "a", "int64", "float32", 2) as writer:
        one = np.array([1])
        for keys, values, tables, words in [
            ([1.5], ROW, None, "keys"),
            (np.array([1], np.int32), ROW, None, r"keys=...\): int32\[1\]; expected"),
            (one[None], ROW, None, "keys"),
            (one, ROW.astype(float), None, r"values=...\): float64\[1, 2\]"),
            (one, ROW[0], None, "values"),
            (one, ROW[:, :1], None, "values"),
            (one, ROW, [0, 1], "table_ids"),
            (one, ROW, [0.5], "table_ids"),
            (one, ROW, [65536], "table_ids"),
            (one, ROW, [-1], "table_ids"),
        ]:
            with pytest.raises(ValueError, match=words):
                writer.write(keys, values, tables)
    assert read(tmp_path, "a", "int64", F32, 2) == {}


ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"snapshot_name": ""}, ValueError, "name"),
    ({"snapshot_name": 3}, TypeError, "name=3"),
    ({"key_type": "float32"}, ValueError, "key_type"),
    ({"key_type": "nonsense"}, TypeError, "key_type"),
    ({"value_type": "float64"}, ValueError, "value_type"),
    ({"value_type": None}, ValueError, "value_type"),
    ({"value_type": "nonsense"}, ValueError, "value_type"),
    ({"storage_dim": 0}, ValueError, "storage_dim"),
    ({"storage_dim": 2**14 + 1}, ValueError, "storage_dim"),
    ({"storage_dim": 2.5}, TypeError, "storage_dim"),
    ({"physical_block_size": 1024}, ValueError, "physical_block_size"),
    ({"paths": []}, ValueError, "paths"),
    ({"paths": ["a", "./a"]}, ValueError, "each once"),
]


@pytest.mark.parametrize("function", [reader_of, writer_of])
@pytest.mark.parametrize(("changes", "error", "words"), ARGUMENTS, ids=str)
def test_wrong_arguments(tmp_path, function, changes, error, words):
    good = {
        "paths": tmp_path / "t",
        "snapshot_name": "a",
        "key_type": "int64",
        "value_type": "float32",
        "storage_dim": 2,
    }
    with pytest.raises(error, match=words):
        function(**{**good, **changes})
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_the_snapshot(tmp_path):
    writer_of(tmp_path, "a", "int64", F32, 2).close()
    with pytest.raises(ValueError, match=r"storage_dim=3.*rows of storage_dim=2\."):
        reader_of(tmp_path, "a", "int64", F32, 3)
    with pytest.raises(ValueError, match="keys of int64"):
        reader_of(tmp_path, "a", "int32", F32, 2)
    with pytest.raises(FileNotFoundError, match=r"name='b'.* found: a\."):
        reader_of(tmp_path, "b", "int64", F32, 2)
    with pytest.raises(FileExistsError, match="exists already"):
        writer_of(tmp_path, "a", "int64", F32, 2)
    with Store(tmp_path / "store" / "0-1", 8) as store:
        store.save_snapshot("a", b"mine")
    with pytest.raises(ValueError, match="of no table"):
        reader_of(tmp_path / "store", "a", "int64", F32, 2)


def test_damage_is_an_error(tmp_path):
    with writer_of(tmp_path, "a", "int64", F32, 2) as writer:
        writer.write(np.array([1]), np.full((1, 2), 7.25, F32))
    (segment,) = (tmp_path / "0-1" / "snap" / "a").glob("*.seg")
    segment.chmod(0o644)
    data = bytearray(segment.read_bytes())
    data[data.index(np.float32(7.25).tobytes())] ^= 1
    segment.write_bytes(data)
    with (
        reader_of(tmp_path, "a", "int64", F32, 2) as reader,
        pytest.raises(StoreError, match="damaged"),
    ):
        next(reader)


def test_closed_and_in_use(tmp_path):
    writer = writer_of(tmp_path, "a", "int64", F32, 2)
    with pytest.raises(BlockingIOError, match=str(os.getpid())):
        writer_of(tmp_path, "b", "int64", F32, 2)
    # One of two folders is in use: the other is let go of again.
    with pytest.raises(BlockingIOError):
        writer_of([tmp_path / "x", tmp_path / "0-1"], "b", "int64", F32, 2)
    Store(tmp_path / "x", 8).close()
    writer.write(np.array([1]), ROW)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(np.array([1]), ROW)
    reader = reader_of(tmp_path, "a", "int64", F32, 2)
    assert [keys.tolist() for keys, _ in reader] == [[1]]
    assert [*reader] == []  # once
    items = reader.items()
    reader.close()
    for call in (lambda: next(reader), lambda: len(reader), lambda: next(items)):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_no_snapshot_after_an_error(tmp_path):
    def fails():
        with writer_of(tmp_path, "a", "int64", F32, 2) as writer:
            writer.write(np.array([1]), ROW)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()
    writer = writer_of(tmp_path, "a", "int64", F32, 2)
    writer.write(np.array([1]), ROW)
    del writer
    with pytest.raises(FileNotFoundError):
        reader_of(tmp_path, "a", "int64", F32, 2)


def test_all_folders_or_none(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    writer = writer_of(paths, "one", "int64", F32, 2)
    writer.write(np.arange(9), np.ones((9, 2), F32))
    (tmp_path / "b" / "tmp").rmdir()
    with pytest.raises(OSError, match="b/tmp"):
        writer.close()
    with pytest.raises(FileNotFoundError, match="found: none"):
        reader_of(paths, "one", "int64", F32, 2)
    writer_of(paths, "one", "int64", F32, 2).close()
