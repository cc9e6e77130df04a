"""Checks of what embeddings are made with, and what is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from oneemb_jax.cached_options import CachedStoreOptions
from oneemb_jax.ids import WORDS
from oneemb_jax.optimizers import Optimizer
from oneemb_jax.options import DeviceMemStoreOptions, check_row_width

_OPTIMIZERS = (
    "sgd, adam, adamw, amsgrad, adagrad, rowwise_adagrad, ftrl, smart_decay_adam, lamb"
)
StoreOptions = DeviceMemStoreOptions | CachedStoreOptions
_KEY_SPACES = ("separate", "shared")
#: Elements of a row: with its state it has less than 4 GiB, and offsets are uint32.
_MOST_COLUMNS = 2**28 - 1


def check_name(name: Any, call: str) -> str:
    """A name, or an error."""
    if not isinstance(name, str):
        raise TypeError(f"{call}(name={name!r}): pass a string.")
    if not name:
        raise ValueError(f"{call}(name=''): pass a name.")
    return name


def check_dtype(dtype: Any, call: str) -> None:
    """An error unless rows may have this dtype."""
    if _dtype_name(dtype, "dtype", call) != "float32":
        raise ValueError(
            f"{call}(dtype={dtype!r}): rows are float32; pass np.float32, and read "
            "activations in another type by lookup(dtype=...)."
        )


def _dtype_name(dtype: Any, argument: str, call: str) -> str:
    try:
        if dtype is None:  # NumPy takes it for float64
            raise TypeError("no dtype")
        return np.dtype(dtype).name
    except TypeError as error:
        raise TypeError(
            f"{call}({argument}={dtype!r}): not a dtype, nor the name of one."
        ) from error


def key_type_name(key_type: Any, call: str) -> str:
    """The name of a key type."""
    name = _dtype_name(key_type, "key_type", call)
    if name not in WORDS:
        raise ValueError(
            f"{call}(key_type={key_type!r}): use one of {', '.join(WORDS)}."
        )
    return name


def whole_number(value: Any, argument: str, least: int, most: int, call: str) -> int:
    """A whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{call}({argument}={value!r}): pass a whole number.")
    if not least <= value <= most:
        raise ValueError(
            f"{call}({argument}={value}): pass a number from {least} to {most}."
        )
    return int(value)


def column_dims(embedding_dim: Any, several: bool, call: str) -> tuple[int, ...]:
    """The width of each column."""
    if not isinstance(embedding_dim, list | tuple):
        return (whole_number(embedding_dim, "embedding_dim", 1, _MOST_COLUMNS, call),)
    if not several:
        raise TypeError(
            f"{call}(embedding_dim={embedding_dim!r}): pass one number, or use "
            "MultiTableMultiColumnEmbedding for several columns."
        )
    if not embedding_dim:
        raise ValueError(f"{call}(embedding_dim=[]): pass the width of each column.")
    most = _MOST_COLUMNS // len(embedding_dim)
    return tuple(whole_number(d, "embedding_dim", 1, most, call) for d in embedding_dim)


def check_store(
    options: Any, embedding_dim: int, optimizer: Any, call: str
) -> tuple[StoreOptions, Optimizer]:
    """The options of the store and the optimizer, checked against each other."""
    if not isinstance(options, StoreOptions):
        raise TypeError(
            f"{call}(store_options={options!r}): pass what "
            "oe.make_device_mem_store_options(capacity=...), "
            "make_cached_host_mem_store_options or make_cached_ssd_store_options "
            "makes."
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{call}(optimizer={optimizer!r}): rows are not updated by optax or by "
            "name; pass the keyword argument optimizer, which one of these makes: "
            f"{_OPTIMIZERS}."
        )
    check_row_width(options, embedding_dim, optimizer)
    return options, optimizer


def padding_id(padding_idx: Any, key_type: str, call: str) -> int | None:
    """The padding id, or None."""
    if padding_idx is None:
        return None
    limits = np.iinfo(key_type)
    least, most = int(limits.min), int(limits.max)
    return whole_number(padding_idx, "padding_idx", least, most, call)


def is_shared(key_space: Any, call: str) -> bool:
    """Whether tables share their keys."""
    if key_space not in _KEY_SPACES:
        raise ValueError(
            f"{call}(key_space={key_space!r}): use one of {', '.join(_KEY_SPACES)}."
        )
    return key_space == "shared"
