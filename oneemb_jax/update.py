"""update: gradients into the rows of an explicit table, in one fused call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from oneemb_jax import _ffi
from oneemb_jax._compat import out_like
from oneemb_jax.lookup import FLOATS, NUM_COUNTS, LookupContext
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import Table, check_table

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


@dataclasses.dataclass(frozen=True)
class SparseGrad:
    """The gradient of a table: lookups, and the gradients of their activations.

    What :func:`oneemb_jax.value_and_grad` hands back in the place of a table.
    Never as wide as the table. Pass it to ``update(table, sparse_grad)``.

    Attributes:
        contexts: one a lookup.
        grads: one a lookup, of the shape of its activations.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "sparse_grad", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = emb.init()
        ...     loss = lambda table: oe.lookup(table, np.array([7]))[0].sum()
        ...     _, grad = oe.value_and_grad(loss)(table)
        >>> type(grad).__name__, grad.grads[0].tolist()
        ('SparseGrad', [[1.0, 1.0, 1.0, 1.0]])
    """

    contexts: tuple[LookupContext, ...]
    grads: tuple[jax.Array, ...]


jax.tree_util.register_dataclass(
    SparseGrad, data_fields=["contexts", "grads"], meta_fields=[]
)


def _scalar(value: Any, dtype: Any, name: str, call: str) -> jax.Array:
    """A traced or concrete scalar operand."""
    array = jnp.asarray(value)
    if dtype == jnp.bool_:
        fits = array.dtype == jnp.bool_
    else:
        fits = array.dtype.kind in "iu" or jnp.issubdtype(array.dtype, jnp.floating)
    if array.shape != () or not fits:
        raise ValueError(
            f"{call}({name}=...): shape {array.shape}, dtype {array.dtype}; pass a "
            f"scalar of type {np.dtype(dtype).name}."
        )
    return array.astype(dtype)


def _learning_rate(table: Table, given: Any) -> jax.Array:
    """The rate of this step: given, of the schedule, or the table's own."""
    if given is None:
        schedule = table.spec.optimizer.learning_rate
        if not callable(schedule):
            return jax.lax.bitcast_convert_type(table.learning_rate[0], jnp.float32)
        given = schedule(table.step[0].astype(jnp.int32))
    elif not isinstance(given, jax.core.Tracer):
        rate = float(given)
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"update(learning_rate={rate}): use a finite number, 0 or more."
            )
    return _scalar(given, jnp.float32, "learning_rate", "update")


def _pairs(
    context: Any, grads: Any, call: str
) -> list[tuple[LookupContext, jax.Array]]:
    """Contexts with their gradients, whatever form they were given in."""
    if isinstance(context, SparseGrad):
        if grads is not None:
            raise ValueError(f"{call}(grads=...): a SparseGrad holds its gradients.")
        contexts, gradients = context.contexts, context.grads
    elif isinstance(context, LookupContext) and grads is not None:
        contexts, gradients = (context,), (grads,)
    elif isinstance(context, Sequence) and isinstance(grads, Sequence):
        contexts, gradients = tuple(context), tuple(grads)
    else:
        raise TypeError(
            f"{call}(ctx=...): got {type(context).__name__} with gradients of type "
            f"{type(grads).__name__}; pass the context of a lookup and the gradient "
            "of its activations, a list of each, or a SparseGrad."
        )
    if len(contexts) != len(gradients) or not contexts:
        raise ValueError(
            f"{call}: {len(contexts)} lookups with {len(gradients)} gradients; pass "
            "one gradient a lookup, and at least one lookup."
        )
    return list(zip(contexts, gradients, strict=True))


def _check_pair(context: Any, grad: Any, spec: TableSpec, call: str) -> jax.Array:
    """The gradient of one lookup, if it fits."""
    if not isinstance(context, LookupContext):
        raise TypeError(
            f"{call}(ctx=...): got {type(context).__name__}, not the context that "
            "lookup returned."
        )
    if context.spec != spec:
        raise ValueError(
            f"{call}(ctx=...): the context is of table {context.spec.name!r}, which "
            f"differs from table {spec.name!r}; pass a context of this table."
        )
    array = jnp.asarray(grad)
    wanted = (*context.microbatches, *context.batch_shape, spec.embedding_dim)
    if array.shape != wanted:
        raise ValueError(
            f"{call}(grads=...): shape {array.shape}, but the lookup's activations "
            f"have shape {wanted}."
        )
    if array.dtype.name not in FLOATS:
        raise TypeError(
            f"{call}(grads=...): dtype {array.dtype}; use one of {', '.join(FLOATS)}."
        )
    return array


