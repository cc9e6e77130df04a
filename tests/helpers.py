"""What the tests share: small tables, and proof that a step copies no table."""

import itertools
import re
from typing import Any

import jax
import numpy as np

import oneemb_jax as oe
from oneemb_jax.cache import init_cached
from oneemb_jax.cached_options import CachedStoreOptions
from oneemb_jax.table import TableSpec, init_table

_names = itertools.count()


def make_spec(dim: int | tuple[int, ...] = 4, **changes: Any) -> TableSpec:
    """A spec of one table, uniform in [-1, 1), SGD with rate 0.5."""
    dims = dim if isinstance(dim, tuple) else (dim,)
    num_tables = changes.pop("num_tables", 1)
    initializer = changes.pop("initializer", oe.make_uniform_initializer(-1.0, 1.0))
    options: dict[str, Any] = {
        "name": f"test_{next(_names)}",
        "column_dims": dims,
        "key_type": "int64",
        "initializers": ((initializer,) * len(dims),) * num_tables,
        "optimizer": oe.sgd(0.5),
        "capacity": 64,
        "seed": 3,
    }
    return TableSpec(**{**options, **changes})


def make_table(dim: int | tuple[int, ...] = 4, **changes: Any) -> oe.Table:
    """An empty table; arguments as for make_spec."""
    return init_table(make_spec(dim, **changes))


def make_cached(
    folder: Any,
    slots: int = 64,
    dim: int | tuple[int, ...] = 4,
    kind: str = "ssd",
    host_cache_mb: float = 0,
    **changes: Any,
) -> oe.Table:
    """An empty cached table with so many slots; its Store is in ``folder``."""
    store = CachedStoreOptions(
        kind, 1.0, str(folder), host_cache_budget_mb=host_cache_mb
    )
    return init_cached(make_spec(dim, store=store, capacity=slots, **changes))


def train(table: oe.Table, ids: Any, grads: Any, **options: Any) -> oe.Table:
    """One lookup and one update; of a cached table, after staging."""
    table_ids = options.pop("table_ids", None)
    table = oe.stage(table, ids, table_ids)
    _, ctx = oe.lookup(table, ids, table_ids)
    return oe.update(table, ctx, np.asarray(grads), **options)


def all_rows(table: oe.Table) -> dict[int, list[float]]:
    """The rows of a table by their ids."""
    return {
        int(i): row.tolist()
        for ids, _, rows in oe.items(table)
        for i, row in zip(ids, rows, strict=True)
    }


def bits(tree: Any) -> list[bytes]:
    """Every bit of a pytree of arrays."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def table_bits(table: oe.Table) -> list[bytes]:
    """Every bit of a table that means something: rows that are present."""
    rows = oe.size(table)
    used = [np.asarray(table.rows[:rows]), np.asarray(table.clock[:rows])]
    small = [table.index, table.counters, table.step, table.layout_version]
    return bits([*used, *small])


def table_copies(text: str, table: oe.Table) -> list[str]:
    """Instructions of optimised HLO that make another array as large as a table's.

    A copy of a table-sized buffer, or any fresh value of such a shape: a
    broadcast, a gather, an addition. Custom calls write in place by their
    aliases, and tuples and parameters only name what is there.
    """
    harmless = (
        "parameter",
        "custom-call",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "while",
        "conditional",
        "call",
    )
    shapes = {
        f"u32[{','.join(map(str, leaf.shape))}]"
        for leaf in (table.index, table.rows, table.clock, table.residency)
        if leaf is not None
    }
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?\S+ = (\S+?)\{\S*\s+([\w-]+)\(", line)
        if match and match[1] in shapes and match[2] not in harmless:
            found.append(line.strip())
    return found


def assert_no_table_copy(function: Any, table: oe.Table, *args: Any) -> None:
    """Compiles ``function(table, *args)`` with the table donated, and looks."""
    step = jax.jit(function, donate_argnums=0)
    text = step.lower(table, *args).compile().as_text()
    assert text is not None
    copies = table_copies(text, table)
    assert not copies, "\n".join(copies)
