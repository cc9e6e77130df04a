"""What embeddings do with snapshots: the object face of snapshot.py."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneemb_jax import snapshot_files as files
from oneemb_jax._ffi import native
from oneemb_jax.cache import open_store
from oneemb_jax.counters import host_counters
from oneemb_jax.paths import AnyPath
from oneemb_jax.replaced import read_whole
from oneemb_jax.snapshot import read_table, save_snapshot
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import Table


class SnapshotMethods(abc.ABC):
    """What embeddings do with snapshots in their ``persistent_path``."""

    spec: TableSpec

    def save_snapshot(self, table: Table, name: str) -> str:
        """``oneemb_jax.save_snapshot`` of a table that belongs to this embedding.

        Args:
            table: made by ``init`` or ``load_snapshot``, or what became of it.
            name: as there.

        Returns:
            The snapshot's folder.

        Raises:
            ValueError: as there, or if the table is another embedding's.
            OSError: as there.
        """
        call = f"{type(self).__name__}.save_snapshot"
        host_counters(table, call)
        if table.spec != self.spec:
            raise ValueError(
                f"{call}(table=...): the table belongs to another embedding, which "
                f"differs in {table.spec.differences(self.spec)}."
            )
        return save_snapshot(table, name)

    def load_snapshot(
        self,
        name: AnyPath,
        device: Any = None,
        *,
        capacity: int | None = None,
        ignore: str | Sequence[str] = (),
        step: int | None = None,
    ) -> Table:
        """A new table with the rows, state, step and counters of a snapshot.

        It goes on to the same bits as the one that was saved: slots may differ,
        results do not. The learning rate is the embedding's, not the snapshot's,
        and so is the name. Takes no lock.

        Args:
            name: of the snapshot; or the path of its folder, anywhere: a ``Path``,
                or a string with a "/" in it.
            device: as in ``init``.
            capacity: rows that the table has room for; by default those of the
                store options. Rows are admitted as they were only if it is that
                of the table saved. Not for a cached table.
            ignore: what may differ from the snapshot's, of "key_type" (signed or
                unsigned), "optimizer" (its numbers; or the embedding's is plain SGD,
                say to serve, and what another kept of each row is left out), "seed",
                "tables" (their initializers; more of them): it matters to rows to
                come alone.
            step: updates done, in the place of the snapshot's; needed where a
                persistent table writer wrote the rows and updates count.

        Raises:
            FileNotFoundError: if there is no such snapshot, with those there are.
            ValueError: if the snapshot is of another table, with all that differs,
                if there is no room, or the embedding is closed.
            StoreError: if it is damaged or incomplete.
            BlockingIOError: if it is replaced again and again while it is read.

        Example:
            >>> import tempfile
            >>> import oneemb_jax as oe
            >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
            ...     "load_snapshot", 2, "float32", "int64", optimizer=oe.sgd(0.1),
            ...     store_options=oe.make_device_mem_store_options(folder, capacity=8),
            ... ) as emb:
            ...     table = oe.set_rows(emb.init(), [7], [[1.0, 2.0]])
            ...     path = emb.save_snapshot(table, "one")
            ...     [oe.size(emb.load_snapshot(name)) for name in ("one", path)]
            [1, 1]
        """
        call = f"{type(self).__name__}.load_snapshot"
        self._check_open(call)
        return read_whole(
            lambda: files.located(self.spec, name, call),
            lambda folders: read_table(
                self.spec,
                files.open_parts(folders),
                device,
                capacity,
                ignore,
                step,
                call,
            ),
        )

    def list_snapshots(self) -> list[str]:
        """Names of the snapshots in ``persistent_path``, sorted, numbers by value."""
        paths = files.persistent_path(
            self.spec, f"{type(self).__name__}.list_snapshots"
        )
        return files.list_names(paths)

    def verify_snapshot(self, name: AnyPath) -> None:
        """Reads a snapshot whole and checks every row.

        Args:
            name: as in ``load_snapshot``.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if it is damaged or incomplete; names what is.
            ValueError: if it is not a table's.
        """
        call = f"{type(self).__name__}.verify_snapshot"
        for part in files.open_parts(files.located(self.spec, name, call)):
            native.verify_snapshot(files.encode_path(part.folder))

    def delete_snapshot(self, name: str) -> None:
        """Removes a snapshot; others, even such that share its files, stay whole.

        Args:
            name: of the snapshot.

        Raises:
            FileNotFoundError: if there is none.
            BlockingIOError: if another process writes there now.
        """
        call = f"{type(self).__name__}.delete_snapshot"
        paths = files.persistent_path(self.spec, call)
        folders = files.find_parts(paths, name, call)
        store = open_store(self.spec.name)
        if store is not None:  # it has the folder's lock
            store.delete_snapshot(name)
            return
        for folder in folders:
            root = Path(folder).parent.parent
            native.delete_snapshot(files.encode_path(root), name)

    @abc.abstractmethod
    def _check_open(self, call: str) -> None:
        """ValueError if the embedding is closed."""
