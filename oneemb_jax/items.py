"""items: everything in a table, read on the host batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from oneemb_jax.cache import all_below
from oneemb_jax.counters import host_counters
from oneemb_jax.table import BUCKET_ENTRIES, Table, check_table

#: One bucket of the index (xla_ffi/core/bucket.h).
_BUCKET = np.dtype(
    [
        ("tags", "u1", BUCKET_ENTRIES),
        ("overflow", "<u4"),
        ("ids", "<u8", BUCKET_ENTRIES),
        ("tables", "<u2", BUCKET_ENTRIES),
        ("slots", "<i4", BUCKET_ENTRIES),
    ]
)


@functools.partial(jax.jit, static_argnums=(2,))
def _slice(array: jax.Array, start: Any, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, start, count)


@functools.partial(jax.jit, static_argnums=(2,))
def _take_rows(rows: jax.Array, slots: jax.Array, width: int) -> jax.Array:
    return rows.at[slots, :width].get(mode="promise_in_bounds")


def items(
    table: Table, batch_size: int = 65536
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Everything in a table, in batches; the order is that of the index.

    Args:
        table: the table; do not donate it while the iteration runs.
        batch_size: most rows a batch.

    Yields:
        ids (of the table's key type), table ids (int32; 0 where tables share
        their keys) and embeddings (float32[n, embedding_dim]).

    Raises:
        TypeError: if ``batch_size`` is not a whole number.
        ValueError: if ``batch_size`` is not positive.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "items", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [5], [[1.0, 2.0]])
        ...     for ids, table_ids, rows in oe.items(table):
        ...         print(ids, table_ids, rows)
        [5] [0] [[1. 2.]]
    """
    host_counters(table, "items")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"items(batch_size={batch_size!r}): pass a whole number.")
    if batch_size < 1:
        raise ValueError(f"items(batch_size={batch_size}): use 1 or more.")
    width = table.spec.embedding_dim
    return (
        (ids, tables, words.view(np.float32))
        for ids, tables, words in _iterate(table, batch_size, width)
    )


def raw_items(
    table: Table, batch_size: int = 65536
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As ``items``, with whole rows, uint32[n, row_words]; see ``state_fields``."""
    return _iterate(table, batch_size, table.spec.row_words)


def _iterate(
    table: Table, batch_size: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, tables and the first ``width`` words of each row."""
    yield from _in_device_memory(table, batch_size, width)
    if table.spec.is_cached:
        yield from _in_store(table, batch_size, width)


def _in_device_memory(
    table: Table, batch_size: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of the arrays: all of them, unless the table is cached."""
    rows = None if table.residency is None else _has_row(table.residency)
    buckets = table.index.shape[0]
    chunk = min(max(1, batch_size // BUCKET_ENTRIES), buckets)
    for start in range(0, buckets, chunk):
        check_table(table, "items")  # it may have been donated meanwhile
        # The last slice is moved back to fit; what came before is passed over.
        first = min(start, buckets - chunk)
        words = np.array(_slice(table.index, first, chunk))
        entries = words.view(_BUCKET).reshape(-1)[start - first :]
        used = entries["tags"] != 0
        ids, tables = entries["ids"][used], entries["tables"][used]
        slots = entries["slots"][used]
        if rows is not None:
            ids, tables, slots = (x[rows[slots]] for x in (ids, tables, slots))
        for i in range(0, len(slots), batch_size):
            part = slice(i, i + batch_size)
            yield (
                ids[part].astype(table.spec.key_type),
                tables[part].astype(np.int32),
                _words(table, slots[part], batch_size, width),
            )


def _has_row(residency: jax.Array) -> np.ndarray:
    """Which slots have a row: those that are clean or dirty (core/residency.h)."""
    return np.array(residency)[:, 1] >= 2


def _in_store(
    table: Table, batch_size: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of a cached table that its cache does not have."""
    seen = _Seen()
    for ids, tables, _ in _in_device_memory(table, batch_size, 0):
        # Zero-extended, as the store has them.
        seen.add(ids.view(f"u{ids.dtype.itemsize}").astype(np.uint64), tables)
    for below, (ids, tables, rows) in enumerate(all_below(table, "items")):
        chosen = np.flatnonzero(seen.new(ids, tables))
        if below == 0:  # what waits to be written, if anything does
            seen.add(ids, tables)
        for i in range(0, len(chosen), batch_size):
            part = chosen[i : i + batch_size]
            yield (
                ids[part].astype(table.spec.key_type),
                tables[part].astype(np.int32),
                rows[part, :width],
            )


class _Seen:
    """A set of (table, id)."""

    def __init__(self) -> None:
        self._parts: dict[int, list[np.ndarray]] = {}
        self._sorted: dict[int, np.ndarray] = {}

    def add(self, ids: np.ndarray, tables: np.ndarray) -> None:
        """Adds uint64 ids."""
        for key in np.unique(tables).tolist():
            self._parts.setdefault(key, []).append(ids[tables == key])
            self._sorted.pop(key, None)

    def new(self, ids: np.ndarray, tables: np.ndarray) -> np.ndarray:
        """Which are not in the set."""
        new = np.ones(len(ids), bool)
        for key in np.unique(tables).tolist():
            if key not in self._parts:
                continue
            if key not in self._sorted:
                self._sorted[key] = np.sort(np.concatenate(self._parts[key]))
            own, here = self._sorted[key], tables == key
            at = np.minimum(np.searchsorted(own, ids[here]), len(own) - 1)
            new[here] = own[at] != ids[here]
        return new


def _words(table: Table, slots: np.ndarray, batch_size: int, width: int) -> np.ndarray:
    """The rows in ``slots``, by a gather of one size, compiled once."""
    padded = np.zeros(batch_size, np.int32)
    padded[: len(slots)] = slots
    return np.array(_take_rows(table.rows, padded, width))[: len(slots)]
