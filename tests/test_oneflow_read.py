"""Reading OneFlow's snapshots: every layout, and every file that is wrong."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oneemb_jax.oneflow as oneflow
from oneemb_jax import oneflow_format, oneflow_reader
from oneflow_files import RankFiles, draw_puts, live_rows, write_table

KEY_TYPES = ("int32", "uint32", "int64", "uint64")


def read_all(root, name="final", key_type=None, storage_dim=None):
    """Key to bytes of its row; fails where a key comes twice."""
    found = {}
    with oneflow.open_snapshot(root, name, key_type, storage_dim) as snapshot:
        for keys, rows in snapshot:
            assert keys.dtype == snapshot.key_type
            assert rows.dtype == np.float32
            assert rows.shape == (len(keys), snapshot.storage_dim)
            for key, row in zip(keys.tolist(), rows, strict=True):
                assert key not in found
                found[key] = row.tobytes()
        assert len(found) == len(snapshot)
    return found


@pytest.fixture
def table(tmp_path):
    """A table of two ranks and 43 keys at most, some of them rewritten."""
    puts = draw_puts("int64", 48, [30, 25, 20])
    write_table(tmp_path / "table", puts, num_ranks=2)
    return tmp_path / "table"


def rewrite(path: Path, change):
    path.write_bytes(change(path.read_bytes()))


@given(
    key_type=st.sampled_from(KEY_TYPES),
    # 4 B, a few a block, one a block, several blocks a row; odd ones leave gaps.
    dim=st.sampled_from([1, 3, 16, 48, 100, 128, 129, 300, 1024, 1500]),
    block=st.sampled_from([512, 4096]),
    num_ranks=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 43), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_every_layout(tmp_path_factory, key_type, dim, block, num_ranks, sizes, seed):
    root = tmp_path_factory.mktemp("table")
    puts = draw_puts(key_type, dim, sizes, seed)
    write_table(root, puts, num_ranks, block)
    assert read_all(root, "final", key_type, dim) == live_rows(puts)


@given(
    dim=st.sampled_from([1, 48, 129, 300]),
    blocks=st.integers(1, 3),
    sizes=st.lists(st.integers(0, 43), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_several_chunks(tmp_path_factory, dim, blocks, sizes, seed):
    root = tmp_path_factory.mktemp("table")
    puts = draw_puts("int64", dim, sizes, seed)
    chunk_bytes = 1536 * blocks
    write_table(root, puts, 2, 512, chunk_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oneflow_format, "CHUNK_BYTES", chunk_bytes)
        assert read_all(root) == live_rows(puts)


def test_a_full_chunk_of_4_gib(tmp_path):
    """The last row of chunk 0 and the first of chunk 1, in files full of holes."""
    rank = RankFiles(key_size=8, dim=256, block=4096)
    rank.blocks = rank.blocks_per_chunk - 1
    rank.keys[0], rank.values[0] = bytearray(), bytearray()
    write_table(tmp_path, [(np.array([1, 2]), np.zeros((2, 256), np.float32))])
    folder = tmp_path / "0-1"
    per_chunk = 4 * rank.blocks_per_chunk
    rows = np.arange(512, dtype=np.float32).reshape(2, 256)
    for number, position in ((0, per_chunk - 1), (1, 0)):
        row = rows[number].tobytes()
        for path, offset, data in (
            (f"keys/key-{number:012d}", 8 * position, np.int64(7 + number).tobytes()),
            (f"values/value-{number:012d}", 1024 * position, row),
        ):
            with (folder / path).open("wb") as file:
                file.seek(offset)
                file.write(data)
        ids = np.array([number * per_chunk + position], "<u8")
        (folder / f"snapshots/final/index-{number:012d}").write_bytes(ids.tobytes())
    listed = "index-000000000000\nindex-000000000001\n"
    (folder / "snapshots/final/LIST").write_text(listed)
    (folder / "VALUE_SIZE").write_text("1024\n")
    (folder / "PHYSICAL_BLOCK_SIZE").write_text("4096\n")
    (folder / "NUM_LOGICAL_BLOCKS_PER_CHUNK").write_text("1048576\n")
    assert read_all(tmp_path) == {7: rows[0].tobytes(), 8: rows[1].tobytes()}


def test_far_apart_rows_are_read_in_pieces(tmp_path, monkeypatch):
    """No more is read than short gaps, and no more at once than a span."""
    monkeypatch.setattr(oneflow_reader, "_GAP", 600)
    monkeypatch.setattr(oneflow_reader, "_SPAN", 2000)
    sizes = []
    read = oneflow_reader._read_span

    def count(file, start, size):
        sizes.append(size)
        return read(file, start, size)

    monkeypatch.setattr(oneflow_reader, "_read_span", count)
    # Two live rows, and dead ones for 30 blocks between them; then a full file.
    first, other = draw_puts("int64", 48, [1, 43])
    sparse = [first, *[(other[0][1:2], other[1][1:2])] * 30]
    write_table(tmp_path / "sparse", sparse)
    assert read_all(tmp_path / "sparse") == live_rows(sparse)
    assert sizes == [488, 192, 192]
    sizes.clear()
    write_table(tmp_path / "full", [other])
    assert read_all(tmp_path / "full") == live_rows([other])
    assert max(sizes) <= 2000 + 192
    assert len(sizes) > 4


def test_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(oneflow_reader, "BATCH_ROWS", 7)
    puts = draw_puts("int64", 48, [43] * 3 + [10, 5])
    write_table(tmp_path, puts)
    assert read_all(tmp_path) == live_rows(puts)
    with oneflow.open_snapshot(tmp_path, "final") as snapshot:
        assert [len(keys) for keys, _ in snapshot] == [7] * 6 + [1]
        running = iter(snapshot)
        next(running)
    with pytest.raises(ValueError, match="is closed"):
        next(running)


def test_a_snapshot_without_rows(tmp_path):
    write_table(tmp_path, [(np.empty(0, np.int64), np.empty((0, 4), np.float32))], 3)
    assert read_all(tmp_path) == {}
    assert oneflow.verify_snapshot(tmp_path, "final") == []


def test_an_older_snapshot_of_a_table_that_went_on(tmp_path):
    first, second = draw_puts("int64", 48, [20, 40])
    rank = RankFiles(8, 48, 512)
    for puts, name in ((first, "first"), (second, "second/of two")):
        words = puts[0].view(np.uint64).tolist()
        rank.put(zip(words, map(bytes, puts[1].view(np.uint8)), strict=True))
        rank.save(name)
    rank.write(tmp_path / "0-1")
    assert oneflow.list_snapshots(tmp_path) == ["first", "second/of two"]
    assert read_all(tmp_path, "first") == live_rows([first])
    assert read_all(tmp_path, "second/of two") == live_rows([first, second])
    assert oneflow.verify_snapshot(tmp_path, "first") == []


def test_ranks_given_one_by_one(table, tmp_path):
    wanted = read_all(table)
    ranks = [table / "1-2", str(table / "0-2")]
    assert read_all(ranks) == wanted
    # Under other names, their order says which is which.
    moved = [tmp_path / "a", tmp_path / "b"]
    shutil.copytree(table / "0-2", moved[0])
    shutil.copytree(table / "1-2", moved[1])
    assert read_all(moved) == wanted
    with pytest.raises(ValueError, match="belongs to rank 1 of 2, found in rank 0"):
        read_all(moved[::-1])


def test_a_single_rank_is_a_root_too(tmp_path):
    puts = draw_puts("int64", 3, [10])
    write_table(tmp_path, puts)
    assert read_all(tmp_path / "0-1") == live_rows(puts)


def test_nothing_is_written_or_locked(table, tmp_path):
    wanted = read_all(table)
    shutil.rmtree(table / "0-2" / "LOCK", ignore_errors=True)
    os.remove(table / "0-2" / "LOCK")
    before = sorted((p, p.stat().st_mtime_ns) for p in table.rglob("*"))
    for path in table.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert read_all(table) == wanted
    for path in table.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in table.rglob("*"))


def test_a_snapshot_is_read_as_often_as_wanted(table):
    snapshot = oneflow.open_snapshot(table, "final", "int64", 48)
    with snapshot:
        once, again = ([k.tolist() for k, _ in snapshot] for _ in range(2))
        assert once == again
        assert once == [keys.tolist() for keys in snapshot.keys()]  # noqa: SIM118
        assert repr(snapshot) == (
            f"Snapshot 'final' of OneFlow: {len(snapshot)} rows of 48 float32, keys "
            "int64, 2 rank(s)"
        )
        running = iter(snapshot)
        next(running)
    with pytest.raises(ValueError, match="snapshot 'final' is closed"):
        next(running)
    with pytest.raises(ValueError, match="closed"):
        list(snapshot)


@pytest.mark.parametrize(
    ("key_type", "storage_dim", "error", "message"),
    [
        ("int32", None, ValueError, "KEY_SIZE: keys have 8 bytes.*use int64 or"),
        ("float32", None, ValueError, "use one of int32, uint32"),
        ("nonsense", None, TypeError, "not a dtype"),
        (None, 16, ValueError, "VALUE_SIZE: .*storage_dim=48.*wants storage_dim=16"),
    ],
)
def test_arguments_that_do_not_fit(table, key_type, storage_dim, error, message):
    with pytest.raises(error, match=message):
        oneflow.open_snapshot(table, "final", key_type, storage_dim)


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/etc", "a//b", "a\0b"])
def test_names_that_lead_elsewhere(table, name):
    with pytest.raises(ValueError, match=r"open_snapshot\(name="):
        oneflow.open_snapshot(table, name)


def test_names_that_are_none(table):
    with pytest.raises(TypeError, match="pass a string"):
        oneflow.open_snapshot(table, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileNotFoundError, match=r"no snapshot 'end'.*found: 'final'"):
        oneflow.open_snapshot(table, "end")


def test_missing_ranks(table, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found 0-2; missing: 1-2"):
        oneflow.open_snapshot(table / "0-2", "final")
    ranks = [table / "0-2", table / "1-2", table / "1-2"]
    with pytest.raises(FileNotFoundError, match="twice"):
        oneflow.open_snapshot(ranks, "final")
    shutil.move(table / "1-2", table / "1-3")
    with pytest.raises(ValueError, match="tables of 2 and 3 ranks"):
        oneflow.open_snapshot(table, "final")
    with pytest.raises(ValueError, match=r"paths=\[\]"):
        oneflow.open_snapshot([], "final")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        oneflow.open_snapshot(tmp_path / "nowhere", "final")
    with pytest.raises(FileNotFoundError, match="expected a table of OneFlow's"):
        oneflow.open_snapshot(tmp_path, "final")


def test_ranks_of_different_tables(table, tmp_path):
    write_table(tmp_path / "other", draw_puts("int64", 3, [9]), num_ranks=2)
    ranks = [table / "0-2", tmp_path / "other" / "1-2"]
    with pytest.raises(ValueError, match=r"VALUE_SIZE: states 12, but .* states 192"):
        oneflow.open_snapshot(ranks, "final")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("KEY_SIZE", "7\n", "states 7, expected 4 or 8"),
        ("KEY_SIZE", "", "expected one number"),
        ("KEY_SIZE", "-8\n", "expected one number"),
        ("KEY_SIZE", "8\n" * 40, "expected one number"),
        ("VALUE_SIZE", "0\n", "states 0, expected a multiple of 4"),
        ("VALUE_SIZE", "190\n", "states 190, expected a multiple of 4"),
        ("VALUE_SIZE", "99999999999\n", "expected a multiple of 4"),
        ("VALUE_SIZE", "1024\n", "states 8388608, expected 4194304"),
        ("PHYSICAL_BLOCK_SIZE", "1024\n", "expected 512 or 4096"),
        ("PHYSICAL_BLOCK_SIZE", "4096\n", "states 8388608, expected 1048576"),
        ("NUM_LOGICAL_BLOCKS_PER_CHUNK", "8388607\n", "expected 8388608"),
        ("NUM_LOGICAL_BLOCKS_PER_CHUNK", "\xb2\n", "expected one number"),
    ],
)
def test_metadata_that_no_table_has(table, file, text, message):
    for rank in table.iterdir():
        (rank / file).write_text(text)
    with pytest.raises(ValueError, match=rf"{file}.*{message}|{message}.*{file}"):
        oneflow.open_snapshot(table, "final")


def test_missing_metadata(table):
    (table / "1-2" / "VALUE_SIZE").unlink()
    with pytest.raises(FileNotFoundError, match="1-2: has no file VALUE_SIZE"):
        oneflow.open_snapshot(table, "final")


INDEX = "snapshots/final/index-000000000000"
LIST = "snapshots/final/LIST"
KEYS, VALUES = "keys/key-000000000000", "values/value-000000000000"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (LIST, lambda b: b[:9], "LIST: holds 'index-000'.*truncated or foreign"),
        (LIST, lambda b: b + b, "lists 'index-000000000000' twice"),
        (LIST, lambda b: b"", "does not list index-000000000000.*stopped while"),
        (LIST, lambda b: b"\xff\xfe" * 99, "holds .*expected a name like"),
        (INDEX, lambda b: b[:-1], "bytes, expected 8 for each of 1 to"),
        (INDEX, lambda b: b"", "0 bytes, expected 8"),
        (INDEX, lambda b: b + b[:8], "lists row \\d+ twice"),
        (INDEX, lambda b: b + bytes(16), "lists row 0 twice"),
        (INDEX, lambda b: b + b"\xff" * 8, f"lists row {2**64 - 1}, but this chunk"),
        (INDEX, lambda b: b + b"\0\0\0\x01\0\0\0\0", "lists row 16777216, but"),
        (INDEX, lambda b: b + b"\xff\xff\xff\0\0\0\0\0", "truncated"),
        (KEYS, lambda b: b[: len(b) // 2], "the file is truncated"),
        (VALUES, lambda b: b[: len(b) // 2], "the file is truncated"),
        (KEYS, lambda b: b"", "key-000000000000: 0 bytes"),
        (VALUES, lambda b: b"", "value-000000000000: 0 bytes"),
        (KEYS, lambda b: b[::-1], "belongs to rank"),
    ],
)
def test_damaged_files(table, file, change, message):
    rewrite(table / "0-2" / file, change)
    with pytest.raises(ValueError, match=message):
        read_all(table)
    assert any(line for line in oneflow.verify_snapshot(table, "final"))


@pytest.mark.parametrize("file", [LIST, INDEX, KEYS, VALUES])
def test_missing_files(table, file):
    (table / "0-2" / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        read_all(table)
    assert any(file in line for line in oneflow.verify_snapshot(table, "final"))


def test_a_snapshot_that_was_not_finished(table):
    """OneFlow makes index files of full length first, cuts and lists them last."""
    whole = 2 * 8388608 * 8
    path = table / "0-2" / INDEX.replace("00.", "01.")
    path = path.with_name("index-000000000001")
    path.touch()
    os.truncate(path, whole)
    with pytest.raises(ValueError, match=r"index-000000000001.*stopped while it saved"):
        read_all(table)
    # Cut already, it is what an older snapshot of that name left.
    os.truncate(path, 8)
    read_all(table)
    (finding,) = oneflow.verify_snapshot(table, "final")
    assert "left by an older snapshot" in finding


def test_what_verify_finds_in_rows(table):
    index = np.fromfile(table / "0-2" / INDEX, "<u8")
    keys = np.fromfile(table / "0-2" / KEYS, "<u8")
    keys[index[0]] = keys[index[1]]
    keys.tofile(table / "0-2" / KEYS)
    with (table / "1-2" / VALUES).open("r+b") as file:
        live = int(np.fromfile(table / "1-2" / INDEX, "<u8")[0])
        file.seek(live // 2 * 512 + live % 2 * 192)
        file.write(np.float32(np.nan).tobytes())
    with (table / "1-2" / KEYS).open("ab") as file:
        file.write(bytes(17))
    findings = oneflow.verify_snapshot(table, "final")
    assert [line.split(": ", 1)[1] for line in findings] == [
        "1 rows of snapshot 'final' have a key that another row has.",
        f"{(table / '1-2' / KEYS).stat().st_size} bytes, no whole number of blocks "
        "of 16.",
        f"{len(list((table / '1-2' / KEYS).read_bytes())) // 16} blocks, but "
        f"{(table / '1-2' / VALUES).stat().st_size // 512} in "
        "value-000000000000: OneFlow was stopped while it wrote rows.",
        "1 rows hold NaN or infinity.",
    ]
