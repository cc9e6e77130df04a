"""JAX without a library: dense gradients with optax, and sparse by hand."""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import (
    BETA1,
    BETA2,
    EPS,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    Batches,
    Cell,
)


class Rows(NamedTuple):
    """A table and its optimizer state; a field that it lacks is empty."""

    w: jax.Array  # f32[rows, dim]
    first: jax.Array  # Adam's first moment
    second: jax.Array  # its second moment, or Adagrad's sum of squares
    steps: jax.Array  # i32[], Adam's


def _make_rows(cell: Cell) -> Rows:
    shape = (cell.rows, cell.dim)
    w = jax.random.uniform(jax.random.key(0), shape, minval=-0.05, maxval=0.05)
    first = jnp.zeros(shape if cell.optimizer == "adam" else 0)
    second = jnp.zeros(shape if cell.optimizer != "sgd" else 0)
    if cell.optimizer == "adagrad":
        second = second + INITIAL_ACCUMULATOR
    return Rows(w, first, second, jnp.zeros((), jnp.int32))


@dataclasses.dataclass
class _Table:
    """Holds the newest rows; each donated call replaces them."""

    rows: Rows


@functools.lru_cache(maxsize=1)
def _table(cell: Cell) -> _Table:
    """The rows of a cell, shared by the systems here."""
    return _Table(_make_rows(cell))


def _take(w: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(w, ids, axis=0)


def _transform(optimizer: str) -> optax.GradientTransformation:
    if optimizer == "sgd":
        return optax.sgd(LEARNING_RATE)
    if optimizer == "adagrad":
        return optax.adagrad(LEARNING_RATE, INITIAL_ACCUMULATOR, EPS)
    return optax.adam(LEARNING_RATE, BETA1, BETA2, EPS)


def _dense_update(optimizer: str, rows: Rows, ids: jax.Array, g: jax.Array) -> Rows:
    """The gradient as large as the table, then optax on all rows."""
    tx = _transform(optimizer)
    state: Any = jax.eval_shape(tx.init, rows.w)
    if optimizer == "adagrad":
        state = (state[0]._replace(sum_of_squares=rows.second), *state[1:])
    elif optimizer == "adam":
        moments = {"mu": rows.first, "nu": rows.second, "count": rows.steps}
        state = (state[0]._replace(**moments), *state[1:])
    _, pull_back = jax.vjp(lambda w: _take(w, ids), rows.w)
    updates, state = tx.update(pull_back(g)[0], state, rows.w)
    rows = rows._replace(w=rows.w + cast("jax.Array", updates))
    if optimizer == "adagrad":
        return rows._replace(second=state[0].sum_of_squares)
    if optimizer == "adam":
        new = state[0]
        return rows._replace(first=new.mu, second=new.nu, steps=new.count)
    return rows


def _scatter_update(optimizer: str, rows: Rows, ids: jax.Array, g: jax.Array) -> Rows:
    """Each gradient is added where it belongs: SGD only."""
    del optimizer
    return rows._replace(w=rows.w.at[ids].add(-LEARNING_RATE * g))


def _unique_update(optimizer: str, rows: Rows, ids: jax.Array, g: jax.Array) -> Rows:
    """Sums per row, then steps on those rows, written in place."""
    n, size = ids.shape[0], rows.w.shape[0]
    unique, inverse = jnp.unique(ids, return_inverse=True, size=n, fill_value=size)
    g = jax.ops.segment_sum(g, inverse, n)

    def read(x: jax.Array) -> jax.Array:
        return x.at[unique].get(mode="clip", indices_are_sorted=True)

    def write(x: jax.Array, new: jax.Array) -> jax.Array:
        at = x.at[unique]
        return at.set(new, mode="drop", indices_are_sorted=True)

    w = read(rows.w)
    if optimizer == "sgd":
        return rows._replace(w=write(rows.w, w - LEARNING_RATE * g))
    if optimizer == "adagrad":
        second = read(rows.second) + g * g
        w = w - LEARNING_RATE * g / (jnp.sqrt(second) + EPS)
        return rows._replace(w=write(rows.w, w), second=write(rows.second, second))
    steps = rows.steps + 1
    first = BETA1 * read(rows.first) + (1 - BETA1) * g
    second = BETA2 * read(rows.second) + (1 - BETA2) * g * g
    lower = jnp.sqrt(second / (1 - BETA2**steps)) + EPS
    w = w - LEARNING_RATE * first / (1 - BETA1**steps) / lower
    return Rows(
        write(rows.w, w), write(rows.first, first), write(rows.second, second), steps
    )


_lookup = jax.jit(_take)


class _Jax:
    """A table of JAX arrays with one of the updates above."""

    dense = False
    rule = staticmethod(_unique_update)

    def __init__(self, cell: Cell, batches: Batches) -> None:
        self._batches = batches
        self._ids = [jnp.asarray(b, jnp.int32) for b in batches.ids]
        self._grads = jax.device_put(batches.grads)  # no copy: aligned
        self._table = _table(cell)
        rule = functools.partial(self.rule, cell.optimizer)

        def step(rows: Rows, ids: jax.Array, g: jax.Array) -> tuple[Rows, jax.Array]:
            acts = _take(rows.w, ids)
            # A real gradient depends on the activations. Without that, XLA
            # copies the table so that the read need not come before the write.
            acts, g = jax.lax.optimization_barrier((acts, g))
            return rule(rows, ids, g), acts

        self._update = jax.jit(rule, donate_argnums=0)
        self._step = jax.jit(step, donate_argnums=0)

    def _pick(self, k: int) -> jax.Array:
        return self._ids[self._batches.pick(k)]

    def lookup(self, k: int) -> None:
        """One `jnp.take`."""
        _lookup(self._table.rows.w, self._pick(k)).block_until_ready()

    def prepare(self, k: int) -> None:
        """Nothing: the gradient with respect to the rows read is given."""

    def update(self, k: int) -> None:
        """The update alone, in place."""
        self._table.rows = self._update(self._table.rows, self._pick(k), self._grads)
        jax.block_until_ready(self._table.rows)

    def step(self, k: int) -> None:
        """The read and the update, in place, in one program."""
        self._table.rows, acts = self._step(
            self._table.rows, self._pick(k), self._grads
        )
        jax.block_until_ready((self._table.rows, acts))

    def activations(self, k: int) -> np.ndarray:
        """The rows of batch `k`."""
        return np.asarray(_lookup(self._table.rows.w, self._pick(k)))

    def weights(self) -> np.ndarray:
        """All rows."""
        return np.array(self._table.rows.w)

    def close(self) -> None:
        """Forgets the table; memory goes with its last user."""
        _table.cache_clear()


class TakeOptax(_Jax):
    """`jnp.take`, a dense gradient and optax: every row takes a step."""

    dense = True
    rule = staticmethod(_dense_update)


class ScatterAdd(_Jax):
    """`.at[ids].add` of the scaled gradients; SGD only."""

    rule = staticmethod(_scatter_update)


class Unique(_Jax):
    """`jnp.unique`, `segment_sum` and a scatter of whole rows."""
