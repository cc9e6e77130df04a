"""64-bit ids across JAX's 32-bit border, and the table that each id is in."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: Words of 32 bits an id, by key type.
WORDS = {"int32": 1, "uint32": 1, "int64": 2, "uint64": 2}

_CUT = (
    "is a jax.Array of 32 bits: if it came from int64, JAX has already cut its "
    "values. Pass the NumPy array, or oe.pack_ids(ids)"
)


def pack_ids(ids: Any) -> Any:
    """Packs 64-bit ids into pairs of 32-bit words, which JAX keeps whole.

    With x64 off (JAX's default) ``jnp.asarray`` and ``jax.jit`` cut int64 to
    int32 without a word. Pack ids while they are NumPy, then pass them on.

    Args:
        ids: integers of any shape: a NumPy array, nested lists, or a 64-bit
            ``jax.Array`` (which exists under x64 only).

    Returns:
        uint32 array of shape ``ids.shape + (2,)``, low word first; NumPy for
        NumPy, without a copy where the memory layout allows it.

    Raises:
        TypeError: if ``ids`` are not integers, or a ``jax.Array`` of 32 bits.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> oe.pack_ids(np.array([1, 2**32 + 5], np.int64))
        array([[1, 0],
               [5, 1]], dtype=uint32)
    """
    if isinstance(ids, jax.Array):
        if ids.dtype in (jnp.int64, jnp.uint64):
            return jax.lax.bitcast_convert_type(ids, jnp.uint32)
        raise TypeError(f"pack_ids(ids=...): ids of dtype {ids.dtype} {_CUT}.")
    array = np.asarray(ids)
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64)  # np.asarray([]) is float
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"pack_ids(ids=...): dtype {array.dtype} holds no ids; pass integers."
        )
    wide = array if array.dtype.itemsize == 8 else array.astype(np.int64)
    little = np.ascontiguousarray(wide, dtype=wide.dtype.newbyteorder("<"))
    return little.view(np.dtype("<u4")).reshape((*array.shape, 2))


def unpack_ids(packed: Any, key_type: Any = np.int64) -> np.ndarray:
    """Undoes :func:`pack_ids`.

    Args:
        packed: uint32 array of shape ``[..., 2]``.
        key_type: dtype of the result, int64 (default) or uint64.

    Returns:
        NumPy array of shape ``packed.shape[:-1]``.

    Raises:
        ValueError: if ``packed`` is not uint32 with a last axis of 2.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> oe.unpack_ids(oe.pack_ids(np.array([-7], np.int64)))
        array([-7])
    """
    words = np.asarray(packed)
    if words.dtype != np.uint32 or words.shape[-1:] != (2,):
        raise ValueError(
            f"unpack_ids(packed=...): dtype {words.dtype}, shape {words.shape}; "
            "pass the uint32[..., 2] array that pack_ids made."
        )
    pairs = np.ascontiguousarray(words)
    return pairs.view(np.dtype(key_type)).reshape(words.shape[:-1])


def id_words(ids: Any, key_type: str, call: str) -> Any:
    """Ids as uint32[..., words]: one word for 32-bit keys, two for 64-bit.

    Args:
        ids: what the user passed.
        key_type: the table's, a key of ``WORDS``.
        call: the public function, for messages.
    """
    if isinstance(ids, jax.Array):
        return _traced_words(ids, key_type, call)
    array = np.asarray(ids)
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{call}(ids=...): dtype {array.dtype} is not the table's key type "
            f"{key_type}; pass integers."
        )
    if WORDS[key_type] == 1:
        return _narrow(array, key_type, call)[..., np.newaxis]
    if array.dtype == np.uint32 and array.shape[-1:] == (2,):
        return array  # packed
    return pack_ids(array)


def _traced_words(ids: jax.Array, key_type: str, call: str) -> jax.Array:
    """The words of ids that are a jax.Array or a tracer."""
    if WORDS[key_type] == 1:
        if ids.dtype == key_type:
            return jax.lax.bitcast_convert_type(ids, jnp.uint32)[..., jnp.newaxis]
        raise TypeError(
            f"{call}(ids=...): dtype {ids.dtype} is not the table's key type "
            f"{key_type}; pass ids.astype({key_type!r}) if its values fit."
        )
    if ids.dtype == jnp.uint32 and ids.shape[-1:] == (2,):
        return ids
    if ids.dtype in (jnp.int64, jnp.uint64):
        return jax.lax.bitcast_convert_type(ids, jnp.uint32)
    reason = _CUT if ids.dtype in (jnp.int32, jnp.uint32) else "holds no ids"
    raise TypeError(
        f"{call}(ids=...): dtype {ids.dtype}, shape {ids.shape} is neither the "
        f"table's key type {key_type} nor packed (uint32[..., 2]): it {reason}."
    )


def _narrow(array: np.ndarray, key_type: str, call: str) -> np.ndarray:
    """NumPy ids as the uint32 word of a 32-bit key type; refused if cut."""
    limits = np.iinfo(key_type)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(
            f"{call}(ids=...): {array.min()}..{array.max()} do not fit the table's "
            f"key type {key_type}; make the table with key_type=np.int64."
        )
    return array.astype(key_type).view(np.uint32)


def table_id_period(
    table_ids: Any, batch_shape: tuple[int, ...], num_tables: int, call: str
) -> Any:
    """Table ids as int32[m]; the id at flat position i is in table_ids[i % m].

    Args:
        table_ids: what the user passed: None, or integers whose shape is a
            trailing part of ``batch_shape``.
        batch_shape: shape of the ids.
        num_tables: tables of the embedding.
        call: the public function, for messages.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if ``table_ids`` are not integers.
    """
    if table_ids is None:
        if num_tables == 1:
            return np.zeros(1, np.int32)
        if batch_shape[-1:] != (num_tables,):
            raise ValueError(
                f"{call}(ids=...): shape {batch_shape}, but without table_ids the "
                f"last axis is the table and there are {num_tables} tables; pass "
                f"ids of shape [..., {num_tables}], or table_ids."
            )
        return np.arange(num_tables, dtype=np.int32)
    array = table_ids if isinstance(table_ids, jax.Array) else np.asarray(table_ids)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{call}(table_ids=...): dtype {array.dtype}; pass integers from 0 to "
            f"{num_tables - 1}."
        )
    if array.ndim and batch_shape[-array.ndim :] != array.shape:
        raise ValueError(
            f"{call}(table_ids=...): shape {array.shape} is not a trailing part of "
            f"the shape of ids, {batch_shape}; it is broadcast from the left."
        )
    if math.prod(array.shape) == 0:
        return np.zeros(1, np.int32)
    return _clip_to_int32(array).reshape(-1)


def _clip_to_int32(array: Any) -> Any:
    """int32, where what does not fit stays out of any table's range."""
    limits = np.iinfo(np.int32)
    if array.dtype.itemsize < 4 or array.dtype == np.int32:
        return array.astype(np.int32)
    low = 0 if array.dtype.kind == "u" else limits.min
    return array.clip(low, limits.max).astype(np.int32)
