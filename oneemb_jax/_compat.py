"""Differences between JAX versions, one function each."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np


def out_like(
    operands: tuple[Any, ...], shape: tuple[int, ...], dtype: Any
) -> jax.ShapeDtypeStruct:
    """The type of an FFI result that varies over a mesh as its operands do.

    Inside ``jax.shard_map`` a plain ``ShapeDtypeStruct`` says "replicated",
    which JAX believes: gradients come out wrong without a word.
    """
    varying: frozenset[Any] = frozenset()
    for operand in operands:
        varying |= set(varying_axes(operand))
    if not varying:
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
    mesh = jax.sharding.get_abstract_mesh()
    return jax.ShapeDtypeStruct(
        shape,
        np.dtype(dtype),
        sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
        manual_axis_type=jax.sharding.ManualAxisType(varying=varying),
    )


def varying_axes(array: Any) -> tuple[Any, ...]:
    """The axes of a mesh over which an array inside ``jax.shard_map`` varies."""
    return tuple(jax.typeof(array).manual_axis_type.varying)


def zeros_over(axes: tuple[Any, ...], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros that JAX takes for an array that varies over these axes."""
    zeros = jnp.zeros(shape, dtype)
    return jax.lax.pcast(zeros, axes, to="varying") if axes else zeros


def is_jaxpr(x: Any) -> bool:
    """Whether ``x`` is a program as JAX traces it."""
    return isinstance(x, jax.extend.core.Jaxpr)
