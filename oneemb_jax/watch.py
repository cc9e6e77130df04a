"""Counts of a table, read a few steps late, so that no step waits for the host."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from oneemb_jax.counters import host_counters, raise_counted, stats_of
from oneemb_jax.table import Table, TableError, check_table

#: Steps that the host may be ahead of the counts it waits for.
STEPS_IN_FLIGHT = 2
#: Arrays up to this size are copied; rows and index never are.
_SMALL_BYTES = 4096
#: Rates of ``oe.stats``, where it has them, and the counts they are made of.
_RATES = {
    "hit_rate": ("hits", "misses"),
    "cache_hit_rate": ("cache_hits", "cache_misses"),
}


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
            TableError, OSError: what ``oe.check`` would have raised then.
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

    def words(self) -> list[str]:
        """The rate that matters, for a card: of the cache, where there is one."""
        told = self._stats
        rates = [rate for rate in reversed(_RATES) if rate in told]
        if not rates:
            return []
        lately, whole = told[f"recent_{rates[0]}"], told[rates[0]]
        stalls = f", {told['stalls']} stalls" if "stalls" in told else ""
        name = rates[0].replace("_", " ")
        return [f"{name} {lately:.1%} of late, {whole:.1%} in all{stalls}"]

    def _read(self, table: Table) -> None:
        counters = host_counters(table, "watch", late=True)
        now = stats_of(table, counters)
        recent = {
            f"recent_{rate}": _rate_since(self._stats, now, *counts)
            for rate, counts in _RATES.items()
            if rate in now
        }
        self._stats = now | recent
        try:
            raise_counted(table, counters)
        except TableError:
            self._pending.clear()  # they would say the same again
            raise


def _rate_since(before: Any, now: Any, hits: str, misses: str) -> float:
    """Share of hits since ``before``; of all, if the counters were reset."""
    new = [now[key] - before.get(key, 0) for key in (hits, misses)]
    if min(new) < 0:
        new = [now[hits], now[misses]]
    return new[0] / sum(new) if sum(new) else 0.0
