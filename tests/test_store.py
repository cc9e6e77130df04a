"""The store as Python has it, against a dict."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from oneemb_jax.store import Store, StoreError

IDS = st.one_of(
    st.integers(0, 5), st.sampled_from([2**32, 2**63, 2**64 - 1]), st.just(0)
)
KEYS = st.lists(st.tuples(IDS, st.sampled_from([0, 1, 65535])), max_size=20)
NAMES = st.sampled_from(["a", "b", "c"])
WORDS = 3
SMALL: dict[str, Any] = {"segment_bytes": 1 << 14, "host_budget_bytes": 1 << 20}


def split(keys: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    ids, tables = zip(*keys, strict=True) if keys else ((), ())
    return np.array(ids, np.uint64), np.array(tables, np.uint16)


def contents(store: Store) -> dict[tuple[int, int], list[int]]:
    found = {}
    for ids, tables, rows in store.items():
        for key, row in zip(zip(ids, tables, strict=True), rows, strict=True):
            assert key not in found
            found[int(key[0]), int(key[1])] = row.tolist()
    return found


class StoreModel(RuleBasedStateMachine):
    """Any sequence of calls does to a store what it does to a dict."""

    @initialize(kind=st.sampled_from(["host", "ssd", "cached_ssd"]))
    def begin(self, kind: str):
        self.folder = tempfile.TemporaryDirectory()
        self.kind = kind
        self.store = Store(self.folder.name, 4 * WORDS, kind, **SMALL)
        self.rows: dict[tuple[int, int], list[int]] = {}
        self.saved: dict[str, Any] = {}

    @rule(keys=KEYS, seed=st.integers(0, 2**32 - 1))
    def put(self, keys: list[tuple[int, int]], seed: int):
        rows = np.random.default_rng(seed).integers(
            0, 2**32, (len(keys), WORDS), np.uint32
        )
        ids, tables = split(keys)
        self.store.put(ids, rows, tables)
        self.rows.update(zip(keys, rows.tolist(), strict=True))

    @rule(keys=KEYS, train=st.booleans())
    def fetch(self, keys: list[tuple[int, int]], train: bool):
        rows, found = self.store.fetch(*split(keys), train=train)
        assert found.tolist() == [key in self.rows for key in keys]
        wanted = [self.rows.get(key, [0] * WORDS) for key in keys]
        assert rows.tolist() == wanted

    @rule(keys=st.lists(st.tuples(IDS, st.just(1)), max_size=5, unique=True))
    def erase(self, keys: list[tuple[int, int]]):
        erased = self.store.erase(*split(keys))
        assert erased.tolist() == [key in self.rows for key in keys]
        for key in keys:
            self.rows.pop(key, None)

    @rule(name=NAMES, user=st.binary(max_size=20))
    def save(self, name: str, user: bytes):
        if name in self.saved:
            with pytest.raises(FileExistsError):
                self.store.save_snapshot(name, user)
        else:
            self.store.save_snapshot(name, user)
            self.saved[name] = dict(self.rows), user

    @rule(name=NAMES)
    def load(self, name: str):
        if name not in self.saved:
            with pytest.raises(FileNotFoundError, match=name):
                self.store.load_snapshot(name)
            return
        rows, user = self.saved[name]
        assert self.store.load_snapshot(name) == user
        self.store.verify_snapshot(name)
        self.rows = dict(rows)

    @rule(name=NAMES)
    def delete(self, name: str):
        if self.saved.pop(name, None) is not None:
            self.store.delete_snapshot(name)
        else:
            with pytest.raises(FileNotFoundError):
                self.store.delete_snapshot(name)

    @rule()
    def reopen(self):
        self.store.close()
        self.store = Store(self.folder.name, 4 * WORDS, self.kind, **SMALL)
        self.rows = {}

    @rule()
    def compact(self):
        self.store.compact()

    @invariant()
    def agrees(self):
        if hasattr(self, "store"):
            assert self.store.list_snapshots() == sorted(self.saved)
            assert self.store.size() == len(self.rows)
            assert contents(self.store) == self.rows

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None
)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"row_bytes": 6}, ValueError, "row_bytes=6"),
        ({"row_bytes": 65540}, ValueError, "row_bytes"),
        ({"kind": "tape"}, ValueError, "kind"),
        ({"engine": "steam"}, ValueError, "engine"),
        ({"block_bytes": 1000}, ValueError, "block_bytes"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: Any, error: Any, words: str):
    with pytest.raises(error, match=words):
        Store(tmp_path / "s", **{"row_bytes": 8, **arguments})


def test_wrong_arguments_change_nothing(tmp_path: Path):
    one = np.ones((1, 2), np.uint32)
    with Store(tmp_path, 8) as store:
        for ids, rows, tables, error in [
            ([-1], one, None, ValueError),
            ([0.5], one, None, TypeError),
            ([2**63, 0.5], np.ones((2, 2), np.uint32), None, TypeError),
            ([1, 2**64], np.ones((2, 2), np.uint32), None, ValueError),
            ([[1]], one, None, ValueError),
            ([1], one, [65536], ValueError),
            ([1], one, [0, 1], ValueError),
            ([1, 2], one, None, ValueError),
            ([1], np.ones((1, 3), np.uint32), None, ValueError),
            ([1], np.ones(2, np.uint32), None, ValueError),
        ]:
            with pytest.raises(error):
                store.put(ids, rows, tables)
        for name in ("", ".hidden", "a/b", "x" * 201):
            with pytest.raises(ValueError, match="name"):
                store.save_snapshot(name)
        assert store.size() == 0
        assert store.list_snapshots() == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="thesis"):
        Store(tmp_path, 8)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_the_second_opener_is_told_the_owner(tmp_path: Path):
    code = (
        "import sys\nfrom oneemb_jax.store import Store\n"
        "try:\n Store(sys.argv[1], 8)\n"
        "except BlockingIOError as error:\n print(error)\n"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    with Store(tmp_path, 8):
        with pytest.raises(BlockingIOError, match=str(os.getpid())):
            Store(tmp_path, 8)
        other = subprocess.run(command, capture_output=True, text=True, check=True)
        assert str(os.getpid()) in other.stdout
    Store(tmp_path, 8).close()


FORK = """
import os, sys
import numpy as np
from oneemb_jax.store import Store, StoreError
store = Store(sys.argv[1], 8)
store.put([1], np.ones((1, 2), np.uint32))
child = os.fork()
if child == 0:
    try:
        store.fetch([1])
    except StoreError as error:
        store.close()
        os._exit(7 if str(os.getpid()) in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert store.fetch([1])[1].all()
"""


def test_a_forked_child_is_refused(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-PW", "ignore", "-c", FORK, str(tmp_path)], check=True
    )


FULL = """
import errno, resource, signal, sys
import numpy as np
from oneemb_jax.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(sys.argv[1], 4096)
rows = np.arange(64 * 1024, dtype=np.uint32).reshape(64, 1024)
store.put(np.arange(64), rows)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, resource.RLIM_INFINITY))
many = np.zeros((1024, 1024), np.uint32)
try:
    for _ in range(9):
        store.put(np.arange(64, 1088), many)
    sys.exit("no error")
