"""The store on a disk, beside what the disk gives and beside RocksDB.

python benchmarks/store.py [PHASE...] [--folder DIR] [--gib 8] [--row-bytes 1536]

write      rows put in batches; fio writes as many bytes in pieces of 1 MiB, 8 in
           flight, past the page cache
read       random rows of a store of --gib GiB; fio reads blocks of 4 KiB at
           random from a file of that size, 128 in flight
overwrite  random rows put again, twice as many as there are: what is written
           for each byte put, compaction included
rocksdb    both systems: --peer-gib GiB of rows put, then read at random
load       --rows rows of 16 floats: put, fetched, saved, loaded, verified

Every phase makes its own files below --folder, on the disk to be measured, and
removes them. It needs fio, and for `rocksdb` the package rocksdict
(pip install "oneemb-jax[peers]"). Use an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import machine
import numpy as np

from oneemb_jax.store import Store

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 4096
ROUNDS = 8  # ours and fio take turns


def ids_of(first: int, count: int) -> np.ndarray:
    """Different ids that are spread over 64 bits."""
    return np.arange(first, first + count, dtype=np.uint64) * GOLDEN


def some_rows(count: int, row_bytes: int) -> np.ndarray:
    """Rows that do not compress."""
    random = np.random.default_rng(1)
    return random.integers(0, 2**32, (count, row_bytes // 4), dtype=np.uint32)


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def written_bytes() -> int:
    """What this process has sent to the disk, page cache included."""
    text = pathlib.Path("/proc/self/io").read_text(encoding="ascii")
    return int(text.split("\nwrite_bytes: ")[1].split()[0])


def report(name: str, **values: float | str) -> None:
    """One line of the result."""
    words = [
        f"{key} {value:,.2f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    ]
    print(f"{name:<12}", "  ".join(words), flush=True)


def fio(folder: pathlib.Path, direction: str, *words: str) -> dict[str, float]:
    """Runs one job of fio and returns what it says of reads or writes."""
    command = ["fio", "--name=limit", f"--filename={folder / 'limit'}", "--direct=1"]
    command += ["--ioengine=io_uring", "--output-format=json", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][direction]


class Options(argparse.Namespace):
    """The command line."""

    phases: list[str]
    folder: pathlib.Path
    gib: float
    peer_gib: float
    row_bytes: int
    batch: int
    rows: int

    def batches(self, gib: float) -> int:
        """How many batches make so many GiB of rows."""
        return max(1, int(gib * 2**30 / self.row_bytes / self.batch))


def fill(store: Store, batches: int, rows: np.ndarray) -> float:
    """Puts batches of new rows; returns the seconds that it took."""

    def put() -> None:
        for b in range(batches):
            store.put(ids_of(b * len(rows), len(rows)), rows)

    return seconds(put)


def random_ids(count: int, batch: int) -> Iterator[np.ndarray]:
    """Batches of ids that `fill` has put, without end."""
    random = np.random.default_rng(2)
    while True:
        yield random.integers(0, count, batch, dtype=np.uint64) * GOLDEN


def fetch_for(store: Store, count: int, batch: int, duration: float) -> float:
    """Rows a second of random fetches."""
    draws = random_ids(count, batch)
    done = 0
    begin = time.perf_counter()
    while time.perf_counter() < begin + duration:
        _, found = store.fetch(next(draws))
        assert found.all()
        done += batch
    return done / (time.perf_counter() - begin)


def measure_write(options: Options, folder: pathlib.Path) -> None:
    """Sequential writes."""
    rows = some_rows(options.batch, options.row_bytes)
    batches = options.batches(options.gib / ROUNDS)
    ratios = []
    for _ in range(ROUNDS):  # in turns: the disk is shared
        with Store(folder / "store", options.row_bytes) as store:
            took = fill(store, batches, rows)
            stats = store.stats()
        shutil.rmtree(folder / "store")
        size = f"--size={stats['put_bytes'] // 2**20}M"
        limit = fio(folder, "write", "--rw=write", "--bs=1M", "--iodepth=8", size)
        (folder / "limit").unlink()
        rate = stats["put_bytes"] / took
        ratios.append(rate / limit["bw_bytes"])
        report(
            "write",
            rows_MBps=batches * rows.nbytes / took / 1e6,
            file_MBps=rate / 1e6,
            fio_MBps=limit["bw_bytes"] / 1e6,
            ratio=ratios[-1],
            krows_per_s=batches * len(rows) / took / 1e3,
            index_bytes_per_key=stats["index_bytes"] / stats["rows"],
        )
    report("write", median_ratio=statistics.median(ratios))


def measure_read(options: Options, folder: pathlib.Path) -> None:
    """Random reads."""
    rows = some_rows(options.batch, options.row_bytes)
    size = f"--size={int(options.gib * 2**30) // BLOCK * BLOCK}"
    laid_out = ("--rw=write", "--bs=1M", "--iodepth=8", size)
    fio(folder, "write", *laid_out)
    with Store(folder / "store", options.row_bytes) as store:
        batches = 0
        while store.stats()["put_bytes"] < options.gib * 2**30:
            store.put(ids_of(batches * len(rows), len(rows)), rows)
            batches += 1
        job = ("--rw=randread", "--bs=4k", "--iodepth=128", "--time_based")
        ratios = []
        for _ in range(ROUNDS):
            limit = fio(folder, "read", *job, "--runtime=4", size)
            ours = fetch_for(store, batches * len(rows), options.batch, 4)
            ratios.append(ours / limit["iops"])
            report(
                "read",
                rows_per_s=ours,
                fio_iops=float(limit["iops"]),
                ratio=ratios[-1],
                engine=store.stats()["engine"],
                direct=str(store.stats()["direct_io"]),
            )
        report("read", median_ratio=statistics.median(ratios))


def measure_overwrite(options: Options, folder: pathlib.Path) -> None:
    """Write amplification of a steady load."""
    rows = some_rows(options.batch, options.row_bytes)
    batches = options.batches(options.gib / 4)
    with Store(folder / "store", options.row_bytes, segment_bytes=2**26) as store:
        fill(store, batches, rows)
        draws = random_ids(batches * len(rows), len(rows))
        for part in ("first", "second", "third"):
            before = store.stats()

            def put() -> None:
                for _ in range(batches):
                    ids = np.unique(next(draws))
                    store.put(ids, rows[: len(ids)])

            took = seconds(put)
            after = store.stats()
            put_bytes = after["put_bytes"] - before["put_bytes"]
            moved = after["moved_bytes"] - before["moved_bytes"]
            report(
                f"overwrite {part}",
                amplification=(put_bytes + moved) / put_bytes,
                live_share=after["live_slots"] / after["slots"],
                krows_per_s=batches * len(rows) / took / 1e3,
            )


def rocksdb_options(rocksdict: Any) -> Any:
    """RocksDB as embeddings would want it: no log, no compression, direct."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_use_direct_reads(True)
    options.set_use_direct_io_for_flush_and_compaction(True)
    options.increase_parallelism(2)
    options.set_write_buffer_size(256 << 20)
    options.set_max_write_buffer_number(3)
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(rocksdict.Cache(64 << 20))
    options.set_block_based_table_factory(table)
    return options


