"""What the host does to a table between steps: grow it, read and write rows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax import _ffi
from oneemb_jax.cache import check_current
from oneemb_jax.counters import host_counters
from oneemb_jax.ids import id_words, table_id_period, unpack_ids
from oneemb_jax.lookup import FLOATS
from oneemb_jax.memory import memory_explained
from oneemb_jax.table import (
    CACHED_ARRAYS,
    COUNTERS,
    Table,
    array_shapes,
    check_capacity,
    unshared,
)
from oneemb_jax.tiers import cached_call


@functools.partial(jax.jit, static_argnums=(0,))
def _grown_arrays(capacity: int, table: Table) -> list[jax.Array]:
    return _ffi.call(
        "oneemb_grow",
        array_shapes(table.spec, capacity),
        table.index,
        table.rows,
        table.clock,
        table.counters,
        table.layout_version,
        **table.spec.attributes(),
    )


def grow(table: Table, capacity: int | None = None) -> Table:
    """A copy of the table with room for more rows; call it between steps.

    Shapes change, so the next step compiles anew. Both tables are in memory
    until the old one is let go of. The count of overflows starts from zero.

    Args:
        table: any table; it stays as it is.
        capacity: rows of the new table; twice as many by default.

    Raises:
        ValueError: if ``capacity`` is smaller than now, or too large.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "grow", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     oe.grow(emb.init()).capacity
        16
    """
    host_counters(table, "grow")
    if table.spec.is_cached:
        raise ValueError(
            f"grow(table): {table.spec.name!r} is cached: its store grows by itself, "
            "and its cache has the size that cache_budget_mb gave it."
        )
    wanted = 2 * table.capacity if capacity is None else capacity
    wanted = check_capacity(wanted, "grow")
    if wanted < table.capacity:
        raise ValueError(
            f"grow(capacity={wanted}): the table has {table.capacity} already."
        )
    advice = "fewer rows: both tables are in memory until the old one is let go of"
    with memory_explained(array_shapes(table.spec, wanted), "grow", advice):
        index, rows, clock = _grown_arrays(wanted, table)
    counters = jnp.asarray(table.counters)
    counters = counters.at[0, COUNTERS.index("overflows")].set(0)
    grown = dataclasses.replace(
        table, index=index, rows=rows, clock=clock, counters=counters
    )
    return unshared(grown, table)


class Rows(NamedTuple):
    """Rows of a table as NumPy arrays.

    Attributes:
        embedding: float32[n, embedding_dim].
        state: optimizer state by field name: float32[n, embedding_dim], or
            float32[n] or uint32[n] for what an optimizer keeps once a row.
        found: bool[n]; False for an id without a row, whose values are those its
            first update would start from.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "rows", 2, "float32", "int64", optimizer=oe.adagrad(0.1),
        ...     default_initializer=oe.make_constant_initializer(0.5),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     rows = oe.get_rows(emb.init(), np.array([7]))
        >>> rows.embedding.tolist(), sorted(rows.state), rows.found.tolist()
        ([[0.5, 0.5]], ['sum'], [False])
    """

    embedding: np.ndarray
    state: dict[str, np.ndarray]
    found: np.ndarray


def _host_ids(
    table: Table, ids: Any, table_ids: Any, call: str
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Flat id words, one table id an id, and the shape that the ids had."""
    spec = table.spec
    words = np.asarray(id_words(ids, spec.key_type, call))
    shape = words.shape[:-1]
    period = np.asarray(table_id_period(table_ids, shape, spec.num_tables, call))
    count = math.prod(shape)
    tables = np.resize(period, count)
    bad = tables[(tables < 0) | (tables >= spec.num_tables)]
    if bad.size:
        raise ValueError(
            f"{call}(table_ids=...): {bad[0]} is no table; there are {spec.num_tables}."
        )
    return words.reshape(count, spec.id_words), tables, shape


@jax.jit
def _read_rows(table: Table, words: jax.Array, tables: jax.Array) -> list[jax.Array]:
    n = words.shape[0]
    target, names = "oneemb_read_rows", ("index", "rows")
    if table.spec.is_cached:
        target, names = "oneemb_read_cached_rows", CACHED_ARRAYS
    return _ffi.call(
        target,
        [
            jax.ShapeDtypeStruct((n, table.spec.row_words), np.dtype(np.uint32)),
            jax.ShapeDtypeStruct((n,), np.dtype(np.int32)),
        ],
        *[getattr(table, name) for name in names],
        words[jnp.newaxis],
        tables[jnp.newaxis],
        **table.spec.attributes(),
    )


