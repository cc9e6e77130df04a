"""The plain kernel and the memory limits: native.cc, compiled when imported."""

import atexit
import ctypes
import functools
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from cells import (
    BETA1,
    BETA2,
    EPS,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    OPTIMIZERS,
    Batches,
    Cell,
)

_SOURCE = pathlib.Path(__file__).with_name("native.cc")
_FLAGS = ("-std=c++17", "-O3", "-mavx2", "-mfma", "-fPIC", "-shared", "-pthread")
_AHEAD = {16: 32, 64: 16, 128: 8}  # rows between a prefetch and its use
_GATHER_VARIANTS = [(a, s) for a in (4, 8, 16, 32, 64) for s in (0, 1)]
_TOUCH_VARIANTS = (2, 4, 8, 16, 32)
_TRIALS = 3

_V = TypeVar("_V")
_Gather = tuple[int, int]
_Out = np.ndarray | None


def _compile() -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no C++ compiler; install g++")
    cpu = pathlib.Path("/proc/cpuinfo")
    if not cpu.exists() or " avx2 " not in cpu.read_text():
        raise RuntimeError("this processor has no AVX2")
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder, "native.so")
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(library)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {built.stderr}")
        return ctypes.CDLL(str(library))


_lib = _compile()
_lib.bench_open.restype = ctypes.c_void_p
_lib.bench_map.restype = ctypes.c_void_p
_lib.bench_touch.restype = ctypes.c_float


@functools.cache
def _engine() -> ctypes.c_void_p:
    engine = ctypes.c_void_p(_lib.bench_open(len(os.sched_getaffinity(0))))
    atexit.register(_lib.bench_close, engine)
    return engine


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class HugeArray:
    """Floats on huge pages, all touched; `array` must not outlive it."""

    def __init__(self, rows: int, width: int) -> None:
        size = ctypes.c_int64(4 * rows * width)
        address = _lib.bench_map(size)
        if address is None:
            raise MemoryError(f"no {size.value} bytes for the benchmark")
        floats = (ctypes.c_float * (rows * width)).from_address(address)
        self.array = np.ctypeslib.as_array(floats).reshape(rows, width)
        self.array[:] = 0
        weakref.finalize(self, _lib.bench_unmap, ctypes.c_void_p(address), size)


