"""What a table counts: read while it runs, or on the host between steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from oneemb_jax.cache import cache_figures, check_current, reset_figures
from oneemb_jax.table import (
    COUNTERS,
    Table,
    TableError,
    check_table,
    counter_values,
)


def host_counters(table: Any, call: str, *, late: bool = False) -> dict[str, int]:
    """The counters as Python integers; waits for the table.

    Args:
        table: the table.
        call: the public function, for messages.
        late: the table is a copy of an earlier one's counts.
    """
    table = check_table(table, call)
    if isinstance(table.counters, jax.core.Tracer):
        raise TypeError(
            f"{call}(table): the table is being traced; call it outside of jit. "
            "Inside, oe.num_rows(table) gives the rows as an array."
        )
    counters = counter_values(table)
    slots = "slots_used" if table.spec.is_cached else "rows"
    if counters[slots] > table.capacity:
        raise TableError(
            f"{call}(table): {counters[slots]} {slots} in a table of {table.capacity}: "
            "its arrays are not as a call returned them, say after jax.tree.map over "
            "a tree that holds it (oe.is_table tells). Use an earlier one, or a "
            "snapshot."
        )
    if table.spec.is_cached:
        check_current(table, call, late=late)
        figures = cache_figures(table, call)
        for name in ("unstaged", "stale"):
            counters[name] += figures[name]
    return counters


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
        ``bad_table_ids``, ``non_finite_gradients`` (applied; a row whose sum or
        scaled sum overflows counts as one), ``bad_learning_rates``, ``unstaged``,
        ``stale``, ``damaged_contexts``, ``bytes`` (all arrays), ``index_bytes``,
        ``clock_bytes`` (of a cached table, its residency too), ``row_bytes``.

        Of a cached table, ``capacity`` are the slots of its cache and ``load`` is
        the share of them in use, ``cached_rows``. It has more figures: ``staged``
        batches; ``cache_hits`` and ``cache_misses``, distinct ids of staged batches
        with and without a slot; ``cache_hit_rate``; of the misses, ``prefetched``,
        those that :func:`prefetch` had read; ``prefetch_refused``, ids that it had
        no room for; ``stalls``, batches that waited for the store; ``victims``,
        rows evicted, and ``write_backs``, those of them that were written down.

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
    return stats_of(table, host_counters(table, "stats"))


def stats_of(table: Table, counters: dict[str, int]) -> dict[str, int | float]:
    """:func:`stats`, of counters that have been read."""
    counters = dict(counters)
    looked_up = counters["hits"] + counters["misses"]
    leaves = jax.tree.leaves(table)
    staged, used = counters.pop("staged"), counters.pop("slots_used")
    cached: dict[str, int | float] = {}
    if table.spec.is_cached:
        cached = {"staged": staged, "cached_rows": used, **_cache_stats(table)}
    return {
        **counters,
        **cached,
        "capacity": table.capacity,
        "load": (used if cached else counters["rows"]) / table.capacity,
        "hit_rate": counters["hits"] / looked_up if looked_up else 0.0,
        "step": int(np.array(table.step)[0]),
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "index_bytes": 4 * table.index.size,
        "clock_bytes": sum(
            4 * leaf.size for leaf in (table.clock, table.residency) if leaf is not None
        ),
        "row_bytes": 4 * table.rows.size,
    }


def _cache_stats(table: Table) -> dict[str, int | float]:
    """The figures of a cached table that no counter has."""
    figures = cache_figures(table, "stats")
    hits = figures["cache_hits"]
    wanted = hits + figures["cache_misses"]
    own = {k: v for k, v in figures.items() if k not in COUNTERS}
    return {**own, "cache_hit_rate": hits / wanted if wanted else 0.0}


def reset_counters(table: Table) -> Table:
    """The same table with all counts but that of its rows at zero.

    For counts of one epoch, or to go on after :func:`check` has raised for
    something that cannot be undone, such as an update with a NaN for a rate.

    Args:
        table: the table; go on with the one returned, which shares its arrays.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "reset", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     acts, ctx = oe.lookup(emb.init(), np.array([7, 8, 7]))
        ...     table = oe.update(emb.init(), ctx, np.ones_like(acts))
        >>> oe.stats(table)["misses"], oe.size(table)
        (3, 2)
        >>> table = oe.reset_counters(table)
        >>> oe.stats(table)["misses"], oe.size(table)
        (0, 2)
    """
    table = check_table(table, "reset_counters")
    if table.spec.is_cached and not isinstance(table.counters, jax.core.Tracer):
        reset_figures(table)
    kept = np.array([COUNTERS.index(n) for n in ("rows", "staged", "slots_used")])
    fresh = jnp.zeros_like(table.counters).at[0, kept].set(table.counters[0, kept])
    return dataclasses.replace(table, counters=fresh)


def check(table: Table) -> None:
    """Raises what went wrong inside compiled steps; waits for the table.

    A step cannot raise without losing the donated table, so it counts. Raises as
    long as the counts stand: ``grow`` clears overflows, :func:`reset_counters`
    all of them.

    Raises:
        TableError: if gradients were dropped because the table was full, table
            ids were out of range, a learning rate was negative or not finite, or
            a context was changed between lookup and update; if ids of a cached
            table were not staged, or it is stale.
        OSError: if the store of a cached table could not read or write; once.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "check", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     oe.check(emb.init())
    """
    raise_counted(table, host_counters(table, "check"))


def raise_counted(table: Table, counters: dict[str, int]) -> None:
    """:func:`check`, of counters that have been read."""
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
        "unstaged": "ids were not in the cache, of lookups and updates together: they "
        "read NaN, and no update that had one of them changed anything; call "
        "oe.stage(table, ids) before lookup, once a step with the ids of all lookups: "
        "what several stages of a step want has to fit together",
        "stale": "operations met a table that its Store has left behind and changed "
        "nothing; use the newest table, on one device, or load_snapshot",
    }
    found = [
        f"{counters[key]} {text}" for key, text in problems.items() if counters[key]
    ]
    if found:
        raise TableError(
            f"table {spec.name!r}: {'; '.join(found)}. To go on regardless: table = "
            "oe.reset_counters(table)."
        )
