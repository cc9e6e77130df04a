"""Rows of snapshots read and written with NumPy alone, as OneFlow's tools do.

The names and parameters are OneFlow's; the format is this package's. For OneFlow's
own format see oneflow.py.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from oneemb_jax import snapshot_files as files
from oneemb_jax.manifest import Manifest
from oneemb_jax.oneflow_format import (
    BLOCK_SIZES,
    check_key_type,
    check_written,
    owners,
)
from oneemb_jax.paths import folder_path
from oneemb_jax.store import Store

#: A root, which has a folder for each rank; or the folder of each rank.
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_MOST_WORDS = 2**14


def _checked_paths(paths: Any, call: str) -> str | tuple[str, ...]:
    argument = f"{call}(paths=...)"
    if isinstance(paths, str | bytes | os.PathLike):
        return folder_path(paths, argument)
    if not isinstance(paths, Iterable):
        raise TypeError(f"{call}(paths={paths!r}): pass a folder, or one a rank.")
    names = tuple(folder_path(path, argument) for path in paths)
    if not names or len({os.path.abspath(name) for name in names}) < len(names):
        raise ValueError(
            f"{call}(paths={paths!r}): pass the folder of each rank, each once."
        )
    return names


def _check_rows(
    value_type: Any, storage_dim: Any, physical_block_size: Any, call: str
) -> int:
    try:
        is_float = value_type is not None and np.dtype(value_type) == np.float32
    except TypeError:
        is_float = False
    if not is_float:
        raise ValueError(f"{call}(value_type={value_type!r}): rows are float32.")
    if isinstance(storage_dim, bool) or not isinstance(storage_dim, int | np.integer):
        raise TypeError(f"{call}(storage_dim={storage_dim!r}): pass a whole number.")
    if not 1 <= storage_dim <= _MOST_WORDS:
        raise ValueError(
            f"{call}(storage_dim={storage_dim}): pass the float32 of a row, 1 to "
            f"{_MOST_WORDS}."
        )
    if physical_block_size not in BLOCK_SIZES:
        raise ValueError(
            f"{call}(physical_block_size={physical_block_size!r}): use 512 or 4096, "
            "the sector size of the disk."
        )
    return int(storage_dim)


def row_widths(manifest: Manifest) -> tuple[int, ...]:
    """Words of a row: with the zeros that pad it, and without."""
    spec = manifest.spec
    if spec is None:
        return (manifest.row_words,)
    words = spec.embedding_dim * spec.optimizer.size_factor
    return manifest.row_words, words + spec.optimizer.num_row_words


class PersistentTableReader:
    """Reads the rows of a snapshot; see :func:`make_persistent_table_reader`."""

    def __init__(
        self,
        paths: Any,
        snapshot_name: str,
        key_type: Any,
        value_type: Any,
        storage_dim: int,
        physical_block_size: int = 4096,
    ) -> None:
        """Opens the snapshot in all folders, and checks all but its rows."""
        call = "make_persistent_table_reader"
        self.name = snapshot_name
        self.key_type = check_key_type(key_type, call)
        self.storage_dim = _check_rows(
            value_type, storage_dim, physical_block_size, call
        )
        folders = files.find_parts(
            _checked_paths(paths, call), snapshot_name, call, "snapshot_name"
        )
        self._parts: list[files.Part] | None = files.open_parts(folders)
        manifest = self._parts[0].manifest
        self._several = (
            manifest.spec is not None
            and manifest.spec.num_tables > 1
            and not manifest.spec.shared_keys
        )
        width = np.dtype(self.key_type).itemsize
        if np.dtype(manifest.key_type).itemsize != width:
            raise ValueError(
                f"{call}(key_type={key_type!r}): {folders[0]} has keys of "
                f"{manifest.key_type}."
            )
        if self.storage_dim not in row_widths(manifest):
            wanted = " or ".join(map(str, sorted({*row_widths(manifest)})))
            raise ValueError(
                f"{call}(storage_dim={storage_dim}): {folders[0]} has rows of "
                f"storage_dim={wanted}."
            )
        self._batches = self.items()

    def _open_parts(self) -> list[files.Part]:
        if self._parts is None:
            raise ValueError("the reader is closed.")
        return self._parts

    def __len__(self) -> int:
        """Rows of the snapshot."""
        return sum(part.reader.rows for part in self._open_parts())

    def items(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All rows from the beginning: keys, table ids (int32) and values."""
        return itertools.chain.from_iterable(map(self._items, self._open_parts()))

    def _items(
        self, part: files.Part
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for ids, tables, raw in part.reader.items():
            self._open_parts()
            keys = files.as_keys(ids, self.key_type, part.folder)
            rows = raw.view(np.float32)[:, : self.storage_dim]
            yield keys, tables.astype(np.int32), np.ascontiguousarray(rows)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        self._open_parts()
        keys, tables, rows = next(self._batches)
        if self._several or tables.any():
            raise ValueError(
                f"snapshot {self.name!r} has rows of several tables, which may have "
                "the same keys; iterate over reader.items(), which gives keys, table "
                "ids and values."
            )
        return keys, rows

    def close(self) -> None:
        """Lets go of the files."""
        self._parts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PersistentTableWriter:
    """Writes rows as a snapshot; see :func:`make_persistent_table_writer`."""

    def __init__(
        self,
        paths: Any,
        snapshot_name: str,
        key_type: Any,
        value_type: Any,
        storage_dim: int,
        physical_block_size: int = 4096,
    ) -> None:
        """Takes the folders of all ranks, until it is closed."""
        call = "make_persistent_table_writer"
        self.name = files.check_name(snapshot_name, call, "snapshot_name")
        self.key_type = check_key_type(key_type, call)
        self.storage_dim = _check_rows(
            value_type, storage_dim, physical_block_size, call
        )
        checked = _checked_paths(paths, call)
        single = isinstance(checked, str)
        folders = [files.rank_folder(checked)] if single else [*checked]
        for folder in folders:
            if snapshot_name in files.list_folder(folder):
                raise FileExistsError(
                    f"{call}(snapshot_name={snapshot_name!r}): "
                    f"{files.snapshot_path(folder, snapshot_name)} exists already."
                )
        self._stores: list[Store] | None = []
        try:
            for folder in folders:
                store = Store(
                    folder, 4 * self.storage_dim, block_bytes=physical_block_size
                )
                self._stores.append(store)
        except BaseException:
            self.abandon()
            raise

    def _open_stores(self) -> list[Store]:
        if self._stores is None:
            raise ValueError("the writer is closed.")
        return self._stores

    def write(self, keys: Any, values: Any, table_ids: Any = None) -> None:
        """Writes rows; of a key written twice the later row counts.

        Args:
            keys: [n], of the writer's key type.
            values: float32[n, storage_dim].
            table_ids: integers[n], 0 to 65535; None: all 0, as for one table, or
                tables that share their keys.

        Raises:
            ValueError: if a dtype or shape does not fit; nothing is written then.
            OSError: if writing fails.
        """
        stores = self._open_stores()
        keys, values, tables = self._checked(keys, values, table_ids)
        owner = owners(keys, len(stores))
        ids = files.as_ids(keys)
        for rank, store in enumerate(stores):
            mine = np.flatnonzero(owner == rank)
            store.put(ids[mine], values[mine], tables[mine])

    def _checked(
        self, keys: Any, values: Any, table_ids: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keys, values = np.asarray(keys), np.asarray(values)
        check_written(keys, values, self.key_type, self.storage_dim)
        if table_ids is None:
            return keys, values, np.zeros(len(keys), np.uint16)
        tables = np.asarray(table_ids)
        if tables.shape != keys.shape or tables.dtype.kind not in "iu":
            raise ValueError(
                f"write(table_ids=...): {tables.dtype}{[*tables.shape]}; expected "
                f"integers[{len(keys)}]."
            )
        if tables.size and not 0 <= tables.min() <= tables.max() < 2**16:
            raise ValueError("write(table_ids=...): pass numbers from 0 to 65535.")
        return keys, values, tables

    def close(self) -> None:
        """Saves what was written as the snapshot, in all folders or in none.

        Raises:
            OSError: if that fails; the rows are gone then.
        """
        if self._stores is None:
            return
        stores, saved = self._stores, []
        words = self.key_type, self.storage_dim
        try:
            for rank, store in enumerate(stores):
                manifest = Manifest(*words, rank=rank, num_ranks=len(stores))
                store.save_snapshot(self.name, manifest.encode())
                saved.append(store)
        except BaseException:
            for store in saved:
                store.delete_snapshot(self.name)
            raise
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes the writer without a snapshot."""
        stores, self._stores = self._stores or [], None
        for store in stores:
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def make_persistent_table_reader(
    paths: Paths,
    snapshot_name: str,
    key_type: Any,
    value_type: Any,
    storage_dim: int,
    physical_block_size: int = 4096,
) -> PersistentTableReader:
    """Reads the rows of a snapshot, of a table or of a writer, batch by batch.

    It iterates once over ``(keys[n], values[n, storage_dim])``; whole rows,
    optimizer state included (docs/formats/table.md says in what order). Rows of
    several tables that keep their keys separate come from ``reader.items()``:
    ``(keys, table_ids, values)``, from the beginning each time it is called.
    Takes no lock.

    Args:
        paths: a ``persistent_path``: a root, or a list with the folder of each rank.
        snapshot_name: of the snapshot.
        key_type: int32, uint32, int64 or uint64, as wide as the snapshot's.
        value_type: float32.
        storage_dim: float32 of a row; with the zeros that pad it or without.
        physical_block_size: 512 or 4096; OneFlow's parameter, of no effect here.

    Returns:
        An iterator and context manager; ``len`` of it counts rows.

    Raises:
        FileNotFoundError: if there is no such snapshot.
        ValueError: if an argument has a wrong value, or does not fit the snapshot.
        StoreError: if it is damaged.

    Example:
        >>> import tempfile
        >>> import oneemb_jax as oe
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "reader", 2, "float32", "int64", optimizer=oe.adagrad(0.1),
        ...     store_options=oe.make_device_mem_store_options(folder, capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [7], [[1.0, 2.0]], {"sum": [[3, 4]]})
        ...     path = emb.save_snapshot(table, "final")
        ...     with oe.make_persistent_table_reader(
        ...         folder, "final", "int64", "float32", storage_dim=4
        ...     ) as reader:
        ...         for keys, values in reader:
        ...             print(keys, values)
        [7] [[1. 2. 3. 4.]]
    """
    return PersistentTableReader(
        paths, snapshot_name, key_type, value_type, storage_dim, physical_block_size
    )


def make_persistent_table_writer(
    paths: Paths,
    snapshot_name: str,
    key_type: Any,
    value_type: Any,
    storage_dim: int,
    physical_block_size: int = 4096,
) -> PersistentTableWriter:
    """Writes rows as a snapshot that ``load_snapshot`` and the reader open.

    ``write(keys, values, table_ids=None)`` takes rows; ``close``, or the end of a
    ``with`` that raised nothing, saves all that were written since the writer was
    made as one snapshot. A writer that is dropped leaves none. With several folders a
    row goes to that of the rank that owns its key, XXH64(key, seed 1) modulo their
    number, as in OneFlow: this is how a table gets another number of ranks.

    Args:
        paths: a ``persistent_path``: a root, for one rank, or a list with the folder
            of each rank. They are in use until the writer is closed.
        snapshot_name: of the snapshot; must not exist yet.
        key_type: int32, uint32, int64 or uint64.
        value_type: float32.
        storage_dim: float32 of a row, optimizer state included.
        physical_block_size: sector size of the disk: 512 or 4096.

    Returns:
        A context manager.

    Raises:
        FileExistsError: if there is a snapshot of this name.
        BlockingIOError: if a folder is in use; names the process.
        ValueError: if an argument has a wrong value, or a folder has files of
            something else.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "writer", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(folder, capacity=8),
        ... ) as emb:
        ...     with oe.make_persistent_table_writer(
        ...         folder, "start", "int64", "float32", storage_dim=2
        ...     ) as writer:
        ...         writer.write(np.array([7, 8]), np.eye(2, dtype=np.float32))
        ...     oe.get_rows(emb.load_snapshot("start"), [8]).embedding.tolist()
        [[0.0, 1.0]]
    """
    return PersistentTableWriter(
        paths, snapshot_name, key_type, value_type, storage_dim, physical_block_size
    )
