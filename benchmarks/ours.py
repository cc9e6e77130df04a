"""oneemb_jax: lookup and update in one jitted, donated step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from cells import (
    BETA1,
    BETA2,
    EPS,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    Batches,
    Cell,
)

import oneemb_jax as oe

_INSERT = 1 << 18  # rows written at once while the table is filled
_names = itertools.count()


def keys_of(ids: np.ndarray) -> np.ndarray:  # i64[n]
    """Row numbers as ids spread over all 64 bits.

    The peers need ids that are row numbers. A hash table does not, and must not
    gain from it either.
    """
    return (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def _make_optimizer(name: str) -> oe.Optimizer:
    if name == "sgd":
        return oe.sgd(LEARNING_RATE)
    if name == "adagrad":
        return oe.adagrad(
            LEARNING_RATE, initial_accumulator_value=INITIAL_ACCUMULATOR, eps=EPS
        )
    return oe.adam(LEARNING_RATE, beta1=BETA1, beta2=BETA2, eps=EPS)


def make_table(cell: Cell) -> oe.Table:
    """A table that holds all rows of the cell, and is full."""
    with oe.MultiTableEmbedding(
        f"benchmark_{next(_names)}",
        cell.dim,
        jnp.float32,
        np.int64,
        default_initializer=oe.make_uniform_initializer(-0.05, 0.05),
        store_options=oe.make_device_mem_store_options(capacity=cell.rows),
        optimizer=_make_optimizer(cell.optimizer),
    ) as embedding:
        table = embedding.init()
    for start in range(0, cell.rows, _INSERT):
        keys = keys_of(np.arange(start, min(start + _INSERT, cell.rows)))
        rows = oe.get_rows(table, keys).embedding
        table = oe.set_rows(table, keys, rows)
    return table


@jax.jit
def _lookup(table: oe.Table, ids: jax.Array) -> tuple[jax.Array, oe.LookupContext]:
    return oe.lookup(table, ids)


def _apply(table: oe.Table, ctx: oe.LookupContext, grads: jax.Array) -> oe.Table:
    return oe.update(table, ctx, grads)


def _both(
    table: oe.Table, ids: jax.Array, grads: jax.Array
) -> tuple[oe.Table, jax.Array]:
    acts, ctx = oe.lookup(table, ids)
    return oe.update(table, ctx, grads), acts


_update = jax.jit(_apply, donate_argnums=0)
_step = jax.jit(_both, donate_argnums=0)


class Ours:
    """One table of int64 ids, every id of the batches in it."""

    dense = False

    def __init__(self, cell: Cell, batches: Batches) -> None:
        self._cell = cell
        self._batches = batches
        self._ids = [jnp.asarray(oe.pack_ids(keys_of(b))) for b in batches.ids]
        self._grads = jax.device_put(batches.grads)  # no copy: aligned
        self._table = make_table(cell)
        self._ctx: oe.LookupContext | None = None

    def _pick(self, k: int) -> jax.Array:
        return self._ids[self._batches.pick(k)]

    def lookup(self, k: int) -> None:
        """Probes and gathers; the context is made too."""
        jax.block_until_ready(_lookup(self._table, self._pick(k)))

    def prepare(self, k: int) -> None:
        """The lookup whose context `update` takes."""
        acts, self._ctx = _lookup(self._table, self._pick(k))
        acts.block_until_ready()

    def update(self, k: int) -> None:
        """Sums gradients by row and applies the optimizer, in place."""
        if self._ctx is None:
            raise RuntimeError(f"update({k}) before prepare({k})")
        self._table = _update(self._table, self._ctx, self._grads)
        jax.block_until_ready(self._table)
        self._ctx = None

    def step(self, k: int) -> None:
        """Both, in one program, the table in place."""
        self._table, acts = _step(self._table, self._pick(k), self._grads)
        jax.block_until_ready((self._table, acts))

    def activations(self, k: int) -> np.ndarray:
        """The rows of batch `k`."""
        return np.asarray(_lookup(self._table, self._pick(k))[0])

    def weights(self) -> np.ndarray:
        """All rows."""
        return oe.get_rows(self._table, keys_of(np.arange(self._cell.rows))).embedding

    def close(self) -> None:
        """Says what went wrong in the table, if anything did."""
        oe.check(self._table)
