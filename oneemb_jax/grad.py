"""value_and_grad for losses that call ``lookup`` somewhere inside."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from oneemb_jax._compat import is_jaxpr
from oneemb_jax.lookup import TAPED_LOOKUP, LookupContext, lookup_with_tap
from oneemb_jax.sparse_grad import SparseGrad
from oneemb_jax.table import Table, is_table

_EXPLICIT = (
    "Call acts, ctx = oe.lookup(table, ids) outside of the loss, differentiate the "
    "loss by acts with jax.value_and_grad, and pass ctx and the gradient to "
    "oe.update."
)


def _cannot_follow(what: str) -> str:
    return f"value_and_grad cannot follow a lookup of, or inside, {what}. {_EXPLICIT}"


class _Tape:
    """The lookups of differentiated tables in one trace of a loss.

    A table is known by its array of rows: the very object that the loss was
    called with.
    """

    def __init__(self, tables: Sequence[Table], taps: Sequence[Any] | None) -> None:
        self._numbers = {id(table.rows): i for i, table in enumerate(tables)}
        self._taps = taps
        self.tables: list[int] = []  # number of the table of each lookup
        self.contexts: list[LookupContext] = []
        self.acts: list[jax.ShapeDtypeStruct] = []

    def lookup(self, table: Any, ids: Any, table_ids: Any, dtype: Any) -> Any:
        number = self._numbers.get(id(getattr(table, "rows", None)))
        if number is None:
            return lookup_with_tap(table, ids, table_ids, dtype)
        tap = None if self._taps is None else self._taps[len(self.tables)]
        acts, context = lookup_with_tap(table, ids, table_ids, dtype, tap)
        self.tables.append(number)
        self.contexts.append(context)
        self.acts.append(jax.ShapeDtypeStruct(acts.shape, acts.dtype))
        return acts, context

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        token = TAPED_LOOKUP.set(self.lookup)
        try:
            yield
        finally:
            TAPED_LOOKUP.reset(token)


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(item, "jaxpr", item)
            if is_jaxpr(inner):
                yield inner


#: What a lookup itself is made of; anything else around it hides its context.
_OWN_CALLS = ("custom_vjp_call", "custom_vmap_call", "ffi_call")


def _has_lookup(equation: Any) -> bool:
    if equation.params.get("target_name") == "oneemb_lookup":
        return True
    return any(
        _has_lookup(inside)
        for jaxpr in _inner_jaxprs(equation)
        for inside in jaxpr.eqns
    )


def _lookup_calls(jaxpr: Any, tables: set[Any]) -> list[str]:
    """The calls through which a loss reads any of ``tables``, by name."""
    calls = []
    reached = set(tables)
    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not hasattr(v, "val")]
        if not reached.intersection(inputs):
            continue
        reached.update(equation.outvars)
        if _has_lookup(equation):
            calls.append(equation.primitive.name)
    return calls


def _split(argument: Any) -> tuple[list[Any], list[Table], Callable[..., Any]]:
    """Differentiable leaves, tables, and how to put an argument together again."""
    leaves, structure = jax.tree.flatten(argument, is_leaf=is_table)
    places = [is_table(leaf) for leaf in leaves]

    def join(dense: Sequence[Any], tables: Sequence[Any]) -> Any:
        dense_leaves, table_leaves = iter(dense), iter(tables)
        return jax.tree.unflatten(
            structure,
            [next(table_leaves if place else dense_leaves) for place in places],
        )

    dense = [leaf for leaf, place in zip(leaves, places, strict=True) if not place]
    tables = [leaf for leaf, place in zip(leaves, places, strict=True) if place]
    return dense, tables, join


class _Arguments:
    """The arguments of a loss, taken apart for one call of ``value_and_grad``."""

    def __init__(
        self, fun: Callable[..., Any], nums: tuple[int, ...], args: Any, kwargs: Any
    ) -> None:
        self._fun, self._nums = fun, nums
        self._args, self._kwargs = args, kwargs
        self._parts = [_split(args[i]) for i in nums]
        self.dense = [dense for dense, _, _ in self._parts]
        self.tables = [table for _, tables, _ in self._parts for table in tables]
        for leaf in jax.tree.leaves(self.dense):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise TypeError(
                    f"value_and_grad: cannot differentiate by an argument of dtype "
                    f"{jnp.result_type(leaf)}; name float arguments and tables in "
                    "argnums."
                )
        if len({id(table.rows) for table in self.tables}) < len(self.tables):
            raise ValueError(
                "value_and_grad: the same table stands in two differentiated "
                "arguments; pass it once."
            )

    def join(self, dense: Sequence[Any], tables: Sequence[Any]) -> list[Any]:
        """Puts leaves and tables (or what takes their places) together again."""
        left = iter(tables)
        joined = []
        for leaves, (_, own, join) in zip(dense, self._parts, strict=True):
            joined.append(join(leaves, [next(left) for _ in own]))
        return joined

    def call(
        self, dense: Sequence[Any], tables: Sequence[Table], taps: Any
    ) -> tuple[Any, _Tape]:
        """The loss, with its lookups on a tape."""
        args = list(self._args)
        for i, value in zip(self._nums, self.join(dense, tables), strict=True):
            args[i] = value
        tape = _Tape(tables, taps)
        with tape.recording():
            return self._fun(*args, **self._kwargs), tape


def _shapes_of_lookups(arguments: _Arguments, has_aux: bool) -> list[Any]:
    """Traces the loss once for its lookups; raises on one it cannot follow."""
    tapes: list[_Tape] = []

    def traced(dense: Any, tables: Any) -> Any:
        out, tape = arguments.call(dense, tables, None)
        tapes.append(tape)
        return (out[0] if has_aux else out), tape.contexts

    try:
        jaxpr = jax.make_jaxpr(traced)(arguments.dense, arguments.tables).jaxpr
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(_cannot_follow("another transformation")) from error
    first = len(jax.tree.leaves(arguments.dense))
    calls = _lookup_calls(jaxpr, set(jaxpr.invars[first:]))
    hidden = [name for name in calls if name not in _OWN_CALLS]
    if hidden:
        raise ValueError(_cannot_follow(hidden[0]))
    if len(calls) != len(tapes[-1].tables):
        raise ValueError(_cannot_follow("a table derived from the argument"))
    return tapes[-1].acts


def _check_loss(loss: Any) -> None:
    shape, dtype = jnp.shape(loss), jnp.result_type(loss)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"value_and_grad: the loss has shape {shape} and dtype {dtype}; return "
            "a scalar float."
        )


def value_and_grad(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Like ``jax.value_and_grad``, for losses that call ``lookup`` inside.

    In the place of each :class:`Table` in the chosen arguments the gradient
    holds a :class:`SparseGrad`, for ``update(table, sparse_grad)``: one entry a
    lookup, never an array as large as the table.

    Args:
        fun: the loss; a scalar, or (scalar, aux). Its lookups must stand outside
            of scan, while, cond, checkpoint and inner jit.
        argnums: which arguments to differentiate by: floats, tables, or trees of
            both.
        has_aux: whether ``fun`` returns (loss, aux).

    Returns:
        A function with the arguments of ``fun`` that returns (value, gradient),
        the gradient shaped as in JAX.

    Raises:
        ValueError: when called, if a lookup cannot be followed; never a silent
            zero.
        TypeError: when called, if the loss is no scalar float, or an argument
            cannot be differentiated by.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "value_and_grad", 2, "float32", "int64", optimizer=oe.sgd(0.5),
        ...     default_initializer=oe.make_constant_initializer(1.0),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     table = emb.init()
        ...     def loss(w, table):
        ...         acts, _ = oe.lookup(table, np.array([3, 4]))
        ...         return w * acts.sum()
        ...     value, (g_w, g_table) = oe.value_and_grad(loss, (0, 1))(2.0, table)
        ...     table = oe.update(table, g_table)
        >>> float(value), float(g_w), oe.get_rows(table, [3]).embedding
        (8.0, 4.0, array([[0., 0.]], dtype=float32))
    """
    nums = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if any(not -len(args) <= i < len(args) for i in nums):
            raise ValueError(
                f"value_and_grad(argnums={argnums}): the call has {len(args)} "
                "positional arguments."
            )
        positions = tuple(i % len(args) for i in nums)
        arguments = _Arguments(fun, positions, args, kwargs)
        shapes = _shapes_of_lookups(arguments, has_aux)
        taps = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
        numbers: list[int] = []

        def loss_of(dense: Any, taps: Any) -> Any:
            out, tape = arguments.call(dense, arguments.tables, taps)
            loss, aux = out if has_aux else (out, None)
            _check_loss(loss)
            numbers[:] = tape.tables
            return loss, (aux, tape.contexts)

        loss, pullback, (aux, contexts) = jax.vjp(
            loss_of, arguments.dense, taps, has_aux=True
        )
        dense, sparse = pullback(jnp.ones_like(loss))
        grads = arguments.join(
            dense, _by_table(len(arguments.tables), numbers, contexts, sparse)
        )
        value = (loss, aux) if has_aux else loss
        return value, (grads[0] if isinstance(argnums, int) else tuple(grads))

    return wrapped


def _by_table(
    num_tables: int,
    numbers: Sequence[int],
    contexts: Sequence[LookupContext],
    grads: Sequence[jax.Array],
) -> list[SparseGrad]:
    """One SparseGrad a table, its lookups in the order in which they ran."""
    lookups = list(zip(numbers, contexts, grads, strict=True))
    return [
        SparseGrad(
            tuple(context for number, context, _ in lookups if number == i),
            tuple(grad for number, _, grad in lookups if number == i),
        )
        for i in range(num_tables)
    ]