def _flat_operands(
    pairs: list[tuple[LookupContext, jax.Array]], spec: TableSpec, call: str
) -> list[jax.Array]:
    """Six arrays a lookup, each with one leading axis of microbatches."""
    operands: list[jax.Array] = []
    dtypes: set[str] = set()
    for context, grad in pairs:
        array = _check_pair(context, grad, spec, call)
        dtypes.add(array.dtype.name)
        k = math.prod(context.microbatches)
        n = math.prod(context.batch_shape)
        operands += [
            context.ids.reshape(k, n, spec.id_words),
            context.table_ids.reshape(k, context.table_ids.shape[-1]),
            context.slots.reshape(k, n),
            context.layout_version.reshape(k, 2),
            context.counts.reshape(k, NUM_COUNTS),
            array.reshape(k, n, spec.embedding_dim),
        ]
    if len(dtypes) > 1:
        raise TypeError(
            f"{call}(grads=...): dtypes {sorted(dtypes)}; use one dtype in an update."
        )
    return operands


def update(
    table: Table,
    ctx: Any,
    grads: Any = None,
    *,
    learning_rate: Any = None,
    grad_scale: Any = None,
    apply: Any = None,
) -> Table:
    """Applies gradients to the rows that were looked up; one call is one step.

    Sums the gradients of each row in a fixed order, inserts rows that are
    missing (in order of first occurrence, until the table is full) and applies
    the optimizer, in place where the table is donated. Other rows do not move.

    Args:
        table: the table. Donate it to ``jax.jit``, or every step copies it.
        ctx: what ``lookup`` returned; a list of those, for several lookups of
            one table; contexts stacked by ``lax.scan``, for microbatches; or a
            :class:`SparseGrad`.
        grads: the gradient of the activations, alike: float32, bfloat16 or
            float16. Gradients of microbatches are summed, not averaged.
        learning_rate: scalar, in the place of the optimizer's own. A traced one
            that is negative or not finite is counted, and changes nothing.
        grad_scale: scalar factor of the summed gradients: a clip factor, or one
            over the loss scale. Default 1.
        apply: traced or plain bool; False changes nothing at all, the step
            included. Default True.

    Returns:
        The next table.

    Raises:
        ValueError: if shapes do not fit, a context is of another table, or a
            plain number is no learning rate.
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
    lookups = _flat_operands(_pairs(ctx, grads, "update"), spec, "update")
    scalars = [
        _learning_rate(table, learning_rate),
        _scalar(
            1.0 if grad_scale is None else grad_scale,
            jnp.float32,
            "grad_scale",
            "update",
        ),
        _scalar(True if apply is None else apply, jnp.bool_, "apply", "update"),
    ]
    # The lookups' slots and counts are operands, so XLA orders this write after
    # those reads; without that edge it copies the whole table, twice.
    written = [getattr(table, name) for name in _WRITTEN]
    operands = (*written, *scalars, *lookups)
    results = _ffi.call(
        "oneemb_update",
        [out_like(operands, array.shape, array.dtype) for array in written],
        *operands,
        aliases={i: i for i in range(len(written))},
        **spec.attributes(),
    )
    return dataclasses.replace(table, **dict(zip(_WRITTEN, results, strict=True)))


def global_norm(ctx: Any, grads: Any = None) -> jax.Array:
    """The norm of the gradient that ``update`` would apply, before ``grad_scale``.

    The gradients of one row are summed first: with repeated ids this is not the
    norm of the activations' gradients. It joins optax's norm of the dense part::

        norm = jnp.hypot(optax.tree.norm(dense_grads), oe.global_norm(ctx, g_acts))
        scale = jnp.minimum(1.0, max_norm / norm)

    Args:
        ctx: as in ``update``.
        grads: as in ``update``.

    Returns:
        float32 scalar. Padding and ids with a bad table id do not count.

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
    pairs = _pairs(ctx, grads, "global_norm")
    first = pairs[0][0]
    if not isinstance(first, LookupContext):
        raise TypeError(
            f"global_norm(ctx=...): got {type(first).__name__}, not the context "
            "that lookup returned."
        )
    operands = tuple(_flat_operands(pairs, first.spec, "global_norm"))
    (norm,) = _ffi.call(
        "oneemb_global_norm",
        [out_like(operands, (), np.float32)],
        *operands,
        **first.spec.attributes(),
    )
    return norm
