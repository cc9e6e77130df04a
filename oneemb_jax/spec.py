"""The frozen spec of a table: what is fixed for its life."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from oneemb_jax.cached_options import CachedStoreOptions
from oneemb_jax.ids import WORDS
from oneemb_jax.initializers import Initializer
from oneemb_jax.optimizers import Optimizer


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """What is fixed for the life of a table; hashable, static in ``jax.jit``.

    Made by the embedding objects. The capacity here is the one to begin with: a
    table knows its own (``table.capacity``), which ``grow`` changes.

    Attributes:
        name: of the embedding.
        column_dims: width of each column; activations are their concatenation.
        key_type: "int32", "uint32", "int64" or "uint64".
        initializers: one a column, for each table.
        optimizer: the sparse optimizer, its state layout included.
        capacity: rows to begin with; of a cached table, slots of its cache.
        padding_idx: id that reads zeros and stores no row, or None.
        seed: of the initial rows.
        shared_keys: whether the same id in two tables is one row.
        store: store options, as given.

    Example:
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "spec", 16, "float32", "int64", optimizer=oe.adam(0.1),
        ...     store_options=oe.make_device_mem_store_options(capacity=8),
        ... ) as emb:
        ...     emb.spec.embedding_dim, emb.spec.row_words
        (16, 48)
    """

    name: str
    column_dims: tuple[int, ...]
    key_type: str
    initializers: tuple[tuple[Initializer, ...], ...]
    optimizer: Optimizer
    capacity: int
    padding_idx: int | None = None
    seed: int = 0
    shared_keys: bool = False
    store: Any = None

    @property
    def embedding_dim(self) -> int:
        """Width of an activation: the sum of the columns."""
        return sum(self.column_dims)

    @property
    def num_tables(self) -> int:
        """How many tables share the object."""
        return len(self.initializers)

    @property
    def row_words(self) -> int:
        """32-bit words of a row, optimizer state included (core/row_layout.h)."""
        fields = 1 + self.optimizer.num_state_fields
        words = self.embedding_dim * fields + self.optimizer.num_row_words
        return -(-words // 4) * 4 if self.embedding_dim % 4 == 0 else words

    @property
    def is_cached(self) -> bool:
        """Whether device memory is a cache, over a Store that has all rows."""
        return isinstance(self.store, CachedStoreOptions)

    @property
    def key_space(self) -> str:
        """As the embedding's argument: "shared" or "separate"."""
        return "shared" if self.shared_keys else "separate"

    @property
    def id_words(self) -> int:
        """32-bit words of an id."""
        return WORDS[self.key_type]

    def state_of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Views of the optimizer state in whole rows, by field name.

        Args:
            rows: uint32[n, row_words].
        """
        dim, fields = self.embedding_dim, {}
        for i, name in enumerate(self.optimizer.state_fields):
            fields[name] = rows[:, (1 + i) * dim : (2 + i) * dim].view(np.float32)
        first = (1 + self.optimizer.num_state_fields) * dim
        for i, (name, dtype) in enumerate(self.optimizer.row_fields):
            fields[name] = rows[:, first + i].view(dtype)
        return fields

    def differences(self, other: TableSpec) -> str:
        """The fields in which two specs differ, with their values.

        Args:
            other: the spec to compare with.
        """
        names = (field.name for field in dataclasses.fields(self))
        values = ((n, getattr(self, n), getattr(other, n)) for n in names)
        return ", ".join(f"{n} ({a!r}, not {b!r})" for n, a, b in values if a != b)

    def is_padding(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are ``padding_idx``.

        Args:
            ids: integers of the keys' width, signed or not, or uint64.

        Returns:
            bool, of the shape of ``ids``.
        """
        if self.padding_idx is None:
            return np.zeros(ids.shape, bool)
        bits = ids.view(f"u{ids.dtype.itemsize}")
        return bits == bits.dtype.type(self.padding_idx % 2 ** (32 * self.id_words))

    def attributes(self) -> dict[str, Any]:
        """The spec as static attributes of a custom call."""
        return _attributes(self)


@functools.lru_cache(maxsize=256)
def _attributes(spec: TableSpec) -> dict[str, Any]:
    padding = 0 if spec.padding_idx is None else spec.padding_idx
    bits = 32 * spec.id_words
    configs = [c.encode() for columns in spec.initializers for c in columns]
    # By its name a handler finds the Store of a cached table.
    store = {"store": spec.name} if spec.is_cached else {}
    return {
        **store,
        "num_tables": np.int32(spec.num_tables),
        "shared_keys": spec.shared_keys,
        "has_padding": spec.padding_idx is not None,
        "padding_id": _signed(padding % 2**bits),
        "seed": _signed(spec.seed % 2**64),
        "column_ends": np.cumsum(spec.column_dims).astype(np.int32),
        "initializers": np.asarray(configs, np.float64).reshape(-1),
        "optimizer_kind": np.int32(spec.optimizer.kind),
        "optimizer_hyper": np.asarray(spec.optimizer.hyper(), np.float64),
    }


def _signed(value: int) -> np.int64:
    """The int64 with the bits of a uint64."""
    return np.uint64(value).view(np.int64)