except OSError as error:
    assert error.errno == errno.ENOSPC, error
again, found = store.fetch(np.arange(64))
assert found.all() and (again == rows).all() and store.size() == 64
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
store.put(np.arange(64, 1088), many)
assert store.size() == 1088
"""


def test_a_full_disk_is_an_exception_and_reads_go_on(tmp_path: Path):
    subprocess.run([sys.executable, "-P", "-c", FULL, str(tmp_path)], check=True)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_full_budget_is_an_exception(tmp_path: Path):
    with Store(tmp_path, 1024, "host", host_budget_bytes=1 << 20) as store:
        with pytest.raises(OSError, match=r"budget|MiB|bytes") as caught:
            store.put(np.arange(4096), np.zeros((4096, 256), np.uint32))
        assert caught.value.errno == errno.ENOSPC
        assert store.size() == 0


def test_damage_is_an_error_and_changes_nothing(tmp_path: Path):
    with Store(tmp_path, 8) as store:
        store.put([1], np.ones((1, 2), np.uint32))
        store.save_snapshot("good")
        store.put([2], np.ones((1, 2), np.uint32))
        manifest = tmp_path / "snap" / "good" / "MANIFEST"
        words = bytearray(manifest.read_bytes())
        words[-1] ^= 1
        manifest.write_bytes(words)
        with pytest.raises(StoreError, match="MANIFEST"):
            store.load_snapshot("good")
        with pytest.raises(StoreError, match="MANIFEST"):
            store.verify_snapshot("good")
        assert store.size() == 2


def test_a_damaged_row_keeps_a_snapshot_from_being_loaded(tmp_path: Path):
    with Store(tmp_path, 1024) as store:
        store.put(np.arange(9), np.ones((9, 256), np.uint32))
        store.save_snapshot("s")
        [path] = (tmp_path / "snap" / "s").glob("*.seg")
        segment = bytearray(path.read_bytes())
        segment[4096 + 500] ^= 1
        path.unlink()
        path.write_bytes(segment)
        store.put([77], np.ones((1, 256), np.uint32))
        with pytest.raises(StoreError, match="slot 0"):
            store.load_snapshot("s")
        assert store.size() == 10


def test_errors_of_the_system_keep_their_class(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file"):
        Store(tmp_path / "file" / "store", 8)


def test_threads_may_share_a_store_and_one_may_close_it(tmp_path: Path):
    store = Store(tmp_path, 64)
    ids = np.arange(1000)
    store.put(ids, np.tile(ids[:, None], 16).astype(np.uint32))
    wrong: list[Any] = []

    def read():
        try:
            while True:
                rows, found = store.fetch(ids)
                if not found.all() or (rows[:, 0] != ids).any():
                    wrong.append(rows)
        except ValueError as error:
            if "closed" not in str(error):
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        store.put(ids, np.tile(ids[:, None], 16).astype(np.uint32))
    store.close()
    for thread in threads:
        thread.join()
    assert wrong == []
    with pytest.raises(ValueError, match="closed"):
        store.size()


def test_rows_outlive_the_iterator(tmp_path: Path):
    with Store(tmp_path, 8) as store:
        store.put([1, 2], np.array([[1, 2], [3, 4]], np.uint32))
        ((ids, tables, rows),) = store.items()
    assert dict(zip(ids.tolist(), rows.tolist(), strict=True)) == {1: [1, 2], 2: [3, 4]}
    assert tables.tolist() == [0, 0]


def test_snapshots_leave_no_more_and_more_segments(tmp_path: Path):
    """Each closes a segment, whatever is in it; small ones are merged."""
    wanted: dict[int, list[int]] = {}
    random = np.random.default_rng(0)
    with Store(tmp_path, 8, segment_bytes=2**20) as store:
        for step in range(60):
            ids = np.unique(random.integers(0, 2000, 40)).astype(np.uint64)
            rows = np.stack([ids, np.full_like(ids, step)], 1).astype(np.uint32)
            store.put(ids, rows)
            wanted.update(zip(ids.tolist(), rows.tolist(), strict=True))
            store.save_snapshot(f"s{step}")
            if step:
                store.delete_snapshot(f"s{step - 1}")
        store.compact()
        assert store.stats()["segments"] <= 18
        store.save_snapshot("last")
        store.erase(list(wanted))
        store.load_snapshot("last")
        found = {
            id_: row
            for ids, _, rows in store.items()
            for id_, row in zip(ids.tolist(), rows.tolist(), strict=True)
        }
    assert found == wanted
