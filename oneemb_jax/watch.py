"""Counts of a table, read a few steps late, so that no step waits for the host."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from oneemb_jax.counters import raise_counted, stats
from oneemb_jax.table import Table, check_table

#: Steps that the host may be ahead of the counts it waits for.
STEPS_IN_FLIGHT = 2
#: Arrays up to this size are copied; rows and index never are.
_SMALL_BYTES = 4096


@jax.jit
def _copies(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.copy(array) for array in arrays]


def without_rows(table: Table) -> Table:
    """The table's small arrays, copied, and the shapes of the others.

    Waits for nothing, and outlives the table, whose own arrays the next step takes.
    """
    leaves, tree = jax.tree.flatten(table)
    small = [leaf for leaf in leaves if leaf.nbytes <= _SMALL_BYTES]
    copies = iter(_copies(small))
    kept = [
        next(copies)
        if leaf.nbytes <= _SMALL_BYTES
        else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, kept)


@dataclasses.dataclass(frozen=True)
class _Look:
    """A table's counts, perhaps still being computed."""

    call: int
    table: Table


class TableWatch:
    """Follows the counts of one embedding's table.

    Args:
        every: calls from one look at the table to the next.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._calls = 0
        self._pending: collections.deque[_Look] = collections.deque()
        self._stats: dict[str, int | float] = {}

    def __call__(self, table: Any) -> None:
        """Takes the counts along, and reads those of ``STEPS_IN_FLIGHT`` calls ago.

        Raises:
            TableError: what ``oe.check`` would have raised then.
        """
        if self._calls % self._every == 0:
            table = check_table(table, "watch")
            if isinstance(table.counters, jax.core.Tracer):
                raise TypeError(
                    "watch(table): the table is being traced; call it outside of jit, "
                    "after the step."
                )
            self._pending.append(_Look(self._calls, without_rows(table)))
        self._calls += 1
        while self._pending and self._pending[0].call + STEPS_IN_FLIGHT < self._calls:
            self._read(self._pending.popleft().table)

    def stats(self) -> dict[str, int | float]:
        """``oe.stats`` of the newest counts read; {} before the first."""
        return self._stats

    def _read(self, table: Table) -> None:
        now = stats(table)
        lately = {key: now[key] - self._stats.get(key, 0) for key in ("hits", "misses")}
        if min(lately.values()) < 0:  # the counters were reset
            lately = {key: now[key] for key in lately}
        looked_up = sum(lately.values())
        recent = lately["hits"] / looked_up if looked_up else 0.0
        self._stats = {**now, "recent_hit_rate": recent}
        try:
            raise_counted(table)
        except Exception:
            self._pending.clear()  # they would say the same again
            raise
