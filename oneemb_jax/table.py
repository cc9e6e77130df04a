"""The table: a pytree of arrays, how it begins, and what can be told of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from oneemb_jax import _ffi
from oneemb_jax.memory import human_bytes, memory_explained
from oneemb_jax.options import whole_option
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
    "staged",
    "slots_used",
)

#: The arrays of a cached table, in the order in which its handlers take them
#: (xla_ffi/tier/cached_ffi.cc). All but the last are written.
CACHED_ARRAYS = (
    "index",
    "rows",
    "clock",
    "counters",
    "layout_version",
    "generation",
    "residency",
    "store_nonce",
)

_MOST_ROWS = 2**31 - 1
#: What a device's memory may have room for, where it has none for a table.
_LESS_ROWS = (
    "a smaller capacity, to which oe.grow adds later, or the rows in host memory or on "
    "SSD, by make_cached_host_mem_store_options and make_cached_ssd_store_options"
)
_LESS_CACHE = "a smaller cache_budget_mb"


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
        Use table = oe.grow(table). To go on regardless: table =
        oe.reset_counters(table).
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
        "residency",
    ],
    meta_fields=["spec"],
)
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Table:
    """Rows, their index and their optimizer state, as a pytree of uint32 arrays.

    Pass it through ``jax.jit`` and donate it; every function that changes a
    table returns the next one. All leaves are integers: ``jax.grad`` with respect
    to a table raises a TypeError, see :func:`oneemb_jax.value_and_grad`, and
    filters for inexact arrays pass it over. Keep it out of trees that optax
    sees, which would make moments as large as the table.

    Attributes:
        index: uint32[buckets, 16], from (table, id) to slot.
        rows: uint32[capacity, row_words], float32 bits of [embedding | state].
        clock: uint32[capacity], the step that last touched a slot; of a cached
            table, the last staged batch that wanted it.
        counters: uint32[1, counters, 2], uint64 values, low word first.
        step: uint32[1], updates so far.
        layout_version: uint32[1, 2], fingerprint of the keys in their slots.
        generation: uint32[1], changes so far.
        store_nonce: uint32[1, 2], the open Store this table belongs to; 0: none.
        learning_rate: uint32[1], float32 bits of a constant learning rate.
        residency: uint32[capacity, 2] of a cached table: where in the index a
            slot's key is, and whether its row is free, reserved, clean or dirty.
            None where all rows are in device memory.
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
          memory    152.5 KiB
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
    residency: jax.Array | None
    spec: TableSpec

    @property
    def capacity(self) -> int:
        """Rows there is room for in device memory."""
        return int(self.rows.shape[0])

    def __repr__(self) -> str:
        """A small card; reads the counters unless the table is being traced."""
        spec = self.spec
        state = f"{spec.optimizer.name}, {spec.row_words * 4} B a row"
        lines = [f"Table {spec.name!r}: {spec.num_tables} table(s)"]
        lines.append(f"  dim       {_columns(spec)} float32, keys {spec.key_type}")
        lines.append(f"  optimizer {state}")
        try:
            lines += _contents(self)
        except Exception:  # leaves may be anything a tree operation put there
            kinds = sorted({type(leaf).__name__ for leaf in _leaves(self)})
            lines.append(f"  leaves    {', '.join(kinds)}, no arrays of a table")
        return "\n".join(lines)


def _leaves(table: Table) -> list[Any]:
    fields = (field.name for field in dataclasses.fields(table))
    leaves = [getattr(table, name) for name in fields if name != "spec"]
    return [leaf for leaf in leaves if leaf is not None]


