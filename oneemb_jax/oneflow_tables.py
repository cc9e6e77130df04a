"""From a snapshot of OneFlow's to a table of ours, and back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from oneemb_jax import oneflow_rows
from oneemb_jax.counters import host_counters, size
from oneemb_jax.embedding import MultiTableEmbedding, MultiTableMultiColumnEmbedding
from oneemb_jax.host import grow as grow_table
from oneemb_jax.host import set_rows, state_fields
from oneemb_jax.items import raw_items
from oneemb_jax.oneflow_format import Paths
from oneemb_jax.oneflow_reader import Snapshot, open_ranks
from oneemb_jax.oneflow_writer import SnapshotWriter
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import Table

Embedding = MultiTableEmbedding | MultiTableMultiColumnEmbedding


def _check_embedding(embedding: Any, table_of: Any) -> None:
    if not isinstance(embedding, Embedding):
        raise TypeError(
            f"import_snapshot(embedding=...): got {type(embedding).__name__}; pass a "
            "MultiTableEmbedding or MultiTableMultiColumnEmbedding."
        )
    spec = embedding.spec
    if table_of is not None and spec.shared_keys:
        raise ValueError(
            "import_snapshot(table_of=...): the tables of this embedding share their "
            "keys, so no key belongs to one of them; leave it out."
        )
    if table_of is None and spec.num_tables > 1 and not spec.shared_keys:
        raise ValueError(
            f"import_snapshot(table_of=None): the {spec.num_tables} tables keep their "
            "keys separate, and OneFlow does not say which table a key is of. Pass "
            "table_of=..., a function of the keys, or make the embedding with "
            "key_space='shared'."
        )


def _open_for(
    spec: TableSpec, paths: Paths, name: str, with_state: bool, call: str
) -> Snapshot:
    """The snapshot, if its rows are of the width that the embedding needs."""
    snapshot = open_ranks(paths, name, spec.key_type, None, call)
    dim, found = spec.embedding_dim, snapshot.storage_dim
    file = snapshot.ranks[0] / "VALUE_SIZE"
    if not with_state:
        if found < dim:
            raise ValueError(
                f"{file}: rows have storage_dim={found}, too few for embedding_dim="
                f"{dim}."
            )
        return snapshot
    wanted = oneflow_rows.storage_dim(spec.optimizer, dim, call)
    if found != wanted:
        raise ValueError(
            f"{file}: rows have storage_dim={found}, but {spec.optimizer.name} with "
            f"embedding_dim={dim} needs {wanted}. Give the embedding the optimizer of "
            "the model, or pass optimizer_state=False to begin with new state."
        )
    return snapshot


def _empty_table(
    embedding: Embedding, rows: int, step: int, grow: bool, device: Any
) -> Table:
    """A table with room for ``rows``, that has done ``step`` updates."""
    table = embedding.init(device)
    if rows > table.capacity and not grow:
        raise ValueError(
            f"import_snapshot: the snapshot has {rows} rows, the embedding room for "
            f"{table.capacity}; make it with capacity={rows} or more, or pass "
            "grow=True."
        )
    if rows > table.capacity:
        table = grow_table(table, rows)
    steps = jnp.full_like(table.step, np.uint32(step))
    return dataclasses.replace(table, step=steps)


def _checked_step(spec: TableSpec, step: Any, with_state: bool) -> int:
    if step is None:
        if with_state and oneflow_rows.counts_updates(spec.optimizer):
            raise ValueError(
                f"import_snapshot(step=None): {spec.optimizer!r} depends on how many "
                "updates there were, which the snapshot does not say; pass step=..., "
                "the train steps that OneFlow has done."
            )
        return 0
    if isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise TypeError(f"import_snapshot(step={step!r}): pass a whole number.")
    if not 0 <= step < 2**32:
        raise ValueError(f"import_snapshot(step={step}): pass 0 to 2**32 - 1.")
    return int(step)


def _table_ids(table_of: Any, keys: np.ndarray, num_tables: int) -> np.ndarray:
    """The table of each key, int32[n]."""
    if table_of is None:
        return np.zeros(len(keys), np.int32)
    tables = np.asarray(table_of(keys))
    if tables.dtype.kind not in "iu" or tables.shape != keys.shape:
        raise ValueError(
            f"import_snapshot(table_of=...): returned dtype {tables.dtype}, shape "
            f"{tables.shape}; expected integers of shape {keys.shape}."
        )
    bad = np.flatnonzero((tables < 0) | (tables >= num_tables))
    if bad.size:
        raise ValueError(
            f"import_snapshot(table_of=...): key {keys[bad[0]]} is in table "
            f"{tables[bad[0]]}, but there are {num_tables}."
        )
    return tables.astype(np.int32)


def _set_batch(
    table: Table, keys: np.ndarray, rows: np.ndarray, tables: np.ndarray, state: bool
) -> Table:
    """The table with one batch of rows of OneFlow's in it."""
    spec, call = table.spec, "import_snapshot"
    if not state:
        return set_rows(table, keys, rows[:, : spec.embedding_dim], table_ids=tables)
    embedding, fields = oneflow_rows.split(
        spec.optimizer, spec.embedding_dim, rows, call
    )
    last = int(fields.get("last_step", np.zeros(1)).max(initial=0))
    step = int(np.array(table.step)[0])
    if last > step:
        raise ValueError(
            f"{call}(step={step}): a row was last updated at step {last}; pass the "
            "train steps that OneFlow has done."
        )
    return set_rows(table, keys, embedding, fields, tables)