def state_fields(table: Table, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Views of the state in whole rows, by field name."""
    return table.spec.state_of(rows)


def get_rows(table: Table, ids: Any, table_ids: Any = None) -> Rows:
    """Rows with their optimizer state, outside of ``jit``; waits for the table.

    Args:
        table: the table.
        ids: NumPy integers of any shape; flattened.
        table_ids: as in ``lookup``.

    Returns:
        :class:`Rows` of all ids, in flattened order.

    Raises:
        TypeError: if ``ids`` do not fit the key type.
        ValueError: if shapes do not fit or a table id is out of range.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "get_rows", 2, "float32", "int64",
        ...     optimizer=oe.adagrad(0.1, initial_accumulator_value=0.5),
        ...     default_initializer=oe.make_constant_initializer(1.0),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     rows = oe.get_rows(emb.init(), [5])
        >>> rows.embedding, rows.state, rows.found  # doctest: +NORMALIZE_WHITESPACE
        (array([[1., 1.]], dtype=float32),
         {'sum': array([[0.5, 0.5]], dtype=float32)}, array([False]))
    """
    host_counters(table, "get_rows")
    words, tables, _ = _host_ids(table, ids, table_ids, "get_rows")
    return _read(table, words, tables, "get_rows")[1]


def _padded(array: np.ndarray) -> np.ndarray:
    """The array up to a power of two, so that few sizes are compiled.

    The last entry is repeated: to read or write a row again changes nothing.
    """
    more = 2 ** (len(array) - 1).bit_length() - len(array)
    return np.concatenate([array, np.repeat(array[-1:], more, axis=0)])


def _read(
    table: Table, words: np.ndarray, tables: np.ndarray, call: str
) -> tuple[Any, Rows]:
    """Whole rows as words, and what they mean."""
    n = len(words)
    if n:
        arrays = _read_rows(table, _padded(words), _padded(tables))
        raw, slots = (np.array(array)[:n] for array in arrays)
        if table.spec.is_cached:
            check_current(table, call)  # a row that its Store could not read
    else:
        raw = np.zeros((0, table.spec.row_words), np.uint32)
        slots = np.zeros(0, np.int32)
    embedding = raw[:, : table.spec.embedding_dim].view(np.float32)
    return raw, Rows(embedding, state_fields(table, raw), slots >= 0)


@functools.partial(jax.jit, donate_argnums=(0,))
def _write_rows(
    table: Table, words: jax.Array, tables: jax.Array, rows: jax.Array
) -> Table:
    if table.spec.is_cached:
        batch = (words[jnp.newaxis], tables[jnp.newaxis], rows)
        return cached_call("oneemb_write_cached_rows", table, *batch)
    names = ("index", "rows", "clock", "counters", "layout_version")
    arrays = [getattr(table, name) for name in names]
    results = _ffi.call(
        "oneemb_write_rows",
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays],
        *arrays,
        table.step,
        words[jnp.newaxis],
        tables[jnp.newaxis],
        rows,
        aliases={i: i for i in range(len(arrays))},
        **table.spec.attributes(),
    )
    generation = table.generation + jnp.uint32(1)
    named = dict(zip(names, results, strict=True))
    return dataclasses.replace(table, **named, generation=generation)


def _check_room(
    table: Table, words: np.ndarray, tables: np.ndarray, found: np.ndarray
) -> None:
    """ValueError if the ids cannot all be written."""
    spec = table.spec
    ids = unpack_ids(words, np.uint64) if spec.id_words == 2 else words[:, 0]
    if spec.is_padding(ids).any():
        raise ValueError(
            f"set_rows(ids=...): {spec.padding_idx} is the padding_idx, which "
            "stores no row."
        )
    if spec.is_cached:
        return
    keys = np.zeros_like(tables) if spec.shared_keys else tables
    new = {*zip(ids[~found].tolist(), keys[~found].tolist(), strict=True)}
    room = table.capacity - host_counters(table, "set_rows")["rows"]
    if len(new) > room:
        raise ValueError(
            f"set_rows(ids=...): {len(new)} new ids, room for {room}; use "
            f"table = oe.grow(table) first."
        )


def set_rows(
    table: Table,
    ids: Any,
    embedding: Any,
    state: dict[str, Any] | None = None,
    table_ids: Any = None,
) -> Table:
    """Writes rows from NumPy, outside of ``jit``; inserts those that are missing.

    The table given is donated: go on with the one returned.

    Args:
        table: the table.
        ids: NumPy integers of any shape. Of an id given twice the last counts.
        embedding: float array of shape ``ids.shape + (embedding_dim,)``.
        state: optimizer state by field name, as :func:`get_rows` gives it, flat
            or of the shape of ``ids``; a field left out keeps its value, or the
            one a new row begins with.
        table_ids: as in ``lookup``.

    Returns:
        The next table.

    Raises:
        TypeError: if ``ids`` do not fit the key type, or values are no numbers.
        ValueError: if shapes or names do not fit, a number is beyond float32, a
            table id is out of range, an id is ``padding_idx``, or there is no room;
            nothing is written then.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "set_rows", 2, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = oe.set_rows(emb.init(), [5], [[1.0, 2.0]])
        >>> oe.get_rows(table, [5]).embedding
        array([[1., 2.]], dtype=float32)
    """
    host_counters(table, "set_rows")
    words, tables, shape = _host_ids(table, ids, table_ids, "set_rows")
    wanted = [(*shape, table.spec.embedding_dim)]
    values = _as_rows(embedding, "embedding", np.float32, wanted)
    if not len(words):
        return table
    raw, rows = _read(table, words, tables, "set_rows")
    raw[:, : table.spec.embedding_dim] = values.reshape(len(words), -1).view(np.uint32)
    if not isinstance(state, Mapping | None):
        raise TypeError(
            f"set_rows(state=...): {type(state).__name__}; pass a dict of arrays by "
            f"name: {sorted(rows.state)}."
        )
    for name, array in (state or {}).items():
        if name not in rows.state:
            raise ValueError(
                f"set_rows(state=...): {name!r} is not in the state of optimizer "
                f"{table.spec.optimizer.name}: {sorted(rows.state)}."
            )
        field = rows.state[name]
        wanted = [(*shape, *field.shape[1:]), field.shape]
        values = _as_rows(array, f"state[{name!r}]", field.dtype, wanted)
        field[...] = values.reshape(field.shape)
    _check_room(table, words, tables, rows.found)
    return write_raw_rows(table, words, tables, raw)


def write_raw_rows(
    table: Table, words: np.ndarray, tables: np.ndarray, rows: np.ndarray
) -> Table:
    """Writes whole rows as they are; the table given is donated.

    Args:
        table: the table.
        words: ids as uint32[n, id_words].
        tables: int32[n].
        rows: uint32[n, row_words].
    """
    # A cached table takes no more at once than its cache has slots.
    most = len(words)
    if table.spec.is_cached:
        most = 2 ** (table.capacity.bit_length() - 1)
    for i in range(0, len(words), max(most, 1)):
        part = (array[i : i + most] for array in (words, tables, rows))
        table = _write_rows(table, *map(_padded, part))
    return table


def _cast(array: np.ndarray, dtype: Any, argument: str) -> np.ndarray:
    """Rounded to float32; ValueError for numbers that the type does not have."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    if cast.dtype.kind == "f":
        lost = np.isinf(cast) & np.isfinite(array)
    else:
        lost = cast != array
    if lost.any():
        raise ValueError(
            f"set_rows({argument}=...): {array[lost][0]} does not fit {cast.dtype}."
        )
    return cast


def _as_rows(
    values: Any, argument: str, dtype: Any, shapes: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """``values`` as NumPy of one of ``shapes``, or an error naming the argument."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu" and array.dtype.name not in FLOATS:
            raise TypeError(f"dtype {array.dtype}")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"set_rows({argument}=...): {error}; pass numbers of shape {shapes[0]}."
        ) from error
    if array.shape not in shapes:
        raise ValueError(
            f"set_rows({argument}=...): shape {array.shape}, wanted {shapes[0]}."
        )
    return _cast(array, dtype, argument)
