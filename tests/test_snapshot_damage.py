"""Snapshots that are damaged, cut off or in somebody's hands: errors, no rows."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oneemb_jax as oe
from oneemb_jax.store import Store, StoreError
from snapshots import assert_same, embedding, train

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def child(code: str, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(
        command,
        check=False,
        cwd=TESTS,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        **options,
    )


def test_a_flipped_bit_is_found_or_harmless(tmp_path):
    """One bit of each block of files; most of a segment is padding."""
    random = np.random.default_rng(0)
    found = 0
    with embedding(tmp_path) as emb:
        table = train(emb.init(), 0, 3)
        folder = Path(emb.save_snapshot(table, "one"))
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)
            whole = path.read_bytes()
            step = 3 if len(whole) < 4096 else 61
            for place in range(0, len(whole), step):
                damaged = bytearray(whole)
                damaged[place] ^= 1 << random.integers(8)
                path.write_bytes(damaged)
                try:
                    loaded = emb.load_snapshot("one")
                except (StoreError, OSError, ValueError):
                    found += 1
                    with pytest.raises((StoreError, OSError, ValueError)):
                        emb.verify_snapshot("one")
                else:
                    assert_same(loaded, table)
            path.write_bytes(whole)
        assert found > 100
        assert_same(emb.load_snapshot("one"), table)
        emb.verify_snapshot("one")


def test_a_flipped_bit_of_a_row_is_named(tmp_path):
    with embedding(tmp_path) as emb:
        rows = np.full((1, 4), 7.25, np.float32)
        folder = Path(emb.save_snapshot(oe.set_rows(emb.init(), [9], rows), "one"))
        (segment,) = folder.glob("*.seg")
        segment.chmod(0o644)
        data = bytearray(segment.read_bytes())
        data[data.index(rows.tobytes())] ^= 1
        segment.write_bytes(data)
        for call in (emb.load_snapshot, emb.verify_snapshot):
            with pytest.raises(StoreError, match=r"slot 0 .* is damaged"):
                call("one")


@pytest.mark.parametrize("name", ["MANIFEST", "LIVE", "*.seg"])
def test_a_file_cut_off_or_gone(tmp_path, name):
    with embedding(tmp_path) as emb:
        table = train(emb.init(), 0, 3)
        folder = Path(emb.save_snapshot(table, "one"))
        (path,) = folder.glob(name)
        path.chmod(0o644)
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1, None):
            path.write_bytes(whole[:length])
            if length is None:
                path.unlink()
            for call in (emb.load_snapshot, emb.verify_snapshot):
                with pytest.raises((StoreError, OSError), match=path.name):
                    call("one")
        assert emb.list_snapshots() == ["one"]
        emb.delete_snapshot("one")
        assert emb.list_snapshots() == []
        assert_same(emb.load_snapshot(emb.save_snapshot(table, "one")), table)


KILLED = """
import os, signal, sys
from oneemb_jax import snapshot
from snapshots import embedding, train

class Writer:
    left = int(sys.argv[2])

    def __init__(self, *words):
        self.inner = real.SnapshotWriter(*words)
        self.close = self.inner.close

    def tick(self):
        if Writer.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        Writer.left -= 1

    def write(self, *batch):
        self.tick()
        self.inner.write(*batch)

    def commit(self, user):
        self.tick()
        self.inner.commit(user)

with embedding(sys.argv[1]) as emb:
    table = train(emb.load_snapshot("old"), 3, 6)
    real, snapshot._BATCH_BYTES, snapshot.SEGMENT_BYTES = snapshot.native, 1, 1 << 13
    snapshot.native = type("native", (), {"SnapshotWriter": Writer})
    emb.save_snapshot(table, "new")