def import_snapshot(
    embedding: Embedding,
    paths: Paths,
    name: str,
    *,
    table_of: Callable[[np.ndarray], Any] | None = None,
    step: int | None = None,
    optimizer_state: bool = True,
    grow: bool = False,
    device: Any = None,
) -> Table:
    """A table of ``embedding`` with the rows of a snapshot that OneFlow wrote.

    OneFlow has one row a key, whatever the table: make the embedding with
    ``key_space="shared"``, or say with ``table_of`` which table a key is of. A row
    of the embedding's ``padding_idx``, which neither system ever reads, is left out
    with a warning.

    Args:
        embedding: its ``key_type``, ``embedding_dim`` and ``optimizer`` must be
            those of the model.
        paths: as in ``open_snapshot``.
        name: of the snapshot.
        table_of: from keys ([n], of the key type) to table ids, integers[n].
        step: train steps that OneFlow has done. Needed where an update depends on
            it: bias correction, ``lr_decay``, smart decay, schedules.
        optimizer_state: False takes the embeddings alone, of any optimizer; state
            and step begin anew, as for new rows.
        grow: whether the table may get a larger capacity than its embedding says.
        device: as in ``embedding.init``.

    Returns:
        A new table.

    Raises:
        FileNotFoundError: as ``open_snapshot``.
        ValueError: as ``open_snapshot``, or if there is no room, a key is there
            twice, or an argument does not fit the snapshot.

    Example:
        >>> import tempfile
        >>> import oneemb_jax as oe
        >>> import oneemb_jax.oneflow as oneflow
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "import_snapshot", 2, "float32", "int64", optimizer=oe.adam(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [7], [[1.0, 2.0]], {"m": [[3.0, 4.0]]})
        ...     rows_written = oneflow.export_snapshot(table, folder, "final")
        ...     again = oneflow.import_snapshot(emb, folder, "final", step=1000)
        ...     rows = oe.get_rows(again, [7])
        >>> rows.embedding, rows.state["m"], oe.stats(again)["step"]
        (array([[1., 2.]], dtype=float32), array([[3., 4.]], dtype=float32), 1000)
    """
    _check_embedding(embedding, table_of)
    spec = embedding.spec
    done = _checked_step(spec, step, optimizer_state)
    with _open_for(spec, paths, name, optimizer_state, "import_snapshot") as snapshot:
        table = _empty_table(embedding, len(snapshot), done, grow, device)
        padded = 0
        for all_keys, rows in snapshot:
            kept = ~spec.is_padding(all_keys)
            padded += len(all_keys) - int(kept.sum())
            keys = all_keys[kept]
            tables = _table_ids(table_of, keys, spec.num_tables)
            table = _set_batch(table, keys, rows[kept], tables, optimizer_state)
        twice = len(snapshot) - padded - size(table)
    if twice:
        raise ValueError(
            f"import_snapshot(name={name!r}): {twice} rows have a key that another "
            "row has; the snapshot is damaged."
        )
    if padded:
        warnings.warn(
            f"import_snapshot(name={name!r}): left out the row of padding_idx "
            f"{spec.padding_idx}.",
            stacklevel=2,
        )
    return table


