"""Writing OneFlow's snapshots: read by the slow reader, and all or nothing."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneemb_jax import oneflow_format, oneflow_writer
from oneemb_jax.oneflow_writer import SnapshotWriter
from oneflow_files import RankFiles, owner, read_slowly

KEY_TYPES = ("int32", "uint32", "int64", "uint64")


def draw_rows(key_type, dim, count, seed=0):
    """Distinct keys, extreme ones first, and rows."""
    rng = np.random.default_rng(seed)
    limits = np.iinfo(key_type)
    ends = np.array([0, limits.min, limits.max], key_type)
    more = rng.integers(limits.min, limits.max, 2 * count + 9, key_type)
    keys = np.unique(np.concatenate([ends, more]))
    keys = rng.permutation(keys)[:count]
    return keys, rng.standard_normal((count, dim)).astype(np.float32)


def write(root, keys, rows, *, pieces=1, **options):
    with SnapshotWriter(root, "final", keys.dtype, rows.shape[1], **options) as writer:
        for part in np.array_split(np.arange(len(keys)), pieces):
            writer.write(keys[part], rows[part])
    return writer


def expected(keys, rows):
    words = keys.view(f"u{keys.dtype.itemsize}").tolist()
    return sorted(zip(words, map(bytes, rows.view(np.uint8)), strict=True))


@given(
    key_type=st.sampled_from(KEY_TYPES),
    dim=st.sampled_from([1, 3, 16, 48, 128, 129, 300, 1024, 1500]),
    block=st.sampled_from([512, 4096]),
    num_ranks=st.integers(1, 11),
    count=st.integers(0, 60),
    pieces=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_every_layout(
    tmp_path_factory, key_type, dim, block, num_ranks, count, pieces, seed
):
    root = tmp_path_factory.mktemp("out") / "table"
    keys, rows = draw_rows(key_type, dim, count, seed)
    options = {"num_ranks": num_ranks, "physical_block_size": block}
    assert write(root, keys, rows, pieces=pieces, **options).rows == count
    assert sorted(read_slowly(root)) == expected(keys, rows)
    for path in root.iterdir():
        rank = int(path.name.split("-")[0])
        for file in (path / "keys").iterdir():
            found = np.fromfile(file, f"<u{keys.dtype.itemsize}").tolist()
            live = [key for key in found if key != 0]
            assert all(owner(key, num_ranks) == rank for key in live)


@settings(max_examples=10)  # each flushes many files
@given(
    dim=st.sampled_from([1, 48, 129, 300]),
    blocks=st.integers(1, 3),
    count=st.integers(0, 200),
    pieces=st.integers(1, 4),
)
def test_several_chunks(tmp_path_factory, dim, blocks, count, pieces):
    root = tmp_path_factory.mktemp("out") / "table"
    keys, rows = draw_rows("int64", dim, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oneflow_format, "CHUNK_BYTES", 1536 * blocks)
        patch.setattr(oneflow_writer, "_INDEX_STEP", 7)
        options = {"num_ranks": 2, "physical_block_size": 512}
        write(root, keys, rows, pieces=pieces, **options)
    assert sorted(read_slowly(root)) == expected(keys, rows)


@pytest.mark.parametrize("dim", [16, 48, 128, 300])
@pytest.mark.parametrize("block", [512, 4096])
def test_the_files_are_those_of_oneflow(tmp_path, dim, block):
    """Byte for byte, but for the order of the index and the rest of blocks."""
    keys, rows = draw_rows("int64", dim, 30)
    write(tmp_path / "table", keys, rows, physical_block_size=block)
    rank = RankFiles(8, dim, block)
    words = keys.view(np.uint64).tolist()
    rank.put(zip(words, map(bytes, rows.view(np.uint8)), strict=True))
    rank.save("final")
    wanted = rank.files()
    folder = tmp_path / "table" / "0-1"
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    assert sorted(found) == sorted(wanted)
    index = "snapshots/final/index-000000000000"
    assert found.pop(index) == np.arange(30, dtype="<u8").tobytes()
    wanted.pop(index)
    values = "values/value-000000000000"
    assert len(found[values]) == len(wanted[values])
    del found[values], wanted[values]
    assert found == wanted


def test_the_folder_of_each_rank(tmp_path):
    keys, rows = draw_rows("int64", 4, 20)
    paths = [tmp_path / "disk0" / "emb", str(tmp_path / "disk1" / "emb")]
    write(paths, keys, rows)
    found = [path / "KEY_SIZE" for path in map(Path, paths)]
    assert all(path.is_file() for path in found)
    for i, path in enumerate(paths):
        (tmp_path / "root").mkdir(exist_ok=True)
        Path(path).rename(tmp_path / "root" / f"{i}-2")
    assert sorted(read_slowly(tmp_path / "root")) == expected(keys, rows)


def test_ranks_are_padded_with_zeros(tmp_path):
    keys, rows = draw_rows("int64", 1, 3)
    write(tmp_path / "table", keys, rows, num_ranks=10)
    assert sorted(os.listdir(tmp_path / "table")) == [f"{i:02d}-10" for i in range(10)]


def test_an_empty_folder_is_taken(tmp_path):
    keys, rows = draw_rows("int64", 1, 3)
    write(tmp_path, keys, rows)
    assert sorted(read_slowly(tmp_path)) == expected(keys, rows)


def test_nothing_is_overwritten(tmp_path):
    keys, rows = draw_rows("int64", 1, 3)
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="exists already"):
            write(path, keys, rows)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists already"):
        write(tmp_path / "link", keys, rows)
    write(tmp_path / "table", keys, rows)
    with pytest.raises(FileExistsError, match="exists already"):
        write(tmp_path / "table", keys, rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"physical_block_size": 1024}, "physical_block_size=1024.*512 or 4096"),
        ({"num_ranks": 0}, "num_ranks=0.*pass 1 or more"),
        ({"name": "../x"}, "name='../x'"),
        ({"key_type": "int16"}, "key_type='int16'.*use one of"),
        ({"storage_dim": 0}, "storage_dim=0"),
        ({"paths": []}, "num_ranks=0"),
        ({"paths": ["a", "b"], "num_ranks": 3}, "num_ranks=3"),
        ({"paths": ["a", "./a"]}, "a path is there twice"),
    ],
)
def test_wrong_arguments(tmp_path, options, message):
    usual = {
        "paths": tmp_path / "table",
        "name": "final",
        "key_type": "int64",
        "storage_dim": 4,
    }
    with pytest.raises(ValueError, match=message):
        SnapshotWriter(**{**usual, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        (np.zeros(3, np.int32), np.zeros((3, 4), np.float32)),
        (np.zeros((3, 1), np.int64), np.zeros((3, 4), np.float32)),
        (np.zeros(3, np.int64), np.zeros((3, 4))),
        (np.zeros(3, np.int64), np.zeros((3, 5), np.float32)),
        (np.zeros(3, np.int64), np.zeros((2, 4), np.float32)),
    ],
)
def test_wrong_rows(tmp_path, keys, rows):
    writer = SnapshotWriter(tmp_path / "table", "final", "int64", 4)
    with pytest.raises(ValueError, match=r"write\((keys|values)=.*expected"), writer:
        writer.write(keys, rows)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_comes_twice(tmp_path):
    keys, rows = draw_rows("int64", 4, 20)
    keys[7] = keys[3]
    with pytest.raises(ValueError, match=f"key {keys[3]} was written twice"):
        write(tmp_path / "table", keys, rows, num_ranks=2, pieces=3)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_caller_leaves_nothing(tmp_path):
    keys, rows = draw_rows("int64", 4, 20)

    def stop():
        with SnapshotWriter(tmp_path / "table", "final", "int64", 4) as writer:
            writer.write(keys, rows)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_every_failing_call_leaves_nothing(tmp_path, call, monkeypatch):
    """The n-th call fails, for every n, until there is no n-th call."""
    keys, rows = draw_rows("int64", 4, 20)
    real, raised = getattr(os, call), 0

    def write_failing(at: int) -> bool:
        calls = iter(range(10**6))
        failed = False

        def fail(*arguments, **options):
            nonlocal failed
            if next(calls) == at:
                failed = True
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            write(tmp_path / "table", keys, rows, num_ranks=2)
        return failed

    for at in range(1000):
        try:
            if not write_failing(at):
                break
        except OSError:
            raised += 1
        # The last flush, of the parent, comes when all is in its place.
        for left in tmp_path.iterdir():
            assert left == tmp_path / "table"
            assert sorted(read_slowly(left)) == expected(keys, rows)
            shutil.rmtree(left)
    assert raised > 0
    assert sorted(read_slowly(tmp_path / "table")) == expected(keys, rows)


def test_a_full_disk_leaves_nothing(tmp_path):
    keys, rows = draw_rows("int64", 4, 2000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "table", keys, rows, pieces=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import numpy as np
from oneemb_jax.oneflow_writer import SnapshotWriter

with SnapshotWriter(sys.argv[1], "final", "int64", 4, 2) as writer:
    writer.write(np.arange(100), np.zeros((100, 4), np.float32))
    if sys.argv[2] == "early":
        os.kill(os.getpid(), signal.SIGKILL)
    rename = os.rename
    def stop(*names):
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename = stop
"""


@pytest.mark.parametrize("moment", ["early", "late"])
def test_what_is_killed_has_no_proper_name(tmp_path, moment):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "table"), moment]
    done = subprocess.run(command, check=False, cwd=tmp_path)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".table.partial-")
    # The next one is not in its way.
    keys, rows = draw_rows("int64", 4, 20)
    write(tmp_path / "table", keys, rows)
    assert sorted(read_slowly(tmp_path / "table")) == expected(keys, rows)
