"""The object face: an embedding names, describes and looks up a table.

An embedding holds no rows. They are in the tables that ``init`` makes and that
the caller's program passes on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from oneemb_jax.cache import close_cached, init_cached, store_text, with_cache
from oneemb_jax.embedding_args import (
    StoreOptions,
    check_dtype,
    check_name,
    check_store,
    column_dims,
    is_shared,
    key_type_name,
    padding_id,
    whole_number,
)
from oneemb_jax.initializers import Initializer
from oneemb_jax.lookup import LookupContext, lookup
from oneemb_jax.optimizers import Optimizer
from oneemb_jax.options import TableOptions, table_initializers
from oneemb_jax.snapshot_methods import SnapshotMethods
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import Table, check_table, init_table

_lock = threading.Lock()
#: Embeddings by name, as long as they live and are open.
_open: weakref.WeakValueDictionary[str, _Embedding] = weakref.WeakValueDictionary()


class _Embedding(SnapshotMethods):
    """What the two public classes share: everything but how many columns."""

    _several_columns: ClassVar[bool]
    spec: TableSpec

    def __init__(
        self,
        name: str,
        embedding_dim: int | Sequence[int],
        dtype: Any,
        key_type: Any,
        tables: Sequence[TableOptions | Mapping[str, Any]] | None = None,
        store_options: StoreOptions | None = None,
        default_initializer: Initializer | Mapping[str, Any] | None = None,
        padding_idx: int | None = None,
        seed: int = 0,
        *,
        optimizer: Optimizer | None = None,
        key_space: str = "separate",
    ) -> None:
        call = type(self).__name__
        check_dtype(dtype, call)
        dims = column_dims(embedding_dim, self._several_columns, call)
        keys = key_type_name(key_type, call)
        store, optimizer = check_store(store_options, sum(dims), optimizer, call)
        spec = TableSpec(
            name=check_name(name, call),
            column_dims=dims,
            key_type=keys,
            initializers=table_initializers(
                tables, default_initializer, len(dims), call
            ),
            optimizer=optimizer,
            capacity=store.capacity or 1,
            padding_idx=padding_id(padding_idx, keys, call),
            seed=whole_number(seed, "seed", 0, 2**64 - 1, call),
            shared_keys=is_shared(key_space, call),
            store=store,
        )
        self.spec = with_cache(spec, call) if spec.is_cached else spec
        self._take_name(call)

    def _take_name(self, call: str) -> None:
        """The last thing a constructor does: one that fails leaves no trace."""
        with _lock:
            if self.spec.name in _open:
                raise ValueError(
                    f"{call}(name={self.spec.name!r}): an embedding of that name "
                    "exists already. Choose another name; or call close() on the "
                    "first, or open it by `with`, to run the same code again."
                )
            _open[self.spec.name] = self

    @property
    def name(self) -> str:
        """The name that no other open embedding of this process has."""
        return self.spec.name

    @property
    def embedding_dim(self) -> int:
        """Width of an activation: the sum of the columns."""
        return self.spec.embedding_dim

    def init(self, device: Any = None) -> Table:
        """A new table, empty: every id reads its initial row.

        A cached table has a Store, of which there is one a name: to call this again
        empties it, and makes tables that were made before stale. Within ``jax.jit``
        that is done when the program runs; ``jax.eval_shape(emb.init)`` has the shapes
        alone, to restore into.

        Args:
            device: a ``jax.Device``; None means JAX's default device.

        Raises:
            ValueError: if the embedding is closed.
        """
        call = f"{type(self).__name__}.init()"
        self._check_open(call)
        if self.spec.is_cached:
            return init_cached(self.spec, device, lambda: self._check_open(call))
        return init_table(self.spec, device)

    def _check_open(self, call: str) -> None:
        if is_closed(self):
            raise ValueError(
                f"{call}: {self.spec.name!r} is closed; make the embedding anew."
            )

    def __call__(
        self, table: Table, ids: Any, table_ids: Any = None, *, dtype: Any = jnp.float32
    ) -> tuple[jax.Array, LookupContext]:
        """``oneemb_jax.lookup`` of a table that belongs to this embedding.

        Args:
            table: made by ``init``, or what became of it.
            ids: as in ``lookup``.
            table_ids: as in ``lookup``.
            dtype: as in ``lookup``.

        Returns:
            Activations and the context for ``update``, as ``lookup`` does.

        Raises:
            ValueError: if the table is another embedding's.
        """
        if check_table(table, type(self).__name__).spec != self.spec:
            raise ValueError(
                f"{type(self).__name__}(table=...): the table belongs to another "
                f"embedding, which differs in {table.spec.differences(self.spec)}. "
                "Pass a table that this embedding's init() made."
            )
        return lookup(table, ids, table_ids, dtype=dtype)

    def forward(
        self, table: Table, ids: Any, table_ids: Any = None, *, dtype: Any = jnp.float32
    ) -> tuple[jax.Array, LookupContext]:
        """The same as calling the embedding; OneFlow's name."""
        return self(table, ids, table_ids, dtype=dtype)

    def split(self, acts: Any) -> tuple[Any, ...]:
        """Cuts activations, or gradients of them, into their columns.

        Args:
            acts: array of shape ``[..., embedding_dim]``.

        Returns:
            One array of shape ``[..., d]`` for each column of width ``d``.

        Raises:
            ValueError: if the last axis is not ``embedding_dim``.
        """
        shape = jnp.shape(acts)
        if shape[-1:] != (self.spec.embedding_dim,):
            raise ValueError(
                f"split(acts=...): shape {shape}, but the last axis of activations "
                f"is embedding_dim={self.spec.embedding_dim}."
            )
        ends = np.cumsum(self.spec.column_dims).tolist()
        starts = [0, *ends[:-1]]
        return tuple(
            acts[..., start:end] for start, end in zip(starts, ends, strict=True)
        )

    def close(self) -> None:
        """Gives the name back; twice does no harm.

        Tables in device memory stay as they are. The Store of a cached table is
        closed: rows that no snapshot has are gone.
        """
        with _lock:
            if _open.get(self.spec.name) is not self:
                return
            del _open[self.spec.name]
        close_cached(self.spec.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        spec = self.spec
        dims = "+".join(map(str, spec.column_dims))
        padding = "" if spec.padding_idx is None else f", padding {spec.padding_idx}"
        keys = "shared keys" if spec.shared_keys else "keys"
        return (
            f"{type(self).__name__} {spec.name!r}: {spec.num_tables} table(s)\n"
            f"  dim       {dims} float32, {keys} {spec.key_type}{padding}\n"
            f"  optimizer {spec.optimizer!r}\n"
            f"  store     {store_text(spec)}"
        )


def is_closed(embedding: _Embedding) -> bool:
    """Whether its name may be another's."""
    return _open.get(embedding.spec.name) is not embedding


class MultiTableEmbedding(_Embedding):
    """Tables of rows of one width, that share memory, options and optimizer.

    Args:
        name: no other embedding of the process may have it, until this one is
            closed or gone.
        embedding_dim: width of a row.
        dtype: of the rows: float32. (``lookup(dtype=...)`` reads them as others.)
        key_type: of ids: int32, uint32, int64 or uint64, as NumPy's or JAX's type
            or by name.
        tables: one ``make_table_options`` for each table; by default there is
            one table.
        store_options: made by ``make_device_mem_store_options``,
            ``make_cached_host_mem_store_options`` or
            ``make_cached_ssd_store_options``. Required.
        default_initializer: of the one table there is without ``tables``; by
            default normal with standard deviation 0.05.
        padding_idx: an id that reads zeros, gets no gradient and has no row.
        seed: of the initial rows, 0 to 2**64 - 1.
        optimizer: made by ``sgd``, ``adagrad``, ``adam``, ... Required.
        key_space: "separate": the same id in two tables is two rows. "shared", as
            in OneFlow: it is one row, which begins by the initializer of the
            lowest table that has it in a batch.

    Raises:
        TypeError: if an argument has the wrong type, or is missing.
        ValueError: if an argument has a wrong value, arguments disagree, or the
            name is taken.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> with oe.MultiTableEmbedding(
        ...     "clicks", embedding_dim=4, dtype=np.float32, key_type=np.int64,
        ...     tables=[
        ...         oe.make_table_options(oe.make_uniform_initializer(-0.1, 0.1)),
        ...         oe.make_table_options(oe.make_constant_initializer(0.5)),
        ...     ],
        ...     store_options=oe.make_device_mem_store_options(capacity=1000),
        ...     optimizer=oe.adagrad(0.05),
        ... ) as emb:
        ...     table = emb.init()
        ...     acts, ctx = emb(table, np.array([[7, 7], [8, 2**40]]))
        >>> acts.shape, float(acts[0, 1, 0])
        ((2, 2, 4), 0.5)
        >>> table = oe.update(table, ctx, np.ones_like(acts))
        >>> oe.size(table)
        4
    """

    _several_columns = False


class MultiTableMultiColumnEmbedding(_Embedding):
    """As ``MultiTableEmbedding``, with rows made of several columns.

    The columns of a row lie side by side in the activations, may differ in width
    and initializer, and share all else; ``split`` parts them again.

    Args:
        name: as in ``MultiTableEmbedding``, like all arguments but these.
        embedding_dim: width of each column: a list, or a number for one column.
        dtype: float32.
        key_type: of ids.
        tables: one ``make_table_options`` for each table: with one initializer
            for all columns, or with one ``make_column_options`` a column.
        store_options: made by ``make_device_mem_store_options``,
            ``make_cached_host_mem_store_options`` or
            ``make_cached_ssd_store_options``. Required.
        default_initializer: of every column of the one table there is without
            ``tables``.
        padding_idx: an id that reads zeros.
        seed: of the initial rows.
        optimizer: made by ``sgd``, ``adagrad``, ``adam``, ... Required.
        key_space: "separate" or "shared".

    Raises:
        TypeError: as ``MultiTableEmbedding``.
        ValueError: as ``MultiTableEmbedding``.

    Example:
        >>> import numpy as np
        >>> import oneemb_jax as oe
        >>> deep = oe.make_column_options(oe.make_uniform_initializer(-0.1, 0.1))
        >>> wide = oe.make_column_options(oe.make_constant_initializer(0.0))
        >>> with oe.MultiTableMultiColumnEmbedding(
        ...     "deepfm", embedding_dim=[16, 1], dtype="float32", key_type="int64",
        ...     tables=[oe.make_table_options([deep, wide])],
        ...     store_options=oe.make_device_mem_store_options(capacity=1000),
        ...     optimizer=oe.adagrad(0.05),
        ... ) as emb:
        ...     acts, ctx = emb(emb.init(), np.array([1, 2, 3]))
        ...     [column.shape for column in emb.split(acts)]
        [(3, 16), (3, 1)]
    """

    _several_columns = True
