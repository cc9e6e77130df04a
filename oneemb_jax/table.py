"""The table: a pytree of arrays, how it begins, and what can be told of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from oneemb_jax import _ffi
from oneemb_jax.spec import TableSpec

#: Entries of a bucket and words of a bucket (xla_ffi/core/bucket.h).
BUCKET_ENTRIES = 4
BUCKET_WORDS = 16

#: uint64 counters in ``Table.counters`` (xla_ffi/core/counters.h).
COUNTERS = (
    "rows",
    "hits",
    "misses",
    "inserts",
    "overflows",
    "bad_table_ids",
    "non_finite_gradients",
    "bad_learning_rates",
    "unstaged",
    "stale",
    "damaged_contexts",
)

_MOST_ROWS = 2**31 - 1


class TableError(RuntimeError):
    """Something went wrong inside a compiled step; see :func:`oneemb_jax.check`.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "full", 1, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=1),
        ... ) as emb:
        ...     table = emb.init()
        ...     acts, ctx = oe.lookup(table, np.array([7, 8]))
        ...     table = oe.update(table, ctx, np.ones_like(acts))
        >>> try:
        ...     oe.check(table)
        ... except oe.TableError as error:
        ...     print(error)
        table 'full': 1 gradients were dropped: the table is full with its 1 rows.
        Use table = oe.grow(table).
    """


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "index",
        "rows",
        "clock",
        "counters",
        "step",
        "layout_version",
        "generation",
        "store_nonce",
        "learning_rate",
    ],
    meta_fields=["spec"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class Table:
    """Rows, their index and their optimizer state, as a pytree of uint32 arrays.

    Pass it through ``jax.jit`` and donate it; every function that changes a
    table returns the next one. All leaves are integers, so a table is never a
    parameter to ``jax.grad``, optax or a filter for inexact arrays.

    Attributes:
        index: uint32[buckets, 16], from (table, id) to slot.
        rows: uint32[capacity, row_words], float32 bits of [embedding | state].
        clock: uint32[capacity], the step that last touched a slot.
        counters: uint32[1, counters, 2], uint64 values, low word first.
        step: uint32[1], updates so far.
        layout_version: uint32[1, 2], fingerprint of the keys in their slots.
        generation: uint32[1], changes so far.
        store_nonce: uint32[1, 2], the open Store this table belongs to; 0: none.
        learning_rate: uint32[1], float32 bits of a constant learning rate.
        spec: static.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "card", 16, "float32", "int64", optimizer=oe.adagrad(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=1000),
        ... ) as emb:
        ...     emb.init()
        Table 'card': 1 table(s)
          dim       16 float32, keys int64
          optimizer adagrad, 128 B a row
          rows      0 of 1000 (0.0%), step 0
          lookups   0 hits, 0 misses
          memory    148.6 KiB
    """

    index: jax.Array
    rows: jax.Array
    clock: jax.Array
    counters: jax.Array
    step: jax.Array
    layout_version: jax.Array
    generation: jax.Array
    store_nonce: jax.Array
    learning_rate: jax.Array
    spec: TableSpec

    @property
    def capacity(self) -> int:
        """Rows the table has room for."""
        return int(self.rows.shape[0])

    def __repr__(self) -> str:
        """A small card; reads the counters unless the table is being traced."""
        spec = self.spec
        state = f"{spec.optimizer.name}, {spec.row_words * 4} B a row"
        lines = [f"Table {spec.name!r}: {spec.num_tables} table(s)"]
        lines.append(f"  dim       {_columns(spec)} float32, keys {spec.key_type}")
        lines.append(f"  optimizer {state}")
        if isinstance(self.counters, jax.core.Tracer):
            return "\n".join([*lines, f"  capacity  {self.capacity} (traced)"])
        if self.counters.is_deleted():
            return "\n".join([*lines, "  donated: use the table that came back"])
        now = stats(self)
        rows = f"{now['rows']} of {self.capacity} ({now['load']:.1%})"
        lines.append(f"  rows      {rows}, step {now['step']}")
        lines.append(f"  lookups   {now['hits']} hits, {now['misses']} misses")
        lines.append(f"  memory    {human_bytes(now['bytes'])}")
        return "\n".join(lines)


def _columns(spec: TableSpec) -> str:
    dims = "+".join(str(dim) for dim in spec.column_dims)
    return dims if len(spec.column_dims) == 1 else f"{spec.embedding_dim} = {dims}"


def human_bytes(count: float) -> str:
    """A byte count as a person writes it.

    Example:
        >>> human_bytes(1536)
        '1.5 KiB'
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"


