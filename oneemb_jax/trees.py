"""Pytrees as JSON and a list of arrays: no pickle, nothing of the file is run.

Dicts, lists, tuples and None are kept as they are. Any other node, such as an
optax state, is kept as its leaves by their paths, and filled again from a
structure that the caller gives.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from oneemb_jax.table import Table, is_table

#: NumPy's own kinds of dtype that a file may name: no objects, no records.
_KINDS = "biufcmMUS"


class Place(NamedTuple):
    """A leaf of a saved tree: its path, and what JSON says of it."""

    path: str
    leaf: dict[str, Any]


@dataclasses.dataclass
class Contents:
    """What the JSON of trees refers to by number."""

    arrays: list[np.ndarray]
    tables: list[Table]


def dtype_name(dtype: np.dtype) -> str:
    """What a file calls a dtype, whatever the order of its bytes."""
    native = dtype.newbyteorder("=")
    return native.str if native.kind in "mMUS" else native.name


def stored_dtype(name: Any) -> tuple[np.dtype, np.dtype]:
    """A dtype by name, and the one that NumPy's files know for its bytes.

    Raises:
        ValueError: if there is no such dtype, or it is not one of plain numbers.
    """
    try:
        dtype = jnp.dtype(name) if isinstance(name, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.hasobject or dtype.fields or not dtype.itemsize:
        raise ValueError(f"dtype {name!r} is none that is saved")
    if dtype.isbuiltin == 2:  # bfloat16 and its like
        return dtype, np.dtype(f"u{dtype.itemsize}")
    if dtype.kind not in _KINDS:
        raise ValueError(f"dtype {name!r} is none that is saved")
    return dtype, dtype


# --- to JSON ---


def encode(tree: Any, path: str, contents: Contents) -> dict[str, Any]:
    """A tree as JSON; arrays and tables go to ``contents``.

    Args:
        tree: any pytree.
        path: what to call it in messages.
        contents: gets what JSON can't hold.

    Raises:
        TypeError: if a leaf can't be saved; names it.
    """
    if tree is None:
        return {"none": True}
    if type(tree) is dict:
        pairs = [[_key(k, path), encode(v, f"{path}[{k!r}]", contents)]
                 for k, v in tree.items()]  # fmt: skip
        return {"dict": pairs}
    if type(tree) in (list, tuple):
        children = [encode(x, f"{path}[{i}]", contents) for i, x in enumerate(tree)]
        return {type(tree).__name__: children}
    if _is_leaf(tree):
        return _encode_leaf(tree, path, contents)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_table)
    leaves = [(jax.tree_util.keystr(p), leaf) for p, leaf in flat]
    return {
        "node": f"{type(tree).__module__}.{type(tree).__qualname__}",
        "leaves": [[p, _encode_leaf(x, path + p, contents)] for p, x in leaves],
    }


def _is_leaf(tree: Any) -> bool:
    return is_table(tree) or jax.tree_util.all_leaves([tree])


def _key(key: Any, path: str) -> Any:
    if type(key) not in (str, int, bool):
        raise TypeError(f"{path}: the key {key!r} of a dict is no string or integer.")
    return key


def _encode_leaf(leaf: Any, path: str, contents: Contents) -> dict[str, Any]:
    if is_table(leaf):
        contents.tables.append(leaf)
        return {"table": len(contents.tables) - 1}
    if type(leaf) in (bool, int, str):
        return {type(leaf).__name__: leaf}
    if type(leaf) is float:
        return {"float": leaf.hex()}
    if type(leaf) is complex:
        return {"complex": [leaf.real.hex(), leaf.imag.hex()]}
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return _encode_array(leaf, path, contents)
    raise TypeError(
        f"{path}: a {type(leaf).__name__} can't be saved; arrays, numbers, strings "
        "and tables can. Leave it out, and put it back after restore."
    )


def _encode_array(
    leaf: jax.Array | np.ndarray | np.generic, path: str, contents: Contents
) -> dict[str, Any]:
    extra, kind = {}, "numpy" if isinstance(leaf, np.ndarray) else "scalar"
    if isinstance(leaf, jax.Array):
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(f"{path}: is being traced; save outside of jit.")
        if leaf.is_deleted():
            raise ValueError(f"{path}: was donated to an earlier call.")
        if not leaf.is_fully_addressable:
            raise ValueError(
                f"{path}: lives on devices of several processes; gather it first."
            )
        kind = "jax"
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            kind, extra = "key", {"impl": str(jax.random.key_impl(leaf))}
            leaf = jax.random.key_data(leaf)
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{path}: a masked array; save its data and its mask.")
    array = np.asarray(leaf)
    name = dtype_name(array.dtype)
    try:
        dtype, stored = stored_dtype(name)
    except ValueError as error:
        raise TypeError(f"{path}: {error}.") from None
    shape = list(array.shape)
    data = np.ascontiguousarray(array, dtype).view(stored).reshape(shape)
    contents.arrays.append(data)
    return {
        "array": len(contents.arrays) - 1,
        "kind": kind,
        "dtype": name,
        "shape": shape,
        "crc32": zlib.crc32(data.reshape(-1).view(np.uint8).data),
        **extra,
    }


# --- from JSON ---


def places(node: dict[str, Any], path: str = "") -> list[Place]:
    """Every leaf of a saved tree; the path is as JAX writes it."""
    if "none" in node:
        return []
    if "dict" in node:
        named = [(f"{path}[{key!r}]", child) for key, child in node["dict"]]
        return [place for p, child in named for place in places(child, p)]
    for kind in ("list", "tuple"):
        if kind in node:
            named = [(f"{path}[{i}]", child) for i, child in enumerate(node[kind])]
            return [place for p, child in named for place in places(child, p)]
    if "node" in node:
        return [Place(path + p, leaf) for p, leaf in node["leaves"]]
    return [Place(path, node)]


def other_nodes(node: dict[str, Any], path: str = "") -> list[str]:
    """Nodes that are not built in, as "path: type"."""
    if "node" in node:
        return [f"{path}: {node['node']}"]
    children = [(f"[{k!r}]", child) for k, child in node.get("dict", ())]
    for kind in ("list", "tuple"):
        children += [(f"[{i}]", child) for i, child in enumerate(node.get(kind, ()))]
    return [found for p, child in children for found in other_nodes(child, path + p)]


def decode(node: dict[str, Any], leaf_of: Callable[[dict[str, Any]], Any]) -> Any:
    """The tree again, if all of its nodes are built in.

    Args:
        node: what ``encode`` made.
        leaf_of: from the JSON of a leaf to the leaf.
    """
    if "none" in node:
        return None
    if "dict" in node:
        return {key: decode(child, leaf_of) for key, child in node["dict"]}
    if "list" in node:
        return [decode(child, leaf_of) for child in node["list"]]
    if "tuple" in node:
        return tuple(decode(child, leaf_of) for child in node["tuple"])
    return leaf_of(node)


def decode_number(leaf: dict[str, Any]) -> Any:
    """A leaf that JSON holds itself."""
    if "float" in leaf:
        return float.fromhex(leaf["float"])
    if "complex" in leaf:
        real, imaginary = leaf["complex"]
        return complex(float.fromhex(real), float.fromhex(imaginary))
    ((kind, value),) = leaf.items()
    if type(value).__name__ != kind or kind not in ("bool", "int", "str"):
        raise ValueError(f"a leaf of kind {kind!r} is {value!r}")
    return value


def array_bytes(leaf: dict[str, Any]) -> int:
    """How large a saved array is."""
    return stored_dtype(leaf["dtype"])[0].itemsize * math.prod(leaf["shape"])


def shown(leaf: dict[str, Any]) -> str:
    """A saved leaf, for messages."""
    if "array" in leaf:
        kind = "key" if leaf["kind"] == "key" else leaf["dtype"]
        return f"{kind}{leaf['shape']}"
    return "a table" if "table" in leaf else next(iter(leaf))