def _contents(table: Table) -> list[str]:
    """The lines of the card that depend on the arrays."""
    if isinstance(table.counters, jax.core.Tracer):
        return [f"  capacity  {table.capacity} (traced)"]
    if isinstance(table.counters, jax.ShapeDtypeStruct):
        return [f"  capacity  {table.capacity} (shapes only)"]
    if isinstance(table.counters, jax.Array) and table.counters.is_deleted():
        return ["  donated: use the table that came back"]
    _check_shapes(table, "repr")
    now = counter_values(table)
    load, step = now["rows"] / table.capacity, int(np.array(table.step)[0])
    rows = f"{now['rows']} of {table.capacity} ({load:.1%})"
    if table.spec.is_cached:
        rows = f"{now['rows']}, cache of {table.capacity} slots"
    return [
        f"  rows      {rows}, step {step}",
        f"  lookups   {now['hits']} hits, {now['misses']} misses",
        f"  memory    {human_bytes(sum(array.nbytes for array in _leaves(table)))}",
    ]


def counter_values(table: Table) -> dict[str, int]:
    """The counters by name; waits for the table."""
    values = np.array(table.counters).view(np.uint64).reshape(-1)
    return dict(zip(COUNTERS, map(int, values), strict=True))


def _columns(spec: TableSpec) -> str:
    dims = "+".join(str(dim) for dim in spec.column_dims)
    return dims if len(spec.column_dims) == 1 else f"{spec.embedding_dim} = {dims}"


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
    """Buckets for ``capacity`` rows: 24 bytes a row, two thirds full (of four on)."""
    return 1 if capacity < BUCKET_ENTRIES else (capacity * 3 + 7) // 8


def _fuller_index(capacity: int) -> int:
    """Buckets at four fifths full: of tables that were saved when those were made."""
    return 1 if capacity < BUCKET_ENTRIES else (capacity * 5 + 15) // 16


def check_capacity(capacity: Any, call: str) -> int:
    """A capacity as int; ValueError if no table can have it."""
    capacity = whole_option(capacity, "capacity", call)
    if not 1 <= capacity <= _MOST_ROWS:
        raise ValueError(
            f"{call}(capacity={capacity}): a table in device memory holds 1 to "
            f"{_MOST_ROWS} rows."
        )
    return capacity


def array_shapes(spec: TableSpec, capacity: int) -> list[jax.ShapeDtypeStruct]:
    """Shapes of index, rows and clock of a table of ``capacity`` rows."""
    shapes = (
        (num_buckets(capacity), BUCKET_WORDS),
        (capacity, spec.row_words),
        (capacity,),
    )
    return [jax.ShapeDtypeStruct(shape, np.dtype(np.uint32)) for shape in shapes]


def _all_shapes(spec: TableSpec, capacity: int) -> list[jax.ShapeDtypeStruct]:
    """Of index, rows and clock, and of the residency of a cached table."""
    shapes = array_shapes(spec, capacity)
    if spec.is_cached:
        shapes.append(jax.ShapeDtypeStruct((capacity, 2), np.dtype(np.uint32)))
    return shapes


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty_arrays(spec: TableSpec, capacity: int) -> list[jax.Array]:
    shapes = _all_shapes(spec, capacity)
    return _ffi.call("oneemb_create", shapes, **spec.attributes())


def nonce_words(nonce: int) -> np.ndarray:  # u32[1, 2]
    """The number of a table's Store, as a leaf has it."""
    return np.array([[nonce]], np.uint64).view(np.uint32)


