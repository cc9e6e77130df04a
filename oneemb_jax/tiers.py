"""stage, prefetch, flush: rows on their way between device memory and a Store."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax import _ffi
from oneemb_jax._compat import out_like
from oneemb_jax.cache import budget_for, check_current, check_one_device
from oneemb_jax.counters import host_counters
from oneemb_jax.ids import id_words, table_id_period
from oneemb_jax.table import CACHED_ARRAYS, Table, check_table


def _batch(table: Table, ids: Any, table_ids: Any, call: str) -> list[jax.Array]:
    """The ids as handlers want them: one microbatch of ids and of table ids."""
    spec = check_table(table, call).spec
    if spec.is_cached:
        check_one_device(call)
    words = id_words(ids, spec.key_type, call)
    shape = tuple(words.shape[:-1])
    period = table_id_period(table_ids, shape, spec.num_tables, call)
    flat = jnp.asarray(words).reshape(1, math.prod(shape), words.shape[-1])
    return [flat, jnp.asarray(period)[jnp.newaxis]]


def cached_call(target: str, table: Table, *more: jax.Array) -> Table:
    """A custom call that writes a cached table in place."""
    arrays = [getattr(table, name) for name in CACHED_ARRAYS]
    written = arrays[:-1]
    operands = (*arrays, *more)
    results = _ffi.call(
        target,
        [out_like(operands, array.shape, array.dtype) for array in written],
        *operands,
        aliases={i: i for i in range(len(written))},
        **table.spec.attributes(),
    )
    names = CACHED_ARRAYS[: len(written)]
    return dataclasses.replace(table, **dict(zip(names, results, strict=True)))


def stage(table: Table, ids: Any, table_ids: Any = None) -> Table:
    """Brings the rows of ids into device memory, before ``lookup``.

    On a table in device memory, where every row is there already, this is the
    identity; a step written with it works on every store. On a cached table each
    id gets its row, or a slot reserved for it where it has none yet. To make room
    the rows go that no batch has wanted for the longest; those that were updated
    are written to the store.

    Rows stay at least until the next ``stage``. A step may stage several batches
    if the cache has room for all of them together.

    Args:
        table: the table. Donate it to ``jax.jit``, or every step copies it.
        ids: as in ``lookup``: packed, where they are an argument of ``jax.jit``.
        table_ids: as in ``lookup``.

    Returns:
        The next table.

    Raises:
        TypeError: if ``ids`` have another dtype than the key type.
        ValueError: if shapes do not fit, or the cache has fewer slots than there
            are ids.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> folder = tempfile.TemporaryDirectory()
        >>> with folder as path, oe.MultiTableEmbedding(
        ...     "stage", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_cached_ssd_store_options(0.01, path),
        ... ) as emb:
        ...     ids = np.array([1, 2])
        ...     table = oe.stage(emb.init(), ids)
        ...     acts, ctx = oe.lookup(table, ids)
        ...     table = oe.update(table, ctx, np.ones_like(acts))
        ...     oe.size(table), oe.stats(table)["cache_misses"]
        (2, 2)
    """
    batch = _batch(table, ids, table_ids, "stage")
    if not table.spec.is_cached:
        return table
    size = batch[0].shape[1]
    if size > table.capacity:
        raise ValueError(
            f"stage(ids=...): a batch of {size} ids, but cache_budget_mb="
            f"{table.spec.store.cache_budget_mb:g} makes a cache of "
            f"{table.capacity} rows, and all ids may differ; "
            f"cache_budget_mb={budget_for(table.spec, size):g} would do."
        )
    return cached_call("oneemb_stage", table, *batch)


def prefetch(table: Table, ids: Any, table_ids: Any = None) -> Table:
    """Starts to read the rows of a later batch; does not wait for them.

    The identity on a table in device memory, as :func:`stage` is. Of a cached
    table it changes no row and evicts none: threads of the store read what the
    cache lacks, and the ``stage`` that wants it takes it from there. They read as
    many rows at once as the cache has slots that the current batch leaves, and
    count the rest, which ``stage`` then reads itself. Rows that the cache has
    count as young as those of 16 batches ago, so that batches staged before that
    ``stage`` evict others first. Call it between ``stage`` and ``lookup``.

    Args:
        table: the table. Donate it to ``jax.jit``, or every step copies it.
        ids: the ids of a later batch, as in ``lookup``.
        table_ids: as in ``lookup``.

    Returns:
        The next table.

    Raises:
        TypeError: if ``ids`` have another dtype than the key type.
        ValueError: if shapes do not fit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> folder = tempfile.TemporaryDirectory()
        >>> with folder as path, oe.MultiTableEmbedding(
        ...     "prefetch", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_cached_ssd_store_options(0.01, path),
        ... ) as emb:
        ...     table = oe.stage(emb.init(), np.array([1, 2]))
        ...     table = oe.prefetch(table, np.array([2, 3, 4]))
        ...     table = oe.stage(table, np.array([2, 3, 4]))
        ...     oe.stats(table)["prefetched"]
        2
    """
    batch = _batch(table, ids, table_ids, "prefetch")
    if not table.spec.is_cached:
        return table
    arrays = [getattr(table, name) for name in CACHED_ARRAYS]
    operands = (*arrays, *batch)
    # The generation comes out as it went in: all later calls take it, and so
    # come after this one, which reads the index.
    written = ("clock", "generation")
    results = _ffi.call(
        "oneemb_prefetch",
        [out_like(operands, getattr(table, name).shape, np.uint32) for name in written],
        *operands,
        aliases={CACHED_ARRAYS.index(name): i for i, name in enumerate(written)},
        **table.spec.attributes(),
    )
    return dataclasses.replace(table, **dict(zip(written, results, strict=True)))


@jax.jit
def _write_down(table: Table) -> list[jax.Array]:
    arrays = [getattr(table, name) for name in CACHED_ARRAYS]
    return _ffi.call(
        "oneemb_write_down",
        [jax.ShapeDtypeStruct((1,), np.dtype(np.bool_))],
        *arrays,
        **table.spec.attributes(),
    )


def write_down(table: Table, call: str) -> None:
    """Writes all rows of a cached table to its Store; the table stays as it is.

    Args:
        table: a cached table.
        call: who wants it, for messages.

    Raises:
        OSError: if the store cannot write.
    """
    (done,) = _write_down(table)
    if not bool(np.array(done)[0]):
        check_current(table, call)
        raise OSError(f"{call}: the store of {table.spec.name!r} cannot write.")


@jax.jit
def _flush(table: Table) -> list[jax.Array]:
    arrays = [getattr(table, name) for name in CACHED_ARRAYS]
    shapes = ((table.capacity, 2), (1,))
    return _ffi.call(
        "oneemb_flush",
        [jax.ShapeDtypeStruct(shape, np.dtype(np.uint32)) for shape in shapes],
        *arrays,
        **table.spec.attributes(),
    )


def flush(table: Table) -> Table:
    """Writes every row that is newer than the store's; call it between steps.

    Rows stay in the cache. A table in device memory is returned as it is.

    Args:
        table: the table; go on with the one returned, which shares its arrays.

    Raises:
        OSError: if the store cannot write; the table given stays good then.
        TableError: if the table is stale.

    Example:
        >>> import tempfile
        >>> import oneemb_jax as oe
        >>> folder = tempfile.TemporaryDirectory()
        >>> with folder as path, oe.MultiTableEmbedding(
        ...     "flush", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_cached_ssd_store_options(0.01, path),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [5], [[1.0, 2.0]])
        ...     table = oe.flush(table)
        ...     oe.get_rows(table, [5]).embedding
        array([[1., 2.]], dtype=float32)
    """
    host_counters(table, "flush")
    if not table.spec.is_cached:
        return table
    residency, generation = _flush(table)
    new = dataclasses.replace(table, residency=residency, generation=generation)
    check_current(new, "flush")
    return new
