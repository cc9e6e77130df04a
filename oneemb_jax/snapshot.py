"""Tables to snapshots and back: rows stream between device memory and disk.

A snapshot is written without an open Store and without an index: one batch of
rows is in host memory at a time. What it says besides rows is in manifest.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax import comparison
from oneemb_jax import manifest as mf
from oneemb_jax import snapshot_files as files
from oneemb_jax._ffi import native
from oneemb_jax.cache import init_cached, load_cached, store_of
from oneemb_jax.counters import host_counters, size
from oneemb_jax.host import write_raw_rows
from oneemb_jax.items import raw_items
from oneemb_jax.oneflow_rows import counts_updates
from oneemb_jax.snapshot_files import Part
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import (
    COUNTERS,
    Table,
    check_capacity,
    counter_values,
    init_table,
)
from oneemb_jax.tiers import write_down

#: Ids, tables and rows: uint64[n], uint16[n], uint8[n, row_bytes].
Batches = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]

#: Rows in a file of a snapshot, in bytes; more where there would be more files.
SEGMENT_BYTES = 2**28
#: Every one is open while a snapshot is written or read.
_MOST_SEGMENTS = 256
_MOST_ROW_BYTES = 2**16
#: Rows on their way, in bytes.
_BATCH_BYTES = 1 << 24


def check_savable(table: Table, call: str) -> int:
    """Bytes of a row; ValueError if no snapshot can have the table."""
    host_counters(table, call)
    row_bytes = 4 * table.spec.row_words
    if row_bytes > _MOST_ROW_BYTES:
        raise ValueError(
            f"{call}: rows of {row_bytes} bytes, optimizer state included; a snapshot "
            f"holds rows of {_MOST_ROW_BYTES} bytes at most."
        )
    return row_bytes


def _stored_rows(table: Table) -> Batches:
    """Everything in a table as the store takes it."""
    row_bytes = 4 * table.spec.row_words
    batch = min(65536, max(1, _BATCH_BYTES // row_bytes))
    for ids, tables, rows in raw_items(table, batch):
        whole = np.ascontiguousarray(rows).view(np.uint8)
        yield files.as_ids(ids), tables.astype(np.uint16), whole


def _records(batches: Batches) -> Iterator[np.ndarray]:
    """Keys and rows of batches, uint8[n, 10 + row_bytes]."""
    for ids, tables, rows in batches:
        parts = (ids[:, None].view(np.uint8), tables[:, None].view(np.uint8), rows)
        yield np.hstack(parts)


def _same_rows(wanted: Batches, found: Batches, row_bytes: int) -> bool:
    """Whether two streams have the same rows in the same order."""
    others = _records(found)
    rest = np.empty((0, 10 + row_bytes), np.uint8)
    for records in _records(wanted):
        while len(rest) < len(records):
            more = next(others, None)
            if more is None:
                return False
            rest = np.concatenate([rest, more])
        if not np.array_equal(rest[: len(records)], records):
            return False
        rest = rest[len(records) :]
    return not len(rest) and next(others, None) is None


def _unchanged_since(table: Table, folder: str) -> str | None:
    """A snapshot below the folder of a rank that has just the table's rows."""
    rows, step = size(table), int(np.array(table.step)[0])
    row_bytes = 4 * table.spec.row_words
    for name in files.list_folder(folder):
        path = files.snapshot_path(folder, name)
        try:
            part = files.open_part(path)
            state = part.manifest.state
            # Only then it is worth reading.
            alike = state is not None and state.step == step
            alike = alike and part.reader.rows == rows
            alike = alike and part.reader.row_bytes == row_bytes
            if alike and _same_rows(
                _stored_rows(table), part.reader.items(), row_bytes
            ):
                return path
        except (OSError, native.StoreError, ValueError):
            continue  # it is damaged, or no table's: nothing to build on
    return None