def init_table(
    spec: TableSpec,
    device: Any = None,
    capacity: int | None = None,
    nonce: int = 0,
) -> Table:
    """An empty table of ``spec.capacity`` rows.

    Memory of rows is taken from the system as rows appear.

    Args:
        spec: what to make.
        device: a ``jax.Device``, which the table then is committed to; None means
            JAX's default device.
        capacity: another number of rows than the spec's.
        nonce: of the Store that a cached table has.
    """
    if not isinstance(device, jax.Device | None):
        raise TypeError(
            f"init(device={device!r}): pass a jax.Device, such as jax.devices()[0]."
        )
    capacity = check_capacity(capacity or spec.capacity, "init")
    constant = spec.optimizer.learning_rate
    rate = np.float32(0.0 if callable(constant) else constant)
    # default_device(None) would undo a default that the caller has set.
    chosen = contextlib.nullcontext() if device is None else jax.default_device(device)
    advice = _LESS_CACHE if spec.is_cached else _LESS_ROWS
    with chosen, memory_explained(_all_shapes(spec, capacity), "init", advice):
        index, rows, clock, *residency = _empty_arrays(spec, capacity)
        table = Table(
            index=index,
            rows=rows,
            clock=clock,
            counters=jnp.zeros((1, len(COUNTERS), 2), jnp.uint32),
            step=jnp.zeros((1,), jnp.uint32),
            layout_version=jnp.zeros((1, 2), jnp.uint32),
            generation=jnp.zeros((1,), jnp.uint32),
            store_nonce=jnp.array(nonce_words(nonce)),
            learning_rate=jnp.asarray(rate.reshape(1).view(np.uint32)),
            residency=residency[0] if residency else None,
            spec=spec,
        )
    # Committed, or the first jitted step would move it to the default device.
    return table if device is None else jax.device_put(table, device)


def unshared(table: Table, before: Table) -> Table:
    """``table`` with copies of the arrays that it has of ``before``.

    Whoever donates one of the two must not lose the other.
    """
    copies: dict[str, Any] = {}
    for name, leaf in vars(before).items():
        own = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        if own and getattr(table, name) is leaf:
            copies[name] = leaf.copy()
    return dataclasses.replace(table, **copies)


def _is_gone(leaf: Any) -> bool:
    is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return is_array and leaf.is_deleted()


def check_table(table: Any, call: str) -> Table:
    """``table`` if it is one that can still be used, else an error."""
    if not isinstance(table, Table):
        raise TypeError(
            f"{call}(table=...): got {type(table).__name__}, not a Table; make one "
            "with emb.init()."
        )
    # Tables that share rows, as of reset_counters, are donated together.
    if _is_gone(table.counters) or _is_gone(table.rows):
        raise ValueError(
            f"{call}(table=...): this table was donated to an earlier call; use "
            "the table that call returned."
        )
    _check_shapes(table, call)
    if _is_sharded(table.rows):
        raise ValueError(
            f"{call}(table=...): the table is sharded over several devices, which "
            "would gather it whole in every step; keep it on one device, or "
            "replicated."
        )
    return table


def _check_shapes(table: Table, call: str) -> None:
    """Errors in our words for what a handler would refuse in XLA's."""
    capacity = np.shape(table.rows)[0] if np.ndim(table.rows) else 0
    index, rows, clock = array_shapes(table.spec, max(capacity, 1))
    wanted = {
        "index": index.shape,
        "rows": rows.shape,
        "clock": clock.shape,
        "counters": (1, len(COUNTERS), 2),
        "step": (1,),
        "layout_version": (1, 2),
        "generation": (1,),
    }
    if table.spec.is_cached:
        wanted |= {"residency": (capacity, 2), "store_nonce": (1, 2)}
    fuller = (_fuller_index(capacity), BUCKET_WORDS)
    if np.shape(table.index) == fuller and not table.spec.is_cached:
        wanted["index"] = fuller
    for name, shape in wanted.items():
        leaf = getattr(table, name)
        if np.shape(leaf) != shape or leaf.dtype != np.uint32:
            raise ValueError(
                f"{call}(table=...): {name} is {leaf.dtype}{[*np.shape(leaf)]}, not "
                f"uint32{[*shape]}. A table is used whole, as init, update or grow "
                "made it: not stacked, sliced, cast or scaled."
            )


def _is_sharded(array: Any) -> bool:
    """Whether an array is known to be split over devices.

    Inside ``jax.jit`` it is known for meshes with explicit axes only.
    """
    if isinstance(array, jax.core.Tracer):
        spec = getattr(getattr(jax.typeof(array), "sharding", None), "spec", ())
        return any(axis is not None for axis in spec)
    return isinstance(array, jax.Array) and not array.sharding.is_fully_replicated
