"""update: gradients into the rows of an explicit table, in one fused call."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from oneemb_jax import _ffi
from oneemb_jax._compat import out_like
from oneemb_jax.cache import check_one_device
from oneemb_jax.lookup import LookupContext
from oneemb_jax.sparse_grad import (
    as_array,
    check_context,
    flat_operands,
    pairs_of,
)
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import CACHED_ARRAYS, Table, check_table, unshared

#: The arrays of a table that an update writes, in the order of its handler.
_WRITTEN = (
    "index",
    "rows",
    "clock",
    "counters",
    "step",
    "layout_version",
    "generation",
)
_LARGEST = float(np.finfo(np.float32).max)


def _scalar(value: Any, dtype: Any, argument: str) -> jax.Array:
    """A traced or concrete scalar operand."""
    array = as_array(value, argument)
    if dtype == jnp.bool_:
        fits = array.dtype == jnp.bool_
    else:
        fits = array.dtype.kind in "iu" or jnp.issubdtype(array.dtype, jnp.floating)
    if array.shape != () or not fits:
        raise ValueError(
            f"{argument}: shape {array.shape}, dtype {array.dtype}; pass a scalar of "
            f"type {np.dtype(dtype).name}."
        )
    return array.astype(dtype)


def _number(value: Any, least: float, name: str) -> Any:
    """``value``; if it is known here, an error unless float32 holds it."""
    array = _scalar(value, jnp.float32, f"update({name}=...)")
    if isinstance(value, jax.core.Tracer):
        return array
    number = float(value)
    if not least <= number <= _LARGEST:
        wanted = "a finite float32" + (", 0 or more" if least == 0 else "")
        raise ValueError(f"update({name}={number}): use {wanted}.")
    return array


def _learning_rate(table: Table, given: Any) -> jax.Array:
    """The rate of this step: given, of the schedule, or the table's own."""
    if given is not None:
        return _number(given, 0.0, "learning_rate")
    schedule = table.spec.optimizer.learning_rate
    if not callable(schedule):
        return jax.lax.bitcast_convert_type(table.learning_rate[0], jnp.float32)
    rate = schedule(table.step[0].astype(jnp.int32))
    return _scalar(rate, jnp.float32, "update: what the optimizer's schedule returned")


def _reads_before(after: Any, spec: TableSpec) -> list[jax.Array]:
    """Arrays that depend on every read that is to precede the write."""

    def is_context(x: Any) -> bool:
        return isinstance(x, LookupContext)

    arrays = []
    for leaf in jax.tree.leaves(after, is_leaf=is_context):
        if is_context(leaf):
            check_context(leaf, spec, "update", "after")
            arrays.append(leaf.slots)
        else:
            arrays.append(as_array(leaf, "update(after=...)"))
    return arrays