def write_table(table: Table, folder: str, name: str, call: str) -> str:
    """Writes a table as a snapshot below the folder of a rank; its path.

    Rows that another snapshot there has, all of them and no other, are linked to.
    """
    row_bytes = check_savable(table, call)
    rows = size(table)
    segment_bytes = max(SEGMENT_BYTES, rows * row_bytes // _MOST_SEGMENTS)
    writer = native.SnapshotWriter(
        files.encode_path(folder), name, row_bytes, rows, segment_bytes
    )
    try:
        same = _unchanged_since(table, folder)
        if same is None:
            for batch in _stored_rows(table):
                writer.write(*batch)
        else:
            writer.link(files.encode_path(same))
        writer.commit(mf.describe_table(table).encode())
    finally:
        writer.close()
    return files.snapshot_path(folder, name)


def save_snapshot(table: Table, name: str) -> str:
    """Saves a table under a name in its embedding's ``persistent_path``.

    When it returns, the snapshot survives a kill at any instant and a loss of
    power. One that was not finished leaves none. Rows stream through host memory
    in batches. One process at a time saves into a folder, or deletes there.

    Args:
        table: any table with store options that have a ``persistent_path``; do not
            donate it meanwhile.
        name: 1 to 200 letters, digits, ".", "_" or "-", the first not a ".".

    Returns:
        The snapshot's folder. It needs nothing outside of it, and can be copied.

    Raises:
        ValueError: if there is no ``persistent_path``, it has files of something
            else, or the name is none.
        FileExistsError: if there is a snapshot of this name.
        BlockingIOError: if another process, which it names, writes there now.
        OSError: if writing fails; there is no such snapshot then.

    Example:
        >>> import tempfile
        >>> import oneemb_jax as oe
        >>> with tempfile.TemporaryDirectory() as folder, oe.MultiTableEmbedding(
        ...     "save_snapshot", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(folder, capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [7], [[1.0, 2.0]])
        ...     path = oe.save_snapshot(table, "first")
        ...     emb.list_snapshots(), oe.size(emb.load_snapshot("first"))
        (['first'], 1)
    """
    call = "save_snapshot"
    host_counters(table, call)
    files.check_name(name, call)
    folder = files.rank_folder(files.persistent_path(table.spec, call))
    if table.spec.is_cached:
        # The Store is in that folder: most rows are linked to, not copied.
        write_down(table, call)
        described = mf.describe_table(table).encode()
        store_of(table, call).save_snapshot(name, described)
        return files.snapshot_path(folder, name)
    return write_table(table, folder, name, call)


def _items(part: Part, spec: TableSpec) -> Batches:
    """Everything in a part; ValueError at a row that the table can't have."""
    for ids, tables, rows in part.reader.items():
        if int(tables.max()) >= spec.num_tables:
            raise ValueError(
                f"{part.folder}: has a row of table {tables.max()}; there are "
                f"{spec.num_tables}."
            )
        keys = files.as_keys(ids, spec.key_type, part.folder)
        if spec.is_padding(keys).any():
            raise ValueError(
                f"{part.folder}: has a row of id {spec.padding_idx}, the embedding's "
                "padding_idx, which has none."
            )
        yield keys, tables, rows


def _fits(part: Part, spec: TableSpec) -> bool:
    """Whether rows hold what the table's do."""
    saved = part.manifest.spec
    return saved is None or comparison.keeps_state(saved.optimizer, spec.optimizer)


def _add_rows(table: Table, part: Part) -> Table:
    spec = table.spec
    for keys, tables, raw in _items(part, spec):
        rows = raw.view(np.uint32)
        if not _fits(part, spec):
            rows = rows[:, : spec.embedding_dim]  # the state of another optimizer
        more = spec.row_words - rows.shape[1]
        rows = np.pad(rows, ((0, 0), (0, more))) if more else rows
        words = keys.view(np.uint32).reshape(-1, spec.id_words)
        table = write_raw_rows(table, words, tables.astype(np.int32), rows)
    return table


def _check_width(parts: list[Part], spec: TableSpec, call: str) -> None:
    """For rows that were written alone; their padding words may be missing."""
    manifest, dim = parts[0].manifest, spec.embedding_dim
    words = dim * spec.optimizer.size_factor + spec.optimizer.num_row_words
    if manifest.row_words not in (words, spec.row_words):
        raise ValueError(
            f"{call}: {parts[0].folder} has rows of storage_dim={manifest.row_words}, "
            f"but {spec.optimizer.name} with embedding_dim={dim} needs {words}."
        )
    width = 4 * spec.id_words
    if np.dtype(manifest.key_type).itemsize != width:
        raise ValueError(
            f"{call}: {parts[0].folder} has keys of {manifest.key_type}, the "
            f"embedding of {spec.key_type}."
        )


def _check_room(rows: int, manifest: mf.Manifest, capacity: int, call: str) -> None:
    if rows <= capacity:
        return
    # The capacity of a cached table is that of its cache.
    had = rows if manifest.state is None else max(rows, manifest.state.capacity)
    raise ValueError(
        f"{call}: the snapshot has {rows} rows, but this table has room for "
        f"{capacity}. Pass load_snapshot(capacity={had}), {rows} at least, or make "
        "the embedding with that capacity."
    )


def _set(leaf: jax.Array, values: Any) -> jax.Array:
    """The leaf with other values, where it is."""
    flat = np.asarray(values, np.uint32)
    return leaf.at[...].set(jnp.asarray(flat.reshape(leaf.shape)))


def with_state(table: Table, state: mf.TableState) -> Table:
    """The table with the step, the generation and the counters of a state.

    Its learning rate is its embedding's.
    """
    counts, generation = dict(state.counters), state.generation
    # Generation and slots are those of the cache, which is as it is.
    own = counter_values(table)
    for name in ("staged", "slots_used"):
        counts[name] = own[name]
    if table.spec.is_cached:
        generation = np.array(table.generation)[0]
    counters = np.array([counts[name] for name in COUNTERS], "<u8")
    return dataclasses.replace(
        table,
        counters=_set(table.counters, counters.view("<u4")),
        step=_set(table.step, state.step),
        generation=_set(table.generation, generation),
    )


def _checked_step(
    spec: TableSpec, manifest: mf.Manifest, step: Any, call: str
) -> int | None:
    """The step to set, or None for the snapshot's own."""
    if step is None:
        if manifest.state is None and counts_updates(spec.optimizer):
            raise ValueError(
                f"{call}(step=None): {spec.optimizer!r} depends on how many updates "
                "there were, and these rows were written without it; pass step=..."
            )
        return None
    if isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise TypeError(f"{call}(step={step!r}): pass a whole number.")
    if not 0 <= step < 2**32:
        raise ValueError(f"{call}(step={step}): pass 0 to 2**32 - 1.")
    return int(step)


def _cached_table(
    spec: TableSpec, parts: list[Part], device: Any, capacity: int | None, call: str
) -> Table:
    """A cached table with the rows of a snapshot."""
    if capacity is not None:
        raise ValueError(
            f"{call}(capacity={capacity}): the table is cached: its cache has the "
            "size that cache_budget_mb gives it; leave capacity out."
        )
    first = parts[0]
    same_width = first.manifest.row_words == spec.row_words
    is_linked = len(parts) == 1 and same_width and _fits(first, spec)
    if not is_linked or first.manifest.spec is None:
        # What no Store looks at, or no table has had, is looked at before the rows
        # go that the Store has.
        for part in parts:
            for _ in _items(part, spec):
                pass
    if is_linked:
        # Rows stay where they are: the Store links to them.
        table = load_cached(spec, device, first.folder)
        rows = np.array([first.reader.rows], "<u8").view("<u4")
        place = COUNTERS.index("rows")
        return dataclasses.replace(
            table, counters=table.counters.at[0, place].set(jnp.asarray(rows))
        )
    table = init_cached(spec, device)
    for part in parts:
        table = _add_rows(table, part)
    return table


def check_table(
    spec: TableSpec, parts: list[Part], ignore: Any, step: Any, call: str
) -> int | None:
    """ValueError if a snapshot is of another table; the step to set, if any."""
    manifest = parts[0].manifest
    ignored = comparison.check_ignore(ignore, call)
    if manifest.spec is None:
        _check_width(parts, spec, call)
    else:
        comparison.check_same(manifest.spec, spec, ignored, call)
    return _checked_step(spec, manifest, step, call)


def read_table(
    spec: TableSpec,
    parts: list[Part],
    device: Any,
    capacity: int | None,
    ignore: Any,
    step: Any,
    call: str,
) -> Table:
    """A new table with the rows of a snapshot; arguments as load_snapshot's."""
    manifest = parts[0].manifest
    done = check_table(spec, parts, ignore, step, call)
    rows = sum(part.reader.rows for part in parts)
    if spec.is_cached:
        table = _cached_table(spec, parts, device, capacity, call)
    else:
        wanted = spec.capacity if capacity is None else check_capacity(capacity, call)
        _check_room(rows, manifest, wanted, call)
        table = init_table(spec, device, wanted)
        for part in parts:
            table = _add_rows(table, part)
    if size(table) != rows:
        raise ValueError(
            f"{parts[0].folder}: {rows - size(table)} of its rows have the key of "
            "another row."
        )
    if manifest.state is not None:
        table = with_state(table, manifest.state)
    if done is not None:
        table = dataclasses.replace(table, step=_set(table.step, done))
    return table