def is_table(x: Any) -> bool:
    """Whether ``x`` is a :class:`Table`; made for ``is_leaf`` arguments.

    Example:
        >>> import jax
        >>> import oneemb_jax as oe
        >>> model = {"weights": 1.0, "table": None}
        >>> jax.tree.map(oe.is_table, model, is_leaf=oe.is_table)
        {'table': None, 'weights': False}
    """
    return isinstance(x, Table)


def num_buckets(capacity: int) -> int:
    """Buckets for ``capacity`` rows: 80 % full at most, 20 bytes a row."""
    return 1 if capacity < BUCKET_ENTRIES else (capacity * 5 + 15) // 16


def check_capacity(capacity: Any, call: str) -> int:
    """A capacity as int; ValueError if no table can have it."""
    if isinstance(capacity, bool) or not isinstance(capacity, int | np.integer):
        raise TypeError(f"{call}(capacity=...): {capacity!r} is not a whole number.")
    if not 1 <= capacity <= _MOST_ROWS:
        raise ValueError(
            f"{call}(capacity={capacity}): a table in device memory holds 1 to "
            f"{_MOST_ROWS} rows."
        )
    return int(capacity)


def array_shapes(spec: TableSpec, capacity: int) -> list[jax.ShapeDtypeStruct]:
    """Shapes of index, rows and clock of a table of ``capacity`` rows."""
    shapes = (
        (num_buckets(capacity), BUCKET_WORDS),
        (capacity, spec.row_words),
        (capacity,),
    )
    return [jax.ShapeDtypeStruct(shape, np.dtype(np.uint32)) for shape in shapes]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty_arrays(spec: TableSpec, capacity: int) -> list[jax.Array]:
    return _ffi.call("oneemb_create", array_shapes(spec, capacity), **spec.attributes())


def init_table(spec: TableSpec, device: Any = None) -> Table:
    """An empty table of ``spec.capacity`` rows.

    Memory of rows is taken from the system as rows appear.

    Args:
        spec: what to make.
        device: a ``jax.Device``; None means JAX's default device.
    """
    capacity = check_capacity(spec.capacity, "init")
    constant = spec.optimizer.learning_rate
    rate = np.float32(0.0 if callable(constant) else constant)
    with jax.default_device(device):
        index, rows, clock = _empty_arrays(spec, capacity)
        return Table(
            index=index,
            rows=rows,
            clock=clock,
            counters=jnp.zeros((1, len(COUNTERS), 2), jnp.uint32),
            step=jnp.zeros((1,), jnp.uint32),
            layout_version=jnp.zeros((1, 2), jnp.uint32),
            generation=jnp.zeros((1,), jnp.uint32),
            store_nonce=jnp.zeros((1, 2), jnp.uint32),
            learning_rate=jnp.asarray(rate.reshape(1).view(np.uint32)),
            spec=spec,
        )


def check_table(table: Any, call: str) -> Table:
    """``table`` if it is one that can still be used, else an error."""
    if not isinstance(table, Table):
        raise TypeError(
            f"{call}(table=...): got {type(table).__name__}, not a Table; make one "
            "with emb.init()."
        )
    counters = table.counters
    is_array = isinstance(counters, jax.Array)
    if is_array and not isinstance(counters, jax.core.Tracer) and counters.is_deleted():
        raise ValueError(
            f"{call}(table=...): this table was donated to an earlier call; use "
            "the table that call returned."
        )
    return table