def _export_keys(key_of: Any, ids: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """The key that OneFlow shall know each row by."""
    if key_of is None:
        return ids
    keys = np.asarray(key_of(ids, tables))
    if keys.dtype != ids.dtype or keys.shape != ids.shape:
        raise ValueError(
            f"export_snapshot(key_of=...): returned dtype {keys.dtype}, shape "
            f"{keys.shape}; expected {ids.dtype}[{len(ids)}]."
        )
    return keys


def export_snapshot(
    table: Table,
    paths: Paths,
    name: str,
    *,
    num_ranks: int | None = None,
    physical_block_size: int = 4096,
    optimizer_state: bool = True,
    key_of: Callable[[np.ndarray, np.ndarray], Any] | None = None,
) -> int:
    """Writes a table as a snapshot that OneFlow opens.

    Rows go to the rank that OneFlow looks for them in. Folders appear under their
    names when all their bytes are on the disk, and nothing is overwritten. The
    step is not part of the format.

    Args:
        table: the table; do not donate it meanwhile.
        paths: a root, which gets a folder ``i-n`` for each rank and appears as a
            whole; or a list with the folder of each rank, which appear one after
            the other. They may not exist, except empty.
        name: of the snapshot.
        num_ranks: processes that OneFlow will run; 1, or the length of ``paths``.
        physical_block_size: 512 or 4096: what OneFlow's store options will say.
        optimizer_state: False writes the embeddings alone, as for SGD.
        key_of: from ids and table ids ([n] each) to OneFlow's keys, of the key
            type. By default a row's key is its id, whatever the table.

    Returns:
        How many rows were written.

    Raises:
        ValueError: if OneFlow has no such optimizer, two rows get the same key, or
            an argument has a wrong value.
        FileExistsError: if there is something at ``paths``.
        OSError: if writing fails; nothing is left then.

    Example:
        >>> import os, tempfile
        >>> import oneemb_jax as oe
        >>> import oneemb_jax.oneflow as oneflow
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "export_snapshot", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [7, 8], [[1.0, 2.0], [3.0, 4.0]])
        ...     oneflow.export_snapshot(table, folder, "final", num_ranks=2)
        ...     sorted(os.listdir(folder))
        2
        ['0-2', '1-2']
    """
    call = "export_snapshot"
    host_counters(table, call)
    spec, dim = table.spec, table.spec.embedding_dim
    width = dim
    if optimizer_state:
        width = oneflow_rows.storage_dim(spec.optimizer, dim, call)
    with SnapshotWriter(
        paths,
        name,
        spec.key_type,
        width,
        num_ranks,
        physical_block_size,
        call,
    ) as writer:
        for ids, tables, raw in raw_items(table):
            rows = np.ascontiguousarray(raw[:, :dim]).view(np.float32)
            if optimizer_state:
                fields = state_fields(table, raw)
                rows = oneflow_rows.join(spec.optimizer, rows, fields, call)
            writer.write(_export_keys(key_of, ids, tables), rows)
    return writer.rows
