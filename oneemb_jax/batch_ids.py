"""Ids of a batch in the form in which a jitted step takes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from oneemb_jax.ids import pack_ids


def ids_function(ids: Any, call: str) -> Callable[[Any], Any]:
    """From a batch to its ids, of a function or a name.

    Args:
        ids: what the user passed.
        call: the public function, for messages.
    """
    if isinstance(ids, str):
        return functools.partial(_by_name, ids, call)
    if callable(ids):
        return ids
    raise TypeError(
        f"{call}(ids={ids!r}): pass a function from a batch to its ids, or the name of "
        "the key or attribute that they are under."
    )


def _by_name(name: str, call: str, batch: Any) -> Any:
    try:
        return batch[name] if isinstance(batch, Mapping) else getattr(batch, name)
    except (KeyError, AttributeError):
        raise KeyError(
            f"{call}(ids={name!r}): a batch of type {type(batch).__name__} has no such "
            "key or attribute; pass a function."
        ) from None


class BatchIds(NamedTuple):
    """The ids of one batch: arrays, and the pytree that they are the leaves of."""

    arrays: list[Any]
    tree: Any

    @property
    def form(self) -> tuple[Any, list[Any]]:
        """What may not change from batch to batch: structure, dtypes and ranks."""
        return self.tree, [(array.dtype, array.ndim) for array in self.arrays]

    def fit(self, like: BatchIds) -> Any:
        """The pytree, in the shapes of ``like``, which has the same form."""
        pairs = zip(self.arrays, like.arrays, strict=True)
        return jax.tree.unflatten(self.tree, [_fit(a, b) for a, b in pairs])


def batch_ids(ids: Any, call: str) -> BatchIds:
    """What a user's function returned, with 64-bit NumPy arrays packed.

    Raises:
        TypeError: if a leaf is no array of integers.
        ValueError: if there is none.
    """
    leaves, tree = jax.tree.flatten(ids)
    if not leaves:
        raise ValueError(
            f"{call}(ids=...): got {ids!r} from a batch, which holds no array of ids."
        )
    return BatchIds([_packed(leaf, call) for leaf in leaves], tree)


def _packed(ids: Any, call: str) -> Any:
    if isinstance(ids, int | float | str | bytes):
        raise TypeError(
            f"{call}(ids=...): got the {type(ids).__name__} {ids!r} where an array of "
            "ids was expected; pass np.asarray(...) of a list."
        )
    array = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{call}(ids=...): dtype {array.dtype}; ids are integers, of 64 bits at "
            "most."
        )
    wide = array.dtype.itemsize == 8
    return pack_ids(array) if wide and not isinstance(array, jax.Array) else array


def _fit(ids: Any, like: Any) -> Any:
    """Repeats or cuts along each axis: an id stays in its column."""
    if ids.shape == like.shape:
        return ids
    if ids.size == 0:
        return like
    for axis, (has, wanted) in enumerate(zip(ids.shape, like.shape, strict=True)):
        if has != wanted:
            ids = ids.take(np.arange(wanted, dtype=np.int32) % has, axis=axis)
    return ids
