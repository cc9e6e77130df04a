"""OneFlow's own snapshots: read them, import them into a table, write them.

OneFlow's OneEmbedding keeps a table in a folder for each process, below its
``persistent_path``, and so do its persistent table reader and writer. The format
is drawn in docs/formats/oneflow.md.
"""

from __future__ import annotations

from typing import Any

from oneemb_jax.oneflow_format import Paths, find_ranks
from oneemb_jax.oneflow_reader import Snapshot as Snapshot
from oneemb_jax.oneflow_reader import list_names, open_ranks
from oneemb_jax.oneflow_tables import export_snapshot as export_snapshot
from oneemb_jax.oneflow_tables import import_snapshot as import_snapshot
from oneemb_jax.oneflow_verify import verify_ranks

__all__ = [
    "Snapshot",
    "export_snapshot",
    "import_snapshot",
    "list_snapshots",
    "open_snapshot",
    "verify_snapshot",
]


def list_snapshots(paths: Paths) -> list[str]:
    """Names of the snapshots in a table of OneFlow's, sorted.

    Args:
        paths: as in :func:`open_snapshot`.

    Raises:
        FileNotFoundError: if there is no table, or ranks are missing.

    Example:
        >>> import tempfile
        >>> import oneemb_jax as oe
        >>> import oneemb_jax.oneflow as oneflow
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "list_snapshots", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     oneflow.export_snapshot(emb.init(), folder, "first")
        ...     oneflow.list_snapshots(folder)
        0
        ['first']
    """
    return list_names(find_ranks(paths, "list_snapshots"))


def open_snapshot(
    paths: Paths, name: str, key_type: Any = None, storage_dim: int | None = None
) -> Snapshot:
    """Opens a snapshot that OneFlow wrote, to iterate over its rows.

    It needs no lock and changes nothing; OneFlow may go on with the table.

    Args:
        paths: the root, with a folder ``i-n`` for each of n ranks: OneFlow's
            ``persistent_path``. Or a list with the folder of each rank.
        name: of the snapshot.
        key_type: int32, uint32, int64 or uint64. The files know only how wide
            keys are; by default they are signed.
        storage_dim: float32 of a row, optimizer state included. What the files
            say, by default; any other number must be right.

    Returns:
        A :class:`Snapshot`: a context manager that yields keys and rows.

    Raises:
        FileNotFoundError: if the table, one of its ranks or files, or the snapshot
            is missing.
        ValueError: if a file is truncated or foreign, or an argument does not fit.

    Example:
        >>> import tempfile
        >>> import oneemb_jax as oe
        >>> import oneemb_jax.oneflow as oneflow
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "open_snapshot", 2, "float32", "int64", optimizer=oe.adagrad(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [7], [[1.0, 2.0]], {"sum": [[3, 4]]})
        ...     rows_written = oneflow.export_snapshot(table, folder, "final")
        ...     with oneflow.open_snapshot(folder, "final", "int64", 4) as snapshot:
        ...         for keys, rows in snapshot:
        ...             print(keys, rows)
        [7] [[1. 2. 3. 4.]]
    """
    return open_ranks(paths, name, key_type, storage_dim, "open_snapshot")


def verify_snapshot(paths: Paths, name: str) -> list[str]:
    """Reads a whole snapshot and says what is wrong with it.

    The format has no checksums: a changed byte within a row can't be seen. Keys of
    one rank are held in memory, to find those that are there twice.

    Args:
        paths: as in :func:`open_snapshot`.
        name: of the snapshot.

    Returns:
        One sentence for each finding, none if all is well.

    Raises:
        FileNotFoundError: if the table or one of its ranks is missing.
        ValueError: if its metadata is no table's.

    Example:
        >>> import pathlib, tempfile
        >>> import oneemb_jax as oe
        >>> import oneemb_jax.oneflow as oneflow
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "verify_snapshot", 1, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [7, 8], [[1.0], [float("nan")]])
        ...     rows_written = oneflow.export_snapshot(table, folder, "final")
        ...     found = oneflow.verify_snapshot(folder, "final")
        ...     [line.split(": ")[1] for line in found]
        ['1 rows hold NaN or infinity.']
    """
    return list(verify_ranks(paths, name, "verify_snapshot"))