def run_rocksdb(options: Options, folder: pathlib.Path) -> dict[str, float]:
    """RocksDB's rates on the rows of `run_ours`."""
    import rocksdict

    rows = some_rows(options.batch, options.row_bytes)
    values = [row.tobytes() for row in rows]
    batches = options.batches(options.peer_gib)
    database = rocksdict.Rdict(str(folder / "rocks"), rocksdb_options(rocksdict))
    no_log = rocksdict.WriteOptions()
    no_log.disable_wal = True
    before = written_bytes()

    def put() -> None:
        for b in range(batches):
            batch = rocksdict.WriteBatch(raw_mode=True)
            ids = ids_of(b * len(rows), len(rows)).astype(">u8")
            for key, value in zip(ids, values, strict=True):
                batch.put(key.tobytes(), value)
            database.write(batch, no_log)
        database.flush()

    took = seconds(put)
    written = written_bytes() - before
    draws = random_ids(batches * len(rows), 4096)
    done, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + 5:
        keys = [key.tobytes() for key in next(draws).astype(">u8")]
        assert None not in database[keys]
        done += len(keys)
    reads = done / (time.perf_counter() - begin)
    database.close()
    return {
        "put_krows_per_s": batches * len(rows) / took / 1e3,
        "read_krows_per_s": reads / 1e3,
        "written_per_row_byte": written / (batches * rows.nbytes),
    }


