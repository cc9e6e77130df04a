"""Files of OneFlow's, changed at random: the rows that they mean, or an error.

``make torture`` changes them many more times, by ONEEMB_DAMAGE_RUNS.
"""

import collections
import os
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import oneemb_jax.oneflow as oneflow
from oneflow_files import CHUNK_BYTES, draw_puts, read_slowly, write_table

RUNS = int(os.environ.get("ONEEMB_DAMAGE_RUNS", "300"))

Files = dict[str, bytes]


def change_bytes(files: Files, part: str, kind: str, where: int, data: bytes) -> None:
    """Changes one of the files whose path has this part."""
    paths = sorted(path for path in files if part in path)
    if not paths:
        return
    path = paths[where % len(paths)]
    old = files[path]
    at = where // len(paths) % (len(old) + 1)
    if kind == "remove":
        del files[path]
        return
    files[path] = {
        "flip": old[:at] + data + old[at + len(data) :],
        "cut": old[:at],
        "add": old + data,
        "zero": old[:at] + bytes(len(old) - at),
        "swap": old[at:] + old[:at],
    }[kind]


def change_row_id(files: Files, where: int, row: int) -> None:
    """Writes a whole row id into an index."""
    paths = sorted(path for path in files if "/index" in path)
    if not paths:
        return
    path = paths[where % len(paths)]
    at = where // len(paths) % (len(files[path]) // 8 + 1) * 8
    files[path] = files[path][:at] + row.to_bytes(8, "little") + files[path][at + 8 :]


def change_number(files: Files, name: str, number: int) -> None:
    """Writes a number of the metadata, the same for all ranks."""
    for rank in {path.split("/")[0] for path in files}:
        files[f"{rank}/{name}"] = b"%d\n" % number


def repair(files: Files) -> None:
    """Makes right what would hide all other changes.

    The fourth number of the metadata follows from the others. Keys and values are
    lengthened, so that rows of any size are there.
    """
    for path in list(files):
        if "/keys/" in path or "/values/" in path:
            files[path] = files[path].ljust(2**15, b"\x5a")
        if not path.endswith("/VALUE_SIZE"):
            continue
        rank = path.split("/")[0]
        physical = files.get(f"{rank}/PHYSICAL_BLOCK_SIZE", b"")
        if files[path].strip().isdigit() and physical.strip() in (b"512", b"4096"):
            block = -(-int(files[path]) // int(physical)) * int(physical)
            blocks = CHUNK_BYTES // max(1, block)
            files[f"{rank}/NUM_LOGICAL_BLOCKS_PER_CHUNK"] = b"%d\n" % blocks


BYTES = st.tuples(
    st.just(change_bytes),
    st.sampled_from(["/keys/", "/values/", "/index", "/LIST", ""]),
    st.sampled_from(["flip", "cut", "add", "zero", "remove", "swap"]),
    st.integers(0, 2**16),
    st.binary(min_size=1, max_size=9),
)
ROW_IDS = st.tuples(
    st.just(change_row_id),
    st.integers(0, 2**8),
    st.integers(0, 100) | st.integers(0, 2**64 - 1),
)
SIZES = {
    "KEY_SIZE": st.sampled_from([4, 8, 16]),
    "PHYSICAL_BLOCK_SIZE": st.sampled_from([512, 1024, 4096]),
    "VALUE_SIZE": st.integers(0, 200).map(lambda n: 4 * n),
}
NUMBERS = st.sampled_from(sorted(SIZES)).flatmap(
    lambda name: st.tuples(st.just(change_number), st.just(name), SIZES[name])
)
CHANGES = st.lists(BYTES | ROW_IDS | NUMBERS, min_size=1, max_size=3)


def read_if_good(root: Path) -> list[tuple[int, bytes]] | None:
    """Unsigned keys and rows in order; None if there was an error of ours."""
    try:
        with oneflow.open_snapshot(root, "final") as snapshot:
            batches = list(snapshot)
    except (ValueError, OSError):
        return None
    found = []
    for keys, rows in batches:
        words = keys.view(f"u{keys.dtype.itemsize}").tolist()
        found += zip(words, map(bytes, rows.view(np.uint8)), strict=True)
    return sorted(found)


def findings(root: Path) -> list[str]:
    try:
        return oneflow.verify_snapshot(root, "final")
    except (ValueError, OSError) as error:
        return [str(error)]


class Table:
    """A table on disk whose files are changed, again and again."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        key_type, dim = ("int64", 48) if seed < 4 else ("int32", 3)
        puts = draw_puts(key_type, dim, [20, 9], seed, 16)
        write_table(root, puts, num_ranks=seed % 2 + 1)
        paths = [path for path in root.rglob("*") if path.is_file()]
        self.good = {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}
        self._there = self.good

    def write(self, files: Files) -> None:
        """Makes these its files; folders stay."""
        for path in self._there.keys() - files.keys():
            (self.root / path).unlink()
        for path, data in files.items():
            if self._there.get(path) != data:
                (self.root / path).write_bytes(data)
        self._there = files


def test_damage_reads_exactly_or_raises(tmp_path: Path):
    """Whatever bytes there are; and what can't be read is no news to verify."""
    tables = [Table(tmp_path / str(seed), seed) for seed in range(8)]
    ends = collections.Counter()

    @settings(max_examples=RUNS)
    @given(changes=CHANGES, repaired=st.booleans(), table=st.sampled_from(tables))
    def check(changes, repaired, table):
        files = dict(table.good)
        for change, *words in changes:
            change(files, *words)
        if repaired:
            repair(files)
        table.write(files)
        found = read_if_good(table.root)
        ends["refused" if found is None else "read"] += 1
        if found is None:
            assert findings(table.root)
        else:
            assert found == sorted(read_slowly(table.root))

    check()
    # A good part of the changes gets through to the rows.
    assert ends["read"] > RUNS / 10, ends
    assert ends["refused"] > RUNS / 4, ends