print("saved")
"""


@pytest.mark.parametrize("ticks", [0, 1, 7, 25, 99])
def test_a_killed_save_leaves_the_old_one_whole(tmp_path, ticks):
    with embedding(tmp_path) as emb:
        old = train(emb.init(), 0, 3)
        emb.save_snapshot(old, "old")
        done = child(KILLED, tmp_path, ticks)
        if done.returncode == 0:  # there were fewer batches
            assert done.stdout == "saved\n"
            assert emb.list_snapshots() == ["new", "old"]
        else:
            assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
            assert emb.list_snapshots() == ["old"]
            emb.save_snapshot(train(old, 3, 6), "new")
        assert list((tmp_path / "0-1" / "tmp").iterdir()) == []
        assert_same(emb.load_snapshot("old"), old)
        assert_same(emb.load_snapshot("new"), train(old, 3, 6))


LOOP = """
import sys
from snapshots import embedding, train
with embedding(sys.argv[1]) as emb:
    table = emb.init()
    for step in range(1000):
        emb.save_snapshot(table, f"s{step}")
        print(step, flush=True)
        table = train(table, step, step + 1)
"""


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_what_was_reported_saved_survives_a_kill(tmp_path, lines):
    command = [sys.executable, "-c", LOOP, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=TESTS, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.kill()
        reported = lines + len(process.stdout.read().splitlines())
    with embedding(tmp_path) as emb:
        table = emb.init()
        # One more may have been saved, and not reported.
        assert len(emb.list_snapshots()) - reported in (0, 1)
        for step in range(len(emb.list_snapshots())):
            assert_same(emb.load_snapshot(f"s{step}"), table)
            table = train(table, step, step + 1)


def test_a_folder_in_use_names_its_process(tmp_path):
    with embedding(tmp_path) as emb:
        table = train(emb.init(), 0, 1)
        emb.save_snapshot(table, "one")
        with Store(tmp_path / "0-1", 48):
            for call in (
                lambda: emb.save_snapshot(table, "two"),
                lambda: emb.delete_snapshot("one"),
            ):
                with pytest.raises(BlockingIOError, match=str(os.getpid())):
                    call()
            # To read takes no lock.
            assert_same(emb.load_snapshot("one"), table)
            emb.verify_snapshot("one")
            assert emb.list_snapshots() == ["one"]
        emb.save_snapshot(table, "two")


HELD = """
import sys
from snapshots import embedding
with embedding(sys.argv[1]) as emb:
    try:
        emb.save_snapshot(emb.load_snapshot("one"), "two")
    except BlockingIOError as error:
        print(error)
"""


def test_another_process_reads_and_may_not_save(tmp_path):
    with embedding(tmp_path) as emb, embedding(tmp_path, name="second") as second:
        emb.save_snapshot(train(emb.init(), 0, 1), "one")
        with Store(tmp_path / "0-1", 48):
            done = child(HELD, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{os.getpid()}" in done.stdout
        # Two embeddings, one folder: each saves when the other does not.
        second.save_snapshot(second.load_snapshot("one"), "two")
        assert emb.list_snapshots() == ["one", "two"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "0-1").mkdir()
    (tmp_path / "0-1" / "thesis.tex").write_text("mine")
    with embedding(tmp_path) as emb:
        with pytest.raises(ValueError, match="thesis"):
            emb.save_snapshot(emb.init(), "one")
        assert emb.list_snapshots() == []
    assert [path.name for path in (tmp_path / "0-1").iterdir()] == ["thesis.tex"]


FULL = """
import errno, resource, signal, sys
import numpy as np
import oneemb_jax as oe
from snapshots import contents, embedding
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with embedding(sys.argv[1], 100, capacity=5000) as emb:
    table = oe.set_rows(emb.init(), np.arange(5000), np.ones((5000, 100)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    try:
        emb.save_snapshot(table, "one")
        sys.exit("no error")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    assert emb.list_snapshots() == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    emb.save_snapshot(table, "one")
    assert contents(emb.load_snapshot("one")) == contents(table)
"""


def test_a_full_disk_is_an_exception(tmp_path):
    done = child(FULL, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "0-1" / "tmp").iterdir()) == []
