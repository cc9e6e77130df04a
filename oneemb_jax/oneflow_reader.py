"""Reads snapshots that OneFlow wrote; takes no lock and writes nothing.

A snapshot is a list of live row ids. It refers to key and value files that also
hold dead rows (older versions of a key, ends of blocks), which are passed over.
Files are read with ``pread`` and not mapped: a file that shrinks or a disk that
fails then raises, where a mapping would kill the process.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from oneemb_jax import oneflow_format as fmt

#: Most rows, and most bytes of rows, that one step of an iteration yields.
BATCH_ROWS = 65536
_BATCH_BYTES = 64 << 20
#: What lies between two rows is read too if it is at most this long.
_GAP = 64 << 10
_SPAN = 32 << 20

Batch = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The live rows of a snapshot in one pair of key file and value file."""

    rank: int
    number: int
    index: Path
    keys: Path
    values: Path
    rows: int


def list_names(ranks: list[Path]) -> list[str]:
    """Names of the snapshots that at least one rank has."""
    found = set()
    for rank in ranks:
        folder = rank / "snapshots"
        for path in folder.rglob(fmt.LIST):
            found.add(path.parent.relative_to(folder).as_posix())
    return sorted(found - {"."})


def _listed(folder: Path, ranks: list[Path], name: str) -> list[int]:
    """Chunks that the LIST of a snapshot names."""
    path = folder / fmt.LIST
    if not path.is_file():
        names = ", ".join(map(repr, list_names(ranks))) or "none"
        raise FileNotFoundError(
            f"{path}: no such file; there is no snapshot {name!r} in this rank. "
            f"Snapshots found: {names}."
        )
    chunks = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        chunk = fmt.index_chunk(line)
        if chunk is None:
            raise ValueError(
                f"{path}: holds {line[:40]!r}, expected a name like "
                f"{fmt.index_file(0)!r}; the file is truncated or foreign."
            )
        if chunk in chunks:
            raise ValueError(f"{path}: lists {line!r} twice.")
        chunks.append(chunk)
    return chunks


def unlisted(folder: Path, chunks: list[int]) -> list[Path]:
    """Index files that LIST does not name: left by an older snapshot, if whole."""
    found = (
        path for path in folder.iterdir() if fmt.index_chunk(path.name) is not None
    )
    return sorted(p for p in found if fmt.index_chunk(p.name) not in chunks)


def _check_complete(folder: Path, chunks: list[int], whole: int) -> None:
    """ValueError if OneFlow was stopped while it saved the snapshot.

    It makes index files of full length, cuts each to its rows, then lists it.
    """
    for path in unlisted(folder, chunks):
        if not chunks or path.stat().st_size == whole:
            raise ValueError(
                f"{folder / fmt.LIST}: does not list {path.name}, which is there: "
                "OneFlow was stopped while it saved this snapshot."
            )