def host_counters(table: Any, call: str) -> dict[str, int]:
    """The counters as Python integers; waits for the table."""
    table = check_table(table, call)
    if isinstance(table.counters, jax.core.Tracer):
        raise TypeError(
            f"{call}(table): the table is being traced; call it outside of jit. "
            "Inside, oe.num_rows(table) gives the rows as an array."
        )
    values = np.array(table.counters).view(np.uint64).reshape(-1)
    return dict(zip(COUNTERS, map(int, values), strict=True))


def num_rows(table: Table) -> jax.Array:
    """Rows present, as a uint32 scalar: works inside ``jax.jit``.

    Return it from a train step to watch the load of a table without waiting for
    the step: read the one of an earlier step.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "num_rows", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     int(oe.num_rows(emb.init()))
        0
    """
    return check_table(table, "num_rows").counters[0, COUNTERS.index("rows"), 0]


def size(table: Table) -> int:
    """Rows present, as a Python integer; waits for the table.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "size", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     oe.size(emb.init())
        0
    """
    return host_counters(table, "size")["rows"]


def stats(table: Table) -> dict[str, int | float]:
    """What a table holds and what happened to it; waits for the table.

    Returns:
        A flat dict: ``rows``, ``capacity``, ``load`` (rows / capacity), ``step``,
        ``hits`` and ``misses`` (ids looked up with and without a row, added by
        ``update``), ``hit_rate``, ``inserts``, ``overflows`` (gradients dropped
        since the table was last grown, because it was full),
        ``bad_table_ids``, ``non_finite_gradients``, ``bad_learning_rates``,
        ``unstaged``, ``stale``, ``bytes`` (all arrays), ``index_bytes``,
        ``row_bytes``.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "stats", 4, "float32", "int64", optimizer=oe.adagrad(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     stats = oe.stats(emb.init())
        >>> stats["rows"], stats["load"], stats["row_bytes"]
        (0, 0.0, 256)
    """
    counters = host_counters(table, "stats")
    looked_up = counters["hits"] + counters["misses"]
    leaves = jax.tree.leaves(table)
    return {
        **counters,
        "capacity": table.capacity,
        "load": counters["rows"] / table.capacity,
        "hit_rate": counters["hits"] / looked_up if looked_up else 0.0,
        "step": int(np.array(table.step)[0]),
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "index_bytes": 4 * (table.index.size + table.clock.size),
        "row_bytes": 4 * table.rows.size,
    }


def check(table: Table) -> None:
    """Raises what went wrong inside compiled steps; waits for the table.

    A step cannot raise without losing the donated table, so it counts.

    Raises:
        TableError: if gradients were dropped because the table was full, table
            ids were out of range, or a learning rate was negative or not finite.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "check", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     oe.check(emb.init())
    """
    counters = host_counters(table, "check")
    spec = table.spec
    problems = {
        "overflows": f"gradients were dropped: the table is full with its "
        f"{table.capacity} rows. Use table = oe.grow(table)",
        "bad_table_ids": f"ids had a table id outside 0..{spec.num_tables - 1} and "
        "read NaN; look at table_ids",
        "bad_learning_rates": "updates changed nothing: their learning rate was "
        "negative or not finite",
        "damaged_contexts": "updates changed nothing: a context was not as its lookup "
        "returned it, say after jax.tree.map over a SparseGrad. Scale by "
        "update(grad_scale=) or SparseGrad.map",
        "unstaged": "ids were not in the cache and read NaN; call oe.stage(table, "
        "ids) before lookup",
        "stale": "operations met a table that its Store has left behind and changed "
        "nothing; use the newest table, or load_snapshot",
    }
    found = [
        f"{counters[key]} {text}" for key, text in problems.items() if counters[key]
    ]
    if found:
        raise TableError(f"table {spec.name!r}: " + "; ".join(found) + ".")
