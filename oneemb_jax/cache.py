"""Cached tables: the Store of each, the size of the cache, and who is stale."""

from __future__ import annotations

import atexit
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from oneemb_jax._ffi import native
from oneemb_jax.spec import TableSpec
from oneemb_jax.store import Store
from oneemb_jax.table import (
    BUCKET_WORDS,
    Table,
    TableError,
    init_table,
    nonce_words,
    num_buckets,
)

_MIB = 2**20
_MOST_SLOTS = 2**31 - 1
#: Of a Store in host memory: as much as there is.
_UNBOUNDED = 2**63 - 1


class _Open(NamedTuple):
    store: Store
    nonce: int
    spec: TableSpec


#: Open Stores by the names of their tables.
_open: dict[str, _Open] = {}


def cache_bytes(spec: TableSpec, slots: int) -> int:
    """Device memory of a cache: rows, index, clock and residency."""
    index = num_buckets(slots) * 4 * BUCKET_WORDS
    return slots * 4 * (spec.row_words + 3) + index


def cache_slots(spec: TableSpec, budget_mb: float) -> int:
    """Slots of the largest cache of at most ``budget_mb`` MiB; 0 if none fits."""
    budget = min(int(budget_mb * _MIB), cache_bytes(spec, _MOST_SLOTS))
    low, high = 0, min(_MOST_SLOTS, budget // (4 * (spec.row_words + 3)))
    while low < high:
        middle = (low + high + 1) // 2
        fits = cache_bytes(spec, middle) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def budget_for(spec: TableSpec, slots: int) -> float:
    """The smallest ``cache_budget_mb``, to two decimals, of so many slots."""
    return math.ceil(cache_bytes(spec, slots) / _MIB * 100) / 100


def store_text(spec: TableSpec) -> str:
    """Where the rows of a table are, in words."""
    if not spec.is_cached:
        return f"device memory, {spec.capacity} rows"
    place = "host memory" if spec.store.kind == "host_mem" else "SSD"
    return f"{place} in {spec.store.persistent_path!r}, cache of {spec.capacity} rows"


def with_cache(spec: TableSpec, call: str) -> TableSpec:
    """The spec with as many slots as the budget of its cache has room for."""
    budget = spec.store.cache_budget_mb
    slots = cache_slots(spec, budget)
    if slots < 1:
        raise ValueError(
            f"{call}(store_options=...): cache_budget_mb={budget:g} has no room for "
            f"one row of {4 * spec.row_words} bytes and its index; pass more."
        )
    return dataclasses.replace(spec, capacity=slots)


def _is_traced() -> bool:
    """Whether arrays that are made now stand for others, as in jax.eval_shape."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def init_cached(
    spec: TableSpec, device: Any = None, check: Callable[[], None] = lambda: None
) -> Table:
    """An empty cached table over a new Store, in the place of any of that name.

    Args:
        spec: of the table.
        device: a ``jax.Device``; None: the default device.
        check: raises where there is to be no Store; a program that was compiled
            may run late.
    """
    _check_platform(device, "init")
    if _is_traced():
        return _init_when_run(spec, device, check)
    close_cached(spec.name)
    return _attached(_open_store(spec), spec, device)


def _init_when_run(spec: TableSpec, device: Any, check: Callable[[], None]) -> Table:
    """The same in a program that is traced: who asks for its shapes opens no Store."""

    def open_store() -> np.ndarray:
        check()
        close_cached(spec.name)
        store = _open_store(spec)
        return nonce_words(_attach(store, spec))

    words = jax.ShapeDtypeStruct((1, 2), np.uint32)
    nonce = io_callback(open_store, words)
    return dataclasses.replace(init_table(spec, device), store_nonce=nonce)


def load_cached(spec: TableSpec, device: Any, folder: str) -> Table:
    """A cached table, its cache empty, over the rows of a snapshot.

    They take the place of all that a Store of the table's name has; if they cannot
    be had, it and its table stay as they are.

    Args:
        spec: of the table.
        device: as in ``init_cached``.
        folder: of the snapshot.
    """
    _check_platform(device, "load_snapshot")
    found = _open.get(spec.name)
    if _is_traced():
        raise ValueError(
            "load_snapshot(): it reads files, and so cannot be part of a program; call "
            "it outside of jax.jit and jax.eval_shape."
        )
    if found is not None and found.spec == spec:
        # Steps that are under way find their table stale from then on.
        native.replace_store(spec.name, os.fsencode(folder))
        return _attached(found.store, spec, device)
    close_cached(spec.name)
    store = _open_store(spec)
    try:
        store.load_from(folder)
    except BaseException:
        store.close()
        raise
    return _attached(store, spec, device)


def check_one_device(call: str) -> None:
    """ValueError within ``jax.shard_map`` over several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = math.prod(mesh.shape[axis] for axis in mesh.manual_axes)
    if devices > 1:
        raise ValueError(
            f"{call}(table=...): a cached table lives on one device, with its store, "
            f"and this runs on {devices}: call it outside of shard_map."
        )


def is_open(name: str) -> bool:
    """Whether a table of that name has a Store."""
    return name in _open


def _check_platform(device: Any, call: str) -> None:
    if not isinstance(device, jax.Device | None):
        return  # init_table says so
    platform = jax.default_backend() if device is None else device.platform
    if platform not in ("cpu", "gpu"):
        raise ValueError(
            f"{call}(device={device!r}): cached tables live on CPU and CUDA devices; "
            'pass jax.devices("cpu")[0].'
        )


def _open_store(spec: TableSpec) -> Store:
    options = spec.store
    budget = int(options.host_cache_budget_mb * _MIB)
    return Store(
        options.folder,
        4 * spec.row_words,
        options.store_kind,
        host_budget_bytes=budget if options.kind == "ssd" else _UNBOUNDED,
        block_bytes=options.physical_block_size,
    )


def _attached(store: Store, spec: TableSpec, device: Any) -> Table:
    """An empty cache over a Store, which is that of the table's name now."""
    nonce = _attach(store, spec)
    try:
        table = init_table(spec, device, nonce=nonce)
        # Committed, or a step over several devices would copy it to each of them:
        # one Store cannot have several caches.
        return jax.device_put(table, table.rows.device)
    except BaseException:
        close_cached(spec.name)
        raise


def _attach(store: Store, spec: TableSpec) -> int:
    """Makes a Store that of the table's name. Returns its nonce."""
    try:
        nonce = store.attach(spec.name, spec.capacity)
    except BaseException:
        close_cached(spec.name)
        store.close()
        raise
    _open[spec.name] = _Open(store, nonce, spec)
    return nonce


def close_cached(name: str) -> None:
    """Closes the Store of a name, if there is one: its tables are stale then."""
    found = _open.pop(name, None)
    if found is not None:
        native.detach_store(name, found.nonce)
        found.store.close()


@atexit.register
def _close_all() -> None:
    for name in list(_open):
        close_cached(name)


def open_store(name: str) -> Store | None:
    """The open Store of the cached table of a name, if there is one."""
    found = _open.get(name)
    return None if found is None else found.store


def store_of(table: Table, call: str) -> Store:
    """The open Store of a table that is current."""
    check_current(table, call)
    return _open[table.spec.name].store


def all_below(
    table: Table, call: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, tables and rows below the cache of a table that is current.

    A row may come twice, of which the first counts: what the Store cannot write
    comes before what it has. Rows that the cache has may come, too.

    Args:
        table: a cached table.
        call: who wants them, for messages.
    """
    store = store_of(table, call)
    waiting = native.settle_store(table.spec.name)
    if waiting is not None and len(waiting[0]):
        ids, tables, rows = waiting
        yield ids, tables, rows.view(np.uint32)
    yield from store.items()


def check_current(table: Table, call: str, *, late: bool = False) -> None:
    """Raises if a cached table is stale, or its Store could not do something.

    What the Store could not do is raised once: the table can be read then.

    Args:
        table: a cached table.
        call: who wants to use it, for messages.
        late: the table is a copy of an earlier one's counts, so an older generation
            is no fault.
    """
    name = table.spec.name
    state = native.store_of_table(name)
    nonce = int(np.array(table.store_nonce).view(np.uint64)[0, 0])
    generation = int(np.array(table.generation)[0])
    if state is None:
        raise _no_store(name, call)
    if nonce != state["nonce"]:
        raise TableError(
            f"{call}(table): table {name!r}, of generation {generation}, belongs to a "
            f"Store that is gone; the open one is at generation "
            f"{state['generation']}. Use the table that the last init() or "
            "load_snapshot made."
        )
    if generation != state["generation"] and not late:
        raise TableError(
            f"{call}(table): table {name!r} is of generation {generation}, its Store "
            f"at generation {state['generation']}: it was kept while a later one was "
            "staged or trained. Use the table that came back last, and return it "
            "from every program that stages, one that evaluates too. To skip a step "
            "inside jit, pass update(apply=False); to go back, load_snapshot."
        )
    native.take_store_error(name)


def _no_store(name: str, call: str) -> TableError:
    return TableError(
        f"{call}(table): the Store of table {name!r} is closed. Make a new table "
        "with emb.init(), and load a snapshot into it."
    )


def cache_figures(table: Table, call: str) -> dict[str, int]:
    """What happened between the device tier of a table and its Store.

    Raises:
        TableError: if another thread has closed that.
    """
    state = native.store_of_table(table.spec.name)
    if state is None:
        raise _no_store(table.spec.name, call)
    return {k: v for k, v in state.items() if k not in ("nonce", "generation")}


def reset_figures(table: Table) -> None:
    """Counts them from zero."""
    native.reset_store_figures(table.spec.name)
