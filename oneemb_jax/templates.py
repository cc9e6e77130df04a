"""What restore is given as ``like``: a structure that is filled, and checked."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax import trees
from oneemb_jax.embedding import (
    MultiTableEmbedding,
    MultiTableMultiColumnEmbedding,
    is_closed,
)
from oneemb_jax.table import Table

_Embedding = MultiTableEmbedding | MultiTableMultiColumnEmbedding


def is_table_or_embedding(x: Any) -> bool:
    """Whether a node of ``like`` says what a table is to be."""
    return isinstance(x, Table | _Embedding)


def _flatten(like: Any) -> tuple[list[tuple[str, Any]], Any]:
    flat, structure = jax.tree_util.tree_flatten_with_path(
        like, is_leaf=is_table_or_embedding
    )
    return [(jax.tree_util.keystr(p), leaf) for p, leaf in flat], structure


def leaves(
    item: dict[str, Any], like: Any, has_like: bool
) -> list[tuple[dict[str, Any], Any]]:
    """The leaves of an item, each with its like."""
    places = trees.places(item)
    wanted = dict(_flatten(like)[0]) if has_like else {}
    return [(place.leaf, wanted.get(place.path)) for place in places]


def fill(item: dict[str, Any], like: Any, made: dict[int, Any]) -> Any:
    """``like`` with the leaves that were made: by their ``id``."""
    saved = dict(trees.places(item))
    wanted, structure = _flatten(like)
    filled = [made[id(saved[path])] for path, _ in wanted]
    return jax.tree_util.tree_unflatten(structure, filled)


def _expected(leaf: Any) -> str:
    """What a leaf of ``like`` asks for, in the words of ``trees.shown``."""
    if is_table_or_embedding(leaf):
        return "a table"
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return f"key{[*data.shape]}"
        return f"{trees.dtype_name(leaf.dtype)}{[*leaf.shape]}"
    return type(leaf).__name__


def _mismatches(item: dict[str, Any], like: Any, name: str) -> list[str]:
    saved = {path: trees.shown(leaf) for path, leaf in trees.places(item)}
    wanted = {path: _expected(leaf) for path, leaf in _flatten(like)[0]}
    found = []
    for path in dict.fromkeys([*wanted, *saved]):
        have, want = saved.get(path, "nothing"), wanted.get(path, "nothing")
        if have != want:
            found.append(f"  {name}{path}: saved is {have}, like has {want}")
    return found


def _closed(like: Any, name: str) -> list[str]:
    return [
        f"  {name}{path}: embedding {leaf.spec.name!r} is closed; make it anew"
        for path, leaf in _flatten(like)[0]
        if isinstance(leaf, _Embedding) and is_closed(leaf)
    ]


def check(items: dict[str, Any], chosen: tuple[str, ...], like: dict[str, Any]) -> None:
    """ValueError with all that does not match, before anything is read."""
    found: list[str] = []
    for name in chosen:
        if name in like:
            found += _mismatches(items[name], like[name], name)
            found += _closed(like[name], name)
        else:
            found += [
                f"  {node}: pass like={{{name!r}: ...}}, a structure to fill"
                for node in trees.other_nodes(items[name], name)
            ]
    if found:
        raise ValueError("\n".join(["restore: items do not match.", *found]))
