"""Options of tables, columns and stores: frozen, checked where they are made.

The functions have OneFlow's names, parameters and defaults, and the dicts that
OneFlow's functions return are understood wherever options are taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneemb_jax.initializers import (
    Initializer,
    as_initializer,
    make_normal_initializer,
)
from oneemb_jax.optimizers import Optimizer
from oneemb_jax.paths import AnyPath, folder_path

#: What names a folder.

_BLOCK_SIZES = (512, 4096)
#: The kernels keep a table's number in 16 bits.
_MOST_TABLES = 2**16


@dataclasses.dataclass(frozen=True)
class ColumnOptions:
    """Options of one column; made by :func:`make_column_options`.

    Attributes:
        initializer: how its elements begin.
    """

    initializer: Initializer


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Options of one table; made by :func:`make_table_options`.

    Attributes:
        initializer: of all columns, or None where ``columns`` says it.
        columns: options of each column; empty where one initializer serves all.
    """

    initializer: Initializer | None = None
    columns: tuple[ColumnOptions, ...] = ()

    def column_initializers(
        self, num_columns: int, argument: str
    ) -> tuple[Initializer, ...]:
        """One initializer for each of ``num_columns`` columns.

        Args:
            num_columns: columns of the embedding.
            argument: what these options are, for messages.

        Raises:
            ValueError: if there are other columns than that.
        """
        if self.initializer is not None:
            return (self.initializer,) * num_columns
        if len(self.columns) != num_columns:
            raise ValueError(
                f"{argument}: options of {len(self.columns)} column(s), but "
                f"embedding_dim has {num_columns}; give make_table_options one "
                "make_column_options a column."
            )
        return tuple(column.initializer for column in self.columns)


@dataclasses.dataclass(frozen=True)
class DeviceMemStoreOptions:
    """All rows in device memory; made by :func:`make_device_mem_store_options`.

    Attributes:
        capacity: rows that a table begins with.
        persistent_path: folder or folders of snapshots, or None.
        size_factor: as given; see :func:`check_row_width`.
        storage_dim: as given; see :func:`check_row_width`.
        physical_block_size: of the disk that snapshots go to, in bytes.
    """

    capacity: int
    persistent_path: str | tuple[str, ...] | None = None
    size_factor: int = 1
    storage_dim: int = -1
    physical_block_size: int = 4096

    def __post_init__(self) -> None:
        """Checks every option and makes plain Python values of them."""
        call = "make_device_mem_store_options"
        capacity = whole_option(self.capacity, "capacity", call)
        object.__setattr__(self, "capacity", capacity)
        path = path_option(self.persistent_path, call)
        object.__setattr__(self, "persistent_path", path)
        if capacity < 1:
            raise ValueError(
                f"{call}(capacity={capacity}): pass the number of rows that the "
                "table shall hold, 1 or more."
            )
        check_row_options(self, call)


def check_row_options(options: Any, call: str) -> None:
    """Checks what the options of every store have, and makes plain ints of it.

    Args:
        options: options with size_factor, storage_dim and physical_block_size.
        call: the function that makes them, for messages.
    """
    for name in ("size_factor", "storage_dim", "physical_block_size"):
        value = whole_option(getattr(options, name), name, call)
        object.__setattr__(options, name, value)
    if options.size_factor < 1:
        raise ValueError(
            f"{call}(size_factor={options.size_factor}): pass 1 or more, or leave "
            "it out: the optimizer says what a row needs."
        )
    if options.storage_dim != -1 and options.storage_dim < 1:
        raise ValueError(
            f"{call}(storage_dim={options.storage_dim}): pass the words of a row, "
            "or -1: the optimizer says what a row needs."
        )
    if options.physical_block_size not in _BLOCK_SIZES:
        raise ValueError(
            f"{call}(physical_block_size={options.physical_block_size}): pass 512 "
            "or 4096, the sector size of the disk."
        )