def update(
    table: Table,
    ctx: Any,
    grads: Any = None,
    *,
    learning_rate: Any = None,
    grad_scale: Any = None,
    apply: Any = None,
    after: Any = None,
) -> Table:
    """Applies gradients to the rows that were looked up; one call is one step.

    Sums the gradients of each row in a fixed order, inserts rows that are
    missing (in order of first occurrence, until the table is full) and applies
    the optimizer, in place where the table is donated. Other rows do not move.

    Args:
        table: the table. Donate it to ``jax.jit``, or every step copies it.
        ctx: what ``lookup`` returned; a list of those, for several lookups of
            one table; contexts stacked by ``lax.scan``, for microbatches; a
            :class:`SparseGrad`, or a list of those, for microbatches, too. One that
            was changed on the way, say by ``jax.tree.map``, is counted, and the
            update changes nothing.
        grads: the gradient of the activations, alike: float32, bfloat16 or
            float16. Gradients of microbatches are summed, not averaged.
        learning_rate: scalar, in the place of the optimizer's own. A traced one
            that is negative or not finite is counted, and changes nothing.
        grad_scale: scalar factor of the summed gradients: a clip factor, or one
            over the loss scale. Default 1.
        apply: traced or plain bool; False changes nothing at all, the step
            included. Default True.
        after: contexts of other lookups of the same table in the same compiled
            step, one or a list: those that are there to evaluate, or belong to a
            later update. It orders them before this write; where a read has no
            path to the write, XLA copies the whole table instead. Arrays that
            depend on a read serve too: the dense gradients, where a
            ``jax.checkpoint`` reads again on the way back.

    Returns:
        The next table.

    Raises:
        ValueError: if shapes do not fit, a context is of another table, or a
            plain number is no learning rate or no scale.
        TypeError: if a dtype does not fit.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "update", 2, "float32", "int64", optimizer=oe.sgd(0.5),
        ...     default_initializer=oe.make_constant_initializer(1.0),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = emb.init()
        ...     acts, ctx = oe.lookup(table, np.array([7, 7, 9]))
        ...     table = oe.update(table, ctx, jnp.ones_like(acts))
        ...     print(oe.lookup(table, np.array([7, 9]))[0])
        [[0.  0. ]
         [0.5 0.5]]
    """
    table = check_table(table, "update")
    spec = table.spec
    pairs = pairs_of(ctx, grads, "update")
    lookups = flat_operands(pairs, spec, "update")
    scale = 1.0 if grad_scale is None else grad_scale
    scalars = [
        _learning_rate(table, learning_rate),
        _number(scale, -_LARGEST, "grad_scale"),
        _scalar(True if apply is None else apply, jnp.bool_, "update(apply=...)"),
    ]
    # The lookups' slots and counts are operands, so XLA orders this write after
    # those reads; without that edge it copies the whole table, twice.
    target, names = "oneemb_update", _WRITTEN
    if spec.is_cached:
        check_one_device("update")
        target, names = "oneemb_update_cached", (*CACHED_ARRAYS, "step")
    written = [name for name in names if name != "store_nonce"]
    arrays = [getattr(table, name) for name in names]
    before = [getattr(table, name) for name in written]
    operands = (*arrays, *scalars, *lookups, *_reads_before(after, spec))
    results = _ffi.call(
        target,
        [out_like(operands, leaf.shape, leaf.dtype) for leaf in before],
        *operands,
        aliases={names.index(name): i for i, name in enumerate(written)},
        num_lookups=np.int32(len(pairs)),
        **spec.attributes(),
    )
    new = dataclasses.replace(table, **dict(zip(written, results, strict=True)))
    return unshared(new, table)


def global_norm(ctx: Any, grads: Any = None) -> jax.Array:
    """The norm of the gradient that ``update`` would apply, before ``grad_scale``.

    The gradients of one row are summed first: with repeated ids this is not the
    norm of the activations' gradients. It joins optax's norm of the dense part;
    to clip both to ``max_norm``, also where all gradients are zero::

        norm = jnp.hypot(optax.tree.norm(g_dense), oe.global_norm(ctx, g_acts))
        scale = 1 / jnp.maximum(norm / max_norm, 1)
        g_dense = jax.tree.map(lambda g: g * scale, g_dense)
        table = oe.update(table, ctx, g_acts, grad_scale=scale)

    Never pass a tree that holds a :class:`SparseGrad` to optax: its clip counts
    and scales the ids too.

    Args:
        ctx: as in ``update``.
        grads: as in ``update``.

    Returns:
        float32 scalar. Padding and ids with a bad table id do not count. NaN if a
        context was changed on its way from ``lookup``.

    Raises:
        ValueError: if shapes do not fit.
        TypeError: if a dtype does not fit.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "global_norm", 1, "float32", "int64", optimizer=oe.sgd(0.5),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     acts, ctx = oe.lookup(emb.init(), np.array([7, 7, 9]))
        ...     float(oe.global_norm(ctx, jnp.asarray([[1.0], [2.0], [4.0]])))
        5.0
    """
    pairs = pairs_of(ctx, grads, "global_norm")
    if not pairs:
        return jnp.zeros((), jnp.float32)
    first = pairs[0].context
    if not isinstance(first, LookupContext):
        raise TypeError(
            f"global_norm(ctx=...): got {type(first).__name__}, not the context "
            "that lookup returned."
        )
    operands = tuple(flat_operands(pairs, first.spec, "global_norm"))
    (norm,) = _ffi.call(
        "oneemb_global_norm",
        [out_like(operands, (), np.float32)],
        *operands,
        **first.spec.attributes(),
    )
    return norm
