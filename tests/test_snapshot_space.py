"""Snapshots need the room of their rows on the disk, at any moment, and few files."""

import errno
from pathlib import Path

import numpy as np
import pytest

import oneemb_jax as oe
from oneemb_jax import snapshot as snapshot_module
from oneemb_jax.store import Store
from snapshots import assert_same, contents, embedding, largest_file, train


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 3000])
def test_a_snapshot_takes_the_space_that_its_rows_need(tmp_path, monkeypatch, rows):
    # Batches of any number of rows: 83, or what their part of the index has.
    monkeypatch.setattr(snapshot_module, "_BATCH_BYTES", 4000)
    most = 2 * rows * 48 + 2**14
    with embedding(tmp_path / "emb", capacity=100_000) as emb:
        table = emb.init()
        if rows:
            table = oe.set_rows(table, np.arange(rows), np.ones((rows, 4)))
        with largest_file(most):
            saved = Path(emb.save_snapshot(table, "one"))
            oe.save(tmp_path / "all", table=table)
        # Of a capacity's batches most have a few rows, or none.
        assert len(list(saved.glob("*.seg"))) == min(rows, 1)
        for folder in (saved, tmp_path / "all" / "table-0"):
            assert sum(file.stat().st_size for file in folder.iterdir()) < most + 2**14
            emb.verify_snapshot(folder)
            assert_same(emb.load_snapshot(folder), table)


def test_rows_of_two_files_share_them(tmp_path, monkeypatch):
    """The second is not as large as the first may be."""
    monkeypatch.setattr(snapshot_module, "SEGMENT_BYTES", 2**16)
    with embedding(tmp_path, capacity=2000) as emb:
        table = oe.set_rows(emb.init(), np.arange(1500), np.ones((1500, 4)))
        with largest_file(2**16):
            saved = Path(emb.save_snapshot(table, "two"))
        assert len(list(saved.glob("*.seg"))) == 2
        assert_same(emb.load_snapshot("two"), table)


def test_rows_in_host_memory_too(tmp_path):
    """And a Store whose own files are larger goes on from them."""
    host = oe.make_cached_host_mem_store_options(0.1, tmp_path / "host")
    ssd = oe.make_cached_ssd_store_options(0.1, tmp_path / "ssd")
    with embedding(tmp_path, store_options=host) as emb:
        table = train(emb.init(), 0, 10)
        with largest_file(2**16):
            path = emb.save_snapshot(table, "half")
            oe.save(tmp_path / "all", table=table)
        expected = contents(train(table, 10, 20))
    with embedding(tmp_path, store_options=ssd) as emb:
        for folder in (path, tmp_path / "all" / "table-0"):
            assert contents(train(emb.load_snapshot(folder), 10, 20)) == expected


def test_a_store_in_host_memory(tmp_path: Path):
    # Chunks of 1 MiB do not end where a frame, of three such rows, does.
    rows = np.random.default_rng(0).integers(0, 2**32, (3000, 333), np.uint32)
    with Store(tmp_path, 1332, "host") as store:
        store.put(np.arange(3000), rows)
        with largest_file(rows.nbytes * 5 // 4):
            store.save_snapshot("one")
        assert len(list((tmp_path / "snap" / "one").glob("*.seg"))) == 1
        store.erase(np.arange(3000))
        store.load_snapshot("one")
        assert (store.fetch(np.arange(3000))[0] == rows).all()


def test_what_could_not_be_reserved_is_named(tmp_path: Path):
    with Store(tmp_path, 8) as store, largest_file(2**20):
        with pytest.raises(OSError, match=r"of \d{9} bytes for .*\.seg") as caught:
            store.put([1], np.ones((1, 2), np.uint32))
        assert caught.value.errno == errno.ENOSPC
