"""value_and_grad for losses that call ``lookup`` somewhere inside."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from oneemb_jax._compat import is_jaxpr, varying_axes, zeros_over
from oneemb_jax.lookup import (
    CACHED_LOOKUP_TARGET,
    LOOKUP_TARGET,
    TAPED_LOOKUP,
    LookupContext,
    lookup_with_tap,
)
from oneemb_jax.sparse_grad import SparseGrad
from oneemb_jax.table import Table, check_table, is_table

_EXPLICIT = (
    "Call acts, ctx = oe.lookup(table, ids) outside of the loss, differentiate the "
    "loss by acts with jax.value_and_grad, and pass ctx and the gradient to "
    "oe.update."
)


_UNSTEADY = (
    "value_and_grad traces the loss twice, and its lookups were not the same both "
    "times; make the loss a function of its arguments alone."
)


def _cannot_follow(what: str) -> str:
    return f"value_and_grad cannot follow a lookup of, or inside, {what}. {_EXPLICIT}"


class _Entry(NamedTuple):
    """One lookup of a loss, as the first trace saw it."""

    table: int | None  # number of the differentiated table; None: a constant
    shape: tuple[int, ...]  # of the activations
    dtype: Any
    axes: tuple[Any, ...]  # of a mesh, over which they vary


def _key(table: Any) -> int:
    return id(getattr(table, "rows", None))


class _Recorder:
    """Takes down the lookups of a loss, in the order in which they run.

    A table is known by its array of rows. The traced one is told apart from the
    one that the call was given, which the loss may close over as a constant.
    """

    def __init__(self, traced: Sequence[Table], given: Sequence[Table]) -> None:
        self._numbers: dict[int, int | None] = {_key(table): None for table in given}
        self._numbers |= {_key(table): i for i, table in enumerate(traced)}
        self.entries: list[_Entry] = []
        self.contexts: list[LookupContext] = []

    def lookup(self, table: Any, ids: Any, table_ids: Any, dtype: Any) -> Any:
        acts, context = lookup_with_tap(table, ids, table_ids, dtype)
        if _key(table) in self._numbers:
            number = self._numbers[_key(table)]
            entry = _Entry(number, acts.shape, acts.dtype, varying_axes(acts))
            self.entries.append(entry)
            self.contexts.append(context)
        return acts, context


class _Player:
    """Repeats the lookups of a recording, each with a tap for its gradient."""

    def __init__(
        self, tables: Sequence[Table], entries: Sequence[_Entry], taps: Sequence[Any]
    ) -> None:
        self._keys = {_key(table) for table in tables}
        self._entries = iter(entries)
        self._taps = iter(taps)
        self.contexts: list[LookupContext] = []

    def lookup(self, table: Any, ids: Any, table_ids: Any, dtype: Any) -> Any:
        if _key(table) not in self._keys:
            return lookup_with_tap(table, ids, table_ids, dtype)
        entry = next(self._entries, None)
        if entry is None:
            raise ValueError(_UNSTEADY)
        if entry.table is None:
            return lookup_with_tap(table, ids, table_ids, dtype)
        tap = next(self._taps)
        acts, context = lookup_with_tap(table, ids, table_ids, dtype, tap)
        if (acts.shape, acts.dtype) != (entry.shape, entry.dtype):
            raise ValueError(_UNSTEADY)
        self.contexts.append(context)
        return acts, context

    def check_end(self) -> None:
        if next(self._entries, None) is not None:
            raise ValueError(_UNSTEADY)


@contextlib.contextmanager
def _seen_by(lookup: Callable[..., Any]) -> Iterator[None]:
    """Lets ``lookup`` see the lookups of a loss."""
    token = TAPED_LOOKUP.set(lookup)
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
    if equation.params.get("target_name") in (LOOKUP_TARGET, CACHED_LOOKUP_TARGET):
        return True
    return any(
        _has_lookup(inside)
        for jaxpr in _inner_jaxprs(equation)
        for inside in jaxpr.eqns
    )


def _is_own(equation: Any) -> bool:
    """Whether a call with a lookup in it is what a lookup is made of.

    A custom_vjp around another one is the user's, whose gradient is what that says.
    """
    return equation.primitive.name in _OWN_CALLS and not any(
        inside.primitive.name == "custom_vjp_call" and _has_lookup(inside)
        for jaxpr in _inner_jaxprs(equation)
        for inside in jaxpr.eqns
    )


def _lookup_calls(jaxpr: Any, tables: set[Any]) -> list[Any]:
    """The calls through which a loss reads any of ``tables``."""
    calls = []
    reached = set(tables)
    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not hasattr(v, "val")]
        if not reached.intersection(inputs):
            continue
        reached.update(equation.outvars)
        if _has_lookup(equation):
            calls.append(equation)
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
        self.tables = [
            check_table(table, "value_and_grad")
            for _, tables, _ in self._parts
            for table in tables
        ]
        for leaf in jax.tree.leaves(self.dense):
            kind = _array_type(leaf)
            if kind is None or not jnp.issubdtype(kind.dtype, jnp.inexact):
                what = type(leaf).__name__ if kind is None else f"dtype {kind.dtype}"
                raise TypeError(
                    f"value_and_grad: cannot differentiate by an argument with a "
                    f"leaf of {what}; name arguments of floats and tables in argnums."
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
        self, dense: Sequence[Any], tables: Sequence[Table], lookup: Callable[..., Any]
    ) -> Any:
        """The loss, with its lookups seen by ``lookup``."""
        args = list(self._args)
        for i, value in zip(self._nums, self.join(dense, tables), strict=True):
            args[i] = value
        with _seen_by(lookup):
            return self._fun(*args, **self._kwargs)


def _recorded_lookups(arguments: _Arguments, has_aux: bool) -> list[_Entry]:
    """Traces the loss once for its lookups; raises on one it cannot follow."""
    entries: list[_Entry] = []

    def traced(dense: Any, tables: Any) -> Any:
        recorder = _Recorder(tables, arguments.tables)
        loss, _ = _loss_and_aux(arguments.call(dense, tables, recorder.lookup), has_aux)
        entries[:] = recorder.entries
        # JAX drops what nobody uses: the contexts keep every lookup in sight.
        return loss, recorder.contexts

    try:
        jaxpr = jax.make_jaxpr(traced)(arguments.dense, arguments.tables).jaxpr
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(_cannot_follow("another transformation")) from error
    first = len(jax.tree.leaves(arguments.dense))
    calls = _lookup_calls(jaxpr, set(jaxpr.invars[first:]))
    hidden = [call.primitive.name for call in calls if not _is_own(call)]
    if hidden:
        raise ValueError(_cannot_follow(hidden[0]))
    if len(calls) != sum(entry.table is not None for entry in entries):
        raise ValueError(_cannot_follow("a table derived from the argument"))
    return entries


def _loss_and_aux(out: Any, has_aux: bool) -> tuple[Any, Any]:
    """What the loss returned, taken apart and checked."""
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"value_and_grad(has_aux=True): the loss returned {type(out).__name__}; "
            "return (loss, aux)."
        )
    loss, aux = out if has_aux else (out, None)
    kind = _array_type(loss)
    if kind is None or kind.shape != () or not jnp.issubdtype(kind.dtype, jnp.floating):
        what = type(loss).__name__ if kind is None else kind.str_short()
        raise TypeError(
            f"value_and_grad: the loss is {what}; return a scalar float, and with "
            "has_aux=True (loss, aux)."
        )
    return loss, aux


def _array_type(x: Any) -> Any:
    """The abstract value of an array or number; None for anything else."""
    try:
        return jax.typeof(x)
    except TypeError:
        return None


def _positions(argnums: Any) -> tuple[int, ...]:
    several = isinstance(argnums, Sequence) and not isinstance(argnums, str)
    try:
        return tuple(map(operator.index, argnums if several else (argnums,)))
    except TypeError as error:
        raise TypeError(
            f"value_and_grad(argnums={argnums!r}): pass the position of an argument, "
            "or several."
        ) from error


def value_and_grad(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Like ``jax.value_and_grad``, for losses that call ``lookup`` inside.

    In the place of each :class:`Table` in the chosen arguments the gradient
    holds a :class:`SparseGrad`, for ``update(table, sparse_grad)``: one entry a
    lookup, never an array as large as the table. Scale it by ``grad_scale`` of
    ``update``, never by ``jax.tree.map`` or optax, which would scale its ids; to
    clip it together with the dense part::

        norm = jnp.hypot(optax.tree.norm(g_dense), oe.global_norm(g_table))
        scale = 1 / jnp.maximum(norm / max_norm, 1)
        table = oe.update(table, g_table, grad_scale=scale)

    Args:
        fun: the loss, which depends on nothing but its arguments; a scalar, or
            (scalar, aux). Its lookups must stand outside of scan, while, cond,
            checkpoint and inner jit. A table that it closes over, or takes as
            another argument, is a constant.
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
    nums = _positions(argnums)

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if any(not -len(args) <= i < len(args) for i in nums):
            raise ValueError(
                f"value_and_grad(argnums={argnums}): the call has {len(args)} "
                "positional arguments."
            )
        positions = tuple(i % len(args) for i in nums)
        arguments = _Arguments(fun, positions, args, kwargs)
        entries = _recorded_lookups(arguments, has_aux)
        own = [entry for entry in entries if entry.table is not None]
        taps = [zeros_over(entry.axes, entry.shape, entry.dtype) for entry in own]

        def loss_of(dense: Any, taps: Any) -> Any:
            player = _Player(arguments.tables, entries, taps)
            out = arguments.call(dense, arguments.tables, player.lookup)
            player.check_end()
            loss, aux = _loss_and_aux(out, has_aux)
            return loss, (aux, player.contexts)

        loss, pullback, (aux, contexts) = jax.vjp(
            loss_of, arguments.dense, taps, has_aux=True
        )
        dense, sparse = pullback(jnp.ones_like(loss))
        numbers = [entry.table for entry in own]
        grads = arguments.join(
            dense, _by_table(len(arguments.tables), numbers, contexts, sparse)
        )
        value = (loss, aux) if has_aux else loss
        several = isinstance(argnums, Sequence)
        return value, (tuple(grads) if several else grads[0])

    return wrapped


def _by_table(
    num_tables: int,
    numbers: Sequence[int | None],
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
