"""Files that appear whole or not at all, and arrays in them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneemb_jax._ffi import native
from oneemb_jax.durable import sync_folder

#: The header of an array is read if it is at most this long.
_MOST_HEADER = 4096
_READ_BYTES = 1 << 24
#: What new_folder calls a folder that is being written.
_PARTIAL = re.compile(r"\..+\.partial-[0-9a-f]{8}", re.DOTALL)


@contextlib.contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, which becomes ``target`` when that ends well.

    In one step, and on the disk then. What stood at ``target`` is removed after.
    A process that is killed leaves a hidden folder beside ``target``, which the
    next one to write beside it removes.

    Args:
        target: its absolute path.
        overwrite: whether it may take the place of what stands there.

    Raises:
        FileExistsError: if it may not, and something stands there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    part, held = _claim(target)
    try:
        yield part
        sync_folder(part)
        _place(part, target, overwrite)
        sync_folder(target.parent)
    finally:
        os.close(held)
        shutil.rmtree(part, ignore_errors=True)


def _claim(target: Path) -> tuple[Path, int]:
    """A hidden folder, and what is held while this process lives.

    That it is held says that the folder is not abandoned. Until then another
    process may take it for such, and remove it.
    """
    while True:
        part = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
        part.mkdir()
        try:
            held = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            if part.is_dir():
                return part, held
        except OSError:
            os.close(held)
            raise
        os.close(held)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.iterdir():
        if not _PARTIAL.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(held)


def _place(part: Path, target: Path, overwrite: bool) -> None:
    """Gives the folder its name. Others may save to it and remove it meanwhile."""
    while True:
        try:
            if overwrite and os.path.lexists(target):
                _exchange(part, target)
            else:
                part.rename(target)
        except FileNotFoundError:
            if not overwrite or not part.is_dir():
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not overwrite:
                raise FileExistsError(
                    errno.EEXIST, "made by somebody meanwhile", str(target)
                ) from error
        else:
            return


def _exchange(part: Path, target: Path) -> None:
    try:
        native.exchange(os.fsencode(part), os.fsencode(target))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        raise OSError(
            error.errno,
            "this file system can't replace a folder in one step; save under another "
            "name, and remove the old one after",
            str(target),
        ) from error


def write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """A new .npz, on the disk, with the arrays ``arr_0``, ``arr_1``, ..."""
    with path.open("xb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for i, array in enumerate(arrays):
                with archive.open(f"arr_{i}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def read_array(
    archive: zipfile.ZipFile,
    number: int,
    dtype: np.dtype,
    shape: Sequence[int],
    crc: Any,
) -> np.ndarray:
    """One array of such a file, if it is as it is said to be.

    Nothing is unpacked or allocated before its size is known to be right.

    Raises:
        ValueError: if it is not.
    """
    name = f"arr_{number}.npy"
    info = archive.getinfo(name)
    size = dtype.itemsize * int(np.prod(np.array(shape, object)))
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name} is of another version of NumPy's format")
        found = np.lib.format.read_array_header_1_0(member, _MOST_HEADER)
        if found != (tuple(shape), False, dtype) or info.compress_type:
            raise ValueError(f"{name} is {found}, not {dtype}{shape}")
        if info.file_size != member.tell() + size:
            raise ValueError(f"{name} has {info.file_size} bytes")
        array = np.empty(tuple(shape), dtype)
        data = array.reshape(-1).view(np.uint8)
        checksum = 0
        for start in range(0, size, _READ_BYTES):
            part = member.read(min(_READ_BYTES, size - start))
            checksum = zlib.crc32(part, checksum)
            data[start : start + len(part)] = np.frombuffer(part, np.uint8)
    if checksum != crc:
        raise ValueError(f"{name}: its checksum is wrong")
    return array
