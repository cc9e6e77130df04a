"""Loads the native library, checks that it fits, and registers its handlers."""

from __future__ import annotations

import ctypes
import importlib
import pathlib
import re
import types
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap

from oneemb_jax import _config, _cuda
from oneemb_jax._compat import out_like


def _installed_api_version() -> tuple[int, int]:
    """The FFI version of the jaxlib in this environment, from its headers."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text(encoding="utf-8")
    numbers = [
        re.search(rf"#define\s+XLA_FFI_API_{part}\s+(\d+)", text)
        for part in ("MAJOR", "MINOR")
    ]
    if not all(numbers):
        raise ImportError(f"oneemb_jax cannot read the FFI version in {header}.")
    major, minor = (int(number.group(1)) for number in numbers if number)
    return major, minor


def check_api_version(built: tuple[int, int], installed: tuple[int, int]) -> None:
    """Refuses a library that this jaxlib cannot load.

    A handler of a newer FFI version is found out only when the first operation
    of the process starts the backend, which then fails for all of JAX.

    Raises:
        ImportError: if ``built`` is newer than ``installed``.
    """
    if built[0] == installed[0] and built[1] <= installed[1]:
        return
    raise ImportError(
        f"oneemb_jax was built for XLA FFI {built[0]}.{built[1]}, the installed "
        f"jaxlib has {installed[0]}.{installed[1]}. Reinstall oneemb_jax (it builds "
        "against jaxlib 0.10) or install a newer jaxlib. Nothing was registered: "
        "JAX itself still works."
    )


def _load() -> types.ModuleType:
    """The native module for this CPU."""
    try:
        baseline = importlib.import_module("oneemb_jax._native")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{pathlib.Path(__file__).parent} has no module compiled for this Python. "
            "If it is the source tree, and oneemb_jax is installed, run Python in "
            "another folder: it imports what the current one has first.",
            name=error.name,
        ) from error
    wanted = _config.instruction_set()
    if wanted == "baseline" or (wanted == "auto" and not baseline.cpu_supports_v3()):
        return baseline
    return importlib.import_module("oneemb_jax._native_v3")


def _register(native: types.ModuleType) -> None:
    check_api_version(native.ffi_api_version, _installed_api_version())
    native.set_num_threads(_config.num_threads())
    for name, handler in native.handlers().items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")


def _register_cuda(library: ctypes.CDLL | None) -> None:
    """JAX keeps the handlers until there is a GPU; without one, for nothing."""
    if library is None:
        return
    check_api_version((0, library.OneembCudaApiMinor()), _installed_api_version())
    library.OneembCudaSetTierApi(native.tier_api())
    for name, symbol in _cuda.HANDLERS.items():
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(name, handler, platform="CUDA")


#: The native module in use.
native = _load()
_register(native)
_cuda_library = _cuda.load()
_register_cuda(_cuda_library)


def set_num_threads(num_threads: int) -> None:
    """Threads that CPU kernels split their work for; 0: as many as XLA has."""
    native.set_num_threads(num_threads)


def _call_on_platform(
    target: str,
    results: Sequence[Any],
    operands: tuple[Any, ...],
    aliases: dict[int, int] | None,
    attributes: dict[str, Any],
) -> list[jax.Array]:
    """The call; on a GPU with a workspace behind the results.

    XLA plans that memory as it does any other. A handler that took memory as it
    ran could not be replayed as part of a CUDA graph.
    """

    def plain(*arrays: Any) -> list[jax.Array]:
        ffi_call = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)
        return list(ffi_call(*arrays, **attributes))

    size = 0
    if _cuda_library is not None:
        size = _cuda.workspace_bytes(_cuda_library, target, operands, attributes)
    if size == 0:
        return plain(*operands)
    workspace = out_like(operands, (size,), np.uint8)

    def with_workspace(*arrays: Any) -> list[jax.Array]:
        ffi_call = jax.ffi.ffi_call(
            target, [*results, workspace], input_output_aliases=aliases
        )
        return list(ffi_call(*arrays, **attributes))[: len(results)]

    return jax.lax.platform_dependent(*operands, cuda=with_workspace, default=plain)


def keep_freed_memory() -> bool:
    """Lets this process keep the memory of large arrays that are let go.

    A step on CPU makes large arrays: activations, their gradients. The C library
    gives their memory back to the system each time, and the system clears every
    page again before the next step may touch it. That can cost a third of a
    step. After this call freed memory stays with the process: steps are faster,
    and the process keeps the size it had at its peak. It holds for all code of
    the process, and cannot be undone.

    Returns:
        True; False where the C library has no such setting (it is glibc's).

    Example:
        >>> import oneemb_jax as oe
        >>> kept = oe.keep_freed_memory()
    """
    return native.keep_freed_memory()


def call(
    target: str,
    results: Sequence[Any],
    *operands: Any,
    aliases: dict[int, int] | None = None,
    **attributes: Any,
) -> list[jax.Array]:
    """One custom call that refuses ``jax.vmap``.

    Args:
        target: name of the FFI target.
        results: shape and dtype of each result.
        *operands: arrays.
        aliases: operand number to the number of the result that takes its place.
        **attributes: static attributes of the call.

    Raises:
        ValueError: under ``jax.vmap``.
    """

    @custom_vmap
    def run(*arrays: Any) -> list[jax.Array]:
        return _call_on_platform(target, results, arrays, aliases, attributes)

    @run.def_vmap
    def refuse(axis_size: int, in_batched: Any, *arrays: Any) -> Any:
        raise ValueError(
            f"{target.removeprefix('oneemb_')} does not work under jax.vmap "
            f"(axis size {axis_size}): a table is one object, not a batch of them. "
            "Call it outside of vmap on the whole batch: ids may have any shape."
        )

    return run(*operands)
