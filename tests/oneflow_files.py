"""A table of OneFlow's, byte by byte, and a slow reader of one.

Written from docs/formats/oneflow.md in plain Python, apart from the library: it
puts rows as OneFlow does, so dead rows and gaps at the end of blocks appear.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CHUNK_BYTES = 4 * 1024**3
MASK = 2**64 - 1
PRIMES = (
    11400714785074694791,
    14029467366897019727,
    1609587929392839161,
    9650029242287828579,
    2870177450012600261,
)


def rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & MASK


def xxh64(data: bytes, seed: int) -> int:
    """XXH64 of less than 32 bytes, from the specification."""
    assert len(data) < 32
    p1, p2, p3, p4, p5 = PRIMES
    acc = (seed + p5 + len(data)) & MASK
    while len(data) >= 8:
        (lane,) = struct.unpack("<Q", data[:8])
        acc ^= rotate(lane * p2 & MASK, 31) * p1 & MASK
        acc = (rotate(acc, 27) * p1 + p4) & MASK
        data = data[8:]
    if len(data) >= 4:
        (lane,) = struct.unpack("<I", data[:4])
        acc ^= lane * p1 & MASK
        acc = (rotate(acc, 23) * p2 + p3) & MASK
        data = data[4:]
    for byte in data:
        acc ^= byte * p5 & MASK
        acc = rotate(acc, 11) * p1 & MASK
    acc = (acc ^ acc >> 33) * p2 & MASK
    acc = (acc ^ acc >> 29) * p3 & MASK
    return acc ^ acc >> 32


def owner(key: int, num_ranks: int) -> int:
    """The rank of a key, given as the bits of an unsigned number."""
    return xxh64(struct.pack("<Q", key), seed=1) % num_ranks


class RankFiles:
    """The files of one rank, as OneFlow's writer leaves them."""

    def __init__(
        self, key_size: int, dim: int, block: int, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self.key_size, self.value_size, self.physical = key_size, 4 * dim, block
        self.block = block if self.value_size <= block else 0
        while self.block < self.value_size:
            self.block += block
        self.per_block = self.block // self.value_size
        self.blocks_per_chunk = chunk_bytes // self.block
        self.blocks = 0
        self.live: dict[int, int] = {}
        self.keys: dict[int, bytearray] = {}
        self.values: dict[int, bytearray] = {}
        self.snapshots: dict[str, dict[str, bytes]] = {}

    def put(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Appends rows; a put begins on a new block. Of a key the last row lives."""
        for i, (key, row) in enumerate(rows):
            if i % self.per_block == 0:
                self.begin_block()
            chunk, block = divmod(self.blocks - 1, self.blocks_per_chunk)
            place = i % self.per_block
            position = block * self.per_block + place
            start = position * self.key_size
            code = "<Q" if self.key_size == 8 else "<I"
            self.keys[chunk][start : start + self.key_size] = struct.pack(code, key)
            start = block * self.block + place * self.value_size
            self.values[chunk][start : start + self.value_size] = row
            self.live[key] = (self.blocks - 1) * self.per_block + place

    def begin_block(self) -> None:
        chunk = self.blocks // self.blocks_per_chunk
        keys = self.keys.setdefault(chunk, bytearray())
        keys.extend(bytes(self.per_block * self.key_size))
        # What OneFlow leaves in the rest of a block is arbitrary.
        self.values.setdefault(chunk, bytearray()).extend(b"\xa5" * self.block)
        self.blocks += 1

    def save(self, name: str, seed: int = 0) -> None:
        """Saves the live rows, in an order that only a hash map can love."""
        per_chunk = self.per_block * self.blocks_per_chunk
        ids = list(self.live.values())
        np.random.default_rng(seed).shuffle(ids)
        files, listed = {}, ""
        for chunk in range(len(self.values)):
            mine = [i for i in ids if i // per_chunk == chunk]
            if mine:
                files[f"index-{chunk:012d}"] = struct.pack(f"<{len(mine)}Q", *mine)
                listed += f"index-{chunk:012d}\n"
        files["LIST"] = listed.encode()
        self.snapshots[name] = files

    def files(self) -> dict[str, bytes]:
        """All files by their path within the rank."""
        found = {
            "LOCK": b"",
            "KEY_SIZE": b"%d\n" % self.key_size,
            "VALUE_SIZE": b"%d\n" % self.value_size,
            "PHYSICAL_BLOCK_SIZE": b"%d\n" % self.physical,
            "NUM_LOGICAL_BLOCKS_PER_CHUNK": b"%d\n" % self.blocks_per_chunk,
        }
        for chunk in self.values:
            found[f"keys/key-{chunk:012d}"] = bytes(self.keys[chunk])
            found[f"values/value-{chunk:012d}"] = bytes(self.values[chunk])
        for name, files in self.snapshots.items():
            found |= {f"snapshots/{name}/{file}": b for file, b in files.items()}
        return found

    def write(self, folder: Path) -> None:
        for name in ("keys", "values"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def write_table(
    root: Path,
    puts: list[tuple[np.ndarray, np.ndarray]],
    num_ranks: int = 1,
    block: int = 512,
    chunk_bytes: int = CHUNK_BYTES,
    name: str = "final",
) -> None:
    """A table below ``root`` after some puts of keys and float32 rows, saved."""
    size, dim = puts[0][0].dtype.itemsize, puts[0][1].shape[1]
    ranks = [RankFiles(size, dim, block, chunk_bytes) for _ in range(num_ranks)]
    for keys, rows in puts:
        words = keys.view(f"u{size}").tolist()
        for i, rank in enumerate(ranks):
            mine = [n for n, key in enumerate(words) if owner(key, num_ranks) == i]
            rank.put((words[n], rows[n].tobytes()) for n in mine)
    for i, rank in enumerate(ranks):
        rank.save(name)
        rank.write(root / f"{i:0{len(str(num_ranks))}d}-{num_ranks}")


def draw_puts(
    key_type: str, dim: int, sizes: list[int], seed: int = 0, key_range: int = 40
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Puts of random keys, many of them rewritten later; extreme keys included."""
    rng = np.random.default_rng(seed)
    limits = np.iinfo(key_type)
    pool = rng.integers(limits.min, limits.max, key_range, key_type, endpoint=True)
    pool = np.unique(np.append(pool, np.array([0, limits.min, limits.max], key_type)))
    puts = []
    for size in sizes:
        keys = rng.permutation(pool)[:size]
        rows = rng.standard_normal((len(keys), dim)).astype(np.float32)
        puts.append((keys, rows))
    return puts


def live_rows(puts: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, bytes]:
    """What a table holds after some puts: key to bytes of the row."""
    found = {}
    for keys, rows in puts:
        for key, row in zip(keys.tolist(), rows, strict=True):
            found[key] = row.tobytes()
    return found


def read_slowly(root: Path, name: str = "final") -> list[tuple[int, bytes]]:
    """Unsigned keys and rows of a snapshot below a root, one at a time.

    An error of any kind if that is no snapshot.
    """
    found = []
    for rank in sorted(root.iterdir(), key=lambda path: int(path.name.split("-")[0])):
        numbers = {p: int((rank / p).read_text()) for p in ("KEY_SIZE", "VALUE_SIZE")}
        key_size, size = numbers["KEY_SIZE"], numbers["VALUE_SIZE"]
        physical = int((rank / "PHYSICAL_BLOCK_SIZE").read_text())
        blocks = int((rank / "NUM_LOGICAL_BLOCKS_PER_CHUNK").read_text())
        number, num_ranks = map(int, rank.name.split("-"))
        block = (size + physical - 1) // physical * physical
        per_block = block // size
        for line in (rank / "snapshots" / name / "LIST").read_text().splitlines():
            chunk = int(line.removeprefix("index-"))
            index = (rank / "snapshots" / name / line).read_bytes()
            keys = (rank / "keys" / f"key-{chunk:012d}").read_bytes()
            values = (rank / "values" / f"value-{chunk:012d}").read_bytes()
            ids = [row for (row,) in struct.iter_unpack("<Q", index)]
            assert len(set(ids)) == len(ids)
            for row in ids:
                at = row - chunk * blocks * per_block
                key = keys[at * key_size : (at + 1) * key_size]
                start = at // per_block * block + at % per_block * size
                value = values[start : start + size]
                assert 0 <= at < blocks * per_block
                assert owner(int.from_bytes(key, "little"), num_ranks) == number
                assert (len(key), len(value)) == (key_size, size)
                found.append((int.from_bytes(key, "little"), value))
    return found