def whole_option(value: Any, name: str, call: str) -> int:
    """A whole number as int; 1e6 is one, 0.5 and True are not."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole and not (isinstance(value, float) and value.is_integer()):
        raise TypeError(f"{call}({name}={value!r}): pass a whole number.")
    return int(value)


def path_option(value: Any, call: str) -> str | tuple[str, ...] | None:
    """A path, several (one a process), or None; absolute, whatever chdir does later."""
    if value is None:
        return None
    several = isinstance(value, list | tuple)
    paths = list(value) if several else [value]
    if not paths:
        raise ValueError(
            f"{call}(persistent_path={value!r}): pass the path of a folder, or a list "
            "with one for each rank."
        )
    argument = f"{call}(persistent_path=...)"
    names = tuple(str(Path(folder_path(p, argument)).absolute()) for p in paths)
    return names if several else names[0]


def make_column_options(initializer: Initializer | Mapping[str, Any]) -> ColumnOptions:
    """Options of one column of a table.

    Args:
        initializer: how the elements of the column begin.

    Raises:
        TypeError: if it is no initializer.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.make_column_options(oe.make_uniform_initializer(-1.0, 1.0))
        ColumnOptions(initializer=uniform(low=-1.0, high=1.0))
    """
    argument = "make_column_options(initializer=...)"
    return ColumnOptions(as_initializer(initializer, argument))


def make_table_options(
    param: Initializer | Mapping[str, Any] | Sequence[Any],
) -> TableOptions:
    """Options of one table.

    Args:
        param: an initializer, of all columns; or a list of
            :func:`make_column_options`, one a column.

    Raises:
        TypeError: if it is neither.
        ValueError: if the list is empty.

    Example:
        >>> import oneemb_jax as oe
        >>> table = oe.make_table_options(oe.make_normal_initializer(std=0.01))
        >>> wide = oe.make_column_options(oe.make_uniform_initializer(-0.1, 0.1))
        >>> bias = oe.make_column_options(oe.make_constant_initializer(0.0))
        >>> len(oe.make_table_options([wide, bias]).columns)
        2
    """
    return _table_options(param, "make_table_options(param=...)")


def make_table(
    param: Initializer | Mapping[str, Any] | Sequence[Any],
) -> TableOptions:
    """Options of one table: another name of :func:`make_table_options`.

    Args:
        param: as for ``make_table_options``.

    Raises:
        TypeError: as ``make_table_options``.
        ValueError: as ``make_table_options``.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.make_table(oe.make_constant_initializer(0.0)).initializer
        constant(value=0.0)
    """
    return _table_options(param, "make_table(param=...)")


def _table_options(param: Any, argument: str) -> TableOptions:
    if isinstance(param, list | tuple):
        if not param:
            raise ValueError(f"{argument}: the list of columns is empty.")
        return TableOptions(columns=tuple(_column(x, argument) for x in param))
    return TableOptions(initializer=as_initializer(param, argument))


def _column(value: Any, argument: str) -> ColumnOptions:
    if isinstance(value, ColumnOptions):
        return value
    if isinstance(value, Mapping) and set(value) == {"initializer"}:
        return ColumnOptions(as_initializer(value["initializer"], argument))
    raise TypeError(
        f"{argument}: the column {value!r} is not made by make_column_options."
    )


def as_table_options(value: Any, argument: str) -> TableOptions:
    """``value`` as TableOptions; OneFlow's dicts are understood.

    Args:
        value: TableOptions, ``{"initializer": ...}`` or ``{"columns": [...]}``.
        argument: who wants it, for messages.

    Raises:
        TypeError: if it is something else.
    """
    if isinstance(value, TableOptions):
        return value
    if isinstance(value, Mapping) and set(value) == {"initializer"}:
        return TableOptions(as_initializer(value["initializer"], argument))
    if isinstance(value, Mapping) and set(value) == {"columns"}:
        return _table_options(list(value["columns"]), argument)
    raise TypeError(
        f"{argument}: {value!r} is not made by make_table_options; a table has one "
        "initializer, or columns that have one each."
    )


def table_initializers(
    tables: Any, default: Any, num_columns: int, call: str
) -> tuple[tuple[Initializer, ...], ...]:
    """One initializer for each column of each table.

    Args:
        tables: a list of TableOptions, or None for one table.
        default: initializer of the one table; None means normal(0, 0.05).
        num_columns: columns of the embedding.
        call: the constructor, for messages.

    Raises:
        TypeError: if they are no options.
        ValueError: if they do not fit together.
    """
    if tables is None:
        argument = f"{call}(default_initializer=...)"
        one = make_normal_initializer(0.0, 0.05) if default is None else default
        return ((as_initializer(one, argument),) * num_columns,)
    if not isinstance(tables, list | tuple):
        raise TypeError(
            f"{call}(tables={tables!r}): pass a list of make_table_options, one a "
            "table."
        )
    if default is not None:
        raise ValueError(
            f"{call}(default_initializer={default!r}): it is for an embedding "
            "without tables; give each of the tables its own, or leave out tables."
        )
    if not 1 <= len(tables) <= _MOST_TABLES:
        raise ValueError(
            f"{call}(tables=...): {len(tables)} tables; pass 1 to {_MOST_TABLES}, or "
            "None for one table."
        )
    found = []
    for i, table in enumerate(tables):
        argument = f"{call}(tables[{i}])"
        options = as_table_options(table, argument)
        found.append(options.column_initializers(num_columns, argument))
    return tuple(found)


def make_device_mem_store_options(
    persistent_path: AnyPath | Sequence[AnyPath] | None = None,
    capacity: int | None = None,
    size_factor: int = 1,
    storage_dim: int = -1,
    physical_block_size: int = 4096,
) -> DeviceMemStoreOptions:
    """Options of an embedding whose rows are all in device memory.

    Args:
        persistent_path: where snapshots go: a folder, which gets one for each rank
            (``0-1`` for a table on one device), a list with the folder of each rank,
            or None.
        capacity: rows that a table has room for, over all its tables. Required.
            The memory is reserved, and used as rows appear; ``oe.grow`` gives more.
        size_factor: float32 a row has for each element of the embedding,
            optimizer state included. The optimizer knows it: leave it at 1, which
            means "what the optimizer needs". Any other number must be right.
        storage_dim: 32-bit words of a row, optimizer state included. -1 means
            "what the optimizer needs"; any other number must be right.
        physical_block_size: sector size of the disk below ``persistent_path``:
            512 or 4096.

    Raises:
        TypeError: if an option has the wrong type, or ``capacity`` is missing.
        ValueError: if an option is out of range.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.make_device_mem_store_options(capacity=1_000_000).capacity
        1000000
    """
    if capacity is None:
        raise TypeError(
            f"make_device_mem_store_options(persistent_path={persistent_path!r}, "
            "capacity=None): pass the number of rows, by name (capacity=...), "
            "that the table shall hold."
        )
    return DeviceMemStoreOptions(
        capacity,
        persistent_path,  # pyright: ignore[reportArgumentType]  # checked there
        size_factor,
        storage_dim,
        physical_block_size,
    )


def check_row_width(options: Any, embedding_dim: int, optimizer: Optimizer) -> None:
    """Checks ``size_factor`` and ``storage_dim`` against the optimizer.

    Both are OneFlow's way to say how wide a row is. The optimizer says that here,
    so their defaults mean "choose for me"; numbers that were given must be right.

    Raises:
        ValueError: if one is not, with the number that is.
    """
    words = optimizer.storage_dim(embedding_dim)
    for_row = f"{optimizer.name} with embedding_dim={embedding_dim}"
    if options.storage_dim not in (-1, words):
        raise ValueError(
            f"store_options: storage_dim={options.storage_dim}, but {for_row} needs "
            f"storage_dim={words}; leave it out or pass {words}."
        )
    if options.size_factor == 1:
        return
    if optimizer.num_row_words:
        raise ValueError(
            f"store_options: size_factor={options.size_factor}, but {for_row} keeps "
            f"words that no size_factor counts; pass storage_dim={words} instead, "
            "or leave both out."
        )
    if options.size_factor != optimizer.size_factor:
        raise ValueError(
            f"store_options: size_factor={options.size_factor}, but {for_row} needs "
            f"size_factor={optimizer.size_factor}; leave it out or pass "
            f"{optimizer.size_factor}."
        )
