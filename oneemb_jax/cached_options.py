"""Options of embeddings whose device memory is a cache over a larger store."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from oneemb_jax.options import check_row_options, path_option, whole_option

_HOST = "make_cached_host_mem_store_options"
_SSD = "make_cached_ssd_store_options"


@dataclasses.dataclass(frozen=True)
class CachedStoreOptions:
    """All rows in host memory or on SSD, and a cache of them in device memory.

    Made by :func:`make_cached_host_mem_store_options` and
    :func:`make_cached_ssd_store_options`.

    Attributes:
        kind: "host_mem" or "ssd".
        cache_budget_mb: device memory for the cache, in MiB.
        persistent_path: the folder of the store.
        capacity: rows that are expected, or None.
        size_factor: as given; see ``check_row_width``.
        storage_dim: as given; see ``check_row_width``.
        physical_block_size: sector size of the disk, in bytes.
        host_cache_budget_mb: host memory for a second cache, in MiB; 0: none.
    """

    kind: str
    cache_budget_mb: float
    persistent_path: str
    capacity: int | None = None
    size_factor: int = 1
    storage_dim: int = -1
    physical_block_size: int = 4096
    host_cache_budget_mb: float = 0

    def __post_init__(self) -> None:
        """Checks every option and makes plain Python values of them."""
        call = _HOST if self.kind == "host_mem" else _SSD
        set_field = object.__setattr__
        for name in ("cache_budget_mb", "host_cache_budget_mb"):
            set_field(self, name, _budget(getattr(self, name), name, call))
        set_field(self, "persistent_path", _folder(self.persistent_path, call))
        if self.capacity is not None:
            capacity = whole_option(self.capacity, "capacity", call)
            set_field(self, "capacity", capacity)
            if capacity < 1:
                raise ValueError(
                    f"{call}(capacity={capacity}): pass the number of rows that you "
                    "expect, 1 or more, or leave it out."
                )
        check_row_options(self, call)
        if self.cache_budget_mb == 0:
            raise ValueError(
                f"{call}(cache_budget_mb=0): a step reads and writes rows in device "
                "memory; pass the MiB of it that the cache may take."
            )

    @property
    def folder(self) -> str:
        """The folder of the Store: that of the one rank there is."""
        return os.path.join(self.persistent_path, "0-1")

    @property
    def store_kind(self) -> str:
        """The kind of Store below the cache (``oneemb_jax.store.Store``)."""
        if self.kind == "host_mem":
            return "host"
        return "cached_ssd" if self.host_cache_budget_mb else "ssd"


def _budget(value: Any, name: str, call: str) -> float:
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool):
        raise TypeError(f"{call}({name}={value!r}): pass a number of MiB.")
    if not (0 <= value < math.inf):
        least = "0 or more" if name == "host_cache_budget_mb" else "above 0"
        raise ValueError(f"{call}({name}={value}): pass a number of MiB, {least}.")
    return float(value)


def _folder(value: Any, call: str) -> str:
    """The one folder that a process has."""
    paths = path_option(value, call)
    if isinstance(paths, str):
        return paths
    if paths is None:
        raise TypeError(
            f"{call}(persistent_path=None): pass a folder of the table's own: its "
            "rows, or the snapshots of them, go there."
        )
    if len(paths) != 1:
        raise ValueError(
            f"{call}(persistent_path=...): {len(paths)} folders; a table of one "
            "process has one."
        )
    return paths[0]


def make_cached_host_mem_store_options(
    cache_budget_mb: float,
    persistent_path: str | os.PathLike[str] | Sequence[str],
    capacity: int | None = None,
    size_factor: int = 1,
    storage_dim: int = -1,
    physical_block_size: int = 4096,
) -> CachedStoreOptions:
    """Options of an embedding in host memory, with a cache in device memory.

    Every id of a batch must be in the cache while a step runs: call ``oe.stage``
    before ``lookup``. Values do not depend on the budget.

    Args:
        cache_budget_mb: device memory that the cache takes, index and metadata
            included, in MiB. It must hold the ids of one batch.
        persistent_path: a folder of the table's own, where snapshots go.
        capacity: rows that are expected. A hint: more are taken as long as there
            is memory.
        size_factor: as in ``make_device_mem_store_options``.
        storage_dim: as in ``make_device_mem_store_options``.
        physical_block_size: sector size of the disk: 512 or 4096.

    Raises:
        TypeError: if an option has the wrong type, or the path is missing.
        ValueError: if an option is out of range.

    Example:
        >>> import oneemb_jax as oe
        >>> options = oe.make_cached_host_mem_store_options(64, "/data/criteo")
        >>> options.kind, options.cache_budget_mb
        ('host_mem', 64.0)
    """
    return CachedStoreOptions(
        "host_mem",
        cache_budget_mb,
        persistent_path,  # pyright: ignore[reportArgumentType]  # checked there
        capacity,
        size_factor,
        storage_dim,
        physical_block_size,
    )


def make_cached_ssd_store_options(
    cache_budget_mb: float,
    persistent_path: str | os.PathLike[str] | Sequence[str],
    capacity: int | None = None,
    size_factor: int = 1,
    storage_dim: int = -1,
    physical_block_size: int = 4096,
    host_cache_budget_mb: float = 0,
) -> CachedStoreOptions:
    """Options of an embedding on SSD, with a cache in device memory.

    As ``make_cached_host_mem_store_options``, with rows on a local SSD: host
    memory holds 13 to 16 bytes of index a row, and a second cache if wanted.

    Args:
        cache_budget_mb: device memory that the cache takes, index and metadata
            included, in MiB. It must hold the ids of one batch.
        persistent_path: a folder of the table's own on a local disk, where rows
            and snapshots go.
        capacity: rows that are expected. A hint: more are taken as long as the
            disk has room.
        size_factor: as in ``make_device_mem_store_options``.
        storage_dim: as in ``make_device_mem_store_options``.
        physical_block_size: sector size of the disk: 512 or 4096.
        host_cache_budget_mb: host memory for a second cache between the two, in
            MiB; 0: none.

    Raises:
        TypeError: if an option has the wrong type, or the path is missing.
        ValueError: if an option is out of range.

    Example:
        >>> import oneemb_jax as oe
        >>> options = oe.make_cached_ssd_store_options(
        ...     cache_budget_mb=8192, persistent_path="/ssd/criteo")
        >>> options.kind, options.store_kind
        ('ssd', 'ssd')
    """
    return CachedStoreOptions(
        "ssd",
        cache_budget_mb,
        persistent_path,  # pyright: ignore[reportArgumentType]  # checked there
        capacity,
        size_factor,
        storage_dim,
        physical_block_size,
        host_cache_budget_mb,
    )
