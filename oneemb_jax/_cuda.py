"""The CUDA library: found where it was built, loaded without a GPU too."""

from __future__ import annotations

import ctypes
import pathlib
import warnings
from typing import Any

#: FFI targets and the symbols that serve them on a GPU.
HANDLERS = {
    "oneemb_lookup": "OneembCudaLookup",
    "oneemb_update": "OneembCudaUpdate",
    "oneemb_global_norm": "OneembCudaGlobalNorm",
    "oneemb_create": "OneembCudaCreate",
    "oneemb_grow": "OneembCudaGrow",
    "oneemb_read_rows": "OneembCudaReadRows",
    "oneemb_write_rows": "OneembCudaWriteRows",
    "oneemb_stage": "OneembCudaStage",
    "oneemb_prefetch": "OneembCudaPrefetch",
    "oneemb_update_cached": "OneembCudaUpdateCached",
    "oneemb_lookup_cached": "OneembCudaLookupCached",
    "oneemb_read_cached_rows": "OneembCudaReadCachedRows",
    "oneemb_write_cached_rows": "OneembCudaWriteCachedRows",
    "oneemb_write_down": "OneembCudaWriteDown",
    "oneemb_flush": "OneembCudaFlush",
}

#: How the library knows the operations that want a workspace, and the number of
#: the operand at which their lookups begin (cuda/table_ffi.cc). A lookup is six
#: operands; ids alone are one.
_OPERATIONS = {
    "oneemb_lookup": (0, 3, False),
    "oneemb_read_rows": (0, 2, False),
    "oneemb_update": (1, 10, True),
    "oneemb_global_norm": (2, 0, True),
    "oneemb_write_rows": (3, 6, False),
    "oneemb_lookup_cached": (0, 8, False),
    "oneemb_update_cached": (1, 12, True),
    "oneemb_stage": (4, 8, False),
    "oneemb_prefetch": (4, 8, False),
    "oneemb_write_down": (4, 8, False),
    "oneemb_read_cached_rows": (5, 8, False),
    "oneemb_write_cached_rows": (6, 8, False),
    "oneemb_flush": (7, 8, False),
}
_LOOKUP_OPERANDS = 6


_PATH = pathlib.Path(__file__).with_name("liboneemb_cuda.so")


def load(path: pathlib.Path = _PATH) -> ctypes.CDLL | None:
    """The library; None where the package was built without it."""
    if not path.exists():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(
            f"oneemb_jax cannot load its CUDA library ({error}): tables work on the "
            "CPU only. Reinstall oneemb_jax on this machine.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    library.OneembCudaApiMinor.restype = ctypes.c_int32
    library.OneembCudaWorkspace.restype = ctypes.c_int64
    library.OneembCudaWorkspace.argtypes = [
        ctypes.c_int32,
        *[ctypes.c_int64] * 3,
        ctypes.c_int32,
        *[ctypes.c_int64] * 3,
    ]
    library.OneembCudaSetTierApi.restype = None
    library.OneembCudaSetTierApi.argtypes = [ctypes.c_void_p]
    return library


def workspace_bytes(
    library: ctypes.CDLL,
    target: str,
    operands: tuple[Any, ...],
    attributes: dict[str, Any],
) -> int:
    """Bytes of the workspace that a call on a GPU has as its last result."""
    if target not in _OPERATIONS:
        return 0
    operation, first, several = _OPERATIONS[target]
    step = _LOOKUP_OPERANDS if several else len(operands)
    # What follows the lookups of an update only orders other reads before it.
    number = attributes.get("num_lookups", len(operands))
    ids = operands[first::step][:number]
    ends = attributes["column_ends"]
    return library.OneembCudaWorkspace(
        operation,
        int(ends[-1]),
        len(ends),
        int(attributes["num_tables"]),
        int(attributes["shared_keys"]),
        # Only the operations on a table look at its capacity.
        operands[1].shape[0],
        sum(array.shape[0] * array.shape[1] for array in ids),
        len(ids),
    )
