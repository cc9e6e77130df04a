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

from oneemb_jax.ids import WORDS
from oneemb_jax.initializers import Initializer
from oneemb_jax.lookup import LookupContext, lookup
from oneemb_jax.optimizers import Optimizer
from oneemb_jax.options import (
    DeviceMemStoreOptions,
    TableOptions,
    check_row_width,
    table_initializers,
)
from oneemb_jax.snapshot_methods import SnapshotMethods
from oneemb_jax.spec import TableSpec
from oneemb_jax.table import Table, check_table, init_table

_OPTIMIZERS = (
    "sgd, adam, adamw, amsgrad, adagrad, rowwise_adagrad, ftrl, smart_decay_adam, lamb"
)
_KEY_SPACES = ("separate", "shared")
#: Elements of a row: offsets within it are int32.
_MOST_COLUMNS = 2**31 - 1

_lock = threading.Lock()
#: Embeddings by name, as long as they live and are open.
_open: weakref.WeakValueDictionary[str, _Embedding] = weakref.WeakValueDictionary()


def _check_name(name: Any, call: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{call}(name={name!r}): pass a string.")
    if not name:
        raise ValueError(f"{call}(name=''): pass a name.")
    return name


def _check_dtype(dtype: Any, call: str) -> None:
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


def _key_type(key_type: Any, call: str) -> str:
    name = _dtype_name(key_type, "key_type", call)
    if name not in WORDS:
        raise ValueError(
            f"{call}(key_type={key_type!r}): use one of {', '.join(WORDS)}."
        )
    return name


def _whole(value: Any, argument: str, least: int, most: int, call: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{call}({argument}={value!r}): pass a whole number.")
    if not least <= value <= most:
        raise ValueError(
            f"{call}({argument}={value}): pass a number from {least} to {most}."
        )
    return int(value)


def _column_dims(embedding_dim: Any, several: bool, call: str) -> tuple[int, ...]:
    if not isinstance(embedding_dim, list | tuple):
        return (_whole(embedding_dim, "embedding_dim", 1, _MOST_COLUMNS, call),)
    if not several:
        raise TypeError(
            f"{call}(embedding_dim={embedding_dim!r}): pass one number, or use "
            "MultiTableMultiColumnEmbedding for several columns."
        )
    if not embedding_dim:
        raise ValueError(f"{call}(embedding_dim=[]): pass the width of each column.")
    most = _MOST_COLUMNS // len(embedding_dim)
    return tuple(_whole(d, "embedding_dim", 1, most, call) for d in embedding_dim)


def _check_store(
    options: Any, embedding_dim: int, optimizer: Any, call: str
) -> tuple[DeviceMemStoreOptions, Optimizer]:
    if not isinstance(options, DeviceMemStoreOptions):
        raise TypeError(
            f"{call}(store_options={options!r}): pass what "
            "oe.make_device_mem_store_options(capacity=...) makes."
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{call}(optimizer={optimizer!r}): rows are not updated by optax or by "
            "name; pass the keyword argument optimizer, which one of these makes: "
            f"{_OPTIMIZERS}."
        )
    check_row_width(options, embedding_dim, optimizer)
    return options, optimizer


def _padding_idx(padding_idx: Any, key_type: str, call: str) -> int | None:
    if padding_idx is None:
        return None
    limits = np.iinfo(key_type)
    least, most = int(limits.min), int(limits.max)
    return _whole(padding_idx, "padding_idx", least, most, call)


def _is_shared(key_space: Any, call: str) -> bool:
    if key_space not in _KEY_SPACES:
        raise ValueError(
            f"{call}(key_space={key_space!r}): use one of {', '.join(_KEY_SPACES)}."
        )
    return key_space == "shared"


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
        store_options: DeviceMemStoreOptions | None = None,
        default_initializer: Initializer | Mapping[str, Any] | None = None,
        padding_idx: int | None = None,
        seed: int = 0,
        *,
        optimizer: Optimizer | None = None,
        key_space: str = "separate",
    ) -> None:
        call = type(self).__name__
        _check_dtype(dtype, call)
        dims = _column_dims(embedding_dim, self._several_columns, call)
        keys = _key_type(key_type, call)
        store, optimizer = _check_store(store_options, sum(dims), optimizer, call)
        self.spec = TableSpec(
            name=_check_name(name, call),
            column_dims=dims,
            key_type=keys,
            initializers=table_initializers(
                tables, default_initializer, len(dims), call
            ),
            optimizer=optimizer,
            capacity=store.capacity,
            padding_idx=_padding_idx(padding_idx, keys, call),
            seed=_whole(seed, "seed", 0, 2**64 - 1, call),
            shared_keys=_is_shared(key_space, call),
            store=store,
        )
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

        Args:
            device: a ``jax.Device``; None means JAX's default device.

        Raises:
            ValueError: if the embedding is closed.
        """
        self._check_open(f"{type(self).__name__}.init()")
        return init_table(self.spec, device)

    def _check_open(self, call: str) -> None:
        if _open.get(self.spec.name) is not self:
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
        """Gives the name back; tables stay as they are. Twice does no harm."""
        with _lock:
            if _open.get(self.spec.name) is self:
                del _open[self.spec.name]

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
            f"  store     device memory, {spec.capacity} rows"
        )


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
        store_options: made by ``make_device_mem_store_options``. Required.
        default_initializer: of the one table there is without ``tables``; by
            default normal with standard deviation 0.05.
        padding_idx: an id that reads zeros, gets no gradient and has no row.
        seed: of the initial rows, 0 to 2**64 - 1.
        optimizer: made by ``sgd``, ``adagrad``, ``adam``, ... Required.
        key_space: "separate": the same id in two tables is two rows. "shared", as
            in OneFlow: it is one row, which begins by the initializer of the first
            table that has it in a batch.

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
        store_options: made by ``make_device_mem_store_options``. Required.
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
