"""lookup: activations of ids, read from an explicit table and never written."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax import _ffi
from oneemb_jax._compat import out_like
from oneemb_jax.ids import id_words, table_id_period
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import CACHED_ARRAYS, Table, check_table

FLOATS = ("float32", "bfloat16", "float16")
#: Hits, misses, bad table ids and the checksum (xla_ffi/core/counters.h).
NUM_COUNTS = 4


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "table_ids", "slots", "layout_version", "counts"],
    meta_fields=["spec", "batch_shape"],
)
@dataclasses.dataclass(frozen=True)
class LookupContext:
    """What ``update`` needs to know of a lookup.

    A pytree: return it from a jitted function, stack it with ``lax.scan``, but
    change nothing in it: ``update`` refuses such a context. Its slots are hints;
    ``update`` trusts them while the table's layout is the one that the lookup
    saw, and searches by id otherwise.

    Attributes:
        ids: uint32[n, words].
        table_ids: int32[m]; the id at position i is in table ``table_ids[i % m]``.
        slots: int32[n]; a slot, or -1 unseen, -2 padding, -3 bad table id.
        layout_version: uint32[2], of the table that was read.
        counts: uint32[4]: hits, misses, bad table ids, and a checksum of ids,
            tables and slots, by which ``update`` knows a context that was changed.
        spec: of the table; static.
        batch_shape: shape of the ids as the user gave them; static.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "context", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     _, ctx = oe.lookup(emb.init(), np.array([7, 8]))
        >>> ctx.slots.tolist(), ctx.counts[:3].tolist()
        ([-1, -1], [0, 2, 0])
    """

    ids: jax.Array
    table_ids: jax.Array
    slots: jax.Array
    layout_version: jax.Array
    counts: jax.Array
    spec: TableSpec
    batch_shape: tuple[int, ...]

    @property
    def microbatches(self) -> tuple[int, ...]:
        """The axes by which contexts were stacked; () for a single lookup."""
        return tuple(self.counts.shape[:-1])


#: What the calls of a lookup are named, of a table that is not cached and of one.
LOOKUP_TARGET = "oneemb_lookup"
CACHED_LOOKUP_TARGET = "oneemb_lookup_cached"


@dataclasses.dataclass(frozen=True)
class _LookupCall:
    """The static side of one lookup."""

    spec: TableSpec
    batch_shape: tuple[int, ...]
    dtype: Any

    def run(
        self, table: Table, ids: jax.Array, table_ids: jax.Array
    ) -> tuple[jax.Array, LookupContext]:
        spec = self.spec
        n = math.prod(self.batch_shape)
        target, names = LOOKUP_TARGET, ("index", "rows", "layout_version")
        if spec.is_cached:
            target, names = CACHED_LOOKUP_TARGET, CACHED_ARRAYS
        arrays = [getattr(table, name) for name in names]
        like = functools.partial(out_like, (*arrays, ids, table_ids))
        acts, slots, version, counts = _ffi.call(
            target,
            [
                like((n, spec.embedding_dim), self.dtype),
                like((n,), np.int32),
                like((2,), np.uint32),
                like((NUM_COUNTS,), np.uint32),
            ],
            *arrays,
            ids[jnp.newaxis],
            table_ids[jnp.newaxis],
            **spec.attributes(),
        )
        context = LookupContext(
            ids, table_ids, slots, version, counts, spec, self.batch_shape
        )
        return acts.reshape((*self.batch_shape, spec.embedding_dim)), context


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(
    static: _LookupCall, table: Table, ids: jax.Array, table_ids: jax.Array, tap: Any
) -> tuple[jax.Array, LookupContext]:
    """One lookup. ``tap``, when there is one, receives the gradient."""
    return static.run(table, ids, table_ids)


def _lookup_fwd(
    static: _LookupCall, table: Table, ids: jax.Array, table_ids: jax.Array, tap: Any
) -> tuple[tuple[jax.Array, LookupContext], None]:
    return static.run(table, ids, table_ids), None


def _lookup_bwd(
    static: _LookupCall, residuals: None, cotangents: tuple[jax.Array, Any]
) -> tuple[None, None, None, jax.Array]:
    return None, None, None, cotangents[0]


_lookup.defvjp(_lookup_fwd, _lookup_bwd)


#: Who sees lookups while ``value_and_grad`` traces a loss; None otherwise.
TAPED_LOOKUP: contextvars.ContextVar[Callable[..., Any] | None] = (
    contextvars.ContextVar("taped_lookup", default=None)
)


def _dtype_name(dtype: Any) -> str | None:
    """The name of a dtype; None for what is none."""
    try:
        return np.dtype(dtype).name
    except TypeError:
        return None


def lookup_with_tap(
    table: Table, ids: Any, table_ids: Any, dtype: Any, tap: Any = None
) -> tuple[jax.Array, LookupContext]:
    """:func:`lookup`, with an argument whose gradient is that of the activations."""
    call = "lookup"
    table = check_table(table, call)
    if _dtype_name(dtype) not in FLOATS:
        raise ValueError(f"{call}(dtype={dtype!r}): use one of {', '.join(FLOATS)}.")
    words = id_words(ids, table.spec.key_type, call)
    batch_shape = tuple(words.shape[:-1])
    period = table_id_period(table_ids, batch_shape, table.spec.num_tables, call)
    static = _LookupCall(table.spec, batch_shape, np.dtype(dtype))
    flat = jnp.asarray(words).reshape(-1, words.shape[-1])
    return _lookup(static, table, flat, jnp.asarray(period), tap)


def lookup(
    table: Table, ids: Any, table_ids: Any = None, *, dtype: Any = jnp.float32
) -> tuple[jax.Array, LookupContext]:
    """Reads the rows of ids. Never changes the table.

    An id that the table has not seen reads as its initial row, which depends on
    nothing but the seed, the table, the id and the column. ``padding_idx`` reads
    zeros; a table id out of range reads NaN and is counted. On a cached table an
    id reads NaN, and is counted, unless :func:`stage` was called with it before.

    Args:
        table: the table.
        ids: integers of any shape, of the table's key type. For 64-bit keys:
            NumPy or lists, or the uint32[..., 2] array of :func:`pack_ids`; any
            uint32 array whose last axis is 2 is taken for packed. An argument of
            a jitted function must be packed before: JAX itself cuts NumPy int64
            and uint64 arguments to 32 bits. What it made of int64 is refused
            here; uint64[..., 2] cut to uint32[..., 2] looks like packed ids. For
            32-bit keys, ids that do not fit are refused outside of jit alone:
            JAX cuts them, too.
        table_ids: which table each id is in: integers of a shape that broadcasts
            to that of ``ids``. By default the last axis of ``ids`` is the table,
            where there are several.
        dtype: of the activations: float32 (default), bfloat16 or float16.

    Returns:
        Activations of shape ``ids.shape + (embedding_dim,)``, and the context
        that ``update`` wants with their gradient.

    Raises:
        TypeError: if ``ids`` have another dtype than the key type.
        ValueError: if shapes do not fit, or under ``jax.vmap``.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "lookup", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     default_initializer=oe.make_constant_initializer(0.5),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     acts, ctx = oe.lookup(emb.init(), np.array([[7, 2**40]]))
        >>> acts.shape, float(acts[0, 1, 3])
        ((1, 2, 4), 0.5)
    """
    taped = TAPED_LOOKUP.get()
    if taped is not None:
        return taped(table, ids, table_ids, dtype)
    return lookup_with_tap(table, ids, table_ids, dtype)
