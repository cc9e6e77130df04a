"""Writes snapshots that OneFlow's reader and trainer open.

Each rank is written to a folder of another name beside its own, flushed to the
disk, and renamed: what has its proper name is whole. Nothing is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from oneemb_jax import oneflow_format as fmt
from oneemb_jax.durable import sync_folder, write_file

#: Row ids made at a time for an index file.
_INDEX_STEP = 1 << 20


def _close(file: BinaryIO) -> None:
    """Closes a file whose bytes are on the disk by then."""
    try:
        file.flush()
        os.fsync(file.fileno())
    finally:
        file.close()


class _Rank:
    """Appends rows to the files of one rank, in whole blocks."""

    def __init__(self, folder: Path, geometry: fmt.Geometry) -> None:
        self.folder, self.geometry = folder, geometry
        self.rows = 0  # in files; the rest waits for a whole block
        self._keys = np.empty(0, f"<u{geometry.key_size}")
        self._values = np.empty((0, geometry.storage_dim), "<f4")
        self._files: list[BinaryIO] = []
        for name in ("keys", "values", "snapshots"):
            (folder / name).mkdir(parents=True)

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Takes rows; all but the last few are written."""
        keys = np.concatenate([self._keys, keys.view(self._keys.dtype)])
        values = np.concatenate([self._values, values])
        per_block = self.geometry.values_per_block
        whole = len(keys) // per_block * per_block
        self._write(keys[:whole], values[:whole])
        self._keys, self._values = keys[whole:].copy(), values[whole:].copy()

    def _write(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Writes whole blocks, to one chunk after the other."""
        per_chunk = self.geometry.values_per_chunk
        while len(keys):
            chunk, place = divmod(self.rows, per_chunk)
            if place == 0:
                self._begin_chunk(chunk)
            count = min(len(keys), per_chunk - place)
            key_file, value_file = self._files
            key_file.write(keys[:count].data)
            value_file.write(self._blocks(values[:count]).data)
            self.rows += count
            keys, values = keys[count:], values[count:]

    def _begin_chunk(self, chunk: int) -> None:
        self.close_files()
        for path in (f"keys/key-{chunk:012d}", f"values/value-{chunk:012d}"):
            self._files.append((self.folder / path).open("xb"))

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """uint8[blocks, block_size] with rows at the begin of each block."""
        geometry = self.geometry
        count = len(values) // geometry.values_per_block
        used = geometry.values_per_block * geometry.value_size
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(count, used)
        if used == geometry.block_size:
            return raw
        blocks = np.zeros((count, geometry.block_size), np.uint8)
        blocks[:, :used] = raw
        return blocks

    def close_files(self) -> None:
        """Flushes and closes the files of the present chunk."""
        while self._files:
            _close(self._files.pop())

    def abandon(self) -> None:
        """Closes files that shall not be kept; a full disk may complain again."""
        while self._files:
            with contextlib.suppress(OSError):
                self._files.pop().close()

    def finish(self, name: str) -> None:
        """Writes what waits, checks the keys, and adds metadata and snapshot."""
        live = self.rows + len(self._keys)
        missing = -len(self._keys) % self.geometry.values_per_block
        keys = np.pad(self._keys, (0, missing))
        self._write(keys, np.pad(self._values, ((0, missing), (0, 0))))
        self.close_files()
        self._check_keys(live)
        self._write_snapshot(name, live)
        for file, field in fmt.METADATA.items():
            number = f"{getattr(self.geometry, field)}\n"
            write_file(self.folder / file, number.encode())
        write_file(self.folder / fmt.LOCK, b"")
        for path in [self.folder, *self.folder.rglob("*")]:
            if path.is_dir():
                sync_folder(path)

    def _check_keys(self, live: int) -> None:
        """ValueError if a key was written twice: OneFlow would abort."""
        files = sorted((self.folder / "keys").iterdir())
        parts = [np.fromfile(file, self._keys.dtype) for file in files]
        keys = np.concatenate([self._keys[:0], *parts])[:live]
        keys.sort()
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if twice.size:
            raise ValueError(
                f"key {keys[twice[0]]} was written twice; OneFlow has one row a key. "
                "Rows of several tables need keys that differ."
            )

    def _write_snapshot(self, name: str, live: int) -> None:
        folder = self.folder / "snapshots" / name
        folder.mkdir(parents=True)
        per_chunk = self.geometry.values_per_chunk
        names = []
        for chunk, start in enumerate(range(0, live, per_chunk)):
            end = min(live, start + per_chunk)
            names.append(fmt.index_file(chunk))
            file = (folder / names[-1]).open("xb")
            try:
                for first in range(start, end, _INDEX_STEP):
                    last = min(end, first + _INDEX_STEP)
                    file.write(np.arange(first, last, dtype="<u8").data)
            finally:
                _close(file)
        write_file(folder / fmt.LIST, "".join(f"{n}\n" for n in names).encode())


def _check_target(path: Path, call: str) -> None:
    if path.is_symlink() or path.exists():
        if path.is_dir() and not any(path.iterdir()):
            return  # a rename replaces an empty folder
        raise FileExistsError(
            f"{call}(paths=...): {path} exists already; nothing is overwritten."
        )


class SnapshotWriter:
    """Writes one snapshot: a context manager that publishes it when it ends well.

    Args:
        paths: a root, which gets a folder for each rank and appears as a whole; or
            the folder of each rank, which appear one after the other. None may
            exist, except empty.
        name: of the snapshot.
        key_type: int32, uint32, int64 or uint64.
        storage_dim: float32 of a row, optimizer state included.
        num_ranks: processes that OneFlow will run. With a list of paths, its
            length.
        physical_block_size: 512 or 4096; OneFlow must be told the same.
        call: the public function, for messages.

    Raises:
        ValueError: if an argument has a wrong value.
        FileExistsError: if there is something at ``paths``.
    """

    def __init__(
        self,
        paths: fmt.Paths,
        name: str,
        key_type: Any,
        storage_dim: int,
        num_ranks: int | None = None,
        physical_block_size: int = 4096,
        call: str = "SnapshotWriter",
    ) -> None:
        self.name = fmt.check_name(name, call)
        self.key_type = fmt.check_key_type(key_type, call)
        if physical_block_size not in fmt.BLOCK_SIZES:
            raise ValueError(
                f"{call}(physical_block_size={physical_block_size}): use 512 or 4096, "
                "the sector size of the disk."
            )
        if not 1 <= 4 * storage_dim <= fmt.CHUNK_BYTES:
            raise ValueError(f"{call}(storage_dim={storage_dim}): pass 1 or more.")
        self.storage_dim = storage_dim
        self.geometry = fmt.new_geometry(
            self.key_type, storage_dim, physical_block_size
        )
        self.rows = 0
        self._moves = _moves(paths, num_ranks, call)
        self._ranks: list[_Rank] = []

    def __enter__(self) -> Self:
        try:
            for folder in _rank_folders(self._moves):
                self._ranks.append(_Rank(folder, self.geometry))
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Appends rows; no key may come twice.

        Args:
            keys: [n], of ``key_type``.
            values: float32[n, storage_dim].
        """
        fmt.check_written(keys, values, self.key_type, self.storage_dim)
        owner = fmt.owners(keys, len(self._ranks))
        for i, rank in enumerate(self._ranks):
            mine = np.flatnonzero(owner == i)
            rank.append(keys[mine], values[mine])
        self.rows += len(keys)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                for rank in self._ranks:
                    rank.finish(self.name)
                self._publish()
        finally:
            self._discard()

    def _publish(self) -> None:
        for temporary, target, _ in self._moves:
            sync_folder(temporary)
            os.rename(temporary, target)
            sync_folder(target.parent)

    def _discard(self) -> None:
        """Removes what was not renamed."""
        for rank in self._ranks:
            rank.abandon()
        for temporary, _, _ in self._moves:
            shutil.rmtree(temporary, ignore_errors=True)


#: Where a folder is made, what it becomes, and the ranks below it; no names for
#: a folder that is itself a rank.
_Move = tuple[Path, Path, list[str]]


def _moves(paths: fmt.Paths, num_ranks: int | None, call: str) -> list[_Move]:
    single = isinstance(paths, str | os.PathLike)
    targets = [Path(paths)] if single else [Path(path) for path in paths]
    if not single and num_ranks is None:
        num_ranks = len(targets)
    ranks = 1 if num_ranks is None else num_ranks
    if ranks < 1 or not (single or ranks == len(targets)):
        raise ValueError(
            f"{call}(num_ranks={num_ranks}): pass 1 or more, and as many as there are "
            f"paths, or a root."
        )
    if len({target.absolute() for target in targets}) < len(targets):
        raise ValueError(f"{call}(paths=...): a path is there twice.")
    names = [fmt.rank_name(i, ranks) for i in range(ranks)] if single else []
    moves = []
    for target in (path.absolute() for path in targets):
        _check_target(target, call)
        hidden = f".{target.name}.partial-{secrets.token_hex(4)}"
        moves.append((target.parent / hidden, target, names))
    return moves


def _rank_folders(moves: list[_Move]) -> Iterator[Path]:
    """Makes the temporary folders; the folder of each rank."""
    for temporary, _, names in moves:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield from (temporary / name for name in names)
        if not names:
            yield temporary