def run_ours(options: Options, folder: pathlib.Path) -> dict[str, float]:
    """The same rows in a Store."""
    rows = some_rows(options.batch, options.row_bytes)
    batches = options.batches(options.peer_gib)
    before = written_bytes()
    with Store(folder / "store", options.row_bytes) as store:
        took = fill(store, batches, rows)
        written = written_bytes() - before
        reads = fetch_for(store, batches * len(rows), 4096, 5)
    return {
        "put_krows_per_s": batches * len(rows) / took / 1e3,
        "read_krows_per_s": reads / 1e3,
        "written_per_row_byte": written / (batches * rows.nbytes),
    }


def measure_rocksdb(options: Options, folder: pathlib.Path) -> None:
    """Both, one after the other."""
    ours = run_ours(options, folder)
    peer = run_rocksdb(options, folder)
    report("ours", **ours)
    report("RocksDB", **peer)
    report("ours / peer", **{name: ours[name] / peer[name] for name in ours})


def measure_load(options: Options, folder: pathlib.Path) -> None:
    """Many small rows in, out and through a snapshot."""
    width, batch = 64, 2**20
    rows = np.zeros((batch, width // 4), np.uint32)
    batches = -(-options.rows // batch)
    total = batches * batch

    def rows_of(ids: np.ndarray) -> np.ndarray:
        rows[: len(ids), 0] = ids & np.uint64(0xFFFFFFFF)
        rows[: len(ids), 15] = ids >> np.uint64(32)
        return rows[: len(ids)]

    def put(store: Store) -> None:
        for b in range(batches):
            ids = ids_of(b * batch, batch)
            store.put(ids, rows_of(ids))

    def compare(store: Store) -> int:
        seen = 0
        for ids, tables, found in store.items():
            assert not tables.any()
            assert (found == rows_of(ids)).all()
            seen += len(ids)
        assert seen == total == store.size()
        return seen

    with Store(folder / "store", width) as store:
        report("load put", rows=str(total), seconds=seconds(lambda: put(store)))
        report("load items", seconds=seconds(lambda: compare(store)))
        report("load save", seconds=seconds(lambda: store.save_snapshot("s")))
        stats = store.stats()
    report(
        "load size",
        GB_on_disk=stats["put_bytes"] / 1e9,
        index_bytes_per_key=stats["index_bytes"] / total,
    )
    with Store(folder / "store", width) as store:
        report("load load", seconds=seconds(lambda: store.load_snapshot("s")))
        report("load items", seconds=seconds(lambda: compare(store)))
        report("load fetch", krows_per_s=fetch_speed(store, total, rows_of))


def fetch_speed(
    store: Store, total: int, rows_of: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Thousands of random rows a second, each compared."""
    draws = random_ids(total, 2**16)
    begin = time.perf_counter()
    for _ in range(16):
        ids = next(draws)
        got, found = store.fetch(ids)
        assert found.all()
        assert (got == rows_of(ids)).all()
    return 16 * 2**16 / (time.perf_counter() - begin) / 1e3


PHASES = {
    "write": measure_write,
    "read": measure_read,
    "overwrite": measure_overwrite,
    "rocksdb": measure_rocksdb,
    "load": measure_load,
}


def main() -> None:
    """Runs phases, each in a folder of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("phases", nargs="*", metavar="PHASE", help="default: all")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--gib", type=float, default=8)
    parser.add_argument("--peer-gib", type=float, default=2)
    parser.add_argument("--row-bytes", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=65536)
    parser.add_argument("--rows", type=int, default=10**8)
    options = parser.parse_args(namespace=Options())
    unknown = set(options.phases) - set(PHASES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; use {', '.join(PHASES)}")
    print(json.dumps(machine.card()))
    for name in options.phases or PHASES:
        folder = options.folder / f"store_{name}"
        folder.mkdir(parents=True)
        try:
            PHASES[name](options, folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
