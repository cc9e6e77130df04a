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


def host_integers(values: Any, argument: str, call: str) -> np.ndarray:
    """Integers from the host as a NumPy array.

    Args:
        values: what the user passed: an array, a number or nested lists.
        argument: its name, for messages.
        call: the public function, for messages.
    """
    try:
        array = np.asarray(values)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{call}({argument}=[...]): a list of traced numbers, as jax.jit makes of "
            "one that is passed to it; pass an array, of 64-bit ids oe.pack_ids(ids)."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{call}({argument}=...): {error} Pass lists of one length: pad them "
            "with padding_idx, or pass all ids flat, with table_ids."
        ) from error
    if array.size == 0 and array.dtype == np.float64:
        return array.astype(np.int64)  # np.asarray([]) is float
    if array.dtype.kind in "fO" and not isinstance(values, np.ndarray):
        array = _unsigned(values, array)  # NumPy takes [2**64 - 1, 0] for float
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{call}({argument}=...): {_kind(values, array)}; pass integers, all of "
            "int64 or all of uint64."
        )
    return array


def _kind(values: Any, array: np.ndarray) -> str:
    """What somebody passed who should have passed integers."""
    if isinstance(values, list | tuple | np.ndarray | np.generic | jax.Array):
        return f"dtype {array.dtype}"
    return f"{type(values).__name__} {values!r:.40}"


def _unsigned(values: Any, array: np.ndarray) -> np.ndarray:
    """Python integers of 0 to 2**64 - 1 as uint64; ``array`` if they are not."""
    exact = np.asarray(values, object)
    whole = all(isinstance(v, int | np.integer) for v in exact.flat)
    fits = whole and all(0 <= v < 2**64 for v in exact.flat)
    return exact.astype(np.uint64) if fits else array


def pack_ids(ids: Any) -> Any:
    """Packs 64-bit ids into pairs of 32-bit words, which JAX keeps whole.

    With x64 off, JAX's default, ``jnp.asarray`` and ``jax.jit`` cut int64 and
    uint64 to 32 bits without a word: before any code of ours sees the argument of
    a jitted function. So pack ids while they are NumPy, and pass the result to
    the function.

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
    array = host_integers(ids, "ids", "pack_ids")
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
        ValueError: if ``packed`` is not uint32 with a last axis of 2, or
            ``key_type`` is another type.

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
    if key_type not in (np.int64, np.uint64, "int64", "uint64"):
        raise ValueError(
            f"unpack_ids(key_type={key_type!r}): packed ids have 64 bits; pass int64 "
            "or uint64."
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
    array = host_integers(ids, "ids", call)
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
        table_ids: what the user passed: None, or integers of a shape that
            broadcasts to ``batch_shape``.
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
    array = _table_id_array(table_ids, num_tables, call)
    array = _trailing(array, batch_shape, call)
    if math.prod(array.shape) == 0:
        return np.zeros(1, np.int32)
    return _clip_to_int32(array).reshape(-1)


def _table_id_array(table_ids: Any, num_tables: int, call: str) -> Any:
    """Table ids as an array of integers."""
    if not isinstance(table_ids, jax.Array):
        return host_integers(table_ids, "table_ids", call)
    if table_ids.dtype.kind not in "iu":
        raise TypeError(
            f"{call}(table_ids=...): dtype {table_ids.dtype}; pass integers from 0 "
            f"to {num_tables - 1}."
        )
    return table_ids


def _trailing(array: Any, batch_shape: tuple[int, ...], call: str) -> Any:
    """The array, of a shape that is a trailing part of ``batch_shape``."""
    shape = array.shape
    while shape and shape[0] == 1 and shape != batch_shape[-len(shape) :]:
        shape = shape[1:]
    if not shape or batch_shape[-len(shape) :] == shape:
        return array.reshape(shape)
    try:
        fits = np.broadcast_shapes(array.shape, batch_shape) == batch_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{call}(table_ids=...): shape {array.shape} does not broadcast to the "
            f"shape of ids, {batch_shape}."
        )
    if isinstance(array, jax.Array):
        return jnp.broadcast_to(array, batch_shape)
    return np.broadcast_to(array, batch_shape)


def _clip_to_int32(array: Any) -> Any:
    """int32, where what does not fit stays out of any table's range."""
    limits = np.iinfo(np.int32)
    if array.dtype.itemsize < 4 or array.dtype == np.int32:
        return array.astype(np.int32)
    low = 0 if array.dtype.kind == "u" else limits.min
    return array.clip(low, limits.max).astype(np.int32)
