"""Lookups with the gradients of their activations, in every form they come in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax.lookup import FLOATS, NUM_COUNTS, LookupContext
from oneemb_jax.spec import TableSpec


@dataclasses.dataclass(frozen=True)
class SparseGrad:
    """The gradient of a table: lookups, and the gradients of their activations.

    What :func:`oneemb_jax.value_and_grad` hands back in the place of a table.
    Never as wide as the table. Pass it to ``update(table, sparse_grad)``.

    A pytree, whose leaves include the ids: ``jax.tree.map``, or optax on a tree
    that holds it, would change those too, and ``update`` refuses what comes out.
    Scale all gradients by ``update(..., grad_scale=)``, see
    :func:`oneemb_jax.global_norm`; :meth:`map` changes the gradients alone.

    Attributes:
        contexts: one a lookup.
        grads: one a lookup, of the shape of its activations.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "sparse_grad", 4, "float32", "int64", optimizer=oe.sgd(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = emb.init()
        ...     loss = lambda table: 3 * oe.lookup(table, np.array([7]))[0].sum()
        ...     _, grad = oe.value_and_grad(loss)(table)
        >>> grad.grads[0].tolist()
        [[3.0, 3.0, 3.0, 3.0]]
        >>> grad.map(lambda g: jnp.clip(g, -1, 1)).grads[0].tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    contexts: tuple[LookupContext, ...]
    grads: tuple[jax.Array, ...]

    def map(self, function: Callable[[jax.Array], jax.Array]) -> SparseGrad:
        """The same lookups, with ``function`` applied to each gradient.

        Args:
            function: from one array of gradients to another of its shape.
        """
        return SparseGrad(self.contexts, tuple(map(function, self.grads)))


jax.tree_util.register_dataclass(
    SparseGrad, data_fields=["contexts", "grads"], meta_fields=[]
)


class Pair(NamedTuple):
    """One lookup, or a stack of microbatches, and its gradient."""

    context: LookupContext
    grad: jax.Array


def pairs_of(context: Any, grads: Any, call: str) -> list[Pair]:
    """Contexts with their gradients, whatever form they were given in."""
    if grads is None and _is_list(context) and _are_sparse_grads(context):
        return [pair for each in context for pair in pairs_of(each, None, call)]
    if isinstance(context, SparseGrad):
        if grads is not None:
            raise ValueError(f"{call}(grads=...): a SparseGrad holds its gradients.")
        contexts, gradients = context.contexts, context.grads
    elif isinstance(context, LookupContext) and grads is not None:
        contexts, gradients = (context,), (grads,)
    elif _is_list(context) and _is_list(grads):
        contexts, gradients = tuple(context), tuple(grads)
    else:
        raise TypeError(
            f"{call}(ctx=...): got {type(context).__name__} with gradients of type "
            f"{type(grads).__name__}; pass the context of a lookup and the gradient "
            "of its activations, a list of each, a SparseGrad, or a list of those."
        )
    # A loss that reads no row has an empty SparseGrad; an empty list is a mistake.
    empty = not contexts and not isinstance(context, SparseGrad)
    if len(contexts) != len(gradients) or empty:
        raise ValueError(
            f"{call}: {len(contexts)} lookups with {len(gradients)} gradients; pass "
            "one gradient a lookup, and at least one lookup."
        )
    return [Pair(*pair) for pair in zip(contexts, gradients, strict=True)]


def _is_list(x: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(x, Sequence) and not isinstance(x, str | bytes)


def _are_sparse_grads(items: Sequence[Any]) -> bool:
    return bool(items) and all(isinstance(item, SparseGrad) for item in items)


def check_context(context: Any, spec: TableSpec, call: str, argument: str) -> None:
    """An error unless it is what ``lookup`` returned for a table of this spec."""
    where = f"{call}({argument}=...)"
    if not isinstance(context, LookupContext):
        raise TypeError(
            f"{where}: got {type(context).__name__}, not the context that lookup "
            "returned."
        )
    if context.spec != spec:
        raise ValueError(
            f"{where}: the context is of table {context.spec.name!r}, which differs "
            f"from table {spec.name!r} in {context.spec.differences(spec)}; pass a "
            "context of this table."
        )
    stack, n = context.counts.shape[:-1], math.prod(context.batch_shape)
    wanted = {
        "ids": ((*stack, n, spec.id_words), np.uint32),
        "table_ids": ((*stack, _period(context, n)), np.int32),
        "slots": ((*stack, n), np.int32),
        "layout_version": ((*stack, 2), np.uint32),
        "counts": ((*stack, NUM_COUNTS), np.uint32),
    }
    for name, (shape, dtype) in wanted.items():
        array = getattr(context, name)
        if array.dtype != dtype:
            raise TypeError(
                f"{where}: {name} have dtype {array.dtype}, not the "
                f"{np.dtype(dtype).name} that lookup returned. Change gradients only: "
                "grad_scale=, or SparseGrad.map."
            )
        if array.shape != shape:
            raise ValueError(
                f"{where}: {name} have shape {array.shape}, not {shape}; stack or "
                "slice contexts whole, by jax.tree.map."
            )


def _period(context: LookupContext, n: int) -> int:
    """Table ids of a microbatch of n ids: what is there, if it divides n."""
    period = context.table_ids.shape[-1]
    return period if n % max(period, 1) == 0 else math.gcd(period, n)


def _check_grad(context: LookupContext, grad: Any, call: str) -> jax.Array:
    """The gradient of one lookup, if it fits."""
    array = as_array(grad, f"{call}(grads=...)")
    dim = context.spec.embedding_dim
    wanted = (*context.microbatches, *context.batch_shape, dim)
    if array.dtype.name not in FLOATS:
        raise TypeError(
            f"{call}(grads=...): dtype {array.dtype}; use one of {', '.join(FLOATS)}."
        )
    if array.shape != wanted:
        raise ValueError(
            f"{call}(grads=...): shape {array.shape}, but the lookup's activations "
            f"have shape {wanted}."
        )
    return array


def as_array(value: Any, argument: str) -> jax.Array:
    """``value`` as an array, or a TypeError that names the argument."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"{argument}: {type(value).__name__} {value!r:.40} is no array of numbers."
        ) from error


def flat_operands(pairs: Iterable[Pair], spec: TableSpec, call: str) -> list[jax.Array]:
    """Six arrays a lookup, each with one leading axis of microbatches."""
    contexts, grads = [], []
    for context, grad in pairs:
        check_context(context, spec, call, "ctx")
        contexts.append(context)
        grads.append(_check_grad(context, grad, call))
    if len({grad.dtype for grad in grads}) > 1:
        # The kernels sum in float32, to which both narrow types widen exactly.
        grads = [grad.astype(jnp.float32) for grad in grads]
    operands: list[jax.Array] = []
    for context, grad in zip(contexts, grads, strict=True):
        k = math.prod(context.microbatches)
        n = math.prod(context.batch_shape)
        operands += [
            context.ids.reshape(k, n, spec.id_words),
            context.table_ids.reshape(k, context.table_ids.shape[-1]),
            context.slots.reshape(k, n),
            context.layout_version.reshape(k, 2),
            context.counts.reshape(k, NUM_COUNTS),
            grad.reshape(k, n, spec.embedding_dim),
        ]
    return operands