def rank_chunks(
    ranks: list[Path], rank: int, name: str, geometry: fmt.Geometry
) -> list[Chunk]:
    """The chunks of one rank's part of a snapshot.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the list or an index cannot be OneFlow's.
    """
    folder = ranks[rank] / "snapshots" / name
    numbers = _listed(folder, ranks, name)
    _check_complete(folder, numbers, 8 * geometry.values_per_chunk)
    chunks = []
    for number in numbers:
        index = folder / fmt.index_file(number)
        keys = ranks[rank] / "keys" / f"key-{number:012d}"
        values = ranks[rank] / "values" / f"value-{number:012d}"
        for path in (index, keys, values):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file; snapshot {name!r} needs it."
                )
        size = index.stat().st_size
        if size == 0 or size % 8 or size > 8 * geometry.values_per_chunk:
            raise ValueError(
                f"{index}: {size} bytes, expected 8 for each of 1 to "
                f"{geometry.values_per_chunk} rows."
            )
        chunks.append(Chunk(rank, number, index, keys, values, size // 8))
    return chunks


def all_chunks(ranks: list[Path], name: str, geometry: fmt.Geometry) -> list[Chunk]:
    """The chunks of a snapshot, rank by rank; raises as ``rank_chunks``."""
    parts = (rank_chunks(ranks, rank, name, geometry) for rank in range(len(ranks)))
    return [chunk for part in parts for chunk in part]


def _positions(chunk: Chunk, geometry: fmt.Geometry) -> np.ndarray:
    """Places of live rows in a chunk, int64[n], ascending: read in file order."""
    ids = np.fromfile(chunk.index, "<u8")
    ids.sort()
    start = chunk.number * geometry.values_per_chunk
    if len(ids) != chunk.rows:
        raise ValueError(f"{chunk.index}: changed its size while it was read.")
    first, last = int(ids[0]), int(ids[-1])
    if first < start or last >= start + geometry.values_per_chunk:
        bad = first if first < start else last
        raise ValueError(
            f"{chunk.index}: lists row {bad}, but this chunk has the rows {start} to "
            f"{start + geometry.values_per_chunk - 1}."
        )
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if twice.size:
        raise ValueError(
            f"{chunk.index}: lists row {ids[twice[0]]} twice; OneFlow was stopped "
            "while it saved this snapshot, or the file is damaged."
        )
    return (ids - np.uint64(start)).astype(np.int64)


def _check_size(path: Path, needed: int, last: int) -> None:
    size = path.stat().st_size
    if size < needed:
        raise ValueError(
            f"{path}: {size} bytes, but row {last} of this chunk, which the snapshot "
            f"lists, ends at {needed}; the file is truncated."
        )


def _read_span(file: BinaryIO, start: int, size: int) -> np.ndarray:
    """uint8[size] from ``start`` on."""
    data = np.empty(size, np.uint8)
    done = 0
    while done < size:
        count = os.preadv(file.fileno(), [data.data[done:]], start + done)
        if count == 0:
            raise ValueError(f"{file.name}: ends at byte {start + done}: truncated.")
        done += count
    return data


def _gather(file: BinaryIO, offsets: np.ndarray, size: int) -> np.ndarray:
    """The ``size`` bytes at each of the ascending ``offsets``, as void[n]."""
    out = np.empty(len(offsets), f"V{size}")
    apart = np.diff(offsets) > _GAP
    windows = offsets // _SPAN
    cuts = np.flatnonzero(apart | (windows[1:] != windows[:-1])) + 1
    for begin, end in itertools.pairwise([0, *cuts.tolist(), len(offsets)]):
        start = int(offsets[begin])
        data = _read_span(file, start, int(offsets[end - 1]) + size - start)
        # Every run of `size` bytes as one element; the wanted ones are taken.
        runs = np.ndarray((len(data) - size + 1,), f"V{size}", data, strides=(1,))
        out[begin:end] = runs[offsets[begin:end] - start]
    return out


class Snapshot:
    """An open snapshot of OneFlow's: iterate over it, as often as you like.

    Made by ``open_snapshot``. Each iteration yields keys ([n], of ``key_type``)
    and rows (float32[n, storage_dim]: the embedding, then the optimizer state),
    n <= 65536, rank by rank, in the order of the files. The row ids of one chunk
    are held in memory, 8 bytes a live row.

    Attributes:
        name: of the snapshot.
        key_type: of the keys that are yielded.
        storage_dim: float32 of a row.
        ranks: folder of each rank.
        geometry: how rows lie in files.

    Raises:
        ValueError: during iteration, if a file is truncated or damaged, a key is
            in a rank that does not own it, or the snapshot was closed.
        OSError: during iteration, if a file cannot be read.
    """

    def __init__(
        self,
        ranks: list[Path],
        name: str,
        geometry: fmt.Geometry,
        key_type: str,
        chunks: list[Chunk],
    ) -> None:
        self.ranks, self.name = ranks, name
        self.geometry, self.key_type = geometry, key_type
        self.storage_dim = geometry.storage_dim
        self._chunks = chunks
        self._open = True

    @property
    def num_ranks(self) -> int:
        """How many processes of OneFlow wrote it."""
        return len(self.ranks)

    def __len__(self) -> int:
        """Rows, over all ranks."""
        return sum(chunk.rows for chunk in self._chunks)

    def __iter__(self) -> Iterator[Batch]:
        for chunk in self._chunks:
            yield from self.read(chunk)

    def keys(self) -> Iterator[np.ndarray]:
        """The keys alone, in the same batches; values are not read."""
        for chunk in self._chunks:
            for keys, _ in self.read(chunk, with_values=False):
                yield keys

    def read(self, chunk: Chunk, with_values: bool = True) -> Iterator[Batch]:
        """The rows of one chunk; without values, the second array has no columns."""
        size = self.geometry.value_size if with_values else 0
        positions = self._checked_positions(chunk)
        most = max(1, min(BATCH_ROWS, _BATCH_BYTES // self.geometry.value_size))
        with chunk.keys.open("rb") as keys, chunk.values.open("rb") as values:
            for begin in range(0, len(positions), most):
                self._check_open()
                part = positions[begin : begin + most]
                found = self._keys_at(chunk, keys, part)
                if not size:
                    yield found, np.empty((len(part), 0), np.float32)
                    continue
                rows = _gather(values, self.geometry.value_offsets(part), size)
                yield found, rows.view("<f4").reshape(len(part), self.storage_dim)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"snapshot {self.name!r} is closed; open it again.")

    def _checked_positions(self, chunk: Chunk) -> np.ndarray:
        self._check_open()
        positions = _positions(chunk, self.geometry)
        last = positions[-1:]
        keys = (int(last[0]) + 1) * self.geometry.key_size
        values = int(self.geometry.value_offsets(last)[0]) + self.geometry.value_size
        _check_size(chunk.keys, keys, int(last[0]))
        _check_size(chunk.values, values, int(last[0]))
        return positions

    def _keys_at(
        self, chunk: Chunk, file: BinaryIO, positions: np.ndarray
    ) -> np.ndarray:
        size = self.geometry.key_size
        raw = _gather(file, positions * size, size).view(f"<u{size}")
        keys = raw.astype(f"=u{size}", copy=False).view(self.key_type)
        if self.num_ranks > 1:
            owner = fmt.owners(keys, self.num_ranks)
            wrong = np.flatnonzero(owner != chunk.rank)
            if wrong.size:
                raise ValueError(
                    f"{chunk.keys}: key {keys[wrong[0]]} belongs to rank "
                    f"{owner[wrong[0]]} of {self.num_ranks}, found in rank "
                    f"{chunk.rank}; ranks are missing or mixed up, or the file is "
                    "damaged."
                )
        return keys

    def close(self) -> None:
        """Ends iterations; twice does no harm."""
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Snapshot {self.name!r} of OneFlow: {len(self)} rows of "
            f"{self.storage_dim} float32, keys {self.key_type}, {self.num_ranks} "
            "rank(s)"
        )


def common_geometry(ranks: list[Path]) -> fmt.Geometry:
    """The geometry of all ranks; ValueError if they differ."""
    first = fmt.read_geometry(ranks[0])
    for rank in ranks[1:]:
        other = fmt.read_geometry(rank)
        for file, field in fmt.METADATA.items():
            mine, theirs = getattr(first, field), getattr(other, field)
            if mine != theirs:
                raise ValueError(
                    f"{rank / file}: states {theirs}, but {ranks[0] / file} states "
                    f"{mine}; these are ranks of different tables."
                )
    return first


def open_ranks(
    paths: fmt.Paths, name: str, key_type: Any, storage_dim: int | None, call: str
) -> Snapshot:
    """What ``open_snapshot`` does, with the caller's name for messages."""
    fmt.check_name(name, call)
    ranks = fmt.find_ranks(paths, call)
    geometry = common_geometry(ranks)
    if key_type is None:
        key_type = f"int{8 * geometry.key_size}"
    key_type = fmt.check_key_type(key_type, call)
    size = np.dtype(key_type).itemsize
    if size != geometry.key_size:
        raise ValueError(
            f"{ranks[0] / 'KEY_SIZE'}: keys have {geometry.key_size} bytes, but "
            f"key_type={key_type} has {size}; use int{8 * geometry.key_size} or "
            f"uint{8 * geometry.key_size}."
        )
    if storage_dim not in (None, geometry.storage_dim):
        raise ValueError(
            f"{ranks[0] / 'VALUE_SIZE'}: rows have {geometry.value_size} bytes, "
            f"storage_dim={geometry.storage_dim}, but the caller wants "
            f"storage_dim={storage_dim}."
        )
    chunks = all_chunks(ranks, name, geometry)
    return Snapshot(ranks, name, geometry, key_type, chunks)
