"""Rows below the device, in host memory or on SSD, for tests and tools."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from oneemb_jax._ffi import native

#: Damage on the disk, or a Store that can't be used (after a fork, for one).
StoreError = native.StoreError


def _unsigned(values: Any, dtype: type[np.unsignedinteger], name: str) -> np.ndarray:
    """Whole numbers in range, flat, as ``dtype``."""
    given = np.asarray(values)
    if given.dtype.kind == "f" and not isinstance(values, np.ndarray):
        # A list of whole numbers below and above 2**63: float64 to NumPy.
        given = np.asarray(values, object)
    if given.ndim != 1:
        raise ValueError(f"{name}: shape {given.shape}; pass a flat array.")
    if not given.size:
        return np.zeros(0, dtype)
    exact = given.dtype == object and all(isinstance(x, int) for x in given)
    if given.dtype.kind not in "iu" and not exact:
        raise TypeError(f"{name}: dtype {given.dtype}; pass integers.")
    low, high = int(given.min()), int(given.max())
    if low < 0 or high > np.iinfo(dtype).max:
        raise ValueError(
            f"{name}: {low if low < 0 else high}; use 0 to {np.iinfo(dtype).max}."
        )
    return np.ascontiguousarray(given, dtype)


def _keys(ids: Any, tables: Any) -> tuple[np.ndarray, np.ndarray]:
    keys = _unsigned(ids, np.uint64, "ids")
    if tables is None:
        return keys, np.zeros(len(keys), np.uint16)
    of = _unsigned(tables, np.uint16, "tables")
    if len(of) != len(keys):
        raise ValueError(f"tables: {len(of)} of them for {len(keys)} ids.")
    return keys, of


class _Batches:
    """All rows of a Store in batches, until it is closed.

    One that is kept, say in the traceback of a notebook, would keep the folder too.
    """

    def __init__(self, rows: Any, path: str) -> None:
        self._rows, self._path = rows, path

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        source = self._rows
        if source is None:
            raise StoreError(f"items: the Store of {self._path!r} has been closed.")
        ids, of, rows = next(source)
        return ids, of, rows.view(np.uint32)

    def end(self) -> None:
        self._rows = None


class Store:
    """Fixed-size rows in a folder of their own, found by (table, id).

    What was put is there until it is erased or the Store is closed. What survives
    the process, a kill at any instant and a loss of power, is a snapshot that
    :meth:`save_snapshot` has returned from. A new Store is empty; snapshots stay. One
    process at a time has a folder; threads may share a Store, and its calls let
    other threads of Python run. A forked child can't use it.

    Args:
        path: the folder; made if need be. Local storage.
        row_bytes: of a row: 4 to 65536, a multiple of 4.
        kind: "ssd"; "host" keeps rows in host memory, and snapshots alone in the
            folder; "cached_ssd" has a cache in host memory over the SSD.
        host_budget_bytes: "host": an upper bound of rows, index and metadata
            together. "cached_ssd": the size of the cache, 64 KiB at least.
        block_bytes: sector size of the disk: 512 or 4096.
        segment_bytes: size of a file of rows.
        engine: "auto", "io_uring" or "threads": how transfers are made.

    Raises:
        ValueError: if an argument has a wrong value, or the folder has files of
            something else.
        BlockingIOError: if the folder has an open Store; names its process.
        OSError: if the system refuses.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from oneemb_jax.store import Store
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder, 8) as store:
        ...     store.put([7, 2**63], np.array([[1, 2], [3, 4]], np.uint32))
        ...     store.save_snapshot("first", b"words of mine")
        ...     erased = store.erase([7])
        ...     before = store.size(), store.load_snapshot("first"), store.size()
        ...     rows, found = store.fetch([2**63, 8])
        >>> before, rows[0].tolist(), found.tolist()
        ((1, b'words of mine', 2), [3, 4], [True, False])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        row_bytes: int,
        kind: str = "ssd",
        *,
        host_budget_bytes: int = 2**30,
        block_bytes: int = 4096,
        segment_bytes: int = 2**28,
        engine: str = "auto",
    ) -> None:
        if row_bytes % 4:
            raise ValueError(f"Store(row_bytes={row_bytes}): use a multiple of 4.")
        self.path = os.fsdecode(path)
        self.row_bytes = row_bytes
        self._iterations: weakref.WeakSet[_Batches] = weakref.WeakSet()
        self._store = native.Store(
            os.fsencode(path),
            row_bytes,
            kind,
            host_budget_bytes,
            block_bytes,
            segment_bytes,
            engine,
        )

    def fetch(
        self, ids: Any, tables: Any = None, *, train: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows by key.

        Args:
            ids: uint64[n].
            tables: uint16[n]; None: all 0.
            train: False leaves a cache as it is.

        Returns:
            Rows, uint32[n, row_bytes / 4], 0 where there is none; and whether
            there is one, bool[n].

        Raises:
            StoreError: if a row is damaged; names it.
            OSError: if one can't be read.
        """
        keys, of = _keys(ids, tables)
        rows = np.zeros((len(keys), self.row_bytes), np.uint8)
        found = np.zeros(len(keys), np.uint8)
        self._store.fetch(keys, of, rows, found, train)
        return rows.view(np.uint32), found == 1

    def put(self, ids: Any, rows: Any, tables: Any = None) -> None:
        """Writes rows, all or none; of a key given twice the later row counts.

        Args:
            ids: uint64[n].
            rows: an array of any dtype, [n, row_bytes / its size].
            tables: uint16[n]; None: all 0.

        Raises:
            ValueError: if shapes do not fit.
            OSError: with errno ENOSPC if the disk or the budget is full.
        """
        keys, of = _keys(ids, tables)
        given = np.ascontiguousarray(rows)
        width = given.shape[1] * given.itemsize if given.ndim == 2 else -1
        if len(given) != len(keys) or width != self.row_bytes:
            raise ValueError(
                f"put(rows=...): {given.dtype}{given.shape}; expected {len(keys)} "
                f"rows of {self.row_bytes} bytes."
            )
        if len(keys):
            self._store.put(keys, of, given.view(np.uint8))

    def erase(self, ids: Any, tables: Any = None) -> np.ndarray:
        """Removes rows; bool[n] says for which keys there was one."""
        keys, of = _keys(ids, tables)
        erased = np.zeros(len(keys), np.uint8)
        self._store.erase(keys, of, erased)
        return erased == 1

    def size(self) -> int:
        """Rows present."""
        return self._store.size()

    def stats(self) -> dict[str, Any]:
        """Figures: engine, direct_io, rows, memory_bytes, put_bytes and others."""
        return self._store.stats()

    def items(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All rows of this moment in batches: ids, tables and rows, as in put.

        In no order.

        Raises:
            StoreError: if a row is damaged, or the Store is closed meanwhile.
        """
        batches = _Batches(self._store.items(), self.path)
        self._iterations.add(batches)
        return batches

    def compact(self) -> None:
        """Gives back what space it can now; that happens by itself, too."""
        self._store.compact()

    def save_snapshot(self, name: str, user: bytes = b"") -> None:
        """Saves all rows of this moment, and up to 1 MiB of the caller's own.

        Raises:
            FileExistsError: if there is a snapshot of this name.
            OSError: if writing fails; there is no such snapshot then.
        """
        self._store.save(name, user)

    def load_snapshot(self, name: str) -> bytes:
        """Replaces all rows by a snapshot's; the caller's words that it has.

        It reads the snapshot once, every row of it, before it replaces any.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if it is damaged. Any error leaves the Store as it was.
        """
        return self._store.load(name)

    def load_from(self, folder: str | os.PathLike[str]) -> None:
        """Replaces all rows by those of the snapshot in a folder, anywhere.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if it is damaged. Any error leaves the Store as it was.
        """
        self._store.load_from(os.fsencode(folder))

    def list_snapshots(self) -> list[str]:
        """Names of the snapshots, sorted."""
        return self._store.list()

    def verify_snapshot(self, name: str) -> None:
        """Reads a snapshot whole.

        Raises:
            StoreError: if something is wrong with it.
            FileNotFoundError: if there is none.
        """
        self._store.verify(name)

    def delete_snapshot(self, name: str) -> None:
        """Removes a snapshot.

        Raises:
            FileNotFoundError: if there is none.
        """
        self._store.delete(name)

    def attach(self, name: str, slots: int) -> int:
        """Makes this the Store of the cached table of that name.

        Args:
            name: of the table.
            slots: of its cache.

        Returns:
            A nonce that no other Store has: the table's arrays carry it.
        """
        return native.attach_store(name, self._store, slots)

    def close(self) -> None:
        """Gives the folder back; rows that no snapshot has are gone.

        A Store that a cached table has stays open until that is let go of, too.
        """
        for batches in list(self._iterations):
            batches.end()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._store.closed else f"{self.size()} rows"
        return f"Store({self.path!r}, row_bytes={self.row_bytes}): {state}"