@functools.lru_cache(maxsize=1)
def _table(cell: Cell) -> HugeArray:
    """The rows of a cell, shared by the systems here."""
    table = HugeArray(cell.rows, cell.row_bytes // 4)
    if cell.optimizer == "adagrad":
        table.array[:, cell.dim :] = INITIAL_ACCUMULATOR
    return table


def gather(
    rows: np.ndarray, ids: np.ndarray, dim: int, variant: _Gather, out: _Out
) -> None:
    """Copies `rows[ids][:, :dim]` to `out`.

    Args:
        rows: f32[rows, stride].
        ids: i32[n].
        dim: Floats to copy of each row.
        variant: Rows between a prefetch and its use; whether to write past the
            caches: 1, 0, or -1 for when the output is large.
        out: f32[n, dim]; None for memory that is allocated and freed here.

    Raises:
        ValueError: When the kernel was not compiled for this width.
    """
    ahead, stream = variant
    if _lib.bench_gather(
        _engine(),
        _address(rows),
        ctypes.c_int64(rows.shape[1]),
        _address(ids),
        ctypes.c_int64(len(ids)),
        ctypes.c_int64(dim),
        ctypes.c_int64(ahead),
        ctypes.c_int(stream),
        None if out is None else _address(out),
    ):
        raise ValueError(f"native.cc has no kernel for dim {dim}")


def touch(rows: np.ndarray, ids: np.ndarray, grads: np.ndarray, ahead: int) -> None:
    """Reads and writes `rows[ids]`, all different, while `grads` stream by."""
    _lib.bench_touch(
        _engine(),
        _address(rows),
        ctypes.c_int64(rows.shape[1]),
        _address(ids),
        ctypes.c_int64(len(ids)),
        ctypes.c_int64(ahead),
        _address(grads),
        ctypes.c_int64(grads.size),
        ctypes.c_float(0),
    )


class Native:
    """The plain kernel: ids are row numbers, outputs are allocated once."""

    dense = False

    def __init__(self, cell: Cell, batches: Batches) -> None:
        self._cell = cell
        self._batches = batches
        self._ids = [b.astype(np.int32) for b in batches.ids]
        self._rows = _table(cell)
        self._out = HugeArray(cell.ids, cell.dim)
        self._steps = 0

    def lookup(self, k: int) -> None:
        """Gathers the rows of batch `k`."""
        ids = self._ids[self._batches.pick(k)]
        dim = self._cell.dim
        variant = _AHEAD.get(dim, 16), -1
        gather(self._rows.array, ids, dim, variant, self._out.array)

    def prepare(self, k: int) -> None:
        """Nothing comes before an update."""

    def update(self, k: int) -> None:
        """Groups the ids, sums their gradients and applies the optimizer."""
        self._steps += 1
        cell = self._cell
        if _lib.bench_update(
            _engine(),
            ctypes.c_int(OPTIMIZERS.index(cell.optimizer)),
            _address(self._rows.array),
            ctypes.c_int64(cell.rows),
            _address(self._ids[self._batches.pick(k)]),
            _address(self._batches.grads),
            ctypes.c_int64(cell.ids),
            ctypes.c_int64(cell.dim),
            ctypes.c_float(LEARNING_RATE),
            ctypes.c_float(EPS),
            ctypes.c_float(BETA1),
            ctypes.c_float(BETA2),
            ctypes.c_int64(self._steps),
        ):
            raise ValueError(f"native.cc has no kernel for dim {cell.dim}")

    def step(self, k: int) -> None:
        """Both."""
        self.lookup(k)
        self.update(k)

    def activations(self, k: int) -> np.ndarray:
        """The rows of batch `k`."""
        self.lookup(k)
        return self._out.array

    def weights(self) -> np.ndarray:
        """All rows."""
        return self._rows.array[:, : self._cell.dim].copy()

    def close(self) -> None:
        """Forgets the table; memory goes with its last user."""
        _table.cache_clear()


def _fastest(variants: Sequence[_V], call: Callable[[_V], None]) -> _V:
    """The variant with the lowest median time."""
    times: list[list[float]] = [[] for _ in variants]
    for trial in range(_TRIALS + 1):
        for variant, seconds in zip(variants, times, strict=True):
            start = time.perf_counter()
            call(variant)
            if trial > 0:  # the first one warms up
                seconds.append(time.perf_counter() - start)
    medians = [statistics.median(seconds) for seconds in times]
    return variants[medians.index(min(medians))]


class Limit:
    """The traffic of each phase alone, in the fastest of several variants.

    Rows lie as in the plain kernel's table. A lookup copies each id's row; an
    update reads and writes each different row once, in ascending order, and
    reads all gradients once, in order. No compute, nothing to group.
    """

    dense = False

    def __init__(self, cell: Cell, batches: Batches) -> None:
        self._dim = cell.dim
        self._batches = batches
        self._ids = [b.astype(np.int32) for b in batches.ids]
        self._rows = _table(cell)
        self._memory = self._make_output(cell)
        self._gather = _fastest(_GATHER_VARIANTS, lambda v: self._copy(0, v))
        rows = self._rows.array
        self._ahead = _fastest(
            _TOUCH_VARIANTS,
            lambda v: touch(rows, batches.unique[0], batches.grads, v),
        )

    def _make_output(self, cell: Cell) -> HugeArray | None:
        return HugeArray(cell.ids, cell.dim)

    def _copy(self, batch: int, variant: _Gather) -> None:
        out = None if self._memory is None else self._memory.array
        gather(self._rows.array, self._ids[batch], self._dim, variant, out)

    def lookup(self, k: int) -> None:
        """Copies the rows of batch `k`."""
        self._copy(self._batches.pick(k), self._gather)

    def prepare(self, k: int) -> None:
        """Nothing comes before an update."""

    def update(self, k: int) -> None:
        """Moves the bytes of an update."""
        unique = self._batches.unique[self._batches.pick(k)]
        touch(self._rows.array, unique, self._batches.grads, self._ahead)

    def step(self, k: int) -> None:
        """Both."""
        self.lookup(k)
        self.update(k)

    def activations(self, k: int) -> np.ndarray:
        """The rows of batch `k`."""
        return self._rows.array[self._ids[self._batches.pick(k)], : self._dim]

    def weights(self) -> np.ndarray:
        """All rows; they never change."""
        return self._rows.array[:, : self._dim].copy()

    def close(self) -> None:
        """Forgets the table; memory goes with its last user."""
        _table.cache_clear()


class FreshLimit(Limit):
    """The same, with the output of each lookup allocated and freed in it."""

    def _make_output(self, cell: Cell) -> HugeArray | None:
        del cell
        return None
